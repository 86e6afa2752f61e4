"""Criteria as sums over samples: total, weight, share of each sample, and the Hessian in the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import DataError, OperatorError, ProblemError
from theodolite.problem.arguments import refuse_no_function
from theodolite.problem.data import map_tensors, samples_of, tensors_of
from theodolite.problem.swapping import called_with

# Logits of which the curvature is taken at a time: 16 MiB in single precision.
PIECE = 2**22


class OutputLoss(ABC):
    """A criterion as total(outputs, targets) / weight(outputs, targets), both sums over the samples of a batch.

    Subclasses give the share of each sample in the total; those with a closed form also give the curvature in the outputs.
    """

    @abstractmethod
    def shares(self, outputs: Any, targets: Any) -> Float[Tensor, " b"]:
        """What each sample adds to the total, tokens and elements summed."""

    def total(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """Sum of the shares."""
        return self.shares(outputs, targets).sum()

    def weight(self, outputs: Any, targets: Any) -> float:
        """What the total is divided by: samples, valid tokens or summed class weights."""
        return float(samples_of(targets))

    def averages(self) -> bool:
        """Whether totals are divided by weights; False for a criterion that sums."""
        return True

    def couples(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its batch."""
        return False

    def settings(self) -> tuple[object, ...]:
        """What may change in the criterion while a problem is in use."""
        return ()

    def evaluate(self, outputs: Any, targets: Any) -> tuple[Float[Tensor, ""], float]:
        """Total and weight."""
        return self.total(outputs, targets), self.weight(outputs, targets)

    def curvature(self, outputs: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """The Hessian of the total in the outputs, as a product with one tensor of their shape."""
        point = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.total(point, targets), point, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like

        def product(vector: Tensor) -> Tensor:
            return torch.autograd.grad(gradient, point, vector, retain_graph=True, materialize_grads=True)[0]

        return product


def recognise(criterion: Callable[..., Any]) -> OutputLoss:
    """The criterion as a sum over samples: closed forms for those of torch, automatic differentiation for any other.

    Args:
        criterion: an ``nn`` loss module, a function of ``torch.nn.functional``, or any function of (outputs, targets)
            that returns the mean over samples, or a pair (total, weight).
    """
    refuse_no_function(criterion, name="criterion", example="nn.MSELoss()")
    criterion = _as_module(criterion)
    if getattr(criterion, "reduction", "mean") == "none":
        raise ProblemError(
            f"Expected a criterion that reduces to one number, found {type(criterion).__name__}(reduction='none'), which "
            "returns a vector. Use reduction='mean'."
        )
    if type(criterion) is nn.CrossEntropyLoss:
        return CrossEntropy(
            criterion.weight, criterion.ignore_index, criterion.label_smoothing, mean=criterion.reduction == "mean"
        )
    if type(criterion) is nn.MSELoss:
        return SquaredError(mean=criterion.reduction == "mean")
    if type(criterion) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(criterion.weight, criterion.pos_weight, mean=criterion.reduction == "mean")
    if hasattr(criterion, "divisor") and hasattr(criterion, "couples_samples"):
        return WholeBatch(criterion) if criterion.couples_samples else SelfWeighed(criterion)
    return Generic(criterion)


_MODULES: tuple[tuple[Callable[..., Any], type[nn.Module]], ...] = (
    (F.cross_entropy, nn.CrossEntropyLoss),
    (F.mse_loss, nn.MSELoss),
    (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
)


def _as_module(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """The module of a function of torch or of our losses, also with keywords bound by ``functools.partial``."""
    function, keywords = criterion, {}
    if isinstance(criterion, partial) and not criterion.args:
        function, keywords = criterion.func, criterion.keywords
    module = next((module for known, module in _MODULES if known is function), getattr(function, "as_module", None))
    return criterion if module is None else module(**keywords)


def settings_of(function: Callable[..., Any]) -> tuple[object, ...]:
    """Numbers and words that a criterion or loss function holds, and versions of its tensors: what may change under way."""
    owners = [function, getattr(function, "__self__", None)]
    values = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    values += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    found: list[object] = [value for value in values if isinstance(value, bool | int | float | str)]
    if isinstance(function, nn.Module):
        found += [(tensor._version, tensor.data_ptr()) for tensor in (*function.parameters(), *function.buffers())]
    return tuple(found)


@dataclass(frozen=True)
class CrossEntropy(OutputLoss):
    """Softmax cross-entropy on logits (B, C, …) with class indices (B, …) or class probabilities (B, C, …).

    Averages as ``torch.nn.functional.cross_entropy`` does: over the weights of the valid targets for class indices,
    over positions for probabilities.
    """

    class_weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    mean: bool = True

    def averages(self) -> bool:
        return self.mean

    def shares(self, outputs: Any, targets: Tensor) -> Float[Tensor, " b"]:
        logits = tensor_of(outputs)
        _classes_second(logits, targets)
        self._refuse_unknown_classes(targets, classes=logits.shape[1])
        values = F.cross_entropy(
            logits,
            self._targets(logits, targets),
            weight=_like(self.class_weight, logits),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return _per_sample(values)

    def weight(self, outputs: Any, targets: Tensor) -> float:
        if targets.is_floating_point():
            return float(targets.numel() // tensor_of(outputs).shape[1])
        classes = targets.long()
        valid = classes[classes != self.ignore_index]
        if self.class_weight is None:
            return float(valid.numel())
        return float(self.class_weight.to(valid.device, torch.float64)[valid].sum())

    def curvature(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Closed form s·(p ∘ u − p (pᵀu)), where s is the summed weight of the target of each position.

        Beyond four million logits neither p nor anything else of their number is kept or made but the product itself: p is
        computed again, a few positions at a time, which costs one exponential a logit.
        """
        logits = tensor_of(outputs).detach()
        scale = self.position_weights(logits, targets)
        if logits.numel() <= PIECE:
            p = logits.softmax(dim=1)
            scaled = p if scale is None else p * scale.unsqueeze(1)
            return lambda vector: scaled * (vector - (p * vector).sum(dim=1, keepdim=True))
        normaliser = logits.logsumexp(dim=1, keepdim=True)

        def product(vector: Tensor) -> Tensor:
            result = torch.empty_like(vector)
            for where in _pieces(logits.shape):
                p, u = (logits[where] - normaliser[where]).exp_(), vector[where]
                centred = p * (u - (p * u).sum(dim=1, keepdim=True))
                result[where] = centred if scale is None else centred * scale.unsqueeze(1)[where]
            return result

        return product

    def _refuse_unknown_classes(self, targets: Tensor, *, classes: int) -> None:
        """Raise for indices that are no classes; on a GPU torch would end the process's use of it."""
        if self.class_weight is not None and self.class_weight.numel() != classes:
            raise ProblemError(
                f"Expected a weight for each of {classes} classes, the outputs at a position, found {self.class_weight.numel()}."
            )
        if targets.is_floating_point():
            return
        if targets.dtype not in (torch.int64, torch.uint8):
            raise DataError(f"Expected class indices of type torch.int64, found {targets.dtype}. Use targets.long().")
        targets = targets.long()  # of uint8, 156 would equal −100
        unknown = targets[((targets < 0) | (targets >= classes)) & (targets != self.ignore_index)]
        if len(unknown):
            raise DataError(
                f"Expected class indices from 0 to {classes - 1}, as many as the model has outputs, or {self.ignore_index} for "
                f"positions to ignore; found {len(unknown):,} others from {int(unknown.min())} to {int(unknown.max())}. Count "
                "classes from 0, or give the model an output for each."
            )

    def _targets(self, logits: Tensor, targets: Tensor) -> Tensor:
        return targets.to(logits.dtype) if targets.is_floating_point() else targets.long()

    def position_weights(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """Σ_c q_c w_c at each position, with q the smoothed target distribution; 0 where ignored."""
        classes = logits.shape[1]
        weight = _like(self.class_weight, logits)
        uniform = 1.0 if weight is None else weight.sum() / classes
        if targets.is_floating_point():
            q = targets.to(logits.dtype)
            on_target = q.sum(1) if weight is None else torch.einsum("bc...,c->b...", q, weight)
            return (1 - self.label_smoothing) * on_target + self.label_smoothing * uniform
        targets = targets.long()
        valid = targets != self.ignore_index
        if weight is None:
            return None if bool(valid.all()) else valid.to(logits.dtype)
        on_target = weight[targets.where(valid, torch.zeros_like(targets))]
        return ((1 - self.label_smoothing) * on_target + self.label_smoothing * uniform) * valid


@dataclass(frozen=True)
class BinaryCrossEntropy(OutputLoss):
    """Sigmoid cross-entropy on logits, averaged over all elements."""

    element_weight: Tensor | None = None
    positive_weight: Tensor | None = None
    mean: bool = True

    def averages(self) -> bool:
        return self.mean

    def shares(self, outputs: Any, targets: Tensor) -> Float[Tensor, " b"]:
        logits = _same_shape(tensor_of(outputs), targets)
        values = F.binary_cross_entropy_with_logits(
            logits,
            targets.to(logits.dtype),
            weight=_like(self.element_weight, logits),
            pos_weight=_like(self.positive_weight, logits),
            reduction="none",
        )
        return _per_sample(values)

    def weight(self, outputs: Any, targets: Tensor) -> float:
        return float(targets.numel())

    def curvature(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Closed form w·(1 + (p₊ − 1)·y)·σ(1 − σ) ∘ u."""
        logits = tensor_of(outputs).detach()
        diagonal = torch.sigmoid(logits) * torch.sigmoid(-logits) * self.element_weights(logits, targets)
        return lambda vector: diagonal * vector

    def element_weights(self, logits: Tensor, targets: Tensor) -> Tensor:
        """w·(1 + (p₊ − 1)·y) for each element."""
        weights = torch.ones_like(logits)
        positive, element = _like(self.positive_weight, logits), _like(self.element_weight, logits)
        if positive is not None:
            weights = weights * (1 + (positive - 1) * targets.to(logits.dtype))
        return weights if element is None else weights * element


@dataclass(frozen=True)
class SquaredError(OutputLoss):
    """Squared error, averaged over all elements."""

    mean: bool = True

    def averages(self) -> bool:
        return self.mean

    def shares(self, outputs: Any, targets: Tensor) -> Float[Tensor, " b"]:
        values = _same_shape(tensor_of(outputs), targets)
        return _per_sample((values - targets.to(values.dtype)).square())

    def weight(self, outputs: Any, targets: Tensor) -> float:
        return float(targets.numel())

    def curvature(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Closed form 2u."""
        return lambda vector: 2 * vector


@dataclass(frozen=True)
class Generic(OutputLoss):
    """Any criterion that averages over samples, or returns (total, weight); differentiated automatically."""

    criterion: Callable[..., Any]

    def shares(self, outputs: Any, targets: Any) -> Float[Tensor, " b"]:
        """The criterion on each sample alone, with its first dimension kept at 1."""
        samples = samples_of(targets)

        def sample(tree: Any, index: int) -> Any:
            keep = slice(index, index + 1)
            return map_tensors(tree, lambda t: t[keep] if t.dim() and t.shape[0] == samples else t)

        return torch.stack([self.total(sample(outputs, i), sample(targets, i)) for i in range(samples)])

    def total(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        return self.evaluate(outputs, targets)[0]

    def weight(self, outputs: Any, targets: Any) -> float:
        return self.evaluate(outputs, targets)[1]

    def evaluate(self, outputs: Any, targets: Any) -> tuple[Float[Tensor, ""], float]:
        value = self._value(outputs, targets)
        if isinstance(value, tuple):
            return total_and_weight(value, "the criterion")
        samples = samples_of(targets)
        return one_number(value, "the criterion") * (samples if self.averages() else 1), float(samples)

    def averages(self) -> bool:
        return getattr(self.criterion, "reduction", "mean") != "sum"

    def settings(self) -> tuple[object, ...]:
        return settings_of(self.criterion)

    def _value(self, outputs: Any, targets: Any) -> Any:
        return _called(self.criterion, (outputs, targets))


@dataclass(frozen=True)
class SelfWeighed(OutputLoss):
    """A criterion that knows what its mean divides by, as the losses of ``theodolite.losses`` do, and perhaps its curvature.

    It has ``divisor(*inputs)``, an option ``reduction``, and ``output_hessian(outputs, targets)``, whose product with the
    outputs' shape is taken where it exists.
    """

    criterion: Any

    def averages(self) -> bool:
        return bool(self.criterion.reduction != "sum")

    def settings(self) -> tuple[object, ...]:
        return settings_of(self.criterion)

    def shares(self, outputs: Any, targets: Any) -> Float[Tensor, " b"]:
        return _per_sample(_called(self.criterion, _inputs(self.criterion, outputs, targets), reduction="none"))

    def total(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        return one_number(
            _called(self.criterion, _inputs(self.criterion, outputs, targets), reduction="sum"), "the criterion"
        )

    def weight(self, outputs: Any, targets: Any) -> float:
        return float(self.criterion.divisor(*_inputs(self.criterion, outputs, targets)))

    def curvature(self, outputs: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """The criterion's own product, times what its mean divides by; automatic differentiation where it has none."""
        point = tensor_of(outputs).detach()
        try:
            with torch.no_grad():
                hessian = self.criterion.output_hessian(point, targets)
        except NotImplementedError:
            return super().curvature(outputs, targets)
        if not self.averages():
            return lambda vector: hessian @ vector
        weight = self.weight(point, targets)
        return lambda vector: weight * (hessian @ vector)


@dataclass(frozen=True)
class WholeBatch(OutputLoss):
    """A criterion of whole batches, whose samples it couples; batches weigh by their samples."""

    criterion: Any

    def couples(self) -> bool:
        return True

    def settings(self) -> tuple[object, ...]:
        return settings_of(self.criterion)

    def shares(self, outputs: Any, targets: Any) -> Float[Tensor, " b"]:
        raise OperatorError(
            f"Expected a loss that is a sum over samples, found {type(self.criterion).__name__}, which couples the samples of a "
            "batch: its per-sample gradients are not defined. Survey its Hessian, or its GGN."
        )

    def total(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        value = one_number(_called(self.criterion, _inputs(self.criterion, outputs, targets)), "the criterion")
        return value * samples_of(outputs)

    def weight(self, outputs: Any, targets: Any) -> float:
        return float(samples_of(outputs))


def _inputs(criterion: Any, outputs: Any, targets: Any) -> tuple[Any, ...]:
    """The inputs of a criterion: outputs and targets, each one or several tensors; no targets for one of outputs alone."""
    first = outputs if isinstance(outputs, list | tuple) else (outputs,)
    every = (*first, *(targets if isinstance(targets, list | tuple) else (targets,)))
    return every[: getattr(criterion, "arity", len(every))]


def _called(criterion: Callable[..., Any], inputs: tuple[Any, ...], **options: Any) -> Any:
    """The criterion, whose own tensors follow the device and type of the outputs and are not written to."""
    reference = next((tensor for tensor in tensors_of(inputs[0]) if tensor.is_floating_point()), None)
    if not isinstance(criterion, nn.Module) or reference is None:
        return criterion(*inputs, **options)
    own = {name: _placed(parameter, reference) for name, parameter in criterion.named_parameters()}
    own |= {name: _placed(buffer, reference).clone() for name, buffer in criterion.named_buffers()}
    return called_with(criterion, own, inputs, options)


def one_number(value: Any, who: str) -> Float[Tensor, ""]:
    """Check that a loss is a scalar tensor.

    Raises:
        ProblemError: it is a vector, or no tensor.
    """
    if not isinstance(value, Tensor):
        raise ProblemError(f"Expected {who} to return a tensor with one number, found {type(value).__name__}.")
    if value.numel() != 1:
        raise ProblemError(
            f"Expected {who} to return one number, found a tensor of shape {tuple(value.shape)}. It does not reduce over "
            "samples: take its mean, or return (total, count)."
        )
    return value.reshape(())


def total_and_weight(value: tuple[Any, ...], who: str) -> tuple[Float[Tensor, ""], float]:
    """Check that a tuple is (total, weight).

    Raises:
        ProblemError: it is another tuple, such as (loss, logits), or the weight is negative.
    """
    weight = value[1] if len(value) == 2 else None
    if isinstance(weight, Tensor) and weight.numel() == 1:
        weight = float(weight.detach())
    if isinstance(weight, Tensor) or not isinstance(weight, Real) or not float(weight) >= 0:
        parts = [f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else repr(part)[:40] for part in value]
        raise ProblemError(
            f"Expected {who} to return one number or a pair (total, count) with a count of at least 0, found a tuple of "
            f"{len(value)}: {', '.join(parts)}. Return the loss alone, e.g. output[0]."
        )
    return one_number(value[0], who), float(weight)


def tensor_of(outputs: Any) -> Tensor:
    """The tensor in a model's output: itself, or the ``logits`` of a structured output."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise OperatorError(
            f"Expected the model to return a tensor or an output with .logits, found {type(outputs).__name__}. "
            "Wrap the model so that it returns the tensor that the criterion takes."
        )
    return found


def _like(weight: Tensor | None, reference: Tensor) -> Tensor | None:
    return None if weight is None else _placed(weight, reference)


def _placed(tensor: Tensor, reference: Tensor) -> Tensor:
    return tensor.to(reference.device, reference.dtype if tensor.is_floating_point() else None)


def _pieces(shape: torch.Size) -> Iterator[tuple[Any, ...]]:
    """Places of pieces of logits (B, C, …), few samples each, or few positions of a sample where one sample is many."""
    sample = shape[1:].numel()
    samples = max(1, PIECE // sample)
    positions = shape[-1] if len(shape) == 2 else max(1, PIECE // (sample // shape[-1]))
    for first in range(0, shape[0], samples):
        if len(shape) == 2:
            yield (slice(first, first + samples),)
        else:
            for start in range(0, shape[-1], positions):
                yield slice(first, first + samples), ..., slice(start, start + positions)


def _per_sample(values: Tensor) -> Float[Tensor, " b"]:
    return values.reshape(values.shape[0], -1).sum(1)


def _classes_second(logits: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() and targets.dim() == logits.dim() - 1:
        raise DataError(
            f"Expected class indices of type torch.int64, or probabilities of shape {tuple(logits.shape)}, found {targets.dtype} "
            f"of shape {tuple(targets.shape)}. Use targets.long()."
        )
    expected = (
        targets.shape if targets.is_floating_point() else (*targets.shape[:1], *logits.shape[1:2], *targets.shape[1:])
    )
    if logits.shape != expected:
        raise DataError(
            f"Expected logits of shape {tuple(expected)} for targets of shape {tuple(targets.shape)}, with the classes second, as "
            f"torch's cross-entropy takes them; found {tuple(logits.shape)}. A language model's (batch, position, vocabulary) is "
            "turned by logits.transpose(1, 2) in the model's forward, or use Problem.from_loss."
        )


def _same_shape(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise DataError(
            f"Expected outputs and targets of one shape, found {tuple(outputs.shape)} and {tuple(targets.shape)}, which "
            "torch would broadcast to a wrong loss. Reshape one of them."
        )
    return outputs
