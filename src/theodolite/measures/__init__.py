"""From a problem at one point to a record: curvature, gradients, stability."""

from theodolite.measures.batch_size import batch_sharpness, scale_learning_rate
from theodolite.measures.curvature import spectrum
from theodolite.measures.directional import directional
from theodolite.measures.gradients import gradients
from theodolite.measures.probing import density, trace
from theodolite.measures.sharpness import sharpness
from theodolite.measures.stability import stability
from theodolite.measures.tuning import tuning
from theodolite.measures.updates import next_update

__all__ = [
    "batch_sharpness",
    "density",
    "directional",
    "gradients",
    "next_update",
    "scale_learning_rate",
    "sharpness",
    "spectrum",
    "stability",
    "trace",
    "tuning",
]
