"""The same questions put to theodolite and to its peers: what each answers, and how many products it took."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from models import Case, mlp
from race import math_attention
from torch import Tensor

import theodolite as th
from theodolite.linalg import Deflated, cg, hutchinson, lanczos
from theodolite.operators import fisher_spectrum

PAIRS = 10
TOL = 1e-3
CURVLINOPS, EIGENTHINGS, PYHESSIAN = "curvlinops", "hessian-eigenthings", "PyHessian"


@dataclass
class Answer:
    """What a library said.

    Args:
        products: Hessian products that it took.
        values: eigenvalues.
        vectors: their eigenvectors, one a row.
        trace: of the Hessian.
        trace_stderr: the error that the library states, NaN where it states none.
        said: what else it says of how far to trust it.
    """

    products: float = 0.0
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    trace: float = float("nan")
    trace_stderr: float = float("nan")
    said: str = ""


@dataclass(frozen=True)
class Question:
    """One row: a library, what it is asked, and how."""

    library: str
    asked: str
    answer: Callable[[Case], Answer]
    module: str = "theodolite"


def surveys() -> list[Question]:
    """Top ten eigenpairs, spectral density and trace, each by the defaults of its library."""
    return [
        Question("theodolite", f"spectrum(k={PAIRS}, probes=12)", _our_survey),
        Question(PYHESSIAN, "eigenvalues, density, trace", _pyhessian_survey, "pyhessian"),
        Question(
            CURVLINOPS, "eigsh, approximate spectrum of 100 steps, hutchpp of 99", _curvlinops_survey, "curvlinops"
        ),
        Question(EIGENTHINGS, "lanczos, spectral_density, trace", _eigenthings_survey, "hessian_eigenthings"),
    ]


def top_fives() -> list[Question]:
    """Five eigenpairs whose true residuals are at most 1e-3."""
    return [
        Question("theodolite", "spectrum(k=5)", lambda case: _our_five(case, complete=True)),
        Question(
            "theodolite", "the same without the search for missed copies", lambda case: _our_five(case, complete=False)
        ),
        Question("theodolite", "linalg.lanczos(Hessian, k=5): pairs alone, as ARPACK gives them", _our_pairs),
        Question(CURVLINOPS, "eigsh(k=5)", lambda case: _arpack(case, 5, TOL), "curvlinops"),
        *(
            Question(PYHESSIAN, f"eigenvalues(top_n=5, tol={tol:g})", _pyhessian_five(tol), "pyhessian")
            for tol in (1e-3, 1e-5, 1e-6)
        ),
    ]


def _our_survey(case: Case) -> Answer:
    record = th.spectrum(th.Problem(*case), k=PAIRS, tol=TOL, probes=12)
    said = f"{int(record.converged.sum())} of {PAIRS} converged; data error of λ₁ {record.data_stderr[0]:.2g}"
    return Answer(
        products=record.cost.products,
        values=torch.tensor(record.eigenvalues),
        vectors=torch.tensor(record.eigenvectors),
        trace=record.trace,
        trace_stderr=record.trace_stderr,
        said=said,
    )


def _our_five(case: Case, *, complete: bool) -> Answer:
    record = th.spectrum(th.Problem(*case), k=5, tol=TOL, complete=complete)
    return Answer(
        products=record.cost.products,
        values=torch.tensor(record.eigenvalues),
        vectors=torch.tensor(record.eigenvectors),
        said=f"{int(record.converged.sum())} of 5 converged",
    )


def _our_pairs(case: Case) -> Answer:
    """Certified, with residuals, but without an error from the data and a search for missed copies."""
    H = th.Hessian(th.Problem(*case))
    pairs = lanczos(H, k=5, tol=TOL)
    return Answer(
        products=H.products,
        values=pairs.values,
        vectors=pairs.vectors,
        said=f"{int(pairs.converged.sum())} of 5 converged",
    )


def _pyhessian_survey(case: Case) -> Answer:
    with _pyhessian(case) as (survey, count):
        values, vectors = survey.eigenvalues(top_n=PAIRS)
        with _old_eig():
            survey.density()
        samples = survey.trace()
    return Answer(products=count(), values=torch.tensor(values), vectors=_rows(vectors), trace=float(np.mean(samples)))


def _pyhessian_five(tol: float) -> Callable[[Case], Answer]:
    def answer(case: Case) -> Answer:
        with _pyhessian(case) as (survey, count):
            values, vectors = survey.eigenvalues(top_n=5, tol=tol, maxIter=400)
        return Answer(products=count(), values=torch.tensor(values), vectors=_rows(vectors))

    return answer


@contextmanager
def _pyhessian(case: Case) -> Any:
    """Its survey of all data in one batch, the form in which its products are cheapest, with the products counted."""
    import pyhessian

    module = sys.modules[pyhessian.hessian.__module__]  # the class hides its module
    model, criterion, batches = case
    data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    product, calls = module.hessian_vector_product, [0]

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return product(*arguments)

    module.hessian_vector_product = counted
    try:
        yield pyhessian.hessian(model, criterion, data=data, cuda=False), lambda: float(calls[0])
    finally:
        module.hessian_vector_product = product


@contextmanager
def _old_eig() -> Any:
    """torch.eig as PyHessian knows it; torch removed it in 2.0."""

    def eig(T: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(T)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    removed, torch.eig = getattr(torch, "eig", None), eig
    try:
        yield
    finally:
        torch.eig = removed


def _curvlinops_survey(case: Case) -> Answer:
    from curvlinops import hutchpp_trace, lanczos_approximate_spectrum

    A, calls = _curvlinops(case, "HessianLinearOperator")
    answer = _eigsh(A, calls, PAIRS, TOL)
    lanczos_approximate_spectrum(A, 100)
    answer.trace = float(hutchpp_trace(A, 99))
    answer.products = float(calls[0])
    return answer


def _arpack(case: Case, k: int, tol: float) -> Answer:
    return _eigsh(*_curvlinops(case, "HessianLinearOperator"), k, tol)


def _curvlinops(case: Case, name: str) -> tuple[Any, list[int]]:
    import curvlinops

    class Counted(getattr(curvlinops, name)):  # type: ignore[misc]
        def _matmat(self, X: list[Tensor]) -> list[Tensor]:
            calls[0] += X[0].shape[-1]
            return super()._matmat(X)

    model, criterion, batches = case
    calls = [0]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Counted(model, criterion, parameters, batches, check_deterministic=False), calls


def _eigsh(A: Any, calls: list[int], k: int, tol: float) -> Answer:
    from scipy.sparse.linalg import eigsh

    values, vectors = eigsh(A.to_scipy(), k=k, which="LA", tol=tol)
    return Answer(
        products=float(calls[0]), values=torch.tensor(values[::-1].copy()), vectors=torch.tensor(vectors.T[::-1].copy())
    )


def _eigenthings_survey(case: Case) -> Answer:
    from hessian_eigenthings import lanczos, spectral_density, trace
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    model, criterion, batches = case
    A = HessianOperator(model, batches, supervised_loss(criterion))
    product, calls = A.matvec, [0]

    def counted(v: Tensor) -> Tensor:
        calls[0] += 1
        return product(v)

    A.matvec = counted
    found = lanczos(A, k=PAIRS, which="LA", seed=0)
    spectral_density(A, seed=0)
    estimate = trace(A, seed=0)
    return Answer(
        products=float(calls[0]),
        values=found.eigenvalues,
        vectors=found.eigenvectors,
        trace=float(estimate.estimate),
        trace_stderr=float(estimate.stderr) if estimate.stderr is not None else float("nan"),
        said=f"{int(found.converged.sum())} of {PAIRS} converged",
    )


def _rows(vectors: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([part.detach().reshape(-1) for part in vector]) for vector in vectors])


def attention() -> AbstractContextManager[None]:
    """Peers are given the attention kernel that has second derivatives; ours looks after itself."""
    return math_attention()


def inverse_products(case: Case, *, damping: float = 1e-2) -> dict[str, float]:
    """Products to solve (G + δI) x = g to a relative residual of 1e-3: conjugate gradients, and LiSSA's series.

    The series xₖ₊₁ = g + (I − (G + δI)/s) xₖ gets the best scale s that is known, the largest eigenvalue; its terms are
    summed until the residual is met, on the same operator.
    """
    problem = th.Problem(*case)
    G, g = th.GGN(problem), problem.gradient()
    shifted = G.shift(damping)
    solved = cg(shifted, g, tol=TOL)
    scale = 1.01 * (th.spectrum(problem, k=1, operator="ggn").max + damping)
    x, products = torch.zeros_like(g), 0
    residual = g
    while float(residual.norm() / g.norm()) > TOL and products < 20_000:
        x = x + residual / scale
        residual = g - shifted @ x
        products += 1
    return {"cg": float(solved.products), "LiSSA": float(products)}


def trace_products(case: Case) -> dict[str, float]:
    """Probes until the standard error is one percent of the trace, from the spread of 64: with and without known pairs."""
    problem = th.Problem(*case)
    H = th.Hessian(problem)
    pairs = th.spectrum(problem, k=PAIRS, tol=TOL)
    rest = Deflated(H, torch.tensor(pairs.eigenvalues), torch.tensor(pairs.eigenvectors), to=0.0)
    plain, deflated = (hutchinson(A, probes=64, seed=0) for A in (H, rest))
    return {
        who: 64 * (found.stderr / (0.01 * abs(plain.value))) ** 2
        for who, found in (("Hutchinson", plain), ("deflated", deflated))
    }


def fisher_case() -> Case:
    """784-512-512-10 on 256 random inputs: 669,706 parameters."""
    model, criterion, ((inputs, targets),) = mlp()
    return model.eval(), criterion, [(inputs[:256], targets[:256])]


def all_fisher_eigenvalues() -> dict[str, Callable[[Case], object]]:
    """All 256 from the Gram matrix of the gradients, and the ten largest by ARPACK on curvlinops' operator.

    A problem that was asked before has been checked: what the second answer takes is what twice takes beyond once.
    """
    return {
        "theodolite, all": lambda case: _our_fisher(case, times=1),
        "theodolite, all twice": lambda case: _our_fisher(case, times=2),
        "curvlinops, ten": _curvlinops_fisher,
    }


def _our_fisher(case: Case, *, times: int) -> object:
    problem = th.Problem(*case)
    return [fisher_spectrum(problem, kind="empirical") for _ in range(times)]


def _curvlinops_fisher(case: Case) -> object:
    A, calls = _curvlinops(case, "EFLinearOperator")
    return _eigsh(A, calls, PAIRS, TOL)
