"""`equipes md-batch`: molecular dynamics of many systems at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import spread
from equipes.cli.inputs import members
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, stdout_console, write_json
from equipes.cli.running import (
    ModelOptions,
    fingerprint,
    freeze_ahead,
    progress_bar,
    single_calculator,
    stopping,
)
from equipes.cli.simulate import DynamicsOptions, EnsembleName, ThermostatName
from equipes.errors import InputError

if TYPE_CHECKING:
    import ase

    from equipes.simulate import MDSettings
    from equipes.simulate.batch_md import System


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    # Dispersion is calculated for one structure after the other, which would undo the batch.
    app.command("md-batch")(spread(md_batch, without=["d3"]))


def md_batch(
    potential: ModelOptions,
    options: DynamicsOptions,
    structures: Annotated[
        list[Path],
        typer.Argument(metavar="STRUCTURE...", help="Structures to start from: files that ASE reads."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory; each system has its own in there.")],
    ensemble: Annotated[EnsembleName, typer.Option(help="nve or nvt.")],
    steps: Annotated[int, typer.Option(help="Length of every run.")],
    temperature: Annotated[
        str | None,
        typer.Option(metavar="K[,K...]", help="One or several; each structure runs at each of them."),
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Runs of each structure at each temperature, with seeds of their own.")
    ] = 1,
    frame: Annotated[
        str, typer.Option("--frame", metavar="N|all", help="Which structure of each file; all: every one.")
    ] = "0",
    thermostat: Annotated[
        ThermostatName, typer.Option(help="Of nvt: bussi or langevin.")
    ] = ThermostatName.bussi,
    seed: Annotated[int, typer.Option(help="Of the first system; the others count on from it.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Systems in one evaluation, at most.", show_default="all that fit"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the runs in --out.")] = False,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Molecular dynamics of many systems in one batch: replicas, temperatures, structures.

    Each is the run that `equipes md` makes of it with its seed, to round-off, in a directory of its own. Exit status 1
    where a system left what is physically possible; the others are run to their end.
    """
    from equipes.simulate import MDSettings
    from equipes.simulate.batch_md import TABLE, run_md_together

    check_json_path(json, overwrite=overwrite)
    if len(members(potential.model)) > 1:
        raise InputError(
            f"{potential.model}: a committee moves one system at a time; run `equipes md`, or give one model"
        )
    settings = MDSettings(
        ensemble=ensemble.value,
        steps=steps,
        seed=seed,
        thermostat=thermostat.value,
        **vars(options),
    )
    systems = _systems(starts(structures, frame), _kelvins(temperature), replicas, settings)
    calculator = single_calculator(potential)
    freeze_ahead(calculator, {symbol for system in systems for symbol in system.atoms.symbols})
    began: tuple[int, float] | None = None
    with progress_bar() as progress, stopping():
        task = progress.add_task(f"{len(systems)} systems", total=max(steps, 1) * len(systems))

        def follow(done: int, total: int) -> None:
            nonlocal began
            began = began or (done, time.monotonic())
            speed = (done - began[0]) / max(time.monotonic() - began[1], 1e-9)
            what = f"{len(systems)} systems, {speed:.4g} steps/s of one"
            progress.update(task, completed=done, total=max(total, 1), description=what)

        result = run_md_together(
            systems,
            calculator,
            out,
            resume=resume,
            overwrite=overwrite,
            potential=fingerprint(potential),
            batch_size=batch_size,
            on_step=follow,
        )
    summary = result.summary()
    if json != STDOUT:
        _print(systems, result.summaries, result.failures)
        speed = summary["system_steps_per_second"]
        typer.echo(
            f"speed: {speed:.4g} steps/s of one system; written: {out}: {TABLE} and a directory for each"
        )
    write_json(summary, json, overwrite=overwrite)
    for name, sentence in result.failures.items():
        typer.echo(f"Error: {name}: {sentence}", err=True)
    if result.interrupted:
        done = min(found["steps"] for found in result.summaries.values())
        typer.echo(
            f"Stopped after step {done} of {steps}; the same command with --resume continues.", err=True
        )
        raise typer.Exit(130)
    if result.failures:
        raise typer.Exit(1)


def starts(paths: Iterable[Path], frame: str) -> Iterator[tuple[str, ase.Atoms]]:
    """The structures, with names that tell files and frames apart."""
    from equipes.simulate.structures import read_structure, read_trajectory

    for path in paths:
        if frame == "all":
            frames = read_trajectory(path)
            width = len(str(len(frames) - 1))
            for number, atoms in enumerate(frames):
                atoms.calc = None
                yield (path.stem if len(frames) == 1 else f"{path.stem}-{number:0{width}d}"), atoms
            continue
        try:
            number = int(frame)
        except ValueError as error:
            raise InputError(f"--frame {frame}: give a number, or all") from error
        yield path.stem, read_structure(path, number)


def _kelvins(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        found: list[float | None] = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--temperature {text}: write numbers of K, such as 300 or 300,400,500") from error
    if len(set(found)) < len(found):
        raise InputError(
            f"--temperature {text}: a temperature stands twice; name each once, or give --replicas"
        )
    return found


def _systems(
    starts: Iterable[tuple[str, ase.Atoms]],
    kelvins: list[float | None],
    replicas: int,
    settings: MDSettings,
) -> list[System]:
    """Every structure at every temperature, as often as there are replicas; seeds count on."""
    from dataclasses import replace

    from equipes.simulate.batch_md import System

    systems: list[System] = []
    for name, atoms in starts:
        for kelvin in kelvins:
            for replica in range(replicas):
                parts = [name]
                if len(kelvins) > 1 and kelvin is not None:
                    parts.append(f"{kelvin:g}K")
                if replicas > 1:
                    parts.append(f"{replica:0{len(str(replicas - 1))}d}")
                own = replace(settings, temperature=kelvin, seed=settings.seed + len(systems))
                systems.append(System("-".join(parts), atoms, own))
    return systems


def _print(
    systems: list[System], summaries: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str]
) -> None:
    rows = []
    for system in systems:
        found = summaries[system.name]
        mean, error = found["mean_temperature_k"], found["mean_temperature_k_error"]
        drift, target = found["energy_drift_mev_per_atom_per_ps"], system.settings.temperature
        rows.append(
            (
                system.name,
                "" if target is None else f"{target:g}",
                str(system.settings.seed),
                f"{found['steps']}{' (failed)' if system.name in failures else ''}",
                f"{mean:.1f}{'' if error is None else f' ± {error:.1f}'}",
                "" if drift is None else f"{drift:+.3g}",
            )
        )
    print_rows(("system", "target, K", "seed", "steps", "mean T, K", "drift, meV/atom/ps"), rows)


def print_rows(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """A table on stdout, a system in each row."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(names):
        table.add_column(name, no_wrap=not place, justify="right" if place else "left")
    for first, *others in rows:
        table.add_row(Text(first), *others)
    stdout_console().print(table)
