"""What the records say, now (findings) and ahead (laws). Needs no model."""

from theodolite.forecasts.edge_of_stability import edge_of_stability
from theodolite.forecasts.finding import Finding
from theodolite.forecasts.findings import RULES, findings
from theodolite.forecasts.non_finite import non_finite
from theodolite.forecasts.not_converged import not_converged
from theodolite.forecasts.run import Run, load

__all__ = ["RULES", "Finding", "Run", "edge_of_stability", "findings", "load", "non_finite", "not_converged"]
