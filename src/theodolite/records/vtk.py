"""Landscapes in the XML formats of VTK, for ParaView and its like."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Float

from theodolite.records.landscape import Plane
from theodolite.records.trajectory import Trajectory
from theodolite.records.volume import Volume

HIDDEN = 2  # vtkDataSetAttributes::HIDDENPOINT
TYPES = {"float64": "Float64", "int64": "Int64", "uint8": "UInt8"}
RESERVED = ("distance", "places")
Columns = Mapping[str, np.ndarray]


def structured_grid(record: Plane | Volume) -> str:
    """A ``.vts`` file: the points of a plane, at their losses, or of a volume, with all quantities and standard errors.

    The first axis varies fastest, as VTK has it; in the record the last does.
    """
    extent = " ".join(f"0 {size - 1}" for size in (*record.losses.shape, 1)[:3])
    body = _points(_grid(record)) + _point_data(_columns(record))
    piece = f'<Piece Extent="{extent}">{body}</Piece>'
    return _file("StructuredGrid", f'<StructuredGrid WholeExtent="{extent}">{piece}</StructuredGrid>')


def polydata(record: Plane) -> str:
    """A ``.vtp`` file: the surface of a plane in quadrilaterals, and its path as a line at the losses of the checkpoints."""
    points, columns = _grid(record), _columns(record)
    rows, width = record.losses.shape
    corners = np.arange(rows * width).reshape(width, rows)  # the first axis varies fastest
    quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=-1).reshape(-1, 4)
    count = 0 if record.path is None else len(record.path)
    if record.path is not None and record.path_losses is not None:
        norms, heights = record.direction_norms, _heights(record.path_losses)
        along = _embedded(record.path, norms, _gram(record.cosine))
        points = np.concatenate([points, np.column_stack([along, heights])])
        distances = record.path_distances if record.path_distances is not None else np.full(count, np.nan)
        path = {
            "loss": record.path_losses,
            "stderr": np.full(count, np.nan),
            "alpha": record.path[:, 0],
            "beta": record.path[:, 1],
            "distance": distances,
            "vtkGhostType": _ghosts(record.path_losses),
        }
        columns = {**columns, "distance": np.zeros(rows * width)}
        unknown = np.full(count, np.nan)  # other quantities are not read at checkpoints
        columns = {name: np.concatenate([values, path.get(name, unknown)]) for name, values in columns.items()}
    lines = [np.arange(rows * width, len(points))] if len(points) > rows * width else []
    return _polydata(points, columns, lines=lines, polygons=list(quads))


def trajectory_polydata(record: Trajectory) -> str:
    """A ``.vtp`` file: the checkpoints as a line on the coordinates of their plane, at their own losses."""
    along = _embedded(record.coordinates, record.direction_norms, _gram(record.cosine))
    columns = {
        "loss": record.losses,
        "stderr": record.stderrs,
        "plane loss": record.plane_losses,
        "distance": record.distances,
        "alpha": record.coordinates[:, 0],
        "beta": record.coordinates[:, 1],
        "vtkGhostType": _ghosts(record.losses),
    }
    if record.steps is not None:
        columns["step"] = record.steps
    points = np.column_stack([along, _heights(record.losses)])
    return _polydata(points, columns, lines=[np.arange(len(points))] if len(points) else [], polygons=[])


def _grid(record: Plane | Volume) -> Float[np.ndarray, "p 3"]:
    """Places of all points, the first axis fastest."""
    if isinstance(record, Volume):
        return _embedded(_coordinates(*record.axes), record.direction_norms, record.cosines)
    flat = _embedded(_coordinates(record.alphas, record.betas), record.direction_norms, _gram(record.cosine))
    return np.column_stack([flat, _heights(_first_fastest(record.losses))])


def _coordinates(*axes: Float[np.ndarray, " _"]) -> Float[np.ndarray, "p k"]:
    return np.stack([_first_fastest(each) for each in np.meshgrid(*axes, indexing="ij")], axis=-1)


def _first_fastest(values: np.ndarray) -> np.ndarray:
    return values.ravel(order="F")


def _embedded(
    coordinates: Float[np.ndarray, "p k"], norms: tuple[float, ...], cosines: Float[np.ndarray, "k k"]
) -> Float[np.ndarray, "p k"]:
    """Coordinates in directions as places whose distances are those in parameter space: C = LLᵀ, unit directions are L's rows."""
    factor = np.linalg.cholesky(cosines)
    return np.asarray((coordinates * np.array(norms)) @ factor)


