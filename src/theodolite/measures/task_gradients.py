"""Gradients of several losses on shared parameters, and how they agree, whole and by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theodolite.errors import ProblemError
from theodolite.problem import Chunk, Problem
from theodolite.problem.arguments import shown
from theodolite.problem.arguments import whole as whole_numbers
from theodolite.problem.objective import CriterionObjective, pair
from theodolite.records import Cost, TaskGradients
from theodolite.records.jackknife import jackknife_stderr
from theodolite.records.task_gradients import shared_cosines

FEW = 3  # chunks, below which pairs of different ones have no error


def task_gradients(
    problem: Problem,
    tasks: Mapping[str, Callable[..., Any]],
    *,
    chunks: int = 32,
    step: int | None = None,
) -> TaskGradients:
    """Gradients of several tasks on the same data, their cosines with errors, and which tasks conflict beyond chance.

    Cost: a forward pass, and a backward pass for each task; twice where the gradients of chunks exceed the problem's memory cap.

    Args:
        problem: model, parameters, data and options; its own loss is none of the tasks unless named.
        tasks: losses by name, as for ``Problem.tasks``: criteria of (outputs, targets), or functions of (model, batch)
            for a problem made by ``Problem.from_loss``.
        chunks: about how many pieces of data errors leave out in turn, where batches may be cut; the batches themselves where their
            samples are coupled.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss that is not finite is a reading.

    Raises:
        ProblemError: there are fewer than two tasks, one is no function, or chunks makes no sense.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randn(64, 2)
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> problem = Problem(model, torch.nn.MSELoss(), [(inputs, targets)])
        >>> up, down = (lambda y, t, sign=sign: ((y - sign * t) ** 2).mean() for sign in (1, -1))
        >>> found = task_gradients(problem, {"up": up, "down": down})
        >>> found.cosines.shape, found.layers
        ((2, 2), ('0', '2'))

    References:
        Yu et al., "Gradient surgery for multi-task learning" (2020); Hoeffding, "A class of statistics with asymptotically normal
        distribution" (1948), for means over pairs.
    """
    started = time.perf_counter()
    if not isinstance(tasks, Mapping):
        raise ProblemError(f"Expected at least two tasks by name, {{'depth': criterion, …}}, found {shown(tasks)}.")
    whole_numbers(chunks=chunks)
    if len(tasks) < 2 or chunks < 1:
        raise ProblemError(
            f"Expected at least two tasks and chunks of 1 or more, found {len(tasks)} tasks and chunks={chunks}."
        )
    walk = _Walk(problem, list(problem.tasks(tasks).values()), chunks)
    sums = walk.sums()
    found = _Readings(problem, sums)
    whole, left_out = found.dots(), found.dots(left_out=True)
    free, free_left_out = found.pairs(), found.pairs(left_out=True)
    shares = sums.shares.mean(axis=1)

    def error(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.asarray(jackknife_stderr(values, whole=of, weights=shares))

    # Of everything by layer and of the sum of layers, which comes first.
    free_errors = error(free_left_out, free)
    if (shares > 0).sum() < FEW:
        free_errors = np.full_like(free_errors, np.nan)
    lengths = [
        np.sqrt(np.maximum(np.diagonal(part[..., 0, :, :], axis1=-2, axis2=-1), 0.0)) for part in (left_out, whole)
    ]
    cosine_errors = error(shared_cosines(left_out), shared_cosines(whole))
    losses, without = found.losses()
    return TaskGradients(
        step=step,
        cost=Cost(gradients=float(len(tasks)) * (1 + walk.twice), seconds=time.perf_counter() - started),
        notes=(*_notes(shares), *_lost(tuple(tasks), losses)),
        context=problem.context() | {"chunks": int((shares > 0).sum())},
        tasks=tuple(tasks),
        losses=losses,
        loss_stderrs=error(without, losses),
        dots=whole[0],
        unbiased=free[0],
        unbiased_stderrs=free_errors[0],
        norm_stderrs=error(*lengths),
        cosine_stderrs=cosine_errors[0],
        layers=tuple(problem.layout.layers),
        layer_dots=whole[1:],
        layer_unbiased=free[1:],
        layer_unbiased_stderrs=free_errors[1:],
        layer_cosine_stderrs=cosine_errors[1:],
        samples=np.full(len(tasks), problem.samples),
        shared=sums.shared_size(problem),
        size=problem.n,
    )


def _notes(shares: Float[np.ndarray, " c"]) -> tuple[str, ...]:
    count = int((shares > 0).sum())
    if count >= FEW:
        return ()
    return (
        f"{count} chunks of data: conflicts beyond chance need {FEW}, of smaller batches where samples are coupled",
    )


def _lost(tasks: tuple[str, ...], losses: Float[np.ndarray, " k"]) -> tuple[str, ...]:
    return tuple(
        f"the loss of task {task!r} is {loss:g}: nothing is known of its gradient, cosines and errors"
        for task, loss in zip(tasks, losses.tolist(), strict=True)
        if not np.isfinite(loss)
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """What walks over the data leave of the chunks of all ranks, summed over their samples.

    Args:
        totals: losses.
        weights: of each chunk in each task.
        divisors: what the sums of each task are divided by.
        products: ⟨S_a, S_b⟩ of the gradients of all data, parameter by parameter.
        own: ⟨s_ac, s_bc⟩ of every chunk.
        crossed: ⟨S_a, s_bc⟩.
        reached: whether a task has a gradient for a parameter.
    """

    totals: Float[np.ndarray, "c k"]
    weights: Float[np.ndarray, "c k"]
    divisors: Float[np.ndarray, " k"]
    products: Float[np.ndarray, "p k k"]
    own: Float[np.ndarray, "c p k k"]
    crossed: Float[np.ndarray, "c p k k"]
    reached: np.ndarray

    @property
    def shares(self) -> Float[np.ndarray, "c k"]:
        """Of each chunk in the weight of a task."""
        return np.asarray(self.weights / self.weights.sum(axis=0))

    def shared_size(self, problem: Problem) -> int:
        """Number of parameters that more than one task reaches."""
        return int(np.array(problem.layout.sizes)[self.reached.sum(axis=0) > 1].sum())


class _Walk:
    """Gradients of all tasks, chunk by chunk: kept while they fit the memory, and taken again beyond."""

    def __init__(self, problem: Problem, tasks: list[Problem], chunks: int) -> None:
        self.problem, self.tasks = problem, tasks
        self.at_most = -(-problem.samples // chunks) if all(task.divisible for task in tasks) else None
        self.reached = np.zeros((len(tasks), len(problem.layout.names)), dtype=np.bool_)
        self.twice = False
        self.room = problem.memory
        self._kept: list[Tensor] | None = []

    def sums(self) -> _Sums:
        ranks, count = self.problem.ranks, len(self.tasks)
        totals, weights, own = [], [], []
        wide = torch.promote_types(self.problem.dtype, torch.float32)
        summed = torch.zeros(count, self.problem.n, dtype=wide, device=self.problem.device)
        with self.problem.session(), self.problem.together("gradients of tasks"):
            for task in self.tasks:
                task.ensure_checked()
            for rows, total, weight in self._chunks():
                totals.append(total)
                weights.append(weight)
                own.append(self._dots(rows, rows))
                summed += rows
                self._keep(rows)
        summed = ranks.sum(summed)
        with self.problem.session(), self.problem.together("gradients of tasks against their chunks"):
            self.twice = self._kept is None
            again = self._kept if self._kept is not None else (rows for rows, *_ in self._chunks())
            crossed = [self._dots(summed, rows) for rows in again]
        joined = ranks.join(torch.tensor(weights, dtype=torch.float64))
        divisors = [task.total_weight(column) for task, column in zip(self.tasks, joined.T, strict=True)]
        return _Sums(
            ranks.join(torch.tensor(totals, dtype=torch.float64)).numpy(),
            joined.numpy(),
            np.array(divisors),
            self._dots(summed, summed),
            ranks.join(torch.from_numpy(np.stack(own))).numpy(),
            ranks.join(torch.from_numpy(np.stack(crossed))).numpy(),
            ranks.sum(torch.from_numpy(self.reached).double()).numpy() > 0,
        )

    def _keep(self, rows: Float[Tensor, "k n"]) -> None:
        if self._kept is not None:
            self._kept.append(rows)
            if rows.nbytes * len(self._kept) > self.room:
                self._kept = None

    def _chunks(self) -> Iterator[tuple[Float[Tensor, "k n"], list[float], list[float]]]:
        point = self.problem.point()
        # The first task's: the problem's own loss need not be one of theirs, nor well posed.
        for chunk in self.tasks[0].chunks(at_most=self.at_most):
            yield self._differentiate(chunk, point)

    def _differentiate(self, chunk: Chunk, point: Any) -> tuple[Float[Tensor, "k n"], list[float], list[float]]:
        """Gradients of all tasks from one forward pass where they share the outputs."""
        rows, totals, weights = [], [], []

        def losses(model: nn.Module) -> list[tuple[Tensor, float]]:
            first = self.tasks[0].objective
            assert isinstance(first, CriterionObjective)
            outputs, targets = first.outputs(model, chunk.batch), pair(chunk.batch)[1]
            objectives = [task.objective for task in self.tasks]
            return [each.loss.evaluate(outputs, targets) for each in objectives if isinstance(each, CriterionObjective)]

        if isinstance(self.problem.objective, CriterionObjective):
            evaluations: Iterator[tuple[Tensor, float]] = iter(self.problem.call(losses, point, chunk=chunk.index))
        else:
            evaluations = (task.evaluate(chunk, point) for task in self.tasks)
        for place, (total, weight) in enumerate(evaluations):
            row, reached = self._gradient(total, point.leaves, retain=place + 1 < len(self.tasks))
            self.reached[place] |= reached
            rows.append(row)
            totals.append(float(total.detach()))
            weights.append(weight)
        return torch.stack(rows), totals, weights

    def _gradient(self, total: Tensor, leaves: tuple[Tensor, ...], *, retain: bool) -> tuple[Tensor, np.ndarray]:
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if total.requires_grad:
            found = torch.autograd.grad(total, leaves, retain_graph=retain, allow_unused=True)
        filled = [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves, strict=True)]
        return self.problem.layout.flatten(filled).detach(), np.array([part is not None for part in found])

    def _dots(self, a: Float[Tensor, "k n"], b: Float[Tensor, "k n"]) -> Float[np.ndarray, "p k k"]:
        """Parameter by parameter, in double precision."""
        places = self.problem.layout.slices.values()
        return np.stack([(a[:, place].double() @ b[:, place].double().T).cpu().numpy() for place in places])


class _Readings:
    """Losses and dot products, whole and without each chunk, over the shared parameters and then in each layer."""

    def __init__(self, problem: Problem, sums: _Sums) -> None:
        self.sums = sums
        names = {name: place for place, name in enumerate(problem.layout.names)}
        shared = sums.reached.sum(axis=0) > 1
        member = np.zeros((1 + len(problem.layout.layers), len(names)))
        member[0] = shared
        for row, layer in enumerate(problem.layout.layers.values(), start=1):
            member[row, [names[name] for name in layer]] = shared[[names[name] for name in layer]]
        self.products, self.own, self.crossed = (
            np.tensordot(part, member, axes=(axis, 1))
            for part, axis in ((sums.products, 0), (sums.own, 1), (sums.crossed, 1))
        )
        # Layers come first again, after the chunks.
        self.products = np.moveaxis(self.products, -1, 0)
        self.own, self.crossed = np.moveaxis(self.own, -1, 1), np.moveaxis(self.crossed, -1, 1)

    def losses(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "c k"]]:
        totals, divisors = self.sums.totals, self.sums.divisors
        with np.errstate(all="ignore"):
            return totals.sum(axis=0) / divisors, (totals.sum(axis=0) - totals) / (divisors * (1 - self.sums.shares))

    def dots(self, *, left_out: bool = False) -> np.ndarray:
        """⟨ḡ_a, ḡ_b⟩, without each chunk if asked."""
        scale = np.multiply.outer(self.sums.divisors, self.sums.divisors)
        if not left_out:
            return np.asarray(self.products / scale)
        with np.errstate(all="ignore"):
            return np.asarray(self._without() / (scale * self._rests())[:, None])

    def pairs(self, *, left_out: bool = False) -> np.ndarray:
        """Means of ⟨g_ac, g_bd⟩ over different chunks c and d, by weight: without the bias of noise that tasks share."""
        scale = np.multiply.outer(self.sums.divisors, self.sums.divisors)
        alike = np.einsum("ca,cb->cab", self.sums.shares, self.sums.shares)
        with np.errstate(all="ignore"):
            if not left_out:
                return np.asarray((self.products - self.own.sum(axis=0)) / (scale * (1 - alike.sum(axis=0))))
            products = self._without() - (self.own.sum(axis=0) - self.own)
            return np.asarray(products / (scale * (self._rests() - alike.sum(axis=0) + alike))[:, None])

    def _without(self) -> np.ndarray:
        """⟨S_a − s_ac, S_b − s_bc⟩."""
        return np.asarray(self.products - self.crossed - np.swapaxes(self.crossed, -1, -2) + self.own)

    def _rests(self) -> np.ndarray:
        """Shares of the pairs that are left without each chunk."""
        rest = 1 - self.sums.shares
        return np.asarray(rest[:, :, None] * rest[:, None, :])
