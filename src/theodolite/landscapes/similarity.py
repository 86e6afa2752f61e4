"""How alike checkpoints represent the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.traveller import Checkpoint, Traveller
from theodolite.operators.outputs import Outputs, outputs_of
from theodolite.problem import Problem
from theodolite.records import Cost, Similarity
from theodolite.records.similarity import FEWEST, cka


def similarity(
    problem: Problem,
    checkpoints: Mapping[str, Checkpoint],
    *,
    module: str | None = None,
    samples: int = 2048,
    blocks: int = 20,
    step: int | None = None,
) -> Similarity:
    """Linear CKA between the outputs of checkpoints, or of one of their modules, on the data of the problem.

    A sample is a row; the other dimensions of what it gives are its features.

    Cost: one forward pass of the samples a checkpoint; their b² numbers for each.

    Args:
        problem: whose data are read.
        checkpoints: by name, each as for ``path``.
        module: name of the module whose outputs are compared, as in ``named_modules()``; the model's by default.
        samples: at most, the first of the data.
        blocks: of samples, each left out once for the error.
        step: optimiser step, kept in the record.

    Returns:
        Debiased CKA of all pairs with errors over samples.

    Raises:
        ProblemError: fewer than two checkpoints, a module that is not there, or outputs that are not one for each sample.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(30, 3), torch.randn(30, 2))])
        >>> turned = {"weight": -2 * model.weight, "bias": model.bias}
        >>> round(similarity(problem, {"a": model, "b": turned}).between("a", "b").value, 6)
        1.0

    References:
        Kornblith, Norouzi, Lee & Hinton, "Similarity of neural network representations revisited" (2019).
    """
    started = time.perf_counter()
    if len(checkpoints) < 2:
        raise ProblemError(f"Expected at least 2 checkpoints to compare, found {len(checkpoints)}.")
    traveller = Traveller(problem)
    features = []
    for checkpoint in checkpoints.values():
        traveller.go(traveller.state_of(checkpoint))
        features.append(features_of(traveller.problem, module=module, samples=samples))
    count = len(checkpoints)
    values, errors, biased = (np.full((count, count), np.nan) for _ in range(3))
    for i, j in [*combinations(range(count), 2), *((i, i) for i in range(count))]:
        found, plain = cka(features[i], features[j], blocks=blocks)
        values[[i, j], [j, i]], errors[[i, j], [j, i]], biased[[i, j], [j, i]] = found.value, found.stderr, plain
    rows = len(features[0])
    return Similarity(
        step=step,
        names=tuple(checkpoints),
        values=values,
        stderrs=errors,
        biased=biased,
        module=module,
        samples=rows,
        blocks=min(blocks, rows // 2),
        cost=Cost(forwards=count * min(1.0, rows / problem.samples), seconds=time.perf_counter() - started),
        notes=() if rows == problem.samples else (f"the first {rows:,} of {problem.samples:,} samples",),
        context=problem.context(),
    )


def features_of(problem: Problem, *, module: str | None, samples: int) -> Float[np.ndarray, "b p"]:
    """What a module, or the model, gives for the first samples of the data, one row a sample.

    Raises:
        ProblemError: there is no such module, it gives no tensor, or one whose first dimension does not count samples.
    """
    if module is not None and module not in dict(problem.model.named_modules()):
        names = [name for name, _ in problem.model.named_modules() if name]
        raise ProblemError(
            f"Expected a module of {type(problem.model).__name__} among {', '.join(names[:8])}{', …' if len(names) > 8 else ''}, "
            f"found {module!r}."
        )
    outputs = outputs_of(problem, caller="Similarity of outputs needs") if module is None else None
    point, rows, count = problem.point(), [], 0
    for chunk in problem.chunks():
        found = problem.call(_reader(problem, chunk.batch, outputs, module), point, chunk=chunk.index)
        if len(found) != chunk.samples:
            raise ProblemError(
                f"Expected one row of features for each of the {chunk.samples} samples of a batch, found {len(found)} from "
                f"{'the model' if module is None else module!r}. Name a module whose first dimension counts samples."
            )
        rows.append(found)
        count += len(found)
        if count >= samples:
            break
    features = np.concatenate(rows)[:samples]
    if len(features) < FEWEST:
        raise ProblemError(f"Expected at least {FEWEST} samples to compare representations on, found {len(features)}.")
    return features


def _reader(
    problem: Problem, batch: Any, outputs: Outputs | None, module: str | None
) -> Callable[[nn.Module], Float[np.ndarray, "b p"]]:
    """Runs the model on a batch and takes the features, flattened."""

    def read(model: nn.Module) -> Float[np.ndarray, "b p"]:
        with torch.no_grad():
            if outputs is not None:
                return _rows(outputs.tensor(model, batch))
            caught: list[Any] = []
            hook = model.get_submodule(module or "").register_forward_hook(lambda *call: caught.append(call[-1]))
            try:
                problem.objective.evaluate(model, batch)
            finally:
                hook.remove()
        return _rows(_tensor(caught, module))

    return read


def _tensor(caught: list[Any], module: str | None) -> Tensor:
    """The last output of a module, the first part of a tuple."""
    found = caught[-1] if caught else None
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor) or not found.dim():
        raise ProblemError(
            f"Expected module {module!r} to give a tensor on every pass, found {type(found).__name__ if caught else 'no call'}."
        )
    return found


def _rows(found: Tensor) -> Float[np.ndarray, "b p"]:
    return np.asarray(found.detach().reshape(len(found), -1).to("cpu", torch.float64).numpy())
