"""From a problem to losses along lines, over planes and volumes, and along trainings."""

from theodolite.landscapes import directions
from theodolite.landscapes.adameq import adameq
from theodolite.landscapes.checkpoints import at_checkpoint, snapshots
from theodolite.landscapes.directions import filter_normalised, gaussian, normalise
from theodolite.landscapes.following import follow, frames
from theodolite.landscapes.lines import line
from theodolite.landscapes.planes import plane
from theodolite.landscapes.trajectories import PrincipalDirections, trajectory
from theodolite.landscapes.volumes import volume

__all__ = [
    "PrincipalDirections",
    "adameq",
    "at_checkpoint",
    "directions",
    "filter_normalised",
    "follow",
    "frames",
    "gaussian",
    "line",
    "normalise",
    "plane",
    "snapshots",
    "trajectory",
    "volume",
]
