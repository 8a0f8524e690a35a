"""Figures show the numbers they are given, and the report is one file that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import ase.build
import matplotlib as mpl
import numpy as np
import pytest
from ase import Atoms
from matplotlib.figure import Figure

from equipes.data import Frame, read_frames
from equipes.errors import InputError
from equipes.report import (
    error_histogram,
    group_plot,
    learning_curves,
    md_plot,
    parity_plot,
    write_plots,
    write_report,
)
from equipes.report import page as page_module
from equipes.report.figures import INK, inline_svg, save, short
from equipes.report.gather import worst_structures
from equipes.report.logs import read_columns
from equipes.training.metrics import FramePrediction, error_metrics

DATA = Path(__file__).parent / "data"
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return read_frames(DATA / "silicon.xyz") + read_frames(DATA / "hafnia.xyz")


@pytest.fixture(scope="module")
def predictions(frames: list[Frame]) -> list[FramePrediction]:
    rng = np.random.default_rng(5)
    return [
        FramePrediction(
            frame.energy + 0.01 * rng.normal() * len(frame.atoms),
            frame.forces + 0.05 * rng.normal(size=frame.forces.shape),
            frame.stress + 1e-3,
        )
        for frame in frames
    ]


@pytest.fixture(scope="module")
def metrics_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log as training writes it: validation in some rows only, no stress."""
    lines = [
        "step,epoch,minutes,lr,train_loss,val_energy_mae_mev_per_atom,val_forces_mae_mev_per_ang,val_stress_mae_mev_per_ang3"
    ]
    for step in range(1, 21):
        validation = f"{40 / step},{200 / step}" if step % 5 == 0 else ","
        lines.append(f"{step},{step // 10},{step / 60},{0.01 / step},{3 / step},{validation},")
    path = tmp_path_factory.mktemp("training") / "metrics.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def md_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Total energy rises by 2 meV/ps around a temperature of 300 K."""
    lines = ["time_fs,potential_energy_ev,kinetic_energy_ev,total_energy_ev,temperature_k"]
    for i in range(101):
        time, kinetic = 20.0 * i, 0.35 + 0.01 * np.sin(i)
        total = -100.0 + 2e-6 * time
        lines.append(f"{time},{total - kinetic},{kinetic},{total},{300 + 10 * (-1) ** i if i else 300}")
    path = tmp_path_factory.mktemp("dynamics") / "md.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


# --- figures ----------------------------------------------------------------------------------------------------------


def test_parity_plot_shows_every_point_and_the_errors(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 3))
    y = x + 0.010 * np.sign(rng.normal(size=(50, 3)))
    (axes,) = parity_plot(x, y, "forces").axes
    (points,) = axes.collections
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([x.ravel(), y.ravel()]))
    assert axes.texts[0].get_text() == "MAE 10.0 meV/Å\nRMSE 10.0 meV/Å\n150 values"
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < min(x.min(), y.min()) < max(x.max(), y.max()) < axes.get_xlim()[1]


def test_parity_plot_of_many_points_shows_their_density(rng: np.random.Generator) -> None:
    x = rng.normal(size=5000)
    (axes,) = parity_plot(x, x, "stress").axes
    (hexagons,) = axes.collections
    assert hexagons.get_array().sum() == 5000
    assert len(hexagons.get_array()) < 300
    assert hexagons.get_rasterized()


def test_parity_plot_of_equal_values() -> None:
    for value in (0.0, -154.2):
        (axes,) = parity_plot([value, value], [value, value], "energy").axes
        low, high = axes.get_xlim()
        assert low < value < high


def test_error_histogram_counts_every_error(rng: np.random.Generator) -> None:
    x = rng.normal(size=400)
    for shift in (0.0, 5.0):  # around zero, and all on one side of it
        error = 0.001 * rng.normal(size=400) + shift
        (axes,) = error_histogram(x, x + error, "energy").axes
        assert sum(bar.get_height() for bar in axes.patches) == 400
        assert axes.lines[0].get_xdata()[0] == pytest.approx(1000 * error.mean())
        assert axes.patches[0].get_x() == pytest.approx(
            1000 * (error.min() if shift else -np.abs(error).max())
        )


def test_group_plot_puts_the_largest_on_top() -> None:
    groups = {
        name: {"forces_mae_mev_per_ang": mae, "forces_rmse_mev_per_ang": None if mae is None else 2 * mae}
        for name, mae in {"H": 20.0, "C": 35.0, "O": 30.0, "N": None}.items()
    }
    (axes,) = group_plot(groups, "forces").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["H", "O", "C"]
    assert [bar.get_width() for bar in axes.patches] == [20.0, 30.0, 35.0]
    assert list(axes.lines[0].get_xdata()) == [40.0, 60.0, 70.0]
    (axes,) = group_plot(groups, "forces", most=1).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["C"]
    assert "2 smaller not shown" in axes.get_xlabel()


