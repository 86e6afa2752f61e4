"""The page on coverage lists every intercepted function, every case that is tested, and what is refused as it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import theodolite.errors
from operators.capture.test_operations import BY_FALLBACK, EXACTLY
from theodolite.losses import SupConLoss
from theodolite.operators.capture import sample_gram
from theodolite.operators.capture.handlers import HANDLERS
from theodolite.operators.capture.recurrent import STEPS
from theodolite.problem import Problem

PAGE = (Path(__file__).parents[3] / "docs" / "gradients.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##", PAGE.split(f"### {title}\n")[1], flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def public_name(function: Callable[..., object]) -> str:
    if function is F.linear:
        return "F.linear"
    name = function.__name__
    return f"torch.{name}" if getattr(torch, name, None) is function else f"Tensor.{name}"


def test_every_intercepted_function_is_listed() -> None:
    listed = [name for row in rows("In the one backward pass") for name in re.findall(r"`([^`]+)`", row[1])]
    assert len(listed) == len(set(listed))
    assert set(listed) == {public_name(function) for function in (*HANDLERS, *STEPS)}


def test_every_tested_case_is_listed() -> None:
    paragraph = section("Cases that are tested").split("\n\n")[1]
    listed = " ".join(paragraph.split()).rstrip(".").split("; ")
    assert sorted(listed) == sorted(EXACTLY)
    assert [row[0] for row in rows("Through the fallback")] == list(BY_FALLBACK)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h - h.mean(0)


class StepsFirst(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0)


REFUSED: dict[str, Callable[[], Problem]] = {
    "BatchNorm on batch statistics": lambda: Problem(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.CrossEntropyLoss(), [labelled()], mode="train"
    ),
    "a criterion over pairs of samples, such as SupCon": lambda: Problem(nn.Linear(3, 4), SupConLoss(), [labelled()]),
    "a criterion of the mean output": lambda: Problem(
        nn.Linear(3, 4), lambda outputs, targets: outputs.mean(0).square().sum(), [labelled()]
    ),
    "a model that centres its batch": lambda: Problem(Centred(3, 4), nn.CrossEntropyLoss(), [labelled()]),
    "steps before samples in the batch": lambda: Problem(
        StepsFirst(3, 4), nn.CrossEntropyLoss(), [(torch.randn(5, 4, 3), torch.randint(4, (4,)))]
    ),
}


def labelled() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3), torch.arange(4)


def test_every_refusal_is_listed() -> None:
    assert [row[0] for row in rows("Refused")] == list(REFUSED)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_the_page_says(case: str) -> None:
    _, error, says = next(row for row in rows("Refused") if row[0] == case)
    with pytest.raises(getattr(theodolite.errors, error.strip("`")), match=says):
        sample_gram(REFUSED[case]())
