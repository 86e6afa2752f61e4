"""Where the samples lie at every site, found by running two samples alone and comparing gradients entry by entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from theodolite.operators.capture.captured import Pass, forward
from theodolite.operators.capture.layouts import AxisLayout, Layout, RowLayout, candidates
from theodolite.operators.capture.site import Site
from theodolite.problem import Chunk, Problem
from theodolite.problem.data import split

Key = tuple[object, ...]


@dataclass(frozen=True)
class Known:
    """What was found for one shape of batch.

    Args:
        layouts: where the samples lie at each site; None where no layout fits, so that samples meet there.
        deviation: largest relative difference between a sample in the batch and alone, over the sites with a layout.
    """

    layouts: dict[Key, Layout | None]
    deviation: float


_MEMORY: WeakKeyDictionary[Problem, dict[Key, Known]] = WeakKeyDictionary()


def layouts_of(run: Pass) -> Known:
    """Where the samples lie at every site of a forward pass.

    Layouts along axes do not depend on the data and are remembered for batches of the same shape, unless data is indexed
    by data in the model: then samples may be reordered at every pass, and are looked for at every pass.

    Cost: nothing once known; before, a forward and two backward passes of the batch and of two samples.
    """
    signature: Key = (run.chunk.samples, *((site.key, site.shape) for site in run.sites))
    memory = _MEMORY.setdefault(run.problem, {})
    if signature in memory and not run.recorder.routed:
        return memory[signature]
    known = _learn(run)
    memory[signature] = known
    return known


def _learn(run: Pass) -> Known:
    samples = run.chunk.samples
    if samples == 1:
        return Known({site.key: AxisLayout(0, 1) for site in run.sites}, 0.0)
    plain = _without_dropout(run)
    noise = _noise(plain)
    batch = _gradients(plain, noise)
    alone = {}
    for index in (0, samples - 1):
        single = forward(plain.problem, _sample(run.chunk, index), run.point)
        alone[index] = {
            site.key: (site, gradient)
            for site, gradient in _gradients(single, None if noise is None else noise[index : index + 1])
        }
    tolerance = _tolerance(run.problem.dtype)
    layouts: dict[Key, Layout | None] = {}
    worst = 0.0
    for site, gradient in batch:
        layout, deviation = _fitting(site, gradient, alone, samples, tolerance)
        layouts[site.key] = layout
        worst = max(worst, deviation)
    lost = [site for site in run.sites if layouts.get(site.key, 0) is None]
    if lost:
        layouts |= _by_rows(run, lost, noise, tolerance)
    return Known(layouts, worst)


def _without_dropout(run: Pass) -> Pass:
    """The same pass in evaluation mode, where a sample alone can be compared; samples lie where they lie in training."""
    if run.problem.mode == "eval":
        return run
    return forward(run.problem.replace(mode="eval"), run.chunk, run.point)


def _noise(run: Pass) -> Tensor | None:
    """A random cotangent for the outputs, so that no position goes without a gradient; None where there are no outputs."""
    outputs = run.outputs
    if outputs is None or not outputs.dim() or outputs.shape[0] != run.chunk.samples:
        return None
    generator = torch.Generator().manual_seed(run.problem.seed)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float32).to(outputs)


def _gradients(run: Pass, noise: Tensor | None) -> list[tuple[Site, Tensor]]:
    """The gradient at every site of the loss, plus that of a random function of the outputs."""
    found: dict[int, Tensor] = {}

    def take(site: Site, gradient: Tensor) -> None:
        found[site.index] = found[site.index] + gradient if site.index in found else gradient

    run.differentiate(None, take, retain=True)
    if noise is not None:
        run.differentiate(noise, take, retain=True)
    return [(run.sites[index], gradient) for index, gradient in found.items()]


def _sample(chunk: Chunk, index: int) -> Chunk:
    return replace(chunk, batch=split(chunk.batch, 1)[index], samples=1)


def _fitting(
    site: Site,
    gradient: Tensor,
    alone: dict[int, dict[Key, tuple[Site, Tensor]]],
    samples: int,
    tolerance: float,
) -> tuple[Layout | None, float]:
    """The first layout under which both samples have the gradients that they have alone."""
    for layout in candidates(site.shape, site.trailing, samples):
        folded = layout.fold(gradient, site.trailing)
        deviation = 0.0
        for index, sites in alone.items():
            found = sites.get(site.key)
            expected = torch.zeros_like(folded[index]) if found is None else _own(found[1], layout, site.trailing)
            if expected.shape != folded[index].shape:
                break
            scale = float(expected.norm()) or float(gradient.norm()) or 1.0
            deviation = max(deviation, float((folded[index] - expected).norm()) / scale)
        else:
            if deviation <= tolerance:
                return layout, deviation
    return None, 0.0


def _own(gradient: Tensor, layout: AxisLayout, trailing: int) -> Tensor:
    return AxisLayout(layout.axis, 1).fold(gradient, trailing)[0]


def _by_rows(run: Pass, lost: list[Site], noise: Tensor | None, tolerance: float) -> dict[Key, Layout | None]:
    """Which sample each row belongs to, from a second backward pass in which sample i weighs 1 + i/B.

    A row that belongs to one sample has its gradient scaled by that sample's weight.
    """
    if noise is None:
        return {}
    samples = run.chunk.samples
    weights = 1 + torch.arange(samples, device=noise.device, dtype=noise.dtype) / samples
    plain: dict[int, Tensor] = {}
    scaled: dict[int, Tensor] = {}
    wanted = {site.index for site in lost}

    def into(store: dict[int, Tensor]):  # type: ignore[no-untyped-def]
        def take(site: Site, gradient: Tensor) -> None:
            if site.index in wanted:
                store[site.index] = gradient

        return take

    run.differentiate(noise, into(plain), retain=True)
    run.differentiate(noise * weights.reshape(-1, *[1] * (noise.dim() - 1)), into(scaled), retain=True)
    return {
        site.key: _rows(plain[site.index], scaled[site.index], samples, tolerance)
        for site in lost
        if site.index in plain
    }


def _rows(plain: Tensor, scaled: Tensor, samples: int, tolerance: float) -> Layout | None:
    if plain.dim() != 2:
        return None
    a, b = plain.double(), scaled.double()
    squares = a.square().sum(1)
    ratio = (a * b).sum(1) / squares.clamp_min(torch.finfo(torch.float64).tiny)
    sample = ((ratio - 1) * samples).round().clamp(0, samples - 1).long()
    sample[squares == 0] = 0
    rest = (b - a * (1 + sample.double() / samples)[:, None]).norm(dim=1)
    fits = bool((rest <= tolerance * b.norm(dim=1)).all())
    return RowLayout(sample, samples) if fits and tolerance * samples < 0.25 else None


def _tolerance(dtype: torch.dtype) -> float:
    """Far above rounding, far below what a wrong layout gives."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 5e-2)
