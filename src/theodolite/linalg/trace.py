"""Stochastic estimates of the trace, with honest standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.linalg import vectors
from theodolite.linalg.basis import orthonormal_rows
from theodolite.linalg.counts import refuse_fractions
from theodolite.linalg.lanczos import Eigenpairs
from theodolite.linalg.operator import LinearOperator, finite_product
from theodolite.linalg.precision import widened
from theodolite.linalg.probes import Probes, mean_with_stderr

WORK_BLOCKS = 4


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TraceEstimate:
    """A trace with its standard error.

    Args:
        value: the estimate, the mean of ``samples``.
        stderr: its standard error, NaN with a single sample.
        samples: one unbiased estimate for each random probe, float64 on the CPU.
        products: operator-vector products.
        parts: trace of each asked diagonal block, from the same probes.
        part_stderrs: their standard errors; errors of different parts are correlated.
    """

    value: float
    stderr: float
    samples: Float[Tensor, " m"]
    products: int
    parts: Float[Tensor, " L"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    part_stderrs: Float[Tensor, " L"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __repr__(self) -> str:
        count = len(self.parts)
        parts = f", {count} part{'s' * (count > 1)}" if count else ""
        return f"<TraceEstimate: {self.value:.6g} ± {self.stderr:.2g}{parts}, {self.products} products>"

    @property
    def degrees(self) -> int | None:
        """Degrees of freedom of the standard errors, None where they are exact."""
        return None if len(self.samples) == 1 else len(self.samples) - 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval by Student's t; NaN from a single random sample, a point where exact."""
        return self._around(self.value, self.stderr, level)

    def part_intervals(self, level: float = 0.95) -> list[tuple[float, float]]:
        """The same for each part by itself."""
        pairs = zip(self.parts.tolist(), self.part_stderrs.tolist(), strict=True)
        return [self._around(value, stderr, level) for value, stderr in pairs]

    def _around(self, value: float, stderr: float, level: float) -> tuple[float, float]:
        quantile = 1.0 if self.degrees is None else float(stdtrit(self.degrees, (1 + level) / 2))
        return value - quantile * stderr, value + quantile * stderr


def trace_estimate(
    samples: Float[Tensor, " m"], *, products: int, parts: Float[Tensor, "L m"] | None = None
) -> TraceEstimate:
    """The mean of independent unbiased samples of a trace, and of those of its parts."""
    value, stderr = mean_with_stderr(samples)
    of_parts = [] if parts is None else [mean_with_stderr(row) for row in parts]
    return TraceEstimate(
        value=value,
        stderr=stderr,
        samples=samples,
        products=products,
        parts=torch.tensor([mean for mean, _ in of_parts], dtype=torch.float64),
        part_stderrs=torch.tensor([error for _, error in of_parts], dtype=torch.float64),
    )


def exact_trace(value: float, *, products: int, parts: Float[Tensor, " L"] | None = None) -> TraceEstimate:
    """A trace without error."""
    parts = torch.zeros(0, dtype=torch.float64) if parts is None else parts
    return TraceEstimate(
        value=value,
        stderr=0.0,
        samples=torch.tensor([value], dtype=torch.float64),
        products=products,
        parts=parts,
        part_stderrs=torch.zeros_like(parts),
    )


def hutchinson(
    A: LinearOperator,
    *,
    probes: int,
    seed: int = 0,
    parts: Sequence[slice] = (),
    deflate: Eigenpairs | None = None,
    memory: int = 2**30,
) -> TraceEstimate:
    """The trace as the mean of vᵀAv over random signs v, and the traces of diagonal blocks from the same products.

    The variance of one sample is 2·(‖A‖_F² − Σ a_ii²) for a symmetric A: diagonal operators take one probe. Known eigenpairs
    are counted exactly and projected out of the probes, which leaves the variance of the rest.

    Cost: one product a probe.

    Args:
        A: square.
        probes: number of random vectors.
        seed: of the probes; 10 probes are the first 10 of 20.
        parts: slices of 0..n; for each, the trace of that diagonal block is the mean of v_part · (Av)_part.
        deflate: eigenpairs of A as ``lanczos`` found them, converged or not: on their span A is known.
        memory: bytes for a block of probes and its products.

    Raises:
        OperatorError: A is not square, there are no probes, or the pairs are of another size.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, hutchinson
        >>> A = Diagonal(torch.arange(10.0, dtype=torch.float64))
        >>> estimate = hutchinson(A, probes=4, parts=[slice(0, 5), slice(5, 10)])
        >>> estimate.value, estimate.parts.tolist()
        (45.0, [10.0, 35.0])

    References:
        Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.
    """
    _refuse_oblong(A)
    refuse_fractions(probes=probes)
    if probes < 1:
        raise OperatorError(f"Hutchinson's estimator needs at least one probe, found probes={probes}.")
    A = widened(A)
    stream = Probes(A, seed=seed, distribution="rademacher")
    values, known = projected_out(A, deflate)
    everything = (slice(None), *parts)
    everything = tuple(A.dots.within(part) for part in everything)
    squares = A.dots.sum(torch.stack([(known[:, part].double() ** 2).sum(dim=1) for part in everything])).cpu()
    exact = squares @ values
    blocks: list[Tensor] = []
    for done, V in _counted(stream.blocks(probes, size=block_size(A, memory))):
        Y = V - known.T @ A.dots.project(known, V)
        AY = finite_product(A, Y, before=done)
        # Both blocks between the span and its complement count towards a part: PAY twice, with the one in AY.
        AY = AY + known.T @ A.dots.project(known, AY)
        forms = torch.stack([vectors.dot(Y[part], AY[part]) for part in everything])
        blocks.append(A.dots.sum(forms).double().cpu())
    whole, *of_parts = exact[:, None] + torch.cat(blocks, dim=1)
    return trace_estimate(whole, products=probes, parts=torch.stack(of_parts) if parts else None)


