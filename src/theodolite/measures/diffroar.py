"""DiffROAR: retrain on the inputs that an attribution ranks highest, and on those it ranks lowest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.records import Cost, DiffRoar

Fit = Callable[[Tensor, Tensor, int], nn.Module]
Attribution = Callable[[nn.Module, Tensor, Tensor], Tensor]
Data = tuple[Float[Tensor, "b *shape"], Int[Tensor, " b"]]


def loss_gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> Float[Tensor, "b *shape"]:
    """|∇_x| of the cross-entropy of every sample, the attribution that DiffROAR was made to judge."""
    leaf = inputs.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), targets, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0].abs()


def diffroar(
    fit: Fit,
    train: Data,
    test: Data,
    *,
    attribution: Attribution = loss_gradients,
    fractions: Sequence[float] = (0.1, 0.25, 0.5),
    fill: float | Tensor | None = None,
    repeats: int = 3,
    seed: int = 0,
    step: int | None = None,
) -> DiffRoar:
    """Accuracy of models retrained on the top-ranked inputs of every sample less that on the bottom-ranked.

    A positive score says that the attribution points to what a model can learn from. Attributions are those of a model trained on
    the whole inputs, with the true labels on both sets.

    Cost: 1 + 2·fractions·repeats trainings.

    Args:
        fit: from (inputs, targets, seed) to a model trained from new, in eval mode.
        train: inputs and class indices.
        test: the same, of other samples.
        attribution: from (model, inputs, targets) to scores in the shape of the inputs, larger where more important.
        fractions: of the inputs of each sample that are kept, exactly ⌈fraction·d⌉ of d.
        fill: what the others become; None takes the mean of the training inputs.
        repeats: trainings for each fraction and side.
        seed: of the first training.
        step: optimiser step, kept in the record.

    Raises:
        ProblemError: a fraction or the number of repeats makes no sense, or the attribution has another shape than the inputs
            or is not finite.

    Example:
        >>> def fit(inputs, targets, seed):  # nearest class mean
        ...     means = torch.stack([inputs[targets == c].mean(0) for c in range(2)])
        ...     model = torch.nn.Linear(inputs.shape[1], 2)
        ...     model.load_state_dict({"weight": means, "bias": -0.5 * means.square().sum(1)})
        ...     return model.eval()
        >>> targets = torch.arange(200) % 2
        >>> inputs = torch.randn(200, 8) + torch.nn.functional.pad(3.0 * targets[:, None], (0, 7))
        >>> first = lambda model, inputs, targets: torch.arange(8.0, 0.0, -1).expand_as(inputs)
        >>> score = diffroar(fit, (inputs, targets), (inputs, targets), attribution=first, fractions=[0.1], repeats=1).scores[0]
        >>> score.value > 0.2
        True

    References:
        Shah, Jain & Netrapalli, "Do input gradients highlight discriminative features?" (2021).
    """
    started = time.perf_counter()
    _refuse(fractions, repeats)
    middle = train[0].mean(0) if fill is None else torch.as_tensor(fill, dtype=train[0].dtype, device=train[0].device)
    base = fit(*train, seed)
    scores = [_checked(attribution(base, inputs, targets), inputs) for inputs, targets in (train, test)]
    sides: dict[str, list[np.ndarray]] = {"top": [], "bottom": []}
    for place, fraction in enumerate(fractions):
        for side in ("top", "bottom"):
            (trained, tested) = (
                torch.where(kept_inputs(score, fraction=fraction, side=side), inputs, middle)
                for score, (inputs, _) in zip(scores, (train, test), strict=True)
            )
            seeds = range(seed + 1 + place * repeats, seed + 1 + (place + 1) * repeats)
            models = (fit(trained, train[1], each) for each in seeds)
            sides[side].append(np.stack([_correct(model, tested, test[1]) for model in models]))
    found = {side: np.stack(runs) for side, runs in sides.items()}
    return DiffRoar(
        step=step,
        cost=Cost(seconds=time.perf_counter() - started),
        seed=seed,
        context={"samples": len(train[0]), "trainings": 1 + 2 * len(fractions) * repeats},
        fractions=np.array(fractions, dtype=np.float64),
        top=found["top"].mean(axis=1),
        bottom=found["bottom"].mean(axis=1),
        top_runs=found["top"].mean(axis=2),
        bottom_runs=found["bottom"].mean(axis=2),
        attribution=getattr(attribution, "__name__", type(attribution).__name__),
    )


def kept_inputs(
    scores: Float[Tensor, "b *shape"], *, fraction: float, side: Literal["top", "bottom"]
) -> Bool[Tensor, "b *shape"]:
    """Exactly ⌈fraction·d⌉ entries of each sample: those of the largest scores, or of the smallest; ties by position.

    Example:
        >>> kept_inputs(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), fraction=0.5, side="top").tolist()
        [[False, True, True, False]]
    """
    flat = scores.reshape(len(scores), -1)
    count = math.ceil(round(fraction * flat.shape[1], 9))  # 0.07 · 100 is 7.000000000000001
    order = flat.argsort(dim=1, descending=side == "top", stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).reshape(scores.shape)


def _correct(model: nn.Module, inputs: Tensor, targets: Tensor) -> Float[np.ndarray, " t"]:
    with torch.no_grad():
        return np.asarray((model(inputs).argmax(1) == targets).double().cpu())


def _refuse(fractions: Sequence[float], repeats: int) -> None:
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ProblemError(f"Expected fractions between 0 and 1, found {tuple(fractions)}.")
    if repeats < 1:
        raise ProblemError(f"Expected at least 1 training for each side, found repeats={repeats}.")


def _checked(scores: Tensor, inputs: Tensor) -> Tensor:
    if scores.shape != inputs.shape:
        raise ProblemError(
            f"Expected attributions in the shape of the inputs, {tuple(inputs.shape)}, found {tuple(scores.shape)}. Return one "
            "score for each entry of each sample."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ProblemError(
            f"Expected finite attributions, found {int((~torch.isfinite(scores)).sum()):,} entries that are not. They have no rank."
        )
    return scores.detach()
