"""Random records of every kind, drawn from the annotations of their fields, and a few by hand."""

import dataclasses
import functools
import inspect
import types
import typing

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jaxtyping import AbstractArray

from theodolite.records import Cost, Scalars, Snapshot, Spectrum
from theodolite.records.record import KINDS

KINDS_OF_LIBRARY = [cls for cls in KINDS.values() if cls.__module__.startswith("theodolite.")]

floats = st.floats(allow_nan=True, allow_infinity=True)
leaves = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | floats | st.text(max_size=5)
keys = st.text(max_size=4) | st.sampled_from(["$float", "$array", "$mapping", "$", "id", "file"])
plain = st.recursive(
    leaves | npst.arrays(np.float64, npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def recipes(draw, classes=tuple(KINDS_OF_LIBRARY)):
    """Any record, made when called (the type checker draws random numbers, which a strategy must not).

    Every number may be NaN or infinite, every axis empty.
    """
    cls = draw(st.sampled_from(classes))
    sizes = {}
    hints = typing.get_type_hints(cls)
    values = {field.name: _draw(draw, hints[field.name], sizes) for field in dataclasses.fields(cls)}
    if isinstance(values.get("scalars"), dict):  # other quantities of a landscape stand at every point, as losses do
        for name in ("scalars", "scalar_stderrs"):
            values[name] = {key: draw(npst.arrays(np.float64, values["losses"].shape)) for key in values[name]}
    for name, axis in cls.lengths.items():
        values[name] = tuple(f"layer <{index}>" for index in range(_size(draw, axis, sizes)))
    return functools.partial(cls, **values)


def _draw(draw, hint, sizes):
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _draw(draw, options[0], sizes) if draw(st.booleans()) else None
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return draw(npst.arrays(_dtype(draw, hint), tuple(_size(draw, dim, sizes) for dim in hint.dim_str.split())))
    if origin is tuple and options[-1] is Ellipsis:
        return tuple(_draw(draw, options[0], sizes) for _ in range(draw(st.integers(0, 3))))
    if origin is tuple:
        return tuple(_draw(draw, option, sizes) for option in options)
    if origin is not None:
        return draw(st.dictionaries(keys, floats if options[1] is float else plain, max_size=4))
    strategies = {float: floats, int: st.integers(-(2**70), 2**70), bool: st.booleans(), str: st.text(max_size=6)}
    return draw(st.builds(Cost, products=floats, seconds=floats) if hint is Cost else strategies[hint])


def _dtype(draw, hint):
    return draw(
        st.sampled_from([name for name in ("bool", "int32", "int64", "float32", "float64") if name in hint.dtypes])
    )


def _size(draw, dim, sizes):
    return int(dim) if dim.isdigit() else sizes.setdefault(dim, draw(st.integers(0, 4)))


def unchecked(cls, **values):
    """A record made past the type checker of the tests, to see the checks that users see."""
    record = object.__new__(cls)
    inspect.unwrap(cls.__init__)(record, **values)
    return record


def spectrum(**changes):
    """A converged spectrum of three eigenvalues."""
    values = {
        "eigenvalues": np.array([12.34, 2.0, -1.234]),
        "residuals": np.array([3e-4, 1e-4, 2e-4]),
        "converged": np.array([True, True, True]),
        "data_stderr": np.array([0.5, 0.25, 0.125]),
        "tol": 1e-3,
        "which": "both",
        "size": 77_754,
    }
    return Spectrum(**(values | changes))


def scalars(step):
    """A line without arrays whose content follows from its step."""
    return Scalars(step=step, values={"loss": 1.0 / (step + 1)})


def snapshot(step):
    """A line with an array whose content follows from its step."""
    return Snapshot(step=step, parameters=np.arange(50.0) + step)
