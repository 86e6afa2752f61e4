import copy
import pickle
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings

from records.record_samples import recipes, spectrum, unchecked
from theodolite.records import Cost, Event, Plane, Record, Scalars, Snapshot, Spectrum, Stability, Trace, differences


@settings(deadline=None)
@given(recipe=recipes())
def test_any_record_can_be_shown_copied_and_pickled(recipe):
    record = recipe()
    assert repr(record).startswith(type(record).__name__)
    assert record._repr_html_().startswith("<table>")
    assert not differences(record, copy.deepcopy(record))
    assert not differences(record, pickle.loads(pickle.dumps(record)))


def test_a_record_does_not_change_with_the_arrays_it_was_made_from():
    parameters, context = np.ones(3), {"shape": [1, 2], "nested": {"a": 1}}
    record = Snapshot(parameters=parameters, context=context)
    parameters[:] = 7
    context["nested"]["a"] = 7
    context["shape"].append(3)
    assert record.parameters.tolist() == [1, 1, 1]
    assert record.context == {"shape": (1, 2), "nested": {"a": 1}}


def test_nothing_in_a_record_can_be_assigned():
    record = Snapshot(parameters=np.ones(3), context={"nested": {"a": 1}})
    with pytest.raises(FrozenInstanceError):
        record.step = 1
    with pytest.raises(ValueError, match="read-only"):
        record.parameters[0] = 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        record.context["nested"]["a"] = 2


def test_replace_checks_like_a_new_record_and_shares_what_is_frozen():
    record = spectrum()
    changed = record.replace(step=5)
    assert changed.step == 5
    assert record.step is None
    assert changed.eigenvalues is record.eigenvalues
    assert differences(record, changed) == ("step",)


