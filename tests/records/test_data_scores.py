"""Scores, samplings, coresets and weights of samples keep the identities that their papers state."""

from __future__ import annotations

import inspect
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from theodolite.records import Gradients
from theodolite.records.coresets import coreset, facility_location
from theodolite.records.data_scores import data_scores
from theodolite.records.loss_weights import loss_weights
from theodolite.records.sampling import Sampling, clusters, importance_sampling


def gradients_of(rows: np.ndarray, **fields: object) -> Gradients:
    one = np.ones(1)
    values = dict.fromkeys(("loss", "loss_stderr", "norm", "norm_stderr"), 1.0)
    values |= dict.fromkeys(("layer_norms", "layer_norm_stderrs", "parameter_norms"), one)
    values |= {"layers": ("0",), "samples": len(rows), "gram": rows @ rows.T, "indices": np.arange(len(rows))}
    return Gradients(**(values | fields))


def heavy_rows(seed: int = 0, count: int = 40) -> np.ndarray:
    """Gradients of very unequal length, with a common direction."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 6)) + 0.5) * np.exp(rng.standard_normal((count, 1)))


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_several_draws_are_averaged_sample_by_sample() -> None:
    rows = heavy_rows(count=5)
    first = gradients_of(rows, el2n=np.arange(5.0))
    second = gradients_of(rows[[3, 1]], indices=np.array([3, 1]), el2n=np.array([6.0, 1.5]))
    found = data_scores([first, second])
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert found.runs.tolist() == [1, 2, 1, 2, 1]
    assert found.values.tolist() == [0, 1.25, 2, 4.5, 4]
    assert found.stderrs[[1, 3]] == pytest.approx([np.std([1, 1.5], ddof=1) / 2**0.5, np.std([3, 6], ddof=1) / 2**0.5])
    assert np.isnan(found.stderrs[[0, 2, 4]]).all()
    assert found.keep(0.4).tolist() == [3, 4]
    assert found.keep(0.4, skip=0.2).tolist() == [2, 4]
    assert found.keep(1.0).tolist() == [0, 1, 2, 3, 4]
    assert found.keep(0.0).tolist() == []
    assert data_scores(first, score="grand").values == pytest.approx(np.linalg.norm(rows, axis=1))
    assert data_scores(first, score=lambda record: -record.el2n).keep(0.2).tolist() == [0]


def test_samples_without_a_finite_gradient_are_never_kept() -> None:
    rows = heavy_rows(count=4)
    rows[2] = np.nan
    assert data_scores(gradients_of(rows), score="grand").keep(1.0).tolist() == [0, 1, 3]


def test_infinite_losses_are_readings_and_never_kept() -> None:
    record = gradients_of(heavy_rows(count=3), sample_losses=np.array([1.0, np.inf, 2.0]))
    found = data_scores([record, record], score="loss")
    assert found.values.tolist() == [1.0, np.inf, 2.0]
    assert np.isnan(found.stderrs[1])
    assert found.keep(1.0).tolist() == [0, 2]


def test_what_cannot_be_scored_is_refused() -> None:
    record = gradients_of(heavy_rows(count=3))
    with pytest.raises(ValueError, match="Expected records with el2n, found one without"):
        data_scores(record)
    with pytest.raises(ValueError, match="Expected Gradients records of samples, found one without"):
        data_scores(record.replace(gram=None))
    with pytest.raises(
        ValueError, match="Expected score to be 'grand', 'el2n', 'loss' or a function of a record, found 'x'"
    ):
        inspect.unwrap(data_scores)(record, score="x")
    with pytest.raises(ValueError, match="each of the 3 samples"):
        data_scores(record, score=lambda _: np.ones(2))
    with pytest.raises(ValueError, match="at least one Gradients record"):
        data_scores([])
    with pytest.raises(ValueError, match="shares of at most 1 together"):
        data_scores(record, score="grand").keep(0.9, skip=0.2)


# -------------------------------------------------------------------------------------------------- importance sampling


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_weighted_draws_are_unbiased_with_the_variance_of_the_closed_form(mix: float) -> None:
    rows = heavy_rows()
    mean, norms = rows.mean(axis=0), np.linalg.norm(rows, axis=1)
    sampling = importance_sampling(norms, mix=mix)
    assert sampling.probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose((sampling.probabilities * sampling.weights) @ rows, mean, atol=1e-12)
    variance = sampling.variance(rows @ rows.T)
    if mix == 1:
        assert variance == pytest.approx(norms.mean() ** 2 - mean @ mean)
    if mix == 0:
        assert variance == pytest.approx(np.square(rows - mean).sum(axis=1).mean())
        assert (sampling.weights == 1).all()
        assert sampling.saving(rows @ rows.T) == pytest.approx(1)
    draws = 20_000
    places, weights = sampling.draw(draws, seed=3)
    drawn = weights[:, None] * rows[places]
    error = drawn.std(axis=0, ddof=1) / draws**0.5
    assert (np.abs(drawn.mean(axis=0) - mean) < 4 * error).all()
    squares = np.square(drawn - mean).sum(axis=1)
    assert abs(squares.mean() - variance) < 4 * squares.std() / draws**0.5


def test_no_sampling_has_less_variance_than_by_norms() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        rows = heavy_rows(seed)
        gram = rows @ rows.T
        best = importance_sampling(np.linalg.norm(rows, axis=1))
        assert best.saving(gram) < 1
        others = [Sampling(p) for p in rng.dirichlet(np.ones(len(rows)), size=20)]
        assert all(other.variance(gram) >= best.variance(gram) for other in others)
        savings = [
            importance_sampling(np.linalg.norm(rows, axis=1), mix=mix).saving(gram) for mix in (0.0, 0.3, 0.6, 1.0)
        ]
        assert savings == sorted(savings, reverse=True)


def test_samples_that_are_never_drawn() -> None:
    sampling = importance_sampling(np.array([0.0, 1.0, 1.0]))
    assert sampling.weights.tolist() == [0, 2 / 3, 2 / 3]
    assert sampling.variance(np.diag([0.0, 1.0, 1.0])) == pytest.approx(2 * 2 / 9 - 2 / 9)
    assert sampling.variance(np.eye(3)) == np.inf
    assert importance_sampling(np.array([1.0, 3.0])).effective_samples == pytest.approx(1 / (1 / 4 * 4 + 3 / 4 * 4 / 9))
    assert importance_sampling(np.array([0.0, 0.0, 1.0, 1.0])).effective_samples == pytest.approx(1)
    assert np.isnan(
        importance_sampling(np.ones(3)).saving(np.ones((3, 3)))
    )  # uniform draws of equal gradients have no noise
    with pytest.raises(ValueError, match="finite and not negative, found -1 at place 1"):
        importance_sampling(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="share between 0 and 1, found 2"):
        importance_sampling(np.ones(2), mix=2.0)


# ------------------------------------------------------------------------------------------------- sensitivity sampling


def smooth_losses(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings in four clusters, and losses that change with them by at most their distance."""
    rng = np.random.default_rng(seed)
    owners = rng.choice(4, size=300, p=[0.6, 0.3, 0.07, 0.03])
    centres = 20 * np.eye(4)
    points = centres[owners] + rng.standard_normal((300, 4)) * 0.3
    losses = np.array([0.1, 1.0, 8.0, 30.0])[owners] + 0.5 * np.abs(points - centres[owners]).sum(axis=1) / 2
    return points, losses, owners


