"""The diagonal blocks of an operator on the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg import LinearOperator
from theodolite.operators.problem_operator import WIDEST, ProblemOperator


@final
class LayerBlocks(LinearOperator):
    """The operator with all entries between different layers set to zero.

    Cost: a product with one vector takes as many products of the operator as there are layers, up to 32 of them in one
    vectorised pass on one graph, because the answers to the parts of several layers cannot be told apart in one.

    Args:
        operator: n×n on the parameters of a problem.
        blocks: names and places of the blocks, which must not overlap; None for the layers, modules that own parameters.
            What no block holds is zero.

    Raises:
        OperatorError: the operator is not n×n, or blocks overlap or are empty.

    Example:
        >>> from theodolite.operators import Hessian
        >>> from theodolite.problem import Problem
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> problem = Problem(model, torch.nn.CrossEntropyLoss(), [(torch.randn(8, 3), torch.randint(2, (8,)))])
        >>> list(LayerBlocks(Hessian(problem)).blocks)
        ['0', '2']
    """

    def __init__(self, operator: ProblemOperator, *, blocks: Mapping[str, slice] | None = None) -> None:
        n = operator.problem.n
        if operator.shape != (n, n):
            raise OperatorError(f"Blocks of layers need an operator on the parameters, found {operator!r} for n={n}.")
        self.blocks = dict(operator.problem.layout.layer_slices if blocks is None else blocks)
        _refuse_overlap({name: range(n)[where] for name, where in self.blocks.items()})
        super().__init__(shape=(n, n), dtype=operator.dtype, device=operator.device, symmetric=operator.symmetric)
        self.operator = operator

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        n, k = V.shape
        result = torch.zeros_like(V)
        names = list(self.blocks)
        together = max(1, WIDEST // k)
        for first in range(0, len(names), together):
            places = [self.blocks[name] for name in names[first : first + together]]
            masked = V.new_zeros(n, len(places), k)
            for index, where in enumerate(places):
                masked[where, index] = V[where]
            products = (self.operator @ masked.reshape(n, -1)).reshape(n, len(places), k)
            for index, where in enumerate(places):
                result[where] = products[where, index]
        return result

    def _expression(self) -> str:
        return f"blocks({self.operator._expression()})"


def _refuse_overlap(places: Mapping[str, range]) -> None:
    """Raise if a block is empty or shares parameters with another."""
    for name, where in places.items():
        if len(where) == 0 or where.step != 1:
            raise OperatorError(f"Expected blocks that are slices with parameters, found {name!r} at {where}.")
    ordered = sorted(places.items(), key=lambda item: item[1].start)
    for (one, here), (other, there) in pairwise(ordered):
        if there.start < here.stop:
            raise OperatorError(f"Expected blocks that do not overlap, found {one!r} and {other!r} sharing parameters.")
