"""`equipes benchmark`: comparisons with what others have published."""

from __future__ import annotations

import typer

from equipes.cli import trainings
from equipes.cli.crystals import crystals
from equipes.cli.held_out import held_out

benchmark = typer.Typer(no_args_is_help=True, help="Compare with what others have measured or calculated.")
trainings.register(benchmark)
benchmark.command()(crystals)
benchmark.command("held-out")(held_out)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(benchmark, name="benchmark")
