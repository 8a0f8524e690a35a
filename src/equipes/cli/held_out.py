"""`equipes benchmark held-out`: a potential's errors on labelled frames whose reference is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.inputs import ModalOption
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.cli.running import Device, Dtype, Precision, check_targets

if TYPE_CHECKING:
    from equipes.benchmark.held_out import HeldOutResult


def held_out(
    model: Annotated[
        Path,
        typer.Option("--model", metavar="MODEL", help="*.safetensors, or the name of a published model."),
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="FRAMES...",
            help="Labelled frames, such as mptrj-random-1k.xyz and mpf-TP.xyz of MatterSim.",
        ),
    ],
    functional: Annotated[
        str | None,
        typer.Option(
            "--functional", help="Of the labels, such as 'PBE(+U)'; of the published sets it is known."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PATH.html", help="Write a page with figures.")
    ] = None,
    elements: Annotated[bool, typer.Option("--elements", help="Print the errors of every element.")] = False,
    modal: ModalOption = None,
    device: Device = "cpu",
    dtype: Dtype = Precision.float32,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Errors on labelled frames: energy, forces, stress, softening, every element; what cannot be compared is named."""
    check_json_path(json, overwrite=overwrite)
    check_targets((report,), overwrite=overwrite, structures=False)

    import equipes
    from equipes.benchmark.held_out import held_out_errors, known_elements
    from equipes.cli.evaluate import predict_with_progress
    from equipes.data import read_frames
    from equipes.foundation.registry import published

    potential = equipes.load(model, device=device, dtype=dtype.value, modal=modal)
    done = []
    for name in data:
        every = read_frames(name)
        frames = known_elements(every, potential.species)
        predictions = predict_with_progress([potential], frames, None)
        result = held_out_errors(
            name,
            frames,
            predictions,
            left_out=len(every) - len(frames),
            functional=functional,
            model=published(str(model)),
            modal=modal,
        )
        done.append((result, frames, predictions))
    results = [result for result, _, _ in done]
    if json != STDOUT:
        _print(results, str(model), elements=elements)
    facts = {"model": str(model), "modal": modal, "dtype": dtype.value}
    write_json({**facts, "sets": [result.summary() for result in results]}, json, overwrite=overwrite)
    if report is not None:
        from equipes.report.held_out import write_page

        write_page(report, str(model), done, overwrite=overwrite)
        typer.echo(f"report: {report}", err=json == STDOUT)


def _print(results: list[HeldOutResult], model: str, *, elements: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from equipes.report.held_out import COLUMNS, ELEMENT_COLUMNS, element_rows, rows

    console = Console()
    console.print(Text(f"{model} on labelled frames", style="bold"), soft_wrap=True)
    tables = [("set", COLUMNS, rows(results))]
    if elements:
        tables += [(result.name, ELEMENT_COLUMNS, element_rows(result)) for result in results]
    for first, columns, cells in tables:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(first, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        for name, values in cells:
            table.add_row(Text(name), *values)
        console.print(table)
    for result in results:
        for sentence in result.warnings:
            typer.echo(f"Warning: {result.name}: {sentence}", err=True)
    console.print(
        "energy: per atom; after fit: constants of the elements, fitted to these errors, taken off; slope: predicted "
        "over reference forces, below 1 is too soft; robust: by least absolute deviations",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
