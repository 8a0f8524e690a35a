"""Reading the logs that training and dynamics write: CSV files with one header line and numbers."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np

from equipes.errors import InputError


def read_columns(path: str | os.PathLike[str], required: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns of a CSV log by name, float64, NaN where a cell is empty.

    A last line without its line end was cut off while being written and is left out; so are columns of text.
    Raises `InputError` when the file is missing or has no rows, when a row has too many or too few cells, and when
    a required column is missing.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InputError(f"cannot read {name}: {reason}") from error
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines.pop()
    rows = [row for row in csv.reader(lines) if row]
    if len(rows) < 2:
        raise InputError(f"{name} has no rows; give a log with a header line and at least one row")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise InputError(
                f"{name} line {number}: {len(row)} cells under {len(header)} column names; "
                "give the log as it was written"
            )
    columns = {}
    for position, column in enumerate(header):
        try:
            columns[column.strip()] = np.array([float(row[position] or "nan") for row in body])
        except ValueError:
            continue
    missing = [column for column in required if column not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"{name}: no numbers in column '{missing[0]}' (found {found}); give a log that has it"
        )
    return columns
