"""What the commands that run a model share: arguments, the calculator, progress, and files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.inputs import members

if TYPE_CHECKING:
    import ase
    from rich.progress import Progress

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


def start(
    model: Path,
    modal: str | None,
    structure: Path,
    frame: int,
    device: str,
    dtype: Precision,
    *,
    exact: bool,
    d3: str | None = None,
) -> tuple[ase.Atoms, Any]:
    """The structure, and the model or the committee of models, with dispersion or without, as a calculator."""
    from equipes.calculators import Calculator, Committee, WithDispersion
    from equipes.calculators.dispersion import warning_about
    from equipes.foundation.registry import published
    from equipes.simulate.structures import read_structure

    if d3 is not None:
        for path in members(model):
            sentence = warning_about(d3, published(str(path)))
            if sentence is not None:
                typer.echo(f"Warning: {sentence}", err=True)

    atoms = read_structure(structure, frame)
    models = members(model)
    calculator: Calculator | Committee
    # Frozen in float64 too: what is left of the splines is far below what finite displacements need.
    if len(models) > 1:
        calculator = Committee(
            models, device=device, dtype=dtype.value, modal=modal, exact=exact, freeze=not exact
        )
    else:
        calculator = Calculator(
            model, device=device, dtype=dtype.value, modal=modal, exact=exact, freeze=not exact
        )
    whole = calculator if d3 is None else WithDispersion(calculator, d3)
    freeze_ahead(calculator, set(atoms.symbols))
    return atoms, whole


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


def fingerprint(
    model: Path, modal: str | None, dtype: Precision, *, exact: bool, d3: str | None = None
) -> str:
    """Tells one model from another in a checkpoint, wherever its file lies."""
    from equipes.foundation import locate

    hashes = [hashlib.sha256(locate(path).read_bytes()).hexdigest()[:16] for path in members(model)]
    name = f"sha256:{' + '.join(hashes)} in {dtype.value}"
    name = f"{name}, exact" if exact else name
    name = name if modal is None else f"{name} for {modal}"
    return name if d3 is None else f"{name} with D3(BJ) of {d3}"


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
