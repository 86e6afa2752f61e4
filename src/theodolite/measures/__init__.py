"""From a problem at one point to a record: curvature, gradients, stability."""

from theodolite.measures.curvature import density, spectrum, trace
from theodolite.measures.gradients import gradients
from theodolite.measures.sharpness import sharpness
from theodolite.measures.stability import stability

__all__ = ["density", "gradients", "sharpness", "spectrum", "stability", "trace"]
