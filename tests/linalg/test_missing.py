"""Missed copies of repeated eigenvalues are noticed, and nothing is noticed where nothing is missing."""

from __future__ import annotations

import pytest
import torch

from theodolite.linalg import Deflated, Dense, lanczos, misses_eigenvalues


def spectrum_of(values: torch.Tensor, *, seed: int) -> Dense:
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed)).double())[
        0
    ]
    return Dense(Q @ torch.diag(values.double()) @ Q.T, symmetric=True)


def kronecker(low: float, high: float) -> Dense:
    """I ⊗ A, as the Hessian of the squared error of a linear layer with three outputs, separated at the outer ends."""
    A = spectrum_of(torch.linspace(low, high, 40) ** 3, seed=1).dense()
    return Dense(torch.kron(torch.eye(3, dtype=torch.float64), A), symmetric=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("which", "low", "high"),
    [("largest", 0.3, 3), ("smallest", -3, -0.3), ("both", -3, 3), ("largest", -2, 3), ("smallest", -3, 2)],
)
def test_missed_copies_are_noticed(seed: int, which: str, low: float, high: float) -> None:
    A = kronecker(low, high)
    found = lanczos(A, k=6, which=which, seed=seed)
    exact = torch.linalg.eigvalsh(A.dense()).flip(0)
    expected = {"largest": exact[:6], "smallest": exact[-6:], "both": torch.cat([exact[:3], exact[-3:]])}[which]
    wrong = not torch.allclose(found.values, expected, rtol=1e-4)
    assert misses_eigenvalues(A, found, which=which, seed=seed) == wrong


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_right_pairs_raise_no_alarm(seed: int, which: str) -> None:
    A = spectrum_of(torch.cat([torch.linspace(-1, 1, 60), torch.tensor([4.0, 6.0, 9.0, -3.0])]), seed=seed)
    found = lanczos(A, k=4, which=which, tol=1e-8, seed=seed)
    assert not misses_eigenvalues(A, found, which=which, seed=seed)
    warm = lanczos(A, k=4, which=which, tol=1e-3, seed=seed, start=found.vectors)
    assert not misses_eigenvalues(A, warm, which=which, seed=seed)


def test_deflated_moves_known_eigenvalues_and_nothing_else() -> None:
    A = spectrum_of(torch.arange(1.0, 9.0), seed=3)
    found = lanczos(A, k=2, tol=1e-12)
    moved = torch.linalg.eigvalsh(Deflated(A, found.values, found.vectors, to=3.5).dense())
    torch.testing.assert_close(moved, torch.tensor([1, 2, 3, 3.5, 3.5, 4, 5, 6], dtype=torch.float64))


def test_nothing_is_left_to_miss_in_a_whole_spectrum() -> None:
    A = spectrum_of(torch.arange(1.0, 4.0), seed=3)
    assert not misses_eigenvalues(A, lanczos(A, k=3), which="largest")
