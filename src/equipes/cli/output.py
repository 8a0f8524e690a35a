"""What the commands share: the `--json` and `--overwrite` options, tables, and writing numbers for other programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.files import atomic_write, refuse_overwrite

if TYPE_CHECKING:
    from rich.console import Console

JsonPath = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="PATH",
        help="Write the numbers as JSON too; '-' is stdout, with nothing else on it.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output that exists.")]

STDOUT = Path("-")


def check_json_path(path: Path | None, *, overwrite: bool = False) -> None:
    """Complain about an existing JSON file before the work is done, not after."""
    if path is not None and path != STDOUT:
        refuse_overwrite(path, overwrite=overwrite)


def write_json(data: Mapping[str, Any], path: Path | None, *, overwrite: bool = False) -> None:
    """Write `data` as strict JSON (NaN and infinity become null) to a file, to stdout for `-`, nowhere for None."""
    if path is None:
        return
    text = json.dumps(_strict(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        return
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def stdout_console() -> Console:
    """For tables on stdout: in a file or a pipe lines are as long as they need to be, unless COLUMNS says otherwise."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(width=width)


def print_table(rows: Iterable[tuple[str, object]], *, title: str | None = None, quiet: bool = False) -> None:
    """Two columns, name and value, to stdout; nothing when `quiet` (stdout then belongs to JSON)."""
    if quiet:
        return
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    if title is not None:
        console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(str(value)))
    console.print(table)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a NumPy or torch number or array
        return _strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
