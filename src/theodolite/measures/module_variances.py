"""Noise of the gradient of each module, from two halves of the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from theodolite.errors import ProblemError
from theodolite.measures.arguments import optimises, surveyed
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, whole
from theodolite.problem.parameters import Selection
from theodolite.records import Cost, ModuleVariances


def module_variances(
    problem: Problem,
    modules: Mapping[str, Selection] | None = None,
    *,
    optimizer: Optimizer | None = None,
    splits: int = 4,
    seed: int = 0,
    step: int | None = None,
) -> ModuleVariances:
    """Φ = 1 − cos(g_a, g_b) of each module for halves a and b of the data, as AGVM steers learning rates by.

    Large-batch training of detectors and segmenters fails where backbone and heads differ in it.

    Cost: a gradient for each split.

    Args:
        problem: what to survey; halves of coupled samples are of whole batches.
        modules: selections of parameters by name, the first the anchor; by default the outermost modules.
        optimizer: Adam or AdamW: gradients are then divided by √(β₂v + (1 − β₂)g²) + ε of its state v first.
        splits: random halves, whose Φ are averaged.
        seed: of the first split.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: a module has no parameters, there are no splits, or the optimiser has no second moments.
        DataError: the data cannot be halved.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), [(torch.randn(32, 4), torch.randint(3, (32,)))])
        >>> module_variances(problem).modules
        ('0', '2')

    References:
        Xue et al., "Large-batch optimization for dense visual predictions" (2022).
    """
    started = time.perf_counter()
    surveyed(problem)
    whole(splits=splits, seed=seed)
    optional(optimises, optimizer=optimizer)
    if splits < 1:
        raise ProblemError(f"Expected at least 1 split of the data, found splits={splits}.")
    places = _places(problem, modules)
    scaled = _scaling(problem, optimizer)
    phis, size = [], 0
    for split in range(splits):
        halves = problem.split_halves(seed=seed + split)
        first, second = (scaled(half.gradient()).double() for half in halves)
        phis.append([1 - _cosine(first[where], second[where]) for where in places.values()])
        size = halves[1].samples
    return ModuleVariances(
        step=step,
        cost=Cost(gradients=float(splits), seconds=time.perf_counter() - started),
        seed=seed,
        context=problem.context(),
        modules=tuple(places),
        phis=np.array(phis),
        samples=size,
        optimizer="" if optimizer is None else type(optimizer).__name__,
    )


def _places(problem: Problem, modules: Mapping[str, Selection] | None) -> dict[str, Tensor]:
    """Places of the parameters of each module in the flat vector."""
    slices = problem.layout.slices
    if modules is None:
        found: dict[str, list[str]] = {}
        for name in slices:
            found.setdefault(name.split(".")[0], []).append(name)
        named = found
    else:
        named = {module: list(problem.select(choice).layout.names) for module, choice in modules.items()}
    if not named:
        raise ProblemError("Expected at least one module, found none. Leave modules= out for the outermost ones.")
    return {
        module: torch.cat([torch.arange(slices[name].start, slices[name].stop) for name in names]).to(problem.device)
        for module, names in named.items()
    }


def _scaling(problem: Problem, optimizer: Optimizer | None) -> Callable[[Tensor], Tensor]:
    """What turns a flat gradient into the one that the optimiser sees."""
    if optimizer is None:
        return lambda gradient: gradient
    second = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
    beta, eps = torch.zeros_like(second), torch.zeros_like(second)
    named = dict(problem.model.named_parameters())
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, where in problem.layout.slices.items():
        group, state = groups.get(id(named[name])), optimizer.state.get(named[name], {})
        if group is None or "betas" not in group or "exp_avg_sq" not in state:
            raise ProblemError(
                f"Expected an Adam or AdamW that has taken a step and holds {name!r}, found {type(optimizer).__name__} without "
                "second moments of it. Leave optimizer= out to compare plain gradients."
            )
        second[where] = state["exp_avg_sq"].reshape(-1).to(second)
        beta[where], eps[where] = group["betas"][1], group["eps"]

    def scaled(gradient: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return gradient / ((beta * second + (1 - beta) * gradient.square()).sqrt() + eps)

    return scaled


def _cosine(one: Float[Tensor, " m"], other: Float[Tensor, " m"]) -> float:
    lengths = float(one.norm() * other.norm())
    return float(one @ other) / lengths if lengths > 0 else float("nan")
