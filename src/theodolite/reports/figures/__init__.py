"""Records to figure descriptions: what is drawn, apart from any drawing library."""

from theodolite.reports.figures.absent import unjudged
from theodolite.reports.figures.blocks import traces
from theodolite.reports.figures.conflicts import conflicts
from theodolite.reports.figures.description import (
    Axis,
    Band,
    Bars,
    Cells,
    Contour,
    Figure,
    Labels,
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
from theodolite.reports.figures.gram import gram
from theodolite.reports.figures.lines import line
from theodolite.reports.figures.norms import sample_norms
from theodolite.reports.figures.planes import plane
from theodolite.reports.figures.spectra import density
from theodolite.reports.figures.stability import loss_and_sharpness
from theodolite.reports.figures.trade_off import trade_off

__all__ = [
    "Axis",
    "Band",
    "Bars",
    "Cells",
    "Contour",
    "Figure",
    "Labels",
    "Line",
    "Mark",
    "Panel",
    "Path",
    "Rule",
    "Scatter",
    "Ticks",
    "conflicts",
    "crossing",
    "density",
    "departure",
    "gradient_norms",
    "gram",
    "line",
    "loss_and_sharpness",
    "plane",
    "sample_norms",
    "traces",
    "trade_off",
    "unjudged",
]
