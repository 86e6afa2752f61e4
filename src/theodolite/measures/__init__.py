"""From a problem at one point to a record: curvature, gradients, stability."""

from theodolite.measures.curvature import spectrum
from theodolite.measures.directional import directional
from theodolite.measures.gradients import gradients
from theodolite.measures.probing import density, trace
from theodolite.measures.sharpness import sharpness
from theodolite.measures.stability import stability
from theodolite.measures.updates import next_update

__all__ = ["density", "directional", "gradients", "next_update", "sharpness", "spectrum", "stability", "trace"]
