"""Directions in parameter space: drawn, measured, of an optimiser or between checkpoints, and made comparable to the weights."""

from theodolite.landscapes.directions.between import Spanned, difference, spanning
from theodolite.landscapes.directions.curvature import eigenvectors
from theodolite.landscapes.directions.drawn import filter_normalised, gaussian, random_directions, uniform
from theodolite.landscapes.directions.moments import adam_moments, adam_step
from theodolite.landscapes.directions.names import (
    Direction,
    Named,
    Pair,
    Triple,
    named_direction,
    named_pair,
    named_triple,
)
from theodolite.landscapes.directions.scales import frozen, normalise, orthogonal
from theodolite.landscapes.directions.slopes import ascent, gradient
from theodolite.landscapes.directions.vectors import as_direction, cosine, flat_parameters, length
from theodolite.operators.updates import next_update as update

__all__ = [
    "Direction",
    "Named",
    "Pair",
    "Spanned",
    "Triple",
    "adam_moments",
    "adam_step",
    "as_direction",
    "ascent",
    "cosine",
    "difference",
    "eigenvectors",
    "filter_normalised",
    "flat_parameters",
    "frozen",
    "gaussian",
    "gradient",
    "length",
    "named_direction",
    "named_pair",
    "named_triple",
    "normalise",
    "orthogonal",
    "random_directions",
    "spanning",
    "uniform",
    "update",
]