def test_learning_curves_show_the_log(metrics_csv: Path) -> None:
    panels = {
        axes.get_title(loc="left"): axes for axes in learning_curves(metrics_csv).axes if axes.get_visible()
    }
    assert list(panels) == ["loss", "energy MAE (meV/atom)", "forces MAE (meV/Å)", "learning rate"]
    loss = panels["loss"].lines[0]
    np.testing.assert_allclose(loss.get_xdata(), np.arange(1, 21))
    np.testing.assert_allclose(loss.get_ydata(), 3 / np.arange(1, 21))
    forces = panels["forces MAE (meV/Å)"]
    np.testing.assert_allclose(forces.lines[0].get_xdata(), [5, 10, 15, 20])
    np.testing.assert_allclose(forces.lines[0].get_ydata(), [40, 20, 200 / 15, 10])
    assert [text.get_text() for text in forces.texts] == ["best 10.0"]
    assert all(axes.get_yscale() == "log" for axes in panels.values())


def test_md_plot_shows_the_log_its_drift_and_its_temperature(md_csv: Path) -> None:
    exchange, conserved, temperature = md_plot(md_csv).axes
    titles = [axes.get_title(loc="left") for axes in (exchange, conserved, temperature)]
    assert titles[1] == "total energy since the start (meV) · slope +2.00 meV/ps"
    assert titles[2].startswith("temperature (K) · mean 300.0")
    np.testing.assert_allclose(conserved.lines[0].get_xdata(), 0.02 * np.arange(101))  # ps
    np.testing.assert_allclose(conserved.lines[0].get_ydata(), 0.04 * np.arange(101), atol=1e-9)
    potential, kinetic, total = (line.get_ydata() for line in exchange.lines)
    np.testing.assert_allclose(potential + kinetic, total, atol=1e-9)


def test_md_plot_prefers_the_energy_that_the_thermostat_conserves(md_csv: Path, tmp_path: Path) -> None:
    header, *rows = md_csv.read_text().splitlines()
    longer = [f"{row},{5.0 - 1e-6 * 20.0 * i}" for i, row in enumerate(rows)]
    (tmp_path / "nvt.csv").write_text("\n".join([f"{header},conserved_energy_ev", *longer]) + "\n")
    conserved = md_plot(tmp_path / "nvt.csv").axes[1]
    assert conserved.get_title(loc="left") == "conserved energy since the start (meV) · slope -1.00 meV/ps"


@pytest.mark.parametrize("suffix", sorted(MAGIC))
def test_figures_are_written_in_the_format_of_the_suffix(md_csv: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"md{suffix}"
    md_plot(md_csv, path)
    first = path.read_bytes()
    assert first.startswith(MAGIC[suffix])
    with pytest.raises(InputError, match="exists; give --overwrite"):
        md_plot(md_csv, path)
    md_plot(md_csv, path, overwrite=True)
    assert path.read_bytes() == first  # the same figure, the same bytes


def test_drawing_leaves_matplotlib_alone(md_csv: Path, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save(md_plot(md_csv), tmp_path / "md.svg")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: parity_plot([1.0], [1.0], "dipole"),
            "no parity plot of 'dipole'; choose one of energy, forces, stress",
        ),
        (lambda: parity_plot([1.0], [1.0, 2.0], "energy"), "1 reference and 2 predicted values"),
        (lambda: error_histogram([], [], "energy"), "0 reference and 0 predicted values"),
        (lambda: parity_plot([1.0], [np.nan], "energy"), "non-finite values cannot be plotted"),
        (lambda: group_plot({"H": {}}, "forces"), "none of the groups has such labels"),
        (lambda: save(Figure(), "figure.gif"), r"figure\.gif: figures are written as \.png, \.svg, \.pdf"),
    ],
)
def test_what_cannot_be_drawn_is_told(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw()


def test_inline_svg_takes_the_colours_of_the_page() -> None:
    svg = inline_svg(parity_plot([0.0, 1.0], [0.0, 1.1], "energy"), description='a "plot" of <x>')
    assert svg.startswith('<svg role="img" aria-label="a &quot;plot&quot; of &lt;x>"')
    assert INK not in svg
    assert "currentColor" in svg
    assert re.search(r"<tspan[^>]*>MAE 50.0 meV/atom<|<text[^>]*>MAE 50.0 meV/atom<", svg)  # text stays text
    assert not re.search(r'<svg[^>]*\b(width|height)="', svg)  # fluid


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.0123, "0.0123"),
        (4.5678, "4.57"),
        (9.9999, "10.0"),
        (2807.1, "2807"),
        (1e9, "1.00e+09"),
        (3e-7, "3.00e-07"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text
    assert short(value, sign=True) == "+" + text


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_line_cut_off_while_being_written_is_left_out(md_csv: Path, tmp_path: Path) -> None:
    whole = read_columns(md_csv)
    (tmp_path / "md.csv").write_text(md_csv.read_text() + "2020.0,-100.1,0.")
    again = read_columns(tmp_path / "md.csv")
    assert {name: len(column) for name, column in again.items()} == dict.fromkeys(whole, 101)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*log.csv: No such file"),
        ("", "log.csv has no rows"),
        ("time_fs,temperature_k\n", "log.csv has no rows"),
        ("time_fs,temperature_k\n1.0\n2.0,3\n", "log.csv line 2: 1 cells under 2 column names"),
        ("time_fs,temperature_k\n1.0,hot\n", r"no numbers in column 'temperature_k' \(found time_fs\)"),
    ],
)
def test_a_broken_log_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "log.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_columns(path, required=["time_fs", "temperature_k"])


