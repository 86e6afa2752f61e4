"""Every operation that reads parameters: the Gram matrix equals that of one sample after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from operators.capture.oracle import gram, per_sample_gradients, relative
from theodolite.operators.capture import capture, sample_gram
from theodolite.operators.capture.vectorised import all_at_once
from theodolite.problem import Problem

EXACT = 1e-10
B = 4


class Function(nn.Module):
    """Parameters by name and a function of input and parameters."""

    def __init__(self, forward: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = forward
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_parameters()))


class Wrapped(nn.Module):
    """A module called in another way."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inner, x)


class Double(torch.autograd.Function):
    """x Wᵀ through code that is not intercepted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def mha(*, batch_first: bool, **options: Any) -> nn.Module:
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first, **options)

    def call(inner: nn.Module, x: Tensor) -> Tensor:
        h = x if batch_first else x.transpose(0, 1)
        found = inner(h, h, h, need_weights=False)[0]
        return found if batch_first else found.transpose(0, 1)

    return Wrapped(attention, call)


def first(module: nn.Module) -> nn.Module:
    """The first output of a recurrent layer."""
    return Wrapped(module, lambda inner, x: inner(x)[0])


def windows(inner: nn.Module, x: Tensor) -> Tensor:
    """Attention windows folded into the batch."""
    return inner(x.reshape(-1, 3, x.shape[-1])).reshape(x.shape[0], -1)


def steps_first(inner: nn.Module, x: Tensor) -> Tensor:
    """Steps before samples, flattened together."""
    return inner(x.transpose(0, 1).reshape(-1, x.shape[-1])).unflatten(0, (x.shape[1], x.shape[0])).transpose(0, 1)


def cells(inner: nn.Module, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 5, dtype=x.dtype)
    for step in x.unbind(1):
        h = inner(step, h)
    return h


def routed(x: Tensor, router: Tensor, experts: Tensor) -> Tensor:
    """A mixture of three experts: every token goes to one."""
    flat = x.reshape(-1, x.shape[-1])
    scores = (flat @ router.T).softmax(-1)
    chosen = scores.argmax(-1)
    out = torch.zeros_like(flat)
    for expert in range(3):
        (tokens,) = torch.where(chosen == expert)
        out = out.index_add(0, tokens, F.linear(flat[tokens], experts[expert]).tanh() * scores[tokens, expert, None])
    return out.reshape(x.shape)


def inplace(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    h = F.linear(x, weight)
    h += bias
    return h.relu_()


def packed(inner: nn.Module, x: Tensor) -> Tensor:
    lengths = [x.shape[1]] * len(x)
    _, last = inner(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))
    return last[0]


def parted(x: Tensor, w: Tensor) -> Tensor:
    """Linear in each sample, through a sum over the samples before it."""
    sums = F.linear(x.cumsum(0), w)
    return sums - torch.cat([torch.zeros_like(sums[:1]), sums[:-1]])


tokens = (5, 6)
image = (2, 6, 6)

EXACTLY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "linear on a sequence": (lambda: nn.Linear(6, 3), tokens),
    "linear on two sequence axes": (lambda: nn.Linear(6, 3), (2, 3, 6)),
    "linear on as many positions as samples": (lambda: nn.Linear(6, 3), (B, 6)),
    "windows": (lambda: Wrapped(nn.Linear(6, 3), windows), (12, 6)),
    "steps first": (lambda: Wrapped(nn.Linear(6, 3), steps_first), tokens),
    "as many steps as samples, steps first": (lambda: Wrapped(nn.Linear(6, 3), steps_first), (B, 6)),
    "matmul": (lambda: Function(lambda x, w: x @ w, w=(6, 3)), tokens),
    "matmul from the left": (lambda: Function(lambda x, w: w @ x, w=(3, 5)), tokens),
    "vector": (lambda: Function(lambda x, w: x @ w, w=(6,)), tokens),
    "addmm": (lambda: Function(lambda x, w, b: torch.addmm(b, x, w), w=(6, 3), b=(3,)), (6,)),
    "einsum": (lambda: Function(lambda x, w: torch.einsum("btk,lk->btl", x, w), w=(3, 6)), tokens),
    "bilinear": (lambda: Wrapped(nn.Bilinear(6, 6, 3), lambda inner, x: inner(x, x.sin())), tokens),
    "conv1d": (lambda: nn.Conv1d(5, 4, 3, stride=2, padding=2, dilation=2), tokens),
    "conv1d same": (lambda: nn.Conv1d(5, 4, 4, padding="same", dilation=2), tokens),
    "conv1d reflect": (lambda: nn.Conv1d(5, 4, 3, padding=1, padding_mode="reflect"), tokens),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), image),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), (3, 5, 5)),
    "conv2d in frames": (
        lambda: Wrapped(nn.Conv2d(2, 3, 3), lambda c, x: c(x.flatten(0, 1)).unflatten(0, x.shape[:2])),
        (3, *image),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2, dilation=(1, 2, 1)), (2, 4, 5, 4)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(5, 4, 3, stride=2, padding=1, output_padding=1), tokens),
    "transposed conv2d grouped": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, dilation=2, groups=2), image),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(6), tokens),
    "LayerNorm over two axes": (lambda: nn.LayerNorm((5, 6)), tokens),
    "RMSNorm": (lambda: nn.RMSNorm(6), tokens),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "InstanceNorm": (lambda: nn.InstanceNorm2d(2, affine=True), image),
    "BatchNorm in evaluation": (lambda: nn.BatchNorm2d(2), image),
    "PReLU": (lambda: nn.PReLU(5), tokens),
    "position embedding": (lambda: Function(lambda x, p: x + p, p=tokens), tokens),
    "position embedding of some steps": (lambda: Function(lambda x, p: x + p[: x.shape[1]], p=(9, 6)), tokens),
    "class token": (lambda: Function(lambda x, c: torch.cat([c.expand(len(x), -1, -1), x], 1), c=(1, 1, 6)), tokens),
    "layer scale": (lambda: Function(lambda x, g: x + g * x.sin(), g=(6,)), tokens),
    "gate": (lambda: Function(lambda x, g: x * torch.sigmoid(g), g=()), tokens),
    "subtracted and divided": (lambda: Function(lambda x, a, b: (a - x) / (1 + b.square()), a=(6,), b=(5, 1)), tokens),
    "in-place bias and activation": (lambda: Function(inplace, weight=(3, 6), bias=(3,)), tokens),
    "weight used twice": (lambda: Function(lambda x, w: F.linear(F.linear(x, w).tanh(), w), w=(6, 6)), tokens),
    "weight and its transpose": (lambda: Function(lambda x, w: F.linear(x, w).tanh() @ w, w=(3, 6)), tokens),
    "parts of a weight": (lambda: Function(lambda x, w: F.linear(x, w[:3]) * F.linear(x, w[3:]), w=(6, 6)), tokens),
    "overlapping parts": (lambda: Function(lambda x, w: F.linear(x, w[:4]) * F.linear(x, w[2:]), w=(6, 6)), tokens),
    "low rank": (lambda: Function(lambda x, a, b: F.linear(x, a @ b), a=(3, 2), b=(2, 6)), tokens),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 3)), tokens),
    "masked weight": (lambda: Function(lambda x, w: F.linear(x, w.tril()), w=(6, 6)), tokens),
    "attention": (lambda: mha(batch_first=True), tokens),
    "attention, steps first": (lambda: mha(batch_first=False), tokens),
    "attention, as many steps as samples": (lambda: mha(batch_first=False), (B, 6)),
    "attention with bias_k": (lambda: mha(batch_first=True, add_bias_kv=True), tokens),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), tokens),
    "LSTM": (lambda: first(nn.LSTM(6, 4, batch_first=True, num_layers=2, bidirectional=True)), tokens),
    "LSTM with projection": (lambda: first(nn.LSTM(6, 4, batch_first=True, proj_size=3)), tokens),
    "LSTM without biases": (lambda: first(nn.LSTM(6, 4, bias=False, batch_first=True)), tokens),
    "GRU": (lambda: first(nn.GRU(6, 4, batch_first=True, bidirectional=True)), tokens),
    "RNN": (lambda: first(nn.RNN(6, 4, batch_first=True, nonlinearity="relu")), tokens),
    "GRU cell": (lambda: Wrapped(nn.GRUCell(6, 5), cells), tokens),
    "RNN cell": (lambda: Wrapped(nn.RNNCell(6, 5), cells), tokens),
    "mixture of experts": (lambda: Function(routed, router=(3, 6), experts=(3, 6, 6)), tokens),
    "checkpoint": (
        lambda: Wrapped(
            seq(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), lambda m, x: checkpoint(m, x, use_reentrant=False)
        ),
        tokens,
    ),
    "unused parameter": (lambda: Function(lambda x, w, idle: F.linear(x, w), w=(3, 6), idle=(2,)), tokens),
}
BY_FALLBACK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "custom function": (lambda: Function(lambda x, w: Double.apply(x, w), w=(3, 6)), tokens),
    "in-place product": (lambda: Function(lambda x, w, g: F.linear(x, w).mul_(g), w=(3, 6), g=(3,)), tokens),
    "several outputs": (lambda: Function(lambda x, w: x * torch.broadcast_tensors(x, w)[1], w=(6,)), tokens),
    "packed sequences": (lambda: Wrapped(nn.GRU(6, 4, batch_first=True), packed), tokens),
    "samples that part again": (lambda: Function(parted, w=(3, 6)), (6,)),
}


def problem_and_gram(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(B, *shape, dtype=torch.float64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    rows = per_sample_gradients(model, lambda batch: F.mse_loss(model(batch[0]), batch[1], reduction="sum"), (x, y))
    expected = sum(gram(part) for part in rows.values()) * (B / y.numel()) ** 2
    return Problem(model, nn.MSELoss(), [(x, y)]), expected


@pytest.mark.parametrize("name", EXACTLY)
def test_operations_are_exact_without_fallback(name: str) -> None:
    problem, expected = problem_and_gram(*EXACTLY[name])
    found = sample_gram(problem)
    assert relative(found.gram, expected) < EXACT
    assert "fallback" not in found.methods.values()
    assert all(coverage == pytest.approx(1, abs=1e-8) for coverage in found.coverage.values())
    assert found.calibration < 1e-8
    again = sample_gram(problem)
    assert relative(again.gram, expected) < EXACT


@pytest.mark.parametrize("name", BY_FALLBACK)
def test_what_is_not_intercepted_goes_through_the_fallback(name: str) -> None:
    problem, expected = problem_and_gram(*BY_FALLBACK[name])
    found = sample_gram(problem)
    assert relative(found.gram, expected) < EXACT
    assert "fallback" in found.methods.values()
    assert all(coverage == pytest.approx(1, abs=1e-8) for coverage in found.coverage.values())
    assert relative(sample_gram(problem).gram, expected) < EXACT


@pytest.mark.parametrize("name", BY_FALLBACK)
def test_the_fallback_takes_all_samples_at_once_where_it_can(name: str) -> None:
    problem, _ = problem_and_gram(*BY_FALLBACK[name])
    chunk, point = next(problem.chunks()), problem.point()
    outputs = capture(problem, chunk).outputs
    assert outputs is not None
    cotangent = torch.randn_like(outputs)
    together = all_at_once(problem, chunk, point, point.leaves, cotangent)
    assert (together is None) == (name in ("custom function", "packed sequences"))
    if together is not None:
        expected = per_sample_gradients(
            problem.model, lambda batch: (problem.model(batch[0]) * batch[1]).sum(), (chunk.batch[0], cotangent)
        )
        for found, part in zip(together, expected.values(), strict=True):
            assert relative(found, part) < EXACT
