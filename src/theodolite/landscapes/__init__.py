"""From a problem to losses along lines, over planes and volumes, on paths, and along trainings."""

from theodolite.landscapes import directions
from theodolite.landscapes.adameq import adameq
from theodolite.landscapes.atlas import atlas
from theodolite.landscapes.checkpoints import at_checkpoint, snapshots
from theodolite.landscapes.directions import filter_normalised, gaussian, normalise
from theodolite.landscapes.following import follow, frames
from theodolite.landscapes.hypotheses import hypotheses
from theodolite.landscapes.lines import line
from theodolite.landscapes.paths import (
    Curve,
    Matching,
    basin,
    bezier,
    branching,
    chain,
    connectivity,
    counterfactual,
    invariance,
    layer_barriers,
    match,
    path,
)
from theodolite.landscapes.phase_metrics import phase_metrics
from theodolite.landscapes.planes import plane
from theodolite.landscapes.sample_convergence import sample_convergence
from theodolite.landscapes.scalars import accuracy
from theodolite.landscapes.similarity import similarity
from theodolite.landscapes.trajectories import PrincipalDirections, trajectory
from theodolite.landscapes.volumes import volume

__all__ = [
    "Curve",
    "Matching",
    "PrincipalDirections",
    "accuracy",
    "adameq",
    "at_checkpoint",
    "atlas",
    "basin",
    "bezier",
    "branching",
    "chain",
    "connectivity",
    "counterfactual",
    "directions",
    "filter_normalised",
    "follow",
    "frames",
    "gaussian",
    "hypotheses",
    "invariance",
    "layer_barriers",
    "line",
    "match",
    "normalise",
    "path",
    "phase_metrics",
    "plane",
    "sample_convergence",
    "similarity",
    "snapshots",
    "trajectory",
    "volume",
]
