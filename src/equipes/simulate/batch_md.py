"""Molecular dynamics of many systems at once: replicas, temperatures, structures, in batches.

Every system has a directory with all that a run of its own would have there (see `run_md`), and is that run to
round-off: with the same settings and seed either can continue the other. Batches only share the evaluations of the
potential, which is what a GPU wants.
"""

from __future__ import annotations

import csv
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ase

from equipes.calculators.ase import Calculator
from equipes.errors import InputError
from equipes.files import atomic_write, new_directory
from equipes.simulate import records
from equipes.simulate.batch import Batch, Batches
from equipes.simulate.device_md import KINDS
from equipes.simulate.errors import SimulationError
from equipes.simulate.held import Held
from equipes.simulate.interrupt import stop_at_signal
from equipes.simulate.md import CHECKPOINT_SECONDS, Run, beginning, write_structure, write_summary
from equipes.simulate.safety import STEPS_BETWEEN_DISTANCES, check_finite
from equipes.simulate.settings import MDSettings

TABLE = "runs.csv"
# Of the time of the runs, at most this part goes into checkpoints, of which every system writes one.
_CHECKPOINT_SHARE = 0.05
# Of a table of settings, what may differ from system to system.
_MAY_DIFFER = (
    "temperature",
    "temperature_end",
    "seed",
    "keep_velocities",
    "closest_fraction",
    "reach",
    "trajectory",
)
_OPEN_FILES = 64  # beside two for every system
_COLUMNS = (
    "n_atoms", "steps", "time_fs", "completed", "mean_temperature_k", "mean_temperature_k_error",
    "mean_potential_energy_ev", "mean_pressure_gpa", "energy_drift_mev_per_atom_per_ps",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One of the systems of a batch: the name of its directory, its structure and its settings."""

    name: str
    atoms: ase.Atoms
    settings: MDSettings


@dataclass(frozen=True)
class BatchedMDResult:
    """How the runs ended.

    Attributes:
        out: the directory that holds those of the systems, and runs.csv.
        summaries: what stands in md.json of each, by name.
        failures: of the systems that left what is physically possible, the sentence that says how.
        interrupted: a signal stopped the runs before the last step; they can be continued.
        seconds: that this took.
        evaluations: structures evaluated.
    """

    out: Path
    summaries: dict[str, dict[str, Any]]
    failures: dict[str, str]
    interrupted: bool
    seconds: float
    evaluations: int

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "n_systems": len(self.summaries),
            "interrupted": self.interrupted,
            "failures": self.failures,
            "seconds": self.seconds,
            "system_steps_per_second": self.evaluations / self.seconds if self.seconds else None,
            "systems": self.summaries,
        }


@dataclass(eq=False)
class _Member:
    """A system on its way."""

    system: System
    out: Path
    run: Run
    recorder: records.Recorder
    failure: str | None = None

    @property
    def goes_on(self) -> bool:
        return self.failure is None and self.run.step < self.system.settings.steps


def run_md_together(
    systems: Sequence[System],
    calculator: Calculator,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    potential: str = "",
    batch_size: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> BatchedMDResult:
    """Run molecular dynamics of many systems at once and write each to a directory of `out` with its name.

    SIGINT and SIGTERM stop all of them after the step in hand, with checkpoints. A system that leaves what is
    physically possible ends alone (its failure.extxyz is where), and the others go on.

    Args:
        systems: structures of any sizes, elements and periodicities. Their settings may differ in temperature and seed,
            not in ensemble, length and time step. Ensembles: nve, and nvt with the thermostats bussi and langevin.
        calculator: the potential.
        out: directory.
        resume: continue from the last checkpoints in `out`; systems without one start.
        overwrite: replace earlier runs in `out`.
        potential: says which potential it is, in the record; runs continue only with the same.
        batch_size: at most so many systems in one evaluation; None: all. Where they do not fit into the memory of the
            device, batches are halved at the start.
        on_step: called with the steps done and to do, of all systems together.
        checkpoint_seconds: the least time between two checkpoints.

    Raises:
        InputError: systems that cannot go together or make no sense, a directory that cannot be written or continued.
        SimulationError: a system that is impossible from the start.
    """
    out = Path(out)
    _check(systems, batch_size, resume=resume, overwrite=overwrite)
    continued = {
        system.name: resume and (out / system.name / records.CHECKPOINT).is_file() for system in systems
    }
    if resume and not any(continued.values()):
        raise InputError(f"{out} has nothing to continue from; leave out --resume to start anew")
    _allow_open_files(2 * len(systems) + _OPEN_FILES)
    began = time.monotonic()
    starts = []
    for system in systems:
        atoms = system.atoms.copy()
        atoms.calc = Held()
        with _naming(system.name):
            where = out / system.name
            start = beginning(
                atoms, system.settings, where, resume=continued[system.name], potential=potential
            )
        starts.append((atoms, *start))
    divided = Batches(calculator, batch_size)
    divided.first([atoms for atoms, *_ in starts], [system.name for system in systems])
    runs = []
    for system, (atoms, rng, arrays, facts) in zip(systems, starts, strict=True):
        with _naming(system.name):
            check_finite(atoms, f"step {facts['step']}")
            runs.append(Run(atoms, system.settings, rng, arrays, facts, potential))
    if not resume:
        new_directory(out, overwrite=overwrite)
        records.remove_other_runs(out, _names_in(out / TABLE), [system.name for system in systems])
        # So that also those of a batch that is killed are known.
        _write_table(out / TABLE, systems, {system.name: {} for system in systems}, {})
    with ExitStack() as files, stop_at_signal() as stop:
        members = []
        for system, run, (*_, facts) in zip(systems, runs, starts, strict=True):
            members.append(
                _begun(system, run, facts, out, files, continued[system.name], overwrite=overwrite)
            )
        first = [member.run.step for member in members]
        saved, pause = time.monotonic(), checkpoint_seconds
        batches: list[Batch] = []
        moving: list[_Member] = []
        while not stop.is_set():
            # Runs that a kill left at different steps wait for those behind.
            going = [member for member in members if member.goes_on]
            if not going:
                break
            behind = min(member.run.step for member in going)
            front = [member for member in going if member.run.step == behind]
            if front != moving:
                for batch in batches:
                    batch.bring_back()
                moving, batches = front, divided.made([member.run for member in front])
            _advance(batches, {id(member.run): member for member in members})
            if on_step is not None:
                on_step(
                    sum(member.run.step for member in members if member.failure is None),
                    sum(member.system.settings.steps for member in members if member.failure is None),
                )
            if time.monotonic() - saved >= pause:
                at = time.monotonic()
                _checkpoint(members, batches)
                saved = time.monotonic()
                pause = max(checkpoint_seconds, (saved - at) / _CHECKPOINT_SHARE)
        _checkpoint(members, batches)
    summaries, failures = {}, {}
    for member in members:
        summaries[member.system.name] = _finish(member)
        if member.failure is not None:
            failures[member.system.name] = member.failure
    _write_table(out / TABLE, systems, summaries, failures)
    done = sum(member.run.step - before for member, before in zip(members, first, strict=True))
    return BatchedMDResult(
        out=out,
        summaries=summaries,
        failures=failures,
        interrupted=any(member.goes_on for member in members),
        seconds=time.monotonic() - began,
        evaluations=done,
    )


def _check(systems: Sequence[System], batch_size: int | None, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("runs are either continued or replaced; give resume or overwrite, not both")
    if not systems:
        raise InputError("there are no systems; give at least one")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size must be 1 or more, not {batch_size}")
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"several systems have the name {', '.join(twice)}; give each its own")
    model = systems[0].settings
    for system in systems:
        settings = system.settings
        if settings.kind not in KINDS:
            what = "npt" if settings.ensemble == "npt" else f"the thermostat {settings.thermostat}"
            raise InputError(
                f"{what} moves one system at a time; run `equipes md`, or take nve, or nvt with bussi or langevin"
            )
        if settings.max_forces_std is not None or settings.max_feature_distance is not None:
            raise InputError("limits of uncertainty are watched in runs of one system; run `equipes md`")
        if system.atoms.constraints:
            raise InputError(
                f"{system.name}: atoms that are held fixed move one system at a time; run `equipes md`, or remove"
                " the constraints"
            )
        for name in (field.name for field in fields(model)):
            if name not in _MAY_DIFFER and getattr(settings, name) != getattr(model, name):
                raise InputError(
                    f"{system.name} has {name} = {getattr(settings, name)} and {names[0]} has"
                    f" {getattr(model, name)}; give all systems the same"
                )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Sentences about one system begin with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except SimulationError as error:
        raise SimulationError(f"{name}: {error}") from error


def _begun(
    system: System,
    run: Run,
    facts: dict[str, Any],
    out: Path,
    files: ExitStack,
    continued: bool,
    *,
    overwrite: bool,
) -> _Member:
    where = out / system.name
    if not continued:
        new_directory(where, overwrite=overwrite)
        records.remove_old_records(where)
    recorder = files.enter_context(
        records.Recorder(
            where,
            table_bytes=facts.get("table_bytes", 0),
            trajectory_bytes=facts.get("trajectory_bytes", 0),
        )
    )
    member = _Member(system, where, run, recorder)
    if not continued:
        run.record(recorder)
        run.checkpoint(recorder)
    return member


def _advance(batches: list[Batch], members: dict[int, _Member]) -> None:
    """One step of all batches, with the rows and the checks that are due after it."""
    for batch in batches:
        step = batch.runs[0].step + 1
        interval = batch.runs[0].settings.interval
        recorded, looked = step % interval == 0, step % STEPS_BETWEEN_DISTANCES == 0
        periodic = any(run.pressure_known for run in batch.runs)
        lost = batch.advance(stress=recorded and periodic)
        suspects = range(len(batch.runs)) if recorded or looked else batch.suspicious()
        if not suspects:
            continue
        batch.bring_back()
        for index in suspects:
            run = batch.runs[index]
            member = members[id(run)]
            try:
                if index in lost:
                    raise SimulationError(f"step {run.step}: {lost[index]}")
                run.watch.check(run.step, run.atoms, run.conserved())
                if recorded:
                    run.record(member.recorder)
            except SimulationError as error:
                member.failure = str(error)
                write_structure(
                    records.snapshot(run.atoms, results=False, step=run.step), member.out / records.FAILURE
                )


def _checkpoint(members: Sequence[_Member], batches: Sequence[Batch]) -> None:
    for batch in batches:
        batch.bring_back()
    for member in members:
        if member.failure is None:
            member.run.checkpoint(member.recorder)


def _finish(member: _Member) -> dict[str, Any]:
    run = member.run
    if member.failure is not None:
        return write_summary(run, member.out, stopped=member.failure)
    last = records.snapshot(run.atoms, step=run.step, time_fs=run.time)
    write_structure(last, member.out / records.FINAL)
    return write_summary(run, member.out, stopped="interrupted" if member.goes_on else None)


def _names_in(path: Path) -> list[str]:
    """The systems of an earlier batch."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [row["name"] for row in csv.DictReader(file) if row.get("name")]


def _write_table(
    path: Path, systems: Sequence[System], summaries: dict[str, dict[str, Any]], failures: dict[str, str]
) -> None:
    lines = [",".join(("name", "temperature_k", "seed", *_COLUMNS, "failure"))]
    for system in systems:
        found = summaries[system.name]
        values = [
            system.name, system.settings.temperature, system.settings.seed,
            *(found.get(name) for name in _COLUMNS),
        ]  # fmt: skip
        texts = ["" if value is None else str(value) for value in values]
        failure = failures.get(system.name, "").replace('"', "'")
        lines.append(",".join([*texts, f'"{failure}"' if failure else ""]))
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _allow_open_files(wanted: int) -> None:
    """Every system keeps two files open; raise the soft limit of this process as far as that needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise InputError(
            f"so many systems need {wanted} open files, and this machine allows {hard}; run fewer at once"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
