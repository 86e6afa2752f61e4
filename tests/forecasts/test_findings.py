import copy
import pickle

import numpy as np
import pytest

from forecasts.run_samples import loss, losses, reading, readings
from theodolite.errors import LogError
from theodolite.forecasts import RULES, Finding, Run, findings, load, non_finite, not_converged
from theodolite.records import Book, Density, Event, Gradients, Line, Log, Scalars, Snapshot, Spectrum, Trace, read

NAN, INF = float("nan"), float("inf")


def spectrum(step=None, **changes):
    values = {
        "eigenvalues": np.array([5.0, 4.0, 3.0]),
        "residuals": np.array([1e-4, 1e-4, 1e-4]),
        "converged": np.ones(3, dtype=bool),
        "data_stderr": np.full(3, NAN),
        "tol": 1e-3,
        "size": 100,
    }
    return Spectrum(step=step, **(values | changes))


def test_no_records_no_findings():
    assert findings([]) == ()
    assert findings(iter([Event(name="started", message="")])) == ()


def test_the_gravest_comes_first():
    records = [*readings(0.5, 1.2), *losses(1.0, 1.0, NAN), spectrum(converged=np.array([True, False, True]))]
    assert [finding.severity for finding in findings(records)] == ["critical", "critical", "warning"]
    assert [finding.rule for finding in findings(records)] == [
        "edge of stability",
        "non-finite reading",
        "not converged",
    ]
    calm = [*readings(0.5), spectrum(converged=np.zeros(3, bool))]
    assert [finding.severity for finding in findings(calm)] == ["warning", "info"]


def test_users_bring_their_own_rules():
    def many(records):
        yield Finding(rule="many", severity="info", title=f"{len(records)} records", message="", advice="")

    assert [finding.title for finding in findings(losses(1.0, 2.0), rules=[many])] == ["2 records"]
    assert "many" in {finding.rule for finding in findings(losses(1.0, NAN), rules=(*RULES, many))}


def test_a_finding_is_frozen_shows_itself_and_travels():
    finding = Finding(rule="r", severity="info", title="t", message="m", advice="a", evidence={"x": 1.0})
    assert str(finding) == "[info] t\n  m\n  What to do: a"
    with pytest.raises(TypeError):
        finding.evidence["x"] = 2.0
    assert pickle.loads(pickle.dumps(finding)) == finding == copy.deepcopy(finding)


def test_a_severity_is_one_of_three():
    values = {"rule": "r", "title": "t", "message": "m", "advice": "a"}
    finding = Finding(severity="info", **values)
    object.__setattr__(finding, "severity", "fatal")  # past the type checker of the tests
    with pytest.raises(ValueError, match="severity is one of critical, warning, info; found 'fatal'"):
        finding.__post_init__()


def test_not_converged_names_the_values_the_residual_and_what_to_raise():
    failed = spectrum(30, converged=np.array([True, False, False]), residuals=np.array([1e-4, 2e-3, 5e-2]))
    (finding,) = not_converged([spectrum(10), failed, spectrum(20)])
    assert finding.severity == "warning"
    assert finding.title == "1 of 3 readings of the spectrum of the hessian did not converge"
    assert (
        "at step 30: 2 of 3 eigenvalues missed the tolerance 0.001: 4 (residual 0.002), 3 (residual 0.05)"
        in finding.message
    )
    assert "Raise max_products" in finding.advice
    assert finding.evidence == {"readings": 3, "not_converged": 1, "residual": 5e-2, "tol": 1e-3}
    assert finding.step == 30


def test_not_converged_speaks_once_of_each_kind():
    records = [
        *(reading(step, 0.5, converged=False, residual=0.01 * (step + 1)) for step in range(5)),
        spectrum(converged=np.zeros(3, bool)),
        spectrum(converged=np.zeros(3, bool), operator="ggn"),
        spectrum(converged=np.zeros(3, bool), residuals=np.array([NAN, 1.0, 1.0]), operator="ggn"),
    ]
    found = {finding.title: finding for finding in not_converged(records)}
    assert list(found) == [
        "2 of 2 readings of the spectrum of the ggn did not converge",
        "1 of 1 readings of the spectrum of the hessian did not converge",
        "5 of 5 readings of the sharpness did not converge",
    ]
    assert found["5 of 5 readings of the sharpness did not converge"].step == 4
    assert found["2 of 2 readings of the spectrum of the ggn did not converge"].evidence["residual"] == INF
    assert list(not_converged([spectrum(), reading(0, 0.5)])) == []


