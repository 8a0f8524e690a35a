"""`equipes diffusion`, `msd` and `neb`: how ions move, in dynamics, in a trajectory that is there, over a barrier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import spread
from equipes.cli.output import JsonPath, Overwrite, check_json_path
from equipes.cli.running import (
    FrameNumber,
    ModelOptions,
    Repeats,
    StructureOptions,
    fingerprint,
    follow_runs,
    progress_bar,
    start,
    stopping,
)
from equipes.cli.workflow import OutDirectory, OutputOptions, facts_of, workflow, write_result
from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.simulate.diffusion import ArrheniusResult, DiffusionResult
    from equipes.simulate.neb import NEBResult

Mobile = Annotated[str, typer.Option("--mobile", help="Symbol of the element that diffuses, such as Li.")]
Charge = Annotated[float, typer.Option("--charge", help="Of its ions, in elementary charges.")]
Blocks = Annotated[int, typer.Option("--blocks", help="Parts of the run that give the error.")]
Window = Annotated[
    tuple[float, float],
    typer.Option("--window", help="Lags that the line is fitted over, as fractions of the longest."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(spread(diffusion))
    app.command()(msd)
    app.command()(spread(neb))


def diffusion(
    potential: ModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    mobile: Mobile,
    temperature: Annotated[
        list[float], typer.Option("--temperature", help="K; repeat for an activation energy.")
    ],
    steps: Annotated[int, typer.Option(help="Length of each run.")] = 50_000,
    equilibration: Annotated[float, typer.Option(help="Fraction of each run that is left out.")] = 0.1,
    timestep: Annotated[float, typer.Option(help="fs.")] = 2.0,
    interval: Annotated[int, typer.Option(help="Steps between two frames.")] = 25,
    supercell: Repeats = (1, 1, 1),
    charge: Charge = 1.0,
    window: Window = (0.1, 0.5),
    blocks: Blocks = 5,
    seed: Annotated[int, typer.Option(help="Of first velocities and thermostat.")] = 0,
) -> None:
    """Diffusion coefficient, ionic conductivity and activation energy, by molecular dynamics at constant volume."""
    from equipes.simulate.diffusion import DiffusionOptions
    from equipes.simulate.diffusion_runs import DiffusionRunOptions
    from equipes.simulate.diffusion_runs import diffusion as calculate
    from equipes.simulate.results import plain

    check_json_path(output.json, overwrite=output.overwrite)
    analysis = DiffusionOptions(mobile, charge=charge, window=window, blocks=blocks)
    options = DiffusionRunOptions(
        temperatures=tuple(sorted(temperature)),
        analysis=analysis,
        steps=steps,
        equilibration=equilibration,
        timestep=timestep,
        interval=interval,
        supercell=supercell,
        seed=seed,
    )
    options.check()
    atoms, calculator = start(potential, system)
    where = output.out or Path(f"{system.structure.stem}_diffusion")
    with progress_bar() as line, stopping():
        follow = follow_runs(line, steps, len(options.temperatures))
        result = calculate(
            atoms,
            calculator,
            options,
            where,
            resume=output.resume,
            overwrite=output.overwrite,
            potential=fingerprint(potential),
            on_step=follow,
        )
    if result.interrupted:
        typer.echo("Stopped; the same command with --resume continues.", err=True)
        raise typer.Exit(130)
    from equipes.report.transport import arrhenius_plot, msd_plot

    figures: dict[str, Any] = {
        "msd.png": ("mean-square displacements", lambda: msd_plot(result.temperatures))
    }
    if result.arrhenius is not None:
        fitted = result.arrhenius
        figures["arrhenius.png"] = (
            "diffusion over temperature",
            lambda: arrhenius_plot(result.temperatures, fitted),
        )
    write_result(
        "diffusion",
        {**facts_of(potential, system), "options": plain(options)},
        result,
        diffusion_rows(result.temperatures, result.arrhenius),
        out=where,
        figures=figures,
        structures=[result.atoms],
        json=output.json,
        overwrite=output.overwrite,
    )


def msd(
    trajectory: Annotated[
        Path, typer.Argument(metavar="TRAJECTORY", help="Frames that ASE reads; wrapped or not.")
    ],
    mobile: Mobile,
    temperature: Annotated[float, typer.Option("--temperature", help="K, of the trajectory.")],
    out: OutDirectory = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", help="fs between frames.", show_default="time_fs of the frames"),
    ] = None,
    skip: Annotated[float, typer.Option(help="Fraction at the start that is left out.")] = 0.0,
    charge: Charge = 1.0,
    window: Window = (0.1, 0.5),
    blocks: Blocks = 5,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Diffusion coefficient and ionic conductivity from a trajectory of any program."""
    from equipes.files import new_directory
    from equipes.simulate.diffusion import DiffusionOptions, analyze_diffusion, motion_of
    from equipes.simulate.results import plain
    from equipes.simulate.structures import read_trajectory

    check_json_path(json, overwrite=overwrite)
    options = DiffusionOptions(mobile, charge=charge, window=window, blocks=blocks, skip=skip)
    options.check()
    frames = read_trajectory(trajectory)
    result = analyze_diffusion(
        motion_of(frames, interval or _interval(frames, trajectory)), temperature, options
    )
    from equipes.report.transport import msd_plot

    where = new_directory(out or Path(f"{trajectory.stem}_msd"), overwrite=overwrite)
    write_result(
        "msd",
        {"trajectory": str(trajectory), "frames": len(frames), "options": plain(options)},
        result,
        diffusion_rows([result], None),
        out=where,
        figures={"msd.png": ("mean-square displacement", lambda: msd_plot([result]))},
        structures=[frames[0], frames[-1]],
        json=json,
        overwrite=overwrite,
    )


