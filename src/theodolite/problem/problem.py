"""Model, criterion and fixed data as one function of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import DataError, NonFiniteError, ParameterError, ProblemError
from theodolite.problem.check import check
from theodolite.problem.criteria import recognise
from theodolite.problem.data import Batches, move, split
from theodolite.problem.guard import seed_everything, undisturbed
from theodolite.problem.identity import architecture, identity
from theodolite.problem.memory import spare_memory
from theodolite.problem.numerics import exact_arithmetic
from theodolite.problem.objective import CriterionObjective, LossObjective, Objective
from theodolite.problem.parameters import Layout, Selection, select_parameters

Mode = Literal["eval", "train", "as is"]
Engine = Literal["auto", "retained", "vmap", "fresh", "difference"]
MODES = ("eval", "train", "as is")
ENGINES = ("auto", "retained", "vmap", "fresh", "difference")

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """A batch, or a piece of one, on the device of the problem."""

    index: int
    batch: Any
    samples: int


@dataclass(frozen=True)
class Point:
    """Parameters and buffers at which the problem is evaluated.

    Args:
        leaves: the selected parameters, one tensor each, that derivatives are taken in.
        constants: all other parameters.
        buffers: values of the buffers, cloned for every evaluation.
        version: changes when an optimiser or ``load_state_dict`` writes to the model.
    """

    leaves: tuple[Tensor, ...]
    constants: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    version: tuple[object, ...]

    def fresh_buffers(self) -> dict[str, Tensor]:
        """Copies that an evaluation may write to."""
        return {name: buffer.clone() for name, buffer in self.buffers.items()}


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
    ) -> None:
        self._build(
            model,
            CriterionObjective(recognise(criterion)),
            batches,
            params=params,
            mode=mode,
            dtype=dtype,
            microbatch=microbatch,
            engine=engine,
            seed=seed,
            memory=memory,
        )

    @classmethod
    def from_loss(
        cls, model: nn.Module, loss_fn: Callable[[nn.Module, Any], Any], batches: Iterable[Any], **options: Any
    ) -> Problem:
        """A problem whose loss is any function of model and batch.

        Args:
            model: any module.
            loss_fn: function of (model, batch) that returns the mean over the batch's samples, a pair (total, count)
                when batches weigh by their own denominator, or an output with ``.loss``. A Hugging Face batch with
                ``labels`` weighs by its valid labels.
            batches: re-iterable of anything that ``loss_fn`` takes.
            **options: as for ``Problem``.
        """
        problem = cls.__new__(cls)
        problem._build(model, LossObjective(loss_fn), batches, **options)
        return problem

    def _build(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Iterable[Any],
        *,
        params: Selection = None,
        mode: Mode = "eval",
        dtype: torch.dtype | None = None,
        microbatch: int | None = None,
        engine: Engine = "auto",
        seed: int = 0,
        memory: int | None = None,
    ) -> None:
        _one_of("mode", mode, MODES)
        _one_of("engine", engine, ENGINES)
        if microbatch is not None and microbatch < 1:
            raise ProblemError(f"Expected microbatch to be at least 1 sample or None, found {microbatch}.")
        if dtype is not None and not dtype.is_floating_point:
            raise ProblemError(f"Expected dtype to be a floating-point type, found {dtype}. Use torch.float64.")
        self.model = _unwrap(model)
        self.objective = objective
        self.batches = batches if isinstance(batches, Batches) else Batches(batches)
        self.device = _one_device(self.model)
        parameters = select_parameters(self.model, params)
        self.layout = Layout(tuple(parameters), tuple(parameter.shape for parameter in parameters.values()))
        self.mode: Mode = mode
        self.cast = dtype
        self.dtype = dtype or _common_dtype(parameters)
        self.microbatch = microbatch
        self.engine: Engine = engine
        self.seed = seed
        self._memory = memory
        self.certificates: dict[tuple[str, ...], object] = {}
        self._checked = False
        self._point: Point | None = None
        self._samples: int | None = None
        self._depth = 0
        self._refuse_coupled_microbatches()

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def n(self) -> int:
        """Number of selected parameters."""
        return self.layout.n

    @property
    def samples(self) -> int:
        """Number of samples in the data; walks the data once if no pass has been made."""
        if self._samples is None:
            self._samples = sum(self.objective.samples(batch) for batch in self.batches)
        return self._samples

    @property
    def memory(self) -> int:
        """Bytes that graphs and blocks of vectors may take."""
        return spare_memory(self.device) if self._memory is None else self._memory

    @property
    def batchnorm(self) -> str | None:
        """Which statistics BatchNorm uses, None without BatchNorm."""
        batch = self._on_batch_statistics()
        if not batch:
            return None
        if all(batch):
            return "batch statistics"
        return "batch and stored statistics" if any(batch) else "stored statistics"

    @property
    def coupled(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its batch (BatchNorm on batch statistics)."""
        return any(self._on_batch_statistics())

    def _on_batch_statistics(self) -> list[bool]:
        """For every BatchNorm, whether it normalises by its batch: in training, and without stored statistics always."""
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        fixed = {"eval": False, "train": True}.get(self.mode)
        return [(norm.training if fixed is None else fixed) or norm.running_mean is None for norm in norms]

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
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        other.layout = Layout(names, tuple(shapes[name] for name in names))
        other._point = None
        other._depth = 0
        return other

    def replace(self, **changes: Any) -> Problem:
        """The same problem with other options (``mode``, ``dtype``, ``microbatch``, ``engine``, ``seed``, ``memory``)."""
        options: dict[str, Any] = {
            "mode": self.mode,
            "dtype": self.cast,
            "microbatch": self.microbatch,
            "engine": self.engine,
            "seed": self.seed,
            "memory": self._memory,
        }
        unknown = changes.keys() - options.keys()
        if unknown:
            raise ProblemError(f"Expected options among {sorted(options)}, found {sorted(unknown)}.")
        other = Problem.__new__(Problem)
        names = set(self.layout.names)
        other._build(
            self.model, self.objective, self.batches, params=lambda name, _: name in names, **(options | changes)
        )
        return other

    def digest(self) -> str:
        """A short hash of what is surveyed and how: values, architecture, criterion, data, selection and options.

        Architecture and criterion are what can be read of them (classes, settings, tensors, code), and the loss of the
        first batch to the bit, which sees what cannot, such as a changed ``forward``.

        Cost: one walk over the data without the model, and a forward pass of the first batch.
        """
        self.ensure_checked()
        point = self.point()
        first = self.batches.first()
        piece = first if self.microbatch is None else split(first, self.microbatch)[0]
        chunk = Chunk(0, move(piece, device=self.device, dtype=self.cast), self.objective.samples(piece))
        total, weight = self.evaluate(chunk, point, grad=False)
        parts = {
            "values": (point.leaves, point.constants, point.buffers),
            "architecture": architecture(self.model),
            "flags": [module.training for module in self.model.modules()] if self.mode == "as is" else [],
            "objective": self.objective,
            "data": [identity(batch, strict=False) for batch in self.batches],
            "selection": self.layout.names,
            "options": (self.mode, self.dtype, self.microbatch, self.engine, self.seed),
            "first": (total, weight),
        }
        found = identity(parts, strict=False)
        assert found is not None
        return found

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

    def point(self) -> Point:
        """The current parameters and buffers, cast to the problem's dtype, without copying where none is needed."""
        version = self._version()
        if self._point is None or self._point.version != version:
            self._point = self._read_point(version)
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
            check(self)
            self._checked = True

    def chunks(self) -> Iterator[Chunk]:
        """Walk the data once; the first walk also checks it."""
        self.ensure_checked()
        index = samples = 0
        for batch in self.batches:
            for piece in [batch] if self.microbatch is None else split(batch, self.microbatch):
                placed = move(piece, device=self.device, dtype=self.cast)
                chunk = Chunk(index, placed, self.objective.samples(piece))
                yield chunk
                index, samples = index + 1, samples + chunk.samples
        self._samples = samples

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
            seed_everything(self.seed * 1_000_003 + chunk)
            result: T = torch.func.functional_call(
                _Scene(self.model), {f"model.{name}": tensor for name, tensor in named.items()}, (function,)
            )
        return result

    def evaluate(self, chunk: Chunk, point: Point, *, grad: bool = True) -> tuple[Float[Tensor, ""], float]:
        """Total and weight of one chunk."""

        def forward(model: nn.Module) -> tuple[Float[Tensor, ""], float]:
            with torch.set_grad_enabled(grad):
                return self.objective.evaluate(model, chunk.batch)

        return self.call(forward, point, chunk=chunk.index)

    def totals(self, point: Point | None = None) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Total and weight of every chunk, in float64, not finite where the loss is not.

        Cost: one forward pass.
        """
        point = self.point() if point is None else point
        with self.session():
            pairs = [self.evaluate(chunk, point, grad=False) for chunk in self.chunks()]
        totals = torch.stack([total.detach() for total, _ in pairs]).to("cpu", torch.float64)
        return totals, torch.tensor([weight for _, weight in pairs], dtype=torch.float64)

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
        for _, total, weight, part in self.chunk_gradients():
            if not torch.isfinite(total):
                raise non_finite_loss(float(total.detach()))
            gradient += part
            weights.append(weight)
        return gradient / self.total_weight(torch.tensor(weights, dtype=torch.float64))

    def chunk_gradients(
        self, point: Point | None = None
    ) -> Iterator[tuple[Chunk, Float[Tensor, ""], float, Float[Tensor, " n"]]]:
        """Every chunk with its total, weight, and the gradient of its total, flattened."""
        point = self.point() if point is None else point
        for chunk in self.chunks():

            def differentiate(
                model: nn.Module, chunk: Chunk = chunk
            ) -> tuple[Float[Tensor, ""], float, Float[Tensor, " n"]]:
                total, weight = self.objective.evaluate(model, chunk.batch)
                return total.detach(), weight, self.layout.flatten(gradients(total, point.leaves))

            yield chunk, *self.call(differentiate, point, chunk=chunk.index)

    def total_weight(self, weights: Float[Tensor, " c"]) -> float:
        """What the summed totals are divided by.

        Raises:
            DataError: nothing in the data counts.
        """
        if not self.objective.averages():
            return 1.0
        weight = float(weights.sum())
        if weight <= 0:
            raise DataError(
                f"Expected data with positive weight, found {weight:g}: every target is ignored (ignore_index) or has class "
                "weight 0. Check the targets."
            )
        return weight

    # ----------------------------------------------------------------------------------------------------- internals

    def _version(self) -> tuple[object, ...]:
        """What changes with the loss: counters of in-place writes, addresses, sums of the values, modes, the criterion.

        The sums see writes through ``.data``, as of many averaging schemes, which the counters do not.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        counts = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        addresses = [tensor.data_ptr() for tensor in tensors]
        sums = _sums([tensor for tensor in tensors if tensor.is_floating_point()])
        modes = [module.training for module in self.model.modules()] if self.mode == "as is" else []
        return (*counts, *addresses, *sums, *modes, *self.objective.settings())

    def _read_point(self, version: tuple[object, ...]) -> Point:
        parameters = {name: self._converted(parameter) for name, parameter in self.model.named_parameters()}
        leaves = tuple(parameters.pop(name).requires_grad_() for name in self.layout.names)
        buffers = {name: self._converted(buffer) for name, buffer in self.model.named_buffers()}
        return Point(leaves, parameters, buffers, version)

    def _converted(self, tensor: Tensor) -> Tensor:
        """A tensor that shares storage where the dtype stays, so that no memory is taken, but no history or hooks."""
        with torch.inference_mode(False):
            detached = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
            return detached.to(self.cast) if self.cast is not None and tensor.is_floating_point() else detached

    def _refuse_coupled_microbatches(self) -> None:
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


