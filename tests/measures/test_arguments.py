"""Arguments of the wrong type and parameters that are not finite, at every measure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from families import BY_NAME
from theodolite import measures
from theodolite.errors import NonFiniteError, ProblemError
from theodolite.problem import Problem
from theodolite.problem.arguments import one_or_several, optional, real, several, whole

PROBLEM = BY_NAME["mlp"].problem()
OPTIMIZER = SGD(PROBLEM.model.parameters(), lr=0.1)
MEASURES = (
    "alignment",
    "batch_sharpness",
    "classwise",
    "coherence",
    "curved_noise",
    "density",
    "directional",
    "domain_alignment",
    "elements",
    "fisher_trace",
    "flow_sharpness",
    "gap_change",
    "gradient_norm_term",
    "influence",
    "input_gradients",
    "integrated_gradients",
    "logit_sharpness",
    "module_variances",
    "opposing_signals",
    "outliers",
    "sharpness",
    "smoothness",
    "smoothness_gradient",
    "spectrum",
    "stability",
    "trace",
    "track",
    "tuning",
)
REST: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "alignment": ((OPTIMIZER,), {}),
    "directional": ((OPTIMIZER,), {}),
    "stability": ((OPTIMIZER,), {}),
    "influence": ((PROBLEM,), {"damping": 0.1}),
    "gradient_norm_term": ((), {"noise": 0.1}),
    "opposing_signals": ((torch.zeros(PROBLEM.n),), {}),
}


def unchecked(name: str) -> Callable[..., Any]:
    """The measure without the type checker of the tests, as users call it."""
    return inspect.unwrap(getattr(measures, name))


@pytest.mark.parametrize("name", MEASURES)
def test_a_model_is_no_problem(name: str) -> None:
    arguments, options = REST.get(name, ((), {}))
    with pytest.raises(ProblemError, match=r"Expected a Problem, found a Linear. Make one: Problem\(model, criterion"):
        unchecked(name)(nn.Linear(2, 2), *arguments, **options)


@pytest.mark.parametrize("name", ["alignment", "directional", "stability"])
def test_a_model_is_no_optimiser(name: str) -> None:
    with pytest.raises(ProblemError, match=r"Expected the torch.optim.Optimizer .*, found a Linear"):
        unchecked(name)(PROBLEM, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spectrum", {"k": 2.5}, "k to be a whole number, found the float 2.5"),
        ("spectrum", {"k": "3"}, "k to be a whole number, found the str '3'"),
        ("spectrum", {"tol": "small"}, "tol to be a number, found the str 'small'"),
        ("spectrum", {"probes": True}, "probes to be a whole number, found the bool True"),
        ("spectrum", {"max_products": 20.0}, "max_products to be a whole number, found the float 20.0"),
        ("density", {"steps": 2.5}, "steps to be a whole number, found the float 2.5"),
        ("trace", {"probes": 2.5}, "probes to be a whole number, found the float 2.5"),
        ("coherence", {"samples": 2.5}, "samples to be a whole number, found the float 2.5"),
        ("tuning", {"steps": 2.5}, "steps to be a whole number, found the float 2.5"),
        ("smoothness", {"draws": 1.5}, "draws to be a whole number, found the float 1.5"),
        ("flow_sharpness", {"tol": "a"}, "tol to be a number, found the str 'a'"),
        ("batch_sharpness", {"sizes": 8}, r"sizes to be a sequence of numbers, found the int 8. Write sizes=\(8,\)"),
        ("fisher_trace", {"draws": 2.5}, "draws to be a whole number, found the float 2.5"),
        ("classwise", {"probes": 1.5}, "probes to be a whole number, found the float 1.5"),
        ("sharpness", {"radius": "wide"}, "radius to be a sequence of numbers, found the str 'wide'"),
        ("sharpness", {"kind": "average", "draws": 2.5}, "draws to be a whole number, found the float 2.5"),
        ("logit_sharpness", {"radius": [0.1, None]}, r"radius\[1\] to be a number, found None"),
        ("directional", {"optimizer": OPTIMIZER, "length": "1"}, "length to be a number, found the str '1'"),
        ("gap_change", {"probes": 2.5}, "probes to be a whole number, found the float 2.5"),
        ("module_variances", {"splits": 2.5}, "splits to be a whole number, found the float 2.5"),
        ("module_variances", {"optimizer": 3}, "the torch.optim.Optimizer of the problem's model, found the int 3"),
        ("domain_alignment", {"tol": "a"}, "tol to be a number, found the str 'a'"),
        ("elements", {"epsilon": "a"}, "epsilon to be a number, found the str 'a'"),
        ("opposing_signals", {"update": [0.0]}, r"an update as a flat tensor, found the list \[0.0\]"),
        ("input_gradients", {"of": 3}, "of='loss', 'logit', or a function"),
        ("integrated_gradients", {"nodes": 2.5}, "nodes to be a whole number, found the float 2.5"),
        ("smoothness_gradient", {"radius": "a"}, "radius to be a number, found the str 'a'"),
    ],
)
def test_wrong_types_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=f"Expected {message}"):
        unchecked(name)(PROBLEM, **options)


def make(size: int, rate: float) -> Any:
    return PROBLEM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": 8}, r"sizes to be a sequence of numbers, found the int 8. Write sizes=\(8,\)"),
        ({"sizes": (2.5,)}, r"sizes\[0\] to be a whole number, found the float 2.5"),
        ({"learning_rates": 0.1}, r"Write learning_rates=\(0.1,\)"),
        ({"steps": 5}, r"Write steps=\(5,\)"),
        ({}, r"make\(8, 0.1\) to return a problem and the optimiser of its model, found a Problem"),
    ],
)
def test_transfer_takes_sequences_and_pairs(options: dict[str, Any], message: str) -> None:
    usual = {"sizes": (8,), "learning_rates": (0.1,), "steps": (0,)}
    with pytest.raises(ProblemError, match=message):
        unchecked("transfer")(make, **(usual | options))


READ = (
    "gradient_norm_term",
    "input_gradients",
    "integrated_gradients",
    "logit_sharpness",
    "opposing_signals",
    "stability",
)


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in READ])
def test_parameters_that_are_not_finite_are_said(name: str) -> None:
    """A stability, a rise in the logits, losses and input gradients of samples that are NaN are readings of a run that diverged."""
    model = nn.Linear(5, 3).double()
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    data = [(torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3) for _ in range(4)]
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    optimizer = SGD(model.parameters(), lr=0.1)
    arguments, options = REST.get(name, ((), {}))
    swapped = [optimizer if given is OPTIMIZER else problem for given in arguments]
    with pytest.raises(NonFiniteError, match=r"Expected (a )?finite"):
        getattr(measures, name)(problem, *swapped, **options)


def test_numbers_of_numpy_are_numbers() -> None:
    whole(k=np.int64(3))
    real(tol=np.float32(0.1))
    several(whole, sizes=np.array([4, 8]))
    one_or_several(real, radius=np.array([0.1]))
    optional(whole, limit=None)
    with pytest.raises(ProblemError, match="limit to be a whole number"):
        optional(whole, limit=1.0)
