"""Per-sample gradients whose outer products add up to a GGN or Fisher, one backward pass at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from theodolite.errors import DerivativeError, NonFiniteError, OperatorError
from theodolite.linalg.counts import refuse_fractions
from theodolite.operators.capture import Block, Captured, Use, capture
from theodolite.operators.capture.combined import combined
from theodolite.operators.certificate import is_missing_derivative, missing_derivative
from theodolite.operators.cotangents import curvature_roots, sampled_roots
from theodolite.operators.outputs import with_criterion
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Chunk, OutputLoss, Problem
from theodolite.problem.finite import non_finite_loss, refuse_non_finite
from theodolite.problem.objective import pair, with_outputs

KINDS = ("exact", "mc", "empirical")
# One backward pass for each entry of the outputs: the rows of the Jacobian.
JACOBIAN = "jacobian"


@dataclass(frozen=True)
class Pullback:
    """One backward pass of one chunk.

    Args:
        chunk: number of the chunk.
        row: number of the pass within the chunk.
        samples: samples in the chunk.
        uses: for every parameter that a gradient reaches its uses, with disjoint blocks.
        sites: the operations that read each block.
    """

    chunk: int
    row: int
    samples: int
    uses: Mapping[str, list[Use]]
    sites: Mapping[Block, tuple[int, ...]]


@final
class Pullbacks:
    """Walks over the data of a problem: the sum of outer products of all gradients, times ``scale``, is the matrix.

    Every walk gives the same gradients, those of ``"mc"`` included.

    Cost: a walk takes a forward pass, and a backward pass without gradients of weights for every vector a sample.

    Args:
        problem: what to differentiate.
        kind: ``"exact"`` for the GGN, ``"mc"`` for it in expectation, ``"empirical"`` for the gradient covariance, ``"jacobian"``
            for JᵀJ of the outputs.
        draws: random vectors a sample of ``"mc"``.
        seed: of the random vectors.

    Attributes:
        scale: known after a walk.
        weights: weight of every chunk, known after a walk.
        samples: samples of every chunk, known after a walk.
        passes: backward passes over the whole data so far.

    Raises:
        OperatorError: an option is unknown, outputs are needed and not known, or the data is sharded over ranks.
        NonFiniteError: during a walk, a parameter, the loss, or an output of a Jacobian is NaN or infinite.
        DerivativeError: during a walk, the criterion has no second derivative.
    """

    def __init__(self, problem: Problem, *, kind: str, draws: int = 1, seed: int = 0) -> None:
        if kind not in (*KINDS, JACOBIAN):
            raise OperatorError(f"Expected kind to be one of {', '.join(map(repr, KINDS))}, found {kind!r}.")
        refuse_fractions(draws=draws)
        if draws < 1:
            raise OperatorError(f"Expected at least one draw a sample, found draws={draws}.")
        refuse_sharded(problem)
        if kind != "empirical":
            problem = with_criterion(problem, caller=_needs(kind))
        self.problem = problem
        self.kind = kind
        self.passes = 0.0
        self.scale = float("nan")
        self.weights: list[float] = []
        self.samples: list[int] = []
        self._draws = draws
        self._seed = seed

    def __iter__(self) -> Iterator[Pullback]:
        weights: list[float] = []
        samples: list[int] = []
        passes = 0
        refuse_non_finite(self.problem.parameters)
        with self.problem.session():
            for chunk in self.problem.chunks():
                captured = capture(self.problem, chunk)
                self._refuse_non_finite_pass(chunk, captured)
                weights.append(captured.weight)
                samples.append(chunk.samples)
                for row, cotangent in enumerate(self.cotangents(chunk, captured)):
                    yield _pullback(chunk, row, captured.uses(cotangent))
                    passes += chunk.samples
        self.passes += passes / max(sum(samples), 1)
        self.weights, self.samples = weights, samples
        self.scale = self._scale(self.problem.total_weight(torch.tensor(weights, dtype=torch.float64)), sum(samples))

    def cotangents(self, chunk: Chunk, captured: Captured) -> Iterator[Tensor | None]:
        """Gradients of the outputs that the backward passes of a chunk start from; None for that of the loss."""
        if self.kind == "empirical":
            yield None
            return
        loss, targets, outputs = with_outputs(self.problem.objective).loss, pair(chunk.batch)[1], captured.outputs
        if outputs is None:
            raise OperatorError(
                "Expected the model to return a tensor or an output with .logits, found neither. Wrap the model so that it "
                "returns the tensor that the criterion takes."
            )
        if self.kind == JACOBIAN:
            yield from _units(outputs)
            return
        try:
            yield from self._roots(loss, outputs, targets, chunk)
        except RuntimeError as error:
            if isinstance(error, DerivativeError) or not is_missing_derivative(error):
                raise
            raise missing_derivative(error, by_difference=False) from error

    def _roots(self, loss: OutputLoss, outputs: Tensor, targets: Any, chunk: Chunk) -> Iterator[Tensor]:
        """Vectors whose outer products add up to the curvature in the outputs, or do so in expectation."""
        memory = self.problem.memory
        if self.kind == "exact":
            yield from curvature_roots(loss, outputs, targets, memory=memory)
            return
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + chunk.index)
        for _ in range(self._draws):
            yield sampled_roots(loss, outputs, targets, generator=generator, memory=memory)

    def _refuse_non_finite_pass(self, chunk: Chunk, captured: Captured) -> None:
        """Raise if what the rows are derivatives of is not finite: the outputs for a Jacobian, else the loss."""
        if self.kind == JACOBIAN and captured.outputs is not None:
            if not bool(torch.isfinite(captured.outputs).all()):
                raise NonFiniteError(
                    f"Expected finite outputs on batch {chunk.index}, found NaN or infinity among them. Check the inputs, and "
                    "whether the model overflows its dtype (dtype=torch.float64 tells)."
                )
        elif not math.isfinite(captured.total):
            raise non_finite_loss(captured.total, where=f"batch {chunk.index}")

    def _scale(self, weight: float, samples: int) -> float:
        if self.kind == JACOBIAN:
            return 1.0
        if self.kind == "empirical":
            # Gradients are scaled so that their mean is the gradient of the problem, as in GradientCovariance.
            return samples / weight**2
        return 1.0 / (weight * (self._draws if self.kind == "mc" else 1))


def _needs(kind: str) -> str:
    """What takes backward passes of a kind, with the verb, for the error where it cannot have them."""
    if kind == JACOBIAN:
        return "The NTK needs"
    return f"Rows of single samples with kind={kind!r}, as KFAC, EKFAC and exact diagonals and spectra take them, need"


def _units(outputs: Tensor) -> Iterator[Tensor]:
    for entry in range(outputs[0].numel()):
        unit = torch.zeros_like(outputs).flatten(1)
        unit[:, entry] = 1.0
        yield unit.reshape(outputs.shape)


def _pullback(chunk: Chunk, row: int, uses: list[Use]) -> Pullback:
    by_parameter: dict[str, list[Use]] = {}
    sites: dict[Block, tuple[int, ...]] = {}
    for use in uses:
        by_parameter.setdefault(use.parameter, []).append(use)
        sites[use.block] = (*sites.get(use.block, ()), use.site)
    merged = {name: combined(shared) for name, shared in by_parameter.items()}
    for shared in merged.values():
        for use in shared:
            sites.setdefault(use.block, (use.site,))
    return Pullback(chunk.index, row, chunk.samples, merged, sites)