def test_sensitivity_sampling_is_unbiased_and_better_than_uniform() -> None:
    savings = []
    for seed in range(10):
        points, losses, owners = smooth_losses(seed)
        found = clusters(points, count=4, seed=seed)
        assert len({(a, b) for a, b in zip(found.labels, owners, strict=True)}) == 4  # the planted clusters
        for place, medoid in enumerate(found.medoids):
            own = found.labels == place
            centre = points[own].mean(axis=0)
            nearest = np.linalg.norm(points[own] - centre, axis=1).min()
            assert np.linalg.norm(points[medoid] - centre) == pytest.approx(nearest)
            np.testing.assert_allclose(found.distances[own], np.linalg.norm(points[own] - points[medoid], axis=1))
        bounds = losses[found.medoids][found.labels] + found.distances  # losses change by at most half of the distance
        assert (losses <= bounds + 1e-12).all()
        sampling = found.sensitivity_sampling(losses[found.medoids], spread=1.0, power=1.0)
        assert (sampling.probabilities * sampling.weights) @ losses == pytest.approx(losses.mean())
        savings.append(sampling.saving(np.outer(losses, losses)))
    assert max(savings) < 0.1
    places, weights = sampling.draw(20_000, seed=1)
    drawn = weights * losses[places]
    assert abs(drawn.mean() - losses.mean()) < 4 * drawn.std() / 20_000**0.5


