"""Every curvature measure with one number of its record, and what each process of two makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from theodolite import measures as m
from theodolite.errors import TheodoliteError, TheodoliteWarning
from theodolite.problem import Problem

Call = Callable[[Problem, Optimizer], float]


def transferred(problem: Problem, optimizer: Optimizer) -> float:
    found = m.transfer(lambda size, rate: (problem, optimizer), sizes=(4,), learning_rates=(0.1,), steps=(0,))
    return float(found.sharpnesses[0, 0, 0])


CALLS: dict[str, Call] = {
    "spectrum": lambda p, o: m.spectrum(p, k=1, probes=2, steps=8).max,
    "density": lambda p, o: float(m.density(p, probes=1, steps=6).trace.value),
    "trace": lambda p, o: m.trace(p, probes=4).value,
    "outliers": lambda p, o: float(m.outliers(p, spectrum=m.spectrum(p, k=3)).shares[0]),
    "classwise": lambda p, o: float(m.classwise(p, probes=2).largest[0]),
    "sharpness": lambda p, o: float(m.sharpness(p).rises[0]),
    "logit_sharpness": lambda p, o: float(m.logit_sharpness(p).rises[0]),
    "directional": lambda p, o: float(m.directional(p, o).exact[0]),
    "alignment": lambda p, o: m.alignment(p, o, k=2).gradient.value,
    "track": lambda p, o: float(m.track(p, k=1).eigenvalues[0]),
    "stability": lambda p, o: m.stability(p, o).sharpness,
    "batch_sharpness": lambda p, o: m.batch_sharpness(p, sizes=(2, 3, 4), batches=2).whole,
    "tuning": lambda p, o: m.tuning(p).largest,
    'tuning(operator="hessian")': lambda p, o: m.tuning(p, operator="hessian").largest,
    "coherence": lambda p, o: m.coherence(p).sharpness,
    "influence": lambda p, o: float(m.influence(p, p, damping=1.0).scores[0, 0]),
    'influence(operator="hessian")': lambda p, o: float(
        m.influence(p, p, damping=200.0, operator="hessian").scores[0, 0]
    ),
    "fisher_trace": lambda p, o: m.fisher_trace(p).value,
    "smoothness": lambda p, o: m.smoothness(p, draws=1, shells=2, refine=0).gradient_norm,
    "flow_sharpness": lambda p, o: float(m.flow_sharpness(p, max_steps=1).sharpnesses[0]),
    "transfer": transferred,
}


def outcome(call: Call, problem: Problem) -> float | str:
    """The number, or the name of the refusal; an error of any other kind goes on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=TheodoliteWarning)
            return call(problem, SGD(problem.model.parameters(), lr=0.1))
    except TheodoliteError as error:
        return f"refused: {error}"


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    labels = torch.arange(14) % 3
    return [(torch.randn(len(part), 4, generator=g, dtype=torch.float64), part) for part in labels.split((5, 3, 4, 2))]


def network(*, normalised: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if normalised else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()


def on_rank(rank: int) -> dict[str, Any]:
    problem = Problem(network(), nn.CrossEntropyLoss(), data()[rank::2])
    return {name: outcome(call, problem) for name, call in CALLS.items()}
