"""The three models that benchmarks run on: an MLP, a BatchNorm ResNet on digits, and a small transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.demo import digits, resnet

Case = tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]


class Transformer(nn.Module):
    """Four pre-norm layers on characters, width 128: 0.8 M parameters."""

    def __init__(
        self, vocabulary: int = 96, width: int = 128, depth: int = 4, heads: int = 4, context: int = 64
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).transpose(1, 2)  # (B, classes, T), as cross-entropy takes it


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


def mlp() -> Case:
    """784-512-512-10, 670 k parameters, 512 random inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, nn.CrossEntropyLoss(), [(torch.randn(512, 784), torch.randint(10, (512,)))]


def digits_resnet(samples: int = 1024, batch: int = 256) -> Case:
    """77,754 parameters, real digits, evaluation mode."""
    torch.manual_seed(0)
    inputs, targets = digits()
    model = resnet()
    return (
        model,
        nn.CrossEntropyLoss(),
        list(zip(inputs[:samples].split(batch), targets[:samples].split(batch), strict=True)),
    )


def transformer() -> Case:
    """0.83 M parameters, 16 sequences of 64 characters."""
    torch.manual_seed(0)
    tokens = torch.randint(96, (16, 65))
    return Transformer(), nn.CrossEntropyLoss(), [(tokens[:, :-1], tokens[:, 1:])]
