"""`equipes relax` and `md`: simulations with a trained potential."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import Group, spread
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.cli.running import (
    ModelOptions,
    Repeats,
    StructureOptions,
    check_targets,
    fingerprint,
    progress_bar,
    start,
    stopping,
    write_structures,
)
from equipes.cli.simulate_tables import md_lines, relax_lines
from equipes.cli.workflow import facts_of, print_result, write_dynamics_page
from equipes.errors import InputError

if TYPE_CHECKING:
    import ase

    from equipes.simulate.records import Row
    from equipes.simulate.store import Store


# A run that a limit on its uncertainty ended: neither a failure nor an interrupt.
UNCERTAIN_STATUS = 3


class EnsembleName(StrEnum):
    """Ensembles of molecular dynamics."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


class ThermostatName(StrEnum):
    """Thermostats of nvt."""

    bussi = "bussi"
    nose_hoover = "nose-hoover"
    langevin = "langevin"


class OptimizerName(StrEnum):
    """Optimisers of a relaxation."""

    lbfgs = "lbfgs"
    bfgs = "bfgs"
    fire = "fire"


class CellFreedomName(StrEnum):
    """What of a cell relaxes."""

    all = "all"
    hydrostatic = "hydrostatic"
    in_plane = "in-plane"


@dataclass(frozen=True)
class DynamicsOptions(Group):
    """How dynamics go, and what is kept of them; named as in `MDSettings`."""

    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5
    interval: Annotated[int, typer.Option(help="Steps between two rows and frames.")] = 10
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start with the velocities of the structures.")
    ] = False
    trajectory: Annotated[
        bool, typer.Option("--trajectory/--no-trajectory", help="Keep frames, not only averages.")
    ] = True
    reach: Annotated[float, typer.Option(help="Of radial distributions, Å; 0: none.")] = 6.0
    thermostat_time: Annotated[float, typer.Option(help="Relaxation time of the temperature, fs.")] = 100.0


@dataclass(frozen=True)
class RelaxOptions(Group):
    """How structures relax, and how far."""

    cell: Annotated[
        bool | None,
        typer.Option(
            "--cell/--no-cell", help="Relax the cell too.", show_default="if periodic in all directions"
        ),
    ] = None
    freedom: Annotated[
        CellFreedomName, typer.Option(help="What of the cell relaxes: its volume only, a film's plane.")
    ] = CellFreedomName.all
    pressure: Annotated[float, typer.Option(help="Pressure on the cell, GPa.")] = 0.0
    fmax: Annotated[float, typer.Option(help="Stop when all forces are smaller, eV/Å.")] = 0.01
    smax: Annotated[float, typer.Option(help="… and stress + pressure too, GPa.")] = 0.05
    steps: Annotated[int, typer.Option(help="Give up after so many steps.")] = 1000
    symmetry: Annotated[bool, typer.Option("--symmetry", help="Keep the space group (spglib).")] = False
    optimizer: Annotated[OptimizerName, typer.Option(help="fire is slower, and harder to mislead.")] = (
        OptimizerName.lbfgs
    )

    def keywords(self) -> dict[str, Any]:
        """Those of `equipes.simulate.relax`, but for `cell`, whose default depends on the structure."""
        return {
            "pressure": self.pressure,
            "fmax": self.fmax,
            "smax": self.smax,
            "steps": self.steps,
            "symmetry": self.symmetry,
            "freedom": self.freedom.value,
            "optimizer": self.optimizer.value,
        }


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(spread(relax))
    app.command()(spread(md))


