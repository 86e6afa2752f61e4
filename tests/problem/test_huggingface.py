"""Models of transformers, tiny and random: weights by valid labels, exact products under their default attention."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snapshots import snapshot
from theodolite.errors import ProblemError
from theodolite.operators import Hessian
from theodolite.problem import Problem
from theodolite.problem.data import split

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.slow,  # importing transformers alone takes ten seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

VOCABULARY = 11
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=8, num_key_value_heads=1, tie_word_embeddings=True, **SIZES
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=8, **SIZES)
    )


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


def token_batch() -> dict[str, Tensor]:
    """Nine sequences with one to five valid labels, and one with none."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (9, 6), generator=g)
    labels = tokens.clone()
    for row in range(9):
        labels[row, 1 + row % 6 :] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def image_batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(9, 1, 4, 4, generator=g, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.randint(3, (9,), generator=g)}


MODELS: dict[str, Any] = {
    "gpt2": (gpt2, token_batch),
    "llama": (llama, token_batch),
    "bert": (bert, token_batch),
    "vit": (vit, image_batch),
}


def made(name: str) -> tuple[nn.Module, dict[str, Tensor], list[Any]]:
    torch.manual_seed(0)
    make_model, make_batch = MODELS[name]
    model, whole = make_model().double().eval(), make_batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, whole, [split(whole, 4)[0], *split(split_rest(whole, 4), 2)]


def split_rest(whole: dict[str, Tensor], start: int) -> dict[str, Tensor]:
    return {key: value[start:] for key, value in whole.items()}


def output_loss(model: nn.Module, batch: Any) -> Any:
    return model(**batch).loss


def whole_output(model: nn.Module, batch: Any) -> Any:
    return model(**batch)


def shifted_pair(model: nn.Module, batch: Any) -> Any:
    """Next-token loss as (total, count), in the model's own type: transformers computes its loss in float32 always."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].transpose(1, 2)
    labels = batch["labels"][:, 1:]
    return F.cross_entropy(logits, labels, reduction="sum"), (labels != -100).sum()


@pytest.mark.parametrize(
    ("name", "loss", "tolerance"),
    [
        ("gpt2", output_loss, 3e-6),
        ("gpt2", shifted_pair, 1e-10),
        ("llama", whole_output, 3e-6),
        ("llama", shifted_pair, 3e-6),  # its RMSNorm computes in float32 too
        ("bert", output_loss, 3e-6),
        ("vit", output_loss, 1e-10),
        ("vit", whole_output, 1e-10),
    ],
)
def test_loss_and_products_are_those_of_the_concatenated_batch(name: str, loss: Any, tolerance: float) -> None:
    model, whole, batches = made(name)
    assert model.config._attn_implementation == "sdpa"  # the default, whose fused kernels have no double backward
    problem = Problem.from_loss(model, loss, batches)
    v = torch.randn(problem.n, dtype=torch.float64)
    before = snapshot(model)
    H = Hessian(problem)
    found = H @ v
    gradient, value = problem.gradient(), problem.loss()
    assert snapshot(model) == before
    assert H.engine == "retained graphs"
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        reference = loss(model, whole)
        reference = (
            reference[0] / reference[1] if isinstance(reference, tuple) else getattr(reference, "loss", reference)
        )
        expected = flat(torch.autograd.grad(reference, parameters, create_graph=True, materialize_grads=True))
        product = flat(torch.autograd.grad(expected, parameters, v, materialize_grads=True))
    assert value == pytest.approx(float(reference.detach()), rel=tolerance)
    assert float((gradient - expected.detach()).norm() / expected.norm().detach()) < tolerance
    assert float((found - product).norm() / product.norm()) < tolerance
    with torch.no_grad():  # what the model itself says of all data
        assert value == pytest.approx(float(model(**whole).loss), rel=3e-6)


def flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_dense_rows_of_a_block(name: str) -> None:
    model, whole, batches = made(name)
    pattern = {"gpt2": "transformer.h.1.ln_1.*", "bert": "*.layer.0.attention.output.LayerNorm.*"}[name]
    problem = Problem.from_loss(model, output_loss, batches, params=pattern)
    chosen = [dict(model.named_parameters())[name] for name in problem.layout.names]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = flat(torch.autograd.grad(model(**whole).loss, chosen, create_graph=True))
        rows = torch.stack([flat(torch.autograd.grad(entry, chosen, retain_graph=True)) for entry in gradient])
    assert float((Hessian(problem).dense() - rows).norm() / rows.norm()) < 3e-6


def test_equal_weights_for_batches_would_be_wrong_here() -> None:
    """The error that weighing by valid labels avoids: up to 79 per cent in other tools."""
    model, whole, batches = made("gpt2")
    with torch.no_grad():
        means = torch.stack([model(**batch).loss for batch in batches])
        reference = model(**whole).loss
    assert not torch.allclose(means.nanmean(), reference, rtol=1e-3)


def test_batches_of_a_tokenizer_keep_their_attributes() -> None:
    model, whole, batches = made("gpt2")
    encoded = [transformers.BatchEncoding(batch) for batch in batches]

    def loss(model: nn.Module, batch: Any) -> Any:
        return model(input_ids=batch.input_ids, labels=batch.labels).loss

    found = Problem.from_loss(model, loss, encoded, microbatch=2)
    assert found.loss() == pytest.approx(Problem.from_loss(model, output_loss, [whole]).loss(), rel=3e-6)


def test_tuples_of_loss_and_logits_are_refused() -> None:
    model, _, batches = made("vit")
    with pytest.raises(ProblemError, match=r"found a tuple of 2: shape \(\), shape \(4, 3\).*output\[0\]"):
        Problem.from_loss(model, lambda model, batch: model(**batch, return_dict=False), batches).loss()


def test_gradient_checkpointing_in_training_is_exact() -> None:
    model, _, batches = made("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = Problem.from_loss(model, output_loss, batches, mode="train")
    v = torch.randn(plain.n, dtype=torch.float64)
    expected = Hessian(plain) @ v
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = Hessian(Problem.from_loss(model, output_loss, batches, mode="train")) @ v
    assert float((found - expected).norm() / expected.norm()) < 3e-6
