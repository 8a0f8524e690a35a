"""The HTML report: one file that needs nothing else, not even a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from equipes import __version__
from equipes.errors import InputError
from equipes.files import atomic_write, new_directory
from equipes.report.curves import learning_curves, md_plot
from equipes.report.figures import FORMATS, inline_svg, save, short
from equipes.report.gather import compared, error_figures, worst_structures
from equipes.report.tables import STEMS, UNITS, Rows, group_rows, labelled, summary_rows
from equipes.report.uncertainty import uncertainty_figures, uncertainty_rows

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.training.metrics import FramePrediction


def write_report(
    path: str | os.PathLike[str],
    frames: Sequence[Frame] = (),
    predictions: Sequence[FramePrediction] = (),
    *,
    metrics: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    title: str = "equipes report",
    subtitle: str = "",
    warnings: Sequence[str] | None = None,
    metrics_csv: str | os.PathLike[str] | None = None,
    md_csv: str | os.PathLike[str] | None = None,
    worst: int = 10,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML file about a potential; sections appear for what is given.

    Args:
        path: the file to write.
        frames: reference structures with labels.
        predictions: what the potential says of them (`predict_frames`), in the same order.
        metrics: their errors (`error_metrics`); computed if not given.
        model: facts about the potential (`Potential.summary()`).
        title: headline, as plain text.
        subtitle: one line under it.
        warnings: sentences shown above the errors; None: those of `equipes.training.suspicions`.
        metrics_csv: a training's log, for learning curves.
        md_csv: a dynamics log, for energies and temperature over time.
        worst: how many structures to show for each quantity, at most.
        overwrite: replace a file that exists.

    Raises:
        InputError: a log that cannot be read, labels that are not finite, or a place that cannot be written.
    """
    context: dict[str, Any] = {
        "title": title,
        "subtitle": subtitle,
        "version": __version__,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "css": inline_asset("report.css"),
        "js": inline_asset("report.js"),
        "notice": asset_text("3Dmol-LICENSE.txt"),
        "model": model,
        "metrics": None,
        "structures": [],
        "training": None,
        "dynamics": None,
    }
    if len(frames):
        context |= _errors_part(frames, predictions, metrics, warnings, worst)
    if context["structures"]:
        context["viewer_js"] = inline_asset("3Dmol-min.js")
    context["structures_json"] = inline_json({"structures": context["structures"], "shown": worst})
    if metrics_csv is not None:
        context["training"] = _svg(learning_curves(metrics_csv), "learning curves")
    if md_csv is not None:
        context["dynamics"] = _svg(md_plot(md_csv), "energies and temperature over time")
    context["sections"] = [
        (anchor, name)
        for anchor, name, shown in (
            ("errors", "Errors", context["metrics"]),
            ("parity", "Reference and prediction", context["metrics"]),
            ("groups", "Errors by kind", context["metrics"]),
            ("structures", "Worst structures", context["structures"]),
            ("training", "Training", context["training"]),
            ("dynamics", "Dynamics", context["dynamics"]),
            ("model", "Model", model),
        )
        if shown
    ]
    environment = Environment(loader=FunctionLoader(asset_text), autoescape=True, undefined=StrictUndefined)
    environment.filters["fact"] = _fact
    text = environment.get_template("report.html").render(context)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_plots(
    directory: str | os.PathLike[str],
    frames: Sequence[Frame] = (),
    predictions: Sequence[FramePrediction] = (),
    *,
    metrics: Mapping[str, Any] | None = None,
    metrics_csv: str | os.PathLike[str] | None = None,
    md_csv: str | os.PathLike[str] | None = None,
    suffix: str = ".png",
    overwrite: bool = False,
) -> list[Path]:
    """Write the report's figures as separate files into a directory; returns their paths.

    Arguments as of `write_report`; `suffix` is ".png", ".svg" or ".pdf". Raises `InputError` for another, for a
    directory with something in it unless `overwrite`, and for what `write_report` refuses.
    """
    if suffix not in FORMATS:
        raise InputError(
            f"figures are written as {', '.join(FORMATS)}, not as '{suffix}'; choose one of these"
        )
    named = []
    if len(frames):
        values = compared(frames, predictions)
        named += [
            (name, figure)
            for name, _, figure in (
                *error_figures(frames, values, _metrics(frames, predictions, metrics)),
                *uncertainty_figures(frames, predictions),
            )
        ]
    if metrics_csv is not None:
        named.append(("learning_curves", learning_curves(metrics_csv)))
    if md_csv is not None:
        named.append(("dynamics", md_plot(md_csv)))
    folder = new_directory(directory, overwrite=overwrite)
    paths = []
    for name, figure in named:
        paths.append(folder / f"{name}{suffix}")
        save(figure, paths[-1], overwrite=overwrite)
    return paths


