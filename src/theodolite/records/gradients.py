"""Loss, gradient and parameter norms, whole and by layer; magnitude, noise and alignment of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from theodolite.records import gram as of
from theodolite.records.attribution import Attribution, attribution
from theodolite.records.estimate import Estimate
from theodolite.records.gram_readings import GramReadings
from theodolite.records.groups import GroupAlignment, group_alignment
from theodolite.records.record import Record
from theodolite.records.text import number, plural, with_error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gradients(GramReadings, Record):
    """The gradient of a problem, and the Gram matrix of the gradients of its samples where that was asked for.

    Quantities of the Gram matrix come with standard errors by leaving samples out of the same matrix, and leave out samples
    whose gradient is not finite, which ``finite`` marks.

    Args:
        loss: loss of the problem.
        loss_stderr: its standard error (jackknife over chunks of the data, by weight), NaN with a single chunk.
        norm: Euclidean norm of the gradient.
        norm_stderr: its standard error, from the same jackknife.
        layers: names of the layers.
        layer_norms: gradient norm of each layer.
        layer_norm_stderrs: their standard errors.
        parameter_norms: norm of the parameters of each layer.
        samples: number of samples.
        gram: dot products of per-sample gradients, scaled so that their mean is the gradient; None if not asked for.
        coverage: per parameter, how much of the gradient the Gram matrix explains: 1ᵀG1/B² over its squared norm by plain
            autograd; None without a Gram matrix.
        parameters: names of the parameters that ``coverage`` is of.
        methods: how the gradients of each were had: kinds of operation, or ``"fallback"``.
        calibration: largest relative error, over the parameters, of the dot products of two samples against the samples run
            alone; NaN with dropout.
        indices: places in the data of the problem of the samples in the Gram matrix.
        sample_losses: their losses, scaled so that their mean is the loss.
        layer_sample_norms: gradient norm of every sample in every layer.
        layer_grams: Gram matrix of every layer, None where they were not kept.
        groups: the place of each sample's group in ``group_names``.
        group_names: names of the groups.
        el2n: ‖softmax(f(x_i)) − y_i‖ of a classifier.
        update_dots: ⟨g_i, d⟩ with an update d of the optimiser, None where none was given.
    """

    kind: ClassVar[str] = "gradients"
    lengths: ClassVar[Mapping[str, str]] = {"layers": "L", "parameters": "p", "methods": "p"}

    loss: float
    loss_stderr: float
    norm: float
    norm_stderr: float
    layers: tuple[str, ...]
    layer_norms: Float[np.ndarray, " L"]
    layer_norm_stderrs: Float[np.ndarray, " L"]
    parameter_norms: Float[np.ndarray, " L"]
    samples: int
    gram: Float[np.ndarray, "b b"] | None = None
    coverage: Float[np.ndarray, " p"] | None = None
    parameters: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    calibration: float = float("nan")
    indices: Int[np.ndarray, " b"] | None = None
    sample_losses: Float[np.ndarray, " b"] | None = None
    layer_sample_norms: Float[np.ndarray, "L b"] | None = None
    layer_grams: Float[np.ndarray, "L b b"] | None = None
    groups: Int[np.ndarray, " b"] | None = None
    group_names: tuple[str, ...] = ()
    el2n: Float[np.ndarray, " b"] | None = None
    update_dots: Float[np.ndarray, " b"] | None = None

    @property
    def loss_estimate(self) -> Estimate:
        """Loss with its standard error."""
        return Estimate(self.loss, self.loss_stderr, self.data_degrees)

    @property
    def norm_estimate(self) -> Estimate:
        """Gradient norm with its standard error."""
        return Estimate(self.norm, self.norm_stderr, self.data_degrees)

    @property
    def relative_norms(self) -> Float[np.ndarray, " L"]:
        """Gradient norm over parameter norm of each layer, ‖g_l‖ / ‖θ_l‖; NaN where the parameters are all zero."""
        known = self.parameter_norms != 0
        ratios = np.full(known.shape, np.nan)
        np.divide(self.layer_norms, self.parameter_norms, out=ratios, where=known)
        return ratios

    # ---------------------------------------------------------------------------------------------- magnitude of samples

    @property
    def finite(self) -> Bool[np.ndarray, " b"]:
        """Whether the gradient of each sample in the Gram matrix is finite."""
        return np.asarray(np.isfinite(np.diagonal(self._measured)))

    @property
    def sample_norms(self) -> Float[np.ndarray, " b"]:
        """‖g_i‖ of every sample in the Gram matrix (GraNd), NaN where it is not finite."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(np.maximum(np.diagonal(self._measured), 0.0)))

    @property
    def mean_sample_norm(self) -> Estimate:
        """Mean of ‖g_i‖."""
        norms = self.sample_norms[self.finite]
        stderr = norms.std(ddof=1) / np.sqrt(norms.size) if norms.size > 1 else np.nan
        return Estimate(float(norms.mean()) if norms.size else float("nan"), float(stderr), max(norms.size - 1, 0))

    # ------------------------------------------------------------------------------------------------- noise and batches

    @property
    def layer_gsnr(self) -> Mapping[str, Estimate]:
        """Signal to noise of each layer."""
        return self._by_layer(of.signal_to_noise)

    @property
    def layer_noise_scales(self) -> Mapping[str, Estimate]:
        """Noise scale of each layer."""
        return self._by_layer(of.noise_scale)

    def cabs(self, learning_rate: float) -> Estimate:
        """Batch size η·tr Σ/L of coupled adaptive batch sizes, for plain SGD (Balles, Romero & Hennig, 2017)."""
        losses = self._known(self.sample_losses, "sample_losses")[self.finite]

        def batch_size(moments: of.Moments) -> np.ndarray:
            summed = losses.sum() - (losses if moments.count < len(losses) else 0.0)
            return np.asarray(learning_rate * (moments.trace - moments.total / moments.count) / summed)

        return of.of_moments(batch_size, self.finite_gram)

    # ---------------------------------------------------------------------------------------------------------- alignment

    @property
    def update_zero_sum(self) -> float:
        """The same under the optimiser's own update: Δ_i = ⟨g_i, d⟩."""
        return of.destructive_interference(self._known(self.update_dots, "update_dots")[self.finite])

    @property
    def group_alignment(self) -> GroupAlignment:
        """Dot products and cosines of the mean gradients of groups, and which conflict."""
        return self._group_alignment(self._measured)

    @property
    def layer_group_alignment(self) -> Mapping[str, GroupAlignment]:
        """The same in every layer: the map of conflicts by layer.

        The level of ``conflicts`` is shared among the pairs of one layer and not among layers: of k layers without any conflict
        one may be expected to show one in 1 − levelᵏ of draws. For all at once ask each with level 1 − (1 − level)/k.
        """
        grams = self._known(self.layer_grams, "layer_grams")
        return {name: self._group_alignment(gram) for name, gram in zip(self.layers, grams, strict=True)}

    # ----------------------------------------------------------------------------------------------- spectrum and samples

    @property
    def attribution(self) -> Attribution:
        """Which samples the gradient comes from, the largest norm first; those that are not finite are left out."""
        kept = self.finite
        names = () if self.groups is None else tuple(self.group_names[place] for place in self.groups[kept])
        indices = np.arange(len(kept)) if self.indices is None else self.indices
        return attribution(self.finite_gram, indices[kept], names)

    def summary(self) -> tuple[str, ...]:
        """Samples, loss, norm, layers, and the noise scale where there is a Gram matrix."""
        found = (
            plural(self.samples, "sample"),
            f"loss = {with_error(self.loss, self.loss_stderr, source='data')}",
            f"‖g‖ = {with_error(self.norm, self.norm_stderr, source='data')}",
            plural(len(self.layers), "layer"),
        )
        if self.gram is None:
            return found
        low, high = self.noise_scale_interval()
        scale = f"noise scale {number(self.noise_scale.value)}, 95 % from {number(low)} to {number(high)}"
        return *found, f"Gram matrix of {plural(len(self.gram), 'sample')}", scale

    # -------------------------------------------------------------------------------------------------------- internals

    @property
    def _measured(self) -> Float[np.ndarray, "b b"]:
        return self._known(self.gram, "gram")

    @property
    def finite_gram(self) -> Float[np.ndarray, "f f"]:
        kept = self.finite
        return self._measured if kept.all() else np.asarray(self._measured[np.ix_(kept, kept)])

    def _known(self, values: np.ndarray | None, name: str) -> np.ndarray:
        if values is None:
            raise ValueError(f"Expected a Gradients record with {name}, found one without. {_REMEDIES[name]}")
        return values

    def _by_layer(self, statistic: Callable[[of.Moments], np.ndarray]) -> Mapping[str, Estimate]:
        grams, kept = self._known(self.layer_grams, "layer_grams"), self.finite
        return {
            name: of.of_moments(statistic, gram[np.ix_(kept, kept)])
            for name, gram in zip(self.layers, grams, strict=True)
        }

    def _group_alignment(self, gram: Float[np.ndarray, "b b"]) -> GroupAlignment:
        groups, kept = self._known(self.groups, "groups"), self.finite
        return group_alignment(gram[np.ix_(kept, kept)], groups[kept], self.group_names)


_REMEDIES = {
    "gram": "Measure with gradients(problem, gram=True).",
    "groups": 'Measure with gradients(problem, gram=True, groups="targets"), or with labels of your own.',
    "layer_grams": "Measure with gradients(problem, gram=True, layers=True); a smaller samples= needs less memory.",
    "sample_losses": "Measure with gradients(problem, gram=True).",
    "update_dots": "Measure with gradients(problem, gram=True, update=d), d the flat update of the optimiser.",
}