def relax(
    potential: ModelOptions,
    system: StructureOptions,
    options: RelaxOptions,
    out: Annotated[
        Path | None, typer.Option("--out", help="The relaxed structure.", show_default="NAME_relaxed.extxyz")
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option(help="Write every step: *.extxyz, *.traj, … (what ASE writes).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with the path in 3D (*.html), and its plot (*.png).")
    ] = None,
    json: JsonPath = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a relaxation that was stopped or had too few steps.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Relax a structure, with its cell where it is a crystal. Exit status 1 if it does not converge."""
    from equipes.simulate import relax as relax_atoms
    from equipes.simulate.records import snapshot
    from equipes.simulate.relax import relaxes_cell
    from equipes.simulate.store import Store, structure_key

    overwrite = overwrite or resume  # what the relaxation wrote before is replaced by what it comes to now
    check_json_path(json, overwrite=overwrite)
    out = out or Path(f"{system.structure.stem}_relaxed.extxyz")
    check_targets((out, trajectory), overwrite=overwrite)
    if report is not None:
        check_targets((report, report.with_suffix(".png")), overwrite=overwrite, structures=False)
    kept = out.with_suffix(".steps.npz")
    if kept.exists() and not overwrite:
        raise InputError(
            f"{kept} is of a relaxation that did not end; give --resume, or --overwrite to forget it"
        )
    atoms, calculator = start(potential, system)
    quiet = json == STDOUT
    with_cell = (
        relaxes_cell(atoms) or options.freedom is CellFreedomName.in_plane
        if options.cell is None
        else options.cell
    )
    if not quiet:
        about = _about_cell(atoms, with_cell, options.freedom, options.pressure)
        typer.echo(f"{system.structure} frame {system.frame}: {atoms.get_chemical_formula()}. {about}")
    images: list[ase.Atoms] = []
    limits: list[tuple[float, float | None]] = []
    made_with = {
        "potential": fingerprint(potential),
        "structure": structure_key(atoms),
        "options": [
            with_cell,
            options.freedom.value,
            options.pressure,
            options.symmetry,
            options.optimizer.value,
        ],
    }
    steps_so_far = Store(kept, made_with, resume=resume)
    with _keeping(steps_so_far, resume=resume) as store, progress_bar() as progress, stopping():
        task = progress.add_task("relaxing", total=None)

        def follow(step: int, moving: ase.Atoms, force: float, stress: float | None) -> None:
            pressed = "" if stress is None else f", stress {stress:.3g} GPa off"
            progress.update(task, completed=step, description=f"step {step}: force {force:.3g} eV/Å{pressed}")
            if trajectory is not None or report is not None:
                images.append(snapshot(moving, step=step))
                limits.append((force, stress))

        result = relax_atoms(
            atoms,
            calculator,
            cell=with_cell,
            **options.keywords(),
            on_step=follow,
            store=store,
        )
    write_structures(out, result.atoms, overwrite=overwrite)
    write_structures(trajectory, images, overwrite=overwrite)
    if result.converged:
        kept.unlink(missing_ok=True)
    summary = {
        **facts_of(potential, system),
        "out": str(out),
        **result.summary(),
    }
    lines = list(relax_lines(summary))
    if report is not None:
        from equipes.report.relaxation import write_relaxation_page

        write_relaxation_page(report, lines, images, limits, result.provenance, overwrite=overwrite)
    written = " ".join(str(path) for path in (out, trajectory, report) if path is not None)
    # That it did not converge is the error below.
    print_result(lines, replace(result.provenance, warnings=()), written, quiet=quiet)
    write_json(summary, json, overwrite=overwrite)
    if not result.converged:
        reached = f"largest force {result.max_force_ev_per_ang:.3g} eV/Å (limit {options.fmax:g})"
        if result.max_stress_deviation_gpa is not None:
            reached += f", stress {result.max_stress_deviation_gpa:.3g} GPa off (limit {options.smax:g})"
        remedy = "give more --steps and --resume, or --optimizer fire"
        typer.echo(f"Error: not converged after {result.steps} steps: {reached}; {remedy}", err=True)
        raise typer.Exit(1)


@contextmanager
def _keeping(store: Store, *, resume: bool) -> Iterator[Store]:
    """The steps of a relaxation, on the disk should it be stopped; not where a new one was refused or failed."""
    try:
        with store:
            yield store
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command with --resume continues.", err=True)
        raise
    except (InputError, typer.Exit):
        # What an earlier run has left is not thrown away for a wrong option of this one.
        if store.path is not None and not resume:
            store.path.unlink(missing_ok=True)
        raise


def _repeated(atoms: ase.Atoms, supercell: tuple[int, int, int], structure: object) -> ase.Atoms:
    """The supercell, only along directions that are periodic."""
    if min(supercell) < 1 or any(n > 1 and not p for n, p in zip(supercell, atoms.pbc, strict=True)):
        periodic = "".join("FT"[int(p)] for p in atoms.pbc)
        raise InputError(
            f"--supercell {' '.join(map(str, supercell))}: whole numbers of at least 1, and more than 1 only where "
            f"{structure} is periodic ({periodic})"
        )
    return atoms.repeat(supercell)


def md(
    potential: ModelOptions,
    system: StructureOptions,
    options: DynamicsOptions,
    out: Annotated[Path, typer.Option("--out", help="Directory for trajectory, table, plot and checkpoint.")],
    ensemble: Annotated[EnsembleName, typer.Option(help="What is kept constant.")],
    steps: Annotated[int, typer.Option(help="Length of the whole run.")],
    temperature: Annotated[float | None, typer.Option(help="K; in nve that of the first velocities.")] = None,
    temperature_end: Annotated[
        float | None, typer.Option("--temperature-end", help="K; the target goes there over the run.")
    ] = None,
    pressure: Annotated[float, typer.Option(help="GPa, in npt.")] = 0.0,
    pressure_end: Annotated[
        float | None, typer.Option("--pressure-end", help="GPa; the target goes there over the run.")
    ] = None,
    thermostat: Annotated[ThermostatName, typer.Option(help="Of nvt.")] = ThermostatName.bussi,
    seed: Annotated[int, typer.Option(help="Of first velocities and thermostat.")] = 0,
    supercell: Repeats = (1, 1, 1),
    flexible_cell: Annotated[
        bool, typer.Option("--flexible-cell", help="npt: let the shape of the cell change too.")
    ] = False,
    flexible_lengths: Annotated[
        bool, typer.Option("--flexible-lengths", help="npt: an orthorhombic cell changes its three lengths.")
    ] = False,
    barostat_time: Annotated[float, typer.Option(help="Relaxation time of the volume, fs.")] = 1000.0,
    max_forces_std: Annotated[
        float | None,
        typer.Option(
            "--max-forces-std", help="Stop when a committee's forces on an atom scatter by more, eV/Å."
        ),
    ] = None,
    max_feature_distance: Annotated[
        float | None,
        typer.Option(
            "--max-feature-distance",
            help="Stop when an atom is farther than this from what the model was trained on; 1 is what 99 of 100 "
            "atoms of its validation frames stay below.",
        ),
    ] = None,
    uncertainty_interval: Annotated[
        int, typer.Option("--uncertainty-interval", help="Steps between two looks at feature distances.")
    ] = 10,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Molecular dynamics at constant energy (nve), temperature (nvt), or temperature and pressure (npt).

    Exit status 3 where the model became unsure and --max-… said to stop.
    """
    from equipes.simulate import MDSettings, records, run_md

    check_json_path(json, overwrite=overwrite)
    atoms, calculator = start(potential, system)
    atoms = _repeated(atoms, supercell, system.structure)
    settings = MDSettings(
        ensemble=ensemble.value,
        steps=steps,
        temperature=temperature,
        pressure=pressure,
        seed=seed,
        flexible_cell=flexible_cell,
        flexible_lengths=flexible_lengths,
        barostat_time=barostat_time,
        thermostat=thermostat.value,
        temperature_end=temperature_end,
        pressure_end=pressure_end,
        max_forces_std=max_forces_std,
        max_feature_distance=max_feature_distance,
        uncertainty_interval=uncertainty_interval,
        **vars(options),
    )
    quiet = json == STDOUT
    with progress_bar() as progress, stopping():
        task = progress.add_task("preparing", total=max(steps, 1))
        first: tuple[int, float] | None = None

        def follow(step: int, row: Row) -> None:
            nonlocal first
            now = time.monotonic()
            if first is None:
                first = (step, now)
            per_second = (step - first[0]) / (now - first[1]) if now > first[1] else 0.0
            speed = f"{per_second:.4g} steps/s, {per_second * options.timestep * 86400e-6:.3g} ns/day"
            progress.update(task, completed=step, description=f"{row.temperature_k:.0f} K, {speed}")

        result = run_md(
            atoms,
            calculator,
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            potential=fingerprint(potential),
            on_step=follow,
        )
    lines = list(md_lines(result.summary))
    written = write_dynamics_page(
        result, lines, [atoms, result.atoms], f"model {potential.model}, structure {system.structure}"
    )
    print_result(lines, result.provenance, f"{out}: {written}", quiet=quiet)
    write_json(result.summary, json, overwrite=overwrite)
    if result.uncertain is not None:
        typer.echo(
            f"Stopped at {result.uncertain}; that structure is {out / records.UNCERTAIN}, and the same command with "
            "--resume and a higher limit continues.",
            err=True,
        )
        raise typer.Exit(UNCERTAIN_STATUS)
    if result.interrupted:
        done = result.summary["steps"]
        typer.echo(
            f"Stopped after step {done} of {steps}; the same command with --resume continues.", err=True
        )
        raise typer.Exit(130)


def _about_cell(atoms: ase.Atoms, relaxes: bool, freedom: CellFreedomName, pressure: float) -> str:
    from equipes.simulate.relax import relaxes_cell

    if relaxes:
        what = {"all": "cell", "hydrostatic": "volume", "in-plane": "cell in the xy plane"}[freedom.value]
        return f"Atoms and {what} relax, at {pressure:g} GPa; --no-cell holds the cell."
    if relaxes_cell(atoms):
        return "Only the atoms relax; the cell is held."
    return "Only the atoms relax: the structure is not periodic in all directions."
