"""Stability bounds of optimisers on a quadratic, from their own update rule and state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer, RMSprop

from theodolite.problem import Problem


@dataclass(frozen=True)
class Rule:
    """The linear stability condition λ_max(D^½ (H + W) D^½ + w) < 1 of an optimiser with its preconditioner held fixed.

    Args:
        reach: diagonal of D: learning rate over bound over preconditioner, 0 for parameters that are not optimised.
        precondition: diagonal of P^-½, 1 without a preconditioner, 0 for parameters that are not optimised.
        coupled_decay: diagonal of W, weight decay that goes through the preconditioner.
        decoupled_decay: w, half the learning rate times the decoupled weight decay, largest over groups.
        bound: what learning rate times preconditioned sharpness must stay below, of the first group.
        learning_rate: of the first group.
        momentum: β or β₁ of the first group.
        uniform: whether all groups share learning rate and bound, so that one threshold exists.
        words: the condition, for the reader.
    """

    reach: Float[Tensor, " n"]
    precondition: Float[Tensor, " n"]
    coupled_decay: Float[Tensor, " n"]
    decoupled_decay: float
    bound: float
    learning_rate: float
    momentum: float
    uniform: bool
    words: str

    @property
    def threshold(self) -> float:
        """What preconditioned sharpness must stay below; 1 with several learning rates, infinite at learning rate 0."""
        if not self.uniform:
            return 1.0
        return self.bound / self.learning_rate if self.learning_rate > 0 else float("inf")


def rule_of(optimizer: Optimizer, problem: Problem) -> Rule | None:
    """The stability condition of ``optimizer`` at its current state, None if it is not known.

    Known are SGD (momentum, dampening, Nesterov), Adam, AdamW (with AMSGrad), RMSprop and Adagrad. The Adam family has no
    condition before its first step, when there is no preconditioner yet.

    References:
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021).
        Cohen et al., "Adaptive gradient methods at the edge of stability" (2022).
    """
    owners = {id(parameter): name for name, parameter in problem.model.named_parameters()}
    selected = problem.layout.slices
    n = problem.n
    reach, precondition, decay = (torch.zeros(n, dtype=problem.dtype, device=problem.device) for _ in range(3))
    groups = []
    for group in optimizer.param_groups:
        bound = _bound(optimizer, group)
        if bound is None or group.get("maximize", False):
            return None
        rate = float(group["lr"])
        for parameter in group["params"]:
            where = selected.get(owners.get(id(parameter), ""))
            if where is None:
                continue
            P = _preconditioner(optimizer, group, optimizer.state.get(parameter, {}), parameter)
            if P is None:
                return None
            inverse = 1.0 / P.reshape(-1).to(precondition)
            reach[where] = rate / bound * inverse
            precondition[where] = inverse.sqrt()
            decay[where] = 0.0 if _decoupled(optimizer, group) else float(group.get("weight_decay", 0.0))
        groups.append((rate, bound, float(group.get("weight_decay", 0.0)) if _decoupled(optimizer, group) else 0.0))
    if not bool((precondition > 0).any()):
        return None
    rate, bound, _ = groups[0]
    return Rule(
        reach=reach,
        precondition=precondition,
        coupled_decay=decay,
        # It shrinks θ outside the momentum: the root reaches −1 at lr·λ/bound + lr·w/2 = 1.
        decoupled_decay=max(rate * w / 2 for rate, _, w in groups),
        bound=bound,
        learning_rate=rate,
        momentum=momentum_of(optimizer),
        uniform=len({(rate, bound) for rate, bound, _ in groups}) == 1,
        words=_words(optimizer, optimizer.param_groups[0]),
    )


def momentum_of(optimizer: Optimizer) -> float:
    """β, or β₁ of the Adam family, of the first group; 0 without."""
    group = optimizer.param_groups[0]
    return float(group["betas"][0]) if "betas" in group else float(group.get("momentum", 0.0))


def _bound(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    """What lr·λ must stay below: the two roots of the recursion of (θ, momentum) on λθ²/2 lie in the unit disc."""
    if isinstance(optimizer, Adam):  # AdamW is one
        beta = float(group["betas"][0])
        return 2 * (1 + beta) / (1 - beta)
    if isinstance(optimizer, SGD | RMSprop):
        beta = float(group["momentum"])
        if group.get("nesterov", False):
            return 2 * (1 + beta) / (1 + 2 * beta)
        dampening = float(group.get("dampening", 0.0)) if beta else 0.0
        return 2 * (1 + beta) / (1 - dampening) if dampening < 1 else None
    return 2.0 if isinstance(optimizer, Adagrad) else None


def _preconditioner(
    optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any], parameter: Tensor
) -> Tensor | None:
    """Diagonal P of the update lr·P⁻¹·m at the next step, None where the state does not exist yet."""
    if isinstance(optimizer, SGD):
        return torch.ones_like(parameter)
    if isinstance(optimizer, Adam) and "exp_avg_sq" in state:
        steps = float(state["step"])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        second: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        # Bias corrections: of the first moment it lengthens the step, so it divides P (Cohen et al. 2022).
        return float(1 - beta1**steps) * (torch.sqrt(second / float(1 - beta2**steps)) + float(group["eps"]))
    if isinstance(optimizer, RMSprop) and "square_avg" in state:
        second = state["square_avg"] - state["grad_avg"].square() if group["centered"] else state["square_avg"]
        return torch.sqrt(second) + float(group["eps"])
    if isinstance(optimizer, Adagrad) and float(state["step"]) > 0:
        second = state["sum"]
        return (torch.sqrt(second) + float(group["eps"])) * (1 + float(state["step"]) * float(group["lr_decay"]))
    return None


def _decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", False)) or type(optimizer).__name__ == "AdamW"


def _words(optimizer: Optimizer, group: dict[str, Any]) -> str:
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
