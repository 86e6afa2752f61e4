"""The samples whose gradients are multiplied: which they are, their losses, groups, and the Gram matrix itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from theodolite.errors import DataError, OperatorError
from theodolite.operators.capture import sample_gram
from theodolite.operators.outputs import outputs_of
from theodolite.operators.stacked import refuse_sharded
from theodolite.problem import Problem
from theodolite.problem.criteria import CrossEntropy
from theodolite.problem.data import split
from theodolite.problem.objective import CriterionObjective, pair
from theodolite.problem.subsets import Drawn, first_samples

# Entries of all Gram matrices of layers together that a record keeps unasked: 8 MiB.
LAYER_ENTRIES = 2**20

Groups = Literal["targets"] | Sequence[Any] | np.ndarray | Tensor | Callable[[Any], Any]


@final
@dataclass(frozen=True, eq=False)
class SampleGradients:
    """Fields of a ``Gradients`` record, notes and cost of the part of the data they are of.

    Args:
        fields: by name.
        notes: what a reader must know.
        share: samples in the Gram matrix over samples of the problem.
    """

    fields: dict[str, Any]
    notes: tuple[str, ...]
    share: float


def sample_gradients(
    problem: Problem,
    *,
    samples: int,
    layers: bool | None,
    groups: Groups | None,
    update: Float[Tensor, " n"] | None,
    seed: int,
) -> SampleGradients:
    """The Gram matrix of the gradients of some samples, with all that a record says of these samples.

    Args:
        problem: the whole.
        samples: how many at most.
        layers: whether to keep a Gram matrix for every layer; None while they are small.
        groups: as for ``gradients``.
        update: a direction to multiply with.
        seed: of the draw.

    Raises:
        OperatorError: per-sample gradients are not defined, or the data is sharded over ranks.
        DataError: groups do not fit the data.
    """
    refuse_sharded(problem)
    part, indices = drawn(problem, samples, seed=seed)
    count, many = part.samples, len(problem.layout.layers)
    keep = many * count**2 <= LAYER_ENTRIES if layers is None else layers
    labels = None if groups is None else _labels(part, groups, indices, problem.samples)
    found = sample_gram(part, layers=keep, directions=None if update is None else update[None])
    losses, el2n = _losses(part)
    norms = found.layer_norms.double().cpu().numpy()
    fields: dict[str, Any] = {
        "gram": found.gram.cpu().numpy(),
        "coverage": np.array([found.coverage.get(name, np.nan) for name in found.methods]),
        "parameters": tuple(found.methods),
        "methods": tuple(found.methods.values()),
        "calibration": float(found.calibration),
        "indices": indices,
        "sample_losses": losses,
        "layer_sample_norms": norms,
        "layer_grams": None if found.layer_grams is None else found.layer_grams.cpu().numpy(),
        "el2n": el2n,
        "update_dots": None if update is None else found.dots[:, 0].cpu().numpy(),
    }
    if labels is not None:
        fields["group_names"], fields["groups"] = labels
    notes = _notes(part, problem, found.finite.cpu().numpy(), indices, keep)
    return SampleGradients(fields, notes, count / problem.samples)


def drawn(problem: Problem, samples: int, *, seed: int) -> tuple[Problem, Int[np.ndarray, " b"]]:
    """The part with that many samples, and their places in the data of this rank, in the order in which the part has them.

    Args:
        problem: the whole.
        samples: how many at most, of all ranks together, each of which gives its share, rounded up.
        seed: of the draw.
    """
    if samples >= problem.samples:
        return problem, np.arange(problem.samples_here)
    sizes = [problem.objective.samples(batch) for batch in problem.batches]
    here = -(-samples * sum(sizes) // problem.samples)
    chosen, _ = first_samples(sizes, count=here, seed=seed + problem.ranks.rank)
    places = torch.arange(sum(sizes)).split(sizes)
    # Drawn with the data, which joins pieces of batches by their shapes.
    numbered = Drawn(list(zip(problem.batches, places, strict=True)), sizes, chosen)
    indices = torch.cat([index for _, index in numbered])
    return problem.only(chosen), indices.numpy()


def _labels(
    part: Problem, groups: Groups, indices: Int[np.ndarray, " b"], whole: int
) -> tuple[tuple[str, ...], Int[np.ndarray, " b"]]:
    """Names of the groups in order, and the place of each sample's among them."""
    if isinstance(groups, str):
        if groups != "targets":
            raise DataError(f"Expected groups 'targets', labels, or a function of a batch; found {groups!r}.")
        values = np.concatenate([_targets(batch) for batch in part.batches])
    elif callable(groups):
        values = _checked(
            np.concatenate([np.atleast_1d(_plain(groups(batch))) for batch in part.batches]), len(indices)
        )
    else:
        values = _checked(_plain(groups), whole)[indices]
    names, places = np.unique(values, return_inverse=True)
    return tuple(str(name) for name in names), places.astype(np.int64)


