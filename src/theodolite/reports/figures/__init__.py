"""Records to figure descriptions: what is drawn, apart from any drawing library."""

from theodolite.reports.figures.absent import unjudged
from theodolite.reports.figures.atlas import atlas
from theodolite.reports.figures.blocks import traces
from theodolite.reports.figures.conflicts import conflicts
from theodolite.reports.figures.connections import connectivity, profiles
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
from theodolite.reports.figures.relief import Heat, Surface, Zone
from theodolite.reports.figures.ridgelines import ridgelines
from theodolite.reports.figures.spectra import density
from theodolite.reports.figures.stability import loss_and_sharpness
from theodolite.reports.figures.surfaces import surface
from theodolite.reports.figures.trade_off import trade_off
from theodolite.reports.figures.trajectories import trajectory

__all__ = [
    "Axis",
    "Band",
    "Bars",
    "Cells",
    "Contour",
    "Figure",
    "Heat",
    "Labels",
    "Line",
    "Mark",
    "Panel",
    "Path",
    "Rule",
    "Scatter",
    "Surface",
    "Ticks",
    "Zone",
    "atlas",
    "conflicts",
    "connectivity",
    "crossing",
    "density",
    "departure",
    "gradient_norms",
    "gram",
    "line",
    "loss_and_sharpness",
    "plane",
    "profiles",
    "ridgelines",
    "sample_norms",
    "surface",
    "traces",
    "trade_off",
    "trajectory",
    "unjudged",
]
