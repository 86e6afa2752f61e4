"""What is read at a point beside the loss, from the same forward pass: accuracy, losses of groups, whatever a user counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.operators.grouped import By, label_order, labels_of
from theodolite.problem import Problem
from theodolite.problem.arguments import refuse_no_function, shown
from theodolite.problem.objective import CriterionObjective, pair

IGNORED = -100
GRADIENT_NORM = "gradient norm"
Counted = tuple[Tensor, Tensor | float]
Count = Callable[[Any, Any], Tensor | Counted]
Named = Literal["accuracy", "gradient norm"]
Scalars = Named | Sequence[Named] | Mapping[str, Count]


@dataclass(frozen=True)
class Quantities:
    """What is counted at every point beside the loss.

    Args:
        counts: functions of (outputs, targets), by name.
        groups: for each sample, in the order of the data, the place of its group in ``names``; None without groups.
        names: of the groups.
        gradient: whether the norm of the gradient is read.
    """

    counts: Mapping[str, Count]
    groups: Int[Tensor, " b"] | None = None
    names: tuple[str, ...] = ()
    gradient: bool = False

    def __bool__(self) -> bool:
        return bool(self.counts) or self.groups is not None or self.gradient

    @property
    def of_forward(self) -> tuple[str, ...]:
        """Names of what one forward pass gives."""
        return (*self.counts, *self.names)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of everything that is read."""
        return (*self.of_forward, *((GRADIENT_NORM,) if self.gradient else ()))

    def read(self, outputs: Any, batch: Any, shares: Callable[[], Float[Tensor, " b"]], *, start: int) -> list[Counted]:
        """Total and weight of every quantity on one chunk, in the order of ``of_forward``.

        Args:
            outputs: of the model.
            batch: inputs and targets.
            shares: gives what each sample adds to the total of the loss.
            start: place of its first sample in the data.
        """
        targets = pair(batch)[1]
        found = [counted(count(outputs, targets), name) for name, count in self.counts.items()]
        if self.groups is None:
            return found
        each = shares().detach()
        groups = self.groups[start : start + len(each)].to(each.device)
        totals = torch.zeros(len(self.names), dtype=each.dtype, device=each.device).index_add(0, groups, each)
        sizes = torch.bincount(groups, minlength=len(self.names))
        return found + list(zip(totals.unbind(), sizes.unbind(), strict=True))


def quantities(problem: Problem, scalars: Scalars, groups: By | None) -> Quantities:
    """What a user asked for, checked.

    Raises:
        ProblemError: a name is not known, or the problem has no outputs to count on.
        DataError: the labels are not one for each sample.
    """
    counts: dict[str, Count] = {}
    gradient = False
    if isinstance(scalars, Mapping):
        for name, count in scalars.items():
            refuse_no_function(count, name=f"scalars={{{name!r}: …}}", example="a function of (outputs, targets)")
        counts = dict(scalars)
    else:
        scalars = (scalars,) if isinstance(scalars, str) else scalars
        if not isinstance(scalars, Iterable):
            raise ProblemError(f"Expected scalars as names or a mapping of names to functions, found {shown(scalars)}.")
        for name in scalars:
            if name not in ("accuracy", GRADIENT_NORM):
                raise ProblemError(
                    f"Expected scalars among 'accuracy' and 'gradient norm', or a mapping of names to functions of (outputs, "
                    f"targets), found {name!r}."
                )
        gradient = GRADIENT_NORM in scalars
        counts = {"accuracy": accuracy} if "accuracy" in scalars else {}
    if (counts or groups is not None) and not isinstance(problem.objective, CriterionObjective):
        raise ProblemError(
            "Expected a criterion on the model's outputs, from which scalars and groups are counted, found a problem made by "
            "Problem.from_loss. Use Problem(model, criterion, batches)."
        )
    if groups is None:
        return Quantities(counts, gradient=gradient)
    places, names = _placed(problem, [label for of_batch in labels_of(problem, groups) for label in of_batch])
    return Quantities(counts, places, names, gradient)


def accuracy(outputs: Any, targets: Tensor) -> Counted:
    """How many of the largest outputs along the second dimension are those of integer targets, and of how many.

    Targets of −100 are left out, as cross-entropy does.

    Args:
        outputs: logits of shape (b, classes, …), or a mapping or output of transformers that holds them as ``logits``.
        targets: classes of shape (b, …).

    Raises:
        ProblemError: the targets are no classes.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        (tensor(1), tensor(2))
    """
    logits: Any = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    whole = isinstance(logits, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point()
    if not whole or logits.shape[:1] + logits.shape[2:] != targets.shape:
        raise ProblemError(
            "Expected logits of shape (b, classes, …) and integer targets of shape (b, …) to read an accuracy, found "
            f"{_shape(logits)} and {_shape(targets)}. Give scalars={{name: function of (outputs, targets)}}."
        )
    valid = targets != IGNORED
    return ((logits.argmax(1) == targets) & valid).sum(), valid.sum()


def counted(value: Tensor | Counted, name: str) -> Counted:
    """Total and weight: a pair as it is, a number for each sample summed over them.

    Raises:
        ProblemError: it is neither.
    """
    if isinstance(value, tuple) and len(value) == 2:
        return value
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.sum(), float(len(value))
    raise ProblemError(
        f"Expected the scalar {name!r} to return one number for each sample, of shape (b,), or a pair (total, weight), found "
        f"{_shape(value)}. Chunks of the data differ in size, so that a mean alone cannot be added up."
    )


def _placed(problem: Problem, labels: list[Hashable]) -> tuple[Int[Tensor, " b"], tuple[str, ...]]:
    """For each sample the place of its label among those of all ranks, and their names."""
    known = {label if isinstance(label, int | float | str) else str(label) for label in labels}
    everywhere = {
        label for said in problem.ranks.texts(json.dumps(sorted(known, key=label_order))) for label in json.loads(said)
    }
    order = {label: place for place, label in enumerate(sorted(everywhere, key=label_order))}
    places = torch.tensor([order[label if label in order else str(label)] for label in labels], dtype=torch.int64)
    return places, tuple(f"loss of {label}" for label in order)


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
