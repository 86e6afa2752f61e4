"""How gradients and curvature of domains agree with those of their pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from theodolite.records.record import Record
from theodolite.records.text import number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DomainAlignment(Record):
    """Dot products of gradients g_e and Hessian-gradient products H_e g_e of domains, and of their pool at last.

    They are exact for the data; its own error is not known from one pass: measure halves of the data (``problem.split_halves``).

    Args:
        domains: names.
        weights: share of each domain in the pooled loss.
        losses: of each domain.
        gradient_dots: ⟨g_a, g_b⟩ of all domains, at last the pool's g.
        curved_dots: ⟨H_a g_a, H_b g_b⟩, at last the pool's Hg (not the mean of the others).
        transfer: ‖H_a − H_b‖₂ of every pair, NaN where not asked for.
        converged: whether each of those norms met the tolerance.
        tol: relative residual that was asked for.
        size: number of parameters n.
    """

    kind: ClassVar[str] = "domain alignment"
    lengths: ClassVar[Mapping[str, str]] = {"domains": "e"}

    domains: tuple[str, ...]
    weights: Float[np.ndarray, " e"]
    losses: Float[np.ndarray, " e"]
    gradient_dots: Float[np.ndarray, "f f"]
    curved_dots: Float[np.ndarray, "f f"]
    transfer: Float[np.ndarray, "e e"]
    converged: Bool[np.ndarray, "e e"]
    tol: float
    size: int

    @property
    def gradient_cosines(self) -> Float[np.ndarray, "f f"]:
        """Cosines between gradients, the pool last."""
        return _cosines(self.gradient_dots)

    @property
    def curved_cosines(self) -> Float[np.ndarray, "f f"]:
        """Cosines between Hessian-gradient products, the pool last."""
        return _cosines(self.curved_dots)

    @property
    def gradient_distances(self) -> Float[np.ndarray, " e"]:
        """‖g_e − g‖² of each domain."""
        return _to_pool(self.gradient_dots)

    @property
    def curved_distances(self) -> Float[np.ndarray, " e"]:
        """‖H_e g_e − Hg‖² of each domain."""
        return _to_pool(self.curved_dots)

    def penalty(self, *, alpha: float = 1e-3, beta: float = 0.005) -> float:
        """(1/E)·Σ(α‖H_e g_e − Hg‖² + β‖g_e − g‖²), what HGP adds to the loss."""
        return float((alpha * self.curved_distances + beta * self.gradient_distances).mean())

    @property
    def worst_transfer(self) -> float:
        """max ‖H_a − H_b‖₂, the quantity that bounds how far a transfer between domains can go wrong; NaN where not asked for."""
        above = self.transfer[np.triu_indices(len(self.domains), k=1)]
        return float(above.max()) if above.size else 0.0

    def summary(self) -> tuple[str, ...]:
        """Domains, the least aligned one, transfer."""
        subject = f"{len(self.domains)} domains, n={self.size:,}"
        cosines = self.curved_cosines[-1:, :-1].ravel()
        if len(cosines) != len(self.domains) or not np.isfinite(cosines).any():
            return subject, "no curvature along the gradients"
        worst = int(np.nanargmin(cosines))
        reading = f"least aligned: {self.domains[worst]}, cos(H_e g_e, Hg) = {number(float(cosines[worst]))}"
        if np.isnan(self.worst_transfer):
            return subject, reading
        state = "" if self.converged.all() else ", NOT CONVERGED"
        return subject, reading, f"max ‖H_a − H_b‖₂ = {number(self.worst_transfer)}{state}"


def _cosines(dots: Float[np.ndarray, "f f"]) -> Float[np.ndarray, "f f"]:
    lengths = np.sqrt(np.maximum(np.diagonal(dots), 0.0))
    with np.errstate(all="ignore"):
        return np.asarray(dots / np.multiply.outer(lengths, lengths))


def _to_pool(dots: Float[np.ndarray, "f f"]) -> Float[np.ndarray, " e"]:
    own = np.diagonal(dots)
    return np.asarray(np.maximum(own[:-1] - 2 * dots[-1, :-1] + own[-1], 0.0))