def non_finite_loss(value: float, *, where: str = "the current parameters") -> NonFiniteError:
    """The error for a loss that has no derivatives."""
    return NonFiniteError(
        f"Expected a finite loss at {where}, found {value}. Derivatives do not exist there. Check the inputs for NaN, and "
        "whether training has diverged (an earlier checkpoint may still be finite)."
    )


def _sums(tensors: list[Tensor]) -> list[float]:
    """Two numbers for each tensor: its norm, and the sum of its first half, which a permutation changes too."""
    if not tensors:
        return []
    with torch.no_grad():
        norms = torch._foreach_norm(tensors)
        halves = [tensor.detach().reshape(-1)[: (tensor.numel() + 1) // 2].sum() for tensor in tensors]
        return torch.stack([value.double() for value in (*norms, *halves)]).nan_to_num(nan=-1.0).tolist()


def _unwrap(model: nn.Module) -> nn.Module:
    """Take off torch.compile and data-parallel wrappers, which hide parameters and break double backward."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _one_device(model: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise ProblemError(
            f"Expected all parameters and buffers on one device, found {sorted(map(str, devices))}. "
            "Move the model with model.to(device)."
        )
    device = next(iter(devices), torch.device("cpu"))
    if device.type == "meta":
        raise ProblemError("Expected a model with values, found parameters on the meta device. Load its weights first.")
    return device


def _common_dtype(parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
    dtype = next(iter(parameters.values())).dtype
    for parameter in parameters.values():
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProblemError(f"Expected {name} to be one of {', '.join(map(repr, allowed))}, found {value!r}.")
