"""What a model loses with weights drawn at random."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.statistics import recalibrated
from theodolite.landscapes.paths.traveller import State, Traveller
from theodolite.problem import Problem
from theodolite.problem.guard import seed_everything, undisturbed
from theodolite.records import Cost, Hypotheses

Draw = Callable[[nn.Module], None]


def hypotheses(
    problem: Problem,
    *,
    count: int = 200,
    draw: Draw | str = "initialiser",
    scale: float = 1.0,
    test: Problem | None = None,
    seed: int = 0,
    step: int | None = None,
) -> Hypotheses:
    """Losses of models with random weights: how much of the loss of a trained one its architecture would give by itself.

    ``record.bits()`` says how many bits of choice lie between a random draw and the model. BatchNorm with stored statistics is
    recalibrated on the data of the problem for each draw. The model is not written to.

    Cost: a forward pass a draw, two with recalibration, and one on other data; the memory of one or two models more.

    Args:
        problem: whose loss and data are read; only its selected parameters are drawn.
        count: number of draws.
        draw: ``"initialiser"`` calls ``reset_parameters`` of each module; ``"gaussian"`` draws every selected weight from
            N(0, scale²); or a function that draws the parameters of a model it is given.
        scale: of Gaussian weights.
        test: a problem of the same model on other data, whose losses the bits are then about; ``record.fitting(tol)`` keeps the
            draws that fit the data of the problem.
        seed: of the draws.
        step: optimiser step, kept in the record.

    Returns:
        The losses, and those of the model itself.

    Raises:
        ProblemError: fewer than two draws, a draw that is not known, or a module that has parameters and no
            ``reset_parameters``.

    Example:
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(torch.randn(8, 3), torch.zeros(8, 1))])
        >>> found = hypotheses(problem, count=20)
        >>> found.losses.shape, found.bits(target=1e9).value
        ((20,), 0.0)

    References:
        Boopathy et al., "Towards exact computation of inductive bias" (2024); Valle-Pérez, Camargo & Louis, "Deep learning
        generalizes because the parameter-function map is biased towards simple functions" (2019).
    """
    started = time.perf_counter()
    if count < 2:
        raise ProblemError(f"Expected at least 2 draws, found count={count}.")
    name, drawn = _drawing(problem, draw, scale)
    traveller = Traveller(problem)
    other = None if test is None else Traveller(test)
    home, selected = traveller.state(), set(problem.layout.names)
    own = traveller.read(home).loss
    own_test = float("nan") if other is None else other.read(home).loss
    losses, test_losses = np.empty(count), np.empty(count)
    for index in range(count):
        traveller.go(home)
        with undisturbed(traveller.problem.model, copy=False), torch.no_grad():
            seed_everything(1_000_003 * seed + index)
            drawn(traveller.problem.model)
        found = traveller.state()
        state: State = {key: found[key] if key in selected else value for key, value in home.items()}
        state = recalibrated(traveller, state) if traveller.statistics else state
        losses[index] = traveller.read(state).loss
        if other is not None:
            test_losses[index] = other.read(state).loss
    passes = (count + 1) * (1 + (other is not None)) + count * traveller.statistics
    return Hypotheses(
        step=step,
        draw=name,
        losses=losses,
        test_losses=None if other is None else test_losses,
        own=own,
        own_test=own_test,
        cost=Cost(forwards=float(passes), seconds=time.perf_counter() - started),
        seed=seed,
        notes=("BatchNorm recalibrated for each draw, the model itself with its own statistics",)
        * traveller.statistics,
        context=problem.context(),
    )


def _drawing(problem: Problem, draw: Draw | str, scale: float) -> tuple[str, Draw]:
    """The name of a draw and the function that makes it."""
    if draw == "initialiser":
        lacking = [
            name or type(part).__name__
            for name, part in problem.model.named_modules()
            if _reset_of(part) is None
            and any(
                f"{name}.{key}".lstrip(".") in problem.layout.names for key, _ in part.named_parameters(recurse=False)
            )
        ]
        if lacking:
            raise ProblemError(
                f"Expected modules with reset_parameters to draw from the initialiser, found {len(lacking)} with parameters and "
                f"without it ({', '.join(lacking[:4])}). Give draw=function(model) that initialises the model in place."
            )
        return "initialiser", _reset
    if draw == "gaussian":
        return f"gaussian of scale {scale:g}", partial(_gaussian, names=set(problem.layout.names), scale=scale)
    if callable(draw):
        return getattr(draw, "__name__", type(draw).__name__), draw
    raise ProblemError(f"Expected draw='initialiser', 'gaussian' or a function of a model, found {draw!r}.")


def _reset_of(part: nn.Module) -> Callable[[], None] | None:
    for name in ("reset_parameters", "_reset_parameters"):  # attention has the second
        found = getattr(part, name, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    return None


def _reset(model: nn.Module) -> None:
    """Modules after those that they consist of, as at construction."""
    for part in reversed(list(model.modules())):
        reset = _reset_of(part)
        if reset is not None:
            reset()


def _gaussian(model: nn.Module, *, names: set[str], scale: float) -> None:
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.normal_(0.0, scale)
