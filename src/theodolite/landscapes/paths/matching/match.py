"""Bring the hidden units of one checkpoint into the order of another's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.landscapes.paths.finite import refuse_non_finite_outputs, refuse_non_finite_parameters
from theodolite.landscapes.paths.matching.discovery import Symmetry, discovered
from theodolite.landscapes.paths.matching.symmetry import Fibre, Group, Indices, Place, permuted
from theodolite.landscapes.paths.traveller import Checkpoint, State, Traveller
from theodolite.problem import Problem


@dataclass(frozen=True)
class Matching:
    """A checkpoint with its hidden units in the order of another's; its function is the same.

    Args:
        state: its parameters and buffers, permuted.
        start: the parameters and buffers that it was matched to.
        cosines: Σ⟨a, b⟩/(‖a‖‖b‖) over all parameters before and after.
        groups: what was permuted, in words.
        error: largest difference between the outputs before and after in double precision, as a share of the largest
            output.
        sweeps: over all groups until nothing changed.
        converged: whether nothing changed in the last of them.
        notes: what was left in its place, and why.
    """

    state: State
    start: State
    cosines: tuple[float, float]
    groups: tuple[str, ...]
    error: float
    sweeps: int
    converged: bool
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Matching({self.summary()[0]})"

    def summary(self) -> tuple[str, ...]:
        """What was matched, how far to trust it, and what was left."""
        before, after = self.cosines
        found = (
            f"{len(self.groups)} groups of hidden units matched in {self.sweeps} sweeps: cosine of the parameters "
            f"{before:.3g} before, {after:.3g} after; outputs equal to {self.error:.1g} of the largest"
        )
        return found, *self.notes


def match(problem: Problem, start: Checkpoint, end: Checkpoint, *, sweeps: int = 100, seed: int = 0) -> Matching:
    """Permute the hidden units of ``end`` so that its parameters are as near to those of ``start`` as can be found.

    Which axes of which parameters share hidden units is traced from a forward pass of the model, whatever it is made of;
    attention heads move as blocks with queries, keys, values and outputs, and the features inside them too. What an operation
    without a known symmetry touches stays where it is, with a note; so does what is grouped in ways that are not followed, as
    the experts of a mixture, whose parameters are named: permuted experts are not brought back. Every group of permutations is
    tried on the data, one that changes the function is left out with a note, and the result is checked again: its outputs
    equal those of ``end``.

    The groups are matched one after the other, each by the assignment with the largest sum of inner products while the
    others are held, until no sum grows. The order found is a local optimum.

    Cost: a forward pass of a batch for each group and a few more; an assignment of k units, O(k³), for each group and sweep.

    Args:
        problem: gives the model and the data on which its function is checked.
        start: the checkpoint to match, as for ``path``.
        end: the checkpoint whose units are permuted.
        sweeps: at most.
        seed: of the permutations that the groups are tried with.

    Raises:
        ProblemError: the permuted checkpoint has another function.
        NonFiniteError: parameters of a checkpoint, or outputs of ``end`` on the data, are not finite.
        CheckpointError: a checkpoint does not fit the model.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> problem = Problem(model, nn.MSELoss(), [(torch.randn(8, 3), torch.randn(8, 2))])
        >>> order = torch.tensor([3, 0, 4, 1, 2])
        >>> end = {"0.weight": model[0].weight[order], "0.bias": model[0].bias[order], "2.weight": model[2].weight[:, order]}
        >>> found = match(problem, model, end | {"2.bias": model[2].bias})
        >>> bool(torch.equal(found.state["0.weight"], model[0].weight))
        True

    References:
        Ainsworth, Hayase & Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries" (2023), weight matching.
    """
    traveller = Traveller(problem)
    first, last = traveller.state_of(start), traveller.state_of(end)
    names = [name for name, _ in traveller.problem.model.named_parameters()]
    refuse_non_finite_parameters({"start": first, "end": last}, names, to="match units")
    symmetry = discovered(problem, last, seed=seed)
    target = {name: first[name].double() for name in names}
    moving = {name: last[name].double() for name in names}
    before = _inner(target, moving)
    orders = {place: np.arange(size) for place, size in symmetry.sizes.items()}
    taken, changed = 0, True
    while changed and taken < sweeps:
        taken, changed = taken + 1, False
        for group in symmetry.groups:
            indices = _best(group, target, moving, symmetry.sizes)
            proposed = permuted(moving, {place: order for place, order in indices.items() if place[0] in moving})
            # An axis that meets itself in a square matrix is matched to its old order: the sum can fall.
            if _inner(target, proposed) > _inner(target, moving) + 1e-12 * abs(before):
                moving, changed = proposed, True
                orders |= {place: orders[place][order] for place, order in indices.items()}
    state = permuted(last, orders)
    scale = _norm(target) * _norm(moving)
    return Matching(
        state=state,
        start=first,
        cosines=(before / scale, _inner(target, moving) / scale),
        groups=tuple(group.name for group in symmetry.groups),
        error=_checked(symmetry, state, sum(int((order != np.arange(order.size)).sum()) for order in orders.values())),
        sweeps=taken,
        converged=not changed,
        notes=symmetry.notes + (() if not changed else (f"units were still exchanged after {taken} sweeps",)),
    )


def _checked(symmetry: Symmetry, state: State, moved: int) -> float:
    refuse_non_finite_outputs(symmetry.outputs, symmetry.batch)
    error = symmetry.error(state)
    if not error <= symmetry.tol:
        raise ProblemError(
            f"Expected the permuted checkpoint to have the function of the given one, found outputs that differ by {error:.3g} "
            f"of the largest after {moved} entries along axes were moved, more than {symmetry.tol:g}. Is the model "
            "deterministic on the data of the problem? Its units were not matched."
        )
    return error


def _best(
    group: Group, target: Mapping[str, Tensor], moving: Mapping[str, Tensor], sizes: Mapping[Place, int]
) -> Indices:
    """The permutation of one group with the largest sum of inner products, others held."""
    value = np.zeros((group.blocks, group.blocks))
    for place, positions in group.own.items():
        value += _similarity(place, positions, target, moving)
    matched = [_inside(fibre, target, moving) for fibre in group.fibres]
    for gains, _ in matched:
        value += gains
    _, outer = linear_sum_assignment(value, maximize=True)
    inner = tuple(orders[np.arange(group.blocks), outer] for _, orders in matched)
    return group.indices(outer, inner, sizes)


def _inside(fibre: Fibre, target: Mapping[str, Tensor], moving: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of blocks the best sum, and the order of units that has it."""
    (count, size, _) = next(iter(fibre.positions.values())).shape
    value = np.zeros((count * size, count * size))
    for place, positions in fibre.positions.items():
        value += _similarity(place, positions.reshape(count * size, -1), target, moving)
    pairs = value.reshape(count, size, count, size).transpose(0, 2, 1, 3)
    gains, orders = np.zeros((count, count)), np.zeros((count, count, size), dtype=np.int64)
    for here in range(count):
        for there in range(count):
            rows, columns = linear_sum_assignment(pairs[here, there], maximize=True)
            gains[here, there], orders[here, there] = pairs[here, there][rows, columns].sum(), columns
    return gains, orders


def _similarity(
    place: Place, positions: np.ndarray, target: Mapping[str, Tensor], moving: Mapping[str, Tensor]
) -> np.ndarray:
    """Inner products of what belongs to each unit of one with what belongs to each of the other; buffers do not count."""
    name, axis = place
    if name not in target:
        return np.zeros((len(positions), len(positions)))
    index = torch.from_numpy(positions)
    rows = [state[name].cpu().movedim(axis, 0)[index].flatten(1) for state in (target, moving)]
    return np.asarray((rows[0] @ rows[1].T).numpy())


def _inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return sum(float(torch.dot(first[name].flatten(), second[name].flatten())) for name in first)


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.sqrt(_inner(state, state))
