"""Zero-sum learning rises as the loss of a small language model decelerates."""

from __future__ import annotations

import math
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theodolite.measures import gradients
from theodolite.problem import Problem

CONTEXT, WIDTH, BATCH = 32, 32, 32


class Characters(nn.Module):
    """A causal transformer of two layers over characters."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.layers(hidden, mask=self.mask)).movedim(-1, 1)


def corpus() -> tuple[Tensor, int]:
    """The topics of Python's own help, as places of characters."""
    text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
    alphabet = sorted(set(text))
    place = {letter: index for index, letter in enumerate(alphabet)}
    return torch.tensor([place[letter] for letter in text]), len(alphabet)


@pytest.mark.slow
def test_zero_sum_learning_rises_as_the_loss_decelerates() -> None:
    """Mircea et al. (2025): early all samples gain from a step, later what some gain others lose.

    The loss falls along a power of the step that breaks once the frequencies of characters are learnt. Both stretches are read from
    the same probe: the slope in double logarithms, and interference. (Later pairs of characters are learnt, the loss falls faster
    again and interference gives way: at step 800 it is 0.27 ± 0.11.)
    """
    torch.manual_seed(0)
    text, vocabulary = corpus()
    model = Characters(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(text) - CONTEXT - 1, (count,), generator=generator)
        windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, 1:]

    probe = Problem(model, nn.CrossEntropyLoss(), [draw(128)])
    steps, losses, zero_sum, errors = [1, 4, 16, 64, 128, 256], [], [], []
    for step in range(1, steps[-1] + 1):
        inputs, targets = draw(BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if step in steps:
            optimizer.zero_grad()
            found = gradients(probe, gram=True)
            losses.append(found.loss)
            zero_sum.append(found.zero_sum.value)
            errors.append(found.zero_sum.stderr)
            print(f"step {step}: loss {found.loss:.3f}, zero-sum {found.zero_sum}, cosine {found.mean_cosine}")
    before, after = (math.log(losses[b] / losses[a]) / math.log(steps[b] / steps[a]) for a, b in ((1, 2), (3, 5)))
    early, late = np.mean(zero_sum[:2]), np.mean(zero_sum[3:])
    print(f"slopes {before:.3f} and {after:.3f}; zero-sum {early:.3f} and {late:.3f}")
    assert after > 0.7 * before, "the loss has not decelerated"
    assert late > 0.2
    assert late - early > 2 * np.mean(errors[3:])
