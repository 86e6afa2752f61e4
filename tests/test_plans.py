"""A survey keeps what it has, resumes, and goes on when one measure fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import BY_NAME
from theodolite.errors import ProblemError, TheodoliteWarning
from theodolite.landscapes import line, normalise, plane
from theodolite.measures import spectrum, trace
from theodolite.plans import MEASURES, chosen, quote, survey
from theodolite.problem import Problem
from theodolite.records import Event, Record, read

CHEAP = ("gradients", "trace")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: the type checker of the tests would refuse a wrong name before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_every_named_measure_gives_its_record(tmp_path: Path) -> None:
    names = [name for name in MEASURES if name != "batch sharpness"]  # which needs more samples than the family has
    records = survey(BY_NAME["mlp"].problem(), measures=names, log=tmp_path, step=7)
    assert [record.kind for record in records] == names
    assert all(record.step == 7 and record.cost.seconds > 0 for record in records)
    assert [record.kind for record in read(tmp_path)] == names


def test_an_interrupted_survey_resumes_where_it_stopped(tmp_path: Path) -> None:
    def stop(problem: Problem) -> Record:
        raise KeyboardInterrupt

    family = BY_NAME["mlp"]
    with pytest.raises(KeyboardInterrupt):
        survey(family.problem(), measures=(*CHEAP, stop), log=tmp_path)
    first = read(tmp_path).records
    assert [record.kind for record in first] == list(CHEAP)
    records = survey(family.problem(), measures=(*CHEAP, "spectrum"), log=tmp_path)
    assert [record.kind for record in read(tmp_path)] == [*CHEAP, "spectrum"]
    assert records[1].value == first[1].value


def test_an_interrupted_plane_goes_on_within_its_grid(tmp_path: Path) -> None:
    family = BY_NAME["mlp"]
    read_points = 0

    def stop(what: str, share: float) -> None:
        nonlocal read_points
        read_points += what.startswith("plane:")
        if read_points == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(family.problem(), measures=["plane"], log=tmp_path, on_progress=stop)
    assert len(read(tmp_path)) == 0
    (points,) = (tmp_path / "points").iterdir()
    taken = points.read_text().count("\n")
    assert 190 <= taken <= 200
    (resumed,) = survey(family.problem(), measures=["plane"], log=tmp_path)
    (whole,) = survey(family.problem(), measures=["plane"])
    assert resumed.losses.tobytes() == whole.losses.tobytes()
    assert not (tmp_path / "points").exists()


def test_nothing_is_resumed_from_other_parameters_data_seed_or_step(tmp_path: Path) -> None:
    family = BY_NAME["mlp"]
    model, batches = family.model_and_data()
    survey(family.problem_of(model, batches), measures=["trace"], log=tmp_path)
    survey(family.problem_of(model, batches[:2]), measures=["trace"], log=tmp_path)
    survey(family.problem_of(model, batches), measures=["trace"], log=tmp_path, seed=1)
    survey(family.problem_of(model, batches), measures=["trace"], log=tmp_path, step=3)
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    survey(family.problem_of(model, batches), measures=["trace"], log=tmp_path)
    assert len(read(tmp_path)) == 5


def test_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    measures = [lambda p: trace(p, probes=4), lambda p: trace(p, probes=8), partial(spectrum, k=1)]
    for _ in range(2):
        records = survey(BY_NAME["mlp"].problem(), measures=measures, log=tmp_path)
        assert [getattr(record, "probes", None) for record in records] == [4, 8, 0]
    assert len(read(tmp_path)) == 3


def test_a_measure_that_fails_is_an_event_and_the_others_go_on(tmp_path: Path) -> None:
    def impossible(problem: Problem) -> Record:
        return spectrum(problem, k=1000)

    with pytest.warns(
        TheodoliteWarning, match="impossible failed: OperatorError: Expected between 1 and 79 eigenpairs"
    ):
        records = survey(BY_NAME["mlp"].problem(), measures=[impossible, "gradients"], log=tmp_path)
    assert isinstance(records[0], Event)
    assert records[1].kind == "gradients"
    assert [record.kind for record in read(tmp_path)] == ["event", "gradients"]


def test_a_plan_asks_only_what_a_problem_can_be_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    batches = [(torch.randn(32, 5, dtype=torch.float64), torch.randint(3, (32,)))]
    coupled = Problem(model, nn.CrossEntropyLoss(), batches, mode="train")
    spectrum_alone, _ = chosen(coupled, "deep")[1:3]
    assert spectrum_alone.options["halves"] is False
    assert "batch sharpness" not in {each.name for each in chosen(coupled, "deep")}
    assert chosen(coupled.replace(mode="eval"), "deep")[1].options["halves"] is True
    many = Problem(
        nn.Linear(5, 30).double(), nn.CrossEntropyLoss(), [(torch.randn(60, 5).double(), torch.arange(60) % 30)]
    )
    expected = {each.name: each.expected for each in chosen(many, "deep")}
    assert expected["outliers"] is not None
    assert expected["outliers"].products > 270


def test_a_measure_that_returns_no_record_is_an_event(unchecked: None) -> None:
    with pytest.warns(TheodoliteWarning, match="expected a measure to return a Record, found int"):
        event, norms = survey(BY_NAME["mlp"].problem(), measures=[lambda problem: 3, "gradients"])
    assert (event.kind, norms.kind) == ("event", "gradients")


def test_unknown_measures_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"among 'gradients', .*'plane', or functions .* found 'hessian'"):
        survey(BY_NAME["mlp"].problem(), measures=["gradients", "hessian"], log=tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_progress_is_told_by_the_share_of_the_expected_work() -> None:
    told: list[tuple[str, float]] = []
    measures = ["gradients", "spectrum", "line"]
    survey(BY_NAME["mlp"].problem(), measures=measures, on_progress=lambda what, share: told.append((what, share)))
    parts = [share for _, share in told]
    assert parts[0] == 0
    assert parts[-1] == 1
    assert parts == sorted(parts)
    assert [what.partition(":")[0] for what, _ in told if ":" not in what] == [*measures, "done"]
    assert any(what.startswith("spectrum: 7 products, worst residual") for what, _ in told)
    assert ("line: 41 of 41 points", pytest.approx(1.0)) in told


def test_a_survey_says_what_it_will_cost_and_keeps_to_it() -> None:
    problem = BY_NAME["mlp"].problem()
    quoted = quote(problem, measures=["gradients", "trace", "density", "line", lambda p: trace(p, probes=2)])
    records = survey(problem, measures=["gradients", "trace", "density", "line"])
    for (name, expected), record in zip(quoted.items, records, strict=False):
        assert expected is not None
        assert name == record.kind
        assert (expected.products, expected.gradients) == (record.cost.products, record.cost.gradients)
        assert expected.forwards == pytest.approx(record.cost.forwards, abs=1)
    assert quoted.items[-1] == ("<lambda>", None)
    assert "<lambda>: unknown" in str(quoted)
    prices = quoted.prices
    assert quoted.total.seconds == pytest.approx(prices.seconds(quoted.total))
    assert min(prices.forward, prices.gradient, prices.product) > 0


def test_every_plan_is_made_of_measures_and_a_deeper_one_costs_more() -> None:
    problem = BY_NAME["mlp"].problem()
    totals = [quote(problem, measures=name).total for name in ("quick", "standard", "deep")]
    assert totals[0].products < totals[1].products < totals[2].products
    assert totals[0].forwards < min(totals[1].forwards, totals[2].forwards)  # the deep plane is splined
    with pytest.raises(
        ProblemError, match=r"a plan among 'quick', 'standard', 'deep', found 'trace'.*measures=\['trace'\]"
    ):
        survey(problem, measures="trace")


def test_nothing_is_resumed_from_another_criterion_architecture_engine_or_loss(tmp_path: Path) -> None:
    family = BY_NAME["mlp"]
    batches = family.batches()

    def net(middle: nn.Module, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), middle, nn.Linear(6, 3, **options)).double()

    def scaled(scale: float) -> Callable[[nn.Module, Any], Tensor]:
        return lambda model, batch: scale * F.cross_entropy(model(batch[0]), batch[1])

    weight = torch.ones(3, dtype=torch.float64)
    problems = [
        Problem(net(nn.Tanh()), nn.CrossEntropyLoss(), batches),
        Problem(net(nn.Tanh()), nn.CrossEntropyLoss(label_smoothing=0.5), batches),
        Problem(net(nn.Tanh()), nn.CrossEntropyLoss(weight=weight), batches),
        Problem(net(nn.ReLU()), nn.CrossEntropyLoss(), batches),
        Problem(net(nn.Tanh()), nn.CrossEntropyLoss(), batches, engine="retained"),
        Problem(net(nn.Tanh()), Scaled(1.0), batches),
        Problem(net(nn.Tanh()), Scaled(1.5), batches),
        Problem.from_loss(net(nn.Tanh()), scaled(1.0), batches),
        Problem.from_loss(net(nn.Tanh()), scaled(1.5), batches),
    ]
    for _ in range(2):
        losses = [survey(problem, measures=["gradients"], log=tmp_path)[0].loss for problem in problems]
        assert losses == pytest.approx([problem.loss() for problem in problems], rel=1e-12)
    assert len(read(tmp_path)) == len(problems)


class Scaled(nn.Module):
    """A criterion with a setting that neither its parameters nor what it prints show."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)


