"""BatchNorm in three ways, caps, reduced precision, the quadratic model, and buffers that nobody may write to."""

from __future__ import annotations

import copy
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import BY_NAME, features, labels
from theodolite.errors import ProblemError
from theodolite.landscapes import line, plane
from theodolite.landscapes import sweep as sweeps
from theodolite.problem import Problem
from theodolite.records import differences

SIZES = (8, 6, 7)
DATA = list(zip(features(SIZES, 5), labels(SIZES, 3), strict=True))


class Normed(nn.Module):
    """BatchNorm with statistics of its own, and a dropout that must stay off when BatchNorm takes its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.net[1].running_mean.copy_(torch.linspace(-0.3, 0.3, 8))
        self.net[1].running_var.copy_(torch.linspace(0.5, 1.5, 8))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def by_hand(model: Normed, direction: np.ndarray, alpha: float, *, how: str) -> float:
    """The loss of a model that was moved, with the statistics that are wanted."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        flat = torch.nn.utils.parameters_to_vector(model.parameters()) + alpha * torch.from_numpy(direction.copy())
        torch.nn.utils.vector_to_parameters(flat, model.parameters())
        norm = model.net[1]
        if how == "recalibrated":
            hidden = [model.net[0](x) for x, _ in DATA]
            shares = torch.tensor(SIZES) / sum(SIZES)
            norm.running_mean.copy_(sum(share * h.mean(0) for share, h in zip(shares, hidden, strict=True)))
            norm.running_var.copy_(sum(share * h.var(0) for share, h in zip(shares, hidden, strict=True)))
        norm.train(how == "batch")
        total = sum(nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in DATA)
    return float(total) / sum(SIZES)


@pytest.mark.parametrize("how", ["stored", "batch", "recalibrated"])
def test_batchnorm_uses_the_statistics_that_are_asked_for_and_says_so(how: str) -> None:
    model = Normed()
    before = copy.deepcopy(model.state_dict())
    problem = Problem(model, nn.CrossEntropyLoss(), DATA)
    found = line(problem, points=3, batchnorm=how)  # type: ignore[arg-type]
    assert found.direction is not None
    expected = [by_hand(model, found.direction, alpha, how=how) for alpha in found.alphas]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-6)  # momentum and running_var go through float32 scalars
    said = {"stored": "stored statistics", "batch": "batch statistics", "recalibrated": "recalibrated at every point"}
    assert found.context["batchnorm"] == said[how]
    assert found.cost.forwards == (6 if how == "recalibrated" else 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(part.training != model.training for part in model.modules())


def test_stored_statistics_are_the_default_to_the_bit_and_order_does_not_matter() -> None:
    problem = Problem(Normed(), nn.CrossEntropyLoss(), DATA)
    default, stored = plane(problem, points=3), plane(problem, points=3, batchnorm="stored")
    np.testing.assert_array_equal(default.losses, stored.losses)
    assert stored.center == problem.loss()
    for how in ("batch", "recalibrated"):
        whole = line(problem, points=5, batchnorm=how)  # type: ignore[arg-type]
        one = line(problem, points=2, span=(0.5, 1.0), batchnorm=how)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.losses, whole.losses[3:])  # nothing is left from the points before


