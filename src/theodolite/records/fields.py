"""Check the fields of a record against their annotations, and freeze them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import AbstractArray


def conform(record: Any) -> None:
    """Replace every field of a frozen dataclass by its checked, read-only form.

    Arrays become read-only copies (one that is read-only already and owns its memory is shared); lists become tuples,
    mappings read-only, numpy scalars plain numbers. Axis names shared by array annotations must agree in size, also
    with the tuples that the class variable ``lengths`` names.

    Raises:
        TypeError: a value is not what its annotation says, or cannot be kept in a run log.
        ValueError: shapes disagree.
    """
    cls: Any = type(record)
    axes: dict[str, tuple[int, str]] = {}
    for name, hint in _hints(cls):
        value = _conformed(getattr(record, name), hint, f"{cls.__name__}.{name}", axes)
        object.__setattr__(record, name, value)
    for name, axis in cls.lengths.items():
        _bind(axis, len(getattr(record, name)), f"{cls.__name__}.{name}", axes)


@cache
def _hints(cls: Any) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _conformed(value: Any, hint: Any, where: str, axes: dict[str, tuple[int, str]]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        return _conformed(value, options[0], where, axes) if len(options) == 1 else frozen(value, where)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _array(value, hint, where, axes)
    if origin is tuple:
        return _tuple(value, typing.get_args(hint), where, axes)
    if hint in _SCALARS:
        return _scalar(value, hint, where)
    if origin is None and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _refuse(value, f"a {hint.__name__}", where)
    if isinstance(origin, type) and issubclass(origin, Mapping) and not isinstance(value, Mapping):
        return _refuse(value, "a mapping", where)
    return frozen(value, where)


def _array(value: Any, hint: Any, where: str, axes: dict[str, tuple[int, str]]) -> Any:
    array, names = read_only(value), hint.dtypes
    anything = not isinstance(names, tuple)  # the annotation Shaped leaves the type open
    if not anything and "float64" in names and "int64" not in names and array.dtype.kind in "iu":
        array = read_only(array.astype(np.float64))
    if array.dtype.kind not in "biuf" or not (anything or array.dtype.name in names):
        _refuse(value, "an array of " + ("numbers" if anything else hint.dtype.__name__.lower()), where)
    dims = hint.dim_str.split()
    if all(dim.isidentifier() or dim.isdigit() for dim in dims):
        if len(dims) != array.ndim:
            raise ValueError(f"{where} has shape {array.shape}; expected {len(dims)} axes: {hint.dim_str}.")
        for dim, size in zip(dims, array.shape, strict=True):
            _bind(dim, size, where, axes)
    return array


def _bind(dim: str, size: int, where: str, axes: dict[str, tuple[int, str]]) -> None:
    if dim.isdigit():
        expected, source = int(dim), "its annotation"
    else:
        expected, source = axes.setdefault(dim, (size, where))
    if size != expected:
        raise ValueError(f"{where} has {size} entries along axis {dim!r}; expected {expected}, as in {source}.")


def _tuple(value: Any, hints: tuple[Any, ...], where: str, axes: dict[str, tuple[int, str]]) -> Any:
    if not isinstance(value, list | tuple):
        return _refuse(value, "a tuple", where)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{where} has {len(value)} items; expected {len(hints)}: {value!r}.")
    return tuple(_conformed(item, hint, where, axes) for item, hint in zip(value, hints, strict=True))


def _scalar(value: Any, hint: type, where: str) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) != (hint is bool):  # Python counts True among the integers, a record does not
        return _refuse(value, _SCALARS[hint], where)
    if hint is float and isinstance(value, Real):
        return float(value)
    if hint is int and isinstance(value, Integral):
        return int(value)
    if isinstance(value, hint):
        return value
    return _refuse(value, _SCALARS[hint], where)


def frozen(value: Any, where: str) -> Any:
    """A value without annotation: numbers, strings, tuples, arrays and mappings of those, all read-only."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return read_only(value) if value.dtype.kind in "biuf" else _refuse(value, "an array of numbers", where)
    if isinstance(value, list | tuple):
        return tuple(frozen(item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, Mapping):
        return MappingProxyType({_key(key, where): frozen(item, f"{where}[{key!r}]") for key, item in value.items()})
    return _refuse(value, "a number, string, tuple, mapping or array", where)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(
            f"{where} has the key {key!r} of type {type(key).__name__}; keys must be strings, use str(key)."
        )
    return key


def read_only(value: Any) -> np.ndarray:
    """A read-only copy in C order; the array itself where it is one already."""
    if type(value) is np.ndarray and value.flags.owndata and value.flags.c_contiguous and not value.flags.writeable:
        return value
    array = np.array(value, order="C")
    array.setflags(write=False)
    return array


def thawed(value: Any) -> Any:
    """The same value with plain dictionaries, which can be pickled."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return tuple(thawed(item) for item in value) if isinstance(value, tuple) else value


def _refuse(value: Any, expected: str, where: str) -> typing.NoReturn:
    found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"{value!r} ({type(value).__name__})"
    raise TypeError(f"{where} must be {expected}; found {found}. Convert it before making the record.")


_SCALARS = {float: "a real number", int: "an integer", bool: "a bool", str: "a string"}
