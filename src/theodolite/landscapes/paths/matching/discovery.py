"""The symmetry of a model, traced from a forward pass and tried on its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.landscapes.paths.matching.call import tensors_of
from theodolite.landscapes.paths.matching.marks import Marker, support
from theodolite.landscapes.paths.matching.symmetry import Group, Place, groups_of, left_of, permuted
from theodolite.landscapes.paths.matching.tracer import Double, Tracer
from theodolite.landscapes.paths.matching.units import Units
from theodolite.landscapes.paths.traveller import State, Traveller
from theodolite.problem import Problem
from theodolite.problem.data import split
from theodolite.problem.guard import seed_everything
from theodolite.problem.objective import CriterionObjective
from theodolite.problem.ranks import Facts

TOL = 1e-10  # of the largest output, in double precision
SAMPLES = 8


@dataclass(frozen=True)
class Symmetry:
    """The groups of permutations that leave a model's function as it is.

    Args:
        groups: each found to leave the outputs as they are.
        sizes: of every axis that has units.
        notes: what was left out, and why.
        traveller: the model in double precision.
        batch: data on which outputs are compared.
        outputs: of the state that is permuted.
        tol: largest difference of outputs, as a share of the largest.
    """

    groups: tuple[Group, ...]
    sizes: Mapping[Place, int]
    notes: tuple[str, ...]
    traveller: Traveller
    batch: Any
    outputs: tuple[Tensor, ...]
    tol: float = TOL

    def error(self, state: Mapping[str, Tensor]) -> float:
        """Largest difference of the outputs of a state from those of the unpermuted one, as a share of the largest; on all ranks.

        Cost: a forward pass of a few samples.
        """
        ranks = self.traveller.problem.ranks
        with ranks.step("a comparison of outputs", lambda: Facts({}, {}, {})):
            found = _outputs(self.traveller, state, self.batch)
            scale = max(float(output.abs().max()) for output in self.outputs)
            differences = [float((one - other).abs().max()) for one, other in zip(found, self.outputs, strict=True)]
            # NumPy's, as Python's max drops a NaN that is not the first.
            largest = float(np.max(differences)) / scale if scale else float(np.max(differences))
        return float(np.max(ranks.join(torch.tensor([largest], dtype=torch.float64)).numpy()))


def discovered(problem: Problem, state: State, *, seed: int) -> Symmetry:
    """Trace the symmetry of the model of a problem, and try every group of it on a state.

    Cost: two forward passes of a few samples in double precision, and one for each group.

    Args:
        problem: gives model and data.
        state: parameters and buffers at which outputs are compared.
        seed: of the permutations that are tried.
    """
    traveller = Traveller(problem.replace(dtype=torch.float64, mode="eval", microbatch=None))
    wide = traveller.state_of(state)
    batch = _few(traveller.problem)
    traveller.go(wide)
    traced = _traced(traveller, batch)
    sizes = traced.sizes
    notes = [
        f"units that pass through {name} stay where they are: its symmetry is not known"
        for name in sorted(traced.unknown)
    ]
    if traced.left:
        places = ", ".join(f"{name} axis {axis}" for name, axis in traced.left)
        notes.append(
            f"{places} stay where they are: they meet hidden values in the order of data, or of operations that are not followed"
        )
    symmetry = Symmetry(tuple(traced.groups), sizes, (), traveller, batch, _outputs(traveller, wide, batch))
    generator, kept = np.random.default_rng(seed), []
    for group in traced.groups:
        error = symmetry.error(permuted(wide, group.random(generator, sizes)))
        if error <= TOL:
            kept.append(group)
        else:
            notes.append(
                f"{group.name} stay where they are: a permutation changed the outputs by {error:.2g} of the largest"
            )
    return Symmetry(tuple(kept), sizes, tuple(notes), traveller, batch, symmetry.outputs)


@dataclass(frozen=True)
class _Traced:
    groups: list[Group]
    sizes: dict[Place, int]
    unknown: set[str]
    left: list[Place]


def _traced(traveller: Traveller, batch: Any) -> _Traced:
    units = Units()
    marker = Marker(units)
    model = traveller.problem.model
    axes: dict[Place, np.ndarray] = {}
    tracer = Tracer(marker)
    with traveller.problem.session(), torch.no_grad(), tracer, Double():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                marks = marker.parameter(tensor.shape)
                tracer.mark(tensor, marks)
                axes |= {(name, support(mark)[0]): mark.ravel() for mark in marks}
        for output in _evaluated(traveller.problem, model, batch):
            marker.fix(tracer.marks(output), given=True)
    sizes = {place: ids.size for place, ids in axes.items()}
    settled = units.settled()
    groups = groups_of(settled, axes)
    trained = {name for name, _ in model.named_parameters()}
    left = [place for place in left_of(settled, axes, groups) if place[0] in trained]
    return _Traced(groups, sizes, tracer.unknown, left)


def _outputs(traveller: Traveller, state: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, ...]:
    traveller.go(state)
    with traveller.problem.session(), torch.no_grad(), Double():
        found = _evaluated(traveller.problem, traveller.problem.model, batch)
    return tuple(output.clone() for output in found)


def _evaluated(problem: Problem, model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
    """The outputs of the model, or the loss of each sample where a problem is a loss function of model and batch."""
    seed_everything(problem.seed)
    if isinstance(problem.objective, CriterionObjective):
        found = tensors_of(problem.objective.outputs(model, batch))
        return tuple(output for output in found if output.is_floating_point())
    if problem.objective.couples() or not problem.divisible:
        return (problem.objective.evaluate(model, batch)[0],)
    return (problem.objective.shares(model, batch),)


def _few(problem: Problem) -> Any:
    """A few samples of the first batch, all of it where they are coupled."""
    batch = problem.first_chunk().batch
    return split(batch, SAMPLES)[0] if problem.divisible else batch
