from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import theodolite.linalg
from linalg.matrices import vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Congruence, Dense, Diagonal, Identity, LinearOperator

SIZE = 6
NUMBERS = st.floats(-3, 3, allow_nan=False).filter(lambda c: abs(c) > 1e-2)
SEEDS = st.integers(0, 2**16)


def leaf(seed: int, kind: str) -> tuple[LinearOperator, Tensor]:
    matrix = vector(SIZE, columns=SIZE, seed=seed)
    if kind == "symmetric":
        matrix = matrix + matrix.T
    if kind == "diagonal":
        return Diagonal(matrix[0]), torch.diag(matrix[0])
    if kind == "identity":
        return Identity(SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)
    return Dense(matrix), matrix


LEAVES = st.builds(leaf, SEEDS, st.sampled_from(["general", "symmetric", "diagonal", "identity"]))


def grow(
    children: st.SearchStrategy[tuple[LinearOperator, Tensor]],
) -> st.SearchStrategy[tuple[LinearOperator, Tensor]]:
    """Every operation of the algebra, beside the same operation on matrices."""
    pairs = st.tuples(children, children)
    diagonal = SEEDS.map(lambda seed: vector(SIZE, seed=seed))
    basis = SEEDS.map(lambda seed: torch.linalg.qr(vector(SIZE, columns=SIZE, seed=seed)).Q.T.contiguous())
    indices = st.permutations(range(SIZE)).map(torch.tensor)
    return st.one_of(
        pairs.map(lambda ab: (ab[0][0] + ab[1][0], ab[0][1] + ab[1][1])),
        pairs.map(lambda ab: (ab[0][0] - ab[1][0], ab[0][1] - ab[1][1])),
        pairs.map(lambda ab: (ab[0][0] @ ab[1][0], ab[0][1] @ ab[1][1])),
        st.builds(lambda a, c: (c * a[0], c * a[1]), children, NUMBERS),
        st.builds(lambda a, c: (a[0] / c, a[1] / c), children, NUMBERS),
        children.map(lambda a: (-a[0], -a[1])),
        st.builds(lambda a, c: (a[0].shift(c), a[1] + c * torch.eye(SIZE, dtype=torch.float64)), children, NUMBERS),
        st.builds(lambda a, d: (Congruence(a[0], d), d[:, None] * a[1] * d), children, diagonal),
        st.builds(lambda a, Q: (a[0].restrict(Q), Q @ a[1] @ Q.T), children, basis),
        st.builds(lambda a, i: (a[0].restrict(i), a[1][i][:, i]), children, indices),
    )


@settings(max_examples=150, deadline=None)
@given(pair=st.recursive(LEAVES, grow, max_leaves=5), seed=SEEDS)
def test_the_algebra_is_that_of_matrices(pair: tuple[LinearOperator, Tensor], seed: int) -> None:
    operator, matrix = pair
    tolerance = 1e-12 * max(1.0, float(matrix.abs().max())) * 100
    V = vector(SIZE, columns=3, seed=seed)
    torch.testing.assert_close(operator.dense(), matrix, atol=tolerance, rtol=1e-10)
    torch.testing.assert_close(operator @ V, matrix @ V, atol=tolerance, rtol=1e-10)
    torch.testing.assert_close(operator @ V[:, 0], (operator @ V)[:, 0], atol=tolerance, rtol=1e-10)
    if operator.symmetric:
        torch.testing.assert_close(matrix, matrix.T, atol=tolerance, rtol=1e-10)


def test_symmetry_is_claimed_where_it_follows() -> None:
    A, B, D = with_spectrum([1, 2, 3]), Dense(vector(3, columns=3)), Diagonal(vector(3))
    claimed = [A, A + D, 2 * A, -A, A / 3, A.shift(1), A.restrict(slice(2)), Congruence(A, D.entries), A - D]
    assert [operator.symmetric for operator in claimed] == [True] * len(claimed)
    assert [operator.symmetric for operator in (B, A + B, A @ D, B.restrict(slice(2)))] == [False] * 4


def test_oblong_operators_multiply() -> None:
    tall, wide = Dense(vector(5, columns=2)), Dense(vector(2, columns=5))
    assert (tall @ wide).shape == (5, 5)
    torch.testing.assert_close((wide @ tall).dense(), wide.matrix @ tall.matrix)
    assert (tall @ vector(2)).shape == (5,)


@pytest.mark.parametrize(
    "index",
    [slice(1, 4), torch.tensor([3, 1, 2]), torch.tensor([False, True, True, True, False])],
    ids=["slice", "indices", "mask"],
)
def test_restriction_is_the_principal_submatrix(index: slice | Tensor) -> None:
    A = with_spectrum([1, 2, 3, 4, 5])
    torch.testing.assert_close(A.restrict(index).dense(), A.matrix[index][:, index])


def test_the_representation_shows_the_structure() -> None:
    A = with_spectrum([1, 2, 3])
    assert repr(A) == "<Dense: 3×3, float64, cpu, symmetric>"
    assert repr(0.5 * A - 2 * A.restrict(slice(0, 3))) == (
        "<0.5·Dense - 2·Dense[3 of 3]: 3×3, float64, cpu, symmetric>"
    )
    assert repr(-(A.shift(0.1)) @ A) == "<(-(Dense + 0.1·Identity))·Dense: 3×3, float64, cpu>"
    assert repr(Congruence(A + A, torch.ones(3, dtype=torch.float64))).startswith("<D·(Dense + Dense)·D: 3×3")


