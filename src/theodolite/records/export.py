"""Single records as files for other programs: npz and json of any, VTK of landscapes."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from theodolite.records.arrays import UNFINISHED, read_arrays, write_arrays
from theodolite.records.codec import decode, encode
from theodolite.records.landscape import Plane
from theodolite.records.record import KINDS, Record
from theodolite.records.trajectory import Trajectory
from theodolite.records.volume import Volume
from theodolite.records.vtk import polydata, structured_grid, trajectory_polydata

FIELDS = "record"  # the array of an npz, and of no record, that holds the fields as JSON


def export(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write one record to a file, whole or not at all; its suffix says how.

    ``.npz``: every array under its own name, for ``numpy.load``, and the other fields as JSON under ``"record"``. ``.json``:
    strict JSON, in which arrays are nested lists with their type and shape, and NaN and infinity are strings. Both hold every
    bit and are read back by ``restore``. ``.vts``: the structured grid of a ``Plane`` or ``Volume``. ``.vtp``: the surface of a
    ``Plane`` with its path, or a ``Trajectory``. VTK coordinates are distances in parameter space, of oblique directions at
    their angle; the third of a plane is the loss. Points that are not finite are hidden. Other quantities that were read
    stand under their names, with ``"… stderr"`` where errors are known.

    Args:
        record: what to write.
        path: of the file, replaced if it exists; its folder is made where it is missing.

    Returns:
        The path.

    Raises:
        ValueError: the suffix is not known, or the record has no such form.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from theodolite.records import Scalars
        >>> restore(export(Scalars(step=3, values={"loss": 0.5}), tempfile.mkdtemp() + "/last.json"))
        Scalars(step 3): loss = 0.5
    """
    target = Path(path)
    if target.suffix == ".npz":
        fields, arrays = encode(record)
        content = json.dumps({"kind": record.kind, "fields": fields}, allow_nan=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(target, {**arrays, FIELDS: np.array(content)})
    elif target.suffix == ".json":
        _write(target, json.dumps(_plain(record), allow_nan=False, indent=1) + "\n")
    else:
        _write(target, _vtk(record, target)(record))
    return target


def restore(path: str | os.PathLike[str]) -> Record:
    """The record that ``export`` wrote to an ``.npz`` or ``.json`` file.

    Raises:
        ValueError: the file holds no record, or one of a kind that this version does not know.
        OSError: it cannot be read.
    """
    source = Path(path)
    try:
        fields, kind, arrays = _from_npz(source) if source.suffix == ".npz" else _from_json(source)
        return decode(KINDS[kind], fields, arrays)[0]
    except (KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Expected a record in {source}, as export(record, path) writes it to .npz and .json, found something else "
            f"({type(error).__name__}: {error})."
        ) from error


def _plain(record: Record) -> dict[str, Any]:
    fields, arrays = encode(record)
    lists = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape), "values": _values(array)}
        for name, array in arrays.items()
    }
    return {"kind": record.kind, "fields": fields, "arrays": lists}


def _values(array: np.ndarray) -> Any:
    """Nested lists of numbers, and of strings for NaN and infinity."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    entries = np.empty(array.shape, dtype=object)
    for place, value in np.ndenumerate(array):
        entries[place] = float(value) if np.isfinite(value) else repr(float(value))
    return entries.tolist()


def _vtk(record: Record, target: Path) -> Callable[[Any], str]:
    forms: Mapping[str, Mapping[type[Record], Callable[[Any], str]]] = {
        ".vts": {Plane: structured_grid, Volume: structured_grid},
        ".vtp": {Plane: polydata, Trajectory: trajectory_polydata},
    }
    if target.suffix not in forms:
        raise ValueError(f"Expected a file ending in .npz, .json, .vts or .vtp, found {target.name!r}.")
    kinds = forms[target.suffix]
    if type(record) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"Expected a {names} for a {target.suffix} file, found a {type(record).__name__}. Use .npz or .json."
        )
    return kinds[type(record)]


def _write(target: Path, content: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + UNFINISHED)
    try:
        unfinished.write_text(content, encoding="utf-8")
        os.replace(unfinished, target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _from_npz(source: Path) -> tuple[dict[str, Any], str, dict[str, np.ndarray]]:
    arrays = read_arrays(source)
    content = json.loads(str(arrays.pop(FIELDS)))
    return content["fields"], content["kind"], arrays


def _from_json(source: Path) -> tuple[dict[str, Any], str, dict[str, np.ndarray]]:
    content = json.loads(source.read_text(encoding="utf-8"))
    arrays = {
        name: np.array(each["values"], dtype=each["dtype"]).reshape(each["shape"])
        for name, each in content["arrays"].items()
    }
    return content["fields"], content["kind"], arrays
