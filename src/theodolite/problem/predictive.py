"""The distribution of targets that a model predicts under its criterion: sampled targets and their scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from theodolite.errors import OperatorError
from theodolite.problem.criteria import BinaryCrossEntropy, CrossEntropy, OutputLoss, SquaredError


class Predictive(ABC):
    """Independent targets with the density of which the criterion is the negative logarithm, at given outputs.

    Class weights, weights of elements and ignored positions are those of the observed targets: they say how often a target
    counts, not what the model predicts.
    """

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """Targets in the form that the criterion takes, ignored where the observed ones are.

        Args:
            generator: of the processor, whatever the device, so that draws are the same on every device.
        """

    @abstractmethod
    def score(self, sampled: Tensor) -> Tensor:
        """∂(−log density of the sampled targets)/∂outputs, times the root of the weight of each target.

        Its second moment is the curvature of the total in the outputs, block by block of ``per_target``.
        """

    @abstractmethod
    def root(self, generator: torch.Generator) -> Tensor:
        """A random vector with the second moment of the score, each target with its expected length at every draw.

        Drawn as predicted, a target that the model is sure of has a score near zero nearly always and a long one hardly
        ever: near a fit no draw of any affordable number shows what the expectation is made of, and their spread is zero too.
        Here targets are drawn in proportion to probability times squared score, the score is divided by what that favours
        it, and its sign is random, as products of different targets must vanish in expectation.
        """

    @abstractmethod
    def spread(self, vector: Tensor) -> Tensor:
        """Variance over draws of (sᵀu)², in closed form, for the score s of each target and its part u of a vector."""

    def per_target(self, values: Tensor) -> Tensor:
        """Values summed over the outputs that describe one target, that dimension kept at 1."""
        return values


def predictive(loss: OutputLoss, outputs: Tensor, targets: Any) -> Predictive:
    """What the model predicts: classes for cross-entropy, bits for the binary one, a Gaussian for squared error.

    Raises:
        OperatorError: the criterion is not the negative logarithm of a density that is known.
    """
    if isinstance(loss, CrossEntropy):
        return Categorical(loss, outputs, targets)
    if isinstance(loss, BinaryCrossEntropy):
        return Bernoulli(loss, outputs, targets)
    if isinstance(loss, SquaredError):
        return Gaussian(outputs)
    raise no_density(loss)


def has_density(loss: OutputLoss) -> bool:
    """Whether the criterion is the negative logarithm of a known density."""
    return isinstance(loss, CrossEntropy | BinaryCrossEntropy | SquaredError)


def no_density(loss: OutputLoss) -> OperatorError:
    """The error for a criterion without a predictive distribution."""
    name = type(getattr(loss, "criterion", loss)).__name__
    return OperatorError(
        "Expected a criterion that is the negative logarithm of a known density (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, "
        f"nn.MSELoss), found {name}: what the model predicts under it is not known. Use GGN(problem), or "
        "Fisher(problem, kind='empirical')."
    )


class Categorical(Predictive):
    """One class for each position, from the softmax of the logits (B, C, …)."""

    def __init__(self, loss: CrossEntropy, outputs: Tensor, targets: Tensor) -> None:
        logits = outputs.detach()
        self._logits, self._p = logits, logits.softmax(dim=1)
        weights = loss.position_weights(logits, targets)
        self._root = None if weights is None else weights.sqrt().unsqueeze(1)
        self._ignored = None if targets.is_floating_point() else targets.long() == loss.ignore_index
        self._ignore_index = loss.ignore_index

    def sample(self, generator: torch.Generator) -> Tensor:
        steps = self._p.movedim(1, -1).double().cumsum(-1)
        draws = torch.rand((*steps.shape[:-1], 1), generator=generator, dtype=torch.float64).to(steps.device)
        classes = torch.searchsorted(steps, draws * steps[..., -1:], right=True)[..., 0].clamp_(max=steps.shape[-1] - 1)
        return classes if self._ignored is None else classes.masked_fill(self._ignored, self._ignore_index)

    def score(self, sampled: Tensor) -> Tensor:
        classes = sampled if self._ignored is None else sampled.masked_fill(self._ignored, 0)
        score = self._p.scatter_add(
            1, classes.unsqueeze(1), self._p.new_full((1,), -1.0).expand_as(classes.unsqueeze(1))
        )
        return score if self._root is None else score * self._root

    def root(self, generator: torch.Generator) -> Tensor:
        p = self._logits.double().softmax(dim=1)
        likeliest = p.argmax(dim=1, keepdim=True)
        # The likeliest class: what it leaves is the sum of the others, as 1 − p would be rounding where it is sure.
        others = p.scatter(1, likeliest, 0.0)
        rest, squares = others.sum(1, keepdim=True), others.square().sum(1, keepdim=True)
        sure = p.gather(1, likeliest)
        # ‖s_y‖² = (1 − p_y)² + Σ_{j≠y} p_j², which is 1 − 2p_y + Σ p².
        shares = others.mul_(1 + squares + sure.square() - 2 * p)
        shares.scatter_(1, likeliest, sure * (rest.square() + squares))
        steps = shares.movedim(1, -1).cumsum(-1)
        total = steps[..., -1:]  # Σ p‖s‖², the trace of the curvature at each position
        draws = torch.rand((*steps.shape[:-1], 1), generator=generator, dtype=torch.float64).to(steps.device)
        found = torch.searchsorted(steps, draws * total, right=True).clamp_(max=steps.shape[-1] - 1).movedim(-1, 1)
        chance, share = p.gather(1, found), shares.gather(1, found)
        score = p.scatter_(1, found, -torch.where(found == likeliest, rest, 1 - chance))
        scale = (total.movedim(-1, 1) * chance / share.where(share > 0, 1.0)).sqrt() * _signs(share, generator)
        root = (scale * score).to(self._p)
        return root if self._root is None else root * self._root

    def spread(self, vector: Tensor) -> Tensor:
        # sᵀu is pᵀu − u_y times a root: its square has the central moments of u under p.
        squares = (vector - (self._p * vector).sum(1, keepdim=True)).square()
        variance = (self._p * squares).sum(1, keepdim=True)
        spread = (self._p * (squares - variance).square()).sum(1, keepdim=True)
        return spread if self._root is None else spread * self._root.pow(4)

    def per_target(self, values: Tensor) -> Tensor:
        return values.sum(dim=1, keepdim=True)


class Bernoulli(Predictive):
    """One bit for each logit."""

    def __init__(self, loss: BinaryCrossEntropy, outputs: Tensor, targets: Tensor) -> None:
        self._logits, self._p = outputs.detach(), outputs.detach().sigmoid()
        self._root = loss.element_weights(outputs.detach(), targets).sqrt()

    def sample(self, generator: torch.Generator) -> Tensor:
        draws = torch.rand(self._p.shape, generator=generator, dtype=torch.float64).to(self._p.device)
        return (draws < self._p).to(self._p)

    def score(self, sampled: Tensor) -> Tensor:
        return self._root * (self._p - sampled)

    def root(self, generator: torch.Generator) -> Tensor:
        logits = self._logits.double()  # in which 1 − p is a sigmoid of its own
        deviation = (logits.sigmoid() * (-logits).sigmoid()).sqrt()
        return self._root * (deviation * _signs(deviation, generator)).to(self._p)

    def spread(self, vector: Tensor) -> Tensor:
        # (p − y)² is (1 − p)² with probability p and p² with 1 − p.
        return self._p * (1 - self._p) * (1 - 2 * self._p).square() * (self._root * vector).pow(4)


class Gaussian(Predictive):
    """A number for each output, with variance ½: its negative log density is the squared error and a constant."""

    def __init__(self, outputs: Tensor) -> None:
        self._mean = outputs.detach()

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self._mean.shape, generator=generator, dtype=torch.float64).to(self._mean)
        return self._mean + math.sqrt(0.5) * noise

    def score(self, sampled: Tensor) -> Tensor:
        return 2 * (self._mean - sampled)

    def root(self, generator: torch.Generator) -> Tensor:
        return math.sqrt(2.0) * _signs(self._mean, generator)

    def spread(self, vector: Tensor) -> Tensor:
        return 8 * vector.pow(4)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """±1 at random in each place."""
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