def _metrics(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], metrics: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if metrics is not None:
        return metrics
    from equipes.training.metrics import error_metrics

    return error_metrics(frames, predictions)


def _errors_part(
    frames: Sequence[Frame],
    predictions: Sequence[FramePrediction],
    metrics: Mapping[str, Any] | None,
    warnings: Sequence[str] | None,
    worst: int,
) -> dict[str, Any]:
    from equipes.training.suspicions import suspicions

    metrics = _metrics(frames, predictions, metrics)
    values = compared(frames, predictions)
    figures = {name: _svg(figure, about) for name, about, figure in error_figures(frames, values, metrics)}
    quantities = labelled(metrics)

    def ending(name: str) -> list[Markup]:
        return [svg for figure, svg in figures.items() if figure.endswith(name)]

    groups = []
    if "forces" in quantities:
        rows = group_rows(metrics["per_element"], ["forces"])
        groups.append(_table("By element", "element", rows, ending("_by_element")))
    if metrics["per_config_type"]:
        rows = group_rows(metrics["per_config_type"], quantities)
        groups.append(_table("By configuration type", "configuration type", rows, ending("_by_config_type")))
    if metrics.get("uncertainty"):
        rows = uncertainty_rows(metrics["uncertainty"])
        drawn = [_svg(figure, about) for _, about, figure in uncertainty_figures(frames, predictions)]
        groups.append(_table("Uncertainty", "measure", rows, drawn))
    return {
        "metrics": metrics,
        "warnings": suspicions(frames, predictions) if warnings is None else warnings,
        "cards": [_card(quantity, metrics) for quantity in quantities],
        "table": _table("", "", summary_rows(metrics)),
        "parity": [[figures[f"parity_{quantity}"], figures[f"errors_{quantity}"]] for quantity in quantities],
        "groups": groups,
        "structures": worst_structures(frames, predictions, worst),
        "ranks": [quantity for quantity in ("forces", "energy", "stress") if quantity in quantities],
    }


def _card(quantity: str, metrics: Mapping[str, Any]) -> dict[str, str]:
    stem, unit = STEMS[quantity], UNITS[quantity][1]
    mae, rmse = metrics[f"{quantity}_mae_{stem}"], metrics[f"{quantity}_rmse_{stem}"]
    base = metrics["baseline"][f"{quantity}_rmse_{stem}"]
    note = f"RMSE {short(rmse)}"
    if base:
        note += f", {100.0 * rmse / base:.3g} % of the baseline"
    return {"name": f"{quantity} MAE", "value": short(mae), "unit": unit, "note": note}


def _table(
    title: str, first: str, table: tuple[list[str], Rows], figures: Sequence[Markup] = ()
) -> dict[str, Any]:
    return {"title": title, "first": first, "columns": table[0], "rows": table[1], "figures": figures}


def _svg(figure: Any, description: str) -> Markup:
    return Markup(inline_svg(figure, description=description))


def _fact(value: Any) -> str:
    """A fact of the model card as text."""
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value) or "none"
    if value is None or value == {}:
        return "none"
    return str(value)


def asset_text(name: str) -> str:
    return (files("equipes.report") / "assets" / name).read_text(encoding="utf-8")


def inline_asset(name: str) -> Markup:
    """A script or style to stand inside its HTML element, which must not end before the text does."""
    text = asset_text(name)
    for ending in ("script", "style"):
        for written in (ending, ending.upper(), ending.capitalize()):
            text = text.replace(f"</{written}", f"<\\/{written}")
    return Markup(text.replace("<!--", "<\\!--"))


def inline_json(data: Any) -> Markup:
    """JSON that cannot be mistaken for HTML wherever it stands."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
