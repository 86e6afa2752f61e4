"""Where the samples lie at every site, found by running two samples alone and comparing gradients entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from theodolite.operators.capture.layouts import AxisLayout, Layout, RowLayout, candidates
from theodolite.operators.capture.passes import Pass, forward
from theodolite.operators.capture.site import Site
from theodolite.problem import Chunk, Problem
from theodolite.problem.data import piece

Key = tuple[object, ...]
# For every layout that a site may have, gradients of samples.
Parts = list[tuple[AxisLayout, Tensor]]


@dataclass(eq=False)
class Known:
    """What was found for one shape of batch.

    Args:
        layouts: where the samples lie at each site; None where no layout fits, so that samples meet there.
        deviation: largest relative difference between a sample in the batch and alone, over the sites with a layout.
        lost: parameters that the sites do not have all of, which are left to the fallback.
        coverage: for each parameter 1ᵀG1 / ‖Σg‖², where it was checked.
        calibration: largest relative error of the dot products of two samples alone; NaN before it was checked.
        checked: whether coverage and calibration were found, and agree.
    """

    layouts: dict[Key, Layout | None]
    deviation: float
    lost: set[str]
    coverage: dict[str, float] = field(default_factory=dict)
    calibration: float = float("nan")
    checked: bool = False

    def take_over(self, before: Known | None) -> None:
        """Keep the checks of an earlier pass, and what it left to the fallback."""
        if before is not None:
            self.lost |= before.lost
            self.coverage, self.calibration, self.checked = before.coverage, before.calibration, before.checked


_MEMORY: WeakKeyDictionary[Problem, dict[Key, Known]] = WeakKeyDictionary()


def layouts_of(run: Pass) -> Known:
    """Where the samples lie at every site of a forward pass.

    Layouts along axes do not depend on the data and are remembered for batches of the same shape, unless data is indexed
    by data in the model: then samples may be reordered at every pass, and are looked for at every pass.

    Cost: nothing once known; before, a backward pass of the batch, and a forward and backward pass of two samples.
    """
    memory = _MEMORY.setdefault(run.problem, {})
    if run.recorder.routed:
        signature: Key = (run.chunk.samples,)
        known = _learn(run)
        known.take_over(memory.get(signature))
    else:
        signature = (run.chunk.samples, *((site.key, site.shape) for site in run.sites))
        known = memory.get(signature) or _learn(run)
    memory[signature] = known
    return known


def _learn(run: Pass) -> Known:
    plain = _without_dropout(run)
    noise = _noise(plain)
    ends = (0, run.chunk.samples - 1)
    inside, lost = _gradients(plain, noise, lambda layout, folded: folded[[*ends]])
    alone = []
    for index in ends:
        single = forward(plain.problem, _sample(run.chunk, index), run.point)
        own = None if noise is None else noise[index : index + 1]
        found, _ = _gradients(single, own, lambda layout, folded: folded)
        alone.append({key: {layout.axis: part for layout, part in parts} for key, parts in found.items()})
    tolerance = tolerance_of(run.problem.dtype)
    layouts: dict[Key, Layout | None] = {}
    worst = 0.0
    for key, parts in inside.items():
        layouts[key], deviation = _fitting(parts, [found.get(key, {}) for found in alone], tolerance)
        worst = max(worst, deviation)
    unfit = [site for site in run.sites if layouts.get(site.key, 0) is None]
    if unfit:
        layouts |= _by_weights(run, unfit, layouts)
    lost |= {name for site in unfit if layouts[site.key] is None for name in run.behind(site)}
    return Known(layouts, worst, lost)


def _without_dropout(run: Pass) -> Pass:
    """The same pass in evaluation mode, where a sample alone can be compared; samples lie where they lie in training."""
    if run.problem.mode == "eval":
        return run
    return forward(run.problem.replace(mode="eval"), run.chunk, run.point)


def _noise(run: Pass) -> Tensor | None:
    """A random cotangent for the outputs, so that no position goes without a gradient; None where there are no outputs."""
    if not _has_outputs(run):
        return None
    assert run.outputs is not None
    generator = torch.Generator().manual_seed(run.problem.seed)
    return torch.randn(run.outputs.shape, generator=generator, dtype=torch.float32).to(run.outputs)


def _gradients(
    run: Pass, noise: Tensor | None, part: Callable[[Layout, Tensor], Tensor]
) -> tuple[dict[Key, Parts], set[str]]:
    """Parts of the gradient of the loss plus a random function of the outputs, at every site and for every layout that it
    may have, and the parameters that pass the sites by."""
    found: dict[Key, Parts] = {}

    def take(site: Site, gradient: Tensor) -> None:
        gradient = gradient.nan_to_num(0.0)
        parts = [
            (layout, part(layout, layout.fold(gradient, site.trailing)))
            for layout in candidates(site.shape, site.trailing, run.chunk.samples)
        ]
        found[site.key] = parts

    missed = run.differentiate(noise, take, retain=True, with_loss=True)
    return found, {*missed}


def _sample(chunk: Chunk, index: int) -> Chunk:
    return replace(chunk, batch=piece(chunk.batch, index, index + 1), samples=1)


def _fitting(parts: Parts, alone: list[dict[int, Tensor]], tolerance: float) -> tuple[Layout | None, float]:
    """The first layout under which both samples have the gradients that they have alone, and how well it fits."""
    for layout, folded in parts:
        expected = [found.get(layout.axis) for found in alone]
        shapes = {part.shape for part in expected if part is not None}
        size = sum(float(part.square().sum()) for part in expected if part is not None)
        # Where both samples have no gradient, nothing can be said.
        if shapes == {folded[:1].shape} and size > 0:
            together = torch.cat([torch.zeros_like(folded[:1]) if part is None else part for part in expected])
            deviation = float((folded - together).square().sum() / size) ** 0.5
            if deviation <= tolerance:
                return layout, deviation
    return None, 0.0


def _by_weights(run: Pass, sites: list[Site], layouts: dict[Key, Layout | None]) -> dict[Key, Layout | None]:
    """Where the samples lie at other sites, from two backward passes of noise; in the second sample i weighs 1 + i/B.

    What belongs to one sample has its gradient scaled by that sample's weight. The passes start where samples are known to
    lie, as late in the model as possible.
    """
    start = _start(run, layouts)
    if start is None:
        return {}
    shape, place, root = start
    generator = torch.Generator().manual_seed(run.problem.seed)
    noise = torch.randn(shape, generator=generator).to(run.total)
    weights = 1 + torch.arange(run.chunk.samples, device=noise.device, dtype=noise.dtype) / run.chunk.samples
    plain: dict[int, Tensor] = {}
    scaled: dict[int, Tensor] = {}
    wanted = {site.index for site in sites}
    run.differentiate(noise, _into(plain, wanted), retain=True, root=root)
    run.differentiate(place.weighted(noise, weights), _into(scaled, wanted), retain=True, root=root)
    # Gradients are linear in the cotangent up to rounding, while weights are 1/B apart.
    tolerance = 0.1 * tolerance_of(run.problem.dtype)
    if tolerance * run.chunk.samples > 0.25:
        return {}
    return {
        site.key: _scaled_layout(site, plain[site.index], scaled[site.index], weights, tolerance)
        for site in sites
        if site.index in plain
    }


def _start(run: Pass, layouts: dict[Key, Layout | None]) -> tuple[tuple[int, ...], Layout, Site | None] | None:
    """Shape and layout of the outputs, or else of the last site whose layout is known, with that site."""
    if _has_outputs(run):
        assert run.outputs is not None
        return tuple(run.outputs.shape), AxisLayout(0, run.chunk.samples), None
    for site in reversed(run.sites):
        place = layouts.get(site.key)
        if place is not None:
            return site.shape, place, site
    return None


def _has_outputs(run: Pass) -> bool:
    """Whether the model's outputs are a tensor with samples first."""
    outputs = run.outputs
    return outputs is not None and outputs.dim() > 0 and outputs.shape[0] == run.chunk.samples


