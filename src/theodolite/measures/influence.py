"""Influence of training samples on the loss of queries, through an inverse product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import NonFiniteError, OperatorError, ProblemError
from theodolite.linalg import cg
from theodolite.measures.arguments import surveyed
from theodolite.measures.subject import OperatorName, context_of, operator_of
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Chunk, Problem
from theodolite.problem.arguments import optional, real, whole
from theodolite.problem.arrays import to_numpy
from theodolite.problem.problem import gradients
from theodolite.records import Cost, Influence


def influence(
    problem: Problem,
    queries: Problem | Float[Tensor, "q n"],
    *,
    damping: float,
    operator: OperatorName = "ggn",
    tol: float = 1e-3,
    max_products: int | None = None,
    step: int | None = None,
) -> Influence:
    """How the loss of each query would change with the weight of each training sample, to first order.

    At a minimum of the loss plus δ/2·‖θ − θ₀‖², weighing sample i by ε more moves the minimum by −(H + δI)⁻¹g_i·ε, and with it
    the loss of a query by −g_qᵀ(H + δI)⁻¹g_i·ε. Away from a minimum, as in all networks, this is the response of a quadratic
    model around the parameters, which damping keeps near them.

    Cost: one solve for each query, 10 to 100 products with small damping; then a forward pass, two backward passes for each
    query, over the whole data.

    Args:
        problem: the training data.
        queries: a problem of the same model and parameters, each of whose samples is a query; or gradients, one a row.
        damping: δ, at least the rounding of the operator; a typical choice is 1e-3 of the sharpness.
        operator: ``"ggn"``, positive where the criterion is convex in the outputs, as cross-entropy and squared error are; or
            ``"hessian"``. This, and the GGN of a criterion that is not convex (generalised cross-entropy and other bounded
            ones), needs δ above −λₙ: ``spectrum(problem, k=1, which="smallest", operator=...)`` has λₙ.
        tol: relative residual of the solves.
        max_products: for each query.
        step: optimiser step, kept in the record.

    Returns:
        A record; samples in the order of the data. Systems that were not solved to ``tol`` are marked.

    Raises:
        OperatorError: samples are coupled or sharded over ranks, or the operator plus damping is not positive along a
            direction that a solve met.
        ProblemError: the queries are of other parameters or of other weights, or the damping is not positive.
        NonFiniteError: the gradient of a query is not finite.

    Example:
        >>> model, inputs = torch.nn.Linear(3, 1), torch.randn(20, 3)
        >>> problem = Problem(model, torch.nn.MSELoss(), [(inputs, inputs.sum(1, keepdim=True))])
        >>> influence(problem, problem, damping=0.1).scores.shape
        (20, 20)

    References:
        Koh, Liang, "Understanding black-box predictions via influence functions" (2017).
        Grosse et al., "Studying large language model generalization with influence functions" (2023).
    """
    started = time.perf_counter()
    surveyed(problem)
    real(damping=damping, tol=tol)
    optional(whole, max_products=max_products)
    if not damping > 0:
        raise ProblemError(
            f"Expected a positive damping, found {damping!r}; 1e-3 of the sharpness is a typical choice."
        )
    refuse_sharded(problem)
    rows = _query_gradients(problem, queries)
    H = operator_of(problem, operator)
    limit = None if max_products is None else max_products * len(rows)
    solved = cg(H.shift(damping), rows.T.contiguous(), tol=tol, max_products=limit)
    if bool(solved.negative_curvature.any()):
        remedy = (
            "Take damping above the size of the smallest eigenvalue, which spectrum(problem, k=1, which='smallest', "
        )
        remedy += f"operator={operator!r}) finds, or "
        remedy += "operator='ggn'." if operator == "hessian" else "a criterion that is convex in the outputs."
        raise OperatorError(
            f"Expected {operator} + {damping:g}·I to be positive, found a direction along which it is not ({solved.message}). "
            f"{remedy}"
        )
    scores = _responses(problem, solved.x.T.contiguous())
    passes = Cost(gradients=1.0 + 2.0 * len(rows), forwards=1.0, seconds=time.perf_counter() - started)
    return Influence(
        step=step,
        cost=replace(H.cost + passes, seconds=passes.seconds),
        notes=tuple(H.notes),
        context=context_of(problem, H),
        scores=-to_numpy(scores.double()),
        residuals=to_numpy(solved.residual),
        converged=solved.converged.numpy(),
        damping=damping,
        tol=tol,
        operator=operator,
        size=problem.n,
    )


def _query_gradients(problem: Problem, queries: object) -> Float[Tensor, "q n"]:
    """The gradient of each query's loss."""
    if isinstance(queries, Tensor):
        return _finite(_given(problem, queries))
    if not isinstance(queries, Problem):
        raise ProblemError(
            f"Expected queries as a Problem, or as a tensor of gradients, one a row, found a {type(queries).__name__}."
        )
    if queries.layout != problem.layout:
        raise ProblemError(
            f"Expected queries of the same parameters, found {queries.n:,} of them where the data has {problem.n:,}. Make both "
            "problems of one model with the same params=."
        )
    _refuse_other_values(problem, queries)
    point = queries.point()

    def one_by_one(shares: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        rows = [torch.autograd.grad(share, point.leaves, retain_graph=True, materialize_grads=True) for share in shares]
        return torch.stack([queries.layout.flatten(row) for row in rows])

    rows = torch.cat(list(_of_samples(queries, one_by_one))) * _scale(queries)
    return _finite(rows.to(problem.device, problem.dtype))


def _given(problem: Problem, queries: Tensor) -> Float[Tensor, "q n"]:
    """Gradients that the caller brought, one a row."""
    if queries.ndim != 2 or queries.shape[1] != problem.n or not len(queries):
        raise ProblemError(
            f"Expected gradients of queries in the shape (q, {problem.n}), one a row, found {tuple(queries.shape)}."
        )
    return queries.detach().to(problem.device, problem.dtype)


def _refuse_other_values(problem: Problem, queries: Problem) -> None:
    """A model of the same shapes but other weights answers another question: the expansion is around one point."""
    if queries.model is problem.model:
        return
    for name, ours, theirs in zip(problem.layout.names, problem.point().leaves, queries.point().leaves, strict=True):
        narrow = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)  # both may be casts of one model
        if not torch.equal(ours.detach().to(narrow), theirs.detach().to(ours.device, narrow)):
            raise ProblemError(
                f"Expected queries of the same model at the same weights, found other values of {name}. Make both problems of "
                "one model, or load the same checkpoint into both."
            )


