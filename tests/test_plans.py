"""A survey keeps what it has, resumes, and goes on when one measure fails."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from families import BY_NAME
from theodolite.errors import OperatorError, TheodoliteWarning
from theodolite.measures import spectrum, trace
from theodolite.plans import MEASURES, survey
from theodolite.problem import Problem
from theodolite.records import Event, Record, read

CHEAP = ("gradients", "trace")


def test_every_named_measure_gives_its_record(tmp_path: Path) -> None:
    records = survey(BY_NAME["mlp"].problem(), measures=tuple(MEASURES), log=tmp_path, step=7)
    assert [record.kind for record in records] == list(MEASURES)
    assert all(record.step == 7 and record.cost.seconds > 0 for record in records)
    assert [record.kind for record in read(tmp_path)] == list(MEASURES)


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
        assert [getattr(record, "probes", None) for record in records] == [4, 8, None]
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


def test_unknown_measures_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"among 'gradients', .*'plane', or functions .* found 'hessian'"):
        survey(BY_NAME["mlp"].problem(), measures=["gradients", "hessian"], log=tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    survey(BY_NAME["mlp"].problem(), measures=CHEAP, on_progress=lambda *args: told.append(args))
    assert told == [("gradients", 0, 2), ("trace", 1, 2), ("done", 2, 2)]
