from __future__ import annotations

import math

import pytest
import torch

from theodolite.linalg import Identity
from theodolite.linalg.probes import Distribution, Probes, mean_with_stderr


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_a_seed_fixes_the_probes_whatever_the_blocks_and_the_dtype(distribution: Distribution) -> None:
    double, single = Identity(37, dtype=torch.float64), Identity(37, dtype=torch.float32)
    whole = Probes(double, seed=5, distribution=distribution).draw(7)
    stream = Probes(double, seed=5, distribution=distribution)
    assert torch.equal(torch.cat([block.T for block in stream.blocks(7, size=3)]), whole)
    assert torch.equal(Probes(single, seed=5, distribution=distribution).draw(7).double(), whole)
    assert not torch.equal(Probes(double, seed=6, distribution=distribution).draw(7), whole)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    Probes(Identity(9), seed=0).draw(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_moments_of_the_distributions() -> None:
    signs = Probes(Identity(10_000), seed=0, distribution="rademacher").draw(1)[0]
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / 100
    normal = Probes(Identity(10_000), seed=0).draw(1)[0]
    assert abs(float(normal.mean())) < 4 / 100
    assert abs(float(normal.var()) - 1) < 4 * math.sqrt(2) / 100
    assert abs(float((normal**4).mean()) - 3) < 4 * math.sqrt(96) / 100


def test_one_sample_has_no_error_bar() -> None:
    assert mean_with_stderr(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.0))
    value, stderr = mean_with_stderr(torch.tensor([2.0]))
    assert value == 2.0
    assert math.isnan(stderr)
