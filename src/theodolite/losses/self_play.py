"""Self-play preference optimisation held near a reference model, and many preference losses as one logical form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import capped_exp, log1mexp
from theodolite.losses.preference_free import sppo
from theodolite.losses.registry import loss, module_of


@loss("other", eta="(0, ∞)", forward="[0, ∞)", reverse="[0, ∞)")
def rspo(
    log_prob: Float[Tensor, " b"],
    log_prob_before: Float[Tensor, " b"],
    log_prob_reference: Float[Tensor, " b"],
    win_rate: Float[Tensor, " b"],
    *,
    eta: float = 1000.0,
    forward: float = 0.1,
    reverse: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Regularised self-play: :func:`sppo` plus λ₁ KL(μ‖π) + λ₂ KL(π‖μ) to a reference μ, from answers of π_t.

    Both divergences are estimated without bias with weights μ/π_t and π/π_t; the reverse one goes through its weight
    too. The paper found the forward one to shorten answers and the reverse one to raise win rates.

    Args:
        log_prob: log-probability of each answer, summed over tokens.
        log_prob_before: under the policy π_t that drew it.
        log_prob_reference: under μ.
        win_rate: estimated probability that it beats another draw.
        eta: η of the self-play term.
        forward: λ₁.
        reverse: λ₂.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> rspo(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.tensor([0.5]))
        tensor(0.)

    References:
        Tang et al. 2025, "RSPO: Regularized Self-Play Alignment of Large Language Models"; the estimators of the
        divergences are ours.
    """
    ours, before, reference = widened(log_prob), widened(log_prob_before), widened(log_prob_reference)
    towards = capped_exp(reference - before) * (reference - ours)
    back = capped_exp(ours - before) * (ours - reference)
    played = sppo(ours, before, win_rate, eta=eta, reduction="none")
    return reduced(played + forward * towards + reverse * back, reduction)


RSPOLoss = module_of(rspo, "RSPOLoss")

LogPair = tuple[Tensor, Tensor]
# log ρ of the answers' propositions that hold (top) and fail (bottom), from log-probabilities of both answers under the model
# and under the reference: P_w and P_l for CPO, with the odds for ORPO, with the reference crosswise for DPO.
LOGIC: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], LogPair]] = {
    "cpo": lambda up, down, ref_up, ref_down: (up, down),
    "orpo": lambda up, down, ref_up, ref_down: (up + log1mexp(-down), down + log1mexp(-up)),
    "dpo": lambda up, down, ref_up, ref_down: (up + ref_down, down + ref_up),
}


def preference_logic(
    name: str,
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Return −log(ρ_top/(ρ_top + ρ_bottom)), the preference part of a loss with β = 1 as a statement about the answers.

    Args:
        name: ``"cpo"``, ``"orpo"`` or ``"dpo"``, keys of ``LOGIC``.
        chosen: log-probabilities of the preferred answers.
        rejected: of the rejected ones.
        reference_chosen: of the preferred ones under the reference.
        reference_rejected: of the rejected ones under the reference.

    Returns:
        One value a pair.

    Raises:
        ValueError: the name is unknown.

    References:
        Richardson, Srikumar and Sabharwal 2025, "Understanding the Logic of Direct Preference Alignment through Logic".
    """
    if name not in LOGIC:
        raise ValueError(f"Expected one of {sorted(LOGIC)}. Found {name!r}.")
    top, bottom = LOGIC[name](chosen, rejected, reference_chosen, reference_rejected)
    return F.softplus(bottom - top)