def test_a_changed_forward_is_another_problem() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    problem = Problem(Net(), nn.CrossEntropyLoss(), BY_NAME["mlp"].batches())
    before = problem.digest()
    assert problem.digest() == before
    Net.forward = lambda self, x: torch.tanh(self.head(x))
    assert problem.digest() != before


PROBES = 4


def by_global(problem: Problem) -> Record:
    return trace(problem, probes=PROBES)


def by_default(problem: Problem, probes: int = 4) -> Record:
    return trace(problem, probes=probes)


def closed_over(probes: object) -> Callable[[Problem], Record]:
    return lambda problem: trace(problem, probes=int(probes))  # type: ignore[call-overload]


class Counted:
    """An object that is called, with a setting."""

    def __init__(self, probes: int) -> None:
        self.probes = probes

    def __call__(self, problem: Problem) -> Record:
        return trace(problem, probes=self.probes)


def test_functions_are_resumed_by_what_they_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surveyed() -> list[int]:
        measures = [
            by_global,
            by_default,
            closed_over(4),
            partial(by_default, probes=6),
            Counted(4),
            Counted(4).__call__,
            lambda p: trace(p, probes=4),
        ]
        return [record.probes for record in survey(BY_NAME["mlp"].problem(), measures=measures, log=tmp_path)]

    assert surveyed() == surveyed() == [4, 4, 4, 6, 4, 4, 4]
    assert len(read(tmp_path)) == 7
    monkeypatch.setitem(globals(), "PROBES", 5)
    monkeypatch.setattr(by_default, "__defaults__", (7,))
    assert surveyed() == [5, 7, 4, 6, 4, 4, 4]
    others = [closed_over(8), partial(by_default, probes=9), Counted(10), lambda p: trace(p, probes=11)]
    found = survey(BY_NAME["mlp"].problem(), measures=others, log=tmp_path)
    assert [record.probes for record in found] == [8, 9, 10, 11]


