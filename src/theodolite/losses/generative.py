"""Losses of generative models: score matching with a target or a noise, classifier guidance, timestep weights, adversarial."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of


@loss("other")
def denoising_score(
    score: Float[Tensor, "b *d"],
    noise: Float[Tensor, "b *d"],
    sigma: Float[Tensor, " b"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """½|s(y, σ) + ε/σ|² for y = x + σε: the score of the noised data in expectation, with variance ∝ 1/σ².

    Args:
        score: s at the noised samples.
        noise: ε.
        sigma: noise level of each sample.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> denoising_score(torch.tensor([[-2.0]]), torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor(0.)

    References:
        Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders".
    """
    target = -widened(noise).flatten(1) / sigma[:, None]
    return reduced(0.5 * (widened(score).flatten(1) - target).square().sum(1), reduction)


DenoisingScoreLoss = module_of(denoising_score, "DenoisingScoreLoss")


@loss("other")
def target_score(
    score: Float[Tensor, "b *d"], clean_score: Float[Tensor, "b *d"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """½|s(y, σ) − ∇log p(x)|² where the score of the clean density is known: best for small noise.

    Its minimiser is that of :func:`denoising_score`; its variance falls to 0 with σ, where the other's diverges.

    Args:
        score: s at the noised samples y.
        clean_score: ∇log p at the clean samples x.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> target_score(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        tensor(0.5000)

    References:
        De Bortoli et al. 2024, "Target Score Matching".
    """
    return reduced(0.5 * (widened(score) - widened(clean_score)).flatten(1).square().sum(1), reduction)


TargetScoreLoss = module_of(target_score, "TargetScoreLoss")


@loss("other")
def denoising_likelihood_score(
    classifier_gradient: Float[Tensor, "b *d"],
    score: Float[Tensor, "b *d"],
    noise: Float[Tensor, "b *d"],
    sigma: Float[Tensor, " b"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """½|∇log p(c|y) + s(y) + ε/σ|²: trains the gradient of a noisy classifier, which cross-entropy leaves free.

    Args:
        classifier_gradient: of log p(c|y) in the noised sample y = x + σε, with its graph.
        score: unconditional, held constant.
        noise: ε.
        sigma: noise level of each sample.
        reduction: over samples.

    Returns:
        The reduced loss.

    Example:
        >>> denoising_likelihood_score(torch.ones(1, 1), torch.ones(1, 1), -torch.ones(1, 1), torch.tensor([0.5]))
        tensor(0.)

    References:
        Chao et al. 2022, "Denoising Likelihood Score Matching for Conditional Score-based Data Generation".
    """
    return denoising_score(widened(classifier_gradient) + widened(score).detach(), noise, sigma, reduction=reduction)


DenoisingLikelihoodScoreLoss = module_of(denoising_likelihood_score, "DenoisingLikelihoodScoreLoss")


def p2_weight(
    weight: Float[Tensor, "*t"], snr: Float[Tensor, "*t"], *, gamma: float = 1.0, k: float = 1.0
) -> Float[Tensor, "*t"]:
    """Return timestep weights over (k + SNR)^γ, which favour the noise levels at which content is learnt.

    References:
        Choi et al. 2022, "Perception Prioritized Training of Diffusion Models".
    """
    return weight / (k + snr) ** gamma


@loss("other")
def relativistic_pairing(
    first: Float[Tensor, " b"], second: Float[Tensor, " b"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """log(1 + e^{−(D(first) − D(second))}): the critic calls it with real and fake, the generator with fake and real.

    The critic adds :func:`zero_centred_penalty` of both.

    Args:
        first: critic's values that should be larger.
        second: critic's values paired with them.
        reduction: over pairs.

    Returns:
        The reduced loss, log 2 at equality.

    Example:
        >>> relativistic_pairing(torch.zeros(2), torch.zeros(2))
        tensor(0.6931)

    References:
        Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline".
    """
    return reduced(F.softplus(widened(second) - widened(first)), reduction)


RelativisticPairingLoss = module_of(relativistic_pairing, "RelativisticPairingLoss")


def zero_centred_penalty(
    values: Float[Tensor, " b"], samples: Float[Tensor, "b *d"], *, gamma: float = 1.0
) -> Float[Tensor, ""]:
    """Return (γ/2) mean |∇D|² at samples that require grad, summed over their dimensions.

    References:
        Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline".
    """
    (gradient,) = torch.autograd.grad(values.sum(), samples, create_graph=True)
    return gamma / 2 * gradient.flatten(1).square().sum(1).mean()
