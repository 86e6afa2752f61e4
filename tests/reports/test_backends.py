import io
import json
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from reports import runs_by_hand
from theodolite.reports.extras import extra
from theodolite.reports.figures import gradient_norms, plane, traces
from theodolite.reports.matplotlib_backend import render
from theodolite.reports.palette import DARK, LIGHT, TOKENS, tint
from theodolite.reports.plotly_backend import specification
from theodolite.reports.sections import figures_of

UNSTABLE = figures_of(runs_by_hand.unstable_run())
by_name = pytest.mark.parametrize("figure", UNSTABLE, ids=[figure.name for figure in UNSTABLE])
HOSTILE = ("<script>alert(1)</script>", "a$b$c_{d}", "<b>bold</b> & co", "@loss", "\u202eright to left", "", "head")


@by_name
def test_a_specification_is_valid_plotly_and_plain_json(figure):
    spec = specification(figure)
    json.dumps(spec, allow_nan=False)
    go.Figure(spec)


@by_name
def test_a_specification_with_tokens_names_the_same_colours(figure):
    text = json.dumps(specification(figure, colors=TOKENS))
    for role in LIGHT:
        text = text.replace(f'"@{role}"', f'"{LIGHT[role]}"')
        for alpha in (0.07, 0.08, 0.09, 0.2, 0.25, 0.45, 0.5, 0.55, 0.8):
            text = text.replace(f'"@{role}/{alpha:g}"', f'"{tint(LIGHT[role], alpha)}"')
    assert json.loads(text) == specification(figure)


@by_name
def test_an_svg_is_the_same_bytes_each_time_and_holds_no_date(figure):
    drawn = render(figure)
    assert drawn == render(figure)
    assert b"date" not in drawn
    ElementTree.fromstring(drawn)


def test_a_png_has_the_size_of_its_figure():
    figure = UNSTABLE[0]
    image = Image.open(io.BytesIO(render(figure, format="png", scale=1.0, title=False)))
    assert image.size == (figure.width, figure.height)


def test_dark_figures_lie_on_dark_paper():
    image = Image.open(io.BytesIO(render(UNSTABLE[0], format="png", theme="dark", scale=0.5)))
    assert "#{:02x}{:02x}{:02x}".format(*image.convert("RGB").getpixel((1, 1))) == DARK["paper"]


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    render(UNSTABLE[0])
    assert dict(mpl.rcParams) == before


def test_drawing_does_not_depend_on_the_settings_of_the_reader():
    plain = render(UNSTABLE[0])
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other"}):
        assert render(UNSTABLE[0]) == plain


@pytest.mark.parametrize("record", [runs_by_hand.gradients(layers=HOSTILE), runs_by_hand.trace(layers=HOSTILE)])
def test_layer_names_are_text_and_neither_markup_nor_mathematics(record):
    figure = (gradient_norms if record.kind == "gradients" else traces)(record)
    ElementTree.fromstring(render(figure))
    spec = specification(figure)
    hovers = [text for trace in spec["data"] for text in trace["hovertext"]]
    assert not [text for text in [*hovers, *spec["layout"]["yaxis"]["ticktext"]] if "<script" in text or "<b>" in text]


def test_a_masked_plane_is_shaded_beneath_its_contours():
    record = runs_by_hand.plane(broken=True)
    shade, contour = (
        trace
        for trace in specification(plane(record.replace(stderrs=np.full_like(record.losses, np.nan))))["data"]
        if trace["type"] in ("heatmap", "contour")
    )
    lost = ~np.isfinite(record.losses.T)
    assert [[cell is None for cell in row] for row in contour["z"]] == lost.tolist()
    shaded = np.array([[cell is not None for cell in row] for row in shade["z"]])
    assert shaded[lost].all()
    assert "137 cells not finite" in shade["name"]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
@pytest.mark.parametrize(
    ("role", "least"),
    [
        ("ink", 7.0),
        ("muted", 4.5),
        ("loss", 3.0),
        ("curvature", 3.0),
        ("bound", 3.0),
        ("crossing", 4.5),
        ("parameter", 3.0),
    ],
)
def test_colours_keep_their_contrast_with_the_paper(palette, role, least):
    assert contrast(palette[role], palette["paper"]) >= least


def test_a_missing_library_names_the_command_that_installs_it():
    with pytest.raises(ImportError, match=r'needs no_such_library, .*: pip install "theodolite\[report\]"'):
        extra("no_such_library.part")


def test_the_room_imports_neither_torch_nor_a_drawing_library():
    code = (
        "import sys, theodolite.reports; "
        "print([m for m in ('torch', 'matplotlib', 'plotly', 'jinja2', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
