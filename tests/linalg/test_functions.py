from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from linalg.matrices import SPECTRA, Counted, Explodes, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, Identity, funm_multiply

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse root": torch.rsqrt,
    "exponential": torch.exp,
    "logarithm": torch.log,
    "root": torch.sqrt,
    "inverse": torch.reciprocal,
}
POSITIVE = {
    "geometric": 0.9 ** np.arange(120) + 1e-3,
    "linear": np.linspace(0.01, 3, 300),
    "outliers": np.concatenate(
        [7.2 * 0.8 ** np.arange(20), 0.01 * np.random.default_rng(0).exponential(size=280) + 1e-3]
    ),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_exponential_equals_the_dense_one(name: str) -> None:
    A = with_spectrum(np.minimum(SPECTRA[name], 5))
    v = vector(A.shape[0])
    found = funm_multiply(A, v, torch.exp, tol=1e-10)
    np.testing.assert_allclose(found.x, scipy.linalg.expm(A.matrix.numpy()) @ v.numpy(), rtol=0, atol=1e-8 * 150)
    assert found.converged


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", POSITIVE)
def test_errors_are_no_larger_than_stated(name: str, function: str) -> None:
    A, f = Diagonal(torch.from_numpy(POSITIVE[name])), FUNCTIONS[function]
    ratios = []
    for seed in range(4):
        v = vector(A.shape[0], seed=seed)
        for tol in (1e-2, 1e-5):
            found, exact = funm_multiply(A, v, f, tol=tol), f(A.entries) * v
            assert found.converged
            assert found.error <= tol
            ratios.append(float((found.x - exact).norm() / exact.norm()) / found.error)
    assert np.median(ratios) < 0.6
    assert max(ratios) < 2


def test_powers_compose() -> None:
    A, v = with_spectrum(POSITIVE["linear"]), vector(300)
    half = funm_multiply(A, v, torch.rsqrt, tol=1e-10)
    again = funm_multiply(A, half.x, torch.rsqrt, tol=1e-10)
    torch.testing.assert_close(A @ again.x, v, atol=1e-7, rtol=0)


def test_products_are_counted_and_a_closed_space_is_exact() -> None:
    A = Counted(with_spectrum(SPECTRA["low rank"]))
    found = funm_multiply(A, vector(100), torch.cos)
    assert found.products == A.products == 4
    assert 0 < found.error < 1e-14
    assert funm_multiply(Identity(5, dtype=torch.float64), vector(5), torch.exp).products == 1
    zero = funm_multiply(A, torch.zeros(100).double(), torch.exp)
    assert zero.converged
    assert zero.products == 0
    assert not zero.x.any()


def test_running_out_is_data() -> None:
    A, v = with_spectrum(POSITIVE["geometric"]), vector(120)
    for found in (
        funm_multiply(A, v, torch.rsqrt, tol=1e-8, max_products=9),
        funm_multiply(A, v, torch.rsqrt, tol=1e-8, memory=12 * 120 * 8),
    ):
        assert found.products == 9
        assert not found.converged
        assert found.error > 1e-8


def test_single_precision() -> None:
    A = with_spectrum(POSITIVE["linear"], dtype=torch.float32)
    found = funm_multiply(A, vector(300, dtype=torch.float32), torch.sqrt, tol=1e-4)
    exact = funm_multiply(with_spectrum(POSITIVE["linear"]), vector(300, dtype=torch.float32).double(), torch.sqrt)
    assert found.x.dtype == torch.float32
    assert float((found.x.double() - exact.x).norm() / exact.x.norm()) < 1e-4


LOW_PRECISION = [(torch.float32, 1e-6), (torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)]


@pytest.mark.parametrize("function", ["inverse root", "exponential", "root"])
@pytest.mark.parametrize(("dtype", "smallest"), LOW_PRECISION)
def test_rounding_is_part_of_the_error_also_where_the_space_closes(
    dtype: torch.dtype, smallest: float, function: str
) -> None:
    f = FUNCTIONS[function]
    for n in (20, 50):
        A, v = with_spectrum(np.geomspace(smallest, 1, n), dtype=dtype), vector(n).to(dtype)
        values, U = torch.linalg.eigh(A.matrix.double())
        exact = U @ (f(values) * (U.T @ v.double()))
        found = funm_multiply(A, v, f, tol=1e-3)
        assert found.error >= torch.finfo(dtype).eps / 4
        assert float((found.x.double() - exact).norm() / exact.norm()) < 2 * found.error
        assert found.converged == (found.error <= 1e-3)
        assert not (found.converged and smallest == 1e-6 and function == "inverse root")


def test_no_products_are_spent_below_rounding() -> None:
    A = Counted(with_spectrum(np.linspace(0.01, 1, 300), dtype=torch.float32))
    found = funm_multiply(A, vector(300, dtype=torch.float32), torch.exp, tol=1e-12)
    assert not found.converged
    assert 1e-8 < found.error < 1e-6
    assert A.products < 30


@pytest.mark.parametrize("seed", range(3))
def test_an_inverse_root_of_what_rounding_hides_is_not_known(seed: int) -> None:
    A = Diagonal(torch.from_numpy(np.geomspace(1e-8, 1, 20)).float())
    found = funm_multiply(A, vector(20, seed=seed).float(), torch.rsqrt)
    assert found.error > 0.5
    assert not found.converged


def test_a_function_that_vanishes_on_the_spectrum_gives_zero() -> None:
    found = funm_multiply(with_spectrum(POSITIVE["linear"]), vector(300), lambda t: (t > 10).to(t))
    assert found.converged
    assert not found.x.any()


def test_nonsense_is_refused_with_the_scene() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    with pytest.raises(OperatorError, match=r"finite on the spectrum .* Shift or clamp"):
        funm_multiply(A, vector(80), torch.rsqrt)
    with pytest.raises(OperatorError, match="need a symmetric operator"):
        funm_multiply(Dense(vector(3, columns=3)), vector(3), torch.exp)
    with pytest.raises(OperatorError, match=r"a vector of shape \(80,\) .*, found \(79,\)"):
        funm_multiply(A, vector(79), torch.exp)
    with pytest.raises(OperatorError, match="tol is a positive relative error, found 0"):
        funm_multiply(A, vector(80), torch.exp, tol=0.0)
    with pytest.raises(OperatorError, match="at least one step and memory for 4 vectors of 640 bytes"):
        funm_multiply(A, vector(80), torch.exp, memory=1000)
    with pytest.raises(NonFiniteError, match="v has 80 entries that are NaN"):
        funm_multiply(A, vector(80) / 0 * 0, torch.exp)
    with pytest.raises(NonFiniteError, match="Product 3 with <Explodes"):
        funm_multiply(Explodes(9, at=3), vector(9), torch.exp)
