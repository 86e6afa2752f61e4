"""From a problem at one point to a record: curvature, gradients, stability."""

from theodolite.measures.alignment import alignment
from theodolite.measures.batch_size import batch_sharpness, scale_learning_rate
from theodolite.measures.classwise import classwise
from theodolite.measures.coherence import coherence
from theodolite.measures.curvature import spectrum
from theodolite.measures.diffroar import diffroar
from theodolite.measures.directional import directional
from theodolite.measures.domain_alignment import domain_alignment
from theodolite.measures.elements import elements
from theodolite.measures.fisher_trace import fisher_trace
from theodolite.measures.flow_sharpness import flow_sharpness, scalar_flow_sharpness
from theodolite.measures.gap_change import gap_change
from theodolite.measures.gradient_sketch import gradient_sketch
from theodolite.measures.gradients import gradients
from theodolite.measures.influence import influence
from theodolite.measures.input_gradients import input_gradients, integrated_gradients
from theodolite.measures.logit_sharpness import logit_sharpness
from theodolite.measures.module_variances import module_variances
from theodolite.measures.noise import curved_noise
from theodolite.measures.opposing import opposing_samples, opposing_signals
from theodolite.measures.outliers import outliers
from theodolite.measures.pac_bayes import gradient_norm_term
from theodolite.measures.probing import density, trace
from theodolite.measures.sharpness import sharpness
from theodolite.measures.smoothness import smoothness
from theodolite.measures.smoothness_gradient import smoothness_gradient
from theodolite.measures.stability import stability
from theodolite.measures.task_gradients import task_gradients
from theodolite.measures.tracking import track
from theodolite.measures.transfer import transfer
from theodolite.measures.tuning import tuning
from theodolite.operators.updates import next_update

__all__ = [
    "alignment",
    "batch_sharpness",
    "classwise",
    "coherence",
    "curved_noise",
    "density",
    "diffroar",
    "directional",
    "domain_alignment",
    "elements",
    "fisher_trace",
    "flow_sharpness",
    "gap_change",
    "gradient_norm_term",
    "gradient_sketch",
    "gradients",
    "influence",
    "input_gradients",
    "integrated_gradients",
    "logit_sharpness",
    "module_variances",
    "next_update",
    "opposing_samples",
    "opposing_signals",
    "outliers",
    "scalar_flow_sharpness",
    "scale_learning_rate",
    "sharpness",
    "smoothness",
    "smoothness_gradient",
    "spectrum",
    "stability",
    "task_gradients",
    "trace",
    "track",
    "transfer",
    "tuning",
]