def test_clusters_of_equal_points_and_bad_counts() -> None:
    found = clusters(np.ones((5, 2)), count=3)
    assert found.labels.tolist() == [0] * 5
    assert found.distances.tolist() == [0] * 5
    assert found.sensitivity_sampling(np.zeros(1)).probabilities.tolist() == [0.2] * 5
    first, again = (clusters(heavy_rows(), count=5, seed=4) for _ in range(2))
    assert (first.labels == again.labels).all()
    with pytest.raises(ValueError, match="from 1 to 5 clusters of as many samples, found count=6"):
        clusters(np.ones((5, 2)), count=6)
    with pytest.raises(ValueError, match="found NaN or infinity, first in sample 1"):
        clusters(np.array([[0.0], [np.nan]]), count=1)
    with pytest.raises(ValueError, match="Expected a loss for each of 1 medoids, found 2"):
        found.sensitivity_sampling(np.ones(2))


# ------------------------------------------------------------------------------------------------------------- coresets


def test_greedy_facility_location_reaches_its_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.standard_normal((10, 3))
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        s = distances.max() - distances
        places, weights = facility_location(s, size=3)
        best = max(s[:, list(chosen)].max(axis=1).sum() for chosen in combinations(range(10), 3))
        assert s[:, places].max(axis=1).sum() >= (1 - 1 / np.e) * best
        assert weights.sum() == 10
        assert len(set(places.tolist())) == 3
        assert weights.min() >= 1


