"""`equipes benchmark crystals`: a potential against what others have measured or calculated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.inputs import ModalOption
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.cli.running import Device, Dtype, Precision, progress_bar, stopping

if TYPE_CHECKING:
    from equipes.benchmark import CrystalResult


def crystals(
    model: Annotated[
        Path,
        typer.Option("--model", metavar="MODEL", help="*.safetensors, or the name of a published model."),
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CRYSTAL...]", help="Such as Si MgO; all without any.")
    ] = None,
    modal: ModalOption = None,
    device: Device = "cpu",
    dtype: Dtype = Precision.float64,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare lattice constants and bulk moduli of simple crystals with PBE, and with experiment where it is known."""
    check_json_path(json, overwrite=overwrite)
    from equipes.benchmark.crystals import chosen, crystal_benchmark
    from equipes.calculators import Calculator

    calculator = Calculator(model, device=device, dtype=dtype.value, modal=modal)
    potential = calculator.potential or calculator.frozen
    wanted = chosen(names or [], potential.species if potential is not None else ())
    with progress_bar() as progress, stopping():
        task = progress.add_task("crystals", total=len(wanted))
        done = iter(range(len(wanted)))
        results = crystal_benchmark(
            calculator,
            wanted,
            on_crystal=lambda item: progress.update(task, completed=next(done), description=item.name),
        )
    if json != STDOUT:
        _print(results, f"{model}: {len(results)} crystals")
    errors = _mean_errors(results)
    write_json(
        {"model": str(model), "modal": modal, **errors, "crystals": [result.summary() for result in results]},
        json,
        overwrite=overwrite,
    )


def _mean_errors(results: list[CrystalResult]) -> dict[str, float | None]:
    def mean(values: list[float | None]) -> float | None:
        known = [abs(value) for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return {
        "mean_error_a_percent": mean([result.error_a_percent for result in results]),
        "mean_error_volume_percent": mean([result.error_volume_percent for result in results]),
        "mean_error_bulk_modulus_percent": mean([result.error_bulk_modulus_percent for result in results]),
    }


def _print(results: list[CrystalResult], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def number(value: float | None, digits: int, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{digits}f}"

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("crystal", no_wrap=True)
    columns = ("a (Å)", "PBE", "%", "V (Å³/atom)", "PBE", "exp.", "%", "B (GPa)", "PBE", "exp.", "%")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("source", justify="right")
    sources = list(dict.fromkeys(result.source for result in results))
    for result in results:
        cells: tuple[Any, ...] = (
            number(result.a_ang, 3),
            number(result.reference_a_ang, 3),
            number(result.error_a_percent, 1, "+"),
            number(result.volume_ang3_per_atom, 2),
            number(result.reference_volume_ang3_per_atom, 2),
            number(result.experiment_volume_ang3_per_atom, 2),
            number(result.error_volume_percent, 1, "+"),
            number(result.bulk_modulus_gpa, 0),
            number(result.reference_bulk_modulus_gpa, 0),
            number(result.experiment_bulk_modulus_gpa, 0),
            number(result.error_bulk_modulus_percent, 0, "+"),
            f"[{sources.index(result.source) + 1}]",
        )
        table.add_row(f"{result.name} {result.structure}", *map(Text, cells))
    console = Console()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
    for name, value in _mean_errors(results).items():
        if value is not None:
            console.print(
                f"{name.replace('_percent', '').replace('_', ' ')}: {value:.2f} % of PBE", highlight=False
            )
    for index, source in enumerate(sources):
        console.print(Text(f"[{index + 1}] {source}"), soft_wrap=True)
    console.print("%: against PBE. Experiment: without zero-point motion.", style="dim", highlight=False)
