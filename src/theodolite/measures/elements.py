"""Moments and histograms of the entries of per-sample gradients, parameter by parameter."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.measures.arguments import surveyed
from theodolite.measures.separable import refuse_mixed_samples
from theodolite.operators.capture import Use
from theodolite.operators.capture.use import slabs
from theodolite.operators.pullbacks import Pullbacks
from theodolite.operators.sums import index_of
from theodolite.problem import Problem
from theodolite.problem.arguments import real
from theodolite.records import Cost, Elements
from theodolite.records.jackknife import jackknife_stderr

# Groups of samples that errors are taken over: 7 degrees of freedom for 16 vectors of the size of the gradient.
GROUPS = 8
# Bins hold a quarter of a decade (half of one in two dimensions) from 1e-12 to 1e4: no range has to be chosen.
DECADES, FINE, COARSE = (-12, 4), 4, 2
# A variance below this many roundings of the mean square is none.
ROUNDINGS = 16
OVER_THE_CAP = "no errors: sums of groups of samples exceed the memory cap"


def elements(
    problem: Problem,
    *,
    update: Float[Tensor, " n"] | None = None,
    start: Float[Tensor, " n"] | None = None,
    curvature: Float[Tensor, " n"] | None = None,
    epsilon: float = 0.0,
    step: int | None = None,
) -> Elements:
    """Signal to noise of every entry of the gradient, histograms of them, norms by parameter.

    Per-sample gradients are formed slab by slab and never held, however large the model.

    Cost: two forward passes and a backward pass, with the gradients of weights once a sample; 16 vectors of the size of the
        gradient while they fit the problem's memory cap.

    Args:
        problem: what to survey; its samples must not be coupled.
        update: flat update of the optimiser, for its norm by parameter.
        start: flat parameters at the start of training, for the distance from them.
        curvature: flat diagonal of the Hessian or GGN, such as ``ggn_diagonal(problem)``, for Takeuchi's criterion.
        epsilon: added to variances and to the diagonal; 0 leaves out entries without variance. The 1e-5 of Cockpit hides all
            variances below it.
        step: optimiser step, kept in the record.

    Raises:
        OperatorError: samples are coupled, or ranks share the data.
        ProblemError: a vector is not of the parameters of the problem, or there are fewer than two samples.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), [(torch.randn(20, 3), torch.randn(20, 1))])
        >>> found = elements(problem)
        >>> found.parameters, int(found.histogram.sum())
        (('weight', 'bias'), 80)

    References:
        Schneider, Dangel & Hennig, "Cockpit: a practical debugging tool for the training of deep neural networks" (2021).
        Mahsereci et al., "Early stopping without a validation set" (2017).
    """
    started = time.perf_counter()
    surveyed(problem)
    refuse_mixed_samples(problem)
    real(epsilon=epsilon)
    if problem.samples < 2:
        raise ProblemError(f"Expected at least 2 samples for variances, found {problem.samples}.")
    update, start, curvature = (_checked(problem, v) for v in (update, start, curvature))
    here = problem.layout.flatten(problem.point().leaves).detach()
    sums = _Sums(problem, here)
    for pullback in Pullbacks(problem, kind="empirical"):
        for name, uses in pullback.uses.items():
            for use in uses:
                sums.add(name, use)
        sums.done += pullback.samples
    slices = problem.layout.slices
    fields = _statistics(problem, sums, curvature, epsilon)
    return Elements(
        step=step,
        cost=Cost(gradients=1.0, forwards=1.0, seconds=time.perf_counter() - started),
        notes=() if sums.groups > 1 else (OVER_THE_CAP,),
        context=problem.context(),
        parameters=problem.layout.names,
        sizes=np.array([where.stop - where.start for where in slices.values()]),
        parameter_norms=_norms(problem, here),
        update_norms=None if update is None else _norms(problem, update),
        distances=None if start is None else _norms(problem, here - start),
        edges=sums.fine.cpu().numpy(),
        counts=sums.counts().cpu().numpy(),
        joint_edges=sums.coarse.cpu().numpy(),
        joint=sums.joint_counts(here).cpu().numpy(),
        epsilon=epsilon,
        samples=problem.samples,
        groups=sums.groups,
        **fields,
    )


class _Sums:
    """Σg and Σg² of every entry over groups of samples, and counts of entries in bins.

    Args:
        problem: whose gradients they are.
        here: its parameters, flat.
    """

    def __init__(self, problem: Problem, here: Float[Tensor, " n"]) -> None:
        self.problem, self.here = problem, here
        self.factor = problem.samples / problem.total_weight(problem.totals()[1])
        wide = torch.promote_types(problem.dtype, torch.float32)
        bytes_each = 2 * problem.n * torch.finfo(wide).bits // 8
        self.groups = min(GROUPS, problem.samples) if bytes_each * GROUPS <= problem.memory else 1
        self.first = torch.zeros(self.groups, problem.n, dtype=wide, device=problem.device)
        self.second = torch.zeros_like(self.first)
        self.sizes = torch.bincount(torch.arange(problem.samples) % self.groups, minlength=self.groups).double()
        self.fine, self.coarse = (_edges(bins, here.device) for bins in (FINE, COARSE))
        self.names = {name: index for index, name in enumerate(problem.layout.names)}
        self._fine = torch.zeros(len(self.names), len(self.fine) + 1, dtype=torch.int64, device=here.device)
        self._joint = torch.zeros((len(self.coarse) + 1) ** 2, dtype=torch.int64, device=here.device)
        self._seen = torch.zeros(problem.n, dtype=torch.int64, device=here.device)
        self.done = 0

    def add(self, name: str, use: Use) -> None:
        """Take in the gradients of a part of a parameter for the samples of one chunk."""
        rows = max(use.block.rows, 1)
        places = (index_of(use.block) + self.problem.layout.slices[name].start).to(self.here.device).reshape(rows, -1)
        group = (torch.arange(use.samples, device=self.here.device) + self.done) % self.groups
        for begin, end in slabs(use):
            where = places[begin:end].reshape(-1)
            g = (self.factor * use.slab(begin, end).flatten(1)).to(self.first)
            for own in range(self.groups):
                mine = g[group == own]
                self.first[own, where] += mine.sum(0)
                self.second[own, where] += mine.square().sum(0)
            self._fine[self.names[name]] += _counted(torch.bucketize(g, self.fine), len(self.fine) + 1)
            width = len(self.coarse) + 1
            columns = torch.bucketize(self.here[where].to(self.coarse), self.coarse)
            self._joint += _counted(torch.bucketize(g, self.coarse) * width + columns, width**2)
            self._seen[where] += use.samples

    def counts(self) -> Int[Tensor, "p c"]:
        """Entries of each parameter in each bin; those that no operation reached are zero."""
        found, zero = self._fine.clone(), int(torch.bucketize(torch.zeros(()), self.fine.cpu()))
        for index, where in enumerate(self.problem.layout.slices.values()):
            found[index, zero] += self.problem.samples * (where.stop - where.start) - int(self._seen[where].sum())
        return found

    def joint_counts(self, here: Float[Tensor, " n"]) -> Int[Tensor, "d d"]:
        """Entries by gradient and parameter."""
        width = len(self.coarse) + 1
        found = self._joint.reshape(width, width).clone()
        zero = int(torch.bucketize(torch.zeros(()), self.coarse.cpu()))
        columns = torch.bucketize(here.to(self.coarse), self.coarse)
        found[zero].index_add_(0, columns, self.problem.samples - self._seen)
        return found


def _statistics(problem: Problem, sums: _Sums, curvature: Float[Tensor, " n"] | None, epsilon: float) -> dict[str, Any]:
    """Every statistic of the whole, with its error by leaving a group of samples out."""
    layout, samples = problem.layout, float(problem.samples)
    first, second = (row.sum(0, dtype=torch.float64) for row in (sums.first, sums.second))
    slices = (*layout.slices.values(), slice(0, problem.n))
    eps = ROUNDINGS * torch.finfo(sums.first.dtype).eps

    def read(s: Tensor, q: Tensor, count: float) -> np.ndarray:
        mean, square = s / count, q / count
        spread = square - mean.square()
        moving = _moving(square, spread, eps)
        signal = mean.square() / (spread.clamp_min(0.0) + epsilon)
        # Var_j with B − 1 over Var_j with B is B/(B − 1).
        chance = (count - 1) * mean.square() / spread
        norms = [float(mean[where].norm()) for where in slices[:-1]]
        signals = [_mean(signal[where], of=moving[where] | (epsilon > 0)) for where in slices]
        chances = [1 - _mean(chance[where], of=moving[where]) for where in slices]
        return np.array([*norms, *signals, *chances, _takeuchi(square, curvature, epsilon)])

    with np.errstate(all="ignore"):
        whole = read(first, second, samples)
        errors = np.full_like(whole, np.nan)
        if sums.groups > 1:
            groups = zip(sums.first, sums.second, sums.sizes.tolist(), strict=True)
            without = np.stack([read(first - own, second - square, samples - size) for own, square, size in groups])
            errors = jackknife_stderr(without, whole=whole, weights=sums.sizes.numpy())
    p, q = len(slices) - 1, len(slices)
    still = ~_moving(second / samples, second / samples - (first / samples).square(), eps)
    return {
        "gradient_norms": whole[:p],
        "gradient_norm_stderrs": errors[:p],
        "gsnr": whole[p : p + q],
        "gsnr_stderrs": errors[p : p + q],
        "evidence": whole[p + q : p + 2 * q],
        "evidence_stderrs": errors[p + q : p + 2 * q],
        "takeuchi": float(whole[-1]),
        "takeuchi_stderr": float(errors[-1]),
        "still": np.array([int(still[where].sum()) for where in slices[:-1]]),
    }


def _moving(square: Float[Tensor, " n"], spread: Float[Tensor, " n"], eps: float) -> Bool[Tensor, " n"]:
    """Entries that vary from sample to sample beyond rounding: of themselves, and of the gradients that they are summed with.

    The bias of an attention's keys has a gradient of zero, which is computed as 1e-17. One that is NaN is a reading, and moves.
    """
    size = square[square.isfinite()].mean()
    return ((spread > eps * square) & (square > eps**2 * size)) | ~square.isfinite()


def _takeuchi(square: Float[Tensor, " n"], curvature: Float[Tensor, " n"] | None, epsilon: float) -> float:
    """Σ mean g²/h over the entries where h does not vanish."""
    if curvature is None:
        return float("nan")
    h = curvature.double() + epsilon
    return float(torch.where(h != 0, square / h, 0.0).sum())


def _mean(values: Float[Tensor, " m"], *, of: Bool[Tensor, " m"]) -> float:
    return float(values[of].mean()) if bool(of.any()) else float("nan")


def _edges(bins: int, device: torch.device) -> Float[Tensor, " e"]:
    low, high = DECADES
    ends = torch.logspace(low, high, (high - low) * bins + 1, dtype=torch.float64)
    return torch.cat([-ends.flip(0), ends]).float().to(device)


def _counted(bins: Int[Tensor, "..."], width: int) -> Int[Tensor, " w"]:
    return torch.bincount(bins.reshape(-1), minlength=width)


def _norms(problem: Problem, flat: Float[Tensor, " n"]) -> Float[np.ndarray, " p"]:
    return np.array([float(flat[where].double().norm()) for where in problem.layout.slices.values()])


def _checked(problem: Problem, vector: Float[Tensor, "..."] | None) -> Float[Tensor, " n"] | None:
    if vector is None:
        return None
    if vector.shape != (problem.n,):
        raise ProblemError(
            f"Expected {problem.n:,} numbers, one for each parameter in the order of named_parameters(), found shape "
            f"{tuple(vector.shape)}. Flatten with problem.layout.flatten(...)."
        )
    return vector.detach().to(problem.device, problem.dtype)
