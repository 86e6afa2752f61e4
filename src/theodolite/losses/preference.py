"""Losses on pairs of a preferred and a rejected answer, against a reference model: DPO, its robust form, IPO, RPO."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of


@loss("pairs", beta="(0, ∞)", label_smoothing="[0, 1]")
def dpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Direct preference optimisation: −log σ(βΔ), Δ = log(π/π_ref) of the preferred less that of the rejected answer.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        reference_chosen: of the preferred answers under the reference model.
        reference_rejected: of the rejected answers under the reference model.
        beta: inverse temperature β.
        label_smoothing: ε, adds −ε log σ(−βΔ) (conservative DPO).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> dpo(*torch.zeros(4, 1))
        tensor(0.6931)

    References:
        Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model".
    """
    margin = beta * _gap(chosen, rejected, reference_chosen, reference_rejected)
    return reduced(_smoothed(margin, label_smoothing), reduction)


def _gap(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    return (widened(chosen) - widened(reference_chosen)) - (widened(rejected) - widened(reference_rejected))


def _smoothed(margin: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * F.logsigmoid(margin) - epsilon * F.logsigmoid(-margin)


DPOLoss = module_of(dpo, "DPOLoss")


@loss("pairs", beta="(0, ∞)", flip_rate="[0, 0.5)")
def robust_dpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    flip_rate: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """DPO whose expectation over labels flipped with probability ε is the DPO loss of the clean labels.

    [−(1 − ε) log σ(βΔ) + ε log σ(−βΔ)]/(1 − 2ε); it may be negative.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        reference_chosen: of the preferred answers under the reference model.
        reference_rejected: of the rejected answers under the reference model.
        beta: β.
        flip_rate: ε < ½.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Raises:
        ValueError: if the flip rate is not below one half.

    Example:
        >>> import torch
        >>> robust_dpo(*torch.zeros(4, 1))
        tensor(0.6931)

    References:
        Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback".
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"Labels flipped half of the time carry no information. Found flip_rate = {flip_rate}.")
    margin = beta * _gap(chosen, rejected, reference_chosen, reference_rejected)
    clean, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return reduced(((1 - flip_rate) * clean - flip_rate * flipped) / (1 - 2 * flip_rate), reduction)


RobustDPOLoss = module_of(robust_dpo, "RobustDPOLoss")


@loss("pairs", beta="(0, ∞)")
def ipo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    chosen_length: Float[Tensor, " b"] | None = None,
    rejected_length: Float[Tensor, " b"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Identity preference optimisation: (Δ − 1/(2β))², least at the finite margin Δ = 1/(2β).

    Summed and averaged log-probabilities are different losses: with lengths, Δ is made of averages per token, a common
    choice in code that asks for a β larger by about the answers' length.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        reference_chosen: of the preferred answers under the reference model.
        reference_rejected: of the rejected answers under the reference model.
        beta: β.
        chosen_length: tokens of the preferred answers, to average log-probabilities; None to keep the sums.
        rejected_length: tokens of the rejected answers.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> ipo(*torch.zeros(4, 1), beta=0.5)
        tensor(1.)

    References:
        Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences".
    """
    up = widened(chosen) - widened(reference_chosen)
    down = widened(rejected) - widened(reference_rejected)
    if chosen_length is not None and rejected_length is not None:
        up, down = up / chosen_length, down / rejected_length
    return reduced((up - down - 1 / (2 * beta)).square(), reduction)


IPOLoss = module_of(ipo, "IPOLoss")


@loss("pairs", beta="(0, ∞)", eta="[0, ∞)")
def rpo(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    eta: float = 0.005,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """DPO plus ηβ times the negative log-likelihood of the preferred answer, which guards against over-optimisation.

    The likelihood term is what an adversary over rewards, held by the data, amounts to.

    Args:
        chosen: log-probabilities of the preferred answers, summed over tokens.
        rejected: of the rejected answers.
        reference_chosen: of the preferred answers under the reference model.
        reference_rejected: of the rejected answers under the reference model.
        beta: β.
        eta: η.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> import torch
        >>> rpo(*torch.zeros(4, 1))
        tensor(0.6931)

    References:
        Liu et al. 2024, "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial
        Regularizer".
    """
    margin = beta * _gap(chosen, rejected, reference_chosen, reference_rejected)
    return reduced(_smoothed(margin, 0.0) - eta * beta * widened(chosen), reduction)


RPOLoss = module_of(rpo, "RPOLoss")
