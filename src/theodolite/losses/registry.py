"""One source for both forms of a loss: the function is registered, its module is made from the function's signature."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from theodolite.losses.contract import row_scales
from theodolite.losses.hessian import OutputHessian, class_last, class_second

Kind = Literal[
    "classes",  # logits (b, c, ...) and class indices (b, ...)
    "labels",  # logits (b, l) and 0/1 labels (b, l)
    "values",  # predictions and targets of one shape
    "masks",  # probabilities and soft labels (b, c, ...)
    "pairs",  # log-probabilities of preferred and rejected answers
    "views",  # two embeddings of the same samples
    "embeddings",  # embeddings (b, d) and class indices (b,)
    "other",  # its own inputs, stated in its docstring
]
Function = TypeVar("Function", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Entry:
    """A registered loss.

    Args:
        function: the functional form.
        kind: what its inputs are.
        coupled: whether the loss of a sample depends on the other samples of its batch.
    """

    function: Callable[..., Tensor]
    kind: Kind
    coupled: bool = False

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__

    @property
    def family(self) -> str:
        """Name of the file it lives in."""
        return self.function.__module__.rsplit(".", 1)[-1]

    @property
    def gradient(self) -> Callable[..., Tensor] | None:
        """Closed form of the gradient of each sample's loss in its logits, named ``<name>_grad``."""
        return self._companion("grad")

    @property
    def hessian(self) -> Callable[..., OutputHessian] | None:
        """Closed form of the Hessian of each sample's loss in its logits, named ``<name>_hess``."""
        return self._companion("hess")

    @property
    def count(self) -> Callable[..., Tensor] | None:
        """What the mean divides by where that is neither samples nor their class weights, named ``<name>_count``."""
        return self._companion("count")

    def _companion(self, suffix: str) -> Callable[..., Any] | None:
        return getattr(sys.modules[self.function.__module__], f"{self.name}_{suffix}", None)


LOSSES: dict[str, Entry] = {}


def loss(kind: Kind, *, coupled: bool = False) -> Callable[[Function], Function]:
    """Register a function as a loss whose inputs are of this kind.

    A loss without a ``reduction`` is one of whole batches, which couples their samples. Its ``as_module`` makes the module
    form, for those who are handed the function.
    """

    def register(function: Function) -> Function:
        whole = "reduction" not in keyword_options(function)
        LOSSES[function.__name__] = Entry(function, kind, coupled or whole)
        setattr(function, "as_module", lambda **options: module_of(function, function.__name__)(**options))  # noqa: B010
        return function

    return register


class LossModule(nn.Module):
    """A loss with its options set: calling it calls the function, with the function's own defaults.

    Options that are tensors become buffers, parameters stay parameters, so that both follow ``.to()`` and
    ``state_dict()``. Made by :func:`module_of`.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = keyword_options(type(self).function)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; its options are "
                f"{', '.join(known) or 'none'}."
            )
        self.options = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
        self.tensor_options = tuple(name for name in options if name not in self.options)
        for name in self.tensor_options:
            if isinstance(options[name], nn.Parameter):
                self.register_parameter(name, options[name])
            else:
                self.register_buffer(name, options[name])

    def forward(self, *inputs: Tensor, **extra: Any) -> Tensor:
        """Return the loss; options given here win over those of the module."""
        return type(self).function(*inputs, **(self._all_options() | extra))

    @property
    def reduction(self) -> str:
        """The reduction over samples."""
        return str(self.options.get("reduction", "mean"))

    @property
    def couples_samples(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its batch."""
        return LOSSES[type(self).function.__name__].coupled

    @property
    def arity(self) -> int:
        """How many inputs the loss takes: 1 for those of outputs alone, such as a penalty."""
        parameters = inspect.signature(type(self).function).parameters.values()
        return sum(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)

    def divisor(self, *inputs: Tensor) -> float:
        """Return what the mean divides the sum of a batch by: samples, or summed class weights, without ignored ones."""
        entry, options = LOSSES[type(self).function.__name__], self._all_options()
        if entry.count is not None:
            known = keyword_options(entry.count)
            return float(entry.count(*inputs, **{name: value for name, value in options.items() if name in known}))
        if "ignore_index" in keyword_options(entry.function) and not inputs[-1].is_floating_point():
            shared = {name: options[name] for name in ("weight", "ignore_index") if name in options}
            scales = row_scales(inputs[-1].reshape(-1), dtype=torch.float64, reduction="sum", **shared)
            return float(scales.sum())
        with torch.no_grad():
            return float(self(*inputs, reduction="none").numel())

    def output_gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of the reduced loss in logits (b, c, …), by closed form.

        Raises:
            NotImplementedError: the loss or one of its options has none.
        """
        closed, scale, options = self._closed_form("gradient", logits, target)
        result: Tensor = closed(class_last(logits), target.reshape(-1), **options)
        return class_second(result * scale[:, None], logits.shape)

    def output_hessian(self, logits: Tensor, target: Tensor) -> OutputHessian:
        """Return the Hessian of the reduced loss in logits (b, c, …), one block a position, by closed form.

        Raises:
            NotImplementedError: the loss or one of its options has none.
        """
        closed, scale, options = self._closed_form("hessian", logits, target)
        result: OutputHessian = closed(class_last(logits), target.reshape(-1), **options)
        return result.scaled(scale)

    def extra_repr(self) -> str:
        """Show the options that were set."""
        tensors = [f"{name}={tuple(getattr(self, name).shape)}" for name in self.tensor_options]
        return ", ".join([f"{name}={value!r}" for name, value in self.options.items()] + tensors)

    def _all_options(self) -> dict[str, Any]:
        return self.options | {name: getattr(self, name) for name in self.tensor_options}

    def _closed_form(
        self, which: str, logits: Tensor, target: Tensor
    ) -> tuple[Callable[..., Any], Tensor, dict[str, Any]]:
        entry = LOSSES[type(self).function.__name__]
        closed = getattr(entry, which)
        if closed is None or target.is_floating_point():
            what = entry.name if closed is None else f"{entry.name} of soft targets"
            raise NotImplementedError(f"{what} has no closed-form {which}; differentiate it with torch.autograd.")
        options = self._all_options()
        shared = {name: options.pop(name) for name in ("weight", "ignore_index", "reduction") if name in options}
        scale = row_scales(target.reshape(-1), dtype=logits.dtype, **shared)
        unknown = [name for name in options if name not in keyword_options(closed) and not _takes_any(closed)]
        if unknown:
            raise NotImplementedError(
                f"The closed-form {which} of {entry.name} does not cover {', '.join(unknown)}; differentiate it instead."
            )
        ignored = target.reshape(-1) == shared.get("ignore_index", -100)
        return lambda z, y, **chosen: closed(z, y.masked_fill(ignored, 0), **chosen), scale, options


def module_of(function: Callable[..., Tensor], name: str) -> type[LossModule]:
    """Return the ``nn.Module`` form of a loss, with the options and defaults of its functional form."""
    doc = f"Module form of :func:`{function.__name__}`: {first_sentence(function)}"
    namespace = {"function": staticmethod(function), "__doc__": doc, "__module__": function.__module__}
    return type(name, (LossModule,), namespace)


def keyword_options(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Return the names of the keyword-only parameters of a loss."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def first_sentence(function: Callable[..., Tensor]) -> str:
    """Return the first line of a docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]
