"""`equipes familiarize`: tell a model which structures it may be trusted on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipes.cli.inputs import ModalOption, ModelPath, UnitsOption, parse_units
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, print_table, write_json
from equipes.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(familiarize)


def familiarize(
    model: ModelPath,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="FRAMES...", help="Structures it was trained on, or is trusted on; no labels needed."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model with its reference: *.safetensors.")],
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            "--held-out", metavar="FRAMES", help="Others like them, for the limit; every fifth by default."
        ),
    ] = None,
    units: UnitsOption = None,
    modal: ModalOption = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Let a model remember structures, so that it can say how far others are from them.

    `equipes train` does so by itself with its training frames; this is for published models and for other frames.
    """
    from equipes.files import refuse_overwrite

    check_json_path(json, overwrite=overwrite)
    refuse_overwrite(out, overwrite=overwrite)
    if out.suffix != ".safetensors":
        raise InputError(f"cannot write {out}: a model file ends in .safetensors; give it that suffix")
    declared = parse_units(units)

    import equipes
    from equipes.data import LabelKeys, read_frames
    from equipes.training.familiarity import familiarity_of

    potential = equipes.load(model, modal=modal)
    frames = read_frames(data, keys=LabelKeys(), units=declared)
    others = read_frames(held_out, keys=LabelKeys(), units=declared) if held_out else []
    source = ", ".join(Path(name).name for name in data)
    if held_out:
        source += f"; calibrated with {', '.join(Path(name).name for name in held_out)}"
    potential.familiarity = familiarity_of(potential, frames, others, source=source)
    potential.save(out, overwrite=overwrite)
    facts = dict(potential.familiarity.facts)
    atoms = ", ".join(f"{symbol} {n}" for symbol, n in facts["atoms"].items())
    print_table(
        {**facts, "atoms": atoms}.items(), title=f"{model} → {out}: what it knows", quiet=json == STDOUT
    )
    write_json({"model": str(model), "out": str(out), "familiarity": facts}, json, overwrite=overwrite)
