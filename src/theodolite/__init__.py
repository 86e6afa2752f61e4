"""Survey the geometry of training in PyTorch: loss, curvature, landscape, gradients, and how far to trust each number.

The names below are resolved on first use, so that reading a run log on a laptop never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theodolite import errors, linalg, losses, records
    from theodolite.forecasts import findings, load
    from theodolite.landscapes import line, plane
    from theodolite.measures import density, gradients, spectrum, stability, trace
    from theodolite.monitor import Monitor
    from theodolite.operators import GGN, GradientCovariance, Hessian
    from theodolite.plans import survey
    from theodolite.problem import Problem, undisturbed
    from theodolite.reports import report, save_figures

_ROOMS = {
    "GGN": "operators",
    "GradientCovariance": "operators",
    "Hessian": "operators",
    "Monitor": "monitor",
    "Problem": "problem",
    "density": "measures",
    "findings": "forecasts",
    "gradients": "measures",
    "line": "landscapes",
    "load": "forecasts",
    "plane": "landscapes",
    "report": "reports",
    "save_figures": "reports",
    "spectrum": "measures",
    "stability": "measures",
    "survey": "plans",
    "trace": "measures",
    "undisturbed": "problem",
}

_MODULES = ("errors", "linalg", "losses", "records")

__version__ = "0.1.0"
__all__ = [
    "GGN",
    "GradientCovariance",
    "Hessian",
    "Monitor",
    "Problem",
    "density",
    "errors",
    "findings",
    "gradients",
    "linalg",
    "line",
    "load",
    "losses",
    "plane",
    "records",
    "report",
    "save_figures",
    "spectrum",
    "stability",
    "survey",
    "trace",
    "undisturbed",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"theodolite.{_ROOMS[name]}"), name)
    if name in _MODULES:
        return import_module(f"theodolite.{name}")
    raise AttributeError(f"theodolite has no {name!r}. It has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
