"""Kronecker factors of every weight that has them, exact blocks of every other parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.operators.capture import Block, Factored, Use
from theodolite.operators.exact import ExactBlock
from theodolite.operators.pullbacks import Pullback, Pullbacks
from theodolite.operators.sums import index_of
from theodolite.problem import Problem

SHARINGS = ("expand", "reduce")

# A parameter without Kronecker factors (norms, lone biases) has an exact dense block up to this many entries.
SMALL = 512


@dataclass(frozen=True)
class Form:
    """A weight with Kronecker factors, and the bias that is added where it is applied.

    Args:
        block: the weight, or the part of it that is applied.
        bias: the bias that is folded in, None without one.
        index: place of every entry of the matrix in the flat vector; the bias is its last column, or its last row where the
            weight has inputs first.
        transposed: whether the weight has inputs first.
    """

    block: Block
    bias: Block | None
    index: Int[Tensor, "r c"]
    transposed: bool

    def factors(self, pullback: Pullback) -> tuple[Float[Tensor, "b t k"], Float[Tensor, "b t l"]] | None:
        """Inputs, with a one beside them for the bias, and output gradients; None if no gradient reaches the weight.

        Raises:
            OperatorError: weight or bias are used in another way than in the first pass.
        """
        uses = pullback.uses.get(self.block.parameter, [])
        use = next((use for use in uses if use.block == self.block), None)
        if not uses:
            return None
        beside = None if self.bias is None else pullback.sites.get(self.bias)
        together = self.bias is None or beside == pullback.sites.get(self.block)
        if not isinstance(use, Factored) or use.transposed != self.transposed or not together:
            raise OperatorError(
                f"Expected {self.block.parameter} to be applied in the same way to every batch, found a batch in which it is "
                "not the plain linear map that it was in the first. It has no Kronecker factors: use GGN(problem)."
            )
        A = use.A if self.bias is None else torch.cat([use.A, use.A.new_ones(*use.A.shape[:2], 1)], dim=2)
        return A, use.D

    def ordered(self, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs to the inputs and to the output gradients as (along rows, along columns)."""
        return (inputs, gradients) if self.transposed else (gradients, inputs)


@dataclass(frozen=True)
class Factorisation:
    """What one walk over the data found.

    Args:
        forms: weights with Kronecker factors.
        factors: (along rows, along columns) of each form; their Kronecker product approximates its block.
        exact: exact blocks of the other parameters.
    """

    forms: tuple[Form, ...]
    factors: tuple[tuple[Tensor, Tensor], ...]
    exact: dict[str, ExactBlock]


def factorise(pullbacks: Pullbacks, *, sharing: str) -> Factorisation:
    """Walk over the data once and sum the factors.

    Cost: as ``Pullbacks``; memory for the factors, and for the inputs and output gradients of one chunk.

    Args:
        pullbacks: per-sample gradients, whose outer products add up to the matrix.
        sharing: ``"expand"`` takes positions that share a weight for independent, ``"reduce"`` sums their gradients and
            averages their inputs.

    Raises:
        OperatorError: ``sharing`` is neither.
    """
    if sharing not in SHARINGS:
        raise OperatorError(f"Expected sharing to be 'expand' or 'reduce', found {sharing!r}.")
    sums: _Sums | None = None
    for pullback in pullbacks:
        if sums is None:
            sums = _Sums(pullbacks.problem, _forms(pullbacks.problem, pullback), sharing)
        sums.add(pullback)
    if sums is None:
        raise OperatorError(
            "Expected a criterion with curvature in the outputs, found none anywhere in the data: it is linear in them, or "
            "every target is ignored. Use kind='empirical'."
        )
    return sums.result(pullbacks.scale)


def _forms(problem: Problem, pullback: Pullback) -> tuple[Form, ...]:
    """Which weights have Kronecker factors: those that are only ever applied as plain linear maps."""
    shifts = {
        pullback.sites[use.block]: use
        for uses in pullback.uses.values()
        for use in uses
        if use.kind == "shift" and len(uses) == 1 and use.block.is_whole
    }
    found = []
    for uses in pullback.uses.values():
        covered = sum(len(index_of(use.block)) for use in uses)
        if covered == torch.Size(uses[0].block.whole).numel() and all(isinstance(use, Factored) for use in uses):
            found += [
                _form(problem, use, shifts.get(pullback.sites[use.block])) for use in uses if isinstance(use, Factored)
            ]
    return tuple(found)


def _form(problem: Problem, weight: Factored, bias: Use | None) -> Form:
    def flat(use: Use) -> Tensor:
        return torch.add(index_of(use.block), problem.layout.slices[use.parameter].start)

    index = flat(weight).reshape(weight.block.rows, -1)
    if bias is None or bias.block.shape != (weight.D.shape[2],):
        return Form(weight.block, None, index, weight.transposed)
    beside = flat(bias)[None] if weight.transposed else flat(bias)[:, None]
    index = torch.cat([index, beside], dim=0 if weight.transposed else 1)
    return Form(weight.block, bias.block, index, weight.transposed)


class _Sums:
    """Running sums over chunks and backward passes."""

    def __init__(self, problem: Problem, forms: Sequence[Form], sharing: str) -> None:
        self._problem, self._forms, self._sharing = problem, forms, sharing
        self._dtype = torch.promote_types(problem.dtype, torch.float32)
        self._inputs = [self._zeros(form.index.shape[0 if form.transposed else 1]) for form in forms]
        self._gradients = [self._zeros(form.index.shape[1 if form.transposed else 0]) for form in forms]
        self._counts = [0] * len(forms)
        self._seen = [-1] * len(forms)
        covered = {block.parameter for form in forms for block in (form.block, form.bias) if block is not None}
        self._exact = {
            name: ExactBlock(problem, [name], dense=size <= SMALL)
            for name, size in zip(problem.layout.names, problem.layout.sizes, strict=True)
            if name not in covered
        }

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, size, dtype=self._dtype, device=self._problem.device)

    def add(self, pullback: Pullback) -> None:
        for position, form in enumerate(self._forms):
            factors = form.factors(pullback)
            if factors is not None:
                self._add(position, *factors, chunk=pullback.chunk)
        for block in self._exact.values():
            block.add(pullback)

    def _add(
        self, position: int, inputs: Float[Tensor, "b t k"], gradients: Float[Tensor, "b t l"], *, chunk: int
    ) -> None:
        if self._sharing == "reduce":
            inputs, gradients = inputs.mean(1, keepdim=True), gradients.sum(1, keepdim=True)
        A, D = inputs.flatten(0, 1).to(self._dtype), gradients.flatten(0, 1).to(self._dtype)
        if self._seen[position] != chunk:  # inputs are the same in every backward pass of a chunk
            self._inputs[position] += A.T @ A
            self._counts[position] += len(A)
            self._seen[position] = chunk
        self._gradients[position] += D.T @ D

    def result(self, scale: float) -> Factorisation:
        factors = [
            form.ordered(A * (scale / max(count, 1)), D)
            for form, A, D, count in zip(self._forms, self._inputs, self._gradients, self._counts, strict=True)
        ]
        return Factorisation(tuple(self._forms), tuple(factors), self._exact)
