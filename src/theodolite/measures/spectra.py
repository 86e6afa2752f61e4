"""How a question for a spectrum is answered: search, missed copies, verification, and what the same products say beside."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NotConvergedWarning
from theodolite.linalg import Eigenpairs, decompose, lanczos, misses_eigenvalues
from theodolite.measures.beside import beside_the_pairs
from theodolite.measures.halves import held_out_quotient
from theodolite.measures.samples import Precision, relative_error
from theodolite.measures.subject import OperatorName, Remembering, context_of, operator_of
from theodolite.measures.verification import parameters_of, radius_of, resolved, verified
from theodolite.operators import ProblemOperator
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Spectrum

KEEP_VECTORS = 256 * 2**20
ONE_CHUNK = "one chunk: no error from the data; cut the data into batches"


@final
@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of one problem after another, as ``spectrum`` describes it; ``k`` counts the pairs of both ends."""

    k: int
    which: Literal["largest", "smallest", "both"]
    tol: float
    probes: int
    steps: int
    operator: OperatorName
    halves: bool
    seed: int
    max_products: int | None
    complete: bool
    keep_vectors_below: int
    on_step: Callable[[int, float], None] | None

    def answer(self, problem: Problem, start: Float[Tensor, "*j n"] | None, *, quiet: bool = False) -> Spectrum:
        """The record, without its step."""
        started = time.perf_counter()
        H = operator_of(problem, self.operator)
        found, fields, notes = self._complete_search(problem, H, start)
        values, residuals, data_stderr = verified(H, found)
        converged = (residuals <= self.tol) & found.converged.numpy()
        if not found.settled:
            notes.append("the iteration was cut off: other eigenvalues may belong among these")
            converged = resolved(values, residuals, converged, which=self.which, radius=radius_of(found, values))
        if np.isnan(data_stderr).all():
            notes.append(ONE_CHUNK)
        kept = found.vectors.nbytes <= self.keep_vectors_below
        if not kept:
            notes.append(
                f"eigenvectors dropped: {found.vectors.nbytes / 2**20:.0f} MiB, above "
                f"keep_vectors_below={self.keep_vectors_below / 2**20:.0f} MiB"
            )
        if not ((converged.all() and found.settled) or quiet):
            _warn(found, residuals, converged, tol=self.tol)
        cost = H.cost
        if self.halves:
            lower = self.which == "smallest"
            extreme = found.vectors[-1] if lower else found.vectors[0]
            fields["split_half"], spent = held_out_quotient(
                problem, self.operator, which="smallest" if lower else "largest", start=extreme, seed=self.seed
            )
            cost += spent
        return Spectrum(
            cost=replace(cost, seconds=time.perf_counter() - started),
            seed=self.seed,
            notes=(*H.notes, *notes),
            context=context_of(problem, H),
            eigenvalues=values,
            residuals=residuals,
            converged=converged,
            data_stderr=data_stderr,
            radius=radius_of(found, values),
            eigenvectors=to_numpy(found.vectors) if kept else None,
            tol=self.tol,
            which=self.which,
            operator=self.operator,
            size=problem.n,
            parameters=parameters_of(problem),
            **fields,
        )

    def _complete_search(
        self, problem: Problem, H: ProblemOperator, start: Tensor | None
    ) -> tuple[Eigenpairs, dict[str, Any], list[str]]:
        """The pairs, what stands beside them in the record, and notes."""
        found, fields = self._search(problem, H, start, verify=False)
        if not (self.complete and found.settled and misses_eigenvalues(H, found, which=self.which, seed=self.seed)):
            return found, fields, []
        found, fields = self._search(problem, H, None, verify=True)
        return found, fields, ["eigenvalues repeat: a second search found the copies that one vector does not see"]

    def _search(
        self, problem: Problem, H: ProblemOperator, start: Tensor | None, *, verify: bool
    ) -> tuple[Eigenpairs, dict[str, Any]]:
        options: dict[str, Any] = {
            "k": self.k,
            "which": self.which,
            "tol": self.tol,
            "seed": self.seed,
            "start": start,
            "max_products": self.max_products,
            "memory": problem.memory,
            "on_step": self.on_step,
            "verify": verify,
        }
        if not self.probes:
            return lanczos(H, **options), {}
        A, parts = Remembering(H), problem.layout.layer_slices
        whole = decompose(A, steps=self.steps, probes=self.probes, parts=tuple(parts.values()), **options)
        return whole.pairs, beside_the_pairs(whole, A, layers=tuple(parts), random=start is None)


@final
class QuickExtreme:
    """How well a part of the data knows the eigenvalue at the asked end: its error from the data, and its bias.

    Each part starts from the eigenvector of the part before.

    Args:
        question: what is asked in the end.
        start: where the first search begins.
    """

    def __init__(self, question: Question, start: Float[Tensor, "*j n"] | None) -> None:
        self._question = replace(
            question,
            k=1,
            which="smallest" if question.which == "smallest" else "largest",
            tol=1e-2,
            probes=0,
            halves=True,
            complete=False,
            keep_vectors_below=KEEP_VECTORS,
            on_step=None,
        )
        self._start = start
        self.split_half = float("nan")

    def __call__(self, part: Problem) -> Precision:
        record = self._question.answer(part, self._start, quiet=True)
        if record.eigenvectors is not None:
            self._start = torch.from_numpy(record.eigenvectors.copy()).to(part.device, part.dtype)
        self.split_half = record.split_half
        return Precision(relative_error(record.extreme.value, record.extreme.stderr), record.cost)


def _warn(found: Eigenpairs, residuals: Float[np.ndarray, " k"], converged: np.ndarray, *, tol: float) -> None:
    far, k = int((residuals > tol).sum()), len(converged)
    if far:
        what = f"{far} of {k} eigenpairs did not reach a residual of {tol:g} after {found.products} products of Lanczos (worst "
        what += f"{residuals.max():.1e})"
    else:
        what = f"Lanczos was cut off after {found.products} products: all residuals are at most {tol:g}, but "
        rest = int((~converged).sum())
        what += (
            f"{rest} of {k} eigenpairs lie in a cluster that it did not resolve" if rest else "others may be missing"
        )
    warnings.warn(f"{what}. Raise max_products, or tol if that is enough.", NotConvergedWarning, stacklevel=4)
