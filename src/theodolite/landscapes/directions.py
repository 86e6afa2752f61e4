"""Directions in parameter space: random, and made comparable to the weights they displace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theodolite.errors import NonFiniteError, ProblemError
from theodolite.problem import Layout, Problem

Normalisation = Literal["none", "weight", "filter", "layer", "model"]
OneDimensional = Literal["zero", "whole"]

PARALLEL = 1e-6  # sine of the angle below which two directions in single precision are one


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
    return _draw(problem, seed=seed, count=1)[0]


def filter_normalised(problem: Problem, *, seed: int, one_dimensional: OneDimensional = "zero") -> Float[Tensor, " n"]:
    """A Gaussian direction in which every filter has the norm of the model's own.

    Curves along it do not change when a ReLU network is rescaled without changing its function, so that they can be
    compared between models.

    Args:
        problem: whose parameters give the norms.
        seed: of the generator.
        one_dimensional: what becomes of biases and norm weights, as for ``normalise``.

    Returns:
        The direction, flattened; ``gaussian(problem, seed=seed)`` before normalisation.

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    return normalise(gaussian(problem, seed=seed), problem, how="filter", one_dimensional=one_dimensional)


def normalise(
    direction: Tensor | np.ndarray,
    problem: Problem,
    *,
    how: Normalisation = "filter",
    one_dimensional: OneDimensional = "zero",
) -> Float[Tensor, " n"]:
    """Give a direction the scale of the parameters, piece by piece.

    Args:
        direction: n numbers.
        problem: whose current parameters give the scale.
        how: the pieces whose norm becomes that of the parameters. ``"filter"``: the slices along the first dimension of
            every tensor with two or more dimensions (output channels of a layer, rows of an embedding). ``"layer"``: every
            tensor. ``"model"``: all parameters at once. ``"weight"``: every entry is multiplied by the size of its
            parameter. ``"none"``: as it is.
        one_dimensional: with ``how="filter"``, what becomes of tensors with fewer than two dimensions (biases, norm
            weights), which have no filters: ``"zero"``, the default of the paper, or ``"whole"``, scaled as one piece.

    Returns:
        The direction, flattened. Pieces that are zero, in the direction or in the model, are zero.

    Raises:
        ProblemError: the direction has another length, or an option is unknown.
        NonFiniteError: direction or parameters are not finite.

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    _one_of("how", how, get_args(Normalisation))
    _one_of("one_dimensional", one_dimensional, get_args(OneDimensional))
    scaled = as_direction(direction, problem, allow_zero=True).clone()
    parameters = flat_parameters(problem)
    if how == "weight":
        return scaled * parameters.abs()
    if how == "none":
        return scaled
    for piece, own, shape in _pieces(problem.layout, how, scaled, parameters):
        if how == "filter" and len(shape) < 2 and one_dimensional == "zero":
            piece.zero_()
        else:
            piece.mul_(_quotient(_norms(own), _norms(piece)).to(piece.dtype))
    return scaled


def random_pair(problem: Problem, *, seed: int, how: Literal["none", "filter"]) -> tuple[Tensor, Tensor]:
    """Two Gaussian directions, the second made orthogonal to the first and then normalised.

    Orthogonal within each filter where filters are normalised: what scales filters afterwards keeps that, and a plane is
    as blind to rescaled layers as a line. Only filters of a single weight leave a cosine.
    """
    first, second = _draw(problem, seed=seed, count=2)
    first = normalise(first, problem, how=how)
    second = second.clone()
    for piece, other, _ in _pieces(problem.layout, "filter" if how == "filter" else "model", second, first):
        if piece.shape[1] > 1:
            products = (piece.double() * other.double()).sum(1, keepdim=True)
            piece.sub_(_quotient(products, _norms(other).square()).to(piece.dtype) * other)
    return first, normalise(second, problem, how=how)


def as_direction(direction: Tensor | np.ndarray, problem: Problem, *, allow_zero: bool = False) -> Float[Tensor, " n"]:
    """Check a vector and bring it to the dtype and device of the problem.

    Raises:
        ProblemError: it has another length, or is zero.
        NonFiniteError: it has entries that are not finite.
    """
    # A read-only array, as records hold them, cannot be shared with torch: copy it.
    given = torch.from_numpy(np.array(direction)) if isinstance(direction, np.ndarray) else direction.detach()
    if tuple(given.shape) != (problem.n,):
        raise ProblemError(
            f"Expected a direction of shape ({problem.n},), one number for each selected parameter in the order of "
            f"named_parameters(), found {tuple(given.shape)}. Flatten it with problem.layout.flatten."
        )
    vector = given.to(problem.device, problem.dtype)
    lost = int((~torch.isfinite(vector)).sum())
    if lost:
        raise NonFiniteError(f"Expected a finite direction, found {lost} of {problem.n} entries NaN or infinite.")
    if not allow_zero and not bool(vector.any()):
        raise ProblemError(
            "Expected a direction that is not zero, found zeros. A filter-normalised direction is zero where all selected "
            "parameters are one-dimensional (biases, norm weights) or zero themselves; use filter_normalised(..., "
            "one_dimensional='whole') or directions='gaussian'."
        )
    return vector


def flat_parameters(problem: Problem) -> Float[Tensor, " n"]:
    """θ, flattened.

    Raises:
        NonFiniteError: training has diverged.
    """
    flat = problem.layout.flatten([leaf.detach() for leaf in problem.point().leaves])
    lost = int((~torch.isfinite(flat)).sum())
    if lost:
        raise NonFiniteError(
            f"Expected finite parameters at the centre, found {lost} of {problem.n} NaN or infinite. Training has "
            "diverged; survey an earlier checkpoint."
        )
    return flat


def cosine(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Cosine between two directions, in double precision.

    Raises:
        ProblemError: they are parallel.
    """
    units = [direction.double() / length(direction) for direction in (first, second)]
    found = float(torch.dot(*units))
    if float(torch.linalg.vector_norm(units[1] - found * units[0])) < PARALLEL:
        raise ProblemError(
            f"Expected two directions that span a plane, found them parallel (cosine {found:.9g}). Use line(), or give "
            "another second direction."
        )
    return found


