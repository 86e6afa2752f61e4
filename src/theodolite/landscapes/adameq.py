"""Losses along the steps of Adam: Loss Landscape Analysis's mode "adameq" as the line that it is."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.landscapes.directions.moments import Missing, adam_step, decays_apart
from theodolite.landscapes.grids import Span
from theodolite.landscapes.lines import KEEP, line
from theodolite.landscapes.readings import OnPoint
from theodolite.operators.preconditioner import held_by
from theodolite.problem import Problem
from theodolite.records import Line


def adameq(
    problem: Problem,
    optimizer: Optimizer,
    *,
    gradient: Float[Tensor, " n"] | None = None,
    points: int = 51,
    span: Span = (-10.0, 10.0),
    missing: Missing = "refuse",
    keep_directions_below: int = KEEP,
    on_point: OnPoint | None = None,
    step: int | None = None,
) -> Line:
    """Losses L(θ + k·m̂/(√v̂+ε)) along what Adam remembers, with its own lr, ε and bias corrections.

    Positions α count steps of the optimiser, k = −lr·α: 1 is one step of its current lr ahead, −1 is where its last step
    began. Loss Landscape Analysis scales m and v by two multipliers a and b, draws the losses over both as a surface, and
    fixes ε = 1e-6. But θ + (a/√b)·m/(√v+ε) depends on a/√b alone: that surface is this line, drawn wide, with
    α = −a/(√b·lr).

    Cost: one forward pass a point, one more where the span does not contain 0.

    Args:
        problem: what is surveyed.
        optimizer: Adam or AdamW; read, never written.
        gradient: as for ``directions.adam_step``: with it the line is that of the step to come.
        points: number of positions, evenly spaced on each side of 0.
        span: first and last position, in steps.
        missing: parameters without moments, as for ``directions.adam_moments``.
        keep_directions_below: as for ``line``.
        on_point: as for ``line``.
        step: optimiser step, kept in the record.

    Returns:
        The line, named ``"adameq"``; its context holds the options of the optimiser's first group.

    Raises:
        ProblemError: another optimiser, parameters without moments, or positions that make no sense.
        NonFiniteError: parameters or moments are not finite. Losses that are not finite are readings.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 1)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> nn.functional.mse_loss(model(torch.ones(2, 3)), torch.ones(2, 1)).backward()
        >>> optimizer.step()
        >>> adameq(problem, optimizer, points=5).alphas.tolist()
        [-10.0, -5.0, 0.0, 5.0, 10.0]

    References:
        Gabdullin, "Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
        analysis" (2024).
    """
    direction = adam_step(problem, optimizer, gradient=gradient, missing=missing)
    found = line(
        problem,
        direction={"adameq": direction},
        points=points,
        span=span,
        keep_directions_below=keep_directions_below,
        on_point=on_point,
        step=step,
    )
    groups = [group for group, _ in held_by(optimizer, problem)]
    options = {name: float(groups[0][name]) for name in ("lr", "eps", "weight_decay")}
    notes = []
    if len({float(group["lr"]) for group in groups}) > 1:
        notes.append(f"{len(groups)} parameter groups with a learning rate each: α counts steps of all")
    if any(group["weight_decay"] and decays_apart(optimizer, group) for group in groups):
        notes.append("what decoupled weight decay takes from the weights in a step is no part of this line")
    return found.replace(
        notes=(*found.notes, *notes), context={**found.context, **options, "optimizer": type(optimizer).__name__}
    )
