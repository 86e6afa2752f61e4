"""Curves of low loss between two checkpoints, found by training what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.landscapes.paths.curve import Curve, Form, straight
from theodolite.landscapes.paths.finite import refuse_non_finite_parameters
from theodolite.landscapes.paths.path import refuse_unselected
from theodolite.landscapes.paths.traveller import Checkpoint, Traveller
from theodolite.problem import Chunk, Point, Problem

Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
ADAM: Optimiser = partial(torch.optim.Adam, lr=1e-2)


def bezier(
    problem: Problem,
    start: Checkpoint,
    end: Checkpoint,
    *,
    steps: int = 500,
    optimizer: Optimiser = ADAM,
    seed: int = 0,
) -> Curve:
    """The quadratic Bézier curve (1−t)²·start + 2t(1−t)·bend + t²·end whose bend minimises the mean loss along it.

    Every step takes one batch, in their order, and one t, uniform between 0 and 1. BatchNorm with stored statistics is
    trained on those of each batch, and read with recalibrated ones by ``path``. The model of the problem is not written to.

    Cost: one gradient of one batch a step; the memory of the model, both checkpoints, the bend and the optimiser.

    Args:
        problem: whose loss and data the bend is trained on.
        start: γ(0), as for ``path``; fixed.
        end: γ(1), fixed.
        steps: of the optimiser.
        optimizer: makes it from the list of trained tensors; Adam with learning rate 0.01 by default.
        seed: of the positions t.

    Returns:
        The curve, for ``path(problem, start, end, curves={"bezier": curve})``.

    Raises:
        ProblemError: no step, checkpoints that differ in what the problem does not select, or no function that makes an
            optimiser.
        NonFiniteError: a checkpoint or the loss at the start is not finite, or training of the bend diverged.

    Example:
        >>> from torch import nn
        >>> from theodolite.landscapes.paths import path
        >>> first, second = nn.Linear(3, 1), nn.Linear(3, 1)
        >>> problem = Problem(first, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 1))])
        >>> curve = bezier(problem, first, second, steps=10)
        >>> path(problem, first, second, curves={"bezier": curve}).profiles
        ('linear', 'bezier')

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, "Loss surfaces, mode connectivity, and fast ensembling of DNNs"
        (2018).
    """
    return _trained(problem, start, end, form="bezier", bends=1, steps=steps, optimizer=optimizer, seed=seed)


def chain(
    problem: Problem,
    start: Checkpoint,
    end: Checkpoint,
    *,
    bends: int = 3,
    steps: int = 500,
    optimizer: Optimiser = ADAM,
    seed: int = 0,
) -> Curve:
    """The polygon from one checkpoint to the other whose bends minimise the mean loss along it.

    Cost: as for ``bezier``, with the memory of all bends.

    Args:
        problem: as for ``bezier``.
        start: γ(0), fixed.
        end: γ(1), fixed.
        bends: corners between the ends; they start evenly spaced on the straight line.
        steps: of the optimiser.
        optimizer: as for ``bezier``.
        seed: of the positions t.

    Returns:
        The curve, for ``path(problem, start, end, curves={"chain": curve})``.

    Raises:
        ProblemError: no bend or no step, or checkpoints that differ in what the problem does not select.
        NonFiniteError: a checkpoint or the loss at the start is not finite, or training of the bends diverged.

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, "Loss surfaces, mode connectivity, and fast ensembling of DNNs"
        (2018); Draxler, Veschgini, Salmhofer & Hamprecht, "Essentially no barriers in neural network energy landscape"
        (2018), whose chain is pulled by springs instead.
    """
    return _trained(problem, start, end, form="chain", bends=bends, steps=steps, optimizer=optimizer, seed=seed)


def _trained(
    problem: Problem,
    start: Checkpoint,
    end: Checkpoint,
    *,
    form: Form,
    bends: int,
    steps: int,
    optimizer: object,
    seed: int,
) -> Curve:
    if bends < 1 or steps < 1:
        raise ProblemError(f"Expected at least one bend and one step to train, found bends={bends} and steps={steps}.")
    traveller = Traveller(problem)
    ends = traveller.state_of(start), traveller.state_of(end)
    refuse_unselected(traveller, *ends)
    refuse_non_finite_parameters(
        {"start": ends[0], "end": ends[1]}, problem.layout.names, to="train a curve between checkpoints"
    )
    line = straight(*ends)
    inner = [dict(line.at((k + 1) / (bends + 1))) for k in range(bends)]
    names = problem.layout.names
    trained = [state[name].clone().requires_grad_() for state in inner for name in names]
    for k, state in enumerate(inner):
        state.update(zip(names, trained[k * len(names) : (k + 1) * len(names)], strict=True))
    curve = Curve(form, (ends[0], *inner, ends[1]))
    losses = _train(traveller, curve, trained, steps=steps, optimizer=_made(optimizer, trained), seed=seed)
    controls = [{name: value.detach() for name, value in state.items()} for state in inner]
    return Curve(form, (ends[0], *controls, ends[1]), training=losses)


def _made(optimizer: object, trained: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of the bends, which exist only now: one of a model's parameters would train those."""
    made = optimizer(trained) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(made, torch.optim.Optimizer):
        raise ProblemError(
            "Expected optimizer to be a function that makes an optimiser from the list of trained tensors, as "
            "functools.partial(torch.optim.Adam, lr=1e-2), found "
            + (f"one that made {made!r}." if callable(optimizer) else f"{type(optimizer).__name__}.")
        )
    return made