def _finite(rows: Float[Tensor, "q n"]) -> Float[Tensor, "q n"]:
    bad = (~torch.isfinite(rows)).any(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"Expected finite gradients of the queries, found NaN or infinity in {int(bad.sum()):,} of {len(rows):,}, the first "
            f"at place {int(bad.nonzero()[0])}. Check the loss of these samples, and whether training has diverged."
        )
    return rows


def _responses(problem: Problem, X: Float[Tensor, "q n"]) -> Float[Tensor, "q i"]:
    """g_iᵀx for every sample i and every row x.

    The gradient of Σ u_i·share_i is linear in u; differentiated again, along x, it gives the slopes of all samples at once.
    """
    point = problem.point()
    directions = [problem.layout.unflatten(x) for x in X]

    def slopes(shares: Float[Tensor, " b"]) -> Float[Tensor, "q b"]:
        u = torch.ones_like(shares, requires_grad=True)
        summed = gradients(torch.dot(u, shares), point.leaves, create_graph=True)
        rows = []
        for direction in directions:
            slope = torch.stack([(part * d).sum() for part, d in zip(summed, direction, strict=True)]).sum()
            rows.append(torch.autograd.grad(slope, u, retain_graph=True)[0])
        return torch.stack(rows)

    return torch.cat(list(_of_samples(problem, slopes)), dim=1) * _scale(problem)


def _of_samples(problem: Problem, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """A function of the samples' shares in the loss, chunk by chunk."""
    if problem.coupled:
        raise OperatorError(
            "Expected samples with a loss of their own, found them coupled by BatchNorm on batch statistics or by the criterion "
            f"(mode={problem.mode!r}). Use mode='eval'."
        )
    point = problem.point()
    for chunk in problem.chunks():

        def differentiate(model: nn.Module, chunk: Chunk = chunk) -> Tensor:
            return function(problem.objective.shares(model, chunk.batch)).detach()

        yield problem.call(differentiate, point, chunk=chunk.index)


def _scale(problem: Problem) -> float:
    """What makes the mean of the samples' gradients that of the problem."""
    return problem.samples / problem.total_weight(problem.totals()[1])
