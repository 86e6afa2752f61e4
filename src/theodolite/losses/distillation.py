"""Losses that follow a teacher, a class mean or the model's own past: distillation, feature norm, trajectories, collapse."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, reduced, widened
from theodolite.losses.numerics import safe_norm, unit
from theodolite.losses.registry import loss, module_of


@loss("other", temperature="(0, ∞)")
def kd(
    student: Float[Tensor, "b c"],
    teacher: Float[Tensor, "b c"],
    *,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Distillation T² KL(softmax(z_t/T) ‖ softmax(z_s/T)); the teacher is held constant.

    Its gradient in the student's logits is T(p_s − p_t).

    Args:
        student: logits.
        teacher: logits.
        temperature: T.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> kd(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """
    log_s, log_t = _log_softmax(student, temperature), _log_softmax(teacher.detach(), temperature)
    divergence = torch.linalg.vecdot(log_t.exp(), log_t - log_s)
    return temperature**2 * reduced(divergence, reduction)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    rows = widened(logits)
    return F.log_softmax(rows if temperature == 1 else rows / temperature, 1)


KDLoss = module_of(kd, "KDLoss")


@loss("other", temperature="(0, ∞)", lam="[0, ∞)")
def trajectory(
    logits: Float[Tensor, "b c"],
    past: Float[Tensor, "b c"],
    *,
    temperature: float = 5.0,
    lam: float = 0.3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Sharpness-aware training for free: λ T² KL to the model's own predictions some epochs (or an average) ago.

    SAF takes the logits of the same samples from a :class:`LogitHistory`, MESA those of the averaged weights (λ = 0.8).
    Added to the loss; its gradient in the logits is λT(softmax(z/T) − p_past). The temperature form is that of :func:`kd`.

    Args:
        logits: now.
        past: then, held constant.
        temperature: T.
        lam: λ.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> trajectory(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)

    References:
        Du et al. 2022, "Sharpness-Aware Training for Free".
    """
    return lam * kd(logits, past, temperature=temperature, reduction=reduction)


TrajectoryLoss = module_of(trajectory, "TrajectoryLoss")


class LogitHistory(nn.Module):
    """The logits of every training sample over the last epochs, addressed by sample.

    Cost: samples × classes × (delay + 1) numbers.

    Args:
        samples: size of the training set.
        classes: C.
        delay: how many epochs ago is recalled.

    References:
        Du et al. 2022, "Sharpness-Aware Training for Free".
    """

    logits: Tensor

    def __init__(self, samples: int, classes: int, *, delay: int = 3) -> None:
        super().__init__()
        self.delay = delay
        self.register_buffer("logits", torch.zeros(delay + 1, samples, classes))

    def record(self, logits: Float[Tensor, "b c"], index: Int[Tensor, " b"], *, epoch: int) -> None:
        """Keep the logits of these samples in this epoch."""
        self.logits[epoch % (self.delay + 1), index] = logits.detach().to(self.logits)

    def recall(self, index: Int[Tensor, " b"], *, epoch: int) -> Float[Tensor, "b c"]:
        """Return the logits of these samples ``delay`` epochs before this one.

        Raises:
            ValueError: if there was no such epoch.
        """
        if epoch < self.delay:
            raise ValueError(f"Nothing was recorded {self.delay} epochs before epoch {epoch}; start at {self.delay}.")
        return self.logits[(epoch - self.delay) % (self.delay + 1), index]


@loss("other")
def norm_and_direction(
    student: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    centre: Float[Tensor, "b k"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Distil norm and direction of features: 1 − ⟨s, ē⟩/max(|s|, |t|), ē the unit teacher mean of the sample's class.

    0 iff the student points along the class mean and is at least as long as the teacher.

    Args:
        student: features s.
        teacher: features t, held constant.
        centre: teacher's mean feature of each sample's class.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The reduced loss.

    Example:
        >>> norm_and_direction(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor(0.)

    References:
        Wang et al. 2023, "Improving Knowledge Distillation via Regularizing Feature Norm and Direction".
    """
    s, t = widened(student), widened(teacher).detach()
    along = (s * unit(widened(centre).detach())).sum(1)
    return reduced(1 - along / torch.maximum(safe_norm(s), safe_norm(t)).clamp(min=1e-12), reduction)


NormAndDirectionLoss = module_of(norm_and_direction, "NormAndDirectionLoss")


@loss("other")
def ridg(
    features: Float[Tensor, "b k"],
    weights: Float[Tensor, "c k"],
    target: Int[Tensor, " b"],
    bank: Float[Tensor, "c c k"],
) -> Float[Tensor, ""]:
    """Rationale invariance: the element-wise contributions W ⊙ f to all logits stay near their class's running mean.

    Args:
        features: inputs of the head.
        weights: of the head, one row a class.
        target: class indices.
        bank: running mean of W ⊙ f for each class, see :func:`updated_bank`; held constant.

    Returns:
        Σ over classes present of the mean squared distance, over C; add it with weight 0.01.

    Example:
        >>> ridg(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([0]), torch.ones(2, 2, 2))
        tensor(0.)

    References:
        Chen et al. 2023, "Domain Generalization via Rationale Invariance".
    """
    rationale = widened(weights) * widened(features)[:, None]
    distance = (rationale - bank.detach()[target]).square().sum((1, 2))
    counts = torch.bincount(target, minlength=len(weights)).clamp(min=1).to(distance.dtype)
    return (distance / counts[target]).sum() / len(weights)


RIDGLoss = module_of(ridg, "RIDGLoss")


def updated_bank(
    bank: Float[Tensor, "c c k"],
    features: Float[Tensor, "b k"],
    weights: Float[Tensor, "c k"],
    target: Int[Tensor, " b"],
    *,
    momentum: float = 0.001,
) -> Float[Tensor, "c c k"]:
    """Return the running means of :func:`ridg` after a batch; classes without a sample keep theirs."""
    moved = bank.clone()
    for label in target.unique():
        rationale = (weights.detach() * features.detach()[target == label][:, None]).mean(0)
        moved[label] = (1 - momentum) * bank[label] + momentum * rationale
    return moved


@loss("embeddings")
def class_compactness(features: Float[Tensor, "b k"], target: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean squared distance of the features to their class mean in the batch (the first collapse property as a loss).

    Args:
        features: of the last layer.
        target: class indices.

    Returns:
        The loss of the whole batch.

    Example:
        >>> class_compactness(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]))
        tensor(1.)

    References:
        Papyan et al. 2020, "Prevalence of neural collapse during the terminal phase of deep learning training".
    """
    h = widened(features)
    same = (target[:, None] == target[None]).to(h.dtype)
    return (h - same @ h / same.sum(1, keepdim=True)).square().sum(1).mean()


ClassCompactnessLoss = module_of(class_compactness, "ClassCompactnessLoss")


@loss("other")
def class_separation(means: Float[Tensor, "c k"]) -> Float[Tensor, ""]:
    """Minus the mean over classes of the angle to the nearest other class, of globally centred class means.

    Least, −arccos(−1/(C − 1)), at a simplex (the second collapse property as a loss).

    Args:
        means: one a class.

    Returns:
        Minus an angle in radians.

    Example:
        >>> class_separation(torch.eye(3))
        tensor(-2.0944)

    References:
        Papyan et al. 2020, "Prevalence of neural collapse during the terminal phase of deep learning training".
    """
    centred = unit(widened(means) - widened(means).mean(0))
    cosines = centred @ centred.T
    apart = cosines.masked_fill(torch.eye(len(means), dtype=torch.bool, device=means.device), -1.0).amax(1)
    # arccos has an infinite slope at ±1: coinciding or opposite means are held a little off
    return -torch.arccos(apart.clamp(-1 + 1e-7, 1 - 1e-7)).mean()


ClassSeparationLoss = module_of(class_separation, "ClassSeparationLoss")
