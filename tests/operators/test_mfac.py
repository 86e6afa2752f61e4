"""M-FAC equals the dense damped inverse of its window at every moment of a long run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.operators.mfac import MFAC, rank_one_update

EXACT = 1e-10


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def stream(count: int, n: int, *, seed: int = 0) -> Tensor:
    """Gradients that share a large mean, as those of training do, so that the Gram matrix is ill-conditioned."""
    g = torch.Generator().manual_seed(seed)
    return 3.0 + torch.randn(count, n, generator=g, dtype=torch.float64)


def damped(rows: Tensor, *, window: int, damping: float) -> Tensor:
    return damping * torch.eye(rows.shape[1], dtype=torch.float64) + rows.T @ rows / window


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("window", [1, 4, 30])
def test_equals_the_dense_inverse_while_the_window_slides(window: int, damping: float) -> None:
    n, rows = 20, stream(70, 20)
    inverse = MFAC(n, window=window, damping=damping, dtype=torch.float64)
    assert relative(inverse.dense(), torch.eye(n, dtype=torch.float64) / damping) < EXACT
    for count, row in enumerate(rows, start=1):
        inverse.add(row)
        held = rows[max(0, count - window) : count]
        assert torch.equal(inverse.gradients, held)
        if count in (1, 3, window, window + 1, 70):
            dense = damped(held, window=window, damping=damping)
            # Woodbury divides what is left of a difference by λ: rounding grows with the condition ‖F‖/λ.
            rounding = 1e-15 * float(torch.linalg.matrix_norm(dense, 2)) / damping
            assert relative(inverse.dense(), torch.linalg.inv(dense)) < max(EXACT, rounding)
            assert inverse.logdet() == pytest.approx(float(torch.logdet(dense)), rel=1e-9, abs=n * rounding)


def test_the_factor_does_not_drift_over_a_thousand_gradients() -> None:
    inverse, rows = MFAC(15, window=40, damping=1e-4, dtype=torch.float64), stream(1000, 15)
    for row in rows:
        inverse.add(row)
    fresh = MFAC(15, window=40, damping=1e-4, dtype=torch.float64)
    for row in rows[-40:]:
        fresh.add(row)
    v = torch.randn(15, dtype=torch.float64)
    dense = damped(rows[-40:], window=40, damping=1e-4)
    assert relative(dense @ (inverse @ v), v) < 1e-8
    assert relative(inverse @ v, fresh @ v) < 1e-8


def test_adding_and_removing_are_inverse() -> None:
    inverse, rows = MFAC(8, window=5, damping=0.1, dtype=torch.float64), stream(5, 8)
    for row in rows[:3]:
        inverse.add(row)
    for expected in (rows[1:3], rows[2:3]):
        inverse.remove()
        assert relative(inverse.dense(), torch.linalg.inv(damped(expected, window=5, damping=0.1))) < EXACT
    inverse.remove()
    assert inverse.held == 0
    assert relative(inverse.dense(), torch.eye(8, dtype=torch.float64) / 0.1) < EXACT


def test_repeated_and_zero_gradients_keep_the_factor_positive() -> None:
    inverse = MFAC(6, window=4, damping=1e-9, dtype=torch.float64)
    row = stream(1, 6)[0]
    for gradient in (row, row, torch.zeros_like(row), row):
        inverse.add(gradient)
    solved = inverse @ row
    # All four lie on one line: (λ + 3/4 ‖g‖²)⁻¹ g.
    assert relative(solved, row / (1e-9 + 0.75 * row @ row)) < 1e-5


def test_single_precision_keeps_the_accuracy_of_its_gradients() -> None:
    rows = stream(12, 30).float()
    inverse = MFAC(30, window=12, damping=1e-4)
    for row in rows:
        inverse.add(row)
    v = torch.randn(30)
    expected = torch.linalg.solve(damped(rows.double(), window=12, damping=1e-4), v.double())
    assert relative((inverse @ v).double(), expected) < 1e-6


def test_is_the_woodbury_identity() -> None:
    rows, window, damping = stream(7, 9), 7, 0.3
    inverse = MFAC(9, window=window, damping=damping, dtype=torch.float64)
    for row in rows:
        inverse.add(row)
    small = torch.linalg.inv(window * damping * torch.eye(7, dtype=torch.float64) + rows @ rows.T)
    expected = (torch.eye(9, dtype=torch.float64) - rows.T @ small @ rows) / damping
    assert relative(inverse.dense(), expected) < EXACT


def test_rank_one_update_equals_a_new_factorisation() -> None:
    for size in (0, 1, 2, 50):
        root = torch.randn(size, size + 1, dtype=torch.float64)
        A = root @ root.T + 1e-6 * torch.eye(size, dtype=torch.float64)
        x = 100 * torch.randn(size, dtype=torch.float64)
        found = rank_one_update(torch.linalg.cholesky(A), x)
        assert torch.allclose(found @ found.T, A + torch.outer(x, x), rtol=0, atol=1e-12 * float(1 + (x @ x)))
        assert torch.equal(found, found.tril())
        assert bool((found.diagonal() > 0).all())


def test_refusals_show_the_scene() -> None:
    with pytest.raises(OperatorError, match=r"positive damping, found 0\.0: 3 gradients span no more than 3 of 5"):
        MFAC(5, window=3, damping=0.0)
    with pytest.raises(OperatorError, match="at least one gradient, found 0"):
        MFAC(5, window=0, damping=1.0)
    inverse = MFAC(5, window=3, damping=1.0)
    with pytest.raises(OperatorError, match="found it empty"):
        inverse.remove()
    with pytest.raises(OperatorError, match=r"multiplies torch\.float32, found torch\.float64"):
        inverse.add(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(OperatorError, match=r"shape \(5,\), found \(5, 2\)"):
        inverse.add(torch.zeros(5, 2))
    inverse.add(torch.ones(5))
    before = inverse.dense()
    with pytest.raises(NonFiniteError, match="1 of 5 entries that are NaN"):
        inverse.add(torch.tensor([1.0, float("nan"), 0.0, 0.0, 0.0]))
    assert torch.equal(inverse.dense(), before)