def _train(
    traveller: Traveller,
    curve: Curve,
    trained: list[Tensor],
    *,
    steps: int,
    optimizer: torch.optim.Optimizer,
    seed: int,
) -> Float[np.ndarray, " s"]:
    problem, losses, here = traveller.problem, list[float](), traveller.problem.point()
    generator = np.random.default_rng(seed)
    with problem.session():
        for chunk in islice(_forever(problem), steps):
            loss, gradients = _gradients(traveller, curve, chunk, trained, here, float(generator.uniform()))
            if not np.isfinite(loss):
                _refuse_non_finite(loss, len(losses), chunk)
            losses.append(loss)
            for tensor, gradient in zip(trained, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
    return np.array(losses)


def _refuse_non_finite(loss: float, step: int, chunk: Chunk) -> None:
    """A loss that is lost before the first update of the optimiser is not its fault."""
    where = f"found {loss} at step {step}, on batch {chunk.index}"
    if step == 0:
        raise NonFiniteError(
            f"Expected a finite loss between the checkpoints, where the bends start, {where} before anything was trained: the "
            "data, the checkpoints or what lies between them have no finite loss. See path(problem, start, end)."
        )
    raise NonFiniteError(
        f"Expected a finite loss while the bends are trained, {where}. Are the data finite? If so, give an optimizer with a "
        "smaller learning rate: optimizer=functools.partial(torch.optim.Adam, lr=1e-3)."
    )


def _forever(problem: Problem) -> Iterator[Chunk]:
    while True:
        yield from problem.chunks()


def _gradients(
    traveller: Traveller, curve: Curve, chunk: Chunk, trained: list[Tensor], here: Point, t: float
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss of a chunk at γ(t), and its gradients in the bends; those that γ(t) does not depend on have none."""
    problem, state = traveller.problem, curve.at(t)
    point = Point(tuple(state[name] for name in problem.layout.names), here.constants, here.buffers, here.version)

    def differentiated(model: nn.Module) -> tuple[float, tuple[Tensor, ...]]:
        if traveller.statistics:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        total, weight = problem.objective.evaluate(model, chunk.batch)
        loss = total / weight if problem.objective.averages() else total * (problem.samples / chunk.samples)
        return float(loss.detach()), torch.autograd.grad(loss, trained, materialize_grads=True)

    return problem.call(differentiated, point, chunk=chunk.index)
