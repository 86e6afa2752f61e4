"""What sums over samples need of captured gradients: their squares, their places, and products over several passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.operators.capture.factored import Factored
from theodolite.operators.capture.lookup import Lookup, compacted
from theodolite.operators.capture.use import Block, Use, slabs

# Products of factors at a time: larger pieces save no time.
PRODUCTS = 2**23


def index_of(block: Block) -> Int[Tensor, " p"]:
    """Where the entries of a block lie in its flat parameter."""
    whole = torch.arange(torch.Size(block.whole).numel())
    return whole.as_strided(block.shape, block.strides, block.offset).reshape(-1)


def squares(use: Use) -> Float[Tensor, " p"]:
    """Squares of the per-sample gradients of a block, summed over the samples."""
    if isinstance(use, Factored) and use.positions == 1:
        return (use.left[:, 0].square().T @ use.right[:, 0].square()).reshape(-1)
    return torch.cat([use.slab(*rows).square().sum(0).reshape(-1) for rows in slabs(use)])


def gram_of(mine: Sequence[Use], theirs: Sequence[Use]) -> Float[Tensor, "m n"]:
    """Inner products of per-sample gradients of one block: rows of ``mine`` with rows of ``theirs``.

    Args:
        mine: uses of the same samples in several backward passes, which share their inputs.
        theirs: uses of the same block, perhaps of other samples.

    Returns:
        In double precision, on the CPU; backward passes first, samples second in both directions.
    """
    if len(mine) == len(theirs) == 1:
        return mine[0].gram(theirs[0])
    if all(isinstance(use, Lookup) for use in (*mine, *theirs)):
        # A table of the rows that are read at all: no vocabulary is ever materialised.
        compact = compacted([use for use in (*mine, *theirs) if isinstance(use, Lookup)])
        mine, theirs = compact[: len(mine)], compact[len(mine) :]
    ours = _stacked(mine)
    others = ours if theirs is mine else _stacked(theirs)
    if ours is not None and others is not None and _by_products(ours, others, mine[0].block):
        return _products(ours, others)
    total: Tensor | None = None
    for rows in slabs(*mine, *theirs):
        left = torch.cat([use.slab(*rows).flatten(1) for use in mine])
        right = left if theirs is mine else torch.cat([use.slab(*rows).flatten(1) for use in theirs])
        part = (left @ right.T).double().cpu()
        total = part if total is None else total + part
    assert total is not None
    return total


def weighted(uses: Sequence[Use], weights: Float[Tensor, "r b k"]) -> Float[Tensor, "k p"]:
    """Σ_ri w_ri g_ri for k sets of weights: sums over samples and backward passes, of the flattened block.

    Args:
        uses: of one block and the same samples, one for each backward pass.
        weights: of every sample in every backward pass.
    """
    stack, block = _stacked(uses), uses[0].block
    if stack is not None:
        sums = torch.einsum("rbk,rbtl->kbtl", weights, stack.D).flatten(1, 2)
        found = sums.mT @ stack.A.flatten(0, 1)
        return (found.mT if stack.transposed else found).reshape(len(found), -1)
    found = weights.new_zeros(weights.shape[2], block.rows, block.columns)
    for start, stop in slabs(*uses):
        for use, own in zip(uses, weights, strict=True):
            found[:, start:stop] += (own.T @ use.slab(start, stop).flatten(1)).unflatten(1, (stop - start, -1))
    return found.flatten(1)


class _Stack:
    """Factored gradients of several backward passes, with one set of inputs."""

    def __init__(self, A: Float[Tensor, "b t k"], D: Float[Tensor, "r b t l"], *, transposed: bool) -> None:
        self.A, self.D, self.transposed = A, D, transposed
        self.rows, self.samples, self.positions = D.shape[:3]


def _stacked(uses: Sequence[Use]) -> _Stack | None:
    factored = [use for use in uses if isinstance(use, Factored)]
    if len(factored) < len(uses) or len({(use.transposed, use.positions) for use in factored}) > 1:
        return None
    return _Stack(factored[0].A, torch.stack([use.D for use in factored]), transposed=factored[0].transposed)


def _by_products(ours: _Stack, others: _Stack, block: Block) -> bool:
    """Whether products of factors exist and cost less arithmetic than materialised gradients."""
    if ours.transposed != others.transposed:
        return False
    entries = block.rows * block.columns
    M, N = ours.rows * ours.samples, others.rows * others.samples
    T, S = ours.positions, others.positions
    pairs = ours.samples * others.samples * T * S * ours.A.shape[2] + M * N * T * S * (ours.D.shape[3] + 1)
    return pairs <= (M * T + N * S + M * N) * entries


def _products(ours: _Stack, others: _Stack) -> Float[Tensor, "m n"]:
    """Σ_ts ⟨a_it, a_js⟩ ⟨δ_rit, δ_qjs⟩, for a few samples of ours at a time; a stack with itself gives a symmetric matrix."""
    T, S, symmetric = ours.positions, others.positions, others is ours
    right = others.A.flatten(0, 1).T
    found = torch.zeros(ours.rows, ours.samples, others.rows, others.samples, dtype=torch.float64)
    step = max(1, PRODUCTS // max(1, T * others.rows * others.samples * S))
    for start in range(0, ours.samples, step):
        few = slice(start, start + step)
        inputs = (ours.A[few].flatten(0, 1) @ right).unsqueeze(1)
        for row, D in enumerate(ours.D):
            theirs = others.D[: row + 1] if symmetric else others.D
            part = (D[few].flatten(0, 1) @ theirs.flatten(0, 2).T).unflatten(1, (len(theirs), -1)).mul_(inputs)
            if T * S > 1:
                part = part.unflatten(2, (-1, S)).unflatten(0, (-1, T)).sum((1, 4))
            found[row, few, : len(theirs)] = part.double().cpu()
    whole = found.flatten(2).flatten(0, 1)
    if symmetric:
        for row in range(ours.rows):
            rows = slice(row * ours.samples, (row + 1) * ours.samples)
            whole[: row * ours.samples, rows] = whole[rows, : row * ours.samples].T
    return whole
