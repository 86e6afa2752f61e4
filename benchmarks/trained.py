"""The three trained models that the curvature benchmark surveys: an MLP, a BatchNorm ResNet, a character transformer."""

from __future__ import annotations

import pydoc_data.topics

import torch
from models import Case, Transformer
from torch import Tensor, nn

from theodolite.demo import digits, resnet

SAMPLES = 1024


def mlp() -> Case:
    """64-330-330-10 with tanh on digits, 133,990 parameters, 1,024 images in four batches."""
    torch.manual_seed(0)
    inputs, targets = digits()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 330), nn.Tanh(), nn.Linear(330, 330), nn.Tanh(), nn.Linear(330, 10)
    )
    return _trained(model, inputs[:SAMPLES], targets[:SAMPLES], batch=256, steps=60)


def digits_resnet() -> Case:
    """77,754 parameters on digits, evaluation mode, 1,024 images in four batches."""
    torch.manual_seed(0)
    inputs, targets = digits()
    return _trained(resnet(), inputs[:SAMPLES], targets[:SAMPLES], batch=256, steps=40)


def transformer() -> Case:
    """1.03 M parameters, width 144, on 16 sequences of 64 characters of English prose in two batches."""
    torch.manual_seed(0)
    text = "".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(31, 126) - 31
    starts = torch.arange(16) * 997
    windows = torch.stack([codes[start : start + 65] for start in starts.tolist()])
    return _trained(Transformer(width=144), windows[:, :-1], windows[:, 1:], batch=8, steps=40)


def _trained(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch: int, steps: int) -> Case:
    """The model after a few steps of Adam over its batches, in evaluation mode."""
    criterion = nn.CrossEntropyLoss()
    batches = list(zip(inputs.split(batch), targets.split(batch), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for step in range(steps):
        chosen, wanted = batches[step % len(batches)]
        optimizer.zero_grad()
        criterion(model(chosen), wanted).backward()
        optimizer.step()
    return model.eval().requires_grad_(True), criterion, batches