def test_a_log_of_something_else_has_no_learning_curves(md_csv: Path) -> None:
    with pytest.raises(InputError, match="no learning curves in it"):
        learning_curves(md_csv)


# --- worst structures -------------------------------------------------------------------------------------------------


def test_the_worst_structures_are_those_with_the_largest_errors() -> None:
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.0]])
    zero = np.zeros((2, 3))
    by_energy, by_forces = [2.0, 5.0, 1.0, 3.0], [40.0, 10.0, 20.0, 30.0]  # meV/atom, meV/Å
    frames = [Frame(atoms, 0.0, zero, None, None, "/data/set.xyz", i) for i in range(4)]
    predictions = [
        FramePrediction(-2e-3 * e, zero + 1e-3 * f, None) for e, f in zip(by_energy, by_forces, strict=True)
    ]
    (one, two) = worst_structures(frames, predictions, most=1)
    assert [one["label"], two["label"]] == ["set.xyz frame 0", "set.xyz frame 1"]
    assert one["errors"] == {"energy": pytest.approx(2.0), "forces": pytest.approx(40.0), "stress": None}
    assert two["errors"]["energy"] == pytest.approx(5.0)
    assert one["symbols"] == ["O", "H"]
    assert one["positions"] == [[0, 0, 0], [0, 0, 1]]
    assert one["predicted"] == [[0.04] * 3] * 2
    assert one["cell"] is None
    crystal = Frame(ase.build.bulk("Cu"), 0.0, None, None, None, "cu.xyz", 0)
    (only,) = worst_structures([crystal], [FramePrediction(1.0, np.zeros((1, 3)), None)], most=3)
    np.testing.assert_allclose(only["cell"], crystal.atoms.cell.array)
    assert only["reference"] is None


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements with an address, the texts of scripts, and headings with an anchor."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.anchors: list[str] = []
        self.tags: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self._inside: dict[str, str | None] | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.addresses += [
            given[name] or "" for name in ("src", "href", "xlink:href", "data") if name in given
        ]
        if tag == "script":
            self._inside = given
        if tag == "h2":
            self.anchors.append(given["id"] or "")

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.scripts.append((self._inside, data))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = None

    @property
    def structures(self) -> list[dict[str, object]]:
        (text,) = [text for given, text in self.scripts if given.get("id") == "structures-data"]
        return json.loads(text)["structures"]


