"""Random directions."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.landscapes.directions.scales import Freeze, Normalisation, OneDimensional, normalise, orthogonal
from theodolite.landscapes.directions.vectors import one_of
from theodolite.problem import Problem

Draw = Literal["gaussian", "uniform"]


def gaussian(problem: Problem, *, seed: int) -> Float[Tensor, " n"]:
    """A direction with independent standard normal entries.

    It is drawn on the CPU in single precision, then converted and moved: a seed gives the same direction on every
    device and in every dtype.

    Args:
        problem: gives size, dtype and device.
        seed: of the generator.

    Returns:
        The direction, flattened.

    Example:
        >>> from torch import nn
        >>> problem = Problem(nn.Linear(3, 2), nn.MSELoss(), [(torch.ones(4, 3), torch.ones(4, 2))])
        >>> gaussian(problem, seed=0).shape
        torch.Size([8])
    """
    return _drawn(problem, "gaussian", seed=seed, count=1)[0]


def uniform(problem: Problem, *, seed: int) -> Float[Tensor, " n"]:
    """A direction with independent entries uniform on [0, 1], none negative: the "random" axes of Loss Landscape Analysis.

    For comparison with its pictures alone. Two of these have a cosine of about 3/4, so that "random" curves of different
    seeds are mostly the same curve; ``gaussian`` is what that word should mean.

    Args:
        problem: gives size, dtype and device.
        seed: of the generator.

    References:
        Gabdullin, "Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
        analysis" (2024).
    """
    return _drawn(problem, "uniform", seed=seed, count=1)[0]


def filter_normalised(
    problem: Problem, *, seed: int, one_dimensional: OneDimensional = "zero", freeze: Freeze = None
) -> Float[Tensor, " n"]:
    """A Gaussian direction in which every filter has the norm of the model's own.

    Curves along it do not change when a ReLU network is rescaled without changing its function, so that they can be
    compared between models.

    Args:
        problem: whose parameters give the norms.
        seed: of the generator.
        one_dimensional: what becomes of biases and norm weights, as for ``normalise``.
        freeze: parameters that stay where they are, as for ``normalise``.

    Returns:
        The direction, flattened; ``gaussian(problem, seed=seed)`` before normalisation.

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    drawn = gaussian(problem, seed=seed)
    return normalise(drawn, problem, how="filter", one_dimensional=one_dimensional, freeze=freeze)


def random_directions(
    problem: Problem,
    *,
    seed: int,
    count: int = 2,
    how: Normalisation = "filter",
    draw: Draw = "gaussian",
    order: Literal[1, 2] = 2,
    one_dimensional: OneDimensional | None = None,
    freeze: Freeze = None,
) -> tuple[Float[Tensor, " n"], ...]:
    """Random directions, each made orthogonal to those before it and then normalised, as ``orthogonal`` does it.

    Args:
        problem: whose parameters give the norms.
        seed: of the generator; the first is ``gaussian(problem, seed=seed)`` or ``uniform(...)``, normalised.
        count: how many.
        how: as for ``normalise``.
        draw: ``"gaussian"``, or ``"uniform"`` as Loss Landscape Analysis draws.
        order: as for ``normalise``.
        one_dimensional: as for ``normalise``.
        freeze: as for ``normalise``.
    """
    one_of("draw", draw, get_args(Draw))
    drawn = _drawn(problem, draw, seed=seed, count=count)
    return orthogonal(drawn, problem, how=how, order=order, one_dimensional=one_dimensional, freeze=freeze)


def _drawn(problem: Problem, draw: Draw, *, seed: int, count: int) -> list[Float[Tensor, " n"]]:
    """Vectors of one stream: the second of a seed is no other seed's first."""
    generator = torch.Generator("cpu").manual_seed(seed)
    sample = torch.randn if draw == "gaussian" else torch.rand
    vectors = (sample(problem.n, generator=generator, dtype=torch.float32) for _ in range(count))
    return [vector.to(problem.device, problem.dtype) for vector in vectors]
