import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theodolite.reports.wording import count, duration, number, short, tick_labels

POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
sizes = st.floats(1e-290, 1e300) | st.floats(-1e300, -1e-290)


def read_back(text: str) -> list[float]:
    """The numbers of a text, its common power of ten multiplied out."""
    body, _, power = text.replace("−", "-").replace(",", "").partition(" × 10")
    factor = 10.0 ** int(power.translate(POWERS)) if power else 1.0
    return [float(part) * factor for part in re.findall(r"-?\d+\.?\d*", body)]


@given(sizes)
def test_a_value_without_error_keeps_four_digits(value):
    (read,) = read_back(number(value))
    assert read == pytest.approx(value, rel=5.1e-4)


@given(sizes, st.floats(1e-4, 1e2))
def test_a_value_is_rounded_to_two_digits_of_its_error(value, relative):
    error = abs(value) * relative
    read, read_error = read_back(number(value, error))
    assert read_error == pytest.approx(error, rel=0.051)
    assert abs(read - value) <= 0.051 * error * (1 + 1e-6)


@pytest.mark.parametrize("error", [math.nan, math.inf, 0.0])
def test_an_error_that_is_not_known_is_not_shown(error):
    assert number(1.5, error) == "1.5"


def test_readings_that_are_not_finite_are_words():
    assert number(math.nan, 0.1) == "not a number"
    assert number(math.inf), number(-math.inf) == ("∞", "−∞")


def test_rounding_up_to_the_next_power_shows_no_exponent():
    assert number(9999.7) == "10,000"
    assert number(0.99996) == "1"


@given(st.integers(-12, 12).map(lambda e: 10.0**e))
def test_tick_labels_name_their_tick(tick):
    (label,) = tick_labels([tick])
    power = re.fullmatch(r"10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", label)
    read = 10.0 ** int(power[1].translate(POWERS)) if power else float(label.replace(",", ""))
    assert read == pytest.approx(tick)


@given(st.text(min_size=1, max_size=80), st.integers(5, 40))
def test_a_short_name_fits_and_keeps_both_ends(name, width):
    shortened = short(name, width=width)
    assert len(shortened) <= width
    assert shortened[0] == name[0]
    assert shortened[-1] == name[-1]


def test_times_and_counts():
    assert (duration(7261.0), duration(59.9), count(1024)) == ("2 h 1 min", "59.9 s", "1,024")