def test_an_eigenvalue_that_is_nan_is_not_finite_rather_than_not_converged():
    unreadable = reading(0, NAN, sharpness=NAN, residual=NAN, converged=False, threshold=NAN)
    assert [finding.rule for finding in findings([unreadable])] == ["non-finite reading"]
    broken = spectrum(
        eigenvalues=np.array([5.0, NAN, NAN]), residuals=np.array([0.1, NAN, NAN]), converged=np.zeros(3, bool)
    )
    assert "1 of 3 eigenvalues missed" in next(iter(not_converged([broken]))).message


def test_non_finite_names_the_first_step_and_the_places():
    records = [
        loss(30, INF),
        loss(10, 1.0),
        loss(20, NAN, "train_loss"),
        reading(20, NAN, sharpness=NAN),
        loss(25, NAN),
    ]
    (finding,) = non_finite(records)
    assert finding.severity == "critical"
    assert finding.step == 20
    assert finding.title == "train_loss and 1 more are not finite at step 20"
    assert "Not finite at step 20: train_loss = nan, sharpness = nan." in finding.message
    assert "Later also loss (at step 25)." in finding.message
    assert "The last records before it are from step 10." in finding.message


GRADIENTS = {"loss": 1.0, "loss_stderr": NAN, "norm": 1.0, "norm_stderr": NAN, "layers": ("a", "b"), "samples": 5,
             "layer_norms": np.ones(2), "layer_norm_stderrs": np.full(2, NAN), "parameter_norms": np.ones(2)}  # fmt: skip
TRACE = {"value": 1.0, "stderr": NAN, "layer_values": np.ones(0), "layer_stderrs": np.ones(0), "probes": 1, "method": "hutchinson",
         "size": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (lambda: Scalars(values={"grad norm": INF}), "grad norm = inf"),
        (lambda: reading(None, 0.5, loss=NAN), "probe loss = nan"),
        (lambda: reading(None, 0.5, gradient_norm=INF), "gradient norm = inf"),
        (lambda: Gradients(**(GRADIENTS | {"loss": NAN})), "probe loss = nan"),
        (lambda: Gradients(**(GRADIENTS | {"norm": INF})), "gradient norm = inf"),
        (lambda: Gradients(**(GRADIENTS | {"layer_norms": np.array([1.0, NAN])})), "gradient norm of b = nan"),
        (lambda: Gradients(**(GRADIENTS | {"parameter_norms": np.array([INF, 1.0])})), "norm of a = inf"),
        (lambda: spectrum(eigenvalues=np.array([1.0, NAN, -INF])), "eigenvalues of the hessian = nan"),
        (lambda: Density(nodes=np.array([[NAN, 1.0]]), weights=np.array([[0.5, 0.5]]), size=3), "density of the hessian = nan"),
        (lambda: Trace(**(TRACE | {"value": -INF})), "trace of the hessian = -inf"),
        (lambda: Snapshot(parameters=np.array([1.0, NAN])), "parameters = nan"),
    ],
)  # fmt: skip
def test_every_reading_is_looked_at(record, place):
    (finding,) = non_finite([record()])
    assert place in finding.message
    assert "at the surveyed point" in finding.title


def test_unknown_errors_padding_and_excursions_are_not_failures():
    line = Line(alphas=np.array([-1.0, 0, 1]), losses=np.array([INF, 1, NAN]), stderrs=np.full(3, NAN), direction_norm=1.0,
                name="filter", parameter_norm=1.0)  # fmt: skip
    padded = Density(nodes=np.array([[1.0, NAN]]), weights=np.array([[1.0, 0.0]]), size=3)
    records = [line, padded, Gradients(**GRADIENTS), Trace(**TRACE), spectrum(), reading(0, 0.5), loss(0, 1.0)]
    assert list(non_finite(records)) == []


def test_many_places_are_cut_short():
    (finding,) = non_finite([Scalars(step=1, values={f"loss{index}": NAN for index in range(20)})])
    assert "loss5 = nan, 14 more." in finding.message
    assert finding.title == "loss0 and 19 more are not finite at step 1"


def test_a_run_is_a_book_that_can_be_judged(tmp_path):
    with Log(tmp_path) as log:
        for record in [*readings(0.5, 1.2), *losses(1.0, 1.0, NAN)]:
            log.append(record)
    run = load(tmp_path)
    assert isinstance(run, Run)
    assert isinstance(run, Book)
    assert len(run) == len(read(tmp_path)) == 5
    assert repr(run).startswith("Run(")
    assert [str(finding) for finding in run.findings()] == [str(finding) for finding in findings(run.records)]
    assert run.findings()[0].step == 10
    assert run.findings(rules=[]) == ()
    assert run.series(Scalars, "loss")[0].tolist() == [0, 10, 20]


def test_loading_nothing_is_a_log_error(tmp_path):
    with pytest.raises(LogError, match="No run log"):
        load(tmp_path)
