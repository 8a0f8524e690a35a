"""Errors as rows of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equipes.report.figures import short

# quantity: (its unit, the unit of its errors)
UNITS = {"energy": ("eV/atom", "meV/atom"), "forces": ("eV/Å", "meV/Å"), "stress": ("eV/Å³", "meV/Å³")}
# quantity: the ending of its keys in `error_metrics`
STEMS = {"energy": "mev_per_atom", "forces": "mev_per_ang", "stress": "mev_per_ang3"}
# quantity: the key there that counts its labels
COUNTS = {"energy": "n_energies", "forces": "n_forces", "stress": "n_stresses"}

Rows = list[tuple[str, list[str]]]


def labelled(metrics: Mapping[str, Any]) -> list[str]:
    """The quantities of `error_metrics` that had labels."""
    return [quantity for quantity, count in COUNTS.items() if metrics[count]]


def summary_rows(metrics: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Column names, and a row for each quantity that has labels, beside its baseline."""
    columns = ["labels", "MAE", "RMSE", "largest", "mean error", "baseline MAE", "baseline RMSE"]
    rows = []
    for quantity in labelled(metrics):
        stem = STEMS[quantity]
        cells = [metrics[COUNTS[quantity]]]
        cells += [metrics[f"{quantity}_{kind}_{stem}"] for kind in ("mae", "rmse", "max", "bias")]
        cells += [metrics["baseline"][f"{quantity}_{kind}_{stem}"] for kind in ("mae", "rmse")]
        rows.append((f"{quantity} ({UNITS[quantity][1]})", [_cell(cell) for cell in cells]))
    return columns, rows


def group_rows(groups: Mapping[str, Any], quantities: Sequence[str]) -> tuple[list[str], Rows]:
    """Column names, and a row for each element or configuration type with the errors of the quantities."""
    keys = [key for key in ("n_frames", "n_atoms") if all(key in group for group in groups.values())]
    columns = [key.removeprefix("n_") for key in keys]
    for quantity in quantities:
        for kind in ("mae", "rmse"):
            columns.append(f"{quantity} {kind.upper()} ({UNITS[quantity][1]})")
            keys.append(f"{quantity}_{kind}_{STEMS[quantity]}")
    return columns, [(name, [_cell(group[key]) for key in keys]) for name, group in groups.items()]


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return "0" if abs(value) < 5e-5 else short(value)  # a mean error of -6e-8 is round-off
