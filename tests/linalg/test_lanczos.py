from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import Tensor

from linalg.matrices import SPECTRA, Counted, Explodes, rotation, vector, with_spectrum
from theodolite.errors import NonFiniteError, OperatorError
from theodolite.linalg import Dense, Diagonal, Eigenpairs, Identity, LinearOperator, lanczos
from theodolite.linalg.basis import Basis
from theodolite.linalg.probes import Probes


def asked(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """The oracle: what each choice of pairs means, written out."""
    descending = np.sort(values)[::-1]
    n = len(descending)
    if which == "largest":
        return descending[:k]
    if which == "smallest":
        return descending[n - k :]
    if which == "both":
        return np.concatenate([descending[: (k + 1) // 2], descending[n - k // 2 :]])
    return np.sort(sorted(values, key=abs)[n - k :])[::-1]


def true_residuals(A: LinearOperator, found: Eigenpairs) -> np.ndarray:
    V, matrix = found.vectors.T.double(), A.dense().double()
    norms = torch.linalg.vector_norm(matrix @ V - V * found.values, dim=0)
    scale = torch.maximum(found.values.abs(), torch.tensor(1e-3 * found.radius)).clamp(min=1e-300)
    return (norms / scale).numpy()


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_equal_dense_ones(name: str, which: str) -> None:
    A = with_spectrum(SPECTRA[name])
    k = min(7, A.shape[0])
    found = lanczos(A, k=k, which=which, tol=1e-9)
    assert found.converged.all()
    assert found.settled
    exact = asked(scipy.linalg.eigh(A.matrix.numpy(), eigvals_only=True), k, which)
    np.testing.assert_allclose(found.values, exact, atol=1e-10 * max(found.radius, 1))
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (true_residuals(A, found) <= 1e-9 + 1e-12).all()


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("name", SPECTRA)
def test_single_precision_reaches_its_own_tolerance(name: str, which: str) -> None:
    A = with_spectrum(SPECTRA[name], dtype=torch.float32)
    k = min(5, A.shape[0])
    found = lanczos(A, k=k, which=which, tol=2e-3)
    assert found.vectors.dtype == torch.float32
    assert found.values.dtype == torch.float64
    assert found.converged.all()
    np.testing.assert_allclose(found.values, asked(SPECTRA[name], k, which), atol=2e-5 * found.radius)
    assert (true_residuals(A, found) <= 2.5e-3).all()


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_all_pairs_of_a_small_operator(n: int) -> None:
    spectrum = np.linspace(-1, 2, n) if n > 1 else np.array([-3.0])
    found = lanczos(with_spectrum(spectrum), k=n)
    np.testing.assert_allclose(found.values, spectrum[::-1], atol=1e-12)
    assert found.products == n


@pytest.mark.parametrize(
    ("operator", "k", "expected"),
    [
        (Identity(50, dtype=torch.float64), 4, [1, 1, 1, 1]),
        (Diagonal(torch.tensor([1.0, 1, 1] + [0.0] * 40)), 3, [1, 1, 1]),
        (Diagonal(torch.tensor([1.0, 1, 1] + [0.0] * 40)), 5, [1, 1, 1, 0, 0]),
        (Diagonal(torch.tensor([1.0] * 50 + [0.5] * 50 + [0.0] * 50)), 12, [1] * 12),
        (Diagonal(torch.zeros(9)), 2, [0, 0]),
    ],
    ids=["identity", "projector", "projector, beyond its rank", "three levels", "zero"],
)
def test_repeated_eigenvalues_are_all_found(operator: LinearOperator, k: int, expected: list[float]) -> None:
    for seed in range(5):
        found = lanczos(operator, k=k, seed=seed)
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        assert found.converged.all()


def test_verify_finds_the_copies_that_one_vector_cannot_see() -> None:
    A = with_spectrum(np.concatenate([[5.0, 5.0, 5.0, 3.0], np.linspace(0, 1, 96)]))
    plain, verified = lanczos(A, k=2), lanczos(A, k=3, verify=True)
    np.testing.assert_allclose(plain.values, [5, 3], rtol=1e-5)  # the limit that the docstring states
    np.testing.assert_allclose(verified.values, [5, 5, 5], rtol=1e-5)
    assert (true_residuals(A, verified) <= 1e-3).all()


def test_verify_looks_as_long_as_the_first_search_took() -> None:
    A = with_spectrum(np.concatenate([[1.0], 0.98 ** np.arange(300)]))
    for seed in range(3):
        found = lanczos(A, k=2, verify=True, seed=seed)
        np.testing.assert_allclose(found.values, [1, 1], rtol=1e-5)


def test_residuals_are_those_of_the_pairs() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    found = lanczos(A, k=6, tol=1e-3)
    np.testing.assert_allclose(found.residuals, true_residuals(A, found), rtol=1e-3)


@pytest.mark.parametrize("rows", [6, 9, 20])
@pytest.mark.parametrize("which", ["largest", "both", "smallest"])
def test_a_thick_restart_under_a_memory_cap_finds_the_same_pairs(rows: int, which: str) -> None:
    A = with_spectrum(np.concatenate([3 * 0.8 ** np.arange(60), -2 * 0.8 ** np.arange(60)]))
    free = lanczos(A, k=3, which=which, tol=1e-8)
    capped = lanczos(A, k=3, which=which, tol=1e-8, max_products=600, memory=rows * 120 * 8)
    assert free.restarts == 0
    assert capped.converged.all()
    np.testing.assert_allclose(capped.values, free.values, atol=1e-9 * free.radius)
    torch.testing.assert_close((capped.vectors * free.vectors).sum(dim=1).abs(), torch.ones(3).double())
    assert capped.restarts > 0


@pytest.mark.parametrize("rows", [10, 40])
def test_the_memory_cap_is_kept(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    append = Basis.append

    def spy(basis: Basis, v: Tensor) -> None:
        append(basis, v)
        held.append(sum(chunk.numel() * chunk.itemsize for chunk in basis._chunks))

    monkeypatch.setattr(Basis, "append", spy)
    lanczos(with_spectrum(SPECTRA["indefinite"]), k=2, tol=1e-12, memory=rows * 80 * 8 + 7)
    assert max(held) == rows * 80 * 8


def test_a_warm_start_needs_fewer_products_and_misses_nothing() -> None:
    n, k = 300, 5
    spectrum = np.concatenate([6.6 * np.arange(1, 31) ** -0.8, np.linspace(-0.5, 0.5, n - 30)])
    A = with_spectrum(spectrum)
    before = lanczos(A, k=k)
    warm = lanczos(A, k=k, start=before.vectors)
    assert warm.products <= 0.7 * before.products
    np.testing.assert_allclose(warm.values, before.values, rtol=1e-5)
    # A new largest eigenvalue appears in a direction that the old vectors do not contain at all.
    u = vector(n, seed=7)
    u = u - before.vectors.T @ (before.vectors @ u)
    u = u / u.norm()
    grown = Dense(A.matrix + 20 * torch.outer(u, u), symmetric=True)
    for start in (before.vectors, before.vectors[0]):
        found = lanczos(grown, k=k, start=start)
        np.testing.assert_allclose(found.values, torch.linalg.eigvalsh(grown.matrix).flip(0)[:k], rtol=1e-5)


def test_a_warm_start_that_lies_in_an_invariant_space_leaves_it() -> None:
    # Products of a diagonal matrix keep the zeros of a vector, so that only the random part can find the new value.
    A = Diagonal(torch.cat([torch.linspace(0, 1, 200), torch.linspace(0, 2, 200)]).double())
    start = torch.cat([vector(200), torch.zeros(200)])
    np.testing.assert_allclose(lanczos(A, k=1, start=start).values, [2], rtol=1e-5)


def test_a_start_of_opposite_rows_is_a_random_start() -> None:
    A = with_spectrum(SPECTRA["geometric"])
    v = vector(120)
    found = lanczos(A, k=3, start=torch.stack([v, -v]))
    np.testing.assert_allclose(found.values, SPECTRA["geometric"][:3], rtol=1e-5)


HESSIAN_LIKE = {
    "outliers": np.concatenate([7.2 * 0.7 ** np.arange(12), 0.01 * np.random.default_rng(0).exponential(size=388)]),
    "flat": np.concatenate([6.6 * np.arange(1, 31) ** -0.8, 0.5 * np.random.default_rng(0).normal(size=370)]),
    "power law": np.arange(1, 401) ** -1.0,
    "slow power law": np.arange(1, 401) ** -0.5,
}


@pytest.mark.parametrize("k", [1, 5, 10, 20])
@pytest.mark.parametrize("name", HESSIAN_LIKE)
def test_products_are_at_most_a_tenth_more_than_arpack_takes(name: str, k: int) -> None:
    A = with_spectrum(HESSIAN_LIKE[name])
    counted = Counted(A)
    reference = scipy.sparse.linalg.LinearOperator(
        A.shape, matvec=lambda v: (counted @ torch.from_numpy(v.ravel())).numpy(), dtype=np.float64
    )
    v0 = np.random.default_rng(0).normal(size=400)
    scipy.sparse.linalg.eigsh(reference, k=k, which="LA", tol=1e-3, v0=v0)
    ours = [lanczos(A, k=k, tol=1e-3, seed=seed) for seed in range(5)]
    assert np.mean([found.products for found in ours]) <= 1.1 * counted.products
    exact = np.sort(HESSIAN_LIKE[name])[::-1][:k]
    for found in ours:
        np.testing.assert_allclose(found.values, exact, rtol=1e-3)


def test_it_does_not_stop_on_an_eigenvalue_that_poses_for_another() -> None:
    random = np.random.default_rng(1)
    spectrum = np.concatenate([7.2 * 0.7 ** np.arange(12), np.sort(0.01 * random.exponential(size=588))[::-1]])
    # Stopping at the first small residuals returns a wrong 20th eigenvalue for most seeds here.
    missed = 0
    for seed in range(20):
        found = lanczos(Diagonal(torch.from_numpy(spectrum)), k=20, tol=1e-2, seed=seed).values.numpy()
        missed += bool((np.abs(found - spectrum[:20]) > 2e-2 * spectrum[:20]).any())
    assert missed <= 2


@pytest.mark.parametrize("k", [1, 3])
def test_it_looks_around_for_six_products_more_than_pairs(k: int) -> None:
    # The residuals are small after k + 1 products already: nothing but rounding lies outside k eigenvectors.
    A = Diagonal(torch.cat([torch.arange(1.0, k + 1), 1e-8 * torch.linspace(0, 1, 50)]).double())
    assert lanczos(A, k=k).products == k + 6


def test_running_out_of_products_is_data() -> None:
    found = lanczos(with_spectrum(SPECTRA["indefinite"]), k=5, tol=1e-10, max_products=12)
    assert found.products == 12
    assert not found.converged.any()
    assert not found.settled
    assert (found.residuals > 1e-10).all()
    assert found.vectors.shape == (5, 80)


def test_no_tolerance_below_rounding_is_claimed() -> None:
    found = lanczos(with_spectrum(SPECTRA["geometric"], dtype=torch.float32), k=2, tol=1e-9, max_products=100)
    assert not found.converged.any()
    assert (found.residuals >= torch.finfo(torch.float32).eps / 2).all()


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float64, 1e-100), (torch.float32, 1e-30), (torch.float32, 1e30)])
def test_the_scale_of_the_operator_changes_nothing(dtype: torch.dtype, factor: float) -> None:
    A = with_spectrum(SPECTRA["outliers over a bulk"], dtype=dtype)
    plain, scaled = lanczos(A, k=4), lanczos(factor * A, k=4)
    np.testing.assert_allclose(scaled.values / factor, plain.values, rtol=1e-5)
    assert abs(scaled.products - plain.products) <= 1


def test_the_same_seed_gives_the_same_pairs_bit_for_bit() -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    one, two, other = lanczos(A, k=3, seed=3), lanczos(A, k=3, seed=3), lanczos(A, k=3, seed=4)
    assert torch.equal(one.vectors, two.vectors)
    assert not torch.equal(one.vectors, other.vectors)


def test_products_are_counted() -> None:
    A = Counted(with_spectrum(SPECTRA["geometric"]))
    found = lanczos(A, k=4, memory=9 * 120 * 8)
    assert found.restarts > 0
    assert A.products == found.products


@pytest.mark.parametrize("memory", [2**30, 10 * 80 * 8])
def test_the_first_krylov_space_is_a_quadrature_rule(memory: int) -> None:
    A = with_spectrum(SPECTRA["indefinite"])
    found = lanczos(A, k=3, tol=1e-6, memory=memory, seed=2)
    s = len(found.nodes)
    assert s == (10 if memory < 2**30 else found.products)
    v = Probes(A, seed=2).draw(1)[0]
    v, power = v / v.norm(), v / v.norm()
    for degree in range(min(2 * s, 20)):
        moment = float((found.weights * found.nodes**degree).sum())
        assert moment == pytest.approx(float(v @ power), rel=1e-10, abs=1e-10 * 3.5**degree)
        power = A @ power


def test_the_quadrature_of_a_space_that_closed_has_one_node_for_each_eigenvalue() -> None:
    found = lanczos(with_spectrum(SPECTRA["low rank"]), k=2)
    np.testing.assert_allclose(found.nodes, [0, 1, 2, 3], atol=1e-12)
    assert float(found.weights.sum()) == pytest.approx(1)


def test_progress_is_reported_after_each_product() -> None:
    seen: list[tuple[int, float]] = []
    found = lanczos(with_spectrum(SPECTRA["geometric"]), k=4, on_step=lambda *step: seen.append(step))
    assert [products for products, _ in seen] == list(range(1, found.products + 1))
    assert seen[0][1] == math.inf
    assert seen[-1][1] == pytest.approx(float(found.residuals.max()))


def test_a_product_that_is_not_finite_is_raised_with_its_number() -> None:
    with pytest.raises(NonFiniteError, match="Product 5 with <Explodes"):
        lanczos(Explodes(30, at=5), k=2)


A80 = with_spectrum(SPECTRA["indefinite"])
REFUSED = {
    "needs a symmetric operator, <Dense: 4×4, float64, cpu> does not claim": lambda: lanczos(Dense(rotation(4)), k=1),
    "has 80 eigenpairs, found k=81; ask for 1 to 80": lambda: lanczos(A80, k=81),
    "found k=0": lambda: lanczos(A80, k=0),
    "tol is a positive relative residual, found 0": lambda: lanczos(A80, k=1, tol=0.0),
    "5 eigenpairs take at least 5 products, found max_products=4": lambda: lanczos(A80, k=5, max_products=4),
    "basis of at least 8 vectors of 640 bytes each, 5 KiB in all, found memory=1e.03 bytes": lambda: lanczos(
        A80, k=5, memory=1000
    ),
    r"start has the shape \(80,\) or \(j, 80\) for .*, found \(79,\)": lambda: lanczos(A80, k=1, start=vector(79)),
    r"row of zeros; its rows have norms \[0.0\]": lambda: lanczos(A80, k=1, start=0 * vector(80)),
    "start has NaN or infinite entries": lambda: lanczos(A80, k=1, start=vector(80) / 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_nonsense_is_refused_with_the_scene(message: str) -> None:
    with pytest.raises((OperatorError, NonFiniteError), match=message):
        REFUSED[message]()
