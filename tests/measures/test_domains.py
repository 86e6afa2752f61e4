"""Noise of modules, flips of signs, and alignment of domains: identities, closed forms and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from families import BY_NAME
from theodolite.errors import DataError, ProblemError
from theodolite.measures import domain_alignment, module_variances, smoothness_gradient
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.records import Log, ModuleVariances, SignFlips, differences, read

# ------------------------------------------------------------------------------------------------- module variances


def test_halves_are_compared_module_by_module() -> None:
    problem = BY_NAME["mlp"].problem()
    found = module_variances(problem, splits=3, seed=5)
    assert list(dict.fromkeys(name.split(".")[0] for name in problem.layout.names)) == list(found.modules)
    for split in range(3):
        first, second = (half.gradient() for half in problem.split_halves(seed=5 + split))
        for index, module in enumerate(found.modules):
            places = [where for name, where in problem.layout.slices.items() if name.startswith(f"{module}.")]
            a, b = (torch.cat([g[where] for where in places]) for g in (first, second))
            assert found.phis[split, index] == pytest.approx(1 - float(a @ b / a.norm() / b.norm()), abs=1e-10)
    named = module_variances(problem, {"all": None, "weights": "*.weight"}, splits=1)
    assert named.modules == ("all", "weights")


def test_equal_halves_have_no_variance_and_the_anchor_keeps_its_rate() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(1, 4, dtype=torch.float64), torch.tensor([1])
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [(inputs.expand(8, 4), targets.expand(8))])
    found = module_variances(problem)
    np.testing.assert_allclose(found.phis, 0, atol=1e-12)
    assert all(value == pytest.approx(1) for value in found.multipliers().values())
    # Ever steadier modules end at √10, noisier ones at √½, the anchor at 1.
    odd = ModuleVariances(modules=("a", "b", "c"), phis=np.array([[0.1, 1e-9, 1.9]]), samples=4)
    factors: dict[str, float] | None = None
    for _ in range(600):
        factors = odd.multipliers(factors)
    assert factors is not None
    frozen = odd.replace(phis=np.array([[0.1, np.nan, 1.9]]))
    assert frozen.multipliers(factors)["b"] == factors["b"]  # its rate waits until Φ is known again
    with pytest.raises(ValueError, match="known Φ of the anchor 'a', found NaN"):
        odd.replace(phis=np.array([[np.nan, 0.1, 1.9]])).multipliers()
    assert list(factors.values()) == pytest.approx([1, np.sqrt(10), np.sqrt(0.5)], rel=1e-6)


def test_the_variance_is_the_share_of_noise() -> None:
    """1 − E cos ≈ s²/(‖𝒢‖² + s²) with s² = tr Σ/b, and so Φ/(1 − Φ)·b is the noise scale."""
    generator = torch.Generator().manual_seed(0)
    samples, size = 512, 4000
    inputs = 1.0 + 16.0 * torch.randn(samples, size, generator=generator, dtype=torch.float64)
    model = nn.Linear(size, 1, bias=False).double()
    # The gradient of the mean output is the mean input: 𝒢 = 1, Σ = 256·I.
    problem = Problem(model, lambda outputs, _: outputs.mean(), [(inputs, torch.zeros(samples, 1))])
    found = module_variances(problem, splits=8)
    share = (256 / 256) / (1 + 256 / 256)
    assert found.variances["weight"].value == pytest.approx(share, rel=0.05)
    assert found.noise_scales["weight"] == pytest.approx(256, rel=0.1)


def test_adam_scales_the_gradients_that_are_compared() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    with pytest.raises(ProblemError, match="Adam or AdamW that has taken a step"):
        module_variances(problem, optimizer=optimizer)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, len(name) / 100)
    optimizer.step()
    found = module_variances(problem, {"all": None}, optimizer=optimizer, splits=1)
    v = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()])
    a, b = (half.gradient() for half in problem.split_halves())
    a, b = (g / ((0.999 * v + 0.001 * g**2).sqrt() + 1e-8) for g in (a, b))
    assert found.phis[0, 0] == pytest.approx(1 - float(a @ b / a.norm() / b.norm()), rel=1e-8)
    assert found.optimizer == "Adam"
    with pytest.raises(ProblemError, match="splits=0"):
        module_variances(problem, splits=0)


# ------------------------------------------------------------------------------------------------------- sign flips


def test_disorder_of_known_streams() -> None:
    steps = np.arange(400)
    rng = np.random.default_rng(0)
    task = np.stack([(-1.0) ** steps, np.ones(400), rng.standard_normal(400)], axis=1)
    found = SignFlips(names=("alternating", "steady", "noise"), task=task, smooth=-task)
    rates = found.disorder
    assert rates["alternating"].value == 1
    assert rates["steady"].value == 0
    assert rates["steady"].stderr == rates["alternating"].stderr == 0.5 / 400  # Wilson's at K = 399 flips
    assert abs(rates["noise"].value - 0.5) < 4 * rates["noise"].stderr
    assert found.smooth_disorder["alternating"].value == 1
    assert [each.value for each in found.conflicts.values()] == [1, 1, 1]
    np.testing.assert_allclose(found.cosines, -1)
    assert found.frozen().tolist() == [False, True, False]
    broken = SignFlips(
        names=("a", "b"), task=np.array([[np.nan, 1.0], [1.0, 1.0]]), smooth=np.array([[1.0, -1.0], [-1.0, 1.0]])
    )
    assert np.isnan(broken.conflicts["a"].value)
    assert broken.conflicts["b"].value == 0.5
    alone = SignFlips(names=("a",), task=task[:, :1])
    with pytest.raises(ValueError, match="second objective"):
        _ = alone.conflicts
    assert np.isnan(SignFlips(names=("a",), task=task[:1, :1]).disorder["a"].value)


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.98])
def test_rates_have_errors_that_cover_them_where_all_flips_are_alike(rate: float) -> None:
    rng = np.random.default_rng(0)
    flips = rng.random((30, 2000)) < rate
    task = np.cumprod(np.concatenate([np.ones((1, 2000)), np.where(flips, -1.0, 1.0)]), axis=0)
    found = SignFlips(names=tuple(map(str, range(2000))), task=task).disorder.values()
    assert min(each.stderr for each in found) > 0
    covered = np.mean([abs(each.value - rate) < 2 * each.stderr for each in found])
    assert covered > 0.93  # by √(p(1 − p)/K) 45 % at rates of 0.02 and 0.98


def test_the_smoothness_gradient_is_a_difference_of_gradients() -> None:
    model, batches = BY_NAME["mlp"].model_and_data()
    problem = BY_NAME["mlp"].problem_of(model, batches)
    task, smooth = smoothness_gradient(problem, radius=1e-4)
    torch.testing.assert_close(task, problem.gradient())
    curved = Hessian(problem) @ task * 1e-4 / task.norm()
    torch.testing.assert_close(smooth, curved, rtol=1e-2, atol=1e-7)
    with pytest.raises(ProblemError, match=r"radius, found 0\.0"):
        smoothness_gradient(problem, radius=0.0)


# ------------------------------------------------------------------------------------------------ domain alignment


def domains(*, samples: int = 30, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    inputs, targets = torch.randn(samples, 4, dtype=torch.float64), torch.randint(3, (samples,))
    return Problem(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), [(inputs, targets)])


def test_products_and_norms_equal_dense_hessians() -> None:
    """Of a softmax head H_e = mean (diag p − ppᵀ) ⊗ hhᵀ, by hand."""
    problem = domains()
    inputs, targets = problem.batches.first()
    labels = np.arange(30) % 3
    found = domain_alignment(problem, by=labels, transfer=True, tol=1e-8)
    model = problem.model
    hessians, slopes = [], []
    for chosen in [*(labels == each for each in range(3)), labels >= 0]:
        h = torch.cat([inputs[chosen], torch.ones(int(chosen.sum()), 1, dtype=torch.float64)], 1)
        p = model(inputs[chosen]).softmax(1).detach()
        error = p - nn.functional.one_hot(targets[chosen], 3)
        blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        H = torch.einsum("bij,bk,bl->ikjl", blocks, h, h) / len(h)
        g = torch.einsum("bi,bk->ik", error, h) / len(h)
        # Weights before biases.
        order = torch.cat([(torch.arange(3)[:, None] * 5 + torch.arange(4)).reshape(-1), torch.arange(3) * 5 + 4])
        hessians.append(H.reshape(15, 15)[order][:, order])
        slopes.append(g.reshape(-1)[order])
    products = torch.stack([H @ g for H, g in zip(hessians, slopes, strict=True)])
    rows = torch.stack(slopes)
    np.testing.assert_allclose(found.gradient_dots, rows @ rows.T, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.curved_dots, products @ products.T, rtol=1e-8, atol=1e-14)
    expected = [[float(torch.linalg.eigvalsh(a - b).abs().max()) for b in hessians[:3]] for a in hessians[:3]]
    np.testing.assert_allclose(found.transfer, expected, rtol=1e-6)
    assert found.worst_transfer == pytest.approx(np.max(expected))
    distances = [(products[:3] - products[3]).square().sum(1), (rows[:3] - rows[3]).square().sum(1)]
    np.testing.assert_allclose(found.curved_distances, distances[0], rtol=1e-6, atol=1e-13)
    penalty = float((1e-3 * distances[0] + 5e-3 * distances[1]).mean())
    assert found.penalty() == pytest.approx(penalty, rel=1e-6)


def test_equal_domains_are_aligned_and_opposed_ones_are_not() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    model = nn.Linear(4, 3).double()
    twice = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets), (inputs, targets)])
    found = domain_alignment(twice, by=["a"] * 20 + ["b"] * 20, transfer=True)
    np.testing.assert_allclose(found.gradient_cosines, 1, atol=1e-12)
    np.testing.assert_allclose(found.curved_cosines, 1, atol=1e-12)
    assert found.penalty() < 1e-20
    assert found.worst_transfer < 1e-12
    opposed = Problem(model, nn.MSELoss(), [(inputs, x) for x in (model(inputs).detach() + s for s in (2, -3))])
    cosines = domain_alignment(opposed, by=["a"] * 20 + ["b"] * 20)
    assert cosines.gradient_cosines[0, 1] == pytest.approx(-1)
    assert cosines.curved_cosines[0, 1] == pytest.approx(-1)
    assert np.isnan(cosines.worst_transfer)
    with pytest.raises(DataError, match="Expected one label for each of 20 samples"):
        domain_alignment(twice, by=["a"])


def test_a_log_keeps_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = [
        module_variances(BY_NAME["mlp"].problem()),
        domain_alignment(domains()),
        SignFlips(names=("a",), task=np.ones((3, 1))),
    ]
    with Log(tmp_path / "run") as log:
        for record in found:
            log.append(record)
    for record, kept in zip(found, read(tmp_path / "run").records, strict=True):
        assert not differences(kept, record, ignore={"context"})
        assert record.summary()
