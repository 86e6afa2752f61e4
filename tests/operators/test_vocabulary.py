"""The GGN of a large vocabulary takes memory for its product, not for its curvature."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import theodolite.problem.criteria as criteria
from operators.plain import relative
from theodolite.operators import GGN, Hessian
from theodolite.problem import Problem
from theodolite.problem.criteria import CrossEntropy


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside were alive with at one time."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return made

    def _watch(self, storage: Any) -> None:
        key = storage.data_ptr()
        if key and key not in self._seen | self._known:
            self._seen.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


@pytest.mark.parametrize("shape", [(2, 50_000, 128), (2, 50_000, 8, 16), (400, 50_000)])
def test_the_product_with_the_curvature_takes_little_more_than_itself(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]))
    vector = torch.randn_like(logits)
    with Peak(logits) as before:
        product = CrossEntropy().curvature(logits, targets)
    assert before.now <= 16 * targets.numel()  # what it keeps: a number or two a position
    with Peak(logits, vector) as peak:
        result = product(vector)
    assert peak.most >= result.nbytes  # the meter sees at least what is returned
    # A piece is 16 MiB, and four of its size are alive at a time; all at once would be three times the logits.
    assert peak.most <= result.nbytes + 6 * 4 * criteria.PIECE
    with Peak(logits, vector) as at_once:
        p = logits.softmax(1)
        expected = p * (vector - (p * vector).sum(1, keepdim=True))
    assert relative(result, expected) < 1e-5
    assert at_once.most >= 2.9 * result.nbytes


def language_model(vocabulary: int, width: int = 4) -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    class Next(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(vocabulary, width), torch.nn.Linear(width, vocabulary)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(tokens))).transpose(1, 2)

    tokens = torch.randint(vocabulary, (4, 16))
    return Next(), (tokens, tokens.roll(-1, 1))


def test_pieces_do_not_change_the_ggn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = language_model(60)
    problem = Problem(model.double(), torch.nn.CrossEntropyLoss(), [batch], params="embedding.*")
    V = torch.randn(problem.n, 6, dtype=torch.float64)
    reference = GGN(problem) @ V
    for piece in (1, 60, 700, 2000):
        monkeypatch.setattr(criteria, "PIECE", piece)
        for engine in ("retained", "vmap"):
            assert relative(GGN(problem.replace(engine=engine)) @ V, reference) < 1e-12


def test_a_ggn_over_fifty_thousand_words_keeps_within_its_memory() -> None:
    """Graphs are counted with their logits: 13 MB for each of these four sequences, beside which all else is small."""
    model, batch = language_model(50_000)
    problem = Problem(model, torch.nn.CrossEntropyLoss(), [(x[None], y[None]) for x, y in zip(*batch, strict=True)])
    logits = 16 * 50_000 * 4
    roomy, tight = GGN(problem.replace(memory=8 * logits)), GGN(problem.replace(memory=int(2.5 * logits)))
    v = torch.randn(problem.n)
    assert relative(tight @ v, roomy @ v) < 1e-5
    for _ in range(2):
        tight @ v
        roomy @ v
    assert roomy.gradients == pytest.approx(1.0)  # all four fit
    assert tight.gradients > 1.4  # two or fewer fit, the others are built anew


def test_the_hessian_agrees_where_the_head_is_all_there_is() -> None:
    """Of a linear head the GGN is the Hessian; the curvature is then that of the criterion, in closed form and by autograd."""
    head = torch.nn.Linear(3, 2000).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(2000, (5,))
    problem = Problem(head, torch.nn.CrossEntropyLoss(), [(x, y)])
    v = torch.randn(problem.n, dtype=torch.float64)
    assert relative(GGN(problem) @ v, Hessian(problem) @ v) < 1e-10