def clustered_rows(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((5, 20))
    return centres[rng.choice(5, size=60, p=[0.5, 0.2, 0.15, 0.1, 0.05])] + 0.4 * rng.standard_normal((60, 20))


def test_coresets_are_closer_to_the_batch_than_random_samples() -> None:
    ratios = []
    for seed in range(20):
        rows = clustered_rows(seed)
        gram = rows @ rows.T
        found = coreset(gram, size=8)
        mean = (found.weights @ rows[found.places]) / 60
        assert found.error(gram) == pytest.approx(
            np.linalg.norm(mean - rows.mean(axis=0)) / np.linalg.norm(rows.mean(axis=0)), rel=1e-6
        )
        rng = np.random.default_rng(seed)
        random = [rows[rng.choice(60, size=8, replace=False)].mean(axis=0) for _ in range(50)]
        ratios.append(
            found.error(gram)
            * np.linalg.norm(rows.mean(axis=0))
            / np.linalg.norm(random - rows.mean(axis=0), axis=1).mean()
        )
    assert np.mean(ratios) < 0.4
    assert max(ratios) < 0.9


def test_two_tight_clusters_have_one_medoid_each() -> None:
    rows = np.concatenate([np.full((7, 3), 1.0), np.full((3, 3), -2.0)]) + 0.01 * heavy_rows(count=10)[:, :3]
    found = coreset(rows @ rows.T, size=2)
    assert sorted(found.weights.tolist()) == [3, 7]
    assert found.places[0] < 7 <= found.places[1]


def test_small_sources_are_kept_and_budgets_are_met() -> None:
    rows = heavy_rows(count=24)
    sources = np.array([0] * 13 + [1] * 9 + [2] * 2)
    found = coreset(rows @ rows.T, size=10, sources=sources)
    chosen = sources[found.places]
    assert np.bincount(chosen).tolist() == [5, 3, 2]  # 8·13/22 = 4.7, 8·9/22 = 3.3
    assert found.weights.sum() == 24
    assert found.weights[chosen == 2].tolist() == [1, 1]
    everything = coreset(rows @ rows.T, size=24, sources=sources)
    assert everything.weights.tolist() == [1] * 24
    assert everything.error(rows @ rows.T) < 1e-7
    named = coreset(rows @ rows.T, size=12, sources=sources, keep=[1])
    assert np.bincount(sources[named.places])[1] == 9
    with pytest.raises(ValueError, match="size between 1 and the 24 samples of the batch, found 25"):
        coreset(rows @ rows.T, size=25)
    with pytest.raises(
        ValueError, match=r"all 13 samples of the kept sources \[0\] and one of each of 2 others, found 14"
    ):
        coreset(rows @ rows.T, size=14, sources=sources, keep=[0])


@pytest.mark.parametrize("size", range(3, 31, 3))
def test_every_source_is_stood_for(size: int) -> None:
    rows, sources = heavy_rows(count=30), np.array([0] * 26 + [1] * 2 + [2] * 2)
    found = coreset(rows @ rows.T, size=size, sources=sources, keep=[])
    counts = np.bincount(sources[found.places], minlength=3)
    assert counts.sum() == size
    assert found.weights.sum() == 30
    assert [found.weights[sources[found.places] == source].sum() for source in range(3)] == [26, 2, 2]
    assert (np.abs(counts - size * np.array([26, 2, 2]) / 30) < 2).all()


def test_sources_are_one_for_each_sample() -> None:
    rows = heavy_rows(count=6)
    with pytest.raises(
        ValueError, match=r"one source for each of the 6 samples of the batch, found sources of shape \(5,\)"
    ):
        inspect.unwrap(coreset)(rows @ rows.T, size=3, sources=np.zeros(5, dtype=np.int64))


def test_coresets_of_what_is_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected finite products, found 5 that are not"):
        coreset(np.where(np.eye(3)[0] + np.eye(3)[:, :1] > 0, np.nan, 1.0), size=1)


# ------------------------------------------------------------------------------------------------------- loss weights


@pytest.mark.parametrize("shape", ["lin-upper", "upper", "middle", "extremes"])
def test_weights_solve_their_maximisation(shape: str) -> None:
    losses = np.array([0.2, 1.5, 0.7, 3.0, 2.9])
    h = 2 * (losses - 1.6) / 2.8
    f = {"lin-upper": np.minimum(h + 1, 1), "upper": (h + 1) / 2, "middle": 1 - h**2, "extremes": abs(h)}[shape]
    r = 0.4
    found = loss_weights(losses, shape=shape, temperature=r)

    def objective(w: np.ndarray) -> float:
        return float(-(w @ f) + r * (w * np.log(np.maximum(w, 1e-300) * 5)).sum())

    best = minimize(
        objective,
        np.full(5, 0.2),
        bounds=[(1e-9, 1)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        tol=1e-14,
    )
    assert found.sum() == pytest.approx(1)
    assert objective(found) <= best.fun + 1e-12
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    np.testing.assert_allclose(loss_weights(losses, shape=shape, temperature=1e6), 0.2, atol=1e-6)
    sharp = loss_weights(losses, shape=shape, temperature=1e-3)
    assert sharp[f >= f.max() - 1e-12].sum() == pytest.approx(1)


def test_weights_of_equal_losses_and_wrong_ones() -> None:
    assert loss_weights(np.full(4, 2.5)).tolist() == [0.25] * 4
    assert loss_weights(np.zeros(0)).tolist() == []
    with pytest.raises(ValueError, match="Expected finite losses, found nan among 2"):
        loss_weights(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="positive temperature and width"):
        loss_weights(np.ones(2), temperature=0.0)
    with pytest.raises(ValueError, match="Expected shape to be 'lin-upper'"):
        inspect.unwrap(loss_weights)(np.ones(2), shape="lower")


def test_redundant_samples_of_small_loss_count_less_and_a_target_is_reached_sooner() -> None:
    """Linear regression with 90 copies of one easy sample and ten different ones."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.tile([[1.0, 0, 0, 0]], (90, 1)), rng.standard_normal((10, 4))])
    y = x @ np.array([0.1, 2.0, -1.0, 1.5])

    def steps_to(weighted: bool) -> int:
        w = np.zeros(4)
        for step in range(2000):
            errors = x @ w - y
            if np.square(errors).max() < 0.01:
                return step
            weights = loss_weights(np.square(errors)) if weighted else np.full(100, 0.01)
            w -= 0.1 * (weights * errors) @ x
        return 2000

    assert steps_to(weighted=True) < 0.8 * steps_to(weighted=False)


def test_importance_sampling_takes_any_scores_but_none_at_all():
    record = Gradients(
        loss=1.0, loss_stderr=0.1, norm=1.0, norm_stderr=0.1, layers=("0",), layer_norms=np.ones(1),
        layer_norm_stderrs=np.ones(1), parameter_norms=np.ones(1), samples=2, gram=np.diag([9.0, 1.0]), indices=np.arange(2),
    )  # fmt: skip
    for scores in (record, np.array([3.0, 1.0]), torch.tensor([3.0, 1.0]), [3, 1]):
        assert importance_sampling(scores).probabilities.tolist() == [0.75, 0.25]
    with pytest.raises(ValueError, match="one is above 0 to draw by, found 4 that are all 0"):
        importance_sampling(np.zeros(4))
    with pytest.raises(ValueError, match=r"record with samples, found one without"):
        importance_sampling(record.replace(gram=None, indices=None))
    with pytest.raises(ValueError, match=r"one number for each sample, found a ndarray of shape \(2, 2\)"):
        importance_sampling(np.ones((2, 2)))
