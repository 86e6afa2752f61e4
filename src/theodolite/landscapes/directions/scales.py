"""Directions on the scale of the weights that they displace, piece by piece, with pieces that stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from theodolite.errors import ParameterError
from theodolite.landscapes.directions.vectors import as_direction, flat_parameters, one_of
from theodolite.problem import Problem
from theodolite.problem.parameters import select_parameters

Normalisation = Literal["none", "weight", "filter", "layer", "model"]
OneDimensional = Literal["zero", "whole", "keep"]
Freeze = str | Sequence[str] | None
Order = Literal[1, 2]
Rows = Float[Tensor, "r s"]

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def normalise(
    direction: Tensor | np.ndarray,
    problem: Problem,
    *,
    how: Normalisation = "filter",
    order: Order = 2,
    one_dimensional: OneDimensional | None = None,
    freeze: Freeze = None,
) -> Float[Tensor, " n"]:
    """Give a direction the scale of the parameters, piece by piece.

    Args:
        direction: n numbers.
        problem: whose current parameters give the scale.
        how: the pieces whose norm becomes that of the parameters. ``"filter"``: the slices along the first dimension of
            every tensor with two or more dimensions (output channels of a layer, rows of an embedding). ``"layer"``: every
            tensor. ``"model"``: all parameters at once. ``"weight"``: every entry is multiplied by the size of its
            parameter. ``"none"``: as it is.
        order: 1 or 2, of the norm (Σ|x|^p)^(1/p).
        one_dimensional: what becomes of tensors without filters: those with fewer than two dimensions (biases) and the weights
            of norm layers. ``"zero"``, the default of the paper for ``how="filter"``; ``"whole"``, treated like any other
            tensor, with ``"filter"`` scaled as one piece: the default for every other ``how``; ``"keep"``, as they were drawn.
        freeze: globs of parameter or module names (``"head"``, ``"blocks.*.attn.*"``) that stay at θ; they are left out of all
            norms, too.

    Returns:
        The direction, flattened. Pieces that are zero, in the direction or in the model, are zero.

    Raises:
        ProblemError: the direction has another length, or an option is unknown.
        ParameterError: nothing matches a pattern of ``freeze``.
        NonFiniteError: direction or parameters are not finite.

    References:
        Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets" (2018).
    """
    one_of("how", how, get_args(Normalisation))
    one_of("order", order, get_args(Order))
    policy = _policy(how, one_dimensional)
    scaled = frozen(direction, problem, freeze=freeze)
    own = frozen(flat_parameters(problem), problem, freeze=freeze)
    aside = torch.zeros_like(scaled)
    if policy != "whole":
        bare = _without_filters(problem)
        if policy == "keep":
            aside = torch.where(bare, scaled, 0)
        scaled, own = torch.where(bare, 0, scaled), torch.where(bare, 0, own)
    if how == "weight":
        scaled *= own.abs()
    elif how != "none":
        for piece, weights in _pieces(problem, how, scaled, own):
            piece.mul_(_quotient(_norms(weights, order), _norms(piece, order)).to(piece.dtype))
    return scaled + aside


def orthogonal(
    directions: Sequence[Tensor | np.ndarray],
    problem: Problem,
    *,
    how: Normalisation = "none",
    order: Order = 2,
    one_dimensional: OneDimensional | None = None,
    freeze: Freeze = None,
) -> tuple[Float[Tensor, " n"], ...]:
    """Directions on the scale of the parameters, each made orthogonal to those before it and normalised then.

    Orthogonal within each piece that is normalised: what scales pieces afterwards keeps that, and a plane is as blind to
    rescaled layers as a line. Orthogonal as a whole first and normalised then, as is common, the axes are oblique. Only pieces
    with fewer weights than there are directions leave a cosine.

    Args:
        directions: of n numbers each.
        problem: as for ``normalise``, like all options.
        how: as there.
        order: as there.
        one_dimensional: as there.
        freeze: as there.
    """

    def scaled(direction: Tensor | np.ndarray) -> Tensor:
        return normalise(direction, problem, how=how, order=order, one_dimensional=one_dimensional, freeze=freeze)

    # What is kept as drawn is no part of the one piece that is the model: tensor by tensor, both are orthogonal.
    pieces: Normalisation = "layer" if one_dimensional == "keep" and how not in ("filter", "weight") else how
    pieces = "model" if pieces in ("none", "weight") else pieces
    found: list[Tensor] = []
    for direction in directions:
        # With "weight" every entry has a scale of its own: orthogonal in the scaled entries, which scale to themselves.
        next_one = scaled(direction) if how == "weight" else frozen(direction, problem, freeze=freeze)
        for earlier in found:
            for piece, along in _pieces(problem, pieces, next_one, earlier):
                if piece.shape[1] > len(found):  # fewer weights leave no room
                    _remove(along, piece)
        found.append(next_one if how == "weight" else scaled(next_one))
    return tuple(found)


def frozen(direction: Tensor | np.ndarray, problem: Problem, *, freeze: Freeze) -> Float[Tensor, " n"]:
    """A copy of a direction that leaves chosen parameters where they are.

    Args:
        direction: n numbers.
        problem: whose parameters they displace.
        freeze: globs of parameter or module names; None freezes nothing.

    Raises:
        ParameterError: nothing that the problem surveys matches a pattern.
    """
    copied = as_direction(direction, problem, allow_zero=True).clone()
    if freeze is None:
        return copied
    held = [name for name in select_parameters(problem.model, freeze) if name in problem.layout.slices]
    if not held:
        raise ParameterError(
            f"Expected freeze={freeze!r} to match parameters that the problem surveys, found none among "
            f"{', '.join(problem.layout.names[:8])}."
        )
    for name in held:
        copied[problem.layout.slices[name]] = 0
    return copied


def _policy(how: Normalisation, one_dimensional: OneDimensional | None) -> OneDimensional:
    if one_dimensional is None:
        return "zero" if how == "filter" else "whole"
    one_of("one_dimensional", one_dimensional, get_args(OneDimensional))
    return one_dimensional


def _without_filters(problem: Problem) -> Bool[Tensor, " n"]:
    """Which entries belong to tensors that have no filters."""
    bare = set(_names_without_filters(problem))
    marks = [
        torch.full((size,), name in bare, device=problem.device)
        for name, size in zip(problem.layout.names, problem.layout.sizes, strict=True)
    ]
    return torch.cat(marks)


def _names_without_filters(problem: Problem) -> Iterator[str]:
    for name, shape in zip(problem.layout.names, problem.layout.shapes, strict=True):
        owner = problem.model.get_submodule(name.rpartition(".")[0])
        if len(shape) < 2 or isinstance(owner, NORMS):  # LayerNorm over images has weights of three dimensions
            yield name


def _pieces(problem: Problem, how: Normalisation, first: Tensor, second: Tensor) -> Iterator[tuple[Rows, Rows]]:
    """Views of two flat vectors with one piece a row."""
    if how == "model":
        yield first.view(1, -1), second.view(1, -1)
        return
    whole = set(problem.layout.names) if how == "layer" else set(_names_without_filters(problem))
    tensors = zip(problem.layout.names, *map(problem.layout.unflatten, (first, second)), strict=True)
    for name, one, other in tensors:
        rows = (1, -1) if name in whole else (one.shape[0], -1)
        if one.numel():
            yield one.reshape(rows), other.reshape(rows)


def _remove(along: Rows, rows: Rows) -> None:
    """Take out of each row its part along another."""
    products = (rows.double() * along.double()).sum(1, keepdim=True)
    rows.sub_(_quotient(products, _norms(along, 2).square()).to(rows.dtype) * along)


def _norms(rows: Rows, order: Order) -> Float[Tensor, "r 1"]:
    norms: Tensor = torch.linalg.vector_norm(rows, ord=order, dim=1, keepdim=True, dtype=torch.float64)
    return norms


def _quotient(numerator: Float[Tensor, "r 1"], denominator: Float[Tensor, "r 1"]) -> Float[Tensor, "r 1"]:
    """The quotient, 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))
