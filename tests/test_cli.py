"""The command line: what it prints, writes and exits with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from theodolite.records import Spectrum, read

MODULE = """
import torch
from theodolite import Problem

def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 4, generator=generator)
    targets = torch.randint(3, (20,), generator=generator)
    return Problem(model, torch.nn.CrossEntropyLoss(), [(inputs[:10], targets[:10]), (inputs[10:], targets[10:])])

def number():
    return 3

def sized(size):
    return problem()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(MODULE)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from theodolite.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_survey_then_report(folder: Path) -> None:
    done = run(folder, "survey", "task:problem", "--log", "runs/a", "--measure", "spectrum", "--measure", "gradients")
    assert done.returncode == 0, done.stderr
    assert "Spectrum(hessian, n=43" in done.stdout
    assert read(folder / "runs/a").last(Spectrum) is not None
    page = run(folder, "report", "runs/a", "--out", "page.html", "--figures", "figures")
    assert page.returncode == 0, page.stderr
    assert "page.html" in page.stdout
    assert (folder / "page.html").read_text().startswith("<!doctype html>")
    assert list((folder / "figures").glob("*.png"))


def test_checkpoint_is_loaded(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}},
        folder / "c.pt",
    )
    done = run(folder, "survey", "task:problem", "--checkpoint", "c.pt", "--log", "runs/a", "--measure", "gradients")
    assert done.returncode == 0, done.stderr


def test_a_survey_in_which_a_measure_failed_says_which_and_exits_with_1(folder: Path) -> None:
    task = (folder / "task.py").read_text().replace("targets = ", "inputs[3] = float('nan')\n    targets = ")
    (folder / "task.py").write_text(task)
    arguments = ("survey", "task:problem", "--log", "runs/a", "--strict")
    done = run(folder, *arguments, "--measure", "spectrum", "--measure", "gradients")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 2 measures failed: spectrum" in " ".join(done.stderr.split())
    assert "spectrum failed: NonFiniteError" in " ".join(done.stdout.split())
    assert "Gradients(" in done.stdout
    assert "1 when one failed" in " ".join(run(folder, "survey", "--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("survey", "task:problem", "--log", "runs/a", "--checkpoint", "other.pt"), 1,
         "2 names missing (0.bias, 0.weight), 1 unknown (weird)"),
        (("survey", "task:problem", "--log", "runs/a", "--checkpoint", "gone.pt"), 1, "found none at gone.pt"),
        (("survey", "task:problem", "--log", "runs/a", "--checkpoint", "code.pt"), 1, "cannot be loaded as weights only"),
        (("survey", "task", "--log", "runs/a"), 2, "expected module:function, found 'task'"),
        (("survey", "nowhere:problem", "--log", "runs/a"), 2, "no module 'nowhere'"),
        (("survey", "task:nothing", "--log", "runs/a"), 2, "has no 'nothing'"),
        (("survey", "task:number", "--log", "runs/a"), 2, "returned int, expected a Problem"),
        (("survey", "task:sized", "--log", "runs/a"), 2, "takes arguments, expected a function without any"),
        (("survey", "task:problem", "--log", "runs/a", "--measure", "magic"), 1, "found 'magic'"),
        (("survey", "task:problem", "--log", "runs/a", "--plan", "dep"), 2, "quick, standard, deep, found 'dep'"),
        (("report", "runs/none"), 1, "runs/none"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("0")}
    torch.save({**state, "weird": torch.zeros(1)}, folder / "other.pt")
    torch.save(model, folder / "code.pt")
    done = run(folder, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split()).replace("│ ", "").replace(" │", "")
    assert "Traceback" not in done.stderr
