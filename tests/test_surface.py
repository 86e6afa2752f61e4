"""The public surface is what it says, and reading a log needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import theodolite as th

PUBLIC = [
    "EKFAC",
    "Fisher",
    "GGN",
    "GGNBlocks",
    "GGNDiagonal",
    "GradientCovariance",
    "Grouped",
    "Hessian",
    "InputHessian",
    "Jacobian",
    "KFAC",
    "LayerBlocks",
    "MFAC",
    "Monitor",
    "NTK",
    "PreconditionedHessian",
    "Problem",
    "SketchMemory",
    "adameq",
    "alignment",
    "atlas",
    "basin",
    "batch_sharpness",
    "bezier",
    "branching",
    "chain",
    "classwise",
    "clusters",
    "coherence",
    "connectivity",
    "coreset",
    "curved_noise",
    "data_scores",
    "density",
    "diffroar",
    "directional",
    "domain_alignment",
    "elements",
    "errors",
    "export",
    "findings",
    "fisher_spectrum",
    "fisher_trace",
    "flow_sharpness",
    "follow",
    "frames",
    "gap_change",
    "ggn_diagonal",
    "ggn_spectrum",
    "gradient_norm_term",
    "gradient_sketch",
    "gradients",
    "hypotheses",
    "importance_sampling",
    "influence",
    "input_gradients",
    "integrated_gradients",
    "invariance",
    "landscapes",
    "layer_barriers",
    "linalg",
    "line",
    "load",
    "logit_sharpness",
    "loss_weights",
    "losses",
    "match",
    "module_variances",
    "next_update",
    "opposing_signals",
    "outliers",
    "path",
    "phase_metrics",
    "plane",
    "problems_by_group",
    "quote",
    "records",
    "report",
    "restore",
    "sample_convergence",
    "save_figures",
    "save_film",
    "scale_learning_rate",
    "sharpness",
    "similarity",
    "smoothness",
    "snapshots",
    "spectrum",
    "stability",
    "survey",
    "task_gradients",
    "trace",
    "track",
    "transfer",
    "tuning",
    "undisturbed",
    "volume",
]


def test_public_names_are_pinned_and_resolve() -> None:
    assert sorted(th.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(th, name).__name__.removeprefix("theodolite.") == name


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"theodolite has no 'spectral'. It has EKFAC, .*undisturbed"):
        th.spectral


def test_the_office_works_without_torch(tmp_path: object) -> None:
    """On a laptop without torch: load a run, judge it, write its page."""
    code = f"""
import sys
sys.modules["torch"] = None
import theodolite as th
from theodolite.records import Log, Scalars
with Log(r"{tmp_path}/run") as log:
    log.append(Scalars(step=0, values={{"loss": float("nan")}}))
run = th.load(r"{tmp_path}/run")
assert [finding.rule for finding in run.findings()] == ["non-finite reading"], run.findings()
th.report(run, r"{tmp_path}/report.html")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
