"""The generated part of docs/losses: the catalogue of all losses, their cards, and pictures of them side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from theodolite import losses
from theodolite.reports.loss_cards import save_profiles

PAGES = Path(__file__).parents[1] / "docs" / "losses"
PICTURES: dict[str, tuple[str, tuple[Callable[..., Tensor], ...]]] = {
    "robust": (
        "Losses robust to wrong labels: the slope at a margin far below 0 is the pull of a flipped label.",
        (losses.cross_entropy, losses.gce, losses.sce, losses.js, losses.mae, losses.nce),
    ),
    "focus": (
        "Losses that look at confidence: what a sample that is already right still pulls.",
        (losses.cross_entropy, losses.focal, losses.dual_focal, losses.poly, losses.dco),
    ),
    "convex": (
        "Convex losses of logits: how the curvature is spread along the margin.",
        (losses.cross_entropy, losses.squentropy, losses.sparsemax_loss, losses.crammer_singer),
    ),
    "preference": (
        "Losses of preference pairs: only the last has a minimum at a finite log-ratio.",
        (losses.dpo, losses.robust_dpo, losses.ipo),
    ),
    "regression": (
        "Losses of errors: the two smooth ones differ from the absolute error near 0 alone.",
        (losses.log_cosh, losses.charbonnier, losses.quantile),
    ),
}


def draw_pictures() -> None:
    """Draw docs/losses/images."""
    for name, (_, functions) in PICTURES.items():
        profiles = [profile.as_dict() for profile in losses.compare(*functions)]
        save_profiles(profiles, PAGES / "images" / f"{name}.png", scale=1.2)


def write_catalogue() -> None:
    """Write docs/losses/catalogue.md."""
    sections = [_head(), *_listing(), *_cards(), *_profiles(), *_pictures(), *_survey()]
    (PAGES / "catalogue.md").write_text("\n".join(sections) + "\n", encoding="utf-8")


def _head() -> str:
    return "# Catalogue and cards\n\nMade by `python benchmarks/losses.py page`.\n"


def _listing() -> list[str]:
    rows = []
    for entry in losses.LOSSES.values():
        doc = inspect.getdoc(entry.function) or ""
        paper = " ".join(doc.split("References:")[1].split()).rstrip(".")
        closed = "gradient, Hessian" if entry.hessian else "gradient" if entry.gradient else ""
        whole = "batch" if entry.coupled else "sample"
        first = doc.splitlines()[0].replace("|", "\\|")
        rows.append((entry.family, f"`{entry.name}`", entry.kind, whole, first, closed, paper))
    return [
        "Inputs by kind: *classes* logits and class indices, *labels* logits and 0/1 labels, *values* predictions and targets,",
        "*masks* probabilities and soft masks, *pairs* log-probabilities of answers, *views* two embeddings, *embeddings*",
        "embeddings and class indices, *other* as its docstring says. A loss of a *batch* couples its samples.",
        "",
        *_table(("family", "loss", "kind", "of a", "what it is", "closed forms", "paper"), sorted(rows)),
    ]


def _cards() -> list[str]:
    made = [losses.card(F.cross_entropy), *(losses.card(f, name=f.__name__) for f in carded())]
    return [
        "# Cards",
        "",
        "Measured at 4 classes, default options; every column is a numerical test (`theodolite.losses.card`, `theodolite losses`).",
        "Cost of a class: numbers that value and gradient write per sample and class, with a power of the class count unless 1.",
        "",
        losses.card_table(made),
        "",
    ]


def carded() -> list[Callable[..., Tensor]]:
    """The losses whose only inputs are logits and classes.

    One with detached weights has a gradient that is not its value's: its card would mix two functions.
    """
    found = losses.profiled()["classes"]
    return [function for function in found if "detach_weight" not in inspect.signature(function).parameters]


def _profiles() -> list[str]:
    rows = []
    for kind, functions in losses.profiled().items():
        if kind == "classes":
            continue
        for found in losses.compare(*functions):
            convex, ends = "yes" if found.convex else "no", (found.at_minus_infinity, found.at_plus_infinity)
            rows.append((f"`{found.name}`", found.along, convex, f"{found.gradient_bound:.3g}", *ends))
    return [
        "# Along one number",
        "",
        "Losses of labels, values and preference pairs, from −8 to 8 (`theodolite.losses.compare`).",
        "",
        *_table(("loss", "along", "convex", "slope ≤", "→ −∞", "→ +∞"), rows),
    ]


def _pictures() -> list[str]:
    lines = ["# Side by side", ""]
    for name, (words, functions) in PICTURES.items():
        lines += [f"![{', '.join(f.__name__ for f in functions)}](images/{name}.png)", "", words, ""]
    return lines


def _survey() -> list[str]:
    rows = [
        (
            r.name,
            r.formula.replace("|", "\\|"),
            r.task,
            r.range,
            r.best,
            r.gradient.replace("|", "\\|"),
            f"`{r.function}`",
        )
        for r in losses.catalogue()
    ]
    return [
        "# The survey's losses and metrics",
        "",
        "After Terven et al. 2023, *Loss Functions and Metrics in Deep Learning*; metrics have no gradient (–).",
        "",
        *_table(("name", "formula", "task", "range", "least or best at", "gradient ≤", "function"), rows),
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
