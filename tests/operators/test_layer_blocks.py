"""Layer blocks are the diagonal blocks of the whole, and operators of problems restrict to subspaces as matrices do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import BY_NAME
from operators.plain import relative
from theodolite.errors import OperatorError
from theodolite.linalg import lanczos
from theodolite.operators import GGN, Fisher, GradientCovariance, Hessian, Jacobian, LayerBlocks

EXACT = 1e-10
operators = pytest.mark.parametrize("operator", [Hessian, GGN, Fisher, GradientCovariance])


@operators
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_blocks_equal_those_of_the_dense_operator(name: str, operator: Any) -> None:
    A = operator(BY_NAME[name].problem())
    dense = A.dense()
    expected = torch.zeros_like(dense)
    for where in A.problem.layout.layer_slices.values():
        expected[where, where] = dense[where, where]
    blocks = LayerBlocks(A)
    before = A.products
    assert relative(blocks @ torch.ones(A.shape[1], dtype=torch.float64), expected.sum(1)) < EXACT
    assert A.products - before == len(blocks.blocks)  # as many products as layers, and it says so
    V = torch.randn(A.shape[1], 2, dtype=torch.float64)
    assert relative(blocks @ V, expected @ V) < EXACT


def test_blocks_of_ones_own_choice() -> None:
    H = Hessian(BY_NAME["mlp"].problem())
    dense = H.dense()
    found = LayerBlocks(H, blocks={"first": slice(None, 10), "last": slice(70, None)}).dense()
    expected = torch.zeros_like(dense)
    expected[:10, :10], expected[70:, 70:] = dense[:10, :10], dense[70:, 70:]
    assert relative(found, expected) < EXACT
    one = LayerBlocks(H, blocks={f"p{index}": slice(index, index + 1) for index in range(79)})
    assert relative(one @ torch.ones(79, dtype=torch.float64), dense.diagonal()) < EXACT


def test_a_block_of_its_own_is_cheaper_and_the_same() -> None:
    H = Hessian(BY_NAME["mlp"].problem())
    blocks = LayerBlocks(H).dense()
    for layer, where in H.problem.layout.layer_slices.items():
        assert relative(H.block(f"{layer}.*").dense(), blocks[where, where]) < EXACT


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a": slice(0, 5), "b": slice(4, 8)}, "found 'a' and 'b' sharing parameters"),
        ({"a": slice(5, 5)}, "slices with parameters, found 'a'"),
        ({"a": slice(0, 8, 2)}, "slices with parameters, found 'a'"),
    ],
)
def test_blocks_that_are_none_are_refused(blocks: dict[str, slice], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        LayerBlocks(Hessian(BY_NAME["mlp"].problem()), blocks=blocks)


def test_blocks_of_what_is_not_square_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"operator on the parameters, found <Jacobian: 51×79"):
        LayerBlocks(Jacobian(BY_NAME["mlp"].problem()))


@operators
def test_operators_of_problems_restrict_to_subspaces(operator: Any) -> None:
    A = operator(BY_NAME["mlp"].problem())
    dense = A.dense()
    index = torch.randperm(79)[:20]
    assert relative(A.restrict(index).dense(), dense[index][:, index]) < EXACT
    assert relative(A.restrict(slice(5, 30)).dense(), dense[5:30, 5:30]) < EXACT
    Q = torch.linalg.qr(torch.randn(79, 6, dtype=torch.float64)).Q.T.contiguous()
    restricted = A.restrict(Q)
    assert relative(restricted.dense(), Q @ dense @ Q.T) < EXACT
    # The Rayleigh–Ritz values of a subspace lie between the ends of the spectrum.
    top = float(lanczos(restricted, k=1, tol=1e-8).values[0])
    assert top == pytest.approx(float(torch.linalg.eigvalsh(Q @ dense @ Q.T)[-1]), rel=1e-9)
    assert top <= float(torch.linalg.eigvalsh(dense)[-1])
