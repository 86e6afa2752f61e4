"""Vectors in output space whose pull-backs are the rows of a Fisher: roots of the output curvature, exact or sampled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import CostWarning, OperatorError
from theodolite.problem import OutputLoss
from theodolite.problem.criteria import BinaryCrossEntropy, CrossEntropy, SquaredError
from theodolite.problem.predictive import has_density, predictive

# An eigenvalue of the output curvature below this share of the largest is rounding: softmax has one that is zero.
ROUNDING = 64
# Curvature among the outputs of one sample is decomposed densely up to this many outputs.
MOST_COUPLED = 4096
# Of the curvature at once, in double precision: its columns, both halves of its symmetric part, vectors and roots.
COPIES = 4
# Bytes that are taken whatever the memory of the problem.
LITTLE = 2**20
# Backward passes that are worth a warning.
MANY = 1024
SATURATING = (CrossEntropy, BinaryCrossEntropy)


def curvature_roots(
    loss: OutputLoss, outputs: Float[Tensor, "b *out"], targets: Any, *, memory: int
) -> Iterator[Tensor]:
    """Vectors u of the shape of the outputs with Σ u_i u_iᵀ = Λ_i for every sample i, Λ the Hessian of the total.

    One-hot over the sites (positions of a sequence, elements of a regression) that the criterion does not couple, so that
    no two sites share a vector and sums over positions are exact.

    Cost: one eigendecomposition of the curvature at each site; C − 1 vectors a site for cross-entropy over C classes.

    Args:
        loss: the criterion.
        outputs: what the model returned.
        targets: what it should have.
        memory: bytes that the curvature of all sites may take; a mebibyte is always taken.

    Raises:
        OperatorError: the criterion is not convex in the outputs, couples samples, or couples too many outputs, or the curvature
            does not fit the memory.
    """
    sites = _Sites(loss, outputs)
    sites.refuse_beyond(memory)
    roots = _site_roots(loss, outputs, targets, sites)
    passes = roots.shape[1] * roots.shape[3]
    if passes > MANY:
        warnings.warn(
            f"The exact curvature of {roots.shape[1]:,} sites with {roots.shape[3]} directions each takes {passes:,} backward "
            "passes for every batch. kind='mc' takes one, kind='empirical' too.",
            CostWarning,
            stacklevel=2,
        )
    for site in range(roots.shape[1]):
        for column in range(roots.shape[3]):
            values = roots.new_zeros(roots.shape[:3])
            values[:, site] = roots[:, site, :, column]
            if bool(values.any()):
                yield sites.restore(values)


def sampled_roots(
    loss: OutputLoss, outputs: Float[Tensor, "b *out"], targets: Any, *, generator: torch.Generator, memory: int
) -> Float[Tensor, "b *out"]:
    """One random vector u of the shape of the outputs with E[u_i u_iᵀ] = Λ_i for every sample i.

    Where the criterion is the logarithm of a density, the score of targets that are drawn by how much of the curvature is
    theirs, with random signs (``Predictive.root``): at confident predictions targets drawn as predicted, as ``Fisher`` draws
    them, would nearly always have none; for any other criterion a root of the curvature times a standard normal vector.

    Args:
        loss: the criterion.
        outputs: what the model returned.
        targets: what it should have; decides the weights only.
        generator: on the CPU.
        memory: as for ``curvature_roots``; targets are drawn without the curvature.

    Raises:
        OperatorError: as for ``curvature_roots``.
    """
    if has_density(loss):
        return predictive(loss, outputs, targets).root(generator)
    sites = _Sites(loss, outputs)
    sites.refuse_beyond(memory)
    roots = _site_roots(loss, outputs, targets, sites)
    noise = torch.randn(*roots.shape[:2], roots.shape[3], 1, generator=generator, dtype=torch.float64).to(roots)
    return sites.restore((roots @ noise)[..., 0])


class _Sites:
    """Outputs as (samples, sites, entries), where the criterion couples only the entries of a site."""

    def __init__(self, loss: OutputLoss, outputs: Tensor) -> None:
        if loss.couples():
            raise OperatorError(
                "Expected a criterion whose curvature acts on each sample alone, found one that couples the samples of a batch. "
                "Its GGN has no rows for single samples: use GGN(problem)."
            )
        self._shape = outputs.shape
        self._classes = isinstance(loss, CrossEntropy)
        samples = outputs.shape[0]
        if self._classes:
            self.shape = (samples, outputs[0, 0].numel(), outputs.shape[1])
        elif isinstance(loss, SquaredError | BinaryCrossEntropy):
            self.shape = (samples, outputs[0].numel(), 1)
        else:
            self.shape = (samples, 1, outputs[0].numel())
        if self.shape[2] > MOST_COUPLED:
            raise OperatorError(
                f"Expected at most {MOST_COUPLED} outputs that the criterion couples, found {self.shape[2]} at each of "
                f"{self.shape[1]} sites. Use kind='empirical', kind='mc' with a torch cross-entropy, or GGN(problem)."
            )

    def refuse_beyond(self, memory: int) -> None:
        """Raise if the curvature of all sites, a matrix each, does not fit.

        Raises:
            OperatorError: it does not.
        """
        samples, places, entries = self.shape
        needed = COPIES * 8 * samples * places * entries**2
        if needed > max(memory, LITTLE):
            raise OperatorError(
                f"Expected the curvature in the outputs to fit the memory of the problem, found {needed / 2**20:,.0f} MiB for "
                f"{samples} samples with {places} sites of {entries} coupled outputs each, above {memory / 2**20:,.0f} MiB. Use "
                "kind='mc' (which draws targets where there is a density), a smaller microbatch=, or raise memory=."
            )

    def view(self, tensor: Tensor) -> Float[Tensor, "b s e"]:
        """A tensor of the shape of the outputs, by sites."""
        return (tensor.flatten(2).mT if self._classes and tensor.dim() > 2 else tensor).reshape(self.shape)

    def restore(self, values: Float[Tensor, "b s e"]) -> Tensor:
        """Inverse of ``view``."""
        if self._classes and len(self._shape) > 2:
            values = values.mT
        return values.reshape(self._shape)


def _site_roots(loss: OutputLoss, outputs: Tensor, targets: Any, sites: _Sites) -> Float[Tensor, "b s e r"]:
    """Columns with R Rᵀ = Λ at every site, those that vanish everywhere left out."""
    product = loss.curvature(outputs.detach(), targets)
    entries = sites.shape[2]
    columns = []
    for entry in range(entries):
        unit = torch.zeros(sites.shape, dtype=outputs.dtype, device=outputs.device)
        unit[..., entry] = 1.0
        columns.append(sites.view(product(sites.restore(unit))))
    curvature = torch.stack(columns, dim=-1)
    values, vectors = torch.linalg.eigh(((curvature + curvature.mT) / 2).double())
    largest = float(values.abs().max())
    rounding = ROUNDING * torch.finfo(outputs.dtype).eps * largest
    # p − p² of a sure prediction cancels to rounding of p itself, which may exceed all that is left of the curvature.
    cancelled = ROUNDING * torch.finfo(outputs.dtype).eps if isinstance(loss, SATURATING) else 0.0
    if float(values.min()) < -max(rounding, cancelled):
        raise OperatorError(
            f"Expected a criterion that is convex in the outputs, found the eigenvalue {float(values.min()):.3g} of its "
            f"curvature beside {largest:.3g}. Its GGN is no sum of squares: use GGN(problem), or kind='empirical'."
        )
    kept = (values > rounding).flatten(0, 1).any(0)
    roots: Tensor = vectors[..., kept] * values[..., kept].clamp_min(0.0).sqrt().unsqueeze(-2)
    return roots.to(outputs.dtype)
