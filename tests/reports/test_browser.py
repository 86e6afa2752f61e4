"""The page in a real browser: it draws every figure, says nothing on the console and asks the network for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reports import runs_by_hand
from theodolite.reports import report

CHROMIUM = shutil.which("chromium")
# What a machine without a graphics card says of WebGL itself, whatever is drawn.
DRIVER = ("GL Driver Message", "software WebGL", "willReadFrequently")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def visit(page: Path, folder: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """The document after its scripts ran, the lines of its console, and the addresses it asked for."""
    log = folder / "net.json"
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless=new", "--no-sandbox", *quiet.split(), "--disable-sync", "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--window-size=1280,12000",
            "--virtual-time-budget=15000", f"--log-net-log={log}", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and not any(map(line.count, DRIVER))]
    return done.stdout, console, addresses(json.loads(log.read_text()))


def addresses(log: dict[str, Any]) -> list[str]:
    """What pages asked the network for; the browser's own requests have no origin."""
    asked = [event.get("params") or {} for event in log["events"]]
    return [
        params["url"]
        for params in asked
        if re.match(r"(https?|wss?|ftp):", str(params.get("url")))
        and params.get("initiator", "not an origin") != "not an origin"
    ]


def test_the_page_draws_every_figure_in_silence(tmp_path):
    run = runs_by_hand.run("unstable", runs_by_hand.unstable_run())
    document, console, asked = visit(report(run, tmp_path / "report.html"), tmp_path)
    body = document[document.index("<body") :]
    assert len(re.findall(r'<div class="plot[^>]*data-drawn="yes"', body)) == 9
    assert body.count('class="main-svg"') >= 9
    assert "step 60: above the bound" in body[body.index('class="main-svg"') :]
    assert "@loss" not in re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    assert console == []
    assert asked == []


def test_the_detector_notices_a_page_that_is_not_silent(tmp_path):
    page = tmp_path / "loud.html"
    page.write_text("<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('heard')</script>")
    _, console, asked = visit(page, tmp_path)
    assert any("heard" in line for line in console)
    assert any(address.startswith("http://127.0.0.1:9") for address in asked)


def test_the_policy_stops_what_is_slipped_into_the_page(tmp_path):
    page = report(runs_by_hand.run("one", (runs_by_hand.trace(),)), tmp_path / "report.html")
    slipped = "<img src='http://127.0.0.1:9/x.png'><script>document.title = 'taken'</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", slipped), encoding="utf-8")
    document, console, asked = visit(page, tmp_path)
    assert "<title>taken" not in document
    assert any("Content Security Policy" in line for line in console)
    assert asked == []
