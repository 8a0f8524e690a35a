"""The command line: parse, call a room of the package, print.

Each module beside this one offers `register(app)` and adds its commands. They import torch and everything heavy inside
their functions, so that `equipes --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

import equipes
from equipes.cli import (
    batch,
    batch_relax,
    benchmark,
    data,
    distill,
    evaluate,
    expansion,
    familiarize,
    glass,
    heat,
    lattice,
    model,
    models,
    simulate,
    train,
    transport,
)
from equipes.errors import InputError
from equipes.files import empty_directories_removed

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130

# Typer carries its own click; the base class of its public BadParameter is what any wrong usage raises.
_UsageError = typer.BadParameter.__bases__[0]

_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="equipes",
    help="Learn interatomic potentials from quantum-mechanical data, and run them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_CONTEXT,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"equipes {equipes.__version__}")
        raise typer.Exit()


def _show_tracebacks(wanted: bool) -> None:
    if wanted:
        os.environ["EQUIPES_TRACEBACK"] = "1"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - acts in its callback
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    traceback: Annotated[  # noqa: ARG001
        bool, typer.Option("--traceback", callback=_show_tracebacks, is_eager=True, hidden=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for module in (
    train,
    distill,
    evaluate,
    familiarize,
    simulate,
    batch,
    batch_relax,
    lattice,
    expansion,
    heat,
    transport,
    glass,
    benchmark,
    models,
    data,
    model,
):
    module.register(app)


def run(application: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Run a command and return its exit status.

    What the user did wrong (`InputError`, wrong usage, a file that cannot be read or written) becomes one line on
    stderr and status 2; an interrupt becomes 130. Anything else is a mistake of ours and keeps its traceback, as
    everything does when `EQUIPES_TRACEBACK` is set.
    """
    try:
        with empty_directories_removed():
            status = application(args=list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader of a pipe (`equipes … | head`) has what it wanted. Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("EQUIPES_TRACEBACK"):
            raise
        sentence = _users_mistake(error)
        if sentence is None:
            raise
        print(f"Error: {sentence}", file=sys.stderr)  # noqa: T201 - Rich would wrap it at the terminal's width
        return USAGE_STATUS
    if status == INTERRUPTED_STATUS:
        print("Interrupted", file=sys.stderr)  # noqa: T201
    return status if isinstance(status, int) else 0


def _users_mistake(error: Exception) -> str | None:
    """The sentence to tell, or None when the error is not the user's."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        return cast(typer.BadParameter, error).format_message().rstrip(".") + hint
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return None


def _let_waiting_threads_sleep() -> None:
    """What OpenMP's threads do while they wait for each other; said before torch is imported, which reads it once.

    GNU's spin for milliseconds. Beside other work a thread then keeps the processor from the one that it waits for, and
    a step of a small model takes tens of times as long. Sleeping at once costs a few percent of an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def main() -> None:
    """The command `equipes`."""
    _let_waiting_threads_sleep()
    sys.exit(run(app, sys.argv[1:], "equipes"))


def nequip_train() -> None:
    """The command `nequip-train`."""
    application = typer.Typer(add_completion=False, context_settings=_CONTEXT)
    application.command()(train.nequip_train)
    _let_waiting_threads_sleep()
    sys.exit(run(application, sys.argv[1:], "nequip-train"))
