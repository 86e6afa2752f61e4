"""A short hash of what is surveyed and how."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from theodolite.problem.identity import architecture, identity

if TYPE_CHECKING:
    from theodolite.problem.problem import Problem


def digest_of(problem: Problem) -> str:
    """Values, architecture, criterion, data, selection and options as one hash, of all ranks.

    Architecture and criterion are what can be read of them (classes, settings, tensors, code), and the loss of the first batch
    to the bit, which sees what cannot, such as a changed ``forward``.

    Cost: one walk over the data without the model, and a forward pass of the first batch.
    """
    with problem.together("hashing the problem"):
        problem.ensure_checked()
        point = problem.point()
        parts = {
            "values": (point.leaves, point.constants, point.buffers),
            "architecture": architecture(problem.model),
            "flags": [module.training for module in problem.model.modules()] if problem.mode == "as is" else [],
            "objective": problem.objective,
            "data": [identity(batch, strict=False) for batch in problem.batches],
            "selection": problem.layout.names,
            "options": (problem.mode, problem.dtype, problem.microbatch, problem.engine, problem.seed),
            "first": problem.evaluate(problem.first_chunk(), point, grad=False),
        }
        found = identity(parts, strict=False)
    assert found is not None
    if problem.ranks.size == 1:
        return found
    return hashlib.sha256(" ".join(problem.ranks.texts(found)).encode()).hexdigest()[: len(found)]
