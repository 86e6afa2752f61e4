"""Records as a small survey leaves them, written by hand: a run that trains and one that leaves its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from theodolite.forecasts import Run
from theodolite.records import (
    Cost,
    Density,
    Event,
    Gradients,
    Line,
    Plane,
    Record,
    Scalars,
    Spectrum,
    Stability,
    Trace,
)

LAYERS = ("stem.conv", "stem.norm", "blocks.0.conv1", "blocks.0.norm1", "blocks.0.conv2", "blocks.1.conv1", "head")
CONTEXT: Mapping[str, object] = {
    "model": "ResNet",
    "parameters": 19_706,
    "samples": 1024,
    "mode": "eval",
    "dtype": "float32",
    "engine": "vmap",
    "torch": "2.13.0",
}


def run(name: str, records: tuple[Record, ...]) -> Run:
    """As `theodolite.load` would give it."""
    moments = np.arange(len(records), dtype=np.float64)
    return Run(path=Path("runs") / name, records=records, times=moments, elapsed=moments)


def stable_run() -> tuple[Record, ...]:
    return training(rate=0.02, rise=8e-3, seed=1) + survey(seed=1)


def unstable_run() -> tuple[Record, ...]:
    return training(rate=0.5, rise=2e-2, seed=2) + survey(seed=2, scale=40.0, broken=True)


def training(*, rate: float, rise: float, seed: int, steps: int = 600, every: int = 20) -> tuple[Record, ...]:
    """Progressive sharpening: the sharpness climbs; once above 2(1+β)/lr the loss grows and then is lost."""
    rng = np.random.default_rng(seed)
    bound = 2 * 1.9 / rate
    records: list[Record] = [Event(step=0, name="started", message="600 steps of SGD were announced.")]
    loss, sharpness = 2.3, 3.0
    for step in range(steps):
        sharpness *= 1 + rise * (1 - sharpness / max(1.5 * bound, 60)) if sharpness < 1.5 * bound else 1.0
        over = sharpness / bound
        loss *= 1 + 0.25 * (over - 1) if over > 1 else 1 - 6e-3
        loss = max(loss, 0.02) if loss < 1e9 else math.inf
        batch = loss * math.exp(0.25 * rng.standard_normal())
        records.append(Scalars(step=step, values={"loss": batch, "lr": rate}))
        if step % every == 0 and math.isfinite(loss):
            records.append(stability(step, loss=loss, sharpness=sharpness, rate=rate, rng=rng))
    records.append(Event(step=440, name="probe deferred", message="The time budget of 5 % was spent."))
    records.append(Event(step=460, name="probe deferred", message="The time budget of 5 % was spent."))
    records.append(Event(step=steps, name="ended", message="The monitor was closed."))
    return tuple(records)


def stability(step: int, *, loss: float, sharpness: float, rate: float, rng: np.random.Generator) -> Stability:
    measured = sharpness * (1 + 0.02 * float(rng.standard_normal()))
    converged = step % 100 != 80
    return Stability(
        step=step,
        loss=loss,
        loss_stderr=0.03 * loss,
        gradient_norm=0.3 * loss,
        sharpness=measured,
        sharpness_stderr=0.06 * measured,
        residual=4e-4 if converged else 0.08,
        converged=converged,
        tol=1e-3,
        preconditioned_sharpness=measured,
        threshold=2 * 1.9 / rate,
        ratio=measured * rate / (2 * 1.9),
        learning_rate=rate,
        momentum=0.9,
        optimizer="SGD",
        rule="2(1+β)/lr, gradient descent with heavy ball",
        cost=Cost(products=24.0, gradients=1.0, seconds=0.31),
        seed=0,
        context=CONTEXT,
    )


def survey(*, seed: int, scale: float = 1.0, broken: bool = False, step: int = 600) -> tuple[Record, ...]:
    common = {"step": step, "seed": seed, "context": CONTEXT}
    return (
        spectrum(scale=scale, converged=not broken, **common),
        density(scale=scale, **common),
        trace(scale=scale, **common),
        gradients(scale=scale, broken=broken, **common),
        line(scale=scale, broken=broken, **common),
        plane(scale=scale, broken=broken, **common),
        trajectory(broken=broken, **common),
    )


def spectrum(*, scale: float = 1.0, converged: bool = True, **common: object) -> Spectrum:
    values = scale * np.array([52.3, 41.0, 33.7, 21.2, 17.9, -1.1, -1.9])
    good = np.array([True, True, True, converged, converged, True, converged])
    return Spectrum(
        eigenvalues=values,
        residuals=np.where(good, 3.1e-4, 4.2e-2),
        converged=good,
        data_stderr=0.05 * np.abs(values),
        tol=1e-3,
        which="both",
        size=19_706,
        trace=scale * 402.0,
        trace_stderr=scale * 11.0,
        cost=Cost(products=143.0, gradients=2.0, seconds=6.4),
        **common,
    )


def whole_spectrum(**common: object) -> Spectrum:
    """As one run with probes gives it: seven known eigenvalues before the rule of the rest."""
    pairs = spectrum(**common)
    rest = density(probes=1, steps=58)
    known = np.concatenate([pairs.eigenvalues, rest.nodes[0, :53]])
    weights = np.concatenate([np.full(7, 1 / pairs.size), rest.weights[0, :53]])
    return pairs.replace(
        frobenius=86.0,
        frobenius_stderr=1.5,
        layers=("body", "head"),
        layer_traces=np.array([300.0, 102.0]),
        layer_trace_stderrs=np.array([10.0, 4.0]),
        probes=12,
        nodes=known[None],
        weights=(weights / weights.sum())[None],
        deflated=7,
    )


def density(*, scale: float = 1.0, probes: int = 8, steps: int = 60, **common: object) -> Density:
    rng = np.random.default_rng(5)
    outliers = np.array([52.3, 41.0, 33.7, 21.2, 17.9])
    quantiles = np.linspace(-2.2, 2.4, steps - 5)
    bulk = 0.02 + 0.9 * np.sign(quantiles) * np.abs(quantiles) ** 3 * np.exp(0.02 * rng.standard_normal((probes, 1)))
    nodes = scale * np.concatenate([bulk, outliers + 0.01 * rng.standard_normal((probes, 5))], axis=1)
    share = np.exp(-4.0 * np.abs(quantiles)) * np.exp(0.05 * rng.standard_normal((probes, steps - 5)))
    weights = np.concatenate(
        [share / share.sum(axis=1, keepdims=True), rng.chisquare(1, size=(probes, 5)) / 19_706], axis=1
    )
    weights /= weights.sum(axis=1, keepdims=True)
    cost = Cost(products=float(probes * steps), seconds=14.0)
    return Density(nodes=nodes, weights=weights, size=19_706, cost=cost, **common)


def trace(*, scale: float = 1.0, layers: tuple[str, ...] = LAYERS, **common: object) -> Trace:
    rng = np.random.default_rng(7)
    values = scale * np.exp(rng.normal(3.0, 1.6, size=len(layers)))
    return Trace(
        value=float(values.sum()),
        stderr=float(0.03 * values.sum()),
        layers=layers,
        layer_values=values,
        layer_stderrs=0.07 * values,
        probes=32,
        method="hutchinson",
        size=19_706,
        cost=Cost(products=32.0, seconds=0.9),
        **common,
    )


def gradients(
    *, scale: float = 1.0, broken: bool = False, layers: tuple[str, ...] = LAYERS, **common: object
) -> Gradients:
    rng = np.random.default_rng(9)
    norms = scale * np.exp(rng.normal(-3.0, 1.2, size=len(layers)))
    if broken:
        norms[-1] = math.nan
    return Gradients(
        loss=0.021 * scale,
        loss_stderr=0.003 * scale,
        norm=float(np.sqrt(np.sum(norms**2))),
        norm_stderr=0.004 * scale,
        layers=layers,
        layer_norms=norms,
        layer_norm_stderrs=0.1 * norms,
        parameter_norms=np.exp(rng.normal(1.0, 0.6, size=len(layers))),
        samples=1024,
        cost=Cost(gradients=2.0, seconds=0.2),
        **common,
    )


def line(*, scale: float = 1.0, broken: bool = False, **common: object) -> Line:
    alphas = np.linspace(-1, 1, 41)
    losses = 0.02 + scale * (1.4 * alphas**2 + 0.2 * np.sin(7 * alphas) * alphas)
    if broken:
        losses[-3:] = math.inf
    return Line(
        alphas=alphas,
        losses=losses,
        stderrs=0.05 * np.abs(losses - 0.02),
        direction_norm=17.2,
        name="filter",
        parameter_norm=17.2,
        cost=Cost(forwards=41.0, seconds=1.1),
        **common,
    )


def plane(*, scale: float = 1.0, broken: bool = False, points: int = 41, **common: object) -> Plane:
    alphas = betas = np.linspace(-1, 1, points)
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    bowl = 1.2 * a**2 + 2.6 * (b - 0.25 * a**2) ** 2
    losses = 0.02 + scale * bowl * np.exp(1.8 * (a**2 + b**2)) * (1 + 0.12 * np.sin(9 * a) * np.cos(8 * b))
    if broken:
        losses = np.where(a + 0.8 * b > 1.1, math.nan, losses)
    return Plane(
        alphas=alphas,
        betas=betas,
        losses=losses,
        stderrs=0.04 * np.abs(losses - 0.02),
        direction_norms=(17.2, 17.2),
        cosine=0.004,
        name="filter",
        parameter_norm=17.2,
        cost=Cost(forwards=float(points**2), seconds=38.0),
        **common,
    )


def trajectory(*, broken: bool = False, points: int = 31, **common: object) -> Plane:
    alphas, betas = np.linspace(-4.2, 0.9, points), np.linspace(-0.9, 2.1, points)
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    losses = 0.02 + 0.16 * a**2 + 0.9 * (b - 0.35 * np.cos(1.3 * a) + 0.3) ** 2 * (1 + 0.1 * a**2)
    if broken:
        losses = np.where(b > 1.5 + 0.1 * a, math.inf, losses * 10 ** np.clip(b, 0, 3))
    t = np.linspace(0, 1, 13)
    path = np.stack([-3.8 * (1 - t) ** 1.6, 1.5 * (1 - t) * np.cos(4.2 * t)], axis=1)
    return Plane(
        alphas=alphas,
        betas=betas,
        losses=losses,
        stderrs=np.full_like(losses, math.nan),
        direction_norms=(1.0, 1.0),
        cosine=0.0,
        name="trajectory",
        parameter_norm=17.2,
        path=path,
        path_steps=np.arange(13) * 50,
        path_losses=2.3 * np.exp(-4 * t),
        path_distances=1.2 * np.sin(np.pi * t) + 0.01,
        explained=(0.912, 0.064),
        cost=Cost(forwards=float(points**2), seconds=21.0),
        **common,
    )
