"""Curves between checkpoints: straight, bent by training, or straight after the units are matched."""

from theodolite.landscapes.paths.bends import bezier, chain
from theodolite.landscapes.paths.branches import basin, branching
from theodolite.landscapes.paths.curve import Curve
from theodolite.landscapes.paths.invariances import counterfactual, invariance
from theodolite.landscapes.paths.layerwise import layer_barriers
from theodolite.landscapes.paths.matching import Matching, match
from theodolite.landscapes.paths.pairs import connectivity
from theodolite.landscapes.paths.path import path

__all__ = [
    "Curve",
    "Matching",
    "basin",
    "bezier",
    "branching",
    "chain",
    "connectivity",
    "counterfactual",
    "invariance",
    "layer_barriers",
    "match",
    "path",
]