def hutchpp(A: LinearOperator, *, products: int, seed: int = 0, memory: int = 2**30) -> TraceEstimate:
    """The trace by Hutch++: exact on a random sketch of the range of A, Hutchinson's estimator on the rest.

    With fast-decaying spectra the error falls like 1/products instead of 1/√products; on flat ones it equals
    Hutchinson's with a third of the probes.

    Cost: ``products`` products: a third for the sketch, a third for its trace, the rest for the remainder. The sketch
    is held in memory, n·products/3 numbers.

    Args:
        A: square.
        products: how many to spend, at least 3.
        seed: of the probes.
        memory: bytes for a block of probes and its products.

    Returns:
        The estimate; given the sketch it is unbiased, and the standard error is that of the remainder's samples.

    Raises:
        OperatorError: A is not square, or products < 3.
        NonFiniteError: a product is not finite.

    Example:
        >>> import torch
        >>> from theodolite.linalg import Diagonal, hutchpp
        >>> A = Diagonal(torch.tensor([5.0, 3.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
        >>> round(hutchpp(A, products=9).value, 9)
        8.0

    References:
        Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation.
    """
    n = _refuse_oblong(A)
    refuse_fractions(products=products)
    if products < 3:
        raise OperatorError(f"Hutch++ needs at least 3 products (sketch, its trace, remainder), found {products}.")
    A = widened(A)
    stream, size = Probes(A, seed=seed, distribution="rademacher"), block_size(A, memory)
    sketch = min(products // 3, n)
    images = [finite_product(A, V, before=done).T for done, V in _counted(stream.blocks(sketch, size=size))]
    Q = orthonormal_rows(torch.cat(images), dots=A.dots)
    sketched = (rows.T for rows in Q.split(size) if len(rows))
    exact = math.fsum(_quadratic_forms(A, V, before=sketch + done).sum() for done, V in _counted(sketched))
    spent = sketch + len(Q)
    if len(Q) == n:
        return exact_trace(exact, products=spent)
    blocks: list[Tensor] = []
    for done, V in _counted(stream.blocks(products - spent, size=size)):
        blocks.append(_quadratic_forms(A, V - Q.T @ A.dots.project(Q, V), before=spent + done))
    return trace_estimate(exact + torch.cat(blocks), products=products)


def _refuse_oblong(A: LinearOperator) -> int:
    if A.shape[0] != A.shape[1]:
        raise OperatorError(f"Only a square operator has a trace, found {A!r}.")
    return A.size


def projected_out(A: LinearOperator, pairs: Eigenpairs | None) -> tuple[Float[Tensor, " c"], Float[Tensor, "c n"]]:
    """Ritz values, on the CPU, and their orthonormal vectors, one a row; none if no pairs are given."""
    n = A.shape[0]
    if pairs is None:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, n, dtype=A.dtype, device=A.device)
    if pairs.vectors.shape[1] != n:
        raise OperatorError(f"{A!r} is deflated by eigenpairs of its own size, found {pairs.vectors.shape[1]}.")
    return pairs.values, pairs.vectors.to(dtype=A.dtype, device=A.device)


def block_size(A: LinearOperator, memory: int) -> int:
    """How many probes fit the memory with their products; at least one."""
    return max(1, memory // (WORK_BLOCKS * A.vector_bytes))


def _counted(blocks: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each block with the number of columns before it."""
    done = 0
    for block in blocks:
        yield done, block
        done += block.shape[1]


def _quadratic_forms(A: LinearOperator, V: Float[Tensor, "n k"], *, before: int) -> Float[Tensor, " k"]:
    return A.dots.dot(V, finite_product(A, V, before=before)).double().cpu()
