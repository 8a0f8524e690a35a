"""`equipes info`, `convert` and `doctor`: looking at models, bringing in others', looking at the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from equipes.cli.inputs import ModalOption, ModelPath
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, print_table, write_json


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(info)
    app.command()(convert)
    app.command()(freeze)
    app.command()(doctor)


def info(model: ModelPath, json: JsonPath = None, overwrite: Overwrite = False) -> None:
    """Say what a model is: architecture, elements, cutoff, size, and what it was trained on."""
    import equipes
    from equipes.foundation import locate
    from equipes.models import is_frozen

    check_json_path(json, overwrite=overwrite)
    path = locate(model)
    summary = (equipes.load_frozen(path) if is_frozen(path) else equipes.load(path)).summary()
    print_table(_flat(summary), title=str(model), quiet=json == STDOUT)
    write_json(summary, json, overwrite=overwrite)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A checkpoint of SevenNet (*.pth) or MACE (*.model), or of NequIP a package (*.nequip.zip) or npz.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The model to write: *.safetensors.")],
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="NAME", help="Of a MACE with several heads, the one to use."),
    ] = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert another package's weights into an equipes model; energies and forces stay the same, nothing is run."""
    from equipes.files import refuse_overwrite
    from equipes.foundation import read_checkpoint

    check_json_path(json, overwrite=overwrite)
    refuse_overwrite(target, overwrite=overwrite)
    potential = read_checkpoint(source, head=head)
    potential.save(target, overwrite=overwrite)
    summary = potential.summary()
    print_table(_flat(summary), title=f"{source} → {target}", quiet=json == STDOUT)
    write_json(summary, json, overwrite=overwrite)


def freeze(
    model: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The frozen potential to write: *.safetensors.")],
    species: Annotated[
        str | None,
        typer.Option("--species", metavar="EL,EL,…", help="The elements that will occur; all by default."),
    ] = None,
    modal: ModalOption = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a potential for fast simulations on the CPU, and say how far it is from the model."""
    import equipes
    from equipes.files import refuse_overwrite

    check_json_path(json, overwrite=overwrite)
    refuse_overwrite(out, overwrite=overwrite)
    symbols = None if species is None else [symbol.strip() for symbol in species.split(",")]
    frozen = equipes.load(model, modal=modal).freeze(symbols)
    frozen.save(out, overwrite=overwrite)
    summary = frozen.summary()
    print_table(_flat(summary), title=f"{model} → {out}", quiet=json == STDOUT)
    write_json(summary, json, overwrite=overwrite)


def doctor(json: JsonPath = None, overwrite: Overwrite = False) -> None:
    """Examine the installation: versions, processor, threads, kernel, memory, and what is missing."""
    from equipes.diagnostics import examine

    check_json_path(json, overwrite=overwrite)
    facts = examine()
    quiet = json == STDOUT
    print_table(
        ((name, value) for name, value in _flat(facts) if name not in ("warnings", "problems")), quiet=quiet
    )
    write_json(facts, json, overwrite=overwrite)
    for warning in facts["warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    for problem in facts["problems"]:
        typer.echo(f"Problem: {problem}", err=True)
    if not quiet and not facts["problems"]:
        typer.echo("\nAll is well.")
    if facts["problems"]:
        raise typer.Exit(1)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested facts as lines: `{"versions": {"torch": "2.13"}}` becomes `("versions.torch", "2.13")`."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, item)) or "none"
        elif isinstance(item, dict) or item is None:
            yield f"{prefix}{key}", "none"
        else:
            yield f"{prefix}{key}", item
