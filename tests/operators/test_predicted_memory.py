"""A batch too large for memory is cut where that changes nothing, and refused before it is tried where it cannot be."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import theodolite.operators.problem_operator as problem_operator
from operators.plain import relative
from theodolite.errors import ProblemError
from theodolite.operators import GGN, GradientCovariance, Hessian, InputHessian, Jacobian
from theodolite.problem import Problem, memory


def net(*, coupled: bool = False) -> nn.Module:
    middle = nn.BatchNorm1d(8) if coupled else nn.Dropout(0.5)
    return nn.Sequential(nn.Linear(5, 8), middle, nn.Tanh(), nn.Linear(8, 3)).double()


def problem(**options: Any) -> Problem:
    model = net(coupled=options.pop("coupled", False))
    data = [(torch.randn(size, 5, dtype=torch.float64), torch.randint(3, (size,))) for size in (24, 9)]
    return Problem(model, nn.CrossEntropyLoss(), data, **options)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the free memory to what so many samples take."""

    def set_room(samples: float, each: float) -> None:
        free = int(samples * each * problem_operator.PEAK / problem_operator.FREE) + 1
        monkeypatch.setattr(problem_operator, "free_memory", lambda device: free)
        monkeypatch.setattr(memory, "free_memory", lambda device: free)

    return set_room


def bytes_of_a_sample(A: Any) -> float:
    A @ torch.ones(A.shape[0], dtype=torch.float64)
    return float(A._graph_bytes)


@pytest.mark.parametrize("operator", [Hessian, GGN, GradientCovariance])
def test_a_batch_that_would_not_fit_is_cut(operator: type, room: Any) -> None:
    found = problem()
    whole = operator(found)
    v = torch.randn(found.n, dtype=torch.float64)
    expected, each = whole @ v, bytes_of_a_sample(whole)
    assert whole.chunks == 2
    room(10, each)
    cut = operator(found)
    assert relative(cut @ v, expected) < 1e-12
    assert cut.chunks == 4  # 10 + 10 + 4 and 9
    assert relative(cut @ v, expected) < 1e-12


def test_rows_and_columns_of_samples_follow_the_pieces(room: Any) -> None:
    """Stacked operators have their rows where the data has its samples, however a batch is cut."""
    found = problem()
    whole = Jacobian(found)
    v, u = torch.randn(found.n, dtype=torch.float64), torch.randn(whole.shape[0], 2, dtype=torch.float64)
    expected, pulled = whole @ v, whole.T @ u
    room(10, float(whole._graph_bytes or 0.0))
    cut = Jacobian(found)
    assert relative(cut @ v, expected) < 1e-12
    assert relative(cut.T @ u, pulled) < 1e-12
    assert cut.chunks == 4

    room(10_000, 1e3)
    in_inputs = InputHessian(found)
    V = torch.randn(in_inputs.shape[0], 2, dtype=torch.float64)
    expected = in_inputs @ V
    room(10, float(in_inputs._graph_bytes or 0.0))
    cut_inputs = InputHessian(found)
    assert relative(cut_inputs @ V, expected) < 1e-12
    assert cut_inputs.chunks == 4


def test_leaving_out_the_pieces_of_a_cut_batch_is_leaving_out_batches(room: Any) -> None:
    """The centred covariance takes quadratic forms and mean gradients on the same pieces."""
    found = problem()
    each = bytes_of_a_sample(GradientCovariance(found))
    batches = [
        (x[start : start + 10], y[start : start + 10]) for x, y in found.batches for start in range(0, len(x), 10)
    ]
    V = torch.randn(found.n, 2, dtype=torch.float64)
    expected = GradientCovariance(Problem(found.model, nn.CrossEntropyLoss(), batches), centered=True).by_chunk(V)
    room(10, each)
    cut = GradientCovariance(found, centered=True).by_chunk(V)
    assert cut[2].tolist() == [10.0, 10.0, 4.0, 9.0]
    for mine, theirs in zip(cut, expected, strict=True):
        assert relative(mine, theirs) < 1e-12


@pytest.mark.parametrize(
    "options", [{"mode": "train"}, {"mode": "train", "coupled": True}], ids=["dropout", "BatchNorm"]
)
def test_a_batch_that_would_not_fit_and_may_not_be_cut_is_refused(options: dict[str, Any], room: Any) -> None:
    found = problem(**options)
    each = bytes_of_a_sample(Hessian(found))
    room(10, each)
    with pytest.raises(
        ProblemError, match=r"graph of 24 samples to fit into memory, found .* GiB needed .* free on cpu"
    ) as e:
        Hessian(found) @ torch.ones(found.n, dtype=torch.float64)
    needed = re.search(r"found ([0-9.e-]+) GiB needed", str(e.value))
    assert needed is not None
    assert float(needed[1]) == pytest.approx(24 * problem_operator.PEAK * each / 2**30, rel=1e-2)
    room(24, each)
    assert (Hessian(found) @ torch.ones(found.n, dtype=torch.float64)).isfinite().all()


def test_a_sample_that_would_not_fit_is_refused(room: Any) -> None:
    found = problem()
    room(0.5, bytes_of_a_sample(Hessian(found)))
    with pytest.raises(ProblemError, match=r"run out of memory. Survey fewer parameters \(params=\)"):
        Hessian(found) @ torch.ones(found.n, dtype=torch.float64)
