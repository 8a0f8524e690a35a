"""`equipes benchmark`: comparisons with what others have published."""

from __future__ import annotations

import typer

from equipes.cli.crystals import crystals

benchmark = typer.Typer(no_args_is_help=True, help="Compare with what others have measured or calculated.")
benchmark.command()(crystals)


@benchmark.callback()
def _group() -> None:
    """Keeps `crystals` a command of its own while it is the only one."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(benchmark, name="benchmark")
