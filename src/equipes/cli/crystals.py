"""`equipes benchmark crystals`: a potential against what others have measured or calculated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.inputs import ModalOption
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, stdout_console, write_json
from equipes.cli.running import Device, Dtype, Precision, progress_bar, stopping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipes.benchmark import CrystalResult, TransitionResult


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
    """Compare lattice constants, bulk moduli and energies of polymorphs with PBE, and with experiment where known."""
    check_json_path(json, overwrite=overwrite)
    from equipes.benchmark.crystals import chosen, crystal_benchmark
    from equipes.benchmark.polymorphs import chosen_transitions, transition_benchmark
    from equipes.calculators import Calculator

    calculator = Calculator(model, device=device, dtype=dtype.value, modal=modal)
    potential = calculator.potential or calculator.frozen
    species = potential.species if potential is not None else ()
    wanted = chosen(names or [], species)
    transitions = chosen_transitions(names or [], species)
    with progress_bar() as progress, stopping():
        task = progress.add_task("crystals", total=len(wanted) + len(transitions))
        done = iter(range(len(wanted) + len(transitions)))
        results = crystal_benchmark(
            calculator,
            wanted,
            on_crystal=lambda item: progress.update(task, completed=next(done), description=item.name),
        )
        differences = transition_benchmark(
            calculator,
            transitions,
            on_transition=lambda item: progress.update(
                task, completed=next(done), description=f"{item.substance} {item.other}"
            ),
        )
    if json != STDOUT:
        _print(results, f"{model}: {len(results)} crystals")
        if differences:
            _print_differences(differences)
    errors = _mean_errors(results)
    content = {
        "model": str(model),
        "modal": modal,
        **errors,
        "mean_error_polymorphs_mev_per_atom": _mean([result.error_mev_per_atom for result in differences]),
        "crystals": [result.summary() for result in results],
        "polymorphs": [result.summary() for result in differences],
    }
    write_json(
        content,
        json,
        overwrite=overwrite,
    )


def _mean_errors(results: list[CrystalResult]) -> dict[str, float | None]:
    return {
        "mean_error_a_percent": _mean([result.error_a_percent for result in results]),
        "mean_error_volume_percent": _mean([result.error_volume_percent for result in results]),
        "mean_error_bulk_modulus_percent": _mean([result.error_bulk_modulus_percent for result in results]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the absolute values that are known."""
    known = [abs(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _print(results: list[CrystalResult], title: str) -> None:
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
    console = stdout_console()
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


def _print_differences(results: list[TransitionResult]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("polymorphs", no_wrap=True)
    for column in ("difference (eV/atom)", "reference", "error (meV)", "source"):
        table.add_column(column, justify="right", no_wrap=True)
    sources = list(dict.fromkeys(result.source for result in results))
    for result in results:
        cells = (
            f"{result.difference_ev_per_atom:+.3f}",
            f"{result.reference_ev_per_atom:+.3f}",
            f"{result.error_mev_per_atom:+.0f}",
            f"[{sources.index(result.source) + 1}]",
        )
        table.add_row(f"{result.substance} {result.other} - {result.stable}", *map(Text, cells))
    console = stdout_console()
    console.print()
    console.print(table)
    mean = _mean([result.error_mev_per_atom for result in results])
    console.print(f"mean error of the differences: {mean:.0f} meV/atom", highlight=False)
    for index, source in enumerate(sources):
        console.print(Text(f"[{index + 1}] {source}"), soft_wrap=True)
