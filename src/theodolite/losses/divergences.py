"""Estimators of the Kullback–Leibler divergence from samples, and the log-variance divergence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.registry import loss, module_of


class KLEstimators(NamedTuple):
    """Three estimators of KL(p‖q) from the same draws of p.

    Args:
        k1: −log r, unbiased, of either sign.
        k2: ½ log² r, biased; its gradient with the draws fixed is an unbiased gradient of KL(p‖q) in p.
        k3: r − 1 − log r, unbiased and non-negative; r = q/p.
    """

    k1: Float[Tensor, "*b"]
    k2: Float[Tensor, "*b"]
    k3: Float[Tensor, "*b"]


def kl_estimators(
    log_p: Float[Tensor, "*b"], log_q: Float[Tensor, "*b"], *, log_old: Float[Tensor, "*b"] | None = None
) -> KLEstimators:
    """Return the estimators k1, k2, k3 of KL(p‖q) at samples of p, or of an older policy with importance weights.

    Args:
        log_p: log-probability of each sample under p.
        log_q: under q.
        log_old: under the policy that drew the samples, when that was not p; values are weighed by p/p_old.

    Returns:
        One value a sample for each estimator.

    Example:
        >>> kl_estimators(torch.tensor([0.0]), torch.tensor([0.0])).k3
        tensor([0.])

    References:
        Schulman 2020, "Approximating KL Divergence"; Zhang et al. 2025, "On the Design of KL-Regularized Policy Gradient
        Algorithms for LLM Reasoning".
    """
    log_r = widened(log_q) - widened(log_p)
    found = (-log_r, 0.5 * log_r**2, torch.expm1(log_r) - log_r)
    if log_old is None:
        return KLEstimators(*found)
    weight = torch.exp(widened(log_p) - widened(log_old))
    return KLEstimators(*(weight * value for value in found))


@loss("other")
def kl_penalty(
    log_p: Float[Tensor, "*b"], log_q: Float[Tensor, "*b"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """The k2 penalty ½(log p − log q)² of samples of p: its gradient is that of KL(p‖q) in expectation.

    Args:
        log_p: log-probability of each sample under the model that drew it.
        log_q: under the reference.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> kl_penalty(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor(0.5000)

    References:
        Schulman 2020, "Approximating KL Divergence"; Zhang et al. 2025, "On the Design of KL-Regularized Policy Gradient
        Algorithms for LLM Reasoning".
    """
    return reduced(kl_estimators(log_p, log_q).k2, reduction)


KLPenalty = module_of(kl_penalty, "KLPenalty")


@loss("other")
def log_variance(log_ratios: Float[Tensor, "b *d"]) -> Float[Tensor, ""]:
    """Variance over samples of log q − log p̃, for samples that were drawn without gradient from any reference.

    Zero iff q = p up to the normalising constant of p̃, which needs not be known. With the reference equal to q its
    gradient is twice that of KL(q‖p) in expectation, and at the optimum every sample's gradient vanishes, which the
    KL estimator's does not.

    Args:
        log_ratios: log q(x_i) − log p̃(x_i); further axes (trajectories that share a start) have their own variance.

    Returns:
        The unbiased variance, averaged over the further axes.

    Example:
        >>> log_variance(torch.tensor([0.0, 2.0]))
        tensor(2.)

    References:
        Richter and Berner 2024, "Improved sampling via learned diffusions"; Nüsken and Richter 2021, "Solving
        high-dimensional Hamilton–Jacobi–Bellman PDEs using neural networks: perspectives from the theory of controlled
        diffusions and measures on path space".
    """
    return widened(log_ratios).var(0, correction=1).mean()


LogVarianceLoss = module_of(log_variance, "LogVarianceLoss")


def path_log_ratio(
    control: Float[Tensor, "t b k"],
    simulated: Float[Tensor, "t b k"],
    noise: Float[Tensor, "t b k"],
    terminal: Float[Tensor, " b"],
    *,
    dt: float,
) -> Float[Tensor, " b"]:
    """Return log of the controlled path measure over the target's, for paths simulated under a detached control.

    R = Σ_t u·(w − ½u)Δt + Σ_t u·ΔW + log p_ref(X_T) − log p̃(X_T), for dX = (f + σw)dt + σdW. Feed R to
    :func:`log_variance`; mean R with w = u attached and without the noise term is the KL loss.

    Args:
        control: u at each step, with its gradient.
        simulated: w, the control the paths were simulated under, detached.
        noise: ΔW, the very increments that moved the paths.
        terminal: log p_ref(X_T) − log p̃(X_T), p_ref the terminal law without control.
        dt: Δt.

    Returns:
        R of each path; log Z ≥ −mean R.

    References:
        Richter and Berner 2024, "Improved sampling via learned diffusions".
    """
    drift = (control * (simulated - 0.5 * control)).sum((0, 2)) * dt
    return drift + (control * noise).sum((0, 2)) + terminal


def reversed_path_log_ratio(
    control: Float[Tensor, "t b k"],
    inference: Float[Tensor, "t b k"],
    simulated: Float[Tensor, "t b k"],
    noise: Float[Tensor, "t b k"],
    divergence: Float[Tensor, "t b"],
    ends: Float[Tensor, " b"],
    *,
    dt: float,
) -> Float[Tensor, " b"]:
    """Return log of the controlled path measure over that of a target run backwards in time under its own control.

    R = log p_0(X_0) + Σ_t [(u + v)·(w − ½(u − v)) + σ∇·v − ∇·f]Δt + Σ_t (u + v)·ΔW − log p̃(X_T), for
    dX = (f + σw)dt + σdW with a σ that does not depend on x. R is constant over paths iff u + v = σ∇log p_t.

    Args:
        control: u at each step, with its gradient.
        inference: v, the control of the reversed process, with its gradient; 0 for a fixed one.
        simulated: w, the control the paths were simulated under, detached.
        noise: ΔW, the very increments that moved the paths.
        divergence: σ∇·v − ∇·f at each step.
        ends: log p_0(X_0) − log p̃(X_T).
        dt: Δt.

    Returns:
        R of each path, for :func:`log_variance`.

    References:
        Richter and Berner 2024, "Improved sampling via learned diffusions".
    """
    both = control + inference
    drift = (both * (simulated - 0.5 * (control - inference))).sum(2) + divergence
    return ends + drift.sum(0) * dt + (both * noise).sum((0, 2))