def _checked(values: np.ndarray, samples: int) -> np.ndarray:
    if values.shape != (samples,):
        raise DataError(
            f"Expected a label of its group for each of {samples:,} samples, found labels of shape {values.shape}. Give one label "
            "for every sample of the problem in the order of its data, or a function from a batch to the labels of its samples."
        )
    return values


def _plain(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _targets(batch: Any) -> np.ndarray:
    targets = pair(batch)[1]
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        found = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise DataError(
            f"Expected one integer target for each sample to group by, found {found}. Give groups= labels, or a function from a "
            "batch to labels."
        )
    return targets.cpu().numpy()


def _losses(part: Problem) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"] | None]:
    """Loss of every sample, scaled so that their mean is the loss; and for a classifier its EL2N."""
    outputs = _outputs(part)
    point, losses, scores, weight = part.point(), [], [], 0.0

    def read(model: torch.nn.Module, batch: Any) -> tuple[Tensor, float, Tensor | None]:
        with torch.no_grad():
            if outputs is None:
                pieces = [part.objective.evaluate(model, piece) for piece in split(batch, 1)]
                return torch.stack([total for total, _ in pieces]), sum(own for _, own in pieces), None
            values, targets = outputs.tensor(model, batch), outputs.targets(batch)
            return (
                outputs.loss.shares(values, targets),
                outputs.loss.weight(values, targets),
                _el2n(outputs.loss, values, targets),
            )

    with part.session():
        for chunk in part.chunks():
            shares, own, score = part.call(partial(read, batch=chunk.batch), point, chunk=chunk.index)
            losses.append(shares.double().cpu())
            weight += own
            scores.append(score)
    divisor = part.total_weight(torch.tensor([weight], dtype=torch.float64))
    known = [score for score in scores if score is not None]
    el2n = torch.cat(known).numpy() if known and len(known) == len(scores) else None
    return (torch.cat(losses) * part.samples / divisor).numpy(), el2n


def _outputs(part: Problem) -> Any:
    """Outputs and criterion where they are known, as they share out the loss in one pass."""
    if isinstance(part.objective, CriterionObjective):
        return outputs_of(part)
    try:
        return outputs_of(part)
    except OperatorError:
        return None


def _el2n(loss: object, logits: Tensor, targets: Tensor) -> Float[Tensor, " b"] | None:
    """‖softmax(z) − onehot(y)‖ where a sample has one class."""
    if not isinstance(loss, CrossEntropy) or logits.dim() != 2 or targets.dim() != 1 or bool((targets < 0).any()):
        return None
    error: Tensor = logits.double().softmax(dim=1)
    error[torch.arange(len(error), device=error.device), targets] -= 1
    norms: Tensor = error.norm(dim=1)
    return norms.cpu()


def _notes(
    part: Problem, whole: Problem, finite: np.ndarray, indices: Int[np.ndarray, " b"], layers: bool
) -> tuple[str, ...]:
    notes = []
    if part is not whole:
        notes.append(f"Gram matrix of {part.samples:,} samples drawn from {whole.samples:,}")
    if not finite.all():
        lost = indices[~finite]
        shown = ", ".join(map(str, lost[:5].tolist())) + (", …" if len(lost) > 5 else "")
        notes.append(
            f"the gradient is NOT finite for {len(lost)} of {part.samples:,} samples ({shown}), which statistics leave out"
        )
    if not layers:
        notes.append("no Gram matrices of layers; ask with layers=True")
    return tuple(notes)
