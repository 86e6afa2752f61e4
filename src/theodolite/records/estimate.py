"""A number with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit


@dataclass(frozen=True)
class Estimate:
    """A value and the standard error with which it is known; the error is NaN where it is not known.

    Args:
        value: the estimate.
        stderr: its standard error.
        degrees: degrees of freedom of the standard error, one less than the probes or the chunks of data that it was
            estimated from; None where the error is known as if from infinitely many.

    Example:
        >>> print(Estimate(1.2345, 0.04))
        1.23 ± 0.04
    """

    value: float
    stderr: float
    degrees: int | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval by Student's t, normal where ``degrees`` is None.

        An error from two chunks has one degree of freedom: normal quantiles would cover 70 % where 95 % are asked.

        Args:
            level: its coverage, between 0 and 1.

        Returns:
            Lower and upper end, NaN where the error is not known.

        Raises:
            ValueError: level is not between 0 and 1.

        References:
            Student, "The probable error of a mean" (1908).
        """
        if not 0 < level < 1:
            raise ValueError(f"interval(level) expects a coverage between 0 and 1, for example 0.95; found {level!r}.")
        upper = (1 + level) / 2
        quantile = ndtri(upper) if self.degrees is None else stdtrit(self.degrees, upper)
        reach = float(quantile) * self.stderr
        return self.value - reach, self.value + reach

    def __str__(self) -> str:
        value, stderr = self.value, self.stderr
        if math.isnan(stderr):
            return f"{value:.4g} ± ?"
        if not math.isfinite(value) or not math.isfinite(stderr) or stderr <= 0:
            return f"{value:.4g} ± {stderr:.2g}"
        largest = max(abs(value), stderr)
        if not 1e-3 <= largest < 1e5:
            exponent = math.floor(math.log10(largest))
            # Two divisions: 10.0**-320 is subnormal and 10.0**320 overflows, each half does not.
            half, rest = 10.0 ** (exponent // 2), 10.0 ** (exponent - exponent // 2)
            return f"({_rounded(value / half / rest, stderr / half / rest)})e{exponent:+03d}"
        return _rounded(value, stderr)


def _rounded(value: float, stderr: float) -> str:
    """Both to the first digit of the error, or to its second where the first is a 1."""
    if stderr < 1e-8:
        return f"{value:.9g} ± {stderr:.1g}"
    exponent = math.floor(math.log10(stderr))
    decimals = (1 if stderr / 10.0**exponent < 2 else 0) - exponent
    value, stderr = round(value, decimals) + 0.0, round(stderr, decimals)  # adding zero turns -0.0 into 0.0
    return f"{value:.{max(decimals, 0)}f} ± {stderr:.{max(decimals, 0)}f}"
