"""Kronecker products, rotated diagonals and blocks equal their dense matrices, and so do their functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg.blocks import BlockDiagonal
from theodolite.linalg.kronecker import Kronecker, RotatedDiagonal

EXACT = 1e-12


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def positive(n: int, *, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n + 2, generator=g, dtype=torch.float64)
    return root @ root.T / n


def rotated(p: int, r: int, *, seed: int = 0) -> RotatedDiagonal:
    """Eigenvalues that are no outer product, so that it is no Kronecker product."""
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(p, r, generator=g, dtype=torch.float64) + 0.1
    U, V = (torch.linalg.eigh(positive(size, seed=seed + size)).eigenvectors for size in (p, r))
    return RotatedDiagonal(values, left=U, right=V)


@pytest.mark.parametrize("shapes", [((3, 3), (4, 4)), ((2, 5), (4, 3)), ((1, 1), (3, 3)), ((4, 2), (1, 1))])
def test_product_is_that_of_the_dense_kronecker_product(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    left, right = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    A = Kronecker(left, right)
    assert relative(A.dense(), torch.kron(left, right)) < EXACT
    assert not A.symmetric or shapes[0] == (1, 1)


def test_a_product_multiplies_a_weight_matrix_from_both_sides() -> None:
    A, B, X = positive(3, seed=1), positive(4, seed=2), torch.randn(3, 4, dtype=torch.float64)
    assert relative(Kronecker(A, B) @ X.reshape(-1), (A @ X @ B.T).reshape(-1)) < EXACT


def test_functions_of_a_kronecker_product_equal_the_dense_ones() -> None:
    A = Kronecker(positive(3, seed=1), positive(4, seed=2))
    dense = torch.kron(A.left, A.right)
    eye = torch.eye(12, dtype=torch.float64)
    D = A.diagonalise()
    assert A.symmetric
    assert A.trace() == pytest.approx(float(dense.trace()), rel=EXACT)
    assert relative(D.dense(), dense) < EXACT
    assert relative(D.eigenvalues(), torch.linalg.eigvalsh(dense)) < EXACT
    assert relative(D.diagonal(), dense.diagonal()) < EXACT
    assert relative(D.inverse(damping=0.3).dense(), torch.linalg.inv(dense + 0.3 * eye)) < EXACT
    assert D.logdet(damping=0.3) == pytest.approx(float(torch.logdet(dense + 0.3 * eye)), rel=1e-12)
    assert D.trace() == pytest.approx(float(dense.trace()), rel=EXACT)
    root = D.power(0.5).dense()
    assert relative(root @ root, dense) < EXACT


@pytest.mark.parametrize("D", [rotated(3, 4), rotated(1, 5), RotatedDiagonal(rotated(2, 3).values)])
def test_functions_of_a_rotated_diagonal_equal_the_dense_ones(D: RotatedDiagonal) -> None:
    dense, n = D.dense(), D.shape[0]
    eye = torch.eye(n, dtype=torch.float64)
    U = torch.eye(D.values.shape[0], dtype=torch.float64) if D.left is None else D.left
    V = torch.eye(D.values.shape[1], dtype=torch.float64) if D.right is None else D.right
    W = torch.kron(U, V)
    assert relative(dense, W @ torch.diag(D.values.reshape(-1)) @ W.T) < EXACT
    assert relative(D.diagonal(), dense.diagonal()) < EXACT
    assert relative(
        D.power(-0.5, damping=0.1).dense() @ D.power(-0.5, damping=0.1).dense() @ (dense + 0.1 * eye), eye
    ) < (EXACT * 10)
    assert D.logdet() == pytest.approx(float(torch.logdet(dense)), rel=1e-11)


def test_blocks_lie_where_their_indices_say() -> None:
    blocks = [rotated(2, 3), RotatedDiagonal(rotated(4, 1).values)]
    order = torch.randperm(10)
    A = BlockDiagonal(blocks, indices=[order[:6], order[6:]])
    dense = torch.zeros(10, 10, dtype=torch.float64)
    dense[order[:6, None], order[:6]] = blocks[0].dense()
    dense[order[6:, None], order[6:]] = blocks[1].dense()
    eye = torch.eye(10, dtype=torch.float64)
    assert relative(A.dense(), dense) < EXACT
    assert relative(A.diagonal(), dense.diagonal()) < EXACT
    assert relative(A.eigenvalues(), torch.linalg.eigvalsh(dense)) < EXACT
    assert relative(A.inverse(damping=0.2).dense(), torch.linalg.inv(dense + 0.2 * eye)) < EXACT
    assert A.logdet(damping=0.2) == pytest.approx(float(torch.logdet(dense + 0.2 * eye)), rel=1e-11)
    assert A.trace() == pytest.approx(float(dense.trace()), rel=EXACT)
    assert relative(A.power(2.0).dense(), dense @ dense) < EXACT


def test_refusals_show_the_scene() -> None:
    values = rotated(2, 3).values
    with pytest.raises(OperatorError, match=r"smallest eigenvalue -1 with damping=0\. Raise damping"):
        RotatedDiagonal(torch.tensor([[-1.0, 2.0]])).inverse()
    with pytest.raises(OperatorError, match=r"rotations of the sizes 2 and 3, found one of shape \(2, 2\)"):
        RotatedDiagonal(values, right=torch.eye(2, dtype=torch.float64))
    with pytest.raises(OperatorError, match="does not claim to be"):
        Kronecker(torch.randn(2, 2), torch.eye(3)).diagonalise()
    with pytest.raises(OperatorError, match="Only square factors"):
        Kronecker(torch.randn(2, 3), torch.eye(3)).trace()
    with pytest.raises(OperatorError, match="one dtype on one device"):
        Kronecker(torch.eye(2), torch.eye(3, dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="1 of 4 are NaN"):
        Kronecker(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.eye(3))
    with pytest.raises(OperatorError, match=r"should be 0 … 5, each once"):
        BlockDiagonal([rotated(2, 3)], indices=[torch.tensor([0, 1, 2, 3, 4, 4])])
    with pytest.raises(OperatorError, match="as many rows as indices"):
        BlockDiagonal([rotated(2, 3)], indices=[torch.arange(5)])
    with pytest.raises(OperatorError, match="1 blocks and 0 sets"):
        BlockDiagonal([rotated(2, 3)], indices=[])
