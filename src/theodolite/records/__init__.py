"""What was measured: plain results with errors and costs, and the run log that keeps them."""

from theodolite.records.cost import Cost
from theodolite.records.density import Density
from theodolite.records.gradients import Gradients
from theodolite.records.landscape import Line, Plane
from theodolite.records.record import Record
from theodolite.records.spectrum import Spectrum
from theodolite.records.stability import Stability
from theodolite.records.trace import Trace
from theodolite.records.training import Event, Scalars, Snapshot

__all__ = [
    "Cost",
    "Density",
    "Event",
    "Gradients",
    "Line",
    "Plane",
    "Record",
    "Scalars",
    "Snapshot",
    "Spectrum",
    "Stability",
    "Trace",
]
