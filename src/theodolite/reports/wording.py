"""Numbers with their error and rounded to it, names short or as file names: how a report words things."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, error: float = math.nan, *, digits: int = 4) -> str:
    """A value with its standard error, rounded to two digits of the error.

    Args:
        value: the estimate; NaN and infinity are readings and said in words.
        error: its standard error; not shown when it is not known.
        digits: significant digits of a value without an error.

    Returns:
        The text.

    Example:
        >>> number(12.3456, 0.0789), number(1.5e7, 2e5), number(0.00001234), number(float("nan"))
        ('12.346 ± 0.079', '(1.500 ± 0.020) × 10⁷', '1.234 × 10⁻⁵', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if not math.isfinite(error) or error <= 0:
        return _plain(value, digits)
    if error < 1e-9 * abs(value):
        return f"{_plain(value, 10)} ± {_plain(error, 1)}"
    exponent = _exponent(max(abs(value), error))
    if -4 <= exponent < 6:
        return _minus(" ± ".join(_rounded(Decimal(part), 1 - _exponent(error)) for part in (value, error)))
    places = 1 - (_exponent(error) - exponent)
    pair = " ± ".join(_rounded(Decimal(part).scaleb(-exponent), places) for part in (value, error))
    return _minus(f"({pair}) × {_power(exponent)}")


def _rounded(value: Decimal, places: int) -> str:
    """To so many decimal places; a negative number of places rounds to tens, hundreds, …"""
    return f"{round(value, places):,.{max(places, 0)}f}"


def tick_labels(ticks: Iterable[float]) -> list[str]:
    """Labels of the ticks of a logarithmic axis: plain numbers, or powers of ten where plain ones would be long.

    Example:
        >>> tick_labels([0.1, 1.0, 10.0]), tick_labels([-1e3, 0.0, 1e6])
        (['0.1', '1', '10'], ['−10³', '0', '10⁶'])
    """
    values = [float(tick) for tick in ticks]
    if all(value == 0 or 1e-3 < abs(value) < 2e4 for value in values):
        return [number(value, digits=1) for value in values]
    return [_round_power(value) for value in values]


def _round_power(value: float) -> str:
    if value == 0:
        return "0"
    exponent = _exponent(value)
    lead = round(Decimal(abs(value)).scaleb(-exponent))
    return _minus(f"{'-' if value < 0 else ''}{'' if lead == 1 else f'{lead} × '}{_power(exponent)}")


def count(value: float | int) -> str:
    """A count with its thousands set apart.

    Example:
        >>> count(1234567), count(2.5)
        ('1,234,567', '2.5')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """A time a person can read.

    Example:
        >>> duration(0.0123), duration(7.25), duration(135.0)
        ('12.3 ms', '7.25 s', '2 min 15 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(name: str, *, width: int = 30) -> str:
    """A long dotted name with its middle left out.

    Example:
        >>> short("encoder.layers.11.attention.output.dense", width=21)
        'encoder.l…utput.dense'
    """
    if len(name) <= width:
        return name
    head = (width - 1) * 9 // 20
    return f"{name[:head]}…{name[-(width - 1 - head) :]}"


def slug(text: str) -> str:
    """A text as part of a file name or anchor: lower-case letters, digits and hyphens.

    Example:
        >>> slug("runs/../MLP 3")
        'runs-mlp-3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _plain(value: float, digits: int) -> str:
    exponent = _exponent(value, digits)
    if not -4 <= exponent < 6:
        # Decimal, as 10.0**-exponent overflows for a value below 1e-308.
        return _minus(f"{Decimal(value).scaleb(-exponent):.{digits - 1}f} × {_power(exponent)}")
    return _minus(f"{value:,.{digits}g}" if exponent < digits else f"{value:,.0f}")


def _exponent(value: float, digits: int = 2) -> int:
    """Of the value once it is rounded: 9.996 to three digits is 10.0."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(SUPERSCRIPTS)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