def test_a_function_that_cannot_be_identified_is_measured_every_time(tmp_path: Path) -> None:
    class Opaque:
        """Without content that could be compared."""

        def __int__(self) -> int:
            return next(counts)

    counts = iter((4, 5))
    measure = closed_over(Opaque())
    found = [survey(BY_NAME["mlp"].problem(), measures=[measure], log=tmp_path)[0].probes for _ in range(2)]
    assert found == [4, 5]
    assert all("plan" not in record.context for record in read(tmp_path))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), ZeroDivisionError("by zero")])
def test_any_exception_of_one_measure_spares_the_others(error: Exception, tmp_path: Path) -> None:
    def bad(problem: Problem) -> Record:
        raise error

    with pytest.warns(TheodoliteWarning, match=f"bad failed: {type(error).__name__}: {error}"):
        records = survey(BY_NAME["mlp"].problem(), measures=[bad, "gradients"], log=tmp_path)
    assert [record.kind for record in records] == ["event", "gradients"]
    assert [record.kind for record in read(tmp_path)] == ["event", "gradients"]


@pytest.mark.parametrize(
    "call",
    [
        lambda problem: survey(problem, measures=["hessian"]),
        lambda problem: spectrum(problem, operator="fisher"),
        lambda problem: trace(problem, method="exact"),
        lambda problem: line(problem, direction="random"),
        lambda problem: plane(problem, directions="random"),
        lambda problem: normalise(torch.ones(problem.n), problem, how="row"),
        lambda problem: problem.replace(mode="test"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_unknown_names_raise_one_class(call: Callable[[Problem], object]) -> None:
    with pytest.raises(ProblemError, match=r"Expected .*found '"):
        call(BY_NAME["mlp"].problem())
