"""Records to figure descriptions: what is drawn, apart from any drawing library."""

from theodolite.reports.figures.absent import unjudged
from theodolite.reports.figures.blocks import traces
from theodolite.reports.figures.description import (
    Axis,
    Band,
    Bars,
    Contour,
    Figure,
    Line,
    Mark,
    Panel,
    Path,
    Rule,
    Scatter,
    Ticks,
)
from theodolite.reports.figures.edge import crossing, departure
from theodolite.reports.figures.gradients import gradient_norms
from theodolite.reports.figures.lines import line
from theodolite.reports.figures.planes import plane
from theodolite.reports.figures.spectra import density
from theodolite.reports.figures.stability import loss_and_sharpness

__all__ = [
    "Axis",
    "Band",
    "Bars",
    "Contour",
    "Figure",
    "Line",
    "Mark",
    "Panel",
    "Path",
    "Rule",
    "Scatter",
    "Ticks",
    "crossing",
    "density",
    "departure",
    "gradient_norms",
    "line",
    "loss_and_sharpness",
    "plane",
    "traces",
    "unjudged",
]