@pytest.mark.parametrize(
    ("cls", "values", "error", "message"),
    [
        (Snapshot, {"parameters": np.ones((2, 2))}, ValueError, "Snapshot.parameters has shape (2, 2); expected 1 axes"),
        (Snapshot, {"parameters": np.array(["a"])}, TypeError, "Snapshot.parameters must be an array of float; found an"),
        (Snapshot, {"parameters": np.ones(1), "step": 1.5}, TypeError, "Snapshot.step must be an integer; found 1.5"),
        (Snapshot, {"parameters": np.ones(1), "step": True}, TypeError, "Snapshot.step must be an integer; found True"),
        (Snapshot, {"parameters": np.ones(1), "cost": 3}, TypeError, "Snapshot.cost must be a Cost; found 3 (int)"),
        (Snapshot, {"parameters": np.ones(1), "notes": "slow"}, TypeError, "Snapshot.notes must be a tuple; found 'slow'"),
        (Snapshot, {"parameters": np.ones(1), "context": {"f": print}}, TypeError, "Snapshot.context['f'] must be a number"),
        (Snapshot, {"parameters": np.ones(1), "context": {1: 2}}, TypeError, "has the key 1 of type int"),
        (Snapshot, {"parameters": np.ones(1), "context": {"o": np.array([print])}}, TypeError, "an array of object"),
        (Scalars, {"values": [1.0]}, TypeError, "Scalars.values must be a mapping"),
        (Event, {"name": 3, "message": ""}, TypeError, "Event.name must be a string; found 3 (int)"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(cls, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unchecked(cls, **values)


def test_axes_of_one_name_must_agree():
    values = {field: getattr(spectrum(), field) for field in ("eigenvalues", "residuals", "converged", "data_stderr")}
    with pytest.raises(
        ValueError, match=r"Spectrum.residuals has 2 entries along axis 'k'; expected 3, as in Spectrum.eig"
    ):
        unchecked(Spectrum, **(values | {"residuals": np.ones(2)}), tol=1e-3, size=5)


def test_layers_are_as_many_as_their_values():
    with pytest.raises(
        ValueError, match=r"Trace.layers has 1 entries along axis 'L'; expected 2, as in Trace.layer_val"
    ):
        Trace(value=1.0, stderr=0.1, layers=("a",), layer_values=np.ones(2), layer_stderrs=np.ones(2), probes=4,
              method="hutchinson", size=5)  # fmt: skip


def test_a_pair_is_a_pair():
    with pytest.raises(ValueError, match=r"Plane.direction_norms has 3 items; expected 2"):
        unchecked(Plane, alphas=np.zeros(1), betas=np.zeros(1), losses=np.zeros((1, 1)), stderrs=np.zeros((1, 1)),
                  direction_norms=(1.0, 1.0, 1.0), cosine=0.0, name="filter", parameter_norm=1.0)  # fmt: skip


def test_numbers_of_numpy_and_python_become_what_the_field_says():
    record = unchecked(Scalars, values={"loss": np.float32(0.5)}, step=np.int64(3), notes=["a"])
    assert (type(record.values["loss"]), type(record.step), record.notes) == (float, int, ("a",))
    assert unchecked(Snapshot, parameters=np.arange(3)).parameters.dtype == np.float64


def test_the_page_of_a_record_escapes_everything():
    attack = "<script>alert(1)</script>"
    page = Event(name=attack, message=attack, notes=(attack,), context={attack: attack})._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_a_spectrum_says_value_error_convergence_and_cost():
    record = spectrum(step=1200, cost=Cost(products=31.0, seconds=4.2), notes=("eigenvectors dropped",))
    assert repr(record) == (
        "Spectrum(hessian, n=77,754, step 1,200): λ₁ = 12.3 ± 0.5 (data), residual 0.0003 | 3 of 3 converged | "
        "31 products, 4.2 s\n  note: eigenvectors dropped"
    )


def test_what_did_not_converge_is_said_loudly():
    record = spectrum(converged=np.array([True, False, True]), residuals=np.array([3e-4, 0.2, 2e-4]))
    assert "NOT CONVERGED at the upper end: 2 of 3 converged, residuals up to 0.2 > tol 0.001" in repr(record)
    both = spectrum(which="both", converged=np.array([True, True, False]), residuals=np.array([3e-4, 1e-4, 0.2]))
    assert "NOT CONVERGED at the lower end: 2 of 3 converged, residuals up to 0.2 > tol" in repr(both)
    small = spectrum(converged=np.array([True, True, False]), residuals=np.array([3e-4, 1e-4, 2e-4]))
    assert "2 of 3 converged, the others have small residuals but were not told apart before the cut-off" in repr(small)
    stability = Stability(
        loss=1.0, loss_stderr=0.1, gradient_norm=1.0, sharpness=30.0, sharpness_stderr=1.0, residual=0.05, converged=False,
        tol=1e-3, preconditioned_sharpness=30.0, threshold=20.0, ratio=1.5, learning_rate=0.1, momentum=0.0,
        optimizer="SGD", rule="2/lr",
    )  # fmt: skip
    assert "NOT CONVERGED: residual 0.05 > tol 0.001" in repr(stability)
    assert "ratio 1.5 (beyond the edge at 1)" in repr(stability)


def test_a_kind_belongs_to_one_class_and_every_class_has_one():
    with pytest.raises(TypeError, match="Mine needs a class variable kind"):
        type("Mine", (Record,), {})
    with pytest.raises(TypeError, match=r"Mine.kind is 'spectrum', which Spectrum has already"):
        type("Mine", (Record,), {"kind": "spectrum"})


def test_differences_tell_apart_what_equality_of_floats_does_not():
    record = Scalars(values={"loss": 0.0})
    assert differences(record, Scalars(values={"loss": -0.0})) == ("values",)
    assert differences(Snapshot(parameters=np.zeros(2)), Snapshot(parameters=-np.zeros(2))) == ("parameters",)
    assert differences(Snapshot(parameters=np.zeros(2)), Snapshot(parameters=np.zeros(2, np.float32))) == (
        "parameters",
    )
    nan = Scalars(values={"loss": float("nan")})
    assert not differences(nan, Scalars(values={"loss": float("nan")}))
    assert differences(record, Event(name="", message="")) == ("kind",)
    assert not differences(record, record.replace(cost=Cost(seconds=1.0)), ignore={"cost"})
