"""The main job on real data: a ResNet trained on digits at a sound and at a diverging learning rate, surveyed and reported."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a projection where the shape changes.

    Args:
        inside: input channels.
        outside: output channels; more than ``inside`` halves the resolution.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = 1 if inside == outside else 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Images in, images out."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


def resnet(classes: int = 10) -> nn.Sequential:
    """A BatchNorm ResNet for 8×8 images of one channel, 77,754 parameters for ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ResidualBlock(16, 16),
        ResidualBlock(16, 32),
        ResidualBlock(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def digits() -> tuple[Float[Tensor, "b 1 8 8"], Int[Tensor, " b"]]:
    """The 1,797 handwritten digits of scikit-learn, scaled to [0, 1], in a fixed shuffled order.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('The demo needs scikit-learn: pip install "theodolite[demo]".') from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0
    return inputs[order], torch.tensor(labels, dtype=torch.int64)[order]
