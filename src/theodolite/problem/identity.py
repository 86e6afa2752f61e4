"""What a function, criterion or batch is, as a hash that other processes find again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(...),
    range,
    slice,
    torch.dtype,
    torch.device,
    PurePath,
)


def identity(value: object, *, strict: bool) -> str | None:
    """A hash of values and code: numbers, tensors, functions with what they close over and the names they use.

    A function is its code, constants, defaults, closure and the globals of its own module that it names; an object its
    class with the code of its call and its attributes. A function of theodolite itself is its name and its code.

    Cost: reads every tensor once.

    Args:
        value: anything.
        strict: give nothing at all where a part of the value has no content that can be compared (an open file, a
            random generator). Otherwise that part counts by the name of its type.

    Returns:
        Hexadecimal digits, equal for equal contents; None where ``strict`` and not known.

    Example:
        >>> identity(lambda x: x + 1, strict=True) == identity(lambda x: x + 2, strict=True)
        False
    """
    found = _Identity(strict=strict)
    try:
        found.add(value)
    except _UnknownError:
        return None
    return found.hash.hexdigest()


class _UnknownError(Exception):
    """A part has no content that could be compared."""


def architecture(model: nn.Module) -> tuple[str, ...]:
    """A model as it prints itself, and the class of each of its modules."""
    classes = (f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules())
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)), *classes


@final
class _Identity:
    """Feeds a hash with a value, part by part, each with its kind and length in front."""

    def __init__(self, *, strict: bool) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._strict = strict
        self._seen: dict[int, object] = {}  # also keeps what was seen alive, so that no address is used twice

    def add(self, value: object) -> None:
        if isinstance(value, (*PLAIN, Enum)):
            self._text(f"{type(value).__qualname__}={value!r}")
        elif isinstance(value, Tensor | np.ndarray):
            self._array(value)
        elif id(value) in self._seen:
            self._text(f"seen {list(self._seen).index(id(value))}")
        else:
            self._seen[id(value)] = value
            self._compound(value)

    def _compound(self, value: Any) -> None:
        match value:
            case Mapping():
                self._parts("mapping", [part for pair in value.items() for part in pair])
            case set() | frozenset():
                self._parts("set", sorted(value, key=repr))
            case list() | tuple():
                self._parts(type(value).__qualname__, value)
            case functools.partial():
                self._parts("partial", [value.func, value.args, value.keywords])
            case types.MethodType():
                self._parts("method", [value.__func__, value.__self__])
            case types.CodeType():
                self._parts("code", [value.co_code, value.co_consts, value.co_names, value.co_varnames])
            case types.FunctionType():
                self._function(value)
            case types.ModuleType():
                self._text(f"module {value.__name__}")
            case type() | types.BuiltinFunctionType() | types.MethodDescriptorType() | types.GenericAlias():
                self._text(_Name(value).text)
            case _:
                self._object(value)

    def _function(self, function: types.FunctionType) -> None:
        self._text(f"function {function.__module__}.{function.__qualname__}")
        if function.__module__.partition(".")[0] == __name__.partition(".")[0]:
            self.add(inspect.unwrap(function).__code__)
            return
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        names = sorted(set(_names(function.__code__)) & function.__globals__.keys())
        used = {name: _known_by_name(function.__globals__[name], function.__module__) for name in names}
        self._parts("body", [function.__code__, function.__defaults__, function.__kwdefaults__, cells, used])

    def _object(self, value: Any) -> None:
        cls = type(value)
        if isinstance(value, _Name):
            self._text(value.text)
        elif callable(digest := getattr(value, "digest", None)):
            self._parts(cls.__qualname__, [digest()])
        elif isinstance(value, nn.Module):
            state = {**dict(value.named_parameters()), **dict(value.named_buffers())}
            calls = [(type(part), _call_of(part), _attributes(part)) for part in value.modules()]
            self._parts("module", [architecture(value), state, calls])
        elif dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            self._parts("dataclass", [cls, _call_of(value), fields])
        elif callable(value) and getattr(value, "__dict__", None) is not None:
            self._parts("object", [cls, _call_of(value), vars(value)])
        elif self._strict:
            raise _UnknownError
        else:
            self._text(f"some {cls.__module__}.{cls.__qualname__}")

    def _array(self, value: Tensor | np.ndarray) -> None:
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            self._parts("objects", value.tolist())
            return
        self._text(f"array {value.dtype} {tuple(value.shape)}")
        if isinstance(value, Tensor):
            plain = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
            value = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self.hash.update(np.ascontiguousarray(value).tobytes())

    def _parts(self, kind: str, parts: Any) -> None:
        self._text(f"{kind} of {len(parts)}")
        for part in parts:
            self.add(part)

    def _text(self, text: str) -> None:
        content = text.encode()
        self.hash.update(b"%d:" % len(content) + content)


@final
class _Name:
    """Something of another module, which its name stands for."""

    def __init__(self, value: object) -> None:
        module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "")
        self.text = f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _known_by_name(value: object, module: str) -> object:
    """A global that code uses: the name of a module, a class, or a function of another module; any other is its content."""
    foreign = isinstance(value, types.FunctionType) and value.__module__ != module
    return _Name(value) if foreign or isinstance(value, types.ModuleType | type) else value


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code may look up globally, also from functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _filled(cell: types.CellType) -> bool:
    """Whether a variable of a closure has been assigned."""
    try:
        cell.cell_contents  # noqa: B018 - raises where it is empty
    except ValueError:
        return False
    return True


def _call_of(value: object) -> list[Callable[..., Any]]:
    """The Python code that a call of an object runs, of classes outside torch."""
    cls = type(value)
    found = [vars(base).get(name) for base in cls.__mro__ for name in ("__call__", "forward")]
    return [each for each in found if inspect.isfunction(each) and not each.__module__.startswith("torch.")]


def _attributes(module: nn.Module) -> dict[str, object]:
    """Settings of a module that are no parameters, buffers, submodules or hooks."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}
