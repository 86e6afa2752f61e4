"""Ranks match as one: what one of them finds wrong is wrong for all, and none waits for another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed.worker import message_of, on_two_ranks
from theodolite.landscapes.paths import match
from theodolite.problem import Problem


class Noisy(nn.Linear):
    """A layer that is deterministic where its share of noise is zero."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        Noisy.share *= 2
        return super().forward(x) * (1 + Noisy.share)


def on_rank(rank: int) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(Noisy(3, 5), nn.Tanh(), nn.Linear(5, 2))
    data = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))[rank]
    problem = Problem(model, nn.MSELoss(), [(data, data[:, :2])])
    order = torch.tensor([3, 0, 4, 1, 2])
    end = {"0.weight": model[0].weight[order], "0.bias": model[0].bias[order], "2.weight": model[2].weight[:, order]}
    found = match(problem, model, end | {"2.bias": model[2].bias})
    Noisy.share = 0.1 * rank
    return [str(found.error < 1e-10), message_of(lambda: match(problem, model, model))]


def test_what_one_rank_finds_wrong_is_an_error_on_all() -> None:
    first, second = on_two_ranks(on_rank)
    assert first[0] == second[0] == "True"
    for _, message in (first, second):
        assert "ProblemError: Expected the permuted checkpoint to have the function of the given one" in message
