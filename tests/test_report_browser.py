"""The report in a real browser, headless Chromium: no script error, nothing fetched, plots there, structures drawn.

Skipped where there is no Chromium, except in continuous integration (`CI` set), where it must be installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from equipes.data import read_frames
from equipes.report import write_report
from equipes.training.metrics import FramePrediction

DATA = Path(__file__).parent / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--virtual-time-budget=5000",
)


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = "no Chromium to open the report in (install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report about crystals and their invented errors, as text."""
    rng = np.random.default_rng(7)
    frames = read_frames(DATA / "hafnia.xyz") + read_frames(DATA / "silicon.xyz")
    predictions = [
        FramePrediction(
            f.energy + rng.normal(), f.forces + 0.1 * rng.normal(size=f.forces.shape), 0.9 * f.stress
        )
        for f in frames
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, frames, predictions, model={"architecture": "nequip"}, worst=4)
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Opened:
    """What the page says of itself after its scripts ran."""

    dom: str

    def says(self, name: str) -> str | None:
        found = re.search(rf'<html[^>]*\bdata-{name}="([^"]*)"', self.dom)
        return found.group(1) if found else None


@pytest.fixture
def opened(browser: str, report: str, tmp_path: Path) -> Callable[..., Opened]:
    """Open the report, with pieces of it replaced and a script of the test's own at its end."""

    def open_page(script: str = "", **replaced: str) -> Opened:
        text = report
        for old, new in replaced.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        if script:
            text = text.replace("</body>", f"<script>{script}</script></body>")
        page = tmp_path / "page.html"
        page.write_text(text, encoding="utf-8")
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return Opened(done.stdout)

    return open_page


def test_the_report_opens_without_errors_and_draws_the_structures(opened: Callable[..., Opened]) -> None:
    page = opened()
    assert page.says("report") == "ready"
    assert page.says("errors") == "0", page.says("last-error")
    assert page.says("scene") == "drawn"
    assert page.dom.count("<svg") == 10
    assert page.dom.count("<canvas") >= 1
    # The four worst by forces, the first of them chosen and described.
    chosen = re.findall(r'<button[^>]*aria-current="(true|false)"', page.dom)
    assert chosen == ["true", "false", "false", "false"]
    errors = [float(value) for value in re.findall(r"<b>forces RMSE ([\d.]+) meV/Å</b>", page.dom)]
    assert len(errors) == 4
    assert errors == sorted(errors, reverse=True)
    assert "largest force error" in page.dom


def test_its_controls_work(opened: Callable[..., Opened]) -> None:
    page = opened(
        """
        const set = (id, value) => {
          const control = document.getElementById(id);
          control.type === "checkbox" ? control.checked = value : control.value = value;
          control.dispatchEvent(new Event("change"));
        };
        document.getElementById("theme").click();
        set("rank", "stress");
        for (const color of ["error", "element"]) set("color", color);
        for (const arrows of ["reference", "predicted", "none", "error"]) set("arrows", arrows);
        set("sized", true);
        document.querySelectorAll("#list button")[2].click();
        """
    )
    assert page.says("errors") == "0", page.says("last-error")
    assert page.says("theme") == "dark"
    assert page.dom.count("<b>stress RMSE") == 4
    chosen = re.findall(r'<button[^>]*aria-current="(true|false)"', page.dom)
    assert chosen == ["false", "false", "true", "false"]


@pytest.mark.parametrize(
    ("spoilt", "attribute", "said"),
    [
        ({"viewer.addModel(`": "viewer.addModell(`"}, "errors", "1"),
        ({"viewer = $3Dmol.createViewer(": "viewer = null && ("}, "scene", "unavailable"),
        (
            {"{ antialias: true });": "{}); viewer.render = viewer.rotate = viewer.zoom = () => {};"},
            "scene",
            "blank",
        ),
    ],
    ids=["script error", "no WebGL", "nothing drawn"],
)
def test_a_broken_report_is_noticed(
    opened: Callable[..., Opened], spoilt: dict[str, str], attribute: str, said: str
) -> None:
    page = opened(**spoilt)
    assert page.says(attribute) == said


def test_an_attempt_to_fetch_something_is_noticed(opened: Callable[..., Opened]) -> None:
    page = opened("new Image().src = 'http://127.0.0.1:9/pixel.png';")
    assert page.says("errors") == "1"
    assert page.says("last-error") == "img-src: http://127.0.0.1:9/pixel.png"


def test_the_page_of_a_workflow_opens_and_its_slider_moves_along_the_path(
    browser: str, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    from equipes.report.workflow import write_workflow_page
    from equipes.simulate.results import Check, Provenance

    images = [frame.atoms for frame in read_frames(DATA / "hafnia.xyz")[:2]]
    for number, atoms in enumerate(images):
        atoms.info = {"label": f"image {number} </script>"}
    figure = Figure()
    figure.subplots().plot([0, 1])
    page = tmp_path / "page.html"
    write_workflow_page(
        page,
        title="hop <b>",
        subtitle="",
        rows=[("barrier", "0.5 eV")],
        figures={"the path": figure},
        structures=images,
        provenance=Provenance("A method.", ("A. Author (2026)",), (Check("mesh", 0.2, 0.1),), ("beware",)),
    )
    moved = """const slider = document.getElementById("image"); slider.value = 1;
    slider.dispatchEvent(new Event("input"));"""
    text = page.read_text().replace("</body>", f"<script>{moved}</script></body>")
    page.write_text(text)
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    shown = Opened(dom)
    assert (shown.says("report"), shown.says("errors"), shown.says("scene")) == ("ready", "0", "drawn")
    assert "image 1 &lt;/script&gt;" in dom
    assert "NOT converged" in dom and "A. Author" in dom and "beware" in dom
    assert "hop &lt;b&gt;" in dom
