"""Model, criterion and fixed data as one function of the parameters."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import DataError, ParameterError, ProblemError, RankError
from theodolite.problem.agreement import facts_of
from theodolite.problem.arguments import refuse_no_function, refuse_no_model, whole
from theodolite.problem.check import check
from theodolite.problem.criteria import recognise
from theodolite.problem.data import Batches, move, split
from theodolite.problem.digest import digest_of
from theodolite.problem.finite import non_finite_loss
from theodolite.problem.guard import seed_everything, undisturbed
from theodolite.problem.memory import spare_memory
from theodolite.problem.model import common_dtype, device_of, on_batch_statistics, unwrapped
from theodolite.problem.numerics import exact_arithmetic
from theodolite.problem.objective import CriterionObjective, LossObjective, Objective
from theodolite.problem.options import Engine, Mode, Options
from theodolite.problem.parameters import Layout, Selection, select_parameters
from theodolite.problem.parts import first_of, halves_of, parts_of
from theodolite.problem.point import Point, attributes_of, read_point, version_of
from theodolite.problem.ranks import Ranks
from theodolite.problem.subsets import Rows
from theodolite.problem.swapping import called_with
from theodolite.problem.tasks import tasks_of

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """A batch, or a piece of one, on the device of the problem."""

    index: int
    batch: Any
    samples: int


class Problem:
    """A model, what it minimises and fixed data: the loss as one function of the flat vector of parameters.

    The loss of a problem is the criterion on all its data at once: batches of unequal size, or with unequal numbers of
    valid tokens, weigh what they would in one large batch, and neither ``microbatch`` nor the cut into batches changes
    it. Nothing is computed here; the data is checked on the first pass (fixed between passes, loss deterministic,
    totals additive), at the cost of two or three forward passes of the first batch.

    Args:
        model: any module. Compiled and data-parallel wrappers are taken off.
        criterion: a loss module of torch, or a function of (outputs, targets) that returns the mean over samples, or a
            pair (total, weight).
        batches: re-iterable of (inputs, targets); inputs are a tensor, a tuple (positional) or a mapping (keywords).
        params: which parameters: a glob of names or module names, several, a predicate, or None for all trainable.
        mode: ``"eval"`` (default): dropout off, BatchNorm with stored statistics. ``"train"``: dropout on, with masks
            fixed by ``seed`` for each batch; BatchNorm with batch statistics, which couple samples. ``"as is"``: the flags
            as they are.
        dtype: compute in this type (``torch.float64`` for reference results) instead of the model's own.
        microbatch: largest number of samples in one evaluation; bounds memory.
        engine: how Hessian products are computed; ``"auto"`` chooses by a timed trial and says so.
        seed: seed of dropout masks and of random checks.
        memory: bytes that graphs and blocks of vectors may take; a quarter of free memory by default.
        group: the process group whose ranks hold the data together, each its own batches: losses, gradients, products and
            all measures are then of the data of all ranks, and every rank makes the same calls. ``"auto"`` takes the default
            group where ``torch.distributed`` is initialised; None measures on this process alone.

    Raises:
        ParameterError: no trainable parameter is selected.
        DataError: the batches are empty, exhausted after one pass, or shuffle.
        ProblemError: an option is unknown, or the model lies on several devices.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(nn.Linear(10, 3), nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> problem.n
        33
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., Any],
        batches: Iterable[Any],
        *,
        params: Selection = None,
        mode: Mode = "eval",
        dtype: torch.dtype | None = None,
        microbatch: int | None = None,
        engine: Engine = "auto",
        seed: int = 0,
        memory: int | None = None,
        group: Any = "auto",
    ) -> None:
        options = Options(
            mode=mode, dtype=dtype, microbatch=microbatch, engine=engine, seed=seed, memory=memory, group=group
        )
        self._build(model, CriterionObjective(recognise(criterion)), batches, params, options)

    @classmethod
    def from_loss(
        cls,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Any],
        batches: Iterable[Any],
        *,
        params: Selection = None,
        **options: Any,
    ) -> Problem:
        """A problem whose loss is any function of model and batch.

        Args:
            model: any module.
            loss_fn: function of (model, batch) that returns the mean over the batch's samples, a pair (total, count)
                when batches weigh by their own denominator, or an output with ``.loss``. A Hugging Face batch with
                ``labels`` weighs by its valid labels.
            batches: re-iterable of anything that ``loss_fn`` takes.
            params: as for ``Problem``.
            **options: as for ``Problem``.
        """
        refuse_no_function(loss_fn, name="loss_fn", example="lambda model, batch: model(**batch).loss")
        problem = cls.__new__(cls)
        problem._build(model, LossObjective(loss_fn), batches, params, Options(**options))
        return problem

    def _build(
        self, model: nn.Module, objective: Objective, batches: Iterable[Any], params: Selection, options: Options
    ) -> None:
        refuse_no_model(model)
        self.model = unwrapped(model)
        self.objective = objective
        self.batches = batches if isinstance(batches, Batches) else Batches(batches)
        self.device = device_of(self.model)
        self._selected = select_parameters(self.model, params)
        self.layout = Layout(tuple(self._selected), tuple(parameter.shape for parameter in self._selected.values()))
        self._share = 1.0
        self._drawn_from: int | None = None
        self._depth = 0
        self._restless: frozenset[tuple[int, str]] = frozenset()
        self.ranks = Ranks(options.group)
        self._take_options(options)

    def _take_options(self, options: Options) -> None:
        self.options = options
        self.mode: Mode = options.mode
        self.cast = options.dtype
        self.dtype = options.dtype or common_dtype(self._selected)
        self.microbatch = options.microbatch
        self.engine: Engine = options.engine
        self.seed = options.seed
        self.certificates: dict[tuple[str, ...], object] = {}
        self._checked = False
        self._point: Point | None = None
        self._refuse_coupled_microbatches()

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def n(self) -> int:
        """Number of selected parameters."""
        return self.layout.n

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The selected parameters by name."""
        return dict(self._selected)

    @property
    def batches(self) -> Batches:
        """The data of this rank."""
        return self._batches

    @batches.setter
    def batches(self, batches: Batches) -> None:
        self._batches = batches
        self._samples: int | None = None
        self._samples_here: int | None = None

    @property
    def samples(self) -> int:
        """Number of samples in the data of all ranks; walks the data once if no pass has been made."""
        if self._samples is None:
            with self.together("counting samples"):
                here = self.samples_here
            self._samples = int(self.ranks.sum(torch.tensor(float(here), dtype=torch.float64)))
        return self._samples

    @property
    def samples_here(self) -> int:
        """Number of samples that this rank holds; walks the data once if no pass has been made."""
        if self._samples_here is None:
            self._samples_here = sum(self.objective.samples(batch) for batch in self.batches)
        return self._samples_here

    @property
    def memory(self) -> int:
        """Bytes that graphs and blocks of vectors may take."""
        return spare_memory(self.device) if self.options.memory is None else self.options.memory

    @property
    def batchnorm(self) -> str | None:
        """Which statistics BatchNorm uses, None without BatchNorm."""
        batch = on_batch_statistics(self.model, mode=self.mode)
        if not batch:
            return None
        if all(batch):
            return "batch statistics"
        return "batch and stored statistics" if any(batch) else "stored statistics"

    @property
    def coupled(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its batch (BatchNorm on batch statistics, or a
        criterion of whole batches such as a contrastive one)."""
        return any(on_batch_statistics(self.model, mode=self.mode)) or self.objective.couples()

    def select(self, params: Selection) -> Problem:
        """The same problem as a function of other parameters.

        Raises:
            ParameterError: nothing trainable matches, or something not selected here does.
        """
        chosen = select_parameters(self.model, params)
        names = tuple(name for name in self.layout.names if name in chosen)
        if not names:
            raise ParameterError(
                f"None of the parameters of this problem matches {params!r}. It has {self.layout.names}."
            )
        other = copy.copy(self)
        other._selected = {name: self._selected[name] for name in names}
        other.layout = Layout(names, tuple(parameter.shape for parameter in other._selected.values()))
        other._point = None
        other._depth = 0
        return other

    def replace(self, **changes: Any) -> Problem:
        """The same problem with other options: ``mode``, ``dtype``, ``microbatch``, ``engine``, ``seed``, ``memory``, ``group``."""
        known = {field.name for field in dataclasses.fields(Options)}
        if unknown := changes.keys() - known:
            raise ProblemError(f"Expected options among {sorted(known)}, found {sorted(unknown)}.")
        other = copy.copy(self)
        other._depth = 0
        if "group" in changes:
            other.ranks, other._samples = Ranks(changes["group"]), None
        other._take_options(dataclasses.replace(self.options, **changes))
        return other

    def on(self, model: nn.Module) -> Problem:
        """The same problem on another model with the same parameters: selection, data and options stay.

        Args:
            model: such as a copy of this one with the weights of a checkpoint.

        Raises:
            ParameterError: the model lacks a selected parameter, or has it in another shape.
        """
        other = copy.copy(self)
        other.model = unwrapped(model)
        other.device = device_of(other.model)
        named = dict(other.model.named_parameters())
        found = {name: tuple(named[name].shape) if name in named else None for name in self.layout.names}
        own = zip(self.layout.names, map(tuple, self.layout.shapes), strict=True)
        differing = [name for name, shape in own if found[name] != shape]
        if differing:
            name = differing[0]
            raise ParameterError(
                f"Expected a model with the {len(self.layout.names)} selected parameters of {type(self.model).__name__}, found "
                f"{len(differing)} missing or of other shape: {name} is {found[name] or 'missing'}. Build it with the same options."
            )
        other._selected = {name: named[name] for name in self.layout.names}
        other.certificates, other._point, other._depth = {}, None, 0
        return other

    def tasks(self, losses: Mapping[str, Callable[..., Any]]) -> dict[str, Problem]:
        """A problem for each of several losses, with the model, parameters, data and options of this one.

        Args:
            losses: by name: criteria of (outputs, targets) for a problem with a criterion, which take what they need of both;
                functions of (model, batch) for one made by ``Problem.from_loss``.

        Raises:
            ProblemError: there is no loss, or one is no function.
        """
        return tasks_of(self, losses)

    # -------------------------------------------------------------------------------------------- parts of its data

    def take(self, samples: int, *, seed: int = 0) -> Problem:
        """The same problem on the first ``samples`` of its data in a random order: a smaller, cheaper sample of the same loss.

        Takes of one seed are nested, each a part of every larger one, so that what a measure learnt on the smaller one holds on
        part of the larger. Losses, gradients and products of a part estimate those of the whole, also for a criterion that
        sums. Certificate and checks carry over. Where BatchNorm or the criterion couples the samples of a batch, whole batches are
        taken, as few as hold that many samples.

        Cost: one walk over the data without the model, and a copy of what is taken.

        Args:
            samples: how many, of all ranks together, each of which gives its share, rounded up; all from the number that there
                are.
            seed: of the order.

        Raises:
            ProblemError: samples is less than 1.

        Example:
            >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
            >>> problem = Problem(nn.Linear(10, 3), nn.CrossEntropyLoss(), [(inputs, targets)])
            >>> problem.take(16).samples
            16
        """
        whole(samples=samples)
        if samples < 1:
            raise ProblemError(f"Expected at least 1 sample to take, found {samples}.")
        if samples >= self.samples:
            return self
        return parts_of(self, first_of(self, samples, seed=seed))[0]

    def split_halves(self, *, seed: int = 0) -> tuple[Problem, Problem]:
        """Two problems on a random half of the data each, the first with the odd sample.

        What both agree on is not an accident of the sample: an eigenvector of one half has the Rayleigh quotient on the other
        that fresh data would give it, without the upward bias of the largest eigenvalue on its own data. The means of losses,
        gradients and Hessians of the halves, weighted by their weights, are those of the whole.

        Cost: one walk over the data without the model, and a copy of it.

        Args:
            seed: of the order; the first half is ``take`` of half of the samples.

        Raises:
            DataError: there is but one sample, or one batch whose samples are coupled.
        """
        first, second = parts_of(self, halves_of(self, seed=seed))
        return first, second

    def growing(self, *, start: int = 64, factor: float = 2.0, seed: int = 0) -> Iterator[Problem]:
        """Nested problems on more and more of the data, the last on all of it: for a sample as large as an error demands.

        Cost: one walk over the data for each, and a copy of what is taken.

        Args:
            start: samples of the first.
            factor: how many times more each next one has, more than 1.
            seed: of the order.

        Raises:
            ProblemError: start or factor make no sense.
        """
        if start < 1 or not factor > 1:
            raise ProblemError(f"Expected start of at least 1 and a factor above 1, found {start} and {factor}.")
        size = start
        while size < self.samples:
            yield self.take(size, seed=seed)
            size = max(size + 1, int(size * factor))
        yield self

    def only(self, chosen: Sequence[Rows]) -> Problem:
        """The same problem on chosen samples alone, such as those of one class. Certificate and checks carry over.

        A criterion that sums is divided by the share of the samples chosen, as for ``take``.

        Cost: one walk over the data without the model, and a copy of what is chosen.

        Args:
            chosen: the rows to take of each batch, ascending; on this rank.
        """
        return parts_of(self, lambda _: [chosen])[0]

    def digest(self) -> str:
        """A short hash of what is surveyed and how: values, architecture, criterion, data, selection and options.

        Cost: one walk over the data without the model, and a forward pass of the first batch.
        """
        return digest_of(self)

    def context(self) -> dict[str, Any]:
        """What a record says of its problem."""
        found: dict[str, Any] = {
            "model": type(self.model).__name__,
            "parameters": self.n,
            "samples": self.samples,
            "mode": self.mode,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "torch": torch.__version__,
        }
        if self._drawn_from is not None:
            found["drawn from"] = self._drawn_from
        if self.microbatch is not None:
            found["microbatch"] = self.microbatch
        if self.batchnorm is not None:
            found["batchnorm"] = self.batchnorm
        return found

    def __repr__(self) -> str:
        parts = [f"{type(self.model).__name__}, n={self.n:,}", f"mode={self.mode!r}", str(self.dtype), str(self.device)]
        if self.batchnorm is not None:
            parts.append(f"BatchNorm on {self.batchnorm}")
        return f"Problem({', '.join(parts)})"

    # --------------------------------------------------------------------------------------------- how it is evaluated

    @contextmanager
    def session(self) -> Iterator[None]:
        """Mode set, arithmetic exact, and everything restored on leaving; may be nested."""
        if self._depth:  # entering costs as much as a product of a small model
            yield
            return
        with undisturbed(self.model, copy=False), exact_arithmetic(self.model):
            if self.mode != "as is":
                self.model.train(self.mode == "train")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextmanager
    def together(self, what: str, *, at: Point | None = None, vectors: Tensor | None = None) -> Iterator[None]:
        """Work on this rank's part of the data, the results of which ``ranks`` combine afterwards; free on one process.

        Ranks meet before and after. Buffers that differ from rank to rank, as the statistics of BatchNorm do in data-parallel
        training, are the first rank's in between.

        Args:
            what: the work, in words, the same on all ranks.
            at: where, if not at the current parameters.
            vectors: what every rank multiplies, which must be equal on all.

        Raises:
            RankError: ranks disagree on parameters, vectors or call, hold the same data, fail or are lost.
        """
        with self.ranks.step(what, lambda: facts_of(self, at=at, vectors=vectors)) as differing:
            if differing:
                here = self.point()
                buffers = {name: self.ranks.first(buffer) for name, buffer in here.buffers.items()}
                self._point = dataclasses.replace(here, buffers=buffers)
            yield

    def point(self) -> Point:
        """The current parameters and buffers, cast to the problem's dtype, without copying where none is needed."""
        version = self._version()
        if self._point is None or self._point.version != version:
            self._point = read_point(self.model, self.layout.names, cast=self.cast, version=version)
        return self._point

    def displaced(self, leaves: tuple[Tensor, ...]) -> Point:
        """The current point with other values of the selected parameters."""
        here = self.point()
        return Point(leaves, here.constants, here.buffers, here.version)

    def ensure_checked(self) -> None:
        """Check the data and the loss if that has not been done.

        Raises:
            NotDeterministicError: the data or the loss change between passes.
            ProblemError: the loss is no number, or does not add up over samples.
        """
        if not self._checked:
            before = attributes_of(self.model)
            check(self)
            after = attributes_of(self.model)
            self._restless = frozenset(key for key in before | after if before.get(key) != after.get(key))
            self._checked = True

    @property
    def divisible(self) -> bool:
        """Whether a batch may be evaluated in pieces: its samples are not coupled, and no dropout draws by batch."""
        training = self.mode == "train" or (
            self.mode == "as is" and any(part.training for part in self.model.modules())
        )
        return not (self.coupled or training)

    def chunks(self, *, at_most: int | None = None) -> Iterator[Chunk]:
        """Walk the data of this rank once; the first walk also checks it.

        Args:
            at_most: samples of a chunk, beside ``microbatch``; for a problem that is ``divisible``.

        Raises:
            RankError: ranks share the data, and this is not inside ``together``.
        """
        if not self.ranks.meeting:
            raise RankError(
                f"Expected a measure that combines what {self.ranks.size} ranks find on their parts of the data, found one that "
                "walks over one part alone. Pass group=None to measure on each rank alone."
            )
        self.ensure_checked()
        sizes = [size for size in (self.microbatch, at_most) if size is not None]
        index = samples = 0
        for batch in self.batches:
            for piece in split(batch, min(sizes)) if sizes else [batch]:
                placed = move(piece, device=self.device, dtype=self.cast)
                chunk = Chunk(index, placed, self.objective.samples(piece))
                yield chunk
                index, samples = index + 1, samples + chunk.samples
        self._samples_here = samples

    def first_chunk(self) -> Chunk:
        """The first batch, or the first piece of it, on the device of the problem."""
        first = self.batches.first()
        piece = first if self.microbatch is None else split(first, self.microbatch)[0]
        return Chunk(0, move(piece, device=self.device, dtype=self.cast), self.objective.samples(piece))

    def call(
        self,
        function: Callable[[nn.Module], T],
        point: Point,
        *,
        chunk: int = 0,
        buffers: dict[str, Tensor] | None = None,
    ) -> T:
        """Run ``function(model)`` with the parameters of ``point`` in the model's place, undisturbed and seeded.

        Args:
            function: what to compute; activation checkpoints recompute with the same parameters inside it.
            point: parameters and buffers.
            chunk: index that the random seed of this evaluation is derived from.
            buffers: buffers to use and write to; fresh copies by default.
        """
        named = dict(zip(self.layout.names, point.leaves, strict=True)) | dict(point.constants)
        named |= point.fresh_buffers() if buffers is None else buffers
        with self.session():
            self.reseed(chunk)
            result: T = called_with(
                _Scene(self.model), {f"model.{name}": tensor for name, tensor in named.items()}, (function,)
            )
        return result

    def reseed(self, chunk: int) -> None:
        """Set all random numbers to those of a chunk on this rank, for evaluations that share one ``call``."""
        seed_everything(self.seed * 1_000_003 + self.ranks.rank * 500_009 + chunk)

    def evaluate(self, chunk: Chunk, point: Point, *, grad: bool = True) -> tuple[Float[Tensor, ""], float]:
        """Total and weight of one chunk."""

        def forward(model: nn.Module) -> tuple[Float[Tensor, ""], float]:
            with torch.set_grad_enabled(grad):
                return self.objective.evaluate(model, chunk.batch)

        return self.call(forward, point, chunk=chunk.index)

    def totals(self, point: Point | None = None) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Total and weight of every chunk, one rank after the other, in float64, not finite where the loss is not.

        Cost: one forward pass.
        """
        with self.session(), self.together("losses", at=point):
            here = self._shared(point)
            pairs = [self.evaluate(chunk, here, grad=False) for chunk in self.chunks()]
        totals = torch.stack([total.detach() for total, _ in pairs]).to("cpu", torch.float64)
        weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
        both = self.ranks.join(torch.stack([totals, weights], dim=1))
        return both[:, 0], both[:, 1]

    def loss(self) -> float:
        """The loss at the current parameters.

        Cost: one forward pass.
        """
        totals, weights = self.totals()
        return float(totals.sum()) / self.total_weight(weights)

    def gradient(self) -> Float[Tensor, " n"]:
        """The gradient at the current parameters, flattened.

        Cost: one gradient.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        gradient = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        weights = []
        with self.together("gradient"):
            for _, total, weight, part in self.chunk_gradients():
                if not torch.isfinite(total):
                    raise non_finite_loss(float(total.detach()), parameters=self.parameters)
                gradient += part
                weights.append(weight)
        of_chunks = self.ranks.join(torch.tensor(weights, dtype=torch.float64))
        return self.ranks.sum(gradient) / self.total_weight(of_chunks)

    def chunk_gradients(
        self, point: Point | None = None, *, at_most: int | None = None
    ) -> Iterator[tuple[Chunk, Float[Tensor, ""], float, Float[Tensor, " n"]]]:
        """Every chunk of this rank with its total, weight, and the gradient of its total, flattened.

        Args:
            point: where, if not at the current parameters.
            at_most: samples of a chunk, as for ``chunks``.
        """
        point = self._shared(point)
        for chunk in self.chunks(at_most=at_most):

            def differentiate(
                model: nn.Module, chunk: Chunk = chunk
            ) -> tuple[Float[Tensor, ""], float, Float[Tensor, " n"]]:
                total, weight = self.objective.evaluate(model, chunk.batch)
                return total.detach(), weight, self.layout.flatten(gradients(total, point.leaves))

            yield chunk, *self.call(differentiate, point, chunk=chunk.index)

    def total_weight(self, weights: Float[Tensor, " c"]) -> float:
        """What the summed totals are divided by: their weights; for a criterion that sums, the share of the data taken.

        Raises:
            DataError: nothing in the data counts.
        """
        if not self.objective.averages():
            return self._share
        weight = float(weights.sum())
        if weight <= 0:
            raise DataError(
                f"Expected data with positive weight, found {weight:g}: every target is ignored (ignore_index) or has class "
                "weight 0. Check the targets."
            )
        return weight

    # ----------------------------------------------------------------------------------------------------- internals

    def _shared(self, point: Point | None) -> Point:
        """The point with the buffers that ranks agreed on."""
        here = self.point()
        return here if point is None else dataclasses.replace(point, buffers=here.buffers)

    def _version(self) -> tuple[object, ...]:
        """What changes with the loss: values of the model, modes where they are as found, settings of modules and criterion.

        Attributes that an evaluation itself changes, such as counters of calls, are left out.
        """
        modes = [module.training for module in self.model.modules()] if self.mode == "as is" else []
        attributes = {key: value for key, value in attributes_of(self.model).items() if key not in self._restless}
        return (*version_of(self.model), *modes, *attributes.items(), *self.objective.settings())

    def _refuse_coupled_microbatches(self) -> None:
        if self.microbatch is not None and self.objective.couples():
            raise ProblemError(
                "Expected microbatch=None with a criterion that couples the samples of a batch, found "
                f"microbatch={self.microbatch}: the pieces would be compared apart and the loss would change. Use smaller batches."
            )
        if self.microbatch is not None and self.coupled:
            raise ProblemError(
                f"Expected microbatch=None with BatchNorm on batch statistics, found microbatch={self.microbatch}: the pieces "
                "would be normalised apart and the loss would change. Use mode='eval', or smaller batches."
            )


class _Scene(nn.Module):
    """Lets ``functional_call`` run any function of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)


def gradients(
    total: Float[Tensor, ""], leaves: tuple[Tensor, ...], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradient of a total, zero for parameters that it does not depend on."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(total, leaves, create_graph=create_graph, materialize_grads=True)
