"""Models of transformers surveyed by their own loss have GGN, Fisher and Jacobian through logits and labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators.plain import relative
from theodolite.errors import OperatorError
from theodolite.operators import EKFAC, GGN, KFAC, NTK, Fisher, Jacobian, ggn_diagonal, ggn_spectrum
from theodolite.problem import Problem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.slow,  # importing transformers alone takes ten seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SIZES = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
LAST = {"gpt2": "transformer.h.0.mlp.*", "bert": "cls.*", "vit": "classifier.*", "t5": "decoder.block.0.layer.2.*"}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=7, max_position_embeddings=8, **SIZES))


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=7, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def tokens() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 7, (4, 5), generator=g)
    labels = ids.clone()
    for row in range(4):
        labels[row, 2 + row :] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(4, 1, 4, 4, generator=g, dtype=torch.float64),
        "labels": torch.randint(3, (4,), generator=g),
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], bool]] = {
    "gpt2": (gpt2, tokens, True),
    "bert": (bert, tokens, False),
    "vit": (vit, images, False),
    "t5": (t5, tokens, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_equal_those_of_logits_and_labels(name: str) -> None:
    make, data, shifts = MODELS[name]
    torch.manual_seed(0)
    model, batch = make().double().eval(), data()
    problem = Problem.from_loss(model, lambda model, batch: model(**batch).loss, [batch], params=LAST[name])
    parameters = [dict(model.named_parameters())[name] for name in problem.layout.names]
    with sdpa_kernel(SDPBackend.MATH):
        logits, labels = model(**batch).logits, batch["labels"]
        if shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        rows = [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(z, parameters, retain_graph=True, materialize_grads=True)]
            )
            for z in flat.reshape(-1)
        ]
    J = torch.stack(rows).reshape(*flat.shape, -1)
    p, valid = flat.detach().softmax(1), targets != -100
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("tcn,tcd,tdm->nm", J[valid], curvature[valid], J[valid]) / int(valid.sum())
    tolerance = 1e-6 if name == "t5" else 1e-10  # its attention and norms compute in float32 whatever its type
    assert relative(GGN(problem).dense(), expected) < tolerance
    assert relative(Fisher(problem).dense(), expected) < tolerance
    found = Jacobian(problem)
    assert found.shape == (flat.numel(), problem.n)
    order = flat.shape[0] * flat.shape[1]
    assert float(found.dense().norm()) == pytest.approx(float(J.reshape(order, -1).norm()), rel=tolerance)
    v = torch.randn(problem.n, dtype=torch.float64)
    sampled = Fisher(problem, kind="mc", draws=400).quadratic(v)
    assert abs(sampled.value - float(v @ expected @ v)) < 5 * sampled.stderr


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_single_samples_are_those_of_the_products(name: str) -> None:
    make, data, _ = MODELS[name]
    torch.manual_seed(0)
    batch = data()
    halves = [{key: tensor[:1] for key, tensor in batch.items()}, {key: tensor[1:] for key, tensor in batch.items()}]
    problem = Problem.from_loss(make().double().eval(), lambda m, b: m(**b).loss, halves, params=LAST[name])
    dense, tolerance = GGN(problem).dense(), 1e-6 if name == "t5" else 1e-10
    eigenvalues = torch.linalg.eigvalsh(dense).flip(0)[:4]
    assert relative(torch.tensor(ggn_spectrum(problem, k=4).eigenvalues), eigenvalues) < tolerance
    assert relative(ggn_diagonal(problem), dense.diagonal()) < tolerance
    # Rotations keep the trace, and EKFAC corrects the eigenvalues.
    assert EKFAC(problem).trace() == pytest.approx(float(dense.trace()), rel=tolerance)
    J = Jacobian(problem).dense()
    assert (
        relative(torch.linalg.eigvalsh(NTK(problem).matrix)[-4:], torch.linalg.svdvals(J).square()[:4].flip(0))
        < tolerance
    )
    assert problem.samples == 4


def smoothed(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), labels, label_smoothing=0.3)


def test_another_loss_on_the_same_batches_is_refused() -> None:
    """Its GGN would be that of another criterion."""
    problem = Problem.from_loss(gpt2().double(), smoothed, [tokens()])
    for operator in (GGN, Fisher, Jacobian, KFAC, EKFAC, NTK, ggn_spectrum):
        with pytest.raises(OperatorError, match=r"cross-entropy of the batch's labels under model\(\*\*batch\).logits"):
            operator(problem)
