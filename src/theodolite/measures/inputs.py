"""Values of a problem's samples and their gradients in the inputs, at the inputs or at others in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import DataError, ProblemError
from theodolite.measures.separable import refuse_mixed_samples
from theodolite.operators.input_hessian import with_inputs
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.criteria import tensor_of
from theodolite.problem.objective import CriterionObjective, pair, with_outputs

Of = Literal["loss", "logit"] | Callable[[Tensor, Any], Tensor]


def refuse_inputs(problem: Problem, of: object) -> CriterionObjective:
    """The criterion of a problem whose samples have values of their own, differentiable in the inputs.

    Raises:
        OperatorError: samples are coupled, ranks share the data, or the outputs are not known.
        ProblemError: ``of`` is unknown.
    """
    if of not in ("loss", "logit") and not callable(of):
        raise ProblemError(f"Expected of='loss', 'logit', or a function of (outputs, targets), found {of!r}.")
    objective = with_outputs(problem.objective, caller="Gradients in the inputs need")
    refuse_mixed_samples(problem)
    return objective


def at_inputs(
    problem: Problem,
    chunk: Chunk,
    point: Point,
    *,
    of: Of,
    inputs: Sequence[Tensor],
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d"]]:
    """Value of every sample and its gradient in the inputs, flattened; the loss as its part of the summed loss.

    Args:
        problem: with a criterion.
        chunk: whose targets and other inputs are used.
        point: parameters.
        of: which value.
        inputs: in the place of the differentiable ones.
    """
    objective = with_outputs(problem.objective)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]

    def differentiate(model: nn.Module) -> tuple[Tensor, Tensor]:
        batch = with_inputs(chunk, leaves), pair(chunk.batch)[1]
        values = _values(objective, objective.outputs(model, batch), batch[1], of, chunk.samples)
        rows = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
        return values.detach(), torch.cat([row.reshape(chunk.samples, -1) for row in rows], dim=1)

    return problem.call(differentiate, point, chunk=chunk.index)


def scale_of(problem: Problem, of: Of) -> float:
    """What makes the mean of the samples' losses the loss of the problem; 1 for other values."""
    return problem.samples / problem.total_weight(problem.totals()[1]) if of == "loss" else 1.0


def name_of(of: Of) -> str:
    """For a record."""
    return of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)


def _values(objective: CriterionObjective, outputs: Any, targets: Any, of: Of, samples: int) -> Float[Tensor, " b"]:
    if of == "loss":
        return objective.loss.shares(outputs, targets)
    found = tensor_of(outputs)
    if callable(of):
        values = of(found, targets)
        if not isinstance(values, Tensor) or values.shape != (samples,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise DataError(
                f"Expected of(outputs, targets) to return one value for each of {samples} samples, found {shape}."
            )
        return values
    if found.dim() != 2 or not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        raise DataError(
            f"Expected logits (b, classes) and one class for each sample, found outputs of shape {tuple(found.shape)}. Use "
            "of='loss', or a function of (outputs, targets)."
        )
    targets = targets.long()
    known = (targets >= 0) & (targets < found.shape[1])  # the others are those that the criterion ignores
    return torch.where(known, found.gather(1, torch.where(known, targets, 0)[:, None])[:, 0], 0.0)