def _scaled_layout(site: Site, plain: Tensor, scaled: Tensor, weights: Tensor, tolerance: float) -> Layout | None:
    size = float(scaled.norm())
    for layout in candidates(site.shape, site.trailing, len(weights)):
        if float((layout.weighted(plain, weights) - scaled).norm()) <= tolerance * size:
            return layout
    return _rows(plain, scaled, weights, tolerance) if plain.dim() == 2 else None


def _into(store: dict[int, Tensor], wanted: set[int]) -> Callable[[Site, Tensor], None]:
    def take(site: Site, gradient: Tensor) -> None:
        if site.index in wanted:
            store[site.index] = gradient

    return take


def _rows(plain: Tensor, scaled: Tensor, weights: Tensor, tolerance: float) -> Layout | None:
    """The sample of each row, if every row belongs to one."""
    a, b = plain.double(), scaled.double()
    squares = a.square().sum(1)
    ratio = (a * b).sum(1) / squares.clamp_min(torch.finfo(torch.float64).tiny)
    sample = ((ratio - 1) * len(weights)).round().clamp(0, len(weights) - 1).long()
    # A row without a gradient adds nothing to any sample.
    sample[squares == 0] = 0
    rest = (b - a * weights.double()[sample, None]).norm(dim=1)
    return RowLayout(sample, len(weights)) if bool((rest <= tolerance * b.norm(dim=1)).all()) else None


def tolerance_of(dtype: torch.dtype) -> float:
    """Far above rounding, far below what a wrong layout gives."""
    return {torch.float64: 1e-5, torch.float32: 1e-3}.get(dtype, 5e-2)