@pytest.fixture(scope="module")
def full_page(
    frames: list[Frame],
    predictions: list[FramePrediction],
    metrics_csv: Path,
    md_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(
        path,
        frames,
        predictions,
        model={
            "architecture": "nequip",
            "species": ["Hf", "O", "Si"],
            "hyperparameters": {"r_max": 5.0, "zbl": False},
        },
        title="run/model.safetensors",
        metrics_csv=metrics_csv,
        md_csv=md_csv,
    )
    return Page(path)


def test_the_report_fetches_nothing(full_page: Page) -> None:
    fetched = [address for address in full_page.addresses if not address.startswith(("#", "data:image/"))]
    assert fetched == []
    assert not {"link", "iframe", "object", "embed"} & set(full_page.tags)
    assert "@import" not in full_page.text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", full_page.text.split("<script type=")[0])
    assert "default-src 'none'" in full_page.text


def test_the_report_has_every_section(full_page: Page, frames: list[Frame]) -> None:
    assert full_page.anchors == ["errors", "parity", "groups", "structures", "training", "dynamics", "model"]
    # parity and histogram of three quantities, one by element, three by configuration type, curves, dynamics
    assert full_page.tags.count("svg") == 12
    assert len(full_page.structures) == len(frames)
    assert "Copyright (c) 2014, University of Pittsburgh" in full_page.text
    for words in ("HfO2_12atoms", "r_max", "forces MAE", "run/model.safetensors"):
        assert words in full_page.text


def test_the_numbers_in_the_report_are_the_metrics(
    full_page: Page, frames: list[Frame], predictions: list[FramePrediction]
) -> None:
    metrics = error_metrics(frames, predictions)
    for key in ("energy_mae_mev_per_atom", "forces_mae_mev_per_ang", "stress_mae_mev_per_ang3"):
        assert f'<div class="value">{short(metrics[key])} <small>' in full_page.text


def test_sections_without_content_are_left_out(tmp_path: Path, md_csv: Path) -> None:
    write_report(tmp_path / "md.html", md_csv=md_csv)
    found = Page(tmp_path / "md.html")
    assert found.anchors == ["dynamics"]
    assert len(found.text) < 300_000  # without the viewer


def test_missing_labels_leave_no_gaps(frames: list[Frame], tmp_path: Path) -> None:
    bare = [Frame(f.atoms, f.energy, None, None, None, f.source, f.index) for f in frames]
    energies = [FramePrediction(f.energy + 0.1, np.zeros((len(f.atoms), 3)), None) for f in frames]
    write_report(tmp_path / "energies.html", bare, energies)
    found = Page(tmp_path / "energies.html")
    assert found.tags.count("svg") == 2
    assert all(structure["reference"] is None for structure in found.structures)
    assert "<option>energy</option>" in found.text
    assert "<option>forces</option>" not in found.text


def test_names_from_data_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert('x')</script><!--"
    one = Frame(ase.build.molecule("H2O"), 0.0, np.zeros((3, 3)), None, evil, f"{evil}.xyz", 0)
    said = [FramePrediction(0.1, np.ones((3, 3)), None)]
    write_report(tmp_path / "evil.html", [one], said, title=evil, model={evil: {evil: evil}}, warnings=[evil])
    found = Page(tmp_path / "evil.html")
    assert found.tags.count("script") == 4
    assert found.structures[0]["config_type"] == evil
    assert "alert('x')" not in "".join(text for given, text in found.scripts if given.get("type") is None)


def test_vendored_scripts_cannot_end_their_element_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        page_module, "asset_text", lambda name: "a='</script>';b='</SCRIPT>';c='<!--';d='</style>'"
    )
    assert page_module.inline_asset("any.js") == r"a='<\/script>';b='<\/SCRIPT>';c='<\!--';d='<\/style>'"


def test_a_report_is_not_overwritten_by_accident(tmp_path: Path, md_csv: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html exists; give --overwrite"):
        write_report(path, md_csv=md_csv)
    assert path.read_text() == "mine"
    write_report(path, md_csv=md_csv, overwrite=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_a_broken_log_leaves_no_report(tmp_path: Path) -> None:
    (tmp_path / "md.csv").write_text("time_fs\n1\n")
    with pytest.raises(InputError, match="no numbers in column 'potential_energy_ev'"):
        write_report(tmp_path / "report.html", md_csv=tmp_path / "md.csv")
    assert not (tmp_path / "report.html").exists()


def test_plots_as_separate_files(
    frames: list[Frame], predictions: list[FramePrediction], md_csv: Path, metrics_csv: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plots"
    written = write_plots(folder, frames, predictions, metrics_csv=metrics_csv, md_csv=md_csv)
    names = {path.stem for path in written}
    assert {"parity_energy", "parity_forces", "parity_stress", "errors_forces", "forces_by_element"} <= names
    assert {"forces_by_config_type", "learning_curves", "dynamics"} <= names
    assert sorted(folder.iterdir()) == sorted(written)
    assert all(path.read_bytes().startswith(MAGIC[".png"]) for path in written)
    with pytest.raises(InputError, match="not empty"):
        write_plots(folder, md_csv=md_csv)
    with pytest.raises(InputError, match=r"not as '\.bmp'"):
        write_plots(tmp_path / "other", md_csv=md_csv, suffix=".bmp")
    assert not (tmp_path / "other").exists()
