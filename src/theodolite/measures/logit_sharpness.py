"""Rise of the cross-entropy when the logits are disturbed within a box."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import OperatorError, ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import ChunkMeans, context_with_chunks
from theodolite.operators.outputs import outputs_of
from theodolite.problem import Chunk, Problem
from theodolite.problem.arguments import one_or_several, real
from theodolite.problem.criteria import CrossEntropy
from theodolite.records import Cost, Sharpness


def logit_sharpness(
    problem: Problem, *, radius: float | int | Sequence[float | int] = (5e-4, 1e-3), step: int | None = None
) -> Sharpness:
    """Rise of the loss when every logit z moves by at most ε(|z| + 1), the worst case in closed form.

    Low confidence: a reading of the sharpness for autoregressive language models of Lee et al. from its abstract, as Keskar's box
    in the space of logits. The loss is highest where the logit of the target falls and all others rise by as much as they may.

    Cost: one forward pass.

    Args:
        problem: cross-entropy with class indices, without class weights and label smoothing; or ``from_loss`` of a model of
            transformers and batches that have ``labels``.
        radius: ε, one or several.
        step: optimiser step, kept in the record.

    Returns:
        A record named ``"logits"``; rises are means over valid targets.

    Raises:
        OperatorError: the criterion is another, or the outputs are not known.
        ProblemError: a radius is not positive.

    Example:
        >>> inputs, targets = torch.randn(32, 5), torch.randint(3, (32,))
        >>> problem = Problem(nn.Linear(5, 3), nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> bool(logit_sharpness(problem).rises[1] > 0)
        True

    References:
        Lee, Bae, Kim, Yang & Lee, "To FP8 and back again: quantifying reduced precision effects on LLM training stability"
        (2024), arXiv:2405.18710.
    """
    started = time.perf_counter()
    surveyed(problem)
    one_or_several(real, radius=radius)
    radii = [float(radius)] if isinstance(radius, int | float) else [float(each) for each in radius]
    if not radii or not all(np.isfinite(each) and each > 0 for each in radii):
        raise ProblemError(f"Expected one or several positive radii, found radius={radius!r}.")
    outputs, point = outputs_of(problem), problem.point()
    loss = outputs.loss
    if not isinstance(loss, CrossEntropy) or loss.class_weight is not None or loss.label_smoothing:
        raise OperatorError(
            f"Expected nn.CrossEntropyLoss without class weights and label smoothing, found {loss!r}. Use sharpness(problem, "
            "kind='keskar'), which works in the space of the parameters."
        )

    def totals(model: nn.Module, chunk: Chunk) -> list[float]:
        with torch.no_grad():
            logits, targets = outputs.tensor(model, chunk.batch).double(), outputs.targets(chunk.batch)
        if targets.is_floating_point():
            raise OperatorError(
                "Expected class indices as targets, found probabilities, whose worst case has no closed form."
            )
        targets = targets.long()
        here = F.cross_entropy(logits, targets, ignore_index=loss.ignore_index, reduction="sum")
        found = _rises(logits, targets, radii, ignore=loss.ignore_index)
        return [*found, float(here), loss.weight(logits, targets)]

    with problem.session(), problem.together("logits"):
        rows = [problem.call(partial(totals, chunk=chunk), point, chunk=chunk.index) for chunk in problem.chunks()]
    table = problem.ranks.join(torch.tensor(rows, dtype=torch.float64))
    weights = table[:, -1]
    divisor = problem.total_weight(weights)
    rises, here = (ChunkMeans(part.numpy(), weights.numpy(), divisor) for part in (table[:, :-2], table[:, -2]))
    return Sharpness(
        step=step,
        cost=Cost(forwards=1.0, seconds=time.perf_counter() - started),
        context=context_with_chunks(problem, here),
        name="logits",
        neighbourhood="|Δz| ≤ radius·(|z| + 1)",
        radii=np.array(radii),
        rises=rises.value,
        stderrs=rises.stderr,
        draw_stderrs=np.full(len(radii), np.nan),
        first_order=np.full(len(radii), np.nan),
        loss=float(here.value),
        loss_stderr=float(here.stderr),
        steps=0,
        draws=0,
    )


def _rises(logits: Float[Tensor, "b c *rest"], targets: Tensor, radii: Sequence[float], *, ignore: int) -> list[float]:
    """Summed rise of the cross-entropy for each radius."""
    valid = targets != ignore
    on_target = F.one_hot(targets.where(valid, torch.zeros_like(targets)), logits.shape[1]).movedim(-1, 1).bool()
    worst = torch.where(on_target, -1.0, 1.0) * (logits.abs() + 1)
    before = F.cross_entropy(logits, targets, ignore_index=ignore, reduction="none")
    found = []
    for radius in radii:
        after = F.cross_entropy(logits + radius * worst, targets, ignore_index=ignore, reduction="none")
        found.append(float((after - before).sum()))
    return found
