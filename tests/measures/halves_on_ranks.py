"""What each of two processes measures on its half of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from theodolite.measures.directional import directional
from theodolite.measures.logit_sharpness import logit_sharpness
from theodolite.measures.sharpness import sharpness
from theodolite.problem import Problem


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    sizes = (5, 3, 4, 2)
    return [(torch.randn(k, 4, generator=g, dtype=torch.float64), torch.randint(3, (k,), generator=g)) for k in sizes]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def readings(batches: list[Any]) -> dict[str, list[float]]:
    problem = Problem(network(), nn.CrossEntropyLoss(), batches)
    worst = sharpness(problem, kind="worst", radius=0.2, steps=3, seed=1)
    average = sharpness(problem, kind="average", draws=2, seed=1)
    along = directional(problem, directions={"d": torch.linspace(-0.1, 0.1, problem.n, dtype=torch.float64)})
    logits = logit_sharpness(problem)
    return {
        "worst": [*worst.rises.tolist(), *worst.stderrs.tolist(), worst.loss, worst.loss_stderr],
        "average": [*average.rises.tolist(), *average.stderrs.tolist(), *average.draw_stderrs.tolist()],
        "directional": [*along.exact.tolist(), *along.exact_stderrs.tolist(), *along.difference_stderrs.tolist()],
        "loss only": [*along.loss_only.tolist(), *along.loss_only_stderrs.tolist(), along.gradient_quotient],
        "logits": [*logits.rises.tolist(), *logits.stderrs.tolist()],
    }


def on_rank(rank: int) -> dict[str, list[float]]:
    return readings(data()[2 * rank : 2 * rank + 2])
