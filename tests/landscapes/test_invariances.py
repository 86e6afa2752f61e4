"""Two linear models that use different features: gaps in closed form, and a barrier on counterfactual data alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.errors import DataError, ProblemError
from theodolite.landscapes.paths import counterfactual, invariance, path
from theodolite.problem import Problem


def two_features() -> Problem:
    """y = core = cue in the data, so that either feature predicts it."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        y = torch.randint(2, (6, 1), generator=g).double() * 2 - 1
        batches.append((torch.cat([y, y], dim=1), y))
    return Problem(nn.Linear(2, 1, bias=False).double(), nn.MSELoss(), batches)


def without_cue(batch: Any) -> Any:
    return batch[0] * torch.tensor([1.0, 0.0]).double(), batch[1]


def flipped_cue(batch: Any) -> Any:
    return batch[0] * torch.tensor([1.0, -1.0]).double(), batch[1]


def weights(core: float, cue: float) -> dict[str, Tensor]:
    return {"weight": torch.tensor([[core, cue]], dtype=torch.float64)}


def test_gaps_are_those_of_the_features_that_a_model_uses() -> None:
    changes = {"removed": without_cue, "flipped": flipped_cue}
    models = {"core": weights(1, 0), "cue": weights(0, 1), "half": weights(0.5, 0.5), "also core": weights(1, 0)}
    found = invariance(two_features(), changes, models)
    np.testing.assert_allclose(found.losses, 0, atol=1e-15)
    np.testing.assert_allclose(found.gaps, [[0, 0], [1, 4], [0.25, 1], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(found.stderrs, 0, atol=1e-12)  # every sample changes by the same
    assert found.invariant.tolist() == [[True, True], [False, False], [False, False], [True, True]]
    assert found.similarity[0].tolist() == [1, 0, 0, 1]
    assert found.similarity[1].tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(found.dissimilarity[0], [0, 4, 1, 0], atol=1e-15)
    assert found.gap("cue", "flipped").value == pytest.approx(4)
    assert found.cost.forwards == 12
    assert "cue: removed 1" in repr(found)


def test_the_error_of_a_gap_is_that_of_paired_samples() -> None:
    problem = two_features()
    noisy = [
        (x + 0.3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(k)).double(), y)
        for k, (x, y) in enumerate(problem.batches)
    ]
    found = invariance(
        Problem(problem.model, nn.MSELoss(), noisy), {"removed": without_cue}, {"cue": weights(0.2, 0.9)}
    )
    w = torch.tensor([0.2, 0.9]).double()
    means = [float(((without_cue((x, y))[0] @ w - y[:, 0]) ** 2 - (x @ w - y[:, 0]) ** 2).mean()) for x, y in noisy]
    assert found.gap("cue", "removed").value == pytest.approx(np.mean(means))
    assert found.gap("cue", "removed").stderr == pytest.approx(np.std(means, ddof=1) / 2)
    assert found.gap("cue", "removed").degrees == 3


def test_a_gap_counts_as_none_where_its_whole_interval_does() -> None:
    problem = two_features()
    noisy = [
        (x + 0.3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(k)).double(), y)
        for k, (x, y) in enumerate(problem.batches)
    ]
    removed, models = {"removed": without_cue}, {"cue": weights(0.9, 0.02)}
    found = invariance(Problem(problem.model, nn.MSELoss(), noisy), removed, models)
    low, high = found.gap("cue", "removed").interval()
    reach = max(abs(low), abs(high))
    assert abs(found.gap("cue", "removed").value) < 0.9 * reach
    assert not found.replace(tol=0.99 * reach).invariant.any()
    assert found.replace(tol=1.01 * reach).invariant.all()
    alone = invariance(Problem(problem.model, nn.MSELoss(), noisy[:1]), removed, models, tol=1e3)
    assert not alone.invariant.any()  # the error of one chunk is not known


def test_a_path_on_changed_data_shows_what_lies_between_mechanisms() -> None:
    problem = two_features()
    plain = path(problem, weights(1, 0), weights(0, 1), points=5)
    np.testing.assert_allclose(plain.losses, 0, atol=1e-15)  # on the data both mechanisms are connected
    changed = path(counterfactual(problem, flipped_cue), weights(1, 0), weights(0, 1), points=5)
    np.testing.assert_allclose(changed.losses[0], [0, 0.25, 1, 2.25, 4], atol=1e-15)
    assert problem.batches.first()[0].equal(two_features().batches.first()[0])


def test_errors_show_the_scene() -> None:
    problem = two_features()
    with pytest.raises(DataError, match=r"keeps the 6 samples of batch 0.* found 3"):
        counterfactual(problem, lambda batch: (batch[0][:3], batch[1][:3]))
    with pytest.raises(ProblemError, match="found 0 changes and 1 checkpoints"):
        invariance(problem, {}, {"core": weights(1, 0)})
    found = invariance(problem, {"removed": without_cue}, {"core": weights(1, 0)})
    with pytest.raises(ValueError, match="one of 'core', found 'cue'"):
        found.gap("cue", "removed")


@pytest.mark.slow
def test_the_example_of_counterfactual_fine_tuning_drops_the_cue_that_plain_fine_tuning_keeps() -> None:
    file = Path(__file__).parents[2] / "examples" / "counterfactual_fine_tuning.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readings = module.main()
    assert readings["naive"]["with cue"] > 0.99
    assert readings["naive"]["cue randomised"] < 0.6
    assert readings["naive"]["gap"] > 5
    assert readings["connectivity-based"]["cue randomised"] > 0.85
    assert abs(readings["connectivity-based"]["gap"]) < 0.5
