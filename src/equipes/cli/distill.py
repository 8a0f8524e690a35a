"""`equipes distill`: a small fast potential from a large one, for one structure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.groups import spread
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, print_table, write_json
from equipes.cli.running import (
    FrameNumber,
    ModelOptions,
    StructureOptions,
    fingerprint,
    start,
    stopping,
)
from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.distillation import Distillation


@dataclass(frozen=True)
class TeacherOptions(ModelOptions):
    """A model that teaches another."""

    model: Annotated[
        Path,
        typer.Argument(
            metavar="TEACHER",
            help="A model: *.safetensors, or the name of a published one (equipes models list).",
        ),
    ]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(spread(distill, without=["d3"]))


def distill(
    teacher: TeacherOptions,
    structure: Annotated[
        Path, typer.Option("--structure", metavar="FILE", help="What the student shall be good for.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The student, *.safetensors.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Of the student's training: model.num_features=16, train.max_steps=20000.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", help="For all the rest.", show_default="NAME-distillation"),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Geometries for the teacher to label.")] = 500,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", help="K, of the dynamics; more than once; 300, 650 and 1000 by default."
        ),
    ] = None,
    strain: Annotated[float, typer.Option("--strain", help="Largest strain of a crystal's cells.")] = 0.04,
    defect: Annotated[
        list[str] | None,
        typer.Option(
            "--defect",
            metavar="KIND",
            help="vacancy, interstitial, antisite or none; more than once; the first two by default.",
        ),
    ] = None,
    supercell: Annotated[
        tuple[int, int, int] | None, typer.Option("--supercell", help="Repetitions of a crystal.")
    ] = None,
    timestep: Annotated[
        float | None, typer.Option("--timestep", help="fs; 1 with hydrogen, 2 without.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Budget of the training.")] = 10.0,
    test_picoseconds: Annotated[
        float, typer.Option("--test-ps", help="Length of each run of the student's dynamics.")
    ] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what is in the working directory.")
    ] = False,
    frame: FrameNumber = 0,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a small fast potential on what a large one says around one structure, and compare both.

    Example: `equipes distill 7net-l3i5 --structure MgO.cif --out fast.safetensors`.
    """
    check_json_path(json, overwrite=overwrite)
    if out.exists() and not (overwrite or resume):
        raise InputError(f"{out} exists; give --overwrite to replace it, or another name")
    from equipes.distillation import DistillationOptions
    from equipes.distillation import distill as run
    from equipes.distillation.run import Interrupted

    atoms, calculator = start(teacher, StructureOptions(structure, frame))
    options = DistillationOptions(
        frames=frames,
        temperatures=tuple(temperature or (300.0, 650.0, 1000.0)),
        strain=strain,
        defects=_kinds(defect),  # type: ignore[arg-type]
        supercell=supercell,
        timestep=timestep,
        student=tuple(arguments or ()),
        minutes=minutes,
        test_picoseconds=test_picoseconds,
        seed=seed,
    )
    name = f"{teacher.model.name} ({fingerprint(teacher)})"
    with stopping():
        try:
            result = run(
                atoms,
                calculator,
                out,
                options,
                work=work,
                teacher_name=name,
                resume=resume,
                overwrite=overwrite,
            )
        except Interrupted as interruption:
            typer.echo("Stopped; repeat the command with --resume to go on.", err=True)
            raise typer.Exit(128 + interruption.signal) from None
    _print(result, quiet=json == STDOUT)
    write_json(result.summary(), json, overwrite=overwrite or resume)
    if not result.stable:
        failure = next(item.failure for item in result.comparisons if item.failure)
        typer.echo(
            f"Error: the student's dynamics is not stable: {failure}; give more --frames or --minutes, or a larger "
            "student (model.num_layers=3)",
            err=True,
        )
        raise typer.Exit(1)


def _kinds(given: list[str] | None) -> tuple[str, ...]:
    if given is None:
        return ("vacancy", "interstitial")
    return () if given == ["none"] else tuple(given)


def _print(result: Distillation, *, quiet: bool) -> None:
    """Student against teacher, a row for each held-out trajectory, and the speed of both."""
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in (
        "dynamics of",
        "K",
        "ps",
        "forces MAE, meV/Å",
        "of rms",
        "energy MAE, meV/atom",
        "stress MAE, meV/Å³",
        "",
    ):
        table.add_column(heading, justify="left" if heading in ("dynamics of", "") else "right")
    for row in result.comparisons:
        stress = row.stress_mae_mev_per_ang3
        table.add_row(
            f"the {row.driver}",
            f"{row.temperature_k:g}",
            f"{row.picoseconds:.3g}",
            f"{row.forces_mae_mev_per_ang:.3g}",
            f"{1000 * row.forces_rms_ev_per_ang:.0f}",
            f"{row.energy_mae_mev_per_atom:.3g}",
            "-" if stress is None else f"{stress:.3g}",
            "" if row.stable is None else "stable" if row.stable else "UNSTABLE",
        )
    console = Console()
    console.print(
        f"\n{result.model} against its teacher on held-out trajectories", soft_wrap=True, highlight=False
    )
    console.print(table)
    speed = result.speed
    left_out = f"; left out {result.discarded}" if result.discarded else ""
    milliseconds = f"{speed.student_ms:.3g} instead of {speed.teacher_ms:.3g} ms"
    training = f"{result.steps} steps, {result.minutes:.1f} minutes"
    print_table(
        [
            ("speed", f"{speed.gain:.3g} times the teacher's: {milliseconds} for {speed.n_atoms} atoms"),
            ("student", f"{result.parameters:,} parameters, cutoff {result.cutoff:g} Å; {training}"),
            ("frames", f"{result.frames} of {result.n_atoms} atoms{left_out}"),
            ("report", result.work / "report.html"),
        ]
    )
