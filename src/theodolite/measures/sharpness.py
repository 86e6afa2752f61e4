"""Rise of the loss in a neighbourhood: SAM, ASAM, Keskar's box, worst case and average case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import ProblemError
from theodolite.linalg import Identity
from theodolite.linalg.probes import Probes
from theodolite.measures.arguments import surveyed
from theodolite.measures.excursions import ChunkMeans, context_with_chunks, gradient_at, loss_at
from theodolite.problem import Problem
from theodolite.problem.arguments import one_or_several, optional, real, whole
from theodolite.problem.finite import non_finite_loss
from theodolite.records import Cost, Sharpness

SharpnessKind = Literal["sam", "asam", "worst", "adaptive worst", "keskar", "average", "adaptive average"]
Scale = Literal["one", "size", "size plus one"]


@dataclass(frozen=True)
class Neighbourhood:
    """Disturbances ε = s ∘ u with u in a ball.

    Args:
        words: the set, for the reader.
        scale: s, entry by entry: 1, |θ| or |θ| + 1.
        box: whether the ball is that of the largest entry rather than of the Euclidean norm.
        radius: default size of the ball.
        steps: default ascent steps.
        search: one path of ascent, a projected search from several starts, or random draws.
    """

    words: str
    scale: Scale
    box: bool
    radius: float
    steps: int
    search: Literal["path", "projected", "random"]


# Radii: SAM 0.05 and ASAM 0.5 (their papers), Keskar 1e-3 (the paper's larger one), 1e-2 of a standard deviation a weight.
KINDS: dict[str, Neighbourhood] = {
    "sam": Neighbourhood("‖ε‖₂ ≤ radius", "one", False, 0.05, 1, "path"),
    "asam": Neighbourhood("‖ε/|θ|‖₂ ≤ radius", "size", False, 0.5, 1, "path"),
    "worst": Neighbourhood("‖ε‖₂ ≤ radius", "one", False, 0.05, 20, "projected"),
    "adaptive worst": Neighbourhood("‖ε/|θ|‖₂ ≤ radius", "size", False, 0.5, 20, "projected"),
    "keskar": Neighbourhood("|ε| ≤ radius·(|θ| + 1)", "size plus one", True, 1e-3, 20, "projected"),
    "average": Neighbourhood("ε ~ N(0, radius²)", "one", False, 0.01, 0, "random"),
    "adaptive average": Neighbourhood("ε ~ N(0, radius²·θ²)", "size", False, 0.1, 0, "random"),
}


def sharpness(
    problem: Problem,
    *,
    kind: SharpnessKind = "sam",
    radius: float | int | Sequence[float | int] | None = None,
    steps: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    step: int | None = None,
) -> Sharpness:
    """Rise of the loss when the parameters are disturbed within a radius, on the same samples at both points.

    ======================= =================== ======================================================================
    kind                    disturbance ε       how it is found
    ======================= =================== ======================================================================
    ``"sam"``               ‖ε‖₂ ≤ ρ            ``steps`` gradient steps of ρ/steps each, one by default
    ``"asam"``              ‖ε/|θ|‖₂ ≤ ρ        the same in ε/|θ|: unchanged when a ReLU network is rescaled
    ``"worst"``             ‖ε‖₂ ≤ ρ            projected ascent from the gradient and from ``draws`` random starts
    ``"adaptive worst"``    ‖ε/|θ|‖₂ ≤ ρ        the same in ε/|θ|
    ``"keskar"``            |ε| ≤ ρ(|θ|+1)      projected sign ascent; ``relative`` of the record is the paper's φ
    ``"average"``           N(0, ρ²)            mean over ``draws`` pairs ±ε, whose first order cancels
    ``"adaptive average"``  N(0, ρ²θ²)          the same in ε/|θ|
    ======================= =================== ======================================================================

    A search gives a lower bound of the maximum. A disturbance that was sought on these samples fits them: the rise on
    fresh samples is smaller, and the error from the data, at fixed ε, does not say by how much.

    Cost: ``"sam"`` one gradient a step (the first shared by all radii) and one forward pass a radius; a search (steps + 1)
    gradients for each start and radius; an average 2·draws forward passes a radius and one more.

    Args:
        problem: what to survey.
        kind: which neighbourhood, see the table.
        radius: ρ, one or several; by default 0.05, 0.5, 0.05, 0.5, 1e-3, 0.01, 0.1 in the order of the table.
        steps: ascent steps; 1 for SAM, 20 for a search.
        draws: random disturbances, 16 by default; for a search random starts, 1 by default.
        seed: of the random numbers.
        step: optimiser step, kept in the record.

    Returns:
        A record; a loss that is not finite at a disturbed point is a reading.

    Raises:
        ProblemError: kind, radius, steps or draws make no sense.
        NonFiniteError: the loss or gradient at θ is not finite.

    Example:
        >>> inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
        >>> problem = Problem(torch.nn.Linear(10, 3), torch.nn.CrossEntropyLoss(), [(inputs, targets)])
        >>> found = sharpness(problem, radius=[0.01, 0.05])
        >>> bool(found.rises[1] > found.rises[0] > 0)
        True

    References:
        Foret et al., "Sharpness-aware minimization for efficiently improving generalization" (2021).
        Kwon et al., "ASAM: adaptive sharpness-aware minimization" (2021).
        Keskar et al., "On large-batch training for deep learning" (2017).
        Andriushchenko et al., "A modern look at the relationship between sharpness and generalization" (2023).
    """
    started = time.perf_counter()
    surveyed(problem)
    optional(partial(one_or_several, real), radius=radius)
    optional(whole, steps=steps, draws=draws, seed=seed)
    where, radii = _neighbourhood(kind), _radii(kind, radius)
    steps, draws = _counts(where, steps, draws)
    scale = _scale(problem, where.scale)
    with problem.session():  # entered once: it costs as much as a pass of a small model
        here, slope = _climb(problem, scale, ascend=where.search != "random")
        if where.search == "path":
            rises, of_draws, cost = _path(problem, scale, slope, here, radii, steps)
        elif where.search == "projected":
            rises, of_draws, cost = _projected(problem, scale, slope, here, radii, steps, draws, seed, box=where.box)
        else:
            rises, of_draws, cost = _random(problem, scale, here, radii, draws, seed)
    dual = float(slope.abs().sum() if where.box else slope.norm())
    here_cost = Cost(forwards=1.0) if where.search == "random" else Cost(gradients=1.0)
    return Sharpness(
        step=step,
        cost=cost + here_cost + Cost(seconds=time.perf_counter() - started),
        seed=None if draws == 0 else seed,
        notes=(*_notes(rises), *_flat(where, slope)),
        context=context_with_chunks(problem, here),
        name=kind,
        neighbourhood=where.words,
        radii=np.array(radii),
        rises=np.array([float(rise.value) for rise in rises]),
        stderrs=np.array([float(rise.stderr) for rise in rises]),
        draw_stderrs=np.array(of_draws),
        first_order=np.array(radii) * dual,
        loss=float(here.value),
        loss_stderr=float(here.stderr),
        steps=steps,
        draws=draws,
    )


def _climb(problem: Problem, scale: Float[Tensor, " n"], *, ascend: bool) -> tuple[ChunkMeans, Float[Tensor, " n"]]:
    """The loss at θ, and its gradient in u = ε/s; zero where nothing ascends."""
    if not ascend:
        here = loss_at(problem)
        if not np.isfinite(here.value):
            raise non_finite_loss(float(here.value))
        return here, torch.zeros_like(scale)
    here, gradient, _ = gradient_at(problem)
    if not np.isfinite(here.value) or not bool(torch.isfinite(gradient).all()):
        raise non_finite_loss(float(here.value))
    return here, scale * gradient


def _path(
    problem: Problem,
    scale: Float[Tensor, " n"],
    slope: Float[Tensor, " n"],
    here: ChunkMeans,
    radii: Sequence[float],
    steps: int,
) -> tuple[list[ChunkMeans], list[float], Cost]:
    """Steps of equal length along the gradient of where they start from."""
    rises, gradients = [], 0
    for radius in radii:
        u = radius / steps * _unit(slope)
        for _ in range(1, steps):
            _, gradient, _ = gradient_at(problem, scale * u)
            gradients += 1
            if not bool(torch.isfinite(gradient).all()):
                break
            u = u + radius / steps * _unit(scale * gradient)
        rises.append(loss_at(problem, scale * u) - here)
    return rises, [float("nan")] * len(radii), Cost(gradients=float(gradients), forwards=float(len(radii)))


def _projected(
    problem: Problem,
    scale: Float[Tensor, " n"],
    slope: Float[Tensor, " n"],
    here: ChunkMeans,
    radii: Sequence[float],
    steps: int,
    draws: int,
    seed: int,
    *,
    box: bool,
) -> tuple[list[ChunkMeans], list[float], Cost]:
    """The highest point met by projected steepest ascent from the edge of the ball, over all starts."""
    normal = Probes(Identity(problem.n, dtype=problem.dtype, device=problem.device), seed=seed).draw(draws)
    starts = [slope, *normal] if bool(slope.any()) else list(normal)
    rises, gradients = [], 0
    for radius in radii:
        best = here  # θ itself is in the ball
        for start in starts:
            u = radius * _steepest(start, box=box)
            for index in range(steps + 1):
                there, gradient, _ = gradient_at(problem, scale * u)
                gradients += 1
                best = _higher(there, best)
                if index == steps or not bool(torch.isfinite(gradient).all()):
                    break
                # Twice the radius at first, which leaves the start behind; then less, as the iterates settle.
                length = 2 * radius * (1 - index / steps)
                u = _onto_ball(u + length * _steepest(scale * gradient, box=box), radius, box=box)
        rises.append(best - here)
    return rises, [float("nan")] * len(radii), Cost(gradients=float(gradients))


def _random(
    problem: Problem, scale: Float[Tensor, " n"], here: ChunkMeans, radii: Sequence[float], draws: int, seed: int
) -> tuple[list[ChunkMeans], list[float], Cost]:
    """Means over pairs ±ε, which share their draw among radii; and the errors over draws."""
    probes = Probes(Identity(problem.n, dtype=problem.dtype, device=problem.device), seed=seed)
    totals = np.zeros((len(radii), draws, len(here.weights)))
    for draw in range(draws):
        z = probes.draw(1)[0]
        for index, radius in enumerate(radii):
            ahead, behind = (loss_at(problem, sign * radius * scale * z) - here for sign in (1.0, -1.0))
            with np.errstate(all="ignore"):
                totals[index, draw] = 0.5 * (ahead.totals + behind.totals)
    with np.errstate(all="ignore"):
        means = [ChunkMeans(of_radius.mean(axis=0), here.weights, here.divisor) for of_radius in totals]
        values = totals.sum(axis=2) / here.divisor
        errors = values.std(axis=1, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(len(radii), np.nan)
    return means, errors.tolist(), Cost(forwards=2.0 * draws * len(radii))


def _neighbourhood(kind: str) -> Neighbourhood:
    if kind not in KINDS:
        raise ProblemError(
            f"Expected kind to be one of {', '.join(map(repr, get_args(SharpnessKind)))}, found {kind!r}."
        )
    return KINDS[kind]


def _radii(kind: str, radius: float | int | Sequence[float | int] | None) -> tuple[float, ...]:
    given = KINDS[kind].radius if radius is None else radius
    radii = (float(given),) if isinstance(given, int | float) else tuple(float(each) for each in given)
    if not radii or not all(np.isfinite(each) and each > 0 for each in radii):
        raise ProblemError(
            f"Expected one or several positive radii, found radius={radius!r}. Leave it out for the default."
        )
    return radii


def _counts(where: Neighbourhood, steps: int | None, draws: int | None) -> tuple[int, int]:
    """Steps and draws, by default those of the kind; what a kind does not use is refused."""
    least = {"path": (1, 0), "projected": (1, 0), "random": (0, 1)}[where.search]
    usual = {"path": 0, "projected": 1, "random": 16}[where.search]
    found = (where.steps if steps is None else steps, usual if draws is None else draws)
    unused = (where.search == "random" and steps is not None) or (where.search == "path" and draws is not None)
    if unused or found[0] < least[0] or found[1] < least[1]:
        raise ProblemError(
            f"Expected at least {least[0]} ascent steps and {least[1]} draws for {where.words}, found steps={steps}, "
            f"draws={draws}. One path takes steps alone, an average takes draws alone, a search both."
        )
    return found


def _scale(problem: Problem, scale: Scale) -> Float[Tensor, " n"]:
    flat = problem.layout.flatten(problem.point().leaves).detach().to(problem.dtype)
    if scale == "one":
        return torch.ones_like(flat)
    return flat.abs() if scale == "size" else flat.abs() + 1.0


def _unit(v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """v / ‖v‖, zero where v is: at a stationary point there is no way up."""
    norm = float(v.norm())
    return v / norm if norm > 0 else torch.zeros_like(v)


def _steepest(v: Float[Tensor, " n"], *, box: bool) -> Float[Tensor, " n"]:
    """The direction of unit size in which v grows fastest."""
    return v.sign() if box else _unit(v)


def _higher(first: ChunkMeans, second: ChunkMeans) -> ChunkMeans:
    """The one with the larger loss; a loss that is no number counts as the largest, so that it is not passed over."""
    if np.isnan(second.value) or float(first.value) <= float(second.value):
        return second
    return first


def _onto_ball(u: Float[Tensor, " n"], radius: float, *, box: bool) -> Float[Tensor, " n"]:
    if box:
        return u.clamp(-radius, radius)
    return u * min(1.0, radius / max(float(u.norm()), 1e-300))


def _notes(rises: Sequence[ChunkMeans]) -> tuple[str, ...]:
    lost = sum(not np.isfinite(rise.value) for rise in rises)
    return (f"the loss is not finite at {lost} of {len(rises)} radii",) if lost else ()


def _flat(where: Neighbourhood, slope: Float[Tensor, " n"]) -> tuple[str, ...]:
    """What it means for the search that the gradient vanishes at θ."""
    if where.search == "random" or bool(slope.any()):
        return ()
    left = "the rise is 0 at θ itself" if where.search == "path" else "the search had random starts alone"
    return (f"no ascent direction: the gradient vanishes here, {left}",)
