"""Exported files read back to the bit, are well formed, and have every point in its place."""

import base64
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings

from records.record_samples import recipes, spectrum
from theodolite.records import Line, Plane, Scalars, Snapshot, Spectrum, Trajectory, Volume, differences
from theodolite.records.export import export, restore

G = np.random.default_rng(0)
TYPES = {"Float64": "<f8", "Int64": "<i8", "UInt8": "u1"}


def plane(**changes):
    """An oblique plane of 3 × 4 points with a hole and a path."""
    losses = G.standard_normal((3, 4))
    losses[2, 1] = np.nan
    values = {
        "alphas": np.array([-1.0, 0.0, 2.0]), "betas": np.array([-3.0, 0.0, 1.0, 5.0]), "losses": losses,
        "stderrs": np.abs(losses), "direction_norms": (2.0, 3.0), "cosine": 0.6, "name": "given", "parameter_norm": 1.0,
        "path": np.array([[-1.0, 5.0], [0.5, 0.5]]), "path_losses": np.array([7.0, np.inf]),
        "path_distances": np.array([0.25, 0.5]),
    }  # fmt: skip
    return Plane(**(values | changes))


def volume():
    cosines = np.array([[1.0, 0.3, -0.2], [0.3, 1.0, 0.1], [-0.2, 0.1, 1.0]])
    losses = G.standard_normal((2, 3, 4))
    return Volume(
        alphas=np.array([-1.0, 0.0]), betas=np.array([-1.0, 0.0, 4.0]), gammas=np.array([0.0, 1.0, 2.0, 5.0]), losses=losses,
        stderrs=np.abs(losses), direction_norms=(1.0, 2.0, 3.0), cosines=cosines, name="given", parameter_norm=1.0,
    )  # fmt: skip


def path():
    return Trajectory(
        coordinates=np.array([[1.0, 2.0], [0.5, 1.0], [0.0, 0.0]]), distances=np.array([3.0, 1.0, 0.0]),
        displacements=np.array([5.0, 2.0, 0.0]), losses=np.array([9.0, np.nan, 1.0]), stderrs=np.ones(3),
        plane_losses=np.array([8.0, 3.0, 1.0]), center=1.0, steps=np.array([0, 10, 20]), explained=(0.7, 0.2),
        shares=np.array([0.7, 0.2, 0.1]), direction_norms=(2.0, 1.0), cosine=-0.5, name="principal", parameter_norm=1.0,
    )  # fmt: skip


def read(file):
    """The root of an XML file, and its arrays by name."""
    root = ElementTree.parse(file).getroot()
    assert (root.tag, root.get("byte_order"), root.get("header_type")) == ("VTKFile", "LittleEndian", "UInt64")
    arrays = {}
    for each in root.iter("DataArray"):
        raw = base64.b64decode(each.text)
        assert int.from_bytes(raw[:8], "little") == len(raw) - 8
        values = np.frombuffer(raw[8:], dtype=TYPES[each.get("type")])
        arrays[each.get("Name")] = values.reshape(-1, int(each.get("NumberOfComponents", 1))).squeeze()
    return root, arrays


@settings(deadline=None, max_examples=20)
@given(recipe=recipes((Scalars, Snapshot, Spectrum, Trajectory, Volume)))
@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_any_record_is_read_back_to_the_bit(recipe, suffix, tmp_path_factory):
    record = recipe()
    file = tmp_path_factory.mktemp("export") / f"record.{suffix}"
    assert export(record, file) == file
    assert not differences(restore(file), record)


def test_arrays_of_an_npz_are_found_by_their_names(tmp_path):
    record = spectrum()
    with np.load(export(record, tmp_path / "s.npz")) as file:
        np.testing.assert_array_equal(file["eigenvalues"], record.eigenvalues)
        assert json.loads(str(file["record"]))["fields"]["tol"] == record.tol


