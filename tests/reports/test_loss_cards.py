"""Cards and profiles of losses on the terminal, on a page and in pictures, from plain numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from theodolite.cli_losses import losses as command
from theodolite.losses import compare, cross_entropy, dpo, focal, mae, squentropy
from theodolite.reports.figures.description import Line
from theodolite.reports.figures.losses import loss_profiles
from theodolite.reports.loss_cards import COLUMNS, loss_page, loss_rows, save_profiles

PROFILES = [profile.as_dict() for profile in compare(cross_entropy, focal, squentropy)]
CARD = {
    "name": "<b>mine</b>",
    "convex": True,
    "gradient_bound": math.inf,
    "curvature_bound": 0.5,
    "shift_invariant": False,
    "scale_invariant": False,
    "at_minus_infinity": "linear",
    "at_plus_infinity": "bounded",
    "flip_influence": 1.333,
    "symmetry_spread": 0.0,
    "posterior_error": 2e-5,
    "class_cost": math.nan,
    "proper": True,
}


def test_rows_say_what_the_numbers_are() -> None:
    (row,) = loss_rows([CARD])
    shown = dict(zip(COLUMNS, row, strict=True))
    assert (shown["convex"], shown["gradient_bound"], shown["symmetry_spread"]) == ("yes", "∞", "yes")
    assert (shown["flip_influence"], shown["proper"], shown["class_cost"]) == ("1.33", "yes", "–")


def test_figure_holds_every_curve_of_every_loss() -> None:
    figure = loss_profiles(PROFILES)
    assert len(figure.panels) == 3
    for panel, key in zip(figure.panels, ("values", "slopes", "curvatures"), strict=True):
        curves = [mark for mark in panel.marks if isinstance(mark, Line)]
        for curve, profile in zip(curves, PROFILES, strict=True):
            known = np.isfinite(curve.y)
            assert known.mean() > 0.9
            np.testing.assert_array_equal(curve.y[known], np.array(profile[key])[known])
    assert "cross_entropy: convex along it" in figure.caption
    assert "focal: not convex" in figure.caption


def test_a_curve_that_leaves_the_panel_is_cut_and_one_that_hides_another_is_dashed() -> None:
    tall = dict(PROFILES[0], name="tall", values=tuple(1e6 * (x > 7) for x in PROFILES[0]["positions"]))
    again = dict(PROFILES[0], name="again")
    lines = [mark for mark in loss_profiles([*PROFILES, tall, again]).panels[0].marks if isinstance(mark, Line)]
    assert np.isnan(lines[3].y[-1])
    assert [line.dash for line in lines] == [False, False, False, False, True]


def test_profiles_along_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected profiles along one number\. Found log-ratio"):
        loss_profiles([*PROFILES, compare(dpo)[0].as_dict()])
    with pytest.raises(ValueError, match="Found none"):
        loss_profiles([])


def test_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    page = loss_page([CARD], [PROFILES], tmp_path / "deep" / "losses.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;mine" in page
    assert "<b>mine" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/svg+xml;base64,") == 2  # light and dark
    assert "<script" not in page


def test_pictures_by_their_ending(tmp_path: Path) -> None:
    assert save_profiles(PROFILES, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in save_profiles(PROFILES, tmp_path / "a.svg").read_bytes()
    with pytest.raises(ValueError, match=r"Expected a .png or .svg file for a figure, found 'a.pdf'"):
        save_profiles(PROFILES, tmp_path / "a.pdf")


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_command_prints_cards_side_by_side() -> None:
    code, text = run("mae", "cross_entropy", "dpo", "quantile")
    assert code == 0
    assert "convex no yes" in text
    assert "→ −∞ bounded linear" in text.replace("margin ", "")
    assert "dpo log-ratio Δ" in text
    assert "quantile error" in text


def test_command_writes_pages_and_pictures(tmp_path: Path) -> None:
    code, _ = run("focal", "mae", "dpo", "--out", str(tmp_path / "page.html"))
    assert code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<figure>") == 2  # margins apart from log-ratios
    code, _ = run("focal", "mae", "--out", str(tmp_path / "both.svg"))
    assert code == 0
    assert (tmp_path / "both.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fokal",), "no loss 'fokal'; known are agce"),
        (("ldam",), "needs options such as class counts"),
        (("supcon",), "takes other inputs"),
        (("focal", "dpo", "--out", "x.png"), "depend on different numbers"),
        (("focal", "--out", "x.pdf"), "expected a .html, .png or .svg file, found 'x.pdf'"),
    ],
)
def test_command_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert message in text


def test_profile_of_known_losses() -> None:
    ce, wrong = compare(cross_entropy, mae, reach=8.0, steps=161)
    assert ce.convex
    assert not wrong.convex
    assert ce.minimiser == math.inf
    assert ce.positions[80] == 0.0
    assert ce.values[80] == pytest.approx(math.log(4), rel=1e-12)
    assert ce.slopes[80] == pytest.approx(-0.75, rel=1e-12)
    assert ce.curvatures[80] == pytest.approx(0.75 * 0.25, rel=1e-12)
    assert (wrong.at_minus_infinity, ce.at_minus_infinity) == ("bounded", "linear")
