"""One source for both forms of a loss: the function is registered, its module is made from the function's signature."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from theodolite.losses.checks import Check, Interval, choices_of, class_targets, same_shapes, shares
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
        checks: what raises for an option that is out of range, by its name.
    """

    function: Callable[..., Tensor]
    kind: Kind
    coupled: bool = False
    checks: Mapping[str, Check] = field(default_factory=dict, repr=False)

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


def loss(kind: Kind, *, coupled: bool = False, **ranges: str | Check) -> Callable[[Function], Function]:
    """Register a function as a loss whose inputs are of this kind, and let it refuse what is not.

    A loss without a ``reduction`` is one of whole batches, which couples their samples. Its ``as_module`` makes the module
    form, for those who are handed the function.

    Args:
        kind: what its inputs are; those of classes, labels, values and masks are checked.
        coupled: whether the loss of a sample depends on the others although it has a ``reduction``.
        ranges: for an option its interval, as ``q="(0, 1]"``, or a check of its own. Choices are read off the signature.
    """

    def register(function: Function) -> Function:
        whole = "reduction" not in keyword_options(function)
        checks = choices_of(function) | {
            name: Interval(told) if isinstance(told, str) else told for name, told in ranges.items()
        }
        checked = _checking(function, kind, checks)
        LOSSES[function.__name__] = Entry(checked, kind, coupled or whole, checks)
        setattr(checked, "as_module", lambda **options: module_of(checked, checked.__name__)(**options))  # noqa: B010
        return checked

    return register


def _checking(function: Function, kind: Kind, checks: Mapping[str, Check]) -> Function:
    """Return the function behind checks of the inputs of its kind and of the options that are given."""
    parameters = inspect.signature(function).parameters
    names = tuple(p.name for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    soft = kind == "classes" and "Float" in str(parameters[names[1]].annotation)
    owner = function.__name__

    @functools.wraps(function)
    def checked(*inputs: Any, **options: Any) -> Tensor:
        refuse_options(function, checks, options)
        given = (*inputs, *(options[name] for name in names[len(inputs) :] if name in options))
        if len(given) == 2 and kind in ("classes", "labels", "values", "masks"):
            _refuse_inputs(owner, kind, given[0], given[1], options.get("ignore_index", -100), soft)
        return function(*inputs, **options)

    return cast(Function, checked)


def refuse_options(function: Callable[..., Tensor], checks: Mapping[str, Check], options: Mapping[str, Any]) -> None:
    """Raise for the first option that is out of its range; None passes where the signature has it."""
    for name, value in options.items():
        if name in checks and not (value is None and "None" in str(inspect.signature(function).parameters[name])):
            checks[name](function.__name__, name, value)


def _refuse_inputs(owner: str, kind: Kind, first: Tensor, second: Tensor, ignore_index: int, soft: bool) -> None:
    if kind == "classes":
        class_targets(owner, first, second, ignore_index=ignore_index, soft=soft)
        return
    same_shapes(owner, first, second)
    if kind == "labels":
        shares(owner, "labels", second)
    elif kind == "masks":
        shares(owner, "probabilities", first)
        shares(owner, "targets", second)


class LossModule(nn.Module):
    """A loss with its options set: calling it calls the function, with the function's own defaults.

    Options that are tensors become buffers, parameters stay parameters, so that both follow ``.to()`` and
    ``state_dict()``. Made by :func:`module_of`.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__()
        self._refuse(values, options)
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

    def _refuse(self, values: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Raise for options that are unnamed, unknown, missing or out of range."""
        owner, function = type(self).__name__, type(self).function
        known = keyword_options(function)
        listed = ", ".join(known) or "none"
        if values:
            example = f"{owner}({known[0]}={values[0]!r})" if known else f"{owner}()"
            raise TypeError(f"{owner} takes its options by name, as {example}; they are {listed}. Found {values!r}.")
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(f"{owner} has no option {', '.join(map(repr, unknown))}; its options are {listed}.")
        parameters = inspect.signature(function).parameters
        missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in options]
        if missing:
            raise TypeError(
                f"{owner} needs {', '.join(missing)}, as {owner}({', '.join(f'{name}=…' for name in missing)})."
            )
        refuse_options(function, LOSSES[function.__name__].checks, options)

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

    def initialise(self: LossModule, *values: Any, **options: Any) -> None:
        LossModule.__init__(self, *values, **options)

    initialise.__name__, initialise.__qualname__ = "__init__", f"{name}.__init__"
    setattr(initialise, "__signature__", _signature(function))  # noqa: B010
    namespace = {
        "function": staticmethod(function),
        "__init__": initialise,
        "__doc__": _module_doc(function),
        "__module__": function.__module__,
    }
    return type(name, (LossModule,), namespace)


def _signature(function: Callable[..., Tensor]) -> inspect.Signature:
    """Return the signature of the constructor: the options of the function."""
    owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known, parameters = keyword_options(function), inspect.signature(function).parameters
    return inspect.Signature([owner, *(parameters[name] for name in known)], return_annotation=None)


def _module_doc(function: Callable[..., Tensor]) -> str:
    """Return the docstring of a module: what the function's says of its options, with defaults and ranges."""
    doc = inspect.getdoc(function) or ""
    sections = [f"Module form of :func:`{function.__name__}`: {first_sentence(function)}"]
    told = [_option_doc(function, entry) for entry in _entries(_section(doc, "Args"))]
    if any(told):
        sections.append("Args:\n" + "\n".join(filter(None, told)))
    if references := _section(doc, "References"):
        sections.append("References:\n" + references)
    return "\n\n".join(sections)


def _section(doc: str, title: str) -> str:
    """Return the indented lines under a title of a docstring."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    return found.group(1).rstrip() if found else ""


def _entries(section: str) -> list[str]:
    """Return each argument's lines."""
    return re.split(r"\n(?=    \S)", section) if section else []


def _option_doc(function: Callable[..., Tensor], entry: str) -> str:
    """Return the entry of an option with its defaults and range; nothing for that of an input."""
    named, _, text = entry.partition(":")
    known, parameters = keyword_options(function), inspect.signature(function).parameters
    names = [name for name in map(str.strip, named.split(",")) if name in known]
    if not names:
        return ""
    checks = LOSSES[function.__name__].checks
    facts = [f"in {check.text}" for name in names if isinstance(check := checks.get(name), Interval)]
    defaults = [parameters[name].default for name in names]
    facts.append("required" if inspect.Parameter.empty in defaults else f"default {', '.join(map(_shown, defaults))}")
    return f"    {', '.join(names)} ({'; '.join(facts)}):{text}"


def _shown(default: object) -> str:
    return getattr(default, "__name__", None) or repr(default)


def keyword_options(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """Return the names of the keyword-only parameters of a loss."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def first_sentence(function: Callable[..., Tensor]) -> str:
    """Return the first line of a docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]