def neb(
    potential: ModelOptions,
    output: OutputOptions,
    initial: Annotated[Path, typer.Argument(metavar="INITIAL", help="The structure before the hop.")],
    final: Annotated[
        Path, typer.Argument(metavar="FINAL", help="The structure after it, atoms in the same order.")
    ],
    frame: FrameNumber = 0,
    images: Annotated[int, typer.Option(help="Between the two ends.")] = 7,
    fmax: Annotated[float, typer.Option(help="Force across the band, eV/Å.")] = 0.03,
    relax: Annotated[bool, typer.Option("--relax/--no-relax", help="Relax the ends first.")] = True,
    steps: Annotated[int, typer.Option(help="Give up after so many steps.")] = 500,
    spring: Annotated[float, typer.Option(help="Between images, eV/Å².")] = 0.1,
    straight: Annotated[
        bool, typer.Option("--straight", help="Start from a straight line, not from IDPP.")
    ] = False,
) -> None:
    """Barrier of a hop or reaction: nudged elastic band with a climbing image. Exit status 1 if not converged."""
    from equipes.simulate.neb import NEBOptions
    from equipes.simulate.neb import neb as calculate
    from equipes.simulate.store import structure_key
    from equipes.simulate.structures import read_structure

    options = NEBOptions(
        images=images, fmax=fmax, relax_ends=relax, spring=spring, steps=steps, idpp=not straight
    )
    last = read_structure(final, frame)
    with workflow(
        "neb",
        options,
        potential,
        StructureOptions(initial, frame),
        output,
        key={"final": structure_key(last)},
        changeable=("steps",),
    ) as run:
        result = calculate(run.atoms, last, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.report.transport import neb_plot

        figures = {"neb.png": ("energy along the path", lambda: neb_plot(result))}
        run.finish(result, neb_rows(result), figures=figures, structures=result.images)
    if not result.converged:
        raise typer.Exit(1)


def neb_rows(result: NEBResult) -> Iterator[tuple[str, object]]:
    """The numbers of a path, for people."""
    yield "converged", f"{'yes' if result.converged else 'NO'}, after {result.steps} steps"
    yield (
        "barrier",
        f"{result.barrier_ev:.4f} eV (image {result.saddle}; spline {result.spline_barrier_ev:.4f} eV)",
    )
    yield "barrier back", f"{result.reverse_barrier_ev:.4f} eV"
    yield "reaction energy", f"{result.reaction_energy_ev:+.4f} eV"
    yield "path", f"{result.distances_ang[-1]:.3f} Å"
    yield "energies", " ".join(f"{energy:.3f}" for energy in result.energies_ev) + " eV"


def diffusion_rows(
    results: Sequence[DiffusionResult], line: ArrheniusResult | None
) -> Iterator[tuple[str, object]]:
    """The numbers of diffusion, for people."""
    for result in results:
        at = f", {result.temperature_k:.0f} K"
        yield (
            f"D of {result.mobile}{at}",
            f"({result.diffusion_cm2_per_s:.3g} ± {result.diffusion_error:.1g}) cm²/s",
        )
        along = (
            f"{axis} {value:.3g} ± {error:.1g}"
            for axis, value, error in zip(
                "xyz", result.components_cm2_per_s, result.components_error, strict=True
            )
        )
        yield f"along{at}", ", ".join(along) + " cm²/s"
        if result.conductivity_ms_per_cm is not None:
            yield (
                f"conductivity{at}",
                f"{result.conductivity_ms_per_cm:.3g} ± {result.conductivity_error:.1g} mS/cm (Nernst-Einstein)",
            )
        yield (
            f"charge diffusion{at}",
            f"({result.charge_diffusion_cm2_per_s:.2g} ± {result.charge_diffusion_error:.1g}) cm²/s,"
            f" Haven ratio {result.haven_ratio:.2g}",
        )
    if line is not None:
        yield (
            "activation energy",
            f"{line.activation_energy_ev:.4f} ± {line.activation_energy_error:.2g} eV",
        )
        yield "prefactor", f"{line.prefactor_cm2_per_s:.3g} cm²/s"
        extrapolated = f"{line.diffusion_300k_cm2_per_s:.3g} cm²/s"
        if line.conductivity_300k_ms_per_cm is not None:
            extrapolated += f", {line.conductivity_300k_ms_per_cm:.3g} mS/cm"
        yield "at 300 K", f"{extrapolated}, within a factor {line.factor_300k:.2g}, by extrapolation"


def _interval(frames: Sequence[Any], path: Path) -> float:
    times = [atoms.info.get("time_fs") for atoms in frames[:2]]
    if len(times) < 2 or None in times or not times[1] > times[0]:
        raise InputError(f"{path}: the frames do not say their time; give --interval, fs between frames")
    return float(times[1] - times[0])
