"""Means over chunks know their errors, and two ranks read what one reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed.worker import on_two_ranks
from families import FAMILIES, Family, dense_oracle
from measures.halves_on_ranks import data, on_rank, readings
from records.published_jackknife import published
from theodolite.measures.excursions import ChunkMeans, gradient_at, loss_at


def test_errors_of_means_and_of_functions_of_them_are_the_jackknife() -> None:
    means = ChunkMeans(np.array([[2.0, 6.0], [3.0, 3.0], [1.0, 4.0]]), np.array([2.0, 3.0, 1.0]), 6.0)
    assert means.value == pytest.approx([1.0, 13 / 6])
    left_out = [[4 / 4, 7 / 4], [3 / 3, 10 / 3], [5 / 5, 9 / 5]]
    assert means.left_out == pytest.approx(np.array(left_out))
    expected = [published([row[k] for row in left_out], float(means.value[k]), means.weights) for k in range(2)]
    assert means.stderr == pytest.approx(expected)
    ratios = [row[1] / row[0] for row in left_out]
    error = means.error_of(lambda values: values[..., 1] / values[..., 0])
    assert error == pytest.approx(published(ratios, 13 / 6, means.weights))
    assert np.isnan(ChunkMeans(np.ones((1, 2)), np.ones(1), 1.0).stderr).all()
    assert (means - means).value == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_loss_gradient_and_slopes_equal_the_oracle(family: Family) -> None:
    loss, gradient, _ = dense_oracle(family)
    problem = family.problem()
    rows = torch.stack([torch.ones(problem.n), torch.arange(problem.n) / problem.n]).double()
    found, own, slopes = gradient_at(problem, torch.zeros(problem.n, dtype=torch.float64), along=rows)
    assert float(found.value) == pytest.approx(float(loss), rel=1e-12)
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-12)
    assert slopes.value == pytest.approx((rows @ gradient).numpy(), rel=1e-9, abs=1e-12)
    assert float(loss_at(problem).value) == pytest.approx(float(loss), rel=1e-12)


def test_two_ranks_read_what_one_reads() -> None:
    whole = readings(data())
    for part in on_two_ranks(on_rank):
        for name, values in whole.items():
            assert part[name] == pytest.approx(values, rel=1e-9, abs=1e-13), name
