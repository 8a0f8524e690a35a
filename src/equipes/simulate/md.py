"""Molecular dynamics with a record on the disk, that can be stopped at any moment and continued exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator
from ase.io import write

from equipes.errors import InputError
from equipes.files import atomic_write, new_directory
from equipes.simulate import records
from equipes.simulate.device_md import DeviceMover, device_mover
from equipes.simulate.ensembles import (
    conserved_energy,
    degrees_of_freedom,
    integrator,
    integrator_state,
    remove_rigid_motion,
    restore_integrator,
    set_target,
    thermal_momenta,
)
from equipes.simulate.errors import SimulationError
from equipes.simulate.guards import Guard
from equipes.simulate.interrupt import stop_at_signal
from equipes.simulate.md_summary import SETTLING, observed, provenance, summarize
from equipes.simulate.observables import Observables
from equipes.simulate.records import Row
from equipes.simulate.results import Provenance, plain
from equipes.simulate.safety import Watch, check_finite
from equipes.simulate.settings import MDSettings

# Settings that say when a run ends, not what it is.
_MAY_CHANGE = ("steps", "max_forces_std", "max_feature_distance", "uncertainty_interval")
CHECKPOINT_SECONDS = 15.0
# Of the time of a run, at most this part goes into writing what is known so far; a long table takes long to read.
_SUMMARY_SHARE = 0.02
_OBSERVED = "observed_"  # before the names of what was sampled, in a checkpoint


@dataclass(frozen=True)
class MDResult:
    """How a run ended: the summary that stands in md.json, the last structure with its velocities, and the directory.

    `interrupted` says that a signal stopped it before the last step; it can be continued. `uncertain` is the sentence
    that says which atom the potential became unsure of, where that stopped it; uncertain.extxyz is that structure.
    `provenance` is method, citations, convergence and warnings.
    """

    summary: dict[str, Any]
    atoms: ase.Atoms
    out: Path
    interrupted: bool
    provenance: Provenance
    uncertain: str | None = None


def run_md(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    settings: MDSettings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    potential: str = "",
    on_step: Callable[[int, Row], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> MDResult:
    """Run molecular dynamics and write it to the directory `out`.

    It holds trajectory.extxyz (positions as they move, not wrapped into the cell; momenta, forces, energy), md.csv,
    checkpoint.npz, md.json with means, radial distributions and displacements so far, and at the end final.extxyz.
    SIGINT and SIGTERM stop it after the step in hand, with a checkpoint. A run that is continued is, bit for bit, the
    run that was never stopped, if the calculator gives the same forces for the same structure.

    Args:
        atoms: the structure to start from; not changed.
        calculator: any ASE calculator.
        settings: ensemble, length, time step, …
        out: directory.
        resume: continue from the last checkpoint in `out`; `settings.steps` may be larger than before.
        overwrite: replace an earlier run in `out`.
        potential: says which potential it is, in the record; a run continues only with the same.
        on_step: called with the step and the last row, after every step.
        checkpoint_seconds: the least time between two checkpoints.

    Raises:
        InputError: settings that make no sense, or a directory that cannot be written or continued.
        SimulationError: a run that left what is physically possible; failure.extxyz is where.
    """
    atoms = atoms.copy()
    if resume and overwrite:
        raise InputError("a run is either continued or replaced; give resume or overwrite, not both")
    atoms.calc = calculator
    out = Path(out)
    rng, arrays, facts = beginning(atoms, settings, out, resume=resume, potential=potential)
    mover = device_mover(atoms, calculator, settings)
    check_finite(atoms, f"step {facts['step']}")
    guard = Guard(settings, calculator)
    uncertain = guard.check(int(facts["step"]), atoms)
    run = Run(atoms, settings, rng, arrays, facts, potential, mover)
    if not resume:
        new_directory(out, overwrite=overwrite)
        records.remove_old_records(out)
    recorder = records.Recorder(
        out, table_bytes=facts.get("table_bytes", 0), trajectory_bytes=facts.get("trajectory_bytes", 0)
    )
    with recorder, stop_at_signal() as stop:
        if not resume:
            run.record(recorder)
            run.checkpoint(recorder)
        saved = time.monotonic()
        try:
            while run.step < settings.steps and not stop.is_set() and uncertain is None:
                run.advance()
                uncertain = guard.check(run.step, atoms)
                if run.step % settings.interval == 0:
                    run.record(recorder)
                if on_step is not None:
                    on_step(run.step, run.row)
                if time.monotonic() - saved >= checkpoint_seconds:
                    run.checkpoint(recorder)
                    run.tell(out)
                    saved = time.monotonic()
            run.checkpoint(recorder)
        except SimulationError as error:
            write_structure(records.snapshot(atoms, results=False, step=run.step), out / records.FAILURE)
            write_summary(run, out, stopped=str(error))
            raise
        interrupted = run.step < settings.steps and uncertain is None
    last = records.snapshot(atoms, step=run.step, time_fs=run.time)
    write_structure(last, out / records.FINAL)
    if uncertain is not None:
        write_structure(last, out / records.UNCERTAIN)
    summary = write_summary(run, out, stopped="interrupted" if interrupted else uncertain)
    how = provenance(settings, records.read_table(out / records.TABLE), len(atoms))
    atoms.calc = calculator  # numbers that are held would stay when the caller moves the atoms
    return MDResult(
        summary=summary, atoms=atoms, out=out, interrupted=interrupted, provenance=how, uncertain=uncertain
    )


def beginning(
    atoms: ase.Atoms, settings: MDSettings, out: Path, *, resume: bool, potential: str
) -> tuple[np.random.Generator, dict[str, np.ndarray], dict[str, Any]]:
    """Bring `atoms` to where a run begins: to its first velocities, or to the last checkpoint in `out`.

    Returns:
        Random numbers, and arrays and facts of the checkpoint (none, and step 0, of a new run).

    Raises:
        InputError: settings that make no sense, or a directory that cannot be continued.
    """
    rng = np.random.default_rng(settings.seed)
    if resume:
        arrays, facts = records.read_checkpoint(out)
        _restore_atoms(atoms, arrays, out)
        settings.check(atoms)
        _same_run(settings, potential, facts, out)
        rng.bit_generator.state = facts["random"]
        return rng, arrays, facts
    settings.check(atoms)
    degrees_of_freedom(atoms, settings.kind)
    if settings.keep_velocities:
        remove_rigid_motion(atoms, settings.kind)
    else:
        thermal_momenta(atoms, settings.temperature or 0.0, settings.kind, rng)
    return rng, {}, {"step": 0, "seconds": 0.0}


class Run:
    """The state of a run between two steps."""

    def __init__(
        self,
        atoms: ase.Atoms,
        settings: MDSettings,
        rng: np.random.Generator,
        arrays: dict[str, np.ndarray],
        facts: dict[str, Any],
        potential: str,
        mover: DeviceMover | None = None,
    ) -> None:
        self.atoms = atoms
        self.mover = mover
        self.settings = settings
        self.rng = rng
        self.potential = potential
        self.first = self.step = int(facts["step"])
        self.seconds = float(facts["seconds"])
        self.started = time.monotonic()
        self.degrees = degrees_of_freedom(atoms, settings.kind)
        self.dynamics: Any = integrator(
            atoms,
            settings.kind,
            timestep=settings.timestep,
            temperature=settings.temperature,
            pressure=settings.pressure,
            thermostat_time=settings.thermostat_time,
            barostat_time=settings.barostat_time,
            flexible_cell=settings.flexible_cell,
            flexible_lengths=settings.flexible_lengths,
            rng=rng,
        )
        self.observables = Observables(
            atoms, reach=settings.reach, first=int(np.ceil(SETTLING * settings.steps))
        )
        if arrays:
            restore_integrator(self.dynamics, settings.kind, arrays)
            known = {
                name.removeprefix(_OBSERVED): array
                for name, array in arrays.items()
                if name.startswith(_OBSERVED)
            }
            if known:  # checkpoints of earlier versions have none
                self.observables.restore(known)
        self.told, self.telling_took = self.started, 0.0
        self.periodic = bool(atoms.pbc.all() and atoms.cell.rank == 3)
        self.pressure_known = self.periodic and "stress" in atoms.calc.implemented_properties
        self.row = self._row()
        self.origin: dict[str, float | None] = facts.get("origin") or {
            "conserved": conserved_energy(self.dynamics, settings.kind, self.row.total_energy_ev),
            "temperature": max(
                self.row.temperature_k, settings.temperature or 0.0, settings.temperature_end or 0.0
            ),
        }
        self.watch = Watch(
            atoms,
            degrees=self.degrees,
            temperature=self.origin["temperature"] or 0.0,
            conserved=self.origin["conserved"],
            closest_fraction=settings.closest_fraction,
        )
        self.watch.check(self.step, atoms, self.row.conserved_energy_ev)
        if mover is not None:
            mover.couple(self.dynamics, self.step)

    @property
    def time(self) -> float:
        """fs since the start."""
        return self.step * self.settings.timestep

    def advance(self) -> None:
        """One step, or on a device those until there is something to do, checked."""
        try:
            if self.mover is not None:
                self.step = self.mover.advance(self.settings.steps)
            else:
                self.step += 1
                if self.settings.ramps:
                    set_target(self.dynamics, *self.settings.targets(self.step))
                self.dynamics.step()
            self.watch.check(self.step, self.atoms, self.conserved())
        except InputError as error:
            # The structure was sound at the start, so it is the dynamics that led to one that cannot be evaluated.
            raise SimulationError(f"step {self.step}: {error}") from error

    def conserved(self) -> float | None:
        """The energy that should not have changed, eV; None in Langevin dynamics."""
        total = self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy()
        return conserved_energy(self.dynamics, self.settings.kind, total)

    def record(self, recorder: records.Recorder) -> None:
        """Append this moment to table and trajectory."""
        self.row = self._row()
        try:
            self.observables.sample(self.step, self.atoms)
        except InputError as error:  # of atoms at the very same place
            raise SimulationError(f"step {self.step}: {error}") from error
        frame = None
        if self.settings.trajectory:
            frame = records.snapshot(self.atoms, step=self.step, time_fs=self.time)
        recorder.append(self.row, frame)

    def tell(self, out: Path) -> None:
        """Write what is known so far, unless that would take too much of the time."""
        now = time.monotonic()
        if self.telling_took > _SUMMARY_SHARE * (now - self.told):
            return
        write_summary(self, out, stopped="running")
        self.told = time.monotonic()
        self.telling_took = self.told - now

    def checkpoint(self, recorder: records.Recorder) -> None:
        """Make this moment one to continue from."""
        arrays = {
            "numbers": self.atoms.numbers,
            "pbc": self.atoms.pbc,
            "cell": self.atoms.cell.array,
            "positions": self.atoms.positions,
            "momenta": self.atoms.get_momenta(),
            **integrator_state(self.dynamics, self.settings.kind),
            **{_OBSERVED + name: array for name, array in self.observables.state().items()},
        }
        recorder.checkpoint(
            arrays,
            {
                "step": self.step,
                "seconds": self.seconds + time.monotonic() - self.started,
                "random": self.rng.bit_generator.state,
                "settings": asdict(self.settings),
                "potential": self.potential,
                "origin": self.origin,
            },
        )

    def _row(self) -> Row:
        atoms = self.atoms
        potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
        total = potential + kinetic
        pressure = None
        if self.pressure_known:
            stress = atoms.get_stress(include_ideal_gas=True, apply_constraint=False)
            pressure = float(-stress[:3].mean() / units.GPa)
        return Row(
            step=self.step,
            time_fs=self.time,
            potential_energy_ev=potential,
            kinetic_energy_ev=kinetic,
            total_energy_ev=total,
            temperature_k=2 * kinetic / (self.degrees * units.kB),
            conserved_energy_ev=conserved_energy(self.dynamics, self.settings.kind, total),
            volume_ang3=float(atoms.get_volume()) if self.periodic else None,
            pressure_gpa=pressure,
        )


def write_summary(run: Run, out: Path, *, stopped: str | None) -> dict[str, Any]:
    """Write md.json of a run into `out`, and return what stands in it; `stopped` says why it did not reach its end."""
    elapsed = time.monotonic() - run.started
    done = run.step - run.first
    settings, n_atoms = run.settings, len(run.atoms)
    rows = records.read_table(out / records.TABLE)
    summary = {
        "ensemble": settings.ensemble,
        "n_atoms": n_atoms,
        "degrees_of_freedom": run.degrees,
        "steps": run.step,
        "time_fs": run.time,
        "completed": stopped is None,
        "stopped": stopped,
        **summarize(rows, n_atoms),
        "seconds": run.seconds + elapsed,
        "steps_per_second": done / elapsed if done else None,
        "potential": run.potential,
        "settings": asdict(settings),
        **observed(run.observables, settings.interval * settings.timestep),
        "provenance": plain(provenance(settings, rows, n_atoms)),
    }
    with atomic_write(out / records.SUMMARY, overwrite=True) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def write_structure(frame: ase.Atoms, path: Path) -> None:
    """Write one structure as extended XYZ, in the place of what was there."""
    with atomic_write(path, overwrite=True) as temporary:
        write(temporary, frame, format="extxyz")


def _restore_atoms(atoms: ase.Atoms, arrays: dict[str, np.ndarray], out: Path) -> None:
    if not (np.array_equal(atoms.numbers, arrays["numbers"]) and np.array_equal(atoms.pbc, arrays["pbc"])):
        raise InputError(
            f"the run in {out} has other atoms than this structure; give the one it was started with"
        )
    atoms.set_cell(arrays["cell"], apply_constraint=False)
    atoms.set_positions(arrays["positions"], apply_constraint=False)
    atoms.set_momenta(arrays["momenta"], apply_constraint=False)


def _same_run(settings: MDSettings, potential: str, facts: dict[str, Any], out: Path) -> None:
    # Checkpoints of earlier versions lack the settings that came later, which then had no effect.
    defaults = {field.name: field.default for field in fields(settings)}
    stored = {**defaults, **facts["settings"]}
    if settings.ramps and settings.steps != stored["steps"]:
        raise InputError(
            f"the run in {out} changes its target over {stored['steps']} steps and cannot have {settings.steps}; run"
            " another one from its final.extxyz"
        )
    for name, value in {**asdict(settings), "potential": potential}.items():
        before = facts["potential"] if name == "potential" else stored[name]
        if name not in _MAY_CHANGE and value != before:
            raise InputError(
                f"the run in {out} was started with {name} = {before}, not {value};"
                " continue it with the same, or start another one elsewhere"
            )
    if settings.steps < facts["step"]:
        raise InputError(
            f"the run in {out} has already done {facts['step']} steps, more than {settings.steps}; give a larger number"
        )