def test_json_is_strict(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    text = export(plane(), tmp_path / "p.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["arrays"]["losses"]["values"][2][1] == "nan"
    assert content["arrays"]["losses"]["shape"] == [3, 4]
    assert content["fields"]["cosine"] == 0.6


@pytest.mark.parametrize("suffix", ["vts", "vtp"])
def test_every_point_of_a_plane_is_in_its_place(suffix, tmp_path):
    record = plane()
    root, arrays = read(export(record, tmp_path / f"p.{suffix}"))
    if suffix == "vts":
        assert root.find("StructuredGrid").get("WholeExtent") == "0 2 0 3 0 0"
        assert root.find("StructuredGrid/Piece").get("Extent") == "0 2 0 3 0 0"
    places = arrays["places"]
    for i, alpha in enumerate(record.alphas):
        for j, beta in enumerate(record.betas):
            index = i + 3 * j  # VTK: the first axis of the extent varies fastest
            assert (arrays["alpha"][index], arrays["beta"][index]) == (alpha, beta)
            np.testing.assert_array_equal(arrays["loss"][index], record.losses[i, j])
            np.testing.assert_array_equal(arrays["stderr"][index], record.stderrs[i, j])
            hole = not np.isfinite(record.losses[i, j])
            assert arrays["vtkGhostType"][index] == (2 if hole else 0)
            assert places[index, 2] == (np.nanmax(record.losses) if hole else record.losses[i, j])
            # Distances in the file are distances in parameter space.
            length = (2 * alpha) ** 2 + (3 * beta) ** 2 + 2 * 0.6 * (2 * alpha) * (3 * beta)
            assert places[index, 0] ** 2 + places[index, 1] ** 2 == pytest.approx(length, rel=1e-13)


@pytest.mark.parametrize("suffix", ["vts", "vtp"])
def test_every_quantity_of_a_plane_is_in_its_file(suffix, tmp_path):
    """Under its own name, beside the columns that every file has; errors where any is known."""
    accuracy, known = G.standard_normal((3, 4)), np.abs(G.standard_normal((3, 4)))
    scalars = {"accuracy": accuracy, "lambda_max": accuracy + 1, "distance": accuracy + 2, "loss": accuracy + 3}
    record = plane(scalars=scalars, scalar_stderrs={"accuracy": known, "lambda_max": np.full((3, 4), np.nan)})
    _, arrays = read(export(record, tmp_path / f"p.{suffix}"))
    for name, values in {"accuracy": accuracy, "accuracy stderr": known, "lambda_max": accuracy + 1}.items():
        np.testing.assert_array_equal(arrays[name][:12], values.ravel(order="F"))
        assert np.isnan(arrays[name][12:]).all()  # at the checkpoints of the path
    np.testing.assert_array_equal(arrays["scalar distance"][:12], (accuracy + 2).ravel(order="F"))
    np.testing.assert_array_equal(arrays["scalar loss"][:12], (accuracy + 3).ravel(order="F"))
    np.testing.assert_array_equal(arrays["loss"][:12], record.losses.ravel(order="F"))
    assert "lambda_max stderr" not in arrays
    assert len({len(values) for name, values in arrays.items() if name in scalars or name == "stderr"}) == 1


def test_every_quantity_of_a_volume_is_in_its_file(tmp_path):
    values, stderrs = G.standard_normal((2, 2, 3, 4)), np.ones((2, 2, 3, 4))
    stderrs[1] = np.nan
    record = volume().replace(scalars=("accuracy", "test loss"), scalar_values=values, scalar_stderrs=stderrs)
    _, arrays = read(export(record, tmp_path / "v.vts"))
    for place, name in enumerate(record.scalars):
        np.testing.assert_array_equal(arrays[name], values[place].ravel(order="F"))
    np.testing.assert_array_equal(arrays["accuracy stderr"], np.ones(24))
    assert "test loss stderr" not in arrays


def test_orthogonal_directions_are_not_sheared(tmp_path):
    record = plane(cosine=0.0)
    _, arrays = read(export(record, tmp_path / "p.vts"))
    np.testing.assert_array_equal(arrays["places"][:, 0], 2 * arrays["alpha"])
    np.testing.assert_array_equal(arrays["places"][:, 1], 3 * arrays["beta"])


def test_quadrilaterals_are_the_cells_of_the_grid_and_the_path_a_line(tmp_path):
    record = plane()
    root, arrays = read(export(record, tmp_path / "p.vtp"))
    piece = root.find("PolyData/Piece")
    assert [piece.get(f"NumberOf{name}") for name in ("Points", "Polys", "Lines")] == ["14", "6", "1"]
    polys = arrays["connectivity"].reshape(6, 4)  # the last of that name
    np.testing.assert_array_equal(arrays["offsets"], 4 * np.arange(1, 7))
    found = set()
    for quad in polys:
        alphas, betas = arrays["alpha"][quad], arrays["beta"][quad]
        i, j = (int(np.searchsorted(axis, low.min())) for axis, low in ((record.alphas, alphas), (record.betas, betas)))
        corners = {(record.alphas[a], record.betas[b]) for a in (i, i + 1) for b in (j, j + 1)}
        assert set(zip(alphas, betas, strict=True)) == corners
        flat = arrays["places"][quad][:, :2]
        nxt = np.roll(flat, -1, axis=0)
        area = (
            flat[:, 0] * nxt[:, 1] - nxt[:, 0] * flat[:, 1]
        ).sum() / 2  # by the shoelace formula, of a convex outline
        step = np.diff(record.alphas)[i] * np.diff(record.betas)[j]
        assert abs(area) == pytest.approx(2 * 3 * np.sqrt(1 - 0.36) * step, rel=1e-12)
        found.add((i, j))
    assert len(found) == 6
    lines = piece.find("Lines")
    first = np.frombuffer(base64.b64decode(lines[0].text)[8:], dtype="<i8")
    assert first.tolist() == [12, 13]
    np.testing.assert_array_equal(arrays["loss"][12:], record.path_losses)
    np.testing.assert_array_equal(arrays["distance"], [0] * 12 + [0.25, 0.5])
    assert arrays["vtkGhostType"][12:].tolist() == [0, 2]
    assert arrays["places"][12, 2] == 7


def test_every_point_of_a_volume_is_in_its_place(tmp_path):
    record = volume()
    root, arrays = read(export(record, tmp_path / "v.vts"))
    assert root.find("StructuredGrid").get("WholeExtent") == "0 1 0 2 0 3"
    norms = np.array(record.direction_norms)
    for (i, j, k), loss in np.ndenumerate(record.losses):
        index = i + 2 * (j + 3 * k)
        place = np.array([record.alphas[i], record.betas[j], record.gammas[k]])
        np.testing.assert_array_equal([arrays[name][index] for name in ("alpha", "beta", "gamma")], place)
        assert arrays["loss"][index] == loss
        length = (place * norms) @ record.cosines @ (place * norms)
        assert np.square(arrays["places"][index]).sum() == pytest.approx(length, rel=1e-12, abs=1e-14)


def test_a_trajectory_is_a_line_through_its_checkpoints(tmp_path):
    record = path()
    root, arrays = read(export(record, tmp_path / "t.vtp"))
    assert root.find("PolyData/Piece").get("NumberOfLines") == "1"
    assert arrays["places"][:, 2].tolist() == [9, 9, 1]
    assert arrays["vtkGhostType"].tolist() == [0, 2, 0]
    assert arrays["step"].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(arrays["plane loss"], record.plane_losses)
    squares = np.square(arrays["places"][:, :2]).sum(1)
    a, b = record.coordinates.T * np.array([[2.0], [1.0]])
    np.testing.assert_allclose(squares, a**2 + b**2 - a * b, rtol=1e-13)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = export(plane(), tmp_path / "p.json")
    before = file.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(plane(), file)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("suffix", ["npz", "json", "vts"])
def test_a_missing_folder_is_made(suffix, tmp_path):
    assert export(plane(), tmp_path / "not" / "there" / f"p.{suffix}").exists()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.npz, \.json, \.vts or \.vtp, found 'p\.obj'"):
        export(plane(), tmp_path / "p.obj")
    line = Line(
        alphas=np.zeros(1), losses=np.zeros(1), stderrs=np.zeros(1), direction_norm=1.0, name="", parameter_norm=1.0
    )
    with pytest.raises(ValueError, match=r"Expected a Plane or Trajectory for a \.vtp file, found a Line"):
        export(line, tmp_path / "l.vtp")
    (tmp_path / "x.json").write_text('{"kind": "novelty", "fields": {}, "arrays": {}}')
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    for name, what in (("x.json", "KeyError: 'novelty'"), ("x.npz", "KeyError: 'record'")):
        with pytest.raises(ValueError, match=f"Expected a record in .*{name}.*{what}"):
            restore(tmp_path / name)
