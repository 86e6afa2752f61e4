"""Stability bounds of optimisers on a quadratic, from their own update rule and state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from theodolite.operators.preconditioner import DIAGONAL, Group, diagonal_preconditioner, held_by
from theodolite.problem import Problem


@dataclass(frozen=True)
class Rule:
    """The linear stability condition λ_max(D^½ (H + W) D^½) < 1 of an optimiser with its preconditioner P held fixed.

    D is learning rate over bound over P. Roots of the iteration leave the unit disc at −1 only: elsewhere on the circle
    what each group adds to the characteristic form has an imaginary part of one sign. At −1 decoupled decay w enters as
    I − lr·w/2 does, which is what W = w·bound·P/2 adds. So the condition is exact for groups with different rates,
    momenta and decays, and its left side is linear in the learning rates.

    Args:
        reach: diagonal of D, 0 for parameters that are not optimised.
        precondition: diagonal of P^-½, 1 without a preconditioner, 0 for parameters that are not optimised.
        decay: diagonal of W: coupled decay as it is, decoupled decay times bound·P/2.
        bound: what learning rate times preconditioned sharpness must stay below, of the first group.
        learning_rate: of the first group.
        uniform: whether all groups share learning rate and bound, so that one threshold exists.
        words: the condition, for the reader.
        unstepped: parameters left out because they have no state while others have.
    """

    reach: Float[Tensor, " n"]
    precondition: Float[Tensor, " n"]
    decay: Float[Tensor, " n"]
    bound: float
    learning_rate: float
    uniform: bool
    words: str
    unstepped: int = 0

    @property
    def threshold(self) -> float:
        """What preconditioned sharpness must stay below; 1 with several learning rates, infinite at learning rate 0."""
        if not self.uniform:
            return 1.0
        return self.bound / self.learning_rate if self.learning_rate > 0 else float("inf")

    @property
    def shift(self) -> float | None:
        """The decay, where preconditioned sharpness is λ_max(H) plus it; None where it is an eigenvalue of its own."""
        decay = float(self.decay[0])
        plain = self.uniform and bool((self.precondition == 1).all()) and bool((self.decay == decay).all())
        return decay if plain else None


def rule_of(optimizer: Optimizer, problem: Problem) -> Rule | str:
    """The stability condition of ``optimizer`` at its current state, or why it is not known, in words.

    Known are SGD (momentum, dampening, Nesterov), Adam, AdamW (with AMSGrad), RMSprop and Adagrad, not their subclasses.
    Those with a preconditioner have no condition before their first step; parameters that have not been stepped when
    others have, such as those of a head that is not used, are left out of it.

    References:
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021).
        Cohen et al., "Adaptive gradient methods at the edge of stability" (2022).
    """
    name = type(optimizer).__name__
    if type(optimizer) not in DIAGONAL:
        return f"the update rule of {name} is not known"
    held = held_by(optimizer, problem)
    if not held:
        return f"{name} holds none of the problem's parameters"
    bounds = [_bound(optimizer, group) for group, _ in held]
    if not all(bounds) or any(group.get("maximize", False) for group, _ in held):
        return f"{name} has no bound with maximize=True or dampening of 1 and more"
    rates = [float(group["lr"]) for group, _ in held]
    P, moved = diagonal_preconditioner(optimizer, held, problem)
    if not bool(moved.any()):
        return f"{name} has no preconditioner before its first step"
    unusable = int((moved & ~(P > 0)).sum())
    if unusable:
        eps = held[0][0].get("eps", 0.0)
        return f"the preconditioner of {name} is zero or not a number for {unusable} of {problem.n} parameters (eps={eps:g})"
    reach, decay, stepped = torch.zeros_like(P), torch.zeros_like(P), moved.to(P)
    for (group, members), bound, rate in zip(held, bounds, rates, strict=True):
        weight = float(group.get("weight_decay", 0.0))
        for _, where in members:
            reach[where] = rate / bound / P[where] * stepped[where]
            decay[where] = (weight * bound / 2 * P[where] if _decoupled(optimizer, group) else weight) * stepped[where]
    return Rule(
        reach=reach,
        precondition=P.rsqrt() * stepped,
        decay=decay,
        bound=bounds[0],
        learning_rate=rates[0],
        uniform=len(set(zip(rates, bounds, strict=True))) == 1,
        words=_words(optimizer, held[0][0]),
        unstepped=sum(p.numel() for _, members in held for p, where in members if not bool(moved[where].any())),
    )


def leading_group(optimizer: Optimizer, problem: Problem) -> Group:
    """The first group that holds parameters of the problem; the first of all where none does."""
    held = held_by(optimizer, problem)
    return held[0][0] if held else optimizer.param_groups[0]


def momentum_of(group: Group) -> float:
    """β, or β₁ of the Adam family; 0 without."""
    return float(group["betas"][0]) if "betas" in group else float(group.get("momentum", 0.0))


def _bound(optimizer: Optimizer, group: Group) -> float:
    """What lr·λ must stay below: the roots of the recursion of (θ, momentum) on λθ²/2 lie in the unit disc; 0 without."""
    if isinstance(optimizer, Adam):  # AdamW is one
        beta = float(group["betas"][0])
        return 2 * (1 + beta) / (1 - beta)
    if isinstance(optimizer, SGD | RMSprop):
        beta = float(group["momentum"])
        if group.get("nesterov", False):
            return 2 * (1 + beta) / (1 + 2 * beta)
        dampening = float(group.get("dampening", 0.0)) if beta else 0.0
        return 2 * (1 + beta) / (1 - dampening) if dampening < 1 else 0.0
    return 2.0  # Adagrad


def _decoupled(optimizer: Optimizer, group: Group) -> bool:
    return isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay", False))


def _words(optimizer: Optimizer, group: Group) -> str:
    if isinstance(optimizer, Adam):
        return "λmax(P^-½HP^-½) < 2(1+β₁)/((1−β₁)·lr), P = √v̂ + ε"
    if isinstance(optimizer, SGD):
        if not group["momentum"]:
            return "λmax(H) < 2/lr"
        if group["nesterov"]:
            return "λmax(H) < 2(1+β)/((1+2β)·lr)"
        return "λmax(H) < 2(1+β)/((1−dampening)·lr)" if group["dampening"] else "λmax(H) < 2(1+β)/lr"
    if isinstance(optimizer, RMSprop):
        return "λmax(P^-½HP^-½) < 2(1+β)/lr, P = √v + ε"
    return "λmax(P^-½HP^-½) < 2/lr, P = √(Σg²) + ε"
