"""What was measured: plain results with errors and costs, and the run log that keeps them."""

from theodolite.records.alignment import Alignment
from theodolite.records.atlas import Atlas
from theodolite.records.batch_sharpness import BatchSharpness
from theodolite.records.bits import Bits, bits, gaussian_bits
from theodolite.records.book import Book
from theodolite.records.branching import Basin, Branching
from theodolite.records.classwise import Classwise
from theodolite.records.coherence import Coherence
from theodolite.records.connectivity import Connectivity
from theodolite.records.coresets import Coreset, coreset
from theodolite.records.cost import Cost
from theodolite.records.curved_noise import CurvedNoise
from theodolite.records.data_scores import DataScores, data_scores
from theodolite.records.density import Density
from theodolite.records.diffroar import DiffRoar
from theodolite.records.directional import Directional
from theodolite.records.domain_alignment import DomainAlignment
from theodolite.records.elements import Elements
from theodolite.records.equality import differences
from theodolite.records.estimate import Estimate
from theodolite.records.export import export, restore
from theodolite.records.flow import Flow
from theodolite.records.gap_change import GapChange
from theodolite.records.gradient_sketch import GradientSketch
from theodolite.records.gradients import Gradients
from theodolite.records.hypotheses import Hypotheses
from theodolite.records.influence import Influence
from theodolite.records.input_gradients import InputGradients, IntegratedGradients
from theodolite.records.invariance import Invariance
from theodolite.records.landscape import Line, Plane
from theodolite.records.layer_barriers import LayerBarriers
from theodolite.records.log import Log
from theodolite.records.loss_weights import loss_weights
from theodolite.records.module_variances import ModuleVariances
from theodolite.records.opposing import OpposingSignals
from theodolite.records.outliers import Outliers
from theodolite.records.overshoot import overshoot
from theodolite.records.pac_bayes import PacBayes
from theodolite.records.path import Path
from theodolite.records.phase import Phase, PhaseMetrics, phases
from theodolite.records.reading import read
from theodolite.records.record import Record
from theodolite.records.sample_convergence import SampleConvergence
from theodolite.records.sampling import Clusters, Sampling, clusters, importance_sampling
from theodolite.records.sharpness import Sharpness
from theodolite.records.sign_flips import SignFlips
from theodolite.records.similarity import Similarity
from theodolite.records.sketch_memory import SketchMemory
from theodolite.records.slices import Curvatures, Width, curvatures, slices, width
from theodolite.records.smoothness import Smoothness
from theodolite.records.spectrum import Spectrum
from theodolite.records.stability import Stability
from theodolite.records.task_gradients import TaskGradients
from theodolite.records.topology import Topology, topology
from theodolite.records.trace import Trace
from theodolite.records.tracking import Tracking
from theodolite.records.training import Event, Scalars, Snapshot
from theodolite.records.trajectory import Trajectory
from theodolite.records.transfer import Transfer
from theodolite.records.tuning import Tuning
from theodolite.records.volume import Volume

__all__ = [
    "Alignment",
    "Atlas",
    "Basin",
    "BatchSharpness",
    "Bits",
    "Book",
    "Branching",
    "Classwise",
    "Clusters",
    "Coherence",
    "Connectivity",
    "Coreset",
    "Cost",
    "Curvatures",
    "CurvedNoise",
    "DataScores",
    "Density",
    "DiffRoar",
    "Directional",
    "DomainAlignment",
    "Elements",
    "Estimate",
    "Event",
    "Flow",
    "GapChange",
    "GradientSketch",
    "Gradients",
    "Hypotheses",
    "Influence",
    "InputGradients",
    "IntegratedGradients",
    "Invariance",
    "LayerBarriers",
    "Line",
    "Log",
    "ModuleVariances",
    "OpposingSignals",
    "Outliers",
    "PacBayes",
    "Path",
    "Phase",
    "PhaseMetrics",
    "Plane",
    "Record",
    "SampleConvergence",
    "Sampling",
    "Scalars",
    "Sharpness",
    "SignFlips",
    "Similarity",
    "SketchMemory",
    "Smoothness",
    "Snapshot",
    "Spectrum",
    "Stability",
    "TaskGradients",
    "Topology",
    "Trace",
    "Tracking",
    "Trajectory",
    "Transfer",
    "Tuning",
    "Volume",
    "Width",
    "bits",
    "clusters",
    "coreset",
    "curvatures",
    "data_scores",
    "differences",
    "export",
    "gaussian_bits",
    "importance_sampling",
    "loss_weights",
    "overshoot",
    "phases",
    "read",
    "restore",
    "slices",
    "topology",
    "width",
]
