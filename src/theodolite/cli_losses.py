"""The command ``theodolite losses``: cards of losses on the terminal, on a page, or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

FEW = 4  # losses that stand side by side in 80 columns
console = Console()


def losses(
    names: Annotated[
        list[str] | None, typer.Argument(help="Losses to set side by side, by name; all that have a card by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A page (.html) or a picture (.png, .svg) instead of the terminal.")
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Classes that cards are measured at.")] = 4,
) -> None:
    """Show what surface each loss makes: convexity, bounds, invariances, behaviour at a flipped label, cost of a class."""
    from theodolite.losses import LOSSES, compare, cross_entropy, profiled
    from theodolite.losses.profiles import ALONG, kind_of

    by_kind = profiled()
    known = {function.__name__: function for functions in by_kind.values() for function in functions}
    known["cross_entropy"] = cross_entropy
    chosen = [_found(name, known, LOSSES) for name in names or ("cross_entropy", *known)]
    chosen = list(dict.fromkeys(chosen))
    groups = [[loss for loss in chosen if kind_of(loss) == kind] for kind in ALONG]
    if out is not None and out.suffix not in (".html", ".png", ".svg"):
        raise typer.BadParameter(f"expected a .html, .png or .svg file, found {out.name!r}", param_hint="--out")
    if out is not None and out.suffix != ".html":
        _draw([group for group in groups if group], out, classes)
        return
    cards = _cards(groups[0], classes)
    if out is None:
        _print(cards, [loss for group in groups[1:] for loss in group])
        return
    from theodolite.reports.loss_cards import loss_page

    measured = [[profile.as_dict() for profile in compare(*group, classes=classes)] for group in groups if group]
    console.print(f"The losses are at [bold]{loss_page(cards, measured, out)}[/].")


def _found(name: str, known: dict[str, Callable[..., Tensor]], every: dict[str, Any]) -> Callable[..., Tensor]:
    if name in known:
        return known[name]
    if name in every:
        reason = (
            "needs options such as class counts" if every[name].kind in ("classes", "labels") else "takes other inputs"
        )
        raise typer.BadParameter(
            f"{name} has no card by name: it {reason}. Use theodolite.losses.card or compare in Python",
            param_hint="NAMES",
        )
    raise typer.BadParameter(f"no loss {name!r}; known are {', '.join(sorted(known))}", param_hint="NAMES")


def _cards(group: list[Callable[..., Tensor]], classes: int) -> list[dict[str, Any]]:
    from theodolite.losses import card

    return [card(loss, classes=classes).as_dict() for loss in group]


def _draw(groups: list[list[Callable[..., Tensor]]], out: Path, classes: int) -> None:
    from theodolite.losses import compare
    from theodolite.reports.loss_cards import save_profiles

    if len(groups) != 1:
        raise typer.BadParameter(
            "these losses depend on different numbers (margin, logit, error, log-ratio): draw them apart, or on a .html page",
            param_hint="NAMES",
        )
    path = save_profiles([profile.as_dict() for profile in compare(*groups[0], classes=classes)], out)
    console.print(f"The picture is at [bold]{path}[/].")


def _print(cards: list[dict[str, Any]], others: list[Callable[..., Tensor]]) -> None:
    from theodolite.losses import compare
    from theodolite.reports.loss_cards import COLUMNS, SHORT, loss_rows

    title = "losses of logits and classes"
    if 0 < len(cards) <= FEW:
        table = Table("", *(card["name"] for card in cards), title=title)
        for column, *cells in zip(COLUMNS.values(), *loss_rows(cards), strict=True):
            if column != "loss":
                table.add_row(column, *cells)
        console.print(table)
    elif cards:
        table = Table(*SHORT.values(), title=title, caption="more of a loss: theodolite losses NAME")
        for row in loss_rows(cards, columns=tuple(SHORT)):
            table.add_row(*row)
        console.print(table)
    if others:
        table = Table("loss", "along", "convex", "slope ≤", "→ −∞", "→ +∞", title="losses along one number")
        for loss in others:
            (found,) = compare(loss)
            convex = "yes" if found.convex else "no"
            ends = found.at_minus_infinity, found.at_plus_infinity
            table.add_row(found.name, found.along, convex, f"{found.gradient_bound:.3g}", *ends)
        console.print(table)
