"""A loss over a huge vocabulary keeps no more than a few copies of its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from theodolite.operators import GGN, Hessian
from theodolite.operators.certificate import first_piece
from theodolite.operators.memory import counting_saved_bytes
from theodolite.problem import Problem

VOCABULARY, LENGTH, SAMPLES = 50_000, 6, 8
LOGITS = VOCABULARY * LENGTH * 4  # bytes of a sample


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x))).transpose(1, 2)


def problem() -> Problem:
    targets = torch.randint(VOCABULARY, (SAMPLES, LENGTH))
    targets[:, -2:] = -100
    return Problem(Head(), nn.CrossEntropyLoss(), [(torch.randn(SAMPLES, LENGTH, 4), targets)], params="inner")


def test_the_graph_of_the_loss_keeps_one_copy_of_its_logits() -> None:
    found = problem()
    point, piece = found.point(), first_piece(problem())

    def bytes_kept(model: nn.Module) -> int:
        with counting_saved_bytes([*point.leaves, *point.constants.values()]) as saved:
            found.objective.evaluate(model, piece.batch)
        return saved.total

    assert found.call(bytes_kept, point) < 1.1 * LOGITS * piece.samples


def test_graphs_of_products_keep_two_copies_at_most() -> None:
    found = problem()
    v = torch.ones(found.n)
    for operator, copies in ((Hessian, 2), (GGN, 1)):
        A = operator(found)
        A @ v
        assert A._graph_bytes is not None
        assert 0.9 * copies * LOGITS < A._graph_bytes < 1.1 * copies * LOGITS  # frozen parameters live anyway