def test_numpy_numbers_scale() -> None:
    A = with_spectrum([1, 2, 3])
    torch.testing.assert_close((np.float64(2) * A).dense(), 2 * A.matrix)
    torch.testing.assert_close((A / np.float64(2)).dense(), A.matrix / 2)


def test_dense_in_several_blocks_of_columns() -> None:
    matrix = vector(3, columns=600)
    torch.testing.assert_close(Dense(matrix).dense(), matrix)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_operators(size: int) -> None:
    A = Identity(size, dtype=torch.float64)
    torch.testing.assert_close((2 * A).dense(), 2 * torch.eye(size, dtype=torch.float64))


A3 = Dense(torch.eye(3, dtype=torch.float64))
REFUSED = {
    r"multiplies vectors of shape \(3,\) or blocks of shape \(3, k\), found \(2,\)": lambda: A3 @ vector(2),
    r"found \(2, 3\)\. Transpose it: vectors are columns here": lambda: A3 @ vector(2, columns=3),
    r"found \(3, 1, 1\)": lambda: A3 @ vector(3)[:, None, None],
    r"multiplies torch.float64, found torch.float32. Convert with \.to\(torch.float64\)": lambda: A3 @ torch.ones(3),
    "lives on cpu, the vector on meta. Move one": lambda: A3 @ torch.ones(3, dtype=torch.float64, device="meta"),
    "sum needs equal shapes, found <Dense: 3×3": lambda: A3 + Identity(2, dtype=torch.float64),
    "one dtype on one device, found <Dense: 3×3, float64.* <Identity: 3×3, float32": lambda: A3 + Identity(3),
    "as many columns on the left as rows on the right": lambda: A3 @ Identity(2, dtype=torch.float64),
    "was divided by zero": lambda: A3 / 0,
    "multiplied by nan; expected a finite number": lambda: float("nan") * A3,
    "takes 72 bytes and 3 products, and dense.. was asked to stop at size 2. Pass max_size=3": lambda: A3.dense(
        max_size=2
    ),
    r"one or more indices in 0\.\.2, found 2 indices from 1 to 3": lambda: A3.restrict(torch.tensor([1, 3])),
    r"in 0\.\.2, found indices of shape \(0,\)": lambda: A3.restrict(slice(2, 2)),
    "found repeats in 2 indices from 1 to 1": lambda: A3.restrict(torch.tensor([1, 1])),
    r"mask on .* has the shape \(3,\), found \(2,\)": lambda: A3.restrict(torch.tensor([True, False])),
    r"basis of shape \(k, 3\), one vector a row.*found \(3, 1\)": lambda: A3.restrict(vector(3)[:, None]),
    "D·A·D needs .* 2 entries": lambda: Congruence(A3, vector(2)),
    "Only a square operator can be shifted, found <Dense: 2×3": lambda: Dense(vector(2, columns=3)).shift(1.0),
    "Only a square operator has principal": lambda: Dense(vector(2, columns=3)).restrict(slice(1)),
    "symmetric operator is square, found the shape 2×3": lambda: Dense(vector(2, columns=3), symmetric=True),
    "at least one row and one column, found the shape 0×0": lambda: Identity(0),
    "real floating-point dtype, found torch.int64": lambda: Identity(2, dtype=torch.int64),
}


@pytest.mark.parametrize("message", REFUSED)
def test_misfits_are_refused_with_the_scene(message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        REFUSED[message]()


def test_non_finite_vectors_are_refused_with_the_place() -> None:
    V = torch.ones(3, 2, dtype=torch.float64)
    V[1, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"1 of 6 entries, the first at \(1, 1\) is inf"):
        A3 @ V
    with pytest.raises(NonFiniteError, match="Diagonal needs finite entries, 1 of 2"):
        Diagonal(torch.tensor([1.0, torch.nan]))


def test_other_operands_are_left_to_python() -> None:
    for operation in (lambda: A3 @ 2, lambda: A3 + 2, lambda: A3 - 2, lambda: A3 * "2", lambda: A3 / "2"):
        with pytest.raises(TypeError, match=r"unsupported operand|violates type hint|Type-check error"):
            operation()


def test_a_wrong_product_of_a_subclass_is_caught() -> None:
    class Lazy(LinearOperator):
        def _matmat(self, V: Tensor) -> Tensor:
            return V[:-1]

    lazy = Lazy(shape=(3, 3), dtype=torch.float64, device="cpu")
    with pytest.raises(OperatorError, match=r"should return \(3, 1\) of torch.float64, it returned \(2, 1\)"):
        lazy @ vector(3)


def test_the_public_names() -> None:
    assert theodolite.linalg.__all__ == [
        "BlockDiagonal",
        "Compression",
        "Congruence",
        "Decomposition",
        "Deflated",
        "Dense",
        "Diagonal",
        "DiagonalEstimate",
        "Eigenpairs",
        "FunctionProduct",
        "Identity",
        "Integral",
        "Inverse",
        "Kronecker",
        "LinearOperator",
        "Product",
        "Quadrature",
        "RotatedDiagonal",
        "Scaled",
        "Sharded",
        "Share",
        "Solution",
        "SpectralPreconditioner",
        "Submatrix",
        "Sum",
        "TraceEstimate",
        "block_lanczos",
        "cg",
        "cumulative",
        "decompose",
        "deflating",
        "diagonal",
        "funm_multiply",
        "hutchinson",
        "hutchpp",
        "integrate",
        "lanczos",
        "mass",
        "minres",
        "misses_eigenvalues",
        "nystrom",
        "slq",
        "xdiag",
        "xnystrace",
        "xtrace",
    ]
