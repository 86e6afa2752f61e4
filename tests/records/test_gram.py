"""Readings of a Gram matrix equal the formulas on the gradients themselves, do not change with order, and scale as they must."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from records.published_jackknife import published
from theodolite.records import Gradients
from theodolite.records import gram as of
from theodolite.records.attribution import attribution
from theodolite.records.groups import group_alignment
from theodolite.records.noise import noise_scale_interval, trade_off, two_batch_noise_scale

MOMENTS = {
    "mean_square": lambda g: np.square(g.mean(0)).sum(),
    "second_moment": lambda g: np.square(g).sum(1).mean(),
    "covariance_trace": lambda g: g.var(axis=0, ddof=1).sum(),
    "signal_square": lambda g: np.square(g.mean(0)).sum() - g.var(axis=0, ddof=1).sum() / len(g),
    "noise_scale": lambda g: (
        g.var(axis=0, ddof=1).sum() / (np.square(g.mean(0)).sum() - g.var(axis=0, ddof=1).sum() / len(g))
    ),
    "signal_to_noise": lambda g: np.square(g.mean(0)).sum() / g.var(axis=0, ddof=1).sum(),
    "norm_test": lambda g: np.sqrt(np.square(g - g.mean(0)).sum() / (len(g) - 1) / len(g)) / np.linalg.norm(g.mean(0)),
    "coherence": lambda g: np.square(g.sum(0)).sum() / (len(g) * np.square(g).sum()),
    "diversity": lambda g: np.square(g).sum() / np.square(g.sum(0)).sum(),
}


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def cosines(g: np.ndarray) -> np.ndarray:
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    return off_diagonal(unit @ unit.T)


def across(g: np.ndarray) -> np.ndarray:
    direction = g.mean(0) / np.linalg.norm(g.mean(0))
    return g - np.outer(g @ direction, direction)


def interference(g: np.ndarray) -> float:
    changes = np.array([-g[i] @ np.delete(g, i, axis=0).mean(0) for i in range(len(g))])
    return float(1 - abs(changes.sum()) / np.abs(changes).sum())


def fisher(g: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(g.T @ g / len(g))


MATRICES = {
    "inner_test": lambda g: np.sqrt((g @ g.mean(0)).var(ddof=1) / len(g)) / np.square(g.mean(0)).sum(),
    "orthogonality_test": lambda g: (
        np.sqrt(np.square(across(g)).sum() / (len(g) - 1) / len(g)) / np.linalg.norm(g.mean(0))
    ),
    "confusion": lambda g: -off_diagonal(g @ g.T).min(),
    "negative_fraction": lambda g: (off_diagonal(g @ g.T) < 0).mean(),
    "mean_cosine": lambda g: cosines(g).mean(),
    "min_cosine": lambda g: cosines(g).min(),
    "zero_sum": interference,
    "norm_interference": lambda g: 1 - np.linalg.norm(g.sum(0)) / np.linalg.norm(g, axis=1).sum(),
    "effective_rank": lambda g: fisher(g).sum() ** 2 / np.square(fisher(g)).sum(),
    "outlier_share": lambda g: np.square(g).sum(1).max() / np.square(g).sum(),
}
INVARIANT = {
    "noise_scale", "signal_to_noise", "norm_test", "coherence", "diversity", "inner_test", "orthogonality_test",
    "negative_fraction", "mean_cosine", "min_cosine", "zero_sum", "norm_interference", "effective_rank", "outlier_share",
}  # fmt: skip


def draw(seed: int = 0, samples: int = 14, size: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, size)) * np.linspace(0.5, 2.0, samples)[:, None] + 0.6


def estimate(name: str, gram: np.ndarray) -> of.Estimate:
    return of.of_moments(getattr(of, name), gram) if name in MOMENTS else of.of_matrix(getattr(of, name), gram)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MOMENTS | MATRICES)
def test_values_and_errors_equal_those_of_the_gradients(name: str, seed: int) -> None:
    g = draw(seed)
    formula = (MOMENTS | MATRICES)[name]
    found = estimate(name, g @ g.T)
    assert found.value == pytest.approx(formula(g), rel=1e-10)
    left_out = [formula(np.delete(g, i, axis=0)) for i in range(len(g))]
    assert found.stderr == pytest.approx(published(left_out, found.value, np.ones(len(g))), rel=1e-8, abs=1e-14)
    assert found.degrees == len(g) - 1


@pytest.mark.parametrize("name", MOMENTS | MATRICES)
def test_order_changes_nothing_and_scale_what_it_must(name: str) -> None:
    g = draw(samples=100)  # beyond 64 samples errors come from blocks, and values still from all
    order = np.random.default_rng(1).permutation(len(g))
    found = estimate(name, g @ g.T)
    assert estimate(name, g[order] @ g[order].T).value == pytest.approx(found.value, rel=1e-10)
    factor = 1.0 if name in INVARIANT else 9.0
    assert estimate(name, 9 * g @ g.T).value == pytest.approx(factor * found.value, rel=1e-10)
    assert estimate(name, 9 * g @ g.T).stderr == pytest.approx(factor * found.stderr, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("name", MOMENTS | MATRICES)
def test_one_sample_says_nothing(name: str) -> None:
    found = estimate(name, np.ones((1, 1)))
    assert np.isnan(found.value)
    assert np.isnan(found.stderr)


def test_noise_scale_interval_holds_a_known_one() -> None:
    """tr Σ = 1.5·1 + 0.5·9 and |𝒢|² = 2 are known, with variances that differ between directions and samples from t₈."""
    scales = np.sqrt(np.repeat([0.1, 0.5], [15, 9]) * 6 / 8)  # the variance of t₈ is 8/6
    mean = np.zeros(24)
    mean[:2] = 1.0
    truth = (1.5 + 4.5) / 2.0
    inside, width = 0, []
    for seed in range(100):
        g = np.random.default_rng(seed).standard_t(8, (128, 24)) * scales + mean
        low, high = noise_scale_interval(g @ g.T)
        inside += low <= truth <= high
        width.append(high - low)
    print(f"inside in {inside} of 100, median width {np.median(width):.2f}")
    assert 93 <= inside <= 99
    assert np.median(width) < truth


def test_a_gradient_lost_in_noise_has_no_upper_end() -> None:
    g = np.random.default_rng(3).standard_normal((40, 30))
    low, high = noise_scale_interval(g @ g.T)
    assert 0 < low < high == np.inf
    record = of_gradients(g)
    assert record.noise_dominated
    assert not of_gradients(g + 2).noise_dominated


def test_noise_of_opposite_pairs_is_all_there_is() -> None:
    g = np.random.default_rng(4).standard_normal((10, 5))
    both = np.concatenate([g, -g])
    record = of_gradients(both)
    assert record.signal_square.value < 0
    assert record.noise_scale.value == np.inf
    assert record.zero_sum.value == pytest.approx(0.0, abs=1e-12)  # every sample loses to the rest as much as it gains
    assert record.norm_interference.value == pytest.approx(1.0)


def test_interference_shows_without_the_self_term() -> None:
    """Eight samples against four, each mostly by itself: rows sum to 13 and 5, to 3 and −5 without the diagonal."""
    side = np.repeat([1.0, -1.0], [8, 4])
    gram = np.outer(side, side) + 9 * np.eye(12)
    assert of.destructive_interference(gram.mean(axis=1)) == 0.0
    assert of.zero_sum(gram) == pytest.approx(1 - 4 / 44)
    assert of.destructive_interference(np.array([1.0, -1.0])) == 1.0
    assert of.destructive_interference(np.array([-1.0, -3.0])) == 0.0
    assert of.destructive_interference(np.zeros(3)) == 0.0


def test_two_batch_sizes_agree_with_the_gram_matrix() -> None:
    """Averaged over all ways to split, the two-batch form is the per-sample form."""
    g = draw(samples=8)
    small = np.array([np.square(row).sum() for row in g])
    noise, signal, scale = two_batch_noise_scale(small, np.square(g.mean(0)).sum(), sizes=(1, 8))
    record = of_gradients(g)
    assert noise == pytest.approx(record.covariance_trace.value)
    assert signal == pytest.approx(record.signal_square.value)
    assert scale == pytest.approx(record.noise_scale.value)
    with pytest.raises(ValueError, match=r"0 < b < B, found \(4, 4\)"):
        two_batch_noise_scale(1.0, 1.0, sizes=(4, 4))


def test_the_trade_off_is_a_hyperbola() -> None:
    steps, samples = trade_off(17.0, np.geomspace(1, 1e4, 9))
    np.testing.assert_allclose((steps - 1) * (samples - 1), 1.0)


def test_groups_are_those_of_the_mean_gradients() -> None:
    g, groups = draw(samples=12), np.array([0, 1, 2] * 4)
    found = group_alignment(g @ g.T, groups, ("a", "b", "c"))
    means = np.stack([g[groups == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(found.dots, means @ means.T)
    lengths = np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(found.cosines, means @ means.T / np.outer(lengths, lengths))
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    same = np.equal.outer(groups, groups)
    np.fill_diagonal(same, False)
    assert found.within == pytest.approx((unit @ unit.T)[same].mean())
    assert found.between == pytest.approx((unit @ unit.T)[~np.equal.outer(groups, groups)].mean())


def test_errors_between_groups_are_the_jackknife_over_each() -> None:
    g, groups = draw(samples=9), np.array([0] * 4 + [1] * 5)
    found = group_alignment(g @ g.T, groups, ("a", "b"))

    def read(rows: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        a, b = rows[labels == 0].mean(0), rows[labels == 1].mean(0)
        return float(a @ b), float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    variance = np.zeros(2)
    for group in range(2):
        places = np.flatnonzero(groups == group)
        values = np.array([read(np.delete(g, i, axis=0), np.delete(groups, i)) for i in places])
        variance += (len(places) - 1) * values.var(axis=0)
    assert found.dot_stderrs[0, 1] == pytest.approx(np.sqrt(variance[0]))
    assert found.cosine_stderrs[0, 1] == pytest.approx(np.sqrt(variance[1]))


def test_a_group_of_one_conflicts_with_nobody_for_certain() -> None:
    g = np.array([[1.0, 0.0], [1.1, 0.1], [-1.0, 0.0]])
    found = group_alignment(g @ g.T, np.array([0, 0, 1]), ("a", "b"))
    assert found.dots[0, 1] < 0
    assert np.isnan(found.dot_stderrs[0, 1])
    assert found.conflicts() == ()


def test_few_samples_a_group_do_not_make_conflicts() -> None:
    rng, flagged, groups = np.random.default_rng(2), 0, np.repeat(np.arange(10), 3)
    for _ in range(200):  # means that agree with none: no conflict in 95 % of draws, by normal quantiles in 54 %
        g = rng.standard_normal((30, 50)) + 5 * np.eye(10, 50)[groups]
        flagged += bool(group_alignment(g @ g.T, groups, tuple("abcdefghij")).conflicts())
    assert flagged <= 10 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_degrees_of_a_conflict_are_those_of_its_groups() -> None:
    g = np.concatenate([np.random.default_rng(0).standard_normal((40, 5)), np.tile(np.eye(1, 5), (3, 1))])
    found = group_alignment(g @ g.T, np.repeat([0, 1], [40, 3]), ("noisy", "still"))
    assert isinstance(found.degrees, np.ndarray)
    assert found.degrees[0, 1] == pytest.approx(39)  # all noise is of the first group
    same = group_alignment(np.kron([[1.0, -1.0], [-1.0, 1.0]], np.ones((3, 3))), np.repeat([0, 1], 3), ("a", "b"))
    assert same.conflicts() == (("a", "b"),)  # no noise at all


def test_conflict_is_told_from_chance() -> None:
    """Independent groups are flagged in less than 5 % of draws, also among six pairs; opposed ones always."""
    flagged = 0
    for seed in range(200):
        g = np.random.default_rng(seed).standard_normal((80, 12))
        flagged += bool(group_alignment(g @ g.T, np.arange(80) % 4, ("a", "b", "c", "d")).conflicts())
    assert flagged <= 17  # 10 expected, standard error 3
    g = np.random.default_rng(0).standard_normal((80, 12))
    g[:, 0] += np.where(np.arange(80) % 4 == 0, -1.5, 1.5)
    found = group_alignment(g @ g.T, np.arange(80) % 4, ("a", "b", "c", "d"))
    assert set(found.conflicts()) == {("a", "b"), ("a", "c"), ("a", "d")}


def test_contributions_add_up_and_cosines_leave_the_sample_out() -> None:
    g = draw(samples=9)
    found = attribution(g @ g.T, np.arange(9) * 10, tuple("aabbccabc"))
    assert found.contributions.sum() == pytest.approx(1.0)
    assert sum(found.group_contributions.values()) == pytest.approx(1.0)
    assert found.shares.sum() == pytest.approx(1.0)
    assert (np.diff(found.norms) <= 0).all()
    for place, cosine, norm in zip(found.indices // 10, found.cosines, found.norms, strict=True):
        rest = np.delete(g, place, axis=0).mean(0)
        assert norm == pytest.approx(np.linalg.norm(g[place]))
        assert cosine == pytest.approx(g[place] @ rest / norm / np.linalg.norm(rest))


def test_spectra_are_those_of_the_matrices() -> None:
    g = draw(samples=5, size=8)
    record = of_gradients(g)
    np.testing.assert_allclose(record.fisher_eigenvalues, fisher(g)[::-1][:5], rtol=1e-10)
    centred = np.linalg.eigvalsh(np.cov(g.T))[::-1][:5]
    np.testing.assert_allclose(record.covariance_eigenvalues, centred, atol=1e-12)


def of_gradients(g: np.ndarray, **fields: object) -> Gradients:
    """A record as if of a problem with these per-sample gradients, in two layers of equal size."""
    half = g.shape[1] // 2
    parts = (g[:, :half], g[:, half:])
    norms = np.array([np.linalg.norm(part.mean(0)) for part in parts])
    values: dict[str, object] = {
        "loss": 1.0,
        "loss_stderr": np.nan,
        "norm": float(np.linalg.norm(g.mean(0))),
        "norm_stderr": np.nan,
        "layers": ("a", "b"),
        "layer_norms": norms,
        "layer_norm_stderrs": np.zeros(2),
        "parameter_norms": np.ones(2),
        "samples": len(g),
        "gram": g @ g.T,
        "layer_grams": np.stack([part @ part.T for part in parts]),
        "layer_sample_norms": np.stack([np.linalg.norm(part, axis=1) for part in parts]),
        "sample_losses": np.linspace(0.5, 1.5, len(g)),
    }
    return Gradients(**(values | fields))  # type: ignore[arg-type]


def test_layers_have_readings_of_their_own() -> None:
    g = draw()
    record = of_gradients(g, groups=np.arange(14) % 2, group_names=("even", "odd"))
    for name, part in (("a", g[:, :3]), ("b", g[:, 3:])):
        assert record.layer_gsnr[name].value == pytest.approx(MOMENTS["signal_to_noise"](part))
        assert record.layer_noise_scales[name].value == pytest.approx(MOMENTS["noise_scale"](part))
        means = part[::2].mean(0), part[1::2].mean(0)
        assert record.layer_group_alignment[name].dots[0, 1] == pytest.approx(means[0] @ means[1])


def test_a_sample_that_is_not_finite_is_marked_and_left_out() -> None:
    g = draw()
    broken = g.copy()
    broken[3] = np.nan
    record, rest = of_gradients(broken), of_gradients(np.delete(g, 3, axis=0))
    assert np.flatnonzero(~record.finite).tolist() == [3]
    for ours, theirs in (
        (record.noise_scale, rest.noise_scale),
        (record.zero_sum, rest.zero_sum),
        (record.mean_sample_norm, rest.mean_sample_norm),
        (record.layer_gsnr["a"], rest.layer_gsnr["a"]),
        (record.cabs(0.1), rest.replace(sample_losses=np.delete(record.sample_losses, 3)).cabs(0.1)),
    ):
        assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(theirs))
    assert 3 not in record.attribution.indices
    assert "noise scale" in repr(record)


def test_cabs_is_the_published_rule() -> None:
    g = draw()
    record = of_gradients(g)
    variance = np.square(g).sum() / len(g) - np.square(g.mean(0)).sum()
    assert record.cabs(0.1).value == pytest.approx(0.1 * variance / 1.0)

    def rule(kept: np.ndarray) -> float:
        rows, losses = g[kept], np.linspace(0.5, 1.5, len(g))[kept]
        return float(0.1 * rows.var(axis=0).sum() / losses.mean())

    left_out = [rule(np.delete(np.arange(len(g)), i)) for i in range(len(g))]
    assert record.cabs(0.1).stderr == pytest.approx(published(left_out, record.cabs(0.1).value, np.ones(len(g))))
    assert record.takeuchi(of.Estimate(2.0, 0.0)).value == pytest.approx(record.second_moment.value / 2)


def test_without_what_was_not_measured_the_error_says_what_to_measure() -> None:
    record = of_gradients(draw())
    bare = record.replace(gram=None, layer_grams=None, layer_sample_norms=None, sample_losses=None)
    assert "Gram" not in repr(bare)
    for name in ("noise_scale", "zero_sum", "attribution", "fisher_eigenvalues", "finite"):
        with pytest.raises(
            ValueError, match=r"with gram, found one without. Measure with gradients\(problem, gram=True"
        ):
            getattr(bare, name)
    with pytest.raises(ValueError, match="with groups, found one without"):
        _ = record.group_alignment
    with pytest.raises(ValueError, match="with update_dots, found one without"):
        _ = record.update_zero_sum
    with pytest.raises(ValueError, match="with layer_grams, found one without"):
        _ = record.replace(layer_grams=None).layer_gsnr


def test_records_of_nothing_can_be_shown() -> None:
    none = {"gram": np.zeros((0, 0)), "layer_grams": None, "layer_sample_norms": None, "sample_losses": None}
    assert "Gram matrix of 0 samples" in repr(of_gradients(draw()).replace(**none))
    assert "noise scale inf" in repr(of_gradients(np.zeros((4, 6))))
