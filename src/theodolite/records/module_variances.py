"""How noisy the gradient of each module is, and the learning rates that would even it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.record import Record
from theodolite.records.text import plural, with_error

# As the reference implementation of AGVM has them.
OFFSET, LOWEST, HIGHEST, MOMENTUM = 1e-6, 0.5, 10.0, 0.97


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModuleVariances(Record):
    """Φ = 1 − cos of the gradients of two halves of the data, of each module, over several splits.

    Args:
        modules: names; the first is the anchor, whose rate stays.
        phis: of every split and module; NaN where a gradient vanishes.
        samples: in one half.
        optimizer: class of the optimiser whose preconditioned gradients were compared, empty for plain ones.
    """

    kind: ClassVar[str] = "module variances"
    lengths: ClassVar[Mapping[str, str]] = {"modules": "g"}

    modules: tuple[str, ...]
    phis: Float[np.ndarray, "s g"]
    samples: int
    optimizer: str = ""

    @property
    def variances(self) -> dict[str, Estimate]:
        """Mean Φ of each module: the share of noise s²/(‖𝒢‖² + s²) in a half's gradient, s² = tr Σ/b.

        The error is over splits, which share their samples: it is that of the splits and not of the data.
        """
        count = len(self.phis)
        if count == 0:
            return {name: Estimate(float("nan"), float("nan")) for name in self.modules}
        errors = self.phis.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(self.modules), np.nan)
        pairs = zip(self.phis.mean(axis=0).tolist(), errors.tolist(), strict=True)
        return {name: Estimate(*pair, max(count - 1, 1)) for name, pair in zip(self.modules, pairs, strict=True)}

    @property
    def noise_scales(self) -> dict[str, float]:
        """b·Φ/(1 − Φ), the noise scale tr Σ/‖𝒢‖² that the mean Φ of each module stands for; infinite where Φ ≥ 1."""
        means = np.array([found.value for found in self.variances.values()])
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = np.where(means < 1, self.samples * means / (1 - means), np.where(means >= 1, np.inf, np.nan))
        return dict(zip(self.modules, scales.tolist(), strict=True))

    def multipliers(self, previous: dict[str, float] | None = None) -> dict[str, float]:
        """Factors of the learning rate of each module: √clip(Φ₁/Φ, ½, 10) of the mean Φ, smoothed from the previous ones by 0.97.

        Args:
            previous: of the last call; all 1 at the start. A module whose Φ is not known keeps its own.

        Raises:
            ValueError: Φ of the anchor is not known, as where its gradient vanishes.
        """
        means = np.array([found.value for found in self.variances.values()])
        if np.isnan(means[0]):
            raise ValueError(
                f"Expected a known Φ of the anchor {self.modules[0]!r}, found NaN: its gradient vanishes in a half of the data. "
                "Put a module that is trained first in modules=."
            )
        target = np.sqrt(np.clip((means[0] + OFFSET) / (means + OFFSET), LOWEST, HIGHEST))
        before = np.array([1.0 if previous is None else previous[name] for name in self.modules])
        smoothed = np.where(np.isnan(target), before, MOMENTUM * before + (1 - MOMENTUM) * target)
        return dict(zip(self.modules, smoothed.tolist(), strict=True))

    def summary(self) -> tuple[str, ...]:
        """Modules with their variances."""
        readings = [
            f"{name}: Φ = {with_error(found.value, found.stderr)}" for name, found in list(self.variances.items())[:4]
        ]
        return f"{plural(len(self.modules), 'module')}, halves of {plural(self.samples, 'sample')}", *readings
