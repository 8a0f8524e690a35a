"""The table of a benchmark: ours and published figures, as Markdown and JSON, and learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from equipes.benchmark.runs import Row
from equipes.files import atomic_write

# By mean absolute errors for interpolation, by root mean squares for extrapolation, as the papers have them.
KIND = {"rmd17": "mae", "acac": "rmse", "3bpa": "rmse", "mlearn": "mae"}


@cache
def published() -> dict[str, Any]:
    """The figures that came with the package, with their sources."""
    text = files("equipes.benchmark").joinpath("published.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def published_figures(row: Row) -> dict[str, list[float | None]]:
    """`[energy, forces meV/Å]` by model, for the training and test of a row; empty where nothing was published.

    Energies are those of the whole molecule in meV; of mlearn, whose frames differ in size, meV/atom.
    """
    known = published().get(row.benchmark, {})
    if row.benchmark == "mlearn":
        return dict(known["elements"].get(row.system, {}))
    if row.benchmark == "rmd17":
        return dict(known["frames"].get(str(row.n_train), {}).get(row.system, {}))
    return dict(known.get("tests", {}).get(row.test, {})) if row.n_train == 450 else {}


def markdown(rows: Sequence[Row]) -> str:
    """The table, with published figures below ours, and where they come from."""
    kind = KIND[rows[0].benchmark]
    label = kind.upper()
    lines = [
        f"| system | frames | test | model | energy {label}, meV | meV/atom | forces {label}, meV/Å | hours "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.system, row.n_train, row.test), []).append(row)
    remarks: dict[str, str] = {}
    notes = published().get(rows[0].benchmark, {}).get("remarks", {})
    for (system, n_train, test), members in groups.items():
        place = f"| {system} | {n_train} | {test} |"
        for row in members:
            energy, per_atom, forces = (
                _number(row.errors[name])
                for name in (
                    f"energy_{kind}_mev",
                    f"energy_{kind}_mev_per_atom",
                    f"forces_{kind}_mev_per_ang",
                )
            )
            lines.append(
                f"{place} **{row.model}** | {energy} | {per_atom} | {forces} | {row.hours:.2f} "
                f"| {row.parameters:,} |"
            )
        for model, (energy_value, forces_value) in published_figures(members[0]).items():
            mark = ""
            if model in notes:
                remarks.setdefault(model, notes[model])
                mark = " †"
            energies = f" {_number(energy_value)} | |"
            if rows[0].benchmark == "mlearn":
                energies = f" | {_number(energy_value)} |"
            lines.append(f"{place} *{model}, published{mark}* |{energies} {_number(forces_value)} | | |")
    text = "\n".join(lines) + "\n"
    if any(published_figures(members[0]) for members in groups.values()):
        text += f"\nPublished: {published()[rows[0].benchmark]['source']}\n"
    for model, remark in remarks.items():
        text += f"† {model}: {remark}.\n"
    seen = {json.dumps(row.conditions, sort_keys=True): row.conditions for row in rows}
    for conditions in seen.values():
        text += "Conditions: " + ", ".join(f"{key} {value}" for key, value in conditions.items()) + ".\n"
    return text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def write_results(rows: Sequence[Row], out: Path, *, learning_curve: bool = False) -> list[Path]:
    """Write `results.md`, `results.json` and, if asked for, `learning_curve.svg` into `out`; returns the paths.

    They grow with every training that is finished, so what is there is replaced.
    """
    content = {
        "rows": [{**asdict(row), "published": published_figures(row)} for row in rows],
        "published_source": published().get(rows[0].benchmark, {}).get("source"),
    }
    texts = {
        out / "results.md": markdown(rows),
        out / "results.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
    }
    for path, text in texts.items():
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    paths = list(texts)
    if learning_curve:
        from equipes.benchmark.curves import learning_curves

        paths.append(out / "learning_curve.svg")
        learning_curves(rows, paths[-1])
    return paths