def _gram(cosine: float) -> Float[np.ndarray, "2 2"]:
    return np.array([[1.0, cosine], [cosine, 1.0]])


def _heights(losses: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Losses, the highest finite one in place of those that are not: points are hidden there, but must be somewhere."""
    finite = losses[np.isfinite(losses)]
    return np.where(np.isfinite(losses), losses, finite.max() if finite.size else 0.0)


def _ghosts(losses: Float[np.ndarray, " p"]) -> np.ndarray:
    return np.where(np.isfinite(losses), 0, HIDDEN).astype(np.uint8)


def _columns(record: Plane | Volume) -> dict[str, np.ndarray]:
    axes = record.axes if isinstance(record, Volume) else (record.alphas, record.betas)
    losses = _first_fastest(record.losses)
    named = zip(("alpha", "beta", "gamma"), _coordinates(*axes).T, strict=False)
    found = {"loss": losses, "stderr": _first_fastest(record.stderrs), **dict(named), "vtkGhostType": _ghosts(losses)}
    for name, values in _scalars(record).items():
        # A count that a user named as a column of every file stands beside it.
        found[f"scalar {name}" if name in found or name in RESERVED else name] = _first_fastest(values)
    return found


def _scalars(record: Plane | Volume) -> dict[str, np.ndarray]:
    """Other quantities at every point, each with its standard errors where one is known."""
    if isinstance(record, Plane):
        values, stderrs = record.scalars, record.scalar_stderrs
    else:
        arrays = (record.scalar_values, record.scalar_stderrs)
        values, stderrs = ({} if each is None else dict(zip(record.scalars, each, strict=True)) for each in arrays)
    found: dict[str, np.ndarray] = {}
    for name, each in values.items():
        found[name] = each
        if name in stderrs and np.isfinite(stderrs[name]).any():
            found[f"{name} stderr"] = stderrs[name]
    return found


def _polydata(
    points: Float[np.ndarray, "p 3"], columns: Columns, *, lines: list[np.ndarray], polygons: list[np.ndarray]
) -> str:
    counts = f'NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfStrips="0"'
    counts += f' NumberOfLines="{len(lines)}" NumberOfPolys="{len(polygons)}"'
    body = _points(points) + _point_data(columns) + _cells("Lines", lines) + _cells("Polys", polygons)
    return _file("PolyData", f"<PolyData><Piece {counts}>{body}</Piece></PolyData>")


def _cells(name: str, cells: list[np.ndarray]) -> str:
    connectivity = np.concatenate(cells) if cells else np.zeros(0, dtype=np.int64)
    offsets = np.cumsum([len(cell) for cell in cells], dtype=np.int64)
    return f"<{name}>{_array('connectivity', connectivity)}{_array('offsets', offsets)}</{name}>"


def _points(points: Float[np.ndarray, "p 3"]) -> str:
    return f"<Points>{_array('places', points)}</Points>"


def _point_data(columns: Columns) -> str:
    arrays = "".join(_array(name, values) for name, values in columns.items())
    return f'<PointData Scalars="loss">{arrays}</PointData>'


def _array(name: str, values: np.ndarray) -> str:
    """The bytes as they are, with their number in front: text would lose NaN, which readers refuse."""
    width = f' NumberOfComponents="{values.shape[1]}"' if values.ndim == 2 else ""
    kept = values if values.dtype.name in TYPES else values.astype(np.float64)
    content = np.ascontiguousarray(kept.astype(kept.dtype.newbyteorder("<"))).tobytes()
    text = base64.b64encode(struct.pack("<Q", len(content)) + content).decode()
    return (
        f'<DataArray type="{TYPES[kept.dtype.name]}" Name={quoteattr(name)} format="binary"{width}>{text}</DataArray>\n'
    )


def _file(kind: str, body: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n{body}\n'
        "</VTKFile>\n"
    )