def test_batches_outside_and_points_inside_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the data do not fit into memory."""
    for mode in ("eval", "train"):
        problem = Problem(Normed(), nn.CrossEntropyLoss(), DATA, mode=mode)
        inside = plane(problem, points=3, scalars=("accuracy",), groups="targets")
        monkeypatch.setattr(sweeps._Reader, "_resident", lambda self: None)
        outside = plane(problem, points=3, scalars=("accuracy",), groups="targets")
        monkeypatch.undo()
        assert not differences(inside.replace(cost=outside.cost), outside)


def test_without_writes_of_many_tensors_each_is_written_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BY_NAME["transformer"].problem()
    fast = plane(problem, points=3)
    monkeypatch.delattr(torch, "_foreach_copy_")
    monkeypatch.delattr(torch, "_foreach_add_")
    np.testing.assert_array_equal(plane(problem, points=3).losses, fast.losses)


def test_exploded_points_are_read_no_further_than_their_first_chunk() -> None:
    problem = BY_NAME["mlp"].problem()
    whole = plane(problem, points=5, span=(-8, 8))
    cap = float(np.median(whole.losses))
    found = plane(problem, points=5, span=(-8, 8), cap=cap, scalars=("accuracy",), groups="targets")
    assert found.partial is not None
    assert found.cap == cap
    read = ~found.partial
    np.testing.assert_array_equal(found.losses[read], whole.losses[read])
    np.testing.assert_array_equal(found.stderrs[read], whole.stderrs[read])
    assert np.isnan(found.stderrs[found.partial]).all()
    assert (found.losses[found.partial] > cap).all()
    first = plane(
        BY_NAME["mlp"].problem_of(problem.model, BY_NAME["mlp"].batches()[:1]),
        points=5,
        span=(-8, 8),
        directions=found.directions,  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(found.losses[found.partial], first.losses[found.partial])
    assert np.isnan(found.masked()[found.exploded]).all()
    assert np.isfinite(found.masked()[~found.exploded]).all()
    assert found.cost.forwards < whole.cost.forwards
    assert f"{int((found.losses > cap).sum())} of 25 above the cap" in repr(found)


def test_reduced_precision_states_its_error_and_keeps_the_centre() -> None:
    family = BY_NAME["mlp"]
    data = [(x.float(), y) for x, y in family.batches()]
    model = family.model_and_data()[0].float()
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    exact, low = plane(problem, points=9), plane(problem, points=9, autocast=torch.bfloat16)
    assert low.center == problem.loss()
    np.testing.assert_array_equal(low.losses[3:6, 3:6], exact.losses[3:6, 3:6])
    errors = np.abs(low.losses - exact.losses) / np.ptp(exact.losses)
    assert 0 < low.precision_error < 0.05
    assert 0 < errors.max() < 4 * low.precision_error
    assert low.context["autocast"] == "bfloat16"
    assert exact.precision_error == 0


def test_what_overflows_in_reduced_precision_is_read_without() -> None:
    torch.manual_seed(0)
    data = [(300 * torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(2)]
    problem = Problem(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), nn.CrossEntropyLoss(), data)
    exact, low = (
        line(problem, direction="gaussian", span=(-40, 40), points=31, autocast=each) for each in (None, torch.float16)
    )
    far = exact.losses > 2e5  # of logits beyond the 65,504 of float16
    assert far.sum() > 9
    np.testing.assert_array_equal(low.losses[far], exact.losses[far])
    assert np.isfinite(low.losses).all()


def quartic(sharpness: float) -> Problem:
    """L = s + ½ wᵀHw + gᵀw + Σ w⁴ c, whose derivatives and whose error are known."""

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
            g = torch.tensor([0.3, -0.1], dtype=torch.float64)
            w = self.w
            return 1 + g @ w + 0.5 * w @ H @ w + sharpness * w.pow(4).sum() + 0 * x

    return Problem.from_loss(Bowl(), lambda model, x: model(x).mean(), features((3, 3)))


def test_the_quadratic_model_is_exact_on_a_quadratic() -> None:
    axes = (np.array([1.0, 0]), np.array([0, 1.0]))
    found = plane(quartic(0.0), directions=axes, points=5, quadratic=True)
    model = found.quadratic
    assert model is not None
    np.testing.assert_allclose(model.slopes, [0.3, -0.1], rtol=1e-12)
    np.testing.assert_allclose(model.bends, [[2, 0.5], [0.5, 1]], rtol=1e-12)
    np.testing.assert_allclose(found.center + model.rise(found.alphas, found.betas), found.losses, rtol=1e-12)
    assert model.radius == np.inf
    assert model.disagreement < 1e-8
    assert found.cost.products == 2
    assert plane(quartic(0.0), directions=axes, points=3).quadratic is None


def test_the_radius_is_where_a_quartic_leaves_its_quadratic() -> None:
    """Along the first axis the rise is 0.3 a + a² and what is missing c a⁴: the error over the range is 10 % at one distance."""
    c = 40.0
    found = line(quartic(c), direction=np.array([1.0, 0]), points=5, quadratic=True)
    model = found.quadratic
    assert model is not None
    assert (found.slope, found.bend) == pytest.approx((0.3, 2.0), rel=1e-12)
    a = np.linspace(1e-3, 1, 200_000)
    high, low = 0.3 * a + a**2 + c * a**4, -0.3 * a + a**2 + c * a**4
    width = high - np.minimum.accumulate(np.minimum(low, 0))
    expected = a[np.argmax(c * a**4 / width > 0.1)]
    assert model.radius == pytest.approx(expected, rel=0.1)
    assert not any("self-test" in note for note in found.notes)


def test_a_kink_that_the_hessian_does_not_see_is_a_finding() -> None:
    class Kinked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return 1 + self.w[0].abs() + self.w.square().sum() + 0 * x

    problem = Problem.from_loss(Kinked(), lambda model, x: model(x).mean(), features((3, 3)))
    found = line(problem, direction=np.array([1.0, 0]), points=3, quadratic=True)
    assert found.quadratic is not None
    assert found.quadratic.radius == 0
    assert found.quadratic.disagreement > 0.5
    assert any(note.startswith("self-test: the quadratic model misses") for note in found.notes)


def test_everything_that_is_read_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    problem = Problem(Normed(), nn.CrossEntropyLoss(), DATA)
    options = {
        "points": (5, 3),
        "scalars": ("accuracy", "gradient norm"),
        "groups": "targets",
        "also": {"test": Problem(problem.model, nn.CrossEntropyLoss(), DATA[:2])},
        "batchnorm": "recalibrated",
        "cap": 2.0,
    }

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plane(problem, store=tmp_path, on_point=stop, **options)  # type: ignore[arg-type]
    resumed = plane(problem, store=tmp_path, **options)  # type: ignore[arg-type]
    whole = plane(problem, **options)  # type: ignore[arg-type]
    assert not differences(resumed.replace(cost=whole.cost), whole)
    other = plane(problem, store=tmp_path, **{**options, "cap": 3.0})  # type: ignore[arg-type]
    assert other.partial is None or whole.partial is None or (other.partial != whole.partial).any()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checker of the tests
    problem = Problem(Normed(), nn.CrossEntropyLoss(), DATA)
    with pytest.raises(ProblemError, match=r"among stored, batch, recalibrated or None, found 'live'"):
        line(problem, batchnorm="live")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"microbatch=None for batchnorm='batch', found microbatch=4"):
        line(problem.replace(microbatch=4), batchnorm="batch")
    with pytest.raises(ProblemError, match=r"statistics of the problem, stored statistics.*batchnorm='batch'"):
        line(problem, batchnorm="batch", quadratic=True)
    for survey in (line, plane):
        with pytest.raises(ProblemError, match=r"Expected eigenvalues=3 with .* stored statistics.*batchnorm='batch'"):
            survey(problem, batchnorm="batch", eigenvalues=3)
    bare = Problem(
        nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)).double(),
        nn.CrossEntropyLoss(),
        DATA,
    )
    with pytest.raises(ProblemError, match=r"batchnorm='recalibrated', found track_running_stats=False"):
        line(bare, batchnorm="recalibrated")
