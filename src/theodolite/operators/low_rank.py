"""Exact spectra of a GGN or Fisher through the Gram matrix of its rows, from first derivatives only."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.operators.gradient_rows import GradientRows
from theodolite.operators.pullbacks import Pullbacks
from theodolite.problem import Problem
from theodolite.problem.arrays import to_numpy
from theodolite.records import Cost, Spectrum
from theodolite.records.jackknife import jackknife_stderr

# All eigenvectors of a larger Gram matrix take three times as long as all eigenvalues and the first eigenvectors do.
FULL, FIRST = 1024, 64

# Given the data, of a matrix that was not drawn.
EXACT: dict[str, Any] = {"trace_stderr": 0.0, "frobenius_stderr": 0.0, "probes": 1}
NAMES = {"exact": "ggn", "mc": "fisher", "empirical": "gradient covariance"}


def ggn_spectrum(problem: Problem, *, k: int | None = None, vectors: bool = False, step: int | None = None) -> Spectrum:
    """Eigenvalues of the GGN, as many as its Gram matrix has rows or the largest k, without a matrix-vector product.

    Cost: a forward pass, C − 1 backward passes for cross-entropy over C classes, and the eigenvalues of a matrix with N(C − 1)
    rows.

    Args:
        problem: made with a criterion that is convex in the outputs, or with ``from_loss`` of a model of transformers and
            batches that have ``labels``.
        k: how many; None for all.
        vectors: whether to return the eigenvectors too.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: as for ``fisher_spectrum``.

    Example:
        >>> problem = Problem(nn.Linear(3, 1), nn.MSELoss(), [(torch.eye(3), torch.zeros(3, 1))])
        >>> [round(float(value), 4) for value in ggn_spectrum(problem).eigenvalues]
        [2.6667, 0.6667, 0.6667]

    References:
        Dangel, Tatzel, Hennig, "ViViT: curvature access through the generalized Gauss-Newton's low-rank structure" (2022).
    """
    return fisher_spectrum(problem, k=k, kind="exact", vectors=vectors, step=step)


def fisher_spectrum(
    problem: Problem,
    *,
    k: int | None = None,
    kind: str = "empirical",
    draws: int = 8,
    seed: int = 0,
    vectors: bool = False,
    step: int | None = None,
) -> Spectrum:
    """Eigenvalues of a Fisher, as many as its rows or parameters, or the largest k, through the Gram matrix of the rows.

    All that are not zero are among them; those beyond the rank are zero up to rounding.

    The kinds differ in scale where a sample has several terms in the loss, as a sequence has tokens. With t the terms, g_it
    their gradients, W = Σ_i T_i their number (or weight) and N the samples, ``"exact"`` is Σ_i Σ_t E[g_it g_itᵀ] / W over
    targets that the model predicts, the GGN of the loss; ``"mc"`` the same with drawn ones; ``"empirical"`` is
    N/W² · Σ_i (Σ_t g_it)(Σ_t g_it)ᵀ with those of the data, the covariance of samples' gradients. For T unrelated terms a
    sample it is T times smaller, for terms with one gradient as large. A note says so.

    Only first derivatives are taken, so that it works with every attention kernel. What one Gram matrix tells besides is in
    the record: trace and Frobenius norm of all of the matrix, the trace of each layer, and errors from the data, jackknifed
    over samples (those of a chunk are taken to weigh alike).

    Cost: a forward and a backward pass for ``kind="empirical"``, ``draws`` backward passes for ``"mc"``, C − 1 for ``"exact"``
    and cross-entropy over C classes; the eigenvalues of a matrix with one row for each sample and pass; with ``vectors``,
    about the weight gradients of one backward pass for each.

    Args:
        problem: what to differentiate.
        k: how many; None for all.
        kind: ``"exact"`` for the GGN, ``"mc"`` for it in expectation, ``"empirical"`` for the gradient covariance.
        draws: random vectors a sample of ``"mc"``, 2 at least for an error over them.
        seed: of the random vectors.
        vectors: whether to return the eigenvectors too.
        step: optimiser step, kept in the record.

    Returns:
        The record; residuals bound what rounding of the Gram matrix leaves. Errors from the data of eigenvalues beyond the
        first 64 are NaN where the Gram matrix has more than 1024 rows, unless their eigenvectors are asked for. Errors of
        trace and norm are 0 for a matrix that is exact. For ``"mc"`` they are over the draws, as is ``draw_stderr`` of the
        eigenvalues, all to first order and NaN for a single draw; the traces of layers have none. Largest eigenvalues of a
        drawn matrix lie too high besides, by less the more draws. ``context["chunks"]`` counts what is left out in turn, the
        samples that weigh something.

    Raises:
        OperatorError: k is not positive, samples are coupled, the criterion is not convex in the outputs, or the rows do not
            fit the memory of the problem.
    """
    refuse_fractions(k=k)
    if k is not None and k < 1:
        raise OperatorError(f"Expected k to be at least 1 eigenvalue, or None for all, found {k}.")
    started = time.perf_counter()
    pullbacks = Pullbacks(problem, kind=kind, draws=draws, seed=seed)
    rows = GradientRows(pullbacks)
    if not rows.count:
        raise OperatorError("Expected a criterion with curvature in the outputs, found none anywhere in the data.")
    gram, traces = rows.gram()
    gram *= rows.scale
    values, Q = _leading(gram, min(rows.count, problem.n, k or rows.count), vectors=vectors)
    found = _eigenvectors(rows, values, Q) if vectors else None
    rounding = _rounding(problem, values)
    return Spectrum(
        step=step,
        seed=seed if kind == "mc" else None,
        cost=Cost(gradients=pullbacks.passes, seconds=time.perf_counter() - started),
        notes=_notes(pullbacks, draws),
        eigenvalues=values,
        residuals=rounding,
        converged=rounding <= 1e-3,
        eigenvectors=found,
        tol=1e-3,
        operator=NAMES[kind],
        size=problem.n,
        parameters=tuple(
            (name, tuple(shape)) for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True)
        ),
        frobenius=float(gram.norm()),
        radius=float(values[0]),
        **_traces(problem, gram, kind, {name: trace * rows.scale for name, trace in traces.items()}),
        **_errors(problem, pullbacks, rows, gram, values, Q),
        **(_over_draws(rows, gram, values, Q) if kind == "mc" else EXACT),
    )


def _leading(
    gram: Float[Tensor, "m m"], k: int, *, vectors: bool
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "m j"]]:
    """The largest k eigenvalues, descending, with their eigenvectors, or with the first of them if that saves much.

    Rounding below zero is taken off.
    """
    m = len(gram)
    few = k > FIRST and m > FULL and not vectors
    if k == m and not few:
        values, Q = (found.numpy() for found in torch.linalg.eigh(gram))
    else:
        values, Q = scipy.linalg.eigh(gram.numpy(), subset_by_index=(m - (FIRST if few else k), m - 1))
    if few:
        values = torch.linalg.eigvalsh(gram).numpy()[m - k :]
    return np.maximum(values[::-1], 0.0), Q[:, ::-1].copy()


def _rounding(problem: Problem, values: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """‖E‖/λ for an error E of the Gram matrix of the size of rounding, relative as ``Spectrum`` has it."""
    eps = float(torch.finfo(problem.dtype).eps)
    return np.asarray(eps * values[0] / np.maximum(values, max(1e-3 * values[0], np.finfo(float).tiny)))


def _eigenvectors(
    rows: GradientRows, values: Float[np.ndarray, " k"], Q: Float[np.ndarray, "m k"]
) -> Float[np.ndarray, "k n"]:
    """Gᵀq / ‖Gᵀq‖, zero where the eigenvalue is."""
    combined = rows.combine(torch.from_numpy(Q))
    norms = torch.linalg.vector_norm(combined, dim=1, keepdim=True)
    unit = combined / norms.clamp_min(torch.finfo(combined.dtype).tiny)
    unit[torch.from_numpy(values <= 1e-14 * values[0])] = 0.0
    return to_numpy(unit)


def _traces(problem: Problem, gram: Float[Tensor, "m m"], kind: str, traces: dict[str, float]) -> dict[str, Any]:
    layers = problem.layout.layers
    return {
        "trace": float(gram.trace()),
        "layers": tuple(layers),
        "layer_traces": np.array([sum(traces[name] for name in names) for names in layers.values()]),
        "layer_trace_stderrs": np.full(len(layers), np.nan if kind == "mc" else 0.0),
    }


def _over_draws(
    rows: GradientRows, gram: Float[Tensor, "m m"], values: Float[np.ndarray, " k"], Q: Float[np.ndarray, "m j"]
) -> dict[str, Any]:
    """Errors of eigenvalues, trace and norm over the draws, each to first order the mean over draws of what one adds.

    An eigenvalue is vᵀFv with the eigenvector v held, and ‖F‖ is tr(F F_d)/‖F‖ with F held.
    """
    draw, norm = rows.passes.numpy(), float(gram.norm())
    draws, known = int(draw.max()) + 1, values[: Q.shape[1]]
    parts = np.zeros((draws, len(known) + 2))
    of_norm = gram.square().sum(1).numpy() / max(norm, np.finfo(float).tiny)
    np.add.at(parts, draw, np.column_stack([Q**2 * known, gram.diagonal().numpy(), of_norm]))
    errors = np.full(parts.shape[1], np.nan)
    if draws > 1:
        errors = parts.std(axis=0, ddof=1) * np.sqrt(draws)  # of the mean of draws·parts
    return {
        "draw_stderr": np.append(errors[:-2], np.full(len(values) - len(known), np.nan)),
        "trace_stderr": float(errors[-2]),
        "frobenius_stderr": float(errors[-1]),
        "probes": draws,
    }


def _notes(pullbacks: Pullbacks, draws: int) -> tuple[str, ...]:
    """Whose errors stand in the record, and what the kind makes of the terms of a sample."""
    notes = ["errors from the data are jackknifed over samples"]
    if sum(weight > 0 for weight in pullbacks.weights) == 1 and sum(pullbacks.samples) == 1:
        notes.append("one sample: no error from the data")
    if pullbacks.kind == "mc" and draws == 1:
        notes.append(
            "a single draw: no error over draws, and eigenvalues that differ from seed to seed; take draws=8 or more"
        )
    terms = sum(pullbacks.weights) / max(sum(pullbacks.samples), 1)
    if terms > 1 + 1e-9:
        scale = (
            "of their summed gradient, which for unrelated terms is that many times below kind='exact' and 'mc'"
            if pullbacks.kind == "empirical"
            else "a term each, which for unrelated terms is that many times above kind='empirical'"
        )
        notes.append(
            f"a sample has {terms:.3g} terms in the loss (tokens, positions, elements): the outer products are {scale}"
        )
    return tuple(notes)


def _errors(
    problem: Problem,
    pullbacks: Pullbacks,
    rows: GradientRows,
    gram: Float[Tensor, "m m"],
    values: Float[np.ndarray, " k"],
    Q: Float[np.ndarray, "m j"],
) -> dict[str, Any]:
    """Errors from the data of eigenvalues, with eigenvectors held, and of the trace, leaving one sample out at a time.

    Row r adds λ q_r² to vᵀFv for the eigenvector v = Gᵀq/√λ; errors of eigenvalues without an eigenvector are NaN.
    """
    sizes = np.array(rows.samples)
    weights = np.repeat(np.array(pullbacks.weights) / np.maximum(sizes, 1), sizes)
    sample = rows.sample.numpy()
    known = values[: Q.shape[1]]
    parts = np.zeros((len(weights), len(known) + 1))
    np.add.at(parts, sample, np.column_stack([Q**2 * known, gram.diagonal().numpy()]))
    whole = np.append(known, float(gram.trace()))
    kept = 1.0 - weights / weights.sum()
    with np.errstate(all="ignore"):  # a single sample leaves nothing, and its error is NaN
        factor = (1 - 1 / len(weights)) / kept**2 if pullbacks.kind == "empirical" else 1 / kept
        left_out = (whole - parts) * factor[:, None]
    errors = jackknife_stderr(left_out, whole=whole, weights=weights)
    return {
        "data_stderr": np.append(errors[:-1], np.full(len(values) - len(known), np.nan)),
        "trace_data_stderr": float(errors[-1]),
        "context": problem.context() | {"chunks": int((weights > 0).sum())},
    }
