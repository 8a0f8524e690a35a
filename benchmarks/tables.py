"""What the benchmarks print and write, and the options that they share."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
from peers import ENVIRONMENTS
from rich.console import Console
from rich.table import Table

from equipes.errors import InputError
from equipes.files import atomic_write

ALLOCATOR_NOTE = (
    "Other packages run with MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set so that glibc "
    "keeps large arrays; equipes without."
)


def parser(text: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    result = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="fewer cases and rounds: to see that it runs")
    result.add_argument("--json", type=Path, help="write the figures there, too")
    result.add_argument("--overwrite", action="store_true", help="of the files that are written")
    return result


def add_peer_options(
    options: argparse.ArgumentParser, peers: Sequence[str], further: Sequence[str] = ()
) -> None:
    """Which other packages take part, `further` ones only when they are named, and where they are."""
    options.add_argument(
        "--peers", nargs="*", default=list(peers), choices=[*peers, *further], help="default: %(default)s"
    )
    options.add_argument(
        "--environments",
        type=Path,
        default=ENVIRONMENTS,
        help="of the peers; see peers/create.py (%(default)s)",
    )
    options.add_argument("--threads", nargs="+", type=int, default=None, help="default: 1 and all cores")


def threads_of(options: argparse.Namespace) -> list[int]:
    """What `--threads` says; by default one thread and, where there are more cores, all."""
    return options.threads or sorted({1, machine.cores()})


def milliseconds(seconds: Sequence[float]) -> float:
    """The median, in ms."""
    return 1e3 * statistics.median(seconds)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table: drawn on a terminal, Markdown elsewhere. The first column is text, the others numbers."""
    cells = [[_text(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in cells:
            table.add_row(*row)
        Console().print(table)
        return
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (len(columns) - 1))
    for row in cells:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 99.95 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_json(options: argparse.Namespace, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """The figures and their conditions, if `--json` asks for them."""
    if options.json is None:
        return
    with atomic_write(options.json, overwrite=options.overwrite) as temporary:
        temporary.write_text(json.dumps({"conditions": facts, "rows": list(rows)}, indent=2) + "\n")


def check_outputs(options: argparse.Namespace, *paths: Path | None) -> None:
    """Before anything is measured: raises `InputError` for a file that must not be replaced."""
    for path in (options.json, *paths):
        if path is not None and path.exists() and not options.overwrite:
            raise InputError(f"{path} exists; give --overwrite, or another name")


def run(main: Any) -> None:
    """Call `main`; a user's mistake is one sentence and exit status 2."""
    from peers import MissingEnvironmentError

    try:
        main()
    except (InputError, MissingEnvironmentError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
