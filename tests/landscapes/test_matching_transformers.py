"""Language models as their library writes them: fused queries, transposed weights, tied embeddings, grouped heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from theodolite.landscapes.paths import match
from theodolite.landscapes.paths.matching.discovery import discovered
from theodolite.landscapes.paths.matching.symmetry import permuted
from theodolite.landscapes.paths.traveller import Traveller
from theodolite.problem import Problem

transformers = pytest.importorskip("transformers")


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
        )
    )


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize(("make", "groups"), [(gpt2, [8, 2, 32]), (llama, [16, 2, 12])], ids=["gpt2", "llama"])
def test_a_permuted_language_model_is_brought_back(make: Any, groups: list[int]) -> None:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    tokens = torch.randint(11, (4, 5))
    batches = [{"input_ids": tokens, "labels": tokens}]
    problem = Problem.from_loss(model, lambda model, batch: model(**batch, use_cache=False).loss, batches)
    traveller = Traveller(problem)
    state = traveller.state()
    symmetry = discovered(problem, state, seed=0)
    assert [group.blocks for group in symmetry.groups] == groups
    assert not symmetry.notes
    generator, moved = np.random.default_rng(0), dict(state)
    for group in symmetry.groups:
        moved = permuted(moved, group.random(generator, symmetry.sizes))
    assert traveller.read(moved).loss == pytest.approx(traveller.read(state).loss, rel=1e-5)
    found = match(problem, state, moved)
    torch.testing.assert_close(found.state, dict(state), rtol=0, atol=0)
    assert found.error < 1e-10
