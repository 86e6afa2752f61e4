"""The model's outputs and the criterion on them, which GGN, Fisher and Jacobian need."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from theodolite.errors import OperatorError
from theodolite.operators.certificate import first_piece
from theodolite.operators.subject import refuse_no_problem
from theodolite.problem import Problem
from theodolite.problem.criteria import CrossEntropy, OutputLoss, tensor_of
from theodolite.problem.data import Batches
from theodolite.problem.objective import CriterionObjective, Objective, pair, with_outputs


class Outputs(ABC):
    """How to get outputs and targets from a batch.

    Args:
        loss: the criterion on them.
    """

    def __init__(self, loss: OutputLoss) -> None:
        self.loss = loss

    @abstractmethod
    def tensor(self, model: nn.Module, batch: Any) -> Tensor:
        """The outputs as the criterion takes them."""

    @abstractmethod
    def targets(self, batch: Any) -> Any:
        """The targets as the criterion takes them."""


@final
class CriterionOutputs(Outputs):
    """Outputs of a problem made with a criterion."""

    def __init__(self, objective: CriterionObjective) -> None:
        super().__init__(objective.loss)
        self._objective = objective

    def tensor(self, model: nn.Module, batch: Any) -> Tensor:
        return tensor_of(self._objective.outputs(model, batch))

    def targets(self, batch: Any) -> Any:
        return pair(batch)[1]


@final
class LabelledOutputs(Outputs):
    """Logits of a model of transformers, whose loss is the cross-entropy of its ``labels``.

    Args:
        shifts: whether the logits of each position are for the label of the next one.
    """

    def __init__(self, *, shifts: bool) -> None:
        super().__init__(CrossEntropy())
        self._shifts = shifts

    def tensor(self, model: nn.Module, batch: Any) -> Tensor:
        logits = tensor_of(model(**batch))
        if self._shifts:
            logits = logits[:, :-1]
        return logits if logits.dim() == 2 else logits.movedim(-1, 1)

    def targets(self, batch: Any) -> Any:
        labels = batch["labels"]
        return labels[:, 1:] if self._shifts else labels


@final
@dataclass(frozen=True)
class LabelledObjective(CriterionObjective):
    """The loss of a model of transformers as a criterion, on batches paired with their targets.

    Args:
        known: how logits and targets are had.
    """

    known: LabelledOutputs

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        return self.known.tensor(model, pair(batch)[0])


def with_criterion(problem: Problem, *, caller: str) -> Problem:
    """The same problem as a criterion on known outputs, of which the gradients of samples can be started.

    Cost: as ``outputs_of``.

    Args:
        problem: made with a criterion, or by ``from_loss`` for a model of transformers.
        caller: who needs the outputs, with the verb.

    Raises:
        OperatorError: the outputs are not known.
    """
    known = outputs_of(problem, caller=caller)
    if not isinstance(known, LabelledOutputs):
        return problem
    other = copy.copy(problem)
    other._depth = 0
    other.objective = LabelledObjective(known.loss, known)
    other.batches = Batches(_Paired(problem.batches, known))
    return other


@final
class _Paired:
    """Batches with their targets beside them."""

    def __init__(self, batches: Iterable[Any], known: LabelledOutputs) -> None:
        self._batches, self._known = batches, known

    def __iter__(self) -> Iterator[Any]:
        return ((batch, self._known.targets(batch)) for batch in self._batches)


def outputs_of(problem: Problem, *, caller: str = "GGN, Fisher and Jacobian need") -> Outputs:
    """Outputs and criterion of a problem: what it was made with, or logits and labels of a model of transformers.

    Cost: nothing with a criterion; for ``from_loss`` with batches that have ``labels`` two or four forward passes of a few
    samples, which check that its loss is their cross-entropy.

    Args:
        problem: of any kind.
        caller: who needs them, with the verb.

    Raises:
        OperatorError: the outputs are not known.
    """
    refuse_no_problem(problem, operator="GGN")
    labels = None if isinstance(problem.objective, CriterionObjective) else _labels(problem.batches.first())
    if labels is None:
        return CriterionOutputs(with_outputs(problem.objective, caller=caller))
    for shifts in (True, False) if labels.dim() == 2 else (False,):
        found = LabelledOutputs(shifts=shifts)
        if _is_the_loss(problem, problem.objective, found):
            return found
    raise OperatorError(
        "Expected a loss function that is the cross-entropy of the batch's labels under model(**batch).logits, as the models of "
        "transformers compute it, found another value on the first samples. Use Problem(model, criterion, batches) with a model "
        "that returns what the criterion takes."
    )


def _labels(batch: Any) -> Tensor | None:
    """Labels of a batch of transformers, None for any other."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return labels if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() > 0 else None


def _is_the_loss(problem: Problem, objective: Objective, outputs: Outputs) -> bool:
    """Whether loss and weight of a few samples are those of the criterion on the outputs."""
    piece, point = first_piece(problem), problem.point()

    def agree(model: nn.Module) -> bool:
        with torch.no_grad():
            try:
                logits, targets = outputs.tensor(model, piece.batch), outputs.targets(piece.batch)
                value, weight = outputs.loss.evaluate(logits, targets)
            except (TypeError, OperatorError, RuntimeError, ValueError):
                return False  # the model does not take the batch as it is, or its logits are no match for the labels
            total, known = objective.evaluate(model, piece.batch)
        # Models of transformers compute their loss in float32 whatever their own type.
        return weight == known and bool(torch.isclose(value.double(), total.double(), rtol=1e-4, atol=1e-5))

    return problem.call(agree, point)
