"""Families of small problems over which every law is stated, in float64, with weights far from symmetric points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.problem import Problem


@dataclass(frozen=True)
class Family:
    """How to make one model, what it minimises, and its batches."""

    name: str
    model: Callable[[], nn.Module]
    criterion: Callable[..., Any] | None
    batches: Callable[[], list[Any]]
    loss: Callable[[nn.Module, Any], Any] | None = None

    def problem(self, **options: Any) -> Problem:
        return self.problem_of(self.model_and_data()[0], self.batches(), **options)

    def problem_of(self, model: nn.Module, batches: Any, **options: Any) -> Problem:
        if self.loss is not None:
            return Problem.from_loss(model, self.loss, batches, **options)
        assert self.criterion is not None
        return Problem(model, self.criterion, batches, **options)

    def model_and_data(self) -> tuple[nn.Module, list[Any]]:
        torch.manual_seed(0)
        model = self.model().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model, self.batches()


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(sizes: tuple[int, ...], *shape: int, seed: int = 1) -> list[Tensor]:
    g = generator(seed)
    return [torch.randn(size, *shape, generator=g, dtype=torch.float64) for size in sizes]


def labels(sizes: tuple[int, ...], high: int, *shape: int, seed: int = 2) -> list[Tensor]:
    g = generator(seed)
    return [torch.randint(high, (size, *shape), generator=g) for size in sizes]


SIZES = (7, 7, 3)  # ragged, so that equal weights for batches would be wrong


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))


class ConvNet(nn.Module):
    """Convolution, BatchNorm with non-trivial statistics, residual, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 3)
        self.norm1.running_mean = torch.tensor([0.1, -0.2, 0.3])
        self.norm2.running_var = torch.tensor([0.7, 1.5, 1.1])

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        h = h + F.silu(self.norm2(self.conv2(h)))
        return self.head(h.mean((2, 3)))


class Attention(nn.Module):
    """Token model with tied embedding, a causal block on F.scaled_dot_product_attention and one on nn.MultiheadAttention."""

    def __init__(self, vocabulary: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=h.dtype)
        h = h + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        h = h + F.gelu(self.mlp(h))
        return self.head(h).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def frozen_mlp() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def token_batches() -> list[Any]:
    """Valid-token counts differ from batch to batch."""
    batches = []
    for index, (tokens, targets) in enumerate(zip(labels(SIZES, 7, 5), labels(SIZES, 7, 5, seed=3), strict=True)):
        targets[:, 4 - index :] = -100
        batches.append((tokens, targets))
    return batches


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = model(batch["tokens"])
    total = F.cross_entropy(logits, batch["targets"], reduction="sum")
    return total, (batch["targets"] != -100).sum()


FAMILIES = (
    Family("mlp", mlp, nn.CrossEntropyLoss(), lambda: list(zip(features(SIZES, 5), labels(SIZES, 3), strict=True))),
    Family(
        "mlp-weighted",
        mlp,
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 2.5]), label_smoothing=0.1),
        lambda: list(zip(features(SIZES, 5), labels(SIZES, 3), strict=True)),
    ),
    Family(
        "mlp-squared", mlp, nn.MSELoss(), lambda: list(zip(features(SIZES, 5), features(SIZES, 3, seed=4), strict=True))
    ),
    Family(
        "mlp-sum",
        mlp,
        nn.MSELoss(reduction="sum"),
        lambda: list(zip(features(SIZES, 5), features(SIZES, 3), strict=True)),
    ),
    Family(
        "convnet",
        ConvNet,
        nn.CrossEntropyLoss(),
        lambda: list(zip(features(SIZES, 1, 5, 5), labels(SIZES, 3), strict=True)),
    ),
    Family("transformer", Attention, nn.CrossEntropyLoss(), token_batches),
    Family(
        "lstm",
        Recurrent,
        nn.CrossEntropyLoss(),
        lambda: list(zip(features(SIZES, 4, 3), labels(SIZES, 2), strict=True)),
    ),
    Family(
        "frozen",
        frozen_mlp,
        nn.CrossEntropyLoss(),
        lambda: list(zip(features(SIZES, 5), labels(SIZES, 3), strict=True)),
    ),
    Family(
        "from-loss",
        Attention,
        None,
        lambda: [{"tokens": tokens, "targets": targets} for tokens, targets in token_batches()],
        loss=token_loss,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}


def merged(batches: list[Any]) -> list[Any]:
    """All batches as one."""

    def join(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: join([part[key] for part in parts]) for key in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(join(list(items)) for items in zip(*parts, strict=True))
        return torch.cat(parts)

    return [join(batches)]


def dense_oracle(family: Family) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian on all data as one batch, row by row through torch.autograd on the live model."""
    model, batches = family.model_and_data()
    model = copy.deepcopy(model).eval()
    (batch,) = merged(batches)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if family.loss is not None:
            total, count = family.loss(model, batch)
            loss = total / count
        else:
            assert family.criterion is not None
            criterion = copy.deepcopy(family.criterion)
            if isinstance(criterion, nn.Module):
                criterion = criterion.double()
            loss = criterion(model(batch[0]), batch[1])
        gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters, create_graph=True)])
        rows = [
            torch.cat(
                [
                    part.reshape(-1)
                    for part in torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
                ]
            )
            for entry in gradient
        ]
    return loss.detach(), gradient.detach(), torch.stack(rows)
