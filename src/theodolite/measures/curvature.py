"""Extreme eigenpairs of a problem's Hessian or Gauss-Newton matrix, and from the same products the rest of its spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.measures.arguments import surveyed
from theodolite.measures.samples import Samples, enough, relative_error
from theodolite.measures.spectra import KEEP_VECTORS, Question, QuickExtreme
from theodolite.measures.subject import OperatorName
from theodolite.problem import Problem
from theodolite.problem.arguments import optional, real, whole
from theodolite.records import Spectrum


def spectrum(
    problem: Problem,
    *,
    k: int = 5,
    which: Literal["largest", "smallest", "both"] = "largest",
    tol: float = 1e-3,
    probes: int = 0,
    steps: int = 60,
    operator: OperatorName = "hessian",
    samples: Samples = None,
    data_tol: float = 0.05,
    halves: bool = False,
    seed: int = 0,
    start: Float[Tensor, "*j n"] | None = None,
    max_products: int | None = None,
    complete: bool = True,
    keep_vectors_below: int = KEEP_VECTORS,
    on_step: Callable[[int, float], None] | None = None,
    step: int | None = None,
) -> Spectrum:
    """Extreme eigenpairs by Lanczos, with residuals recomputed from the operator; with probes the whole spectrum.

    With ``probes`` one run of at least ``steps`` steps also gives the trace, whole and by layer, the Frobenius norm, the
    density and what follows from it, each with its error: its basis holds most of the trace, and the probes, projected off
    it, sample the rest.

    Cost: about 2k to 4k products for the pairs at ``tol=1e-3``, 8 for the search for missed copies, one more for each pair
    to recompute its residual and to take its standard error over the chunks of the data. With probes ``steps`` products at
    least, and one for each probe. The halves take 10 to 20.

    Args:
        problem: what to survey.
        k: number of pairs at each end that is asked for.
        which: ``"largest"``, ``"smallest"``, or ``"both"`` ends (2k pairs, descending).
        tol: relative residual ‖Hv − λv‖ / max(|λ|, 1e-3·radius) to reach, with the radius of the spectrum.
        probes: random vectors for trace and Frobenius norm; 12 are a good number, with 0 they and the density are left out.
        steps: least number of Lanczos steps with probes: nodes of the density.
        operator: ``"hessian"``, ``"ggn"`` or ``"covariance"`` (of gradients, the empirical Fisher).
        samples: of the data to use, all by default, and with a note where there are fewer; ``"auto"`` takes as many as bring
            the relative error of the extreme eigenvalue from the data below ``data_tol``, bias included: the halves are measured.
        data_tol: relative error from the data that ``samples="auto"`` is to reach.
        halves: also take the top eigenvector of each half of the data to the other half, which frees
            ``Spectrum.sharpness`` of its upward bias.
        seed: of the start vector, the probes and the order of samples.
        start: vector or block of vectors to start from, e.g. eigenvectors at an earlier checkpoint; no density then.
        max_products: stop after so many, converged or not.
        complete: search for copies of repeated eigenvalues that one start vector does not see, as in the Hessian of a squared
            error in the last layer; 8 products more, and a second search where copies are found.
        keep_vectors_below: drop eigenvectors, with a note, when they take more bytes than this.
        on_step: called with the products so far and the worst residual.
        step: optimiser step, kept in the record.

    Returns:
        A record. Pairs that did not converge are marked, and a NotConvergedWarning is issued.

    Raises:
        OperatorError: k is larger than the number of parameters allows.
        ProblemError: the operator is unknown, or an argument is of the wrong type.
        DataError: halves were asked of data that cannot be halved.
        DerivativeError: second derivatives are missing or wrong.
        NonFiniteError: loss or product is not finite.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> spectrum(problem, k=3).eigenvalues.shape
        (3,)
        >>> bool(spectrum(problem, probes=4).negative_mass.value < 1e-6)
        True

    References:
        Wu, Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems" (2000).
        Chen, Hallman, "Krylov-aware stochastic trace estimation" (2023).
    """
    surveyed(problem)
    whole(k=k, probes=probes, steps=steps, seed=seed)
    real(tol=tol)
    optional(whole, max_products=max_products)
    if which not in ("largest", "smallest", "both"):
        raise OperatorError(f"Expected which to be 'largest', 'smallest' or 'both', found {which!r}.")
    question = Question(
        k=2 * k if which == "both" else k,
        which=which,
        tol=tol,
        probes=probes,
        steps=steps,
        operator=operator,
        halves=halves,
        seed=seed,
        max_products=max_products,
        complete=complete,
        keep_vectors_below=keep_vectors_below,
        on_step=on_step,
    )
    if not 1 <= question.k <= problem.n:
        raise OperatorError(
            f"Expected between 1 and {problem.n} eigenpairs, the number of parameters, found {question.k} (k={k}, "
            f"which={which!r}). Ask for {'fewer' if question.k > 1 else 'at least one'}."
        )
    if samples is None:
        record = question.answer(problem, start)
    else:
        quick = QuickExtreme(question, start)
        part = enough(problem, samples, quick, tol=data_tol, seed=seed)
        record = question.answer(part.problem, start)
        if not halves:
            # The last look on the way took the halves of this part: the record prints the error that settled it.
            record = record.replace(split_half=quick.split_half)
        note = part.note(relative_error(record.extreme.value, record.extreme.stderr))
        record = record.replace(cost=record.cost + part.cost, notes=(*record.notes, *note))
    return record.replace(step=step)
