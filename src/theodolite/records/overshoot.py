"""Cockpit's α: where between two points a step ended, seen by losses and slopes that are noisy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from theodolite.records.estimate import Estimate
from theodolite.records.gradients import Gradients
from theodolite.records.jackknife import jackknife_stderr

# f(0), f(1), f'(0), f'(1) of w0 + w1·τ + w2·τ².
DESIGN = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


def overshoot(before: Gradients, after: Gradients) -> Estimate:
    """α of the step between two records of the same samples: 0 where it ended in the minimum along itself, positive beyond it.

    A parabola w0 + w1·τ + w2·τ² is fitted to losses and slopes at both ends, each weighted by its own noise; α = −2·w2/w1 − 1, so
    that −1 is no step and +1 the far side at the same height; −1 too where the parabola is not convex. Any optimiser will do.

    Args:
        before: of the samples before the step, with ``update=d``, the step that was taken.
        after: of the same samples at θ + d, with the same ``update=d``.

    Returns:
        α with its error by leaving samples out at both ends together.

    Raises:
        ValueError: a record lacks ``update_dots`` or ``sample_losses``, or they are of different samples.

    Example:
        >>> import torch
        >>> from theodolite.measures import gradients
        >>> from theodolite.problem import Problem
        >>> model, data = torch.nn.Linear(1, 1, bias=False), [(torch.ones(8, 1), torch.zeros(8, 1))]
        >>> problem = Problem(model, torch.nn.MSELoss(), data)
        >>> d = -1.5 * model.weight.detach().flatten()  # to −½θ: over the minimum at 0 by half of the way to it
        >>> before = gradients(problem, update=d)
        >>> with torch.no_grad(): _ = model.weight.add_(d)
        >>> round(overshoot(before, gradients(problem, update=d)).value, 3)
        0.5

    References:
        Schneider, Dangel & Hennig, "Cockpit: a practical debugging tool for the training of deep neural networks" (2021).
    """
    values = np.stack([*_read(before), *_read(after)])[[0, 2, 1, 3]]
    if before.indices is not None and after.indices is not None and not np.array_equal(before.indices, after.indices):
        raise ValueError("Expected records of the same samples at both ends of the step, found others. Use one seed=.")
    values = values[:, np.isfinite(values).all(axis=0)]
    count = values.shape[1]
    if count < 3:
        return Estimate(float("nan"), float("nan"))
    with np.errstate(all="ignore"):
        variances = values.var(axis=1, ddof=1) / count
        whole = _alpha(values.mean(axis=1), variances)
        left_out = (values.sum(axis=1, keepdims=True) - values) / (count - 1)
        without = np.array([_alpha(means, variances) for means in left_out.T])
    stderr = jackknife_stderr(without, whole=np.asarray(whole), weights=np.ones(count))
    return Estimate(whole, float(stderr), count - 1)


def _read(record: Gradients) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    if record.sample_losses is None or record.update_dots is None:
        raise ValueError(
            "Expected Gradients records with sample_losses and update_dots, found one without. Measure both ends of the step with "
            "gradients(problem, update=d)."
        )
    return record.sample_losses, record.update_dots


def _alpha(means: Float[np.ndarray, " 4"], variances: Float[np.ndarray, " 4"]) -> float:
    # Without noise all four weigh the same; one that has none of several weighs most.
    least = variances[variances > 0].min(initial=np.inf)
    scale = 1 / np.sqrt(np.maximum(variances, 1e-12 * least)) if np.isfinite(least) else np.ones(4)
    _, slope, curvature = np.linalg.lstsq(DESIGN * scale[:, None], means * scale, rcond=None)[0].tolist()
    if not curvature > 0 or slope == 0:
        return -1.0 if slope != 0 or curvature <= 0 else float("inf")
    return float(-2 * curvature / slope - 1)
