"""What the commands that run a model share: arguments, the calculator, progress, and files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import Group
from equipes.cli.inputs import Dispersion, ModalOption, ModelPath, members

if TYPE_CHECKING:
    import ase
    from rich.progress import Progress

    from equipes.calculators import Calculator
    from equipes.simulate.records import Row

StructurePath = Annotated[
    Path, typer.Argument(metavar="STRUCTURE", help="A structure that ASE reads: extended XYZ, CIF, POSCAR, …")
]
FrameNumber = Annotated[int, typer.Option("--frame", help="Which structure of the file; -1 is the last.")]
Device = Annotated[str, typer.Option("--device", help="Where the network runs: cpu, cuda, …")]


class Precision(StrEnum):
    """Number type of the network."""

    float32 = "float32"
    float64 = "float64"


Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="Run the model itself, not its frozen form (slower, float32 round-off apart)."
    ),
]
Dtype = Annotated[Precision, typer.Option("--dtype", help="Number type of the network.")]


Repeats = Annotated[
    tuple[int, int, int], typer.Option("--supercell", metavar="A B C", help="Repeat the cell so often.")
]


@dataclass(frozen=True)
class ModelOptions(Group):
    """Which model runs, and how."""

    model: ModelPath
    modal: ModalOption = None
    d3: Dispersion = None
    exact: Exact = False
    device: Device = "cpu"
    dtype: Dtype = Precision.float32


@dataclass(frozen=True)
class PreciseModelOptions(ModelOptions):
    """The same for what needs small differences of forces."""

    dtype: Dtype = Precision.float64


@dataclass(frozen=True)
class StructureOptions(Group):
    """What it runs on."""

    structure: StructurePath
    frame: FrameNumber = 0


def start(potential: ModelOptions, system: StructureOptions) -> tuple[ase.Atoms, Any]:
    """The structure, and the model or the committee of models, with dispersion or without, as a calculator."""
    from equipes.calculators import Committee, WithDispersion
    from equipes.simulate.structures import read_structure

    warn_about_dispersion(potential)
    atoms = read_structure(system.structure, system.frame)
    models = members(potential.model)
    calculator: Any
    if len(models) > 1:
        calculator = Committee(
            models,
            device=potential.device,
            dtype=potential.dtype.value,
            modal=potential.modal,
            exact=potential.exact,
            freeze=not potential.exact,
        )
    else:
        calculator = single_calculator(potential)
    whole = calculator if potential.d3 is None else WithDispersion(calculator, potential.d3)
    freeze_ahead(calculator, set(atoms.symbols))
    return atoms, whole


def single_calculator(potential: ModelOptions) -> Calculator:
    """The calculator of one model, without dispersion."""
    from equipes.calculators import Calculator

    # Frozen in float64 too: what is left of the splines is far below what finite displacements need.
    return Calculator(
        potential.model,
        device=potential.device,
        dtype=potential.dtype.value,
        modal=potential.modal,
        exact=potential.exact,
        freeze=not potential.exact,
    )


def warn_about_dispersion(potential: ModelOptions) -> None:
    """Say so where `--d3` has another functional than a published model learned."""
    from equipes.calculators.dispersion import warning_about
    from equipes.foundation.registry import published

    for path in members(potential.model) if potential.d3 is not None else ():
        sentence = warning_about(str(potential.d3), published(str(path)))
        if sentence is not None:
            typer.echo(f"Warning: {sentence}", err=True)


def freeze_ahead(calculator: Any, symbols: Collection[str]) -> None:
    """Freeze the potentials ahead of the work, and say how far they are from the models."""
    from equipes.calculators import Committee
    from equipes.calculators.ase import Calculator

    if not isinstance(calculator, Calculator | Committee):
        return
    parts = calculator.members if isinstance(calculator, Committee) else [calculator]
    for member in parts:
        frozen = member.freeze_for(symbols)
        if frozen is None:
            continue
        off = frozen.deviation
        typer.echo(
            f"Frozen for {', '.join(frozen.species)}: within {off['energy']:.1e} eV/atom, {off['forces']:.1e} eV/Å, "
            f"{off['stress']:.1e} eV/Å³ of the model (--exact runs the model itself)",
            err=True,
        )


def check_targets(paths: Sequence[Path | None], *, overwrite: bool, structures: bool = True) -> None:
    """Complain before the work is done, not after, about what cannot be written."""
    from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

    from equipes.errors import InputError
    from equipes.files import refuse_overwrite

    for path in paths:
        if path is None:
            continue
        refuse_overwrite(path, overwrite=overwrite)
        if not path.parent.is_dir():
            raise InputError(
                f"cannot write {path}: the directory {path.parent} does not exist; create it first"
            )
        try:
            writable = not structures or get_ioformat(filetype(str(path), read=False)).can_write
        except UnknownFileTypeError:
            writable = False
        if not writable:
            suffix = path.suffix or "a name without suffix"
            raise InputError(f"cannot write {path}: {suffix} is no format that ASE writes; use .extxyz")


def write_structures(path: Path | None, structures: ase.Atoms | list[ase.Atoms], *, overwrite: bool) -> None:
    """Write with ASE, atomically; nothing for None."""
    from ase.io import write

    from equipes.files import atomic_write

    if path is None:
        return
    with atomic_write(path, overwrite=overwrite) as temporary:
        write(temporary, structures)


def fingerprint(potential: ModelOptions) -> str:
    """Tells one model from another in a checkpoint, wherever its file lies."""
    from equipes.foundation import locate

    hashes = [hashlib.sha256(locate(path).read_bytes()).hexdigest()[:16] for path in members(potential.model)]
    name = f"sha256:{' + '.join(hashes)} in {potential.dtype.value}"
    name = f"{name}, exact" if potential.exact else name
    name = name if potential.modal is None else f"{name} for {potential.modal}"
    return name if potential.d3 is None else f"{name} with D3(BJ) of {potential.d3}"


@contextmanager
def stopping() -> Iterator[None]:
    """A simulation that cannot go on becomes one sentence and exit status 1."""
    from equipes.simulate import SimulationError

    try:
        yield
    except SimulationError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A line on stderr that moves, and leaves when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as progress:
        yield progress


def follow_runs(line: Progress, steps: int, runs: int) -> Callable[[float, int, Row], None]:
    """Shows how far runs at several temperatures are, also where they go on side by side."""
    task = line.add_task("preparing", total=steps * runs)
    done: dict[float, int] = {}
    began: tuple[int, float] | None = None

    def follow(kelvin: float, step: int, row: Row) -> None:
        nonlocal began
        done[kelvin] = step
        total = sum(done.values())
        began = began or (total, time.monotonic())
        speed = (total - began[0]) / max(time.monotonic() - began[1], 1e-9)
        line.update(
            task,
            completed=total,
            description=f"{kelvin:g} K (now {row.temperature_k:.0f} K), {speed:.4g} steps/s",
        )

    return follow
