"""An orthonormal basis that grows row by row without ever being copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.linalg import vectors

CHUNK_ROWS = 32
CHUNK_BYTES = 1 << 28
CHUNK_COLUMNS = 1 << 16
NOISE = 100.0  # in units of rounding: what is left of a vector below this has no direction of its own


@final
class Basis:
    """Orthonormal vectors, one a row, in chunks of rows.

    Growing one tensor would copy it and hold it twice; chunks cost a few more matrix-vector products a step.

    Args:
        n: length of the vectors.
        capacity: rows that are never exceeded, so that no memory is taken for more.
        dtype: of the vectors.
        device: of the vectors.
        dots: inner products of them, of which slices may be here.
    """

    def __init__(
        self,
        n: int,
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        dots: vectors.Dots = vectors.WHOLE,
    ) -> None:
        self._chunks: list[Tensor] = []
        self._chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (n * dtype.itemsize)))
        self._capacity = capacity
        self._dots = dots
        self._like = torch.empty(0, n, dtype=dtype, device=device)
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, v: Float[Tensor, " n"]) -> None:
        """Add a unit vector that is orthogonal to all rows."""
        chunk, row = divmod(self._rows, self._chunk_rows)
        if chunk == len(self._chunks):
            rows = min(self._chunk_rows, self._capacity - self._rows)
            self._chunks.append(self._like.new_empty(rows, self._like.shape[1]))
        self._chunks[chunk][row] = v
        self._rows += 1

    def orthogonalise(self, w: Float[Tensor, "n *b"]) -> tuple[Float[Tensor, "n *b"], Float[Tensor, "j *b"]]:
        """Two passes of classical Gram-Schmidt: w less its projection, and the coefficients; a vector or a block.

        One pass leaves errors of the size of what it removed; the second removes them.

        References:
            Giraud, Langou, Rozložník, van den Eshof (2005), Rounding error analysis of the classical Gram-Schmidt
            orthogonalization process.
        """
        total = w.new_zeros(self._rows, *w.shape[1:])
        if not self._rows:
            return w, total
        for _ in range(2):
            coefficients = self.project(w)
            w = w - self.lift(coefficients)
            total = total + coefficients
        return w, total

    def project(self, w: Float[Tensor, "n *b"]) -> Float[Tensor, "j *b"]:
        """Inner products with all rows, of which there is at least one."""
        block = w.reshape(len(w), -1)
        products = torch.cat([vectors.project(chunk, block) for chunk in self._filled()])
        return self._dots.sum(products).reshape(-1, *w.shape[1:])

    def lift(self, coefficients: Float[Tensor, "j *b"]) -> Float[Tensor, "n *b"]:
        """The combination of the rows with one coefficient each; a vector or a block."""
        block = coefficients.reshape(self._rows, -1)
        lifted = self._like.new_zeros(self._like.shape[1], block.shape[1])
        for chunk, part in zip(self._filled(), block.split(self._chunk_rows), strict=True):
            lifted.addmm_(chunk.T, part)
        return lifted.reshape(-1, *coefficients.shape[1:])

    def block_traces(self, T: Float[np.ndarray, "j j"], parts: Sequence[slice]) -> Float[Tensor, " L"]:
        """Traces of diagonal blocks of Qᵀ T Q, float64 on the CPU.

        Cost: as much arithmetic as j orthogonalisations if the parts cover everything.
        """
        matrix, traces = self._on_device(T), torch.zeros(len(parts), dtype=torch.float64)
        for row, part in enumerate(parts):
            columns = range(self._like.shape[1])[self._dots.within(part)]
            for first in range(0, len(columns), CHUNK_COLUMNS):
                strip = columns[first : first + CHUNK_COLUMNS]
                Q = torch.cat([chunk[:, strip.start : strip.stop : strip.step] for chunk in self._filled()])
                traces[row] += float(vectors.dot(Q, matrix @ Q).sum(dtype=torch.float64))
        return self._dots.sum(traces.to(self._like.device)).cpu()

    def rows(self) -> Float[Tensor, "j n"]:
        """A copy of all rows."""
        return torch.cat([self._like, *self._filled()])

    def combine(self, coefficients: Float[np.ndarray, "j p"]) -> Float[Tensor, "p n"]:
        """Linear combinations of the rows, one for each column of coefficients."""
        S = self._on_device(coefficients)
        combined = self._like.new_zeros(S.shape[1], self._like.shape[1])
        for first, chunk in enumerate(self._filled()):
            rows = slice(first * self._chunk_rows, first * self._chunk_rows + len(chunk))
            combined.addmm_(S[rows].T, chunk)
        return combined

    def compress(self, coefficients: Float[np.ndarray, "j p"]) -> None:
        """Replace the rows by p ≤ j combinations of them, in place but for a strip of columns."""
        S = self._on_device(coefficients)
        kept = S.shape[1]
        for first in range(0, self._like.shape[1], CHUNK_COLUMNS):
            strip = slice(first, first + CHUNK_COLUMNS)
            combined = S.T @ torch.cat([chunk[:, strip] for chunk in self._filled()])
            for start in range(0, kept, self._chunk_rows):
                part = combined[start : start + self._chunk_rows]
                self._chunks[start // self._chunk_rows][: len(part), strip] = part
        self._rows = kept
        del self._chunks[-(-kept // self._chunk_rows) :]

    def __getitem__(self, row: int) -> Float[Tensor, " n"]:
        chunk, within = divmod(range(self._rows)[row], self._chunk_rows)
        return self._chunks[chunk][within]

    def _on_device(self, coefficients: Float[np.ndarray, "j p"]) -> Float[Tensor, "j p"]:
        return torch.as_tensor(np.ascontiguousarray(coefficients)).to(self._like)

    def _filled(self) -> list[Tensor]:
        """The chunks, without rows that are not used yet."""
        return [
            chunk[: self._rows - first * self._chunk_rows]
            for first, chunk in enumerate(self._chunks)
            if first * self._chunk_rows < self._rows
        ]


def orthonormal_rows(V: Float[Tensor, "j n"], *, dots: vectors.Dots = vectors.WHOLE) -> Float[Tensor, "r n"]:
    """An orthonormal basis of the span of the rows of V, without those that depend on earlier ones."""
    basis = Basis(V.shape[1], capacity=len(V), dtype=V.dtype, device=V.device, dots=dots)
    for row in V:
        w, _ = basis.orthogonalise(row)
        before, after = float(dots.norm(row)), float(dots.norm(w))
        if after > NOISE * torch.finfo(V.dtype).eps * before:
            basis.append(w / after)
    return basis.rows()
