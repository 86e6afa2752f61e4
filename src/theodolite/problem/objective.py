"""What is minimised, as total and weight of a batch: a criterion on the model's outputs, or any loss function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.problem.criteria import OutputLoss, one_number, settings_of, total_and_weight
from theodolite.problem.data import samples_of, split

Evaluation = tuple[Float[Tensor, ""], float]

# Enough for unequal counts of valid tokens to show in a batch, few enough to cost no more than one pass.
PARTS = 8


class Objective(ABC):
    """The loss of a batch as total / weight."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Any) -> Evaluation:
        """Total, differentiable, and weight."""

    @abstractmethod
    def shares(self, model: nn.Module, batch: Any) -> Float[Tensor, " b"]:
        """What each sample adds to the total, differentiable."""

    @abstractmethod
    def samples(self, batch: Any) -> int:
        """Number of samples in the batch."""

    def averages(self) -> bool:
        """Whether totals are divided by weights; False for a criterion that sums."""
        return True

    def couples(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its batch, whatever the model."""
        return False

    @abstractmethod
    def settings(self) -> tuple[object, ...]:
        """What may change in the criterion or loss function while a problem is in use."""

    def parts(self, model: nn.Module, batch: Any) -> list[Evaluation]:
        """The batch evaluated in eight parts, to see whether totals add up."""
        return [self.evaluate(model, part) for part in split(batch, -(-self.samples(batch) // PARTS))]


@dataclass(frozen=True)
class CriterionObjective(Objective):
    """criterion(model(inputs), targets)."""

    loss: OutputLoss

    def averages(self) -> bool:
        return self.loss.averages()

    def couples(self) -> bool:
        return self.loss.couples()

    def settings(self) -> tuple[object, ...]:
        return self.loss.settings()

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """model(inputs): a mapping is passed by keyword, a tuple or list by position."""
        inputs, _ = pair(batch)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, list | tuple):
            return model(*inputs)
        return model(inputs)

    def evaluate(self, model: nn.Module, batch: Any) -> Evaluation:
        return self.loss.evaluate(self.outputs(model, batch), pair(batch)[1])

    def shares(self, model: nn.Module, batch: Any) -> Float[Tensor, " b"]:
        return self.loss.shares(self.outputs(model, batch), pair(batch)[1])

    def samples(self, batch: Any) -> int:
        return samples_of(pair(batch)[1])


@dataclass(frozen=True)
class LossObjective(Objective):
    """loss_fn(model, batch)."""

    function: Callable[[nn.Module, Any], Any]

    def settings(self) -> tuple[object, ...]:
        return settings_of(self.function)

    def evaluate(self, model: nn.Module, batch: Any) -> Evaluation:
        value = self.function(model, batch)
        if isinstance(value, tuple):
            return total_and_weight(value, "the loss function")
        if getattr(value, "loss", value) is None:
            raise ProblemError(
                f"Expected the loss function to return a loss, found {type(value).__name__} whose loss is None, as of a model of "
                "transformers that was given no labels. Put labels into the batch, or return the loss yourself."
            )
        loss = one_number(getattr(value, "loss", value), "the loss function")
        weight = _denominator(model, batch)
        return (loss * weight if weight else torch.zeros_like(loss)), weight

    def shares(self, model: nn.Module, batch: Any) -> Float[Tensor, " b"]:
        return torch.stack([self.evaluate(model, sample)[0] for sample in split(batch, 1)])

    def samples(self, batch: Any) -> int:
        return samples_of(batch)


def pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    Raises:
        DataError: the batch is no pair.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Tensor):
        raise DataError(
            f"Expected batches of (inputs, targets), found a Tensor of shape {tuple(batch.shape)}. Wrap a single batch in a "
            "list: [(inputs, targets)]. For any other batch use Problem.from_loss(model, lambda model, batch: …, batches)."
        )
    found = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, Sized) else type(batch).__name__
    raise DataError(
        f"Expected batches of (inputs, targets), found a {found}. "
        "For any other batch use Problem.from_loss(model, lambda model, batch: …, batches)."
    )


def with_outputs(objective: Objective, *, caller: str = "GGN, Fisher and Jacobian need") -> CriterionObjective:
    """The objective as a criterion on outputs, which GGN and Fisher need.

    Args:
        objective: of the problem.
        caller: who needs them, with the verb.

    Raises:
        OperatorError: the objective is a loss function of model and batch, whose outputs are not known.
    """
    if isinstance(objective, CriterionObjective):
        return objective
    raise OperatorError(
        f"{caller} the model's outputs and a criterion on them, found a problem made by Problem.from_loss. "
        "Use Problem(model, criterion, batches)."
    )


def _denominator(model: nn.Module, batch: Any) -> float:
    """What a scalar loss was averaged over: the valid labels of a Hugging Face batch, the samples of any other."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() > 0:
        if _shifts_labels(model):
            labels = labels[..., 1:]
        return float((labels != -100).sum())
    return float(samples_of(batch))


def _shifts_labels(model: nn.Module) -> bool:
    """Whether the model predicts the next token, so that the first label of each sequence is not used."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
