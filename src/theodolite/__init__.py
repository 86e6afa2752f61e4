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
    from theodolite.measures import (
        alignment,
        batch_sharpness,
        classwise,
        coherence,
        curved_noise,
        density,
        directional,
        fisher_trace,
        flow_sharpness,
        gradients,
        influence,
        logit_sharpness,
        next_update,
        outliers,
        scale_learning_rate,
        sharpness,
        smoothness,
        spectrum,
        stability,
        trace,
        track,
        transfer,
        tuning,
    )
    from theodolite.monitor import Monitor
    from theodolite.operators import (
        EKFAC,
        GGN,
        KFAC,
        MFAC,
        NTK,
        Fisher,
        GGNBlocks,
        GGNDiagonal,
        GradientCovariance,
        Grouped,
        Hessian,
        InputHessian,
        Jacobian,
        LayerBlocks,
        PreconditionedHessian,
        fisher_spectrum,
        ggn_diagonal,
        ggn_spectrum,
        problems_by_group,
    )
    from theodolite.plans import quote, survey
    from theodolite.problem import Problem, undisturbed
    from theodolite.reports import report, save_figures

_ROOMS = {
    "EKFAC": "operators",
    "Fisher": "operators",
    "GGN": "operators",
    "GGNBlocks": "operators",
    "GGNDiagonal": "operators",
    "GradientCovariance": "operators",
    "Grouped": "operators",
    "Hessian": "operators",
    "InputHessian": "operators",
    "Jacobian": "operators",
    "KFAC": "operators",
    "LayerBlocks": "operators",
    "MFAC": "operators",
    "Monitor": "monitor",
    "NTK": "operators",
    "PreconditionedHessian": "operators",
    "Problem": "problem",
    "alignment": "measures",
    "batch_sharpness": "measures",
    "classwise": "measures",
    "coherence": "measures",
    "curved_noise": "measures",
    "density": "measures",
    "directional": "measures",
    "findings": "forecasts",
    "fisher_spectrum": "operators",
    "fisher_trace": "measures",
    "flow_sharpness": "measures",
    "ggn_diagonal": "operators",
    "ggn_spectrum": "operators",
    "gradients": "measures",
    "influence": "measures",
    "line": "landscapes",
    "load": "forecasts",
    "logit_sharpness": "measures",
    "next_update": "measures",
    "outliers": "measures",
    "plane": "landscapes",
    "problems_by_group": "operators",
    "quote": "plans",
    "report": "reports",
    "save_figures": "reports",
    "scale_learning_rate": "measures",
    "sharpness": "measures",
    "smoothness": "measures",
    "spectrum": "measures",
    "stability": "measures",
    "survey": "plans",
    "trace": "measures",
    "track": "measures",
    "transfer": "measures",
    "tuning": "measures",
    "undisturbed": "problem",
}

_MODULES = ("errors", "linalg", "losses", "records")

__version__ = "0.1.0"
__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "MFAC",
    "NTK",
    "Fisher",
    "GGNBlocks",
    "GGNDiagonal",
    "GradientCovariance",
    "Grouped",
    "Hessian",
    "InputHessian",
    "Jacobian",
    "LayerBlocks",
    "Monitor",
    "PreconditionedHessian",
    "Problem",
    "alignment",
    "batch_sharpness",
    "classwise",
    "coherence",
    "curved_noise",
    "density",
    "directional",
    "errors",
    "findings",
    "fisher_spectrum",
    "fisher_trace",
    "flow_sharpness",
    "ggn_diagonal",
    "ggn_spectrum",
    "gradients",
    "influence",
    "linalg",
    "line",
    "load",
    "logit_sharpness",
    "losses",
    "next_update",
    "outliers",
    "plane",
    "problems_by_group",
    "quote",
    "records",
    "report",
    "save_figures",
    "scale_learning_rate",
    "sharpness",
    "smoothness",
    "spectrum",
    "stability",
    "survey",
    "trace",
    "track",
    "transfer",
    "tuning",
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
