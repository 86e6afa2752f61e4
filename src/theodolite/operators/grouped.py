"""One operator for each group of samples, a class or a domain, and the whole as their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import DataError, OperatorError
from theodolite.linalg import LinearOperator
from theodolite.operators.covariance import GradientCovariance
from theodolite.operators.fisher import Fisher
from theodolite.operators.hessian import Hessian
from theodolite.operators.problem_operator import ProblemOperator
from theodolite.operators.stacked import StackedOperator, refuse_sharded
from theodolite.problem import Problem
from theodolite.problem.objective import CriterionObjective, pair

Labels = Tensor | np.ndarray | Sequence[Hashable]
By = str | Labels | Callable[[Any], Labels]

MOST_GROUPS = 1000


@final
class Grouped(LinearOperator):
    """H = Σ_g w_g H_g: the Hessian of the loss of each class or domain, and of all together.

    Each group is a problem of its own, with the samples that carry its label, so that everything that can be asked of a problem
    can be asked of a class: ``spectrum(grouped.problems["cat"])``. A group's loss is the mean over its own samples, by their own
    weights, and w_g is its share of the whole weight.

    Cost: a forward pass over the data, twice, to weigh the groups and to check that they add up. A product with one vector takes
    one product over the whole data, for all groups together, as each sample lies in one of them, and the overhead of as many
    small ones: twice a product of the whole for ten classes of digits and 85,000 parameters on a CPU.

    Args:
        problem: the whole; its samples must not be coupled.
        by: ``"targets"`` for integer class targets, one a sample; labels, one for each sample in the order of the data; or a
            function from a batch to the labels of its samples. Labels are numbers or words.
        operator: what to make of each group's problem: Hessian, GGN, Fisher, or a function.

    Attributes:
        problems: the problem of each group, in the order of sorted labels.
        operators: the operator of each.
        weights: w_g; they sum to 1 for a mean over samples.
        losses: mean loss of each group.
        samples: number of samples of each.

    Raises:
        OperatorError: samples are coupled, or the groups' losses do not add up to the whole, as with dropout masks.
        DataError: the labels are not one for each sample.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.tensor([0, 1] * 4))])
        >>> grouped = Grouped(problem)
        >>> grouped.weights, grouped.operators[1]
        ({0: 0.5, 1: 0.5}, <Hessian: 8×8, float32, cpu, symmetric>)

    References:
        Rangwani et al., "Escaping saddle points for effective generalization on class-imbalanced data" (2022).
    """

    def __init__(
        self,
        problem: Problem,
        *,
        by: By = "targets",
        operator: Callable[[Problem], ProblemOperator] = Hessian,
    ) -> None:
        super().__init__(shape=(problem.n, problem.n), dtype=problem.dtype, device=problem.device, symmetric=True)
        refuse_sharded(problem)
        if problem.coupled:
            raise OperatorError(
                "Groups of samples have losses of their own only where samples are not coupled by BatchNorm on batch statistics or "
                f"by the criterion; found them coupled, with mode={problem.mode!r}. Use mode='eval'."
            )
        problem.ensure_checked()
        self.problems = problems_by_group(problem, by=by)
        self.samples = {label: part.samples for label, part in self.problems.items()}
        self.weights, self.losses = _weighed(problem, self.problems)
        self.operators = {label: operator(part) for label, part in self.problems.items()}
        _refuse_what_is_no_mean(next(iter(self.operators.values())))

    def products(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "g n k"]:
        """H_g V for every group, in the order of ``problems``; zero for a group that weighs nothing.

        Cost: k products over the whole data.
        """
        found = [part @ V if self.weights[label] > 0 else torch.zeros_like(V) for label, part in self.operators.items()]
        return torch.stack(found)

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        total = torch.zeros_like(V)
        for label, part in self.operators.items():
            if self.weights[label] > 0:
                total += self.weights[label] * (part @ V)
        return total

    def _expression(self) -> str:
        return f"Σ {len(self.operators)} groups of {next(iter(self.operators.values()))._expression()}"


def problems_by_group(problem: Problem, *, by: By = "targets") -> dict[Hashable, Problem]:
    """The problem of each label's samples, by sorted labels; certificate and checks carry over.

    Cost: a walk over the data without the model, and a copy of it where it lies in memory.

    Args:
        problem: the whole.
        by: as for ``Grouped``.

    Raises:
        DataError: the labels are not one for each sample.
    """
    labels = list(labels_of(problem, by))
    codes: dict[Hashable, list[Tensor]] = {}
    for index, of_batch in enumerate(labels):
        for label in dict.fromkeys(of_batch):
            rows = torch.tensor([row for row, other in enumerate(of_batch) if other == label])
            codes.setdefault(label, [torch.arange(0)] * index).append(rows)
        for chosen in codes.values():
            if len(chosen) == index:
                chosen.append(torch.arange(0))
        if len(codes) > MOST_GROUPS:
            raise DataError(
                f"Expected at most {MOST_GROUPS} groups, found more among the first {index + 1} batches. Are the labels real "
                "numbers, or tokens? Bring them into groups, by=lambda batch: …"
            )
    return {label: problem.only(codes[label]) for label in sorted(codes, key=label_order)}


def labels_of(problem: Problem, by: By) -> Iterator[list[Hashable]]:
    """The labels of each batch."""
    if isinstance(by, str) and by != "targets":
        raise DataError(f"Expected by='targets', labels, or a function of a batch, found {by!r}.")
    given = None if isinstance(by, str) or callable(by) else _listed(by)
    start = 0
    for batch in problem.batches:
        count = problem.objective.samples(batch)
        if isinstance(by, str):
            of_batch = _targets(problem, batch)
        elif given is not None:
            of_batch = given[start : start + count]
        else:
            assert callable(by)
            of_batch = _listed(by(batch))
        if len(of_batch) != count:
            raise DataError(f"Expected one label for each of {count} samples of a batch, found {len(of_batch)}.")
        start += count
        yield of_batch
    if given is not None and len(given) != start:
        raise DataError(f"Expected one label for each of {start} samples, found {len(given)}.")


def _targets(problem: Problem, batch: Any) -> list[Hashable]:
    """Class targets, one a sample."""
    targets = pair(batch)[1] if isinstance(problem.objective, CriterionObjective) else None
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() != 1:
        found = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise DataError(
            f"Expected one integer target a sample to group by, found {found}. Give by= one label for each sample, or a "
            "function from a batch to its labels, as by=lambda batch: batch[1].argmax(1)."
        )
    return _listed(targets)


def _listed(labels: Labels) -> list[Hashable]:
    """Labels as a list of Python values."""
    if isinstance(labels, Tensor | np.ndarray):
        if labels.ndim != 1:
            raise DataError(f"Expected labels of shape (samples,), found {tuple(labels.shape)}.")
        found: list[Hashable] = labels.tolist()
        return found
    return [label.item() if isinstance(label, Tensor | np.generic) else label for label in labels]


def label_order(label: Hashable) -> tuple[str, Any]:
    """Numbers by size, everything else by its text."""
    return ("", label) if isinstance(label, int | float) else (type(label).__name__, str(label))


def _weighed(
    problem: Problem, problems: Mapping[Hashable, Problem]
) -> tuple[dict[Hashable, float], dict[Hashable, float]]:
    """Share of each group in the denominator of the loss, and its mean loss.

    Raises:
        OperatorError: the weighted losses do not add up to that of the whole.
    """
    totals, weights = problem.totals()
    whole = problem.total_weight(weights)
    shares: dict[Hashable, float] = {}
    losses: dict[Hashable, float] = {}
    for label, part in problems.items():
        totals_here, weights_here = part.totals()
        counts = not part.objective.averages() or float(weights_here.sum()) > 0
        denominator = part.total_weight(weights_here) if counts else 0.0
        shares[label] = denominator / whole
        losses[label] = float(totals_here.sum()) / denominator if counts else float("nan")
    loss = float(totals.sum()) / whole
    added = sum(share * losses[label] for label, share in shares.items() if share > 0)
    tolerance = max(1e4 * torch.finfo(problem.dtype).eps, 1e-9)
    if abs(added - loss) > tolerance * max(abs(loss), abs(added)):
        raise OperatorError(
            f"Expected the losses of the groups to add up to that of the whole, found {added:.8g} and {loss:.8g}. Something "
            f"depends on which samples share a batch, such as dropout masks (mode={problem.mode!r}). Use mode='eval'."
        )
    return shares, losses


def _refuse_what_is_no_mean(operator: ProblemOperator) -> None:
    """Raise for operators that are no weighted mean over samples, so that groups do not add up to the whole."""
    empirical = isinstance(operator, Fisher) and operator.kind == "empirical"
    if empirical or isinstance(operator, GradientCovariance | StackedOperator):
        raise OperatorError(
            f"Expected an operator that is a weighted mean over samples (Hessian, GGN, Fisher), found {operator!r}. Make it of "
            "each problem in problems_by_group(problem, by=…)."
        )