def length(direction: Float[Tensor, " n"]) -> float:
    """‖d‖ in double precision."""
    return float(torch.linalg.vector_norm(direction, dtype=torch.float64))


def _draw(problem: Problem, *, seed: int, count: int) -> list[Float[Tensor, " n"]]:
    """Vectors of one stream: the second of a seed is no other seed's first."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = (torch.randn(problem.n, generator=generator, dtype=torch.float32) for _ in range(count))
    return [vector.to(problem.device, problem.dtype) for vector in drawn]


def _pieces(
    layout: Layout, how: Literal["filter", "layer", "model"], first: Tensor, second: Tensor
) -> list[tuple[Float[Tensor, "r s"], Float[Tensor, "r s"], torch.Size]]:
    """Views of two flat vectors with one piece a row, and the shape of the tensor that they belong to."""
    if how == "model":
        return [(first.view(1, -1), second.view(1, -1), first.shape)]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.flatten(1) if how == "filter" and tensor.dim() > 1 else tensor.reshape(1, -1)

    tensors = zip(layout.unflatten(first), layout.unflatten(second), layout.shapes, strict=True)
    return [(rows(one), rows(other), shape) for one, other, shape in tensors]


def _norms(rows: Float[Tensor, "r s"]) -> Float[Tensor, "r 1"]:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return norms


def _quotient(numerator: Float[Tensor, "r 1"], denominator: Float[Tensor, "r 1"]) -> Float[Tensor, "r 1"]:
    """The quotient, 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ProblemError(f"Expected {name} to be one of {', '.join(map(repr, allowed))}, found {value!r}.")
