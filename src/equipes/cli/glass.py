"""`equipes melt-quench`: a glass out of a crystal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.groups import spread
from equipes.cli.output import check_json_path
from equipes.cli.running import (
    ModelOptions,
    Repeats,
    StructureOptions,
    fingerprint,
    progress_bar,
    start,
    stopping,
)
from equipes.cli.workflow import OutputOptions, facts_of, write_result

if TYPE_CHECKING:
    from equipes.simulate.melt_quench import MeltQuenchResult
    from equipes.simulate.records import Row


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("melt-quench")(spread(melt_quench))


def melt_quench(
    potential: ModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    melt: Annotated[float, typer.Option(help="Temperature of the melt, K.")] = 4000.0,
    cold: Annotated[float, typer.Option(help="Temperature of the glass, K.")] = 300.0,
    melt_steps: Annotated[int, typer.Option(help="In the melt.")] = 5000,
    quench_steps: Annotated[int, typer.Option(help="From melt to glass.")] = 20_000,
    anneal_steps: Annotated[int, typer.Option(help="In the glass.")] = 2500,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    interval: Annotated[int, typer.Option(help="Steps between two frames.")] = 50,
    supercell: Repeats = (1, 1, 1),
    pressure: Annotated[
        float | None, typer.Option(help="GPa; lets the volume change.", show_default="constant volume")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of first velocities and thermostat.")] = 0,
) -> None:
    """Melt a crystal, cool it down at a constant rate, and count neighbours in the glass."""
    from equipes.simulate.melt_quench import MeltQuenchOptions
    from equipes.simulate.melt_quench import melt_quench as calculate
    from equipes.simulate.results import plain

    check_json_path(output.json, overwrite=output.overwrite)
    options = MeltQuenchOptions(
        melt=melt,
        cold=cold,
        melt_steps=melt_steps,
        quench_steps=quench_steps,
        anneal_steps=anneal_steps,
        timestep=timestep,
        interval=interval,
        supercell=supercell,
        pressure=pressure,
        seed=seed,
    )
    options.check()
    atoms, calculator = start(potential, system)
    where = output.out or Path(f"{system.structure.stem}_melt-quench")
    before = {"melt": 0, "quench": melt_steps, "anneal": melt_steps + quench_steps}
    with progress_bar() as line, stopping():
        task = line.add_task("preparing", total=melt_steps + quench_steps + anneal_steps)
        began: tuple[int, float] | None = None

        def follow(stage: str, step: int, row: Row) -> None:
            nonlocal began
            done = before[stage] + step
            began = began or (done, time.monotonic())
            speed = (done - began[0]) / max(time.monotonic() - began[1], 1e-9)
            line.update(
                task, completed=done, description=f"{stage}, {row.temperature_k:.0f} K, {speed:.4g} steps/s"
            )

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
    from equipes.report.transport import rdf_plot

    write_result(
        "melt-quench",
        {**facts_of(potential, system), "options": plain(options)},
        result,
        glass_rows(result),
        out=where,
        figures={"rdf.png": ("radial distributions", lambda: rdf_plot(result))},
        structures=[result.atoms],
        json=output.json,
        overwrite=output.overwrite,
    )


def glass_rows(result: MeltQuenchResult) -> Iterator[tuple[str, object]]:
    """The numbers of a glass, for people."""
    yield "cooled at", f"{result.rate_k_per_ps:.4g} K/ps"
    yield "density", f"{result.density_g_per_cm3:.4f} g/cm³"
    yield "moved in the melt", f"{result.melt_displacement_ang:.2f} Å, root mean square"
    for distribution in result.glass:
        pair = "-".join(distribution.pair)
        yield (
            f"g(r) of {pair}",
            f"peak at {distribution.peak_ang:.3f} Å, first minimum at {distribution.minimum_ang:.3f} Å",
        )
    for pair, counts in result.coordination.items():
        atoms = sum(counts.values())
        listed = ", ".join(f"{n}: {100 * k / atoms:.0f} %" for n, k in counts.items())
        yield f"neighbours, {pair}", listed
