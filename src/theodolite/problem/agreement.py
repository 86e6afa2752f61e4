"""What the ranks of a data-parallel run tell each other of a problem before they work on it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.problem.model import on_batch_statistics
from theodolite.problem.options import MODES
from theodolite.problem.point import Point, sums_of
from theodolite.problem.ranks import Facts

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem


def facts_of(problem: Problem, *, at: Point | None, vectors: Tensor | None) -> Facts:
    """Numbers in which ranks agree that evaluate one function of the parameters, each on data of its own.

    Args:
        problem: that of this rank.
        at: where it is evaluated, None for the current parameters.
        vectors: what every rank multiplies.

    Raises:
        ProblemError: its batch statistics run over ranks.
    """
    _refuse_synchronised(problem.model, mode=problem.mode)
    here = problem.point()
    leaves = (here if at is None else at).leaves
    equal = {
        "the number of parameters": float(problem.n),
        "the mode of the problem": float(MODES.index(problem.mode)),
        "the bytes of a number": float(problem.dtype.itemsize),
        "the seed of the problem": float(problem.seed),
        "the parameters (by a sum over them)": _summary([*leaves, *here.constants.values()]),
        "the vectors (by a sum over them)": 0.0 if vectors is None else _summary([vectors]),
    }
    first = sum(problem.batches.first_fingerprint())
    return Facts(equal, {"the first batch": first}, {"buffers": _summary(list(here.buffers.values()))})


def _summary(tensors: list[Tensor]) -> float:
    """One number that changes with the tensors, and with their order."""
    numbers = sums_of([tensor.detach().double() for tensor in tensors])
    return sum((1.0 + (0.6180339887498949 * place) % 1.0) * number for place, number in enumerate(numbers))


def _refuse_synchronised(model: nn.Module, *, mode: str) -> None:
    synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if synchronised and any(on_batch_statistics(model, mode=mode)):
        raise ProblemError(
            f"Expected BatchNorm with stored statistics, found SyncBatchNorm in mode={mode!r}: its statistics over ranks have no "
            "second derivative. Use mode='eval'."
        )
