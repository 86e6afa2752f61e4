"""Per-sample gradients of all data in factored form: their Gram matrix, and their combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg.operator import bytes_in_words
from theodolite.operators.capture import Block, Factored, Rows, Use
from theodolite.operators.pullbacks import Pullback, Pullbacks
from theodolite.operators.sums import gram_of, index_of, weighted


@final
class GradientRows:
    """The rows g of a matrix whose GᵀG is a GGN, a Fisher or JᵀJ, never formed where they have factors.

    Rows follow the chunks, in each the backward passes, in each the samples.

    Cost: one walk over the data; inputs and output gradients of every layer are held, for all data.

    Args:
        pullbacks: the backward passes.

    Attributes:
        count: number of rows.
        sample: the sample that each row belongs to, counted through all data.
        passes: the backward pass of its chunk that each row comes from.
        scale: the matrix is ``scale`` times GᵀG.

    Raises:
        OperatorError: the gradients, or their Gram matrix, do not fit the memory of the problem.
    """

    def __init__(self, pullbacks: Pullbacks) -> None:
        self._problem = pullbacks.problem
        self._chunks: list[dict[Block, list[tuple[int, Use]]]] = []
        self._samples: list[int] = []
        self._passes: list[int] = []
        held, cap = 0, self._problem.memory
        for pullback in pullbacks:
            held += self._take(pullback)
            self._refuse_overflow(held, cap)
        self.scale = pullbacks.scale
        self._reach(len(pullbacks.samples))
        self._samples = list(pullbacks.samples)
        self._make_alike()
        self.sample: Int[Tensor, " m"] = torch.cat(
            [
                torch.arange(samples).repeat(passes) + sum(self._samples[:chunk])
                for chunk, (samples, passes) in enumerate(zip(self._samples, self._passes, strict=True))
            ]
        )
        self.passes: Int[Tensor, " m"] = torch.cat(
            [
                torch.arange(passes).repeat_interleave(samples)
                for samples, passes in zip(self._samples, self._passes, strict=True)
            ]
        )

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(passes * samples for passes, samples in zip(self._passes, self._samples, strict=True))

    @property
    def samples(self) -> tuple[int, ...]:
        """Number of samples of each chunk."""
        return tuple(self._samples)

    def gram(self) -> tuple[Float[Tensor, "m m"], dict[str, float]]:
        """G Gᵀ in double precision on the CPU, and the trace of each parameter's part of it.

        Cost: for a linear layer the smaller of m² (inputs + outputs) and m · entries operations, twice.
        """
        total = torch.zeros(self.count, self.count, dtype=torch.float64)
        traces = dict.fromkeys(self._problem.layout.names, 0.0)
        for a, mine in enumerate(self._chunks):
            for b, theirs in enumerate(self._chunks[: a + 1]):
                for block in mine.keys() & theirs.keys():
                    left = [use for _, use in mine[block]]
                    part = gram_of(left, left if a == b else [use for _, use in theirs[block]])
                    rows, columns = self._places(a, mine[block]), self._places(b, theirs[block])
                    _add(total, rows, columns, part)
                    if a == b:
                        traces[block.parameter] += float(part.trace())
                    else:
                        _add(total, columns, rows, part.T)
        return total, traces

    def combine(self, weights: Float[Tensor, "m k"]) -> Float[Tensor, "k n"]:
        """Gᵀ w for k sets of weights.

        Cost: about the gradient of the weights of every layer, for each set.
        """
        layout, problem = self._problem.layout, self._problem
        found = torch.zeros(weights.shape[1], layout.n, dtype=problem.dtype, device=problem.device)
        for chunk, blocks in enumerate(self._chunks):
            for block, passes in blocks.items():
                own = weights[self._places(chunk, passes)].to(found).unflatten(0, (len(passes), -1))
                index = (index_of(block) + layout.slices[block.parameter].start).to(found.device)
                found[:, index] += weighted([use for _, use in passes], own)
        return found

    def _take(self, pullback: Pullback) -> int:
        """Keep a backward pass; returns the bytes that it adds."""
        self._reach(pullback.chunk + 1)
        blocks = self._chunks[pullback.chunk]
        self._samples[pullback.chunk] = pullback.samples
        self._passes[pullback.chunk] = pullback.row + 1
        added = 0
        for uses in pullback.uses.values():
            for use in uses:
                known = blocks.setdefault(use.block, [])
                kept, nbytes = _sharing_inputs(use, known[0][1]) if known else (use, use.nbytes)
                added += nbytes
                known.append((pullback.row, kept))
        return added

    def _reach(self, chunks: int) -> None:
        """Have room for so many chunks; one whose targets are all ignored has no rows."""
        missing = chunks - len(self._chunks)
        self._chunks += [{} for _ in range(missing)]
        self._samples += [0] * missing
        self._passes += [0] * missing

    def _places(self, chunk: int, passes: Sequence[tuple[int, Use]]) -> Int[Tensor, " r"]:
        """Rows of the Gram matrix that belong to some backward passes of a chunk."""
        samples = self._samples[chunk]
        start = sum(p * s for p, s in zip(self._passes[:chunk], self._samples[:chunk], strict=True))
        return torch.cat([torch.arange(samples) + start + row * samples for row, _ in passes])

    def _make_alike(self) -> None:
        """Give a parameter that chunks read in different blocks one block, itself."""
        for name in self._problem.layout.names:
            read = [{block for block in chunk if block.parameter == name} for chunk in self._chunks]
            if len({frozenset(blocks) for blocks in read if blocks}) > 1:
                for chunk, blocks in zip(self._chunks, read, strict=True):
                    _place_in_whole(chunk, blocks)

    def _refuse_overflow(self, held: int, cap: int) -> None:
        wanted = max(held, 8 * 3 * self.count**2)
        if wanted > cap:
            raise OperatorError(
                f"Expected factors of the gradients and their Gram matrix to fit {bytes_in_words(cap)}, found "
                f"{bytes_in_words(wanted)} after {self.count:,} rows. Use fewer samples, kind='empirical' or kind='mc', which have "
                "one row a sample, raise memory= of the problem, or use a Krylov method on GGN(problem)."
            )


def _add(
    total: Float[Tensor, "m m"], rows: Int[Tensor, " r"], columns: Int[Tensor, " c"], part: Float[Tensor, "r c"]
) -> None:
    """Add to a sub-matrix, through views where its rows and columns follow one another, which takes a tenth of the time."""
    if all(len(index) == int(index[-1]) - int(index[0]) + 1 for index in (rows, columns)):
        total[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] += part
    else:
        total[rows[:, None], columns] += part


def _sharing_inputs(use: Use, first: Use) -> tuple[Use, int]:
    """The use with the inputs of an earlier backward pass, which are equal, and the bytes that it adds to them."""
    if isinstance(use, Factored) and isinstance(first, Factored) and use.A.shape == first.A.shape:
        shared = Factored(use.block, use.kind, use.site, A=first.A, D=use.D, transposed=use.transposed)
        return shared, use.D.nbytes
    return use, use.nbytes


def _place_in_whole(chunk: dict[Block, list[tuple[int, Use]]], blocks: set[Block]) -> None:
    placed: dict[int, Tensor] = {}
    use: Use | None = None
    for block in blocks:
        for row, use in chunk.pop(block):
            gradients = block.place(use.materialise())
            placed[row] = placed[row] + gradients if row in placed else gradients
    if use is not None:
        whole = use.block.of_whole()
        chunk[whole] = [(row, Rows(whole, "other", -1, gradients)) for row, gradients in sorted(placed.items())]
