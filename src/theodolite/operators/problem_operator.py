"""The base of operators made from a problem: chunks, retained graphs, engines, blocks of vectors."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import CostWarning, DerivativeError, NonFiniteError, OperatorError
from theodolite.linalg import LinearOperator
from theodolite.linalg.vectors import is_finite
from theodolite.operators.certificate import (
    Certificate,
    certify,
    clock,
    first_piece,
    is_missing_derivative,
    missing_derivative,
    refuse_wrong_jacobian,
)
from theodolite.operators.graphs import Graph, OutputGraph
from theodolite.operators.memory import counting_saved_bytes
from theodolite.operators.subject import refuse_no_problem
from theodolite.problem import Chunk, Point, Problem
from theodolite.problem.finite import refuse_non_finite
from theodolite.problem.memory import free_memory, refuse_too_large
from theodolite.problem.parameters import Selection
from theodolite.records import Cost

# A wider block saves no more time on any device seen, and its memory grows with it.
WIDEST = 32
TRIAL = 4
# A product holds about as much again as its graph; a quarter of the memory is for graphs that are kept.
PEAK, FREE = 2.0, 0.75

Whole = TypeVar("Whole", bound="ProblemOperator")


class ProblemOperator(LinearOperator):
    """An operator that is made of the chunks of a problem's data, their sum where chunks have no rows of their own.

    Graphs of chunks are kept between products while they fit the problem's memory cap and rebuilt beyond it. Blocks of
    vectors go through one vectorised backward pass or a loop, whichever a timed trial on the first block finds faster.
    The operator follows the model: when an optimiser or ``load_state_dict`` writes to the parameters, the next product is
    taken there. Products run undisturbed, under math attention, without cuDNN's recurrent kernels, autocast and TF32.

    Args:
        problem: what to differentiate.
        shape: of an operator that is not n×n, because chunks have rows of their own; None for n×n.
        symmetric: whether it is.

    Attributes:
        products: products with one vector so far.
        seconds: time spent so far.
        notes: fallbacks, in words.
        chunks: pieces of the data of all ranks that weigh something, 0 before the first product.
    """

    name = "operator"
    by_difference = False

    def __init__(self, problem: Problem, *, shape: tuple[int, int] | None = None, symmetric: bool = True) -> None:
        refuse_no_problem(problem, operator=type(self).__name__)
        super().__init__(
            shape=shape or (problem.n, problem.n), dtype=problem.dtype, device=problem.device, symmetric=symmetric
        )
        self.problem = problem
        self.products = 0
        self.seconds = 0.0
        self.notes: list[str] = []
        self._trial_result = ""
        self._route = {"retained": "loop", "fresh": "loop", "vmap": "vmap"}.get(problem.engine, "trial")
        self._kept: list[tuple[Graph, Chunk, dict[str, Tensor]]] = []
        self._complete = False
        self.chunks = 0
        self._weights: list[float] = []
        self._samples: list[int] = []
        self._version: tuple[object, ...] | None = None
        self._graph_bytes: float | None = None
        self._cap = 0
        self._free = 0
        self._built = 0
        self._warned_of_memory = False

    @abstractmethod
    def _graph(self, model: nn.Module, chunk: Chunk, point: Point) -> Graph:
        """The differentiated graph of one chunk."""

    def _mean_scale(self, weight: float, samples: int) -> float:
        """What summed products are multiplied by, for a mean over ``samples`` that weigh ``weight`` together."""
        return 1.0 / weight

    def _scale(self, weights: Float[Tensor, " c"], samples: int) -> float:
        return self._mean_scale(self.problem.total_weight(weights), samples)

    def block(self: Whole, pattern: Selection) -> Whole:
        """The diagonal block of the parameters that match a glob, several, or a predicate; cheaper than the whole.

        Raises:
            ParameterError: no parameter of the problem matches.
        """
        return self._on(self.problem.select(pattern))

    def _on(self: Whole, problem: Problem) -> Whole:
        """The same operator of another problem."""
        return type(self)(problem)

    @property
    def engine(self) -> str:
        """How products are computed, in words."""
        return "retained graphs" if self._complete and self._kept else "graphs rebuilt at each product"

    @property
    def blocks(self) -> str:
        """How products with several vectors are computed, and what the timed trial of the two ways found."""
        return "not yet tried" if self._route == "trial" else self._route + self._trial_result

    @property
    def gradients(self) -> float:
        """Graphs built so far, in forward and backward passes over the whole data."""
        return self._built / self.problem.samples_here if self._built else 0.0

    @property
    def cost(self) -> Cost:
        """What the operator has cost so far."""
        return Cost(products=float(self.products), gradients=self.gradients, seconds=self.seconds)

    def by_chunk(
        self, V: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "c k"], Float[Tensor, " c"]]:
        """A V, each vector's quadratic form vᵀAv with every chunk left out in turn, and the weights of the chunks.

        Cost: k products.
        """
        start = clock(self.problem)
        rows, forms = rows_of(V), []
        with self.problem.session(), self._together(rows):
            total = torch.zeros_like(rows)
            point = self._prepare()
            for _, _, product in self._walk(rows, point):
                total += product
                forms.append((rows * product).sum(1).double())
        weights = torch.tensor(self._weights, dtype=torch.float64)
        samples = torch.tensor(self._samples, dtype=torch.float64)
        here = torch.cat([torch.stack(forms).cpu(), weights[:, None], samples[:, None]], dim=1)
        of_chunks = self.problem.ranks.join(here)
        products = self._mean(total)
        self._spent(rows, start)
        left_out = self._left_out(of_chunks[:, :-2], of_chunks[:, -2], of_chunks[:, -1].int().tolist())
        return products.T, left_out.to(rows.device), of_chunks[:, -2]

    def _left_out(
        self, forms: Float[Tensor, "c k"], weights: Float[Tensor, " c"], samples: list[int]
    ) -> Float[Tensor, "c k"]:
        """Quadratic forms of the mean over all chunks but one; NaN with a single chunk."""
        if len(samples) == 1:
            return torch.full_like(forms, float("nan"))
        # What is left keeps the denominator that its share of the weight has in the whole: 1 in all for a criterion that sums.
        per_weight = self.problem.total_weight(weights) / float(weights.sum())
        left = weights.sum() - weights
        scales = [
            self._mean_scale(float(weight) * per_weight, sum(samples) - count) if weight > 0 else float("nan")
            for weight, count in zip(left, samples, strict=True)
        ]
        return torch.tensor(scales, dtype=torch.float64, device=forms.device)[:, None] * (forms.sum(0) - forms)

    def _matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        start = clock(self.problem)
        rows = rows_of(V)
        with self.problem.session(), self._together(rows):
            point = self._prepare()
            combined = self._combined((product for _, _, product in self._walk(rows, point)), rows)
        result = self._mean(combined)
        self._spent(rows, start)
        if not is_finite(result):
            refuse_non_finite(self.problem.parameters)
            raise NonFiniteError(
                f"Expected a finite product of {self.name} and vector, found {int((~torch.isfinite(result)).sum())} of "
                f"{result.numel()} entries that are not, after {self.products} products. The loss overflows or has a singular "
                "derivative (a square root or norm at 0). Use dtype=torch.float64, or leave those parameters out with params=."
            )
        return result.T

    def _combined(self, products: Iterator[Float[Tensor, "k m"]], rows: Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        """What the products of the chunks make together: their sum."""
        total = torch.zeros_like(rows)
        for product in products:
            total += product
        return total

    def _together(self, rows: Float[Tensor, "k n"]) -> AbstractContextManager[None]:
        """The part of the ranks in a product, which all take with the same vectors."""
        return self.problem.together(f"a product of {self.name} with {rows.shape[0]} vectors", vectors=rows)

    def _mean(self, total: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """The mean over the data of all ranks, of products summed over this one's."""
        weighing = sum(weight > 0 for weight in self._weights)
        here = torch.tensor([sum(self._weights), sum(self._samples), weighing], dtype=torch.float64)
        weight, samples, chunks = self.problem.ranks.sum(here).split(1)
        self.chunks = int(chunks)
        return self.problem.ranks.sum(total) * self._scale(weight, int(samples))

    def _spent(self, rows: Float[Tensor, "k n"], start: float) -> None:
        self.products += rows.shape[0]
        self.seconds += clock(self.problem) - start

    def _prepare(self) -> Point:
        """The point of this product; graphs of older parameters are forgotten, memory is measured before the first."""
        self.problem.ensure_checked()
        point = self.problem.point()
        if point.version != self._version:
            self._kept, self._complete, self._version = [], False, point.version
            self._cap = self.problem.memory
            self._free = free_memory(self.problem.device)
        if self._graph_bytes is None:
            self._graph_bytes = self._measure_bytes()
        return point

    def _chunks(self) -> Iterator[Chunk]:
        """The chunks, in pieces where a batch would not fit into memory.

        Raises:
            ProblemError: it does not fit and may not be cut, or one sample does not fit.
        """
        each, fitting = PEAK * (self._graph_bytes or 0.0), self._fitting()
        for chunk in self.problem.chunks(at_most=self._at_most()):
            if fitting is not None:
                refuse_too_large(chunk.samples, fitting=fitting, of_each=each, device=self.problem.device)
            yield chunk

    def _at_most(self) -> int | None:
        """Samples of the pieces that batches are cut into at this point, None where they stay whole."""
        fitting = self._fitting()
        return fitting if fitting is not None and fitting >= 1 and self.problem.divisible else None

    def _fitting(self) -> int | None:
        """Samples whose graph fits into memory, None where a graph takes none."""
        each = PEAK * (self._graph_bytes or 0.0)
        return int(FREE * self._free / each) if each else None

    def _measure_bytes(self) -> float:
        """Bytes a sample that a graph keeps alive, from a graph of a few samples, whose Jacobian is checked."""
        piece, point = first_piece(self.problem), self.problem.point()

        def build(model: nn.Module) -> int:
            with counting_saved_bytes((*point.leaves, *point.constants.values())) as saved:
                graph = self._graph(model, piece, point)
            if isinstance(graph, OutputGraph):
                refuse_wrong_jacobian(self.problem, graph, piece)
                return saved.total + graph.held
            return saved.total

        with self._naming_the_way_out():
            return self.problem.call(build, point) / piece.samples

    def _walk(self, rows: Float[Tensor, "k n"], point: Point) -> Iterator[tuple[Graph, Chunk, Float[Tensor, "k m"]]]:
        """Every chunk with its graph and products."""
        for graph, chunk, buffers in self._visit(point):
            yield graph, chunk, self._apply(graph, chunk, rows, point, buffers)

    def _visit(self, point: Point) -> Iterator[tuple[Graph, Chunk, dict[str, Tensor]]]:
        """Every chunk with its graph and the buffers that it was built on; graphs are kept on the way while they fit."""
        if self._complete:
            yield from self._kept
            return
        self._weights, self._samples, used = [], [], 0.0
        for chunk in self._chunks():
            used += self._bytes(chunk)
            if chunk.index < len(self._kept):
                graph, _, buffers = self._kept[chunk.index]
            else:
                buffers = point.fresh_buffers()
                graph = self._build(chunk, point, buffers)
                if self._may_keep(used) and chunk.index == len(self._kept):
                    self._kept.append((graph, chunk, buffers))
            self._weights.append(graph.weight)
            self._samples.append(chunk.samples)
            yield graph, chunk, buffers
        self._complete = len(self._kept) == len(self._weights)

    def _build(self, chunk: Chunk, point: Point, buffers: dict[str, Tensor]) -> Graph:
        self._built += chunk.samples
        return self.problem.call(
            lambda model: self._graph(model, chunk, point), point, chunk=chunk.index, buffers=buffers
        )

    def _apply(
        self, graph: Graph, chunk: Chunk, rows: Float[Tensor, "k n"], point: Point, buffers: dict[str, Tensor]
    ) -> Float[Tensor, "k m"]:
        return self.problem.call(
            lambda model: self._multiply(graph, chunk, rows), point, chunk=chunk.index, buffers=buffers
        )

    def _multiply(self, graph: Graph, chunk: Chunk, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        with self._naming_the_way_out():
            if rows.shape[0] == 1 or self._route == "loop":
                return graph.loop(rows, self.problem.layout)
            width = self._width(chunk)
            if self._route == "vmap":
                return graph.block(rows, self.problem.layout, width=width)
            return self._trial(graph, rows, width)

    @contextmanager
    def _naming_the_way_out(self) -> Iterator[None]:
        """Turn what torch says of missing derivatives and batching rules into errors that tell what to do."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, DerivativeError):
                raise
            if self.problem.engine == "vmap" and "vmap" in str(error):
                raise OperatorError(
                    f"Expected products of {self.name} that vmap can batch, as engine='vmap' asks; it failed with "
                    f"{type(error).__name__}: {error} Use engine='retained', or engine='auto', which tries both."
                ) from error
            if is_missing_derivative(error):
                raise missing_derivative(error, by_difference=self.by_difference) from error
            raise

    def _trial(self, graph: Graph, rows: Float[Tensor, "k n"], width: int) -> Float[Tensor, "k m"]:
        """Time both routes on the first few vectors, keep the faster one, and say so."""
        layout, few = self.problem.layout, rows[:TRIAL]
        start = clock(self.problem)
        looped = graph.loop(few, layout)
        middle = clock(self.problem)
        try:
            graph.block(few, layout, width=width)
        except Exception as error:  # anything: vmap lacks rules for some operations, and the loop has none to lack
            self._route = "loop"
            self.notes.append(f"blocks by loop: vmap failed with {type(error).__name__}")
        else:
            loop_time, block_time = middle - start, clock(self.problem) - middle
            self._route = "vmap" if block_time < loop_time else "loop"
            self._trial_result = f", since vmap took {block_time / loop_time:.2f} of the loop's time"
        if rows.shape[0] == few.shape[0]:
            return looped
        rest = rows[TRIAL:]
        later = graph.block(rest, layout, width=width) if self._route == "vmap" else graph.loop(rest, layout)
        return torch.cat([looped, later])

    def _bytes(self, chunk: Chunk) -> float:
        """What the graph of a chunk takes."""
        return (self._graph_bytes or 0.0) * chunk.samples

    def _may_keep(self, used: float) -> bool:
        if self.problem.engine == "fresh":
            return False
        if used <= self._cap:
            return True
        if self.problem.engine == "auto":
            return False
        if not self._warned_of_memory:
            self._warned_of_memory = True
            warnings.warn(
                f"engine={self.problem.engine!r} keeps {used / 2**30:.2f} GiB of graphs and more, above the cap of "
                f"{self._cap / 2**30:.2f} GiB. Use engine='auto', or raise memory=.",
                CostWarning,
                stacklevel=2,
            )
        return True

    def _width(self, chunk: Chunk) -> int:
        """How many vectors one vectorised pass may carry: each takes about as much as the graph itself."""
        each = max(self._bytes(chunk), float(self.dtype.itemsize * self.problem.n))
        return int(min(WIDEST, max(1.0, self._cap / each)))


def rows_of(V: Float[Tensor, "n k"]) -> Float[Tensor, "k n"]:
    """The columns as rows, usable in autograd also where they were made in inference mode."""
    return V.T.clone(memory_format=torch.contiguous_format) if V.is_inference() else V.T.contiguous()


def certificate_of(problem: Problem) -> Certificate:
    """The certificate of a problem, made once for each selection of parameters; a refusal is remembered too.

    Raises:
        DerivativeError: a second derivative is missing or wrong.
    """
    names = problem.layout.names
    if names not in problem.certificates:
        try:
            problem.certificates[names] = certify(problem)
        except DerivativeError as error:
            problem.certificates[names] = error
        except (RuntimeError, NotImplementedError) as error:
            if not is_missing_derivative(error):
                raise
            problem.certificates[names] = missing_derivative(error)
    found = problem.certificates[names]
    if isinstance(found, DerivativeError):
        raise found
    assert isinstance(found, Certificate)
    return found
