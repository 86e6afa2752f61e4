import base64
import hashlib
import io
import itertools
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from reports import runs_by_hand
from theodolite.errors import LogError
from theodolite.forecasts import Finding
from theodolite.records import Book, Event, Log, Scalars
from theodolite.reports import report, save_figures
from theodolite.reports.page import html
from theodolite.reports.sources import Source, sources

ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Elements, attributes and texts in order; open elements must close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.starts if name == tag]

    def text(self):
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [
        runs_by_hand.run("stable", runs_by_hand.stable_run()),
        runs_by_hand.run("unstable", runs_by_hand.unstable_run()),
    ]
    return report(runs, folder / "new" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(both):
    return Page(both)


def test_the_page_loads_nothing(page, both):
    for tag, attributes in page.starts:
        assert tag not in ("iframe", "object", "embed", "base", "audio", "video", "source")
        for name in ("src", "href", "srcset", "action", "poster", "data", "style", "background"):
            assert re.match(r"(#|data:|[^:/]*;|$)", attributes.get(name) or ""), (tag, name, attributes[name][:80])
        assert not [name for name in attributes if name.startswith("on")]
    styles = "".join(data for tag, data in page.texts if tag == "style")
    assert styles
    assert not re.search(r"url\(|@import|@font-face|https?:", styles)
    own = [data for tag, data in page.texts if tag == "script"][-1]
    assert "querySelectorAll" in own
    assert not re.search(r"https?:|fetch|XMLHttpRequest|import\b|WebSocket|sendBeacon", own)


def test_the_policy_allows_only_the_scripts_of_the_page(page, both):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", both, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2
    assert both.index("Content-Security-Policy") < both.index("<script")


def test_findings_stand_before_the_comparison_and_the_figures(both):
    places = [both.index(mark) for mark in ('id="findings"', 'class="finding ', 'id="comparison"', "<figure")]
    assert places == sorted(places)


def test_findings_carry_severity_in_words_evidence_and_advice(page):
    text = page.text()
    assert "crossed the stability bound at step 60" in text
    assert re.search(r"critical\s+step 60", text)
    assert text.count("What to do") == len(page.all("article"))
    assert "1.200 ± 0.072" in text


def test_every_lens_has_its_figures_captions_tables_and_costs(page):
    text = page.text()
    for words in (
        "Loss and stability",
        "Loss curvature",
        "Loss landscape",
        "gradient magnitude by layer",
        "Cost and events",
    ):
        assert words in text
    assert len(page.all("figure")) == 18
    assert text.count("What it does not show") == 18
    assert "not converged" in text
    assert "143 products, 2 gradients, 6.4 s" in text
    assert "probe deferred" in text


def test_headings_descend_one_level_at_a_time(page):
    single = Page(html(sources(runs_by_hand.run("stable", runs_by_hand.stable_run()[:40]))))
    for each in (page, single):
        levels = [int(tag[1]) for tag, _ in each.starts if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_accessible(page):
    assert page.all("html")[0]["lang"] == "en"
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    images = page.all("img")
    assert [a["aria-label"] for a in plots] == [a["alt"] for a in images]
    assert all(a["alt"] for a in images)
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    ids = [a["id"] for _, a in page.starts if "id" in a]
    assert len(ids) == len(set(ids))


def test_how_it_was_computed_and_what_the_caption_says_are_folded(page):
    text = re.sub(r"\s+", " ", page.text())
    folds = [data.strip() for tag, data in page.texts if tag == "summary" and data.strip()]
    assert folds.count("How it was computed") == 2
    assert folds.count("The surface in numbers") == 6
    assert not any("open" in attributes for attributes in page.all("details"))
    assert "How it was computed engine vmap" in text


def test_layers_and_surfaces_stand_beside_each_other(page):
    classes = [attributes.get("class") for attributes in page.all("div")]
    assert classes.count("block half") == 14
    styles = "".join(data for tag, data in page.texts if tag == "style")
    assert re.search(r"@media \(min-width: 1200px\) \{[^@]*\.block\.half \{ grid-column: auto; \}", styles)


def test_a_mark_of_convergence_says_its_word(page):
    assert [a["title"] for a in page.all("td") if "title" in a] == ["converged"] * page.text().count("✓")
    assert "✓" in page.text()


def test_the_comparison_puts_the_runs_side_by_side(page):
    text = re.sub(r"\s+", " ", page.text())
    assert "quantity stable unstable" in text
    assert "first crossing of the stability bound none step 60" in text
    assert "loss left its range no step" in text
    assert re.search(r"largest stability ratio, whole run \S+ ± \S+, step \d+ \S+ ± \S+, step \d+", text)
    assert "training losses not finite none 371, first at step 229" in text


def test_the_same_records_give_the_same_bytes(tmp_path):
    run = runs_by_hand.run("unstable", runs_by_hand.unstable_run()[:-4])
    first = report(run, tmp_path / "a.html").read_bytes()
    assert report(run, tmp_path / "b.html").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_names_and_texts_are_escaped_everywhere():
    layers = (ATTACK, "head")
    context = {"model": ATTACK, ATTACK: "x"}
    records = (
        Scalars(step=0, values={"loss": 1.0}, context=context),
        Event(step=0, name=ATTACK, message=ATTACK),
        runs_by_hand.stable_run()[2].replace(rule=ATTACK, optimizer=ATTACK, notes=(ATTACK,)),
        runs_by_hand.gradients(layers=layers, notes=(ATTACK,)),
        runs_by_hand.trace(layers=layers, operator=ATTACK),
        runs_by_hand.plane().replace(name=ATTACK),
        runs_by_hand.line().replace(name=ATTACK),
    )
    words = dict.fromkeys(("rule", "title", "message", "advice", "reference"), ATTACK)
    finding = Finding(severity="critical", evidence={ATTACK: ATTACK}, **words)
    text = html([Source(name=ATTACK, slug="run-1", records=records, findings=(finding,), notes=(ATTACK,))])
    assert ATTACK not in text
    assert "<script>alert" not in text
    page = Page(text)
    assert page.text().count(ATTACK) >= 14
    (data,) = [data for tag, data in page.texts if tag == "script" and data.startswith("{")]
    assert "<" not in data


def test_an_empty_run_says_so(tmp_path):
    text = report(runs_by_hand.run("empty", ()), tmp_path / "empty.html").read_text(encoding="utf-8")
    assert "holds no records yet" in text
    assert "<figure" not in text
    assert len(text) < 40_000


@pytest.mark.parametrize("index", range(7))
def test_lenses_without_records_are_left_out(index):
    record = runs_by_hand.survey(seed=0)[index]
    text = html([Source(name="one", slug="run-1", records=(record,), findings=(), notes=())])
    assert len(re.findall(r'class="lens"', text)) == 2
    assert "No rule found anything" in text


def test_a_report_takes_a_folder_a_book_and_several(tmp_path):
    with Log(tmp_path / "mlp") as log:
        log.append(Scalars(step=0, values={"loss": 0.5}))
    moments = runs_by_hand.run("x", ()).times
    book = Book(path=tmp_path / "book", records=(), times=moments, elapsed=moments, notes=("a torn line was dropped",))
    text = report([tmp_path / "mlp", str(tmp_path / "mlp"), book], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Survey of mlp, mlp and book" in page.text()
    assert "a torn line was dropped" in page.text()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (3, TypeError, r"expects the folder of a run log.*found 3 \(int\)"),
        ([3.5], TypeError, r"found 3.5 \(float\)"),
        ([], ValueError, "at least one run; found none"),
        ("/no/such/folder", LogError, "/no/such/folder"),
    ],
)
def test_what_cannot_be_reported_is_refused(what, error, message):
    with pytest.raises(error, match=message):
        sources(what)


def test_figures_are_saved_beside_the_page(tmp_path):
    run = runs_by_hand.run("stable", runs_by_hand.training(rate=0.02, rise=8e-3, seed=1, steps=60))
    report([run, run], tmp_path / "r.html", figures=tmp_path / "figures")
    names = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "figures").rglob("*.*"))
    assert names == [
        f"figures/run-{index}-stable/loss-and-sharpness.{kind}" for index in (1, 2) for kind in ("png", "svg")
    ]


def test_save_figures_writes_the_formats_asked_for(tmp_path):
    run = runs_by_hand.run("x", (runs_by_hand.trace(), runs_by_hand.line()))
    written = save_figures(run, tmp_path / "figures", formats=("png",), theme="dark")
    assert [path.name for path in written] == ["layer-traces-hessian.png", "line-filter.png"]
    assert Image.open(io.BytesIO(written[0].read_bytes())).width == 2 * 760
