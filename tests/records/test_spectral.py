"""What follows from quadrature rules, on spectra known eigenvalue by eigenvalue."""

import math

import numpy as np
import pytest

from theodolite.records import Density
from theodolite.records.rules import quantile


def exact(eigenvalues):
    """The density of a spectrum that is known whole."""
    values = np.array(eigenvalues, dtype=float)
    count = len(values)
    return Density(nodes=values[None], weights=np.full((1, count), 1 / count), size=count, deflated=count, uniform=True)


KNOWN = (-1.0, 0.0, 0.5, 2.0, 4.0)


def test_integrals_of_a_known_spectrum_are_exact_and_without_error():
    density, values = exact(KNOWN), np.array(KNOWN)
    positive = np.maximum(values, 0)
    for estimate, truth in [
        (density.trace, values.sum()),
        (density.frobenius, np.linalg.norm(values)),
        (density.negative_mass, 1 / 5),
        (density.integral(np.exp), np.exp(values).sum()),
        (density.effective_dimension(0.5), (positive / (positive + 0.5)).sum()),
        (density.log_det(0.1), np.log(positive + 0.1).sum()),
        (density.K(), 1 / 6.5),
        (density.K(0.5), 1 / np.sqrt([0.5, 2, 4]).sum()),
        (density.balance, 5.5 / 7.5),
    ]:
        assert estimate.value == pytest.approx(truth)
        assert estimate.stderr == 0
    assert density.median_magnitude == 1.0


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ((3.0, 1.0, -1.0), "mainly positive"),  # three to one in 3 + 1 against 1
        ((2.9, 0.0, -1.0), "quasi-singular"),
        ((1.0, -1.0, -2.0), "mainly negative"),
        ((0.5, 0.1, -0.5), "quasi-singular"),
        ((0.0, 0.0, 0.0), "quasi-singular"),
    ],
)
def test_type_of_a_spectrum(eigenvalues, expected):
    assert exact(eigenvalues).type == expected
    assert exact(np.array(eigenvalues) * 1e-9).type == expected


def test_the_bulk_of_a_normal_spectrum_has_its_mean_and_standard_deviation():
    values = 0.3 + 0.2 * np.random.default_rng(0).standard_normal(20_000)
    centre, scale = exact(np.concatenate([values, [100.0] * 20])).bulk
    assert centre == pytest.approx(0.3, abs=0.01)
    assert scale == pytest.approx(0.2, rel=0.03)


def test_damping_must_be_positive():
    for name in ("effective_dimension", "log_det"):
        with pytest.raises(ValueError, match=rf"{name}\(damping\) expects a positive δ, found 0.0"):
            getattr(exact(KNOWN), name)(0.0)


def test_one_uniform_probe_knows_its_error():
    """Over random unit vectors, the error that a rule states is the spread of what rules find."""
    rng, n = np.random.default_rng(3), 40
    values = np.sort(rng.standard_normal(n) ** 3)
    probes = rng.standard_normal((4000, n))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    found = [
        Density(nodes=values[None], weights=probe[None] ** 2, size=n, uniform=True).integral(np.tanh)
        for probe in probes
    ]
    spread = np.std([each.value for each in found])
    assert np.sqrt(np.mean([each.stderr**2 for each in found])) == pytest.approx(spread, rel=0.06)
    assert np.mean([each.value for each in found]) == pytest.approx(np.tanh(values).sum(), abs=4 * spread / 63)
    # Satterthwaite: the spread of the stated variances is that of as many degrees of freedom.
    variances = np.array([each.stderr**2 for each in found])
    degrees = np.median([each.degrees for each in found])
    assert degrees == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.35)


def test_known_eigenvalues_leave_the_error_of_the_rest():
    rest = np.array([0.1, 0.2, 0.3, 0.4])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    alone = Density(nodes=rest[None], weights=weights[None], size=8, uniform=True)
    beside = Density(
        nodes=np.concatenate([[50.0, 9.0], rest])[None],
        weights=np.concatenate([[0.1, 0.1], 0.8 * weights])[None],
        size=10,
        deflated=2,
        uniform=True,
    )
    assert beside.trace.value == pytest.approx(59.0 + alone.trace.value)
    assert beside.trace.stderr == pytest.approx(alone.trace.stderr)
    assert beside.lanczos_steps == 4
    with pytest.raises(ValueError, match="2 known eigenvalues stand in front"):
        beside.Kh()
    assert "of 4 steps beside 2 known eigenvalues" in repr(beside)


def test_a_quantile_is_the_first_value_that_reaches_its_share():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25])
    assert [quantile(values, weights, share) for share in (0.0, 0.5, 0.51, 0.75, 1.0)] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert math.isnan(quantile(values, 0 * weights, 0.5))
