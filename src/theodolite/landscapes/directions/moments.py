"""What an Adam optimiser remembers, in the order of the problem's parameters, and the step that it makes of that."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from theodolite.errors import ProblemError
from theodolite.operators.preconditioner import Group, held_by
from theodolite.problem import Problem

Missing = Literal["refuse", "zero"]


def adam_moments(
    problem: Problem, optimizer: Optimizer, *, missing: Missing = "refuse"
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """``exp_avg`` and ``exp_avg_sq`` of an optimiser, flattened: the "adam" axes of Loss Landscape Analysis.

    Args:
        problem: whose parameters they belong to.
        optimizer: any that keeps both (Adam, AdamW, NAdam, RAdam, …); read, never written.
        missing: what to do about parameters without either, because the optimiser does not hold them or has not stepped them:
            ``"refuse"``, or let the direction be ``"zero"`` there.

    Returns:
        First and second moments, without bias corrections. They are hardly ever orthogonal.

    Raises:
        ProblemError: parameters are missing, which it names, or all are.
    """
    first, second = (torch.zeros(problem.n, dtype=problem.dtype, device=problem.device) for _ in range(2))
    found = set()
    for _, members in held_by(optimizer, problem):
        for parameter, where in members:
            state = optimizer.state.get(parameter, {})
            if "exp_avg" in state and "exp_avg_sq" in state:
                first[where], second[where] = (_flat(state[key], first) for key in ("exp_avg", "exp_avg_sq"))
                found.add(where.start)
    _refuse_missing(problem, optimizer, found, missing)
    return first, second


def adam_step(
    problem: Problem,
    optimizer: Optimizer,
    *,
    gradient: Float[Tensor, " n"] | None = None,
    missing: Missing = "refuse",
) -> Float[Tensor, " n"]:
    """−lr · m̂ / (√v̂ + ε): one step of Adam with its own lr, ε, bias corrections and AMSGrad, group by group.

    Without a gradient it is made of the moments as they are, so that it is the step that was taken last: θ minus it is where
    that step began. With one, the moments are first moved on by it, and it is the step that comes next. What decoupled
    weight decay (AdamW) takes from the weights, lr·decay·θ, is no part of it.

    Args:
        problem: whose parameters are stepped.
        optimizer: Adam or AdamW, no subclass of theirs; read, never written.
        gradient: of the step to come, n numbers.
        missing: parameters without moments, as for ``adam_moments``. With a gradient only those that the optimiser does not hold:
            the first step starts from moments of zero.

    Raises:
        ProblemError: another optimiser, or parameters without moments.

    References:
        Kingma & Ba, "Adam: a method for stochastic optimization" (2015).
        Loshchilov & Hutter, "Decoupled weight decay regularization" (2019).
    """
    if type(optimizer) not in (Adam, AdamW):
        raise ProblemError(
            f"Expected Adam or AdamW, whose step is known from its moments, found {type(optimizer).__name__}. Take "
            "next_update(problem, optimizer) for the step of any optimiser."
        )
    step = torch.zeros(problem.n, dtype=problem.dtype, device=problem.device)
    found = set()
    for group, members in held_by(optimizer, problem):
        for parameter, where in members:
            held = _state(optimizer, parameter, zero=gradient is not None)
            if held is None:
                continue
            if gradient is not None:
                held = _moved_on(
                    held, gradient[where].to(parameter), parameter, group, decoupled=decays_apart(optimizer, group)
                )
            step[where] = _flat(_displacement(held, group), step)
            found.add(where.start)
    _refuse_missing(problem, optimizer, found, missing)
    return step


def decays_apart(optimizer: Optimizer, group: Group) -> bool:
    """Whether weight decay is decoupled: taken from the weights, not added to the gradient."""
    return isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay", False))


def _flat(moment: Tensor, like: Tensor) -> Float[Tensor, " _"]:
    return moment.detach().reshape(-1).to(like)


def _state(optimizer: Optimizer, parameter: Tensor, *, zero: bool) -> dict[str, Any] | None:
    """Moments and count of steps, zeros before the first step where asked for."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    if "exp_avg" in state:
        return state
    nothing = torch.zeros_like(parameter, requires_grad=False)
    return {"step": 0.0, "exp_avg": nothing, "exp_avg_sq": nothing, "max_exp_avg_sq": nothing} if zero else None


@torch.no_grad()
def _moved_on(
    held: dict[str, Any], gradient: Tensor, parameter: Tensor, group: Group, *, decoupled: bool
) -> dict[str, Any]:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    g = gradient.view_as(parameter) * (-1 if group["maximize"] else 1)
    if group["weight_decay"] and not decoupled:
        g = g + group["weight_decay"] * parameter
    second = beta2 * held["exp_avg_sq"] + (1 - beta2) * g.square()
    moved = {
        "step": float(held["step"]) + 1,
        "exp_avg": beta1 * held["exp_avg"] + (1 - beta1) * g,
        "exp_avg_sq": second,
    }
    if group["amsgrad"]:
        moved["max_exp_avg_sq"] = torch.maximum(held["max_exp_avg_sq"], second)
    return moved


def _displacement(held: dict[str, Any], group: Group) -> Tensor:
    steps = float(held["step"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    second = held["max_exp_avg_sq"] if group["amsgrad"] else held["exp_avg_sq"]
    root: Tensor = second.sqrt() / math.sqrt(1 - beta2**steps) + float(group["eps"])
    step: Tensor = -float(group["lr"]) / (1 - beta1**steps) * held["exp_avg"] / root
    return step


def _refuse_missing(problem: Problem, optimizer: Optimizer, found: set[int], missing: Missing) -> None:
    without = [name for name, where in problem.layout.slices.items() if where.start not in found]
    if without and (missing != "zero" or len(without) == len(problem.layout.names)):
        few = ", ".join(without[:8]) + (f", … ({len(without) - 8} more)" if len(without) > 8 else "")
        raise ProblemError(
            f"Expected {type(optimizer).__name__} to hold moments of all {len(problem.layout.names)} surveyed parameters, found "
            f"none for {few}. Take a step first, or pass missing='zero' to leave them where they are."
        )
