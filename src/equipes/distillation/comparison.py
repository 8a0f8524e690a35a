"""The student against the teacher: errors on trajectories that neither was trained on, stability, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.data import Frame
from equipes.distillation.settings import DistillationOptions, walk_options
from equipes.models import Potential
from equipes.sampling import Sample, dynamics
from equipes.sampling.sample import Labeller
from equipes.simulate import MDSettings, SimulationError, run_md
from equipes.simulate.records import CHECKPOINT, TRAJECTORY
from equipes.simulate.structures import read_trajectory
from equipes.training.metrics import error_metrics, predict_frames

_CALLS = 15
_ATOMS = 200
_SEED_OF_TESTS = 7919  # added to the seed, so that no test repeats a walk of the sampling


@dataclass(frozen=True)
class Comparison:
    """One held-out trajectory, labelled by the teacher.

    Attributes:
        driver: "teacher" or "student": whose forces moved the atoms.
        temperature_k: of the thermostat.
        frames: compared.
        forces_mae_mev_per_ang, forces_rmse_mev_per_ang: of components.
        forces_rms_ev_per_ang: of the teacher's forces, for scale.
        energy_mae_mev_per_atom: of energies per atom.
        stress_mae_mev_per_ang3: None without a cell.
        picoseconds: that the student's dynamics lasted.
        stable: whether it came to its end; None of the teacher's.
        failure: why not.
        mean_temperature_k: of the student's dynamics.
    """

    driver: str
    temperature_k: float
    frames: int
    forces_mae_mev_per_ang: float
    forces_rmse_mev_per_ang: float
    forces_rms_ev_per_ang: float
    energy_mae_mev_per_atom: float
    stress_mae_mev_per_ang3: float | None
    picoseconds: float
    stable: bool | None = None
    failure: str | None = None
    mean_temperature_k: float | None = None

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """A call for energy, forces and stress, median of several, each with moved atoms: ms, through ASE."""

    n_atoms: int
    teacher_ms: float
    student_ms: float

    @property
    def gain(self) -> float:
        """How many times faster the student is."""
        return self.teacher_ms / self.student_ms

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {**asdict(self), "gain": self.gain}


def compare_speed(
    atoms: ase.Atoms, teacher: BaseCalculator, student: BaseCalculator, *, seed: int = 0
) -> Speed:
    """Time both on a supercell of 200 atoms or more, in turns, so that what disturbs the machine disturbs both.

    A structure that is no crystal is timed as it is.
    """
    cell = atoms.copy()
    while cell.pbc.all() and len(cell) < _ATOMS:
        cell = cell.repeat([1 + (axis == int(np.argmin(cell.cell.lengths()))) for axis in range(3)])
    rng = np.random.default_rng(seed)
    rest = cell.positions.copy()
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for call in range(_CALLS + 2):
        cell.positions = rest + 0.02 * rng.standard_normal(rest.shape)
        for name, calculator in (("teacher", teacher), ("student", student)):
            cell.calc = calculator
            began = time.perf_counter()
            cell.get_forces()
            if call >= 2:  # the first calls build neighbour lists and touch memory
                seconds[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    return Speed(len(cell), medians["teacher"], medians["student"])


def teacher_trajectory(
    cell: ase.Atoms, teacher: BaseCalculator, options: DistillationOptions, temperature: float
) -> Sample:
    """Held-out frames of the teacher's dynamics, with random numbers of their own."""
    rng = np.random.default_rng([options.seed + _SEED_OF_TESTS, round(temperature)])
    return dynamics(cell, teacher, walk_options(cell, options, temperature, options.test_frames), rng)


@dataclass(frozen=True)
class StudentTrajectory:
    """Frames of the student's dynamics with the teacher's labels, and how the run went."""

    sample: Sample
    picoseconds: float
    failure: str | None
    mean_temperature: float | None
    interrupted: bool


def student_trajectory(
    cell: ase.Atoms,
    student: BaseCalculator,
    teacher: BaseCalculator,
    options: DistillationOptions,
    temperature: float,
    out: Path,
) -> StudentTrajectory:
    """Run the student's dynamics (nvt) in `out`, continuing what is there, and let the teacher label some of it."""
    step = options.timestep_for(cell)
    steps = max(1, round(1000 * options.test_picoseconds / step))
    settings = MDSettings(
        "nvt",
        steps=steps,
        timestep=step,
        temperature=temperature,
        seed=options.seed + _SEED_OF_TESTS,
        interval=max(1, steps // 200),
    )
    resume = (out / CHECKPOINT).exists()
    failure, mean, interrupted = None, None, False
    try:
        result = run_md(cell, student, settings, out, resume=resume, overwrite=not resume)
        mean, interrupted = result.summary["mean_temperature_k"], result.interrupted
    except SimulationError as error:
        failure = str(error)
    frames = read_trajectory(out / TRAJECTORY)
    picoseconds = (len(frames) - 1) * settings.interval * step / 1000
    labeller = Labeller(cell, teacher, f"student's dynamics {temperature:g} K", largest_force=1e3)
    sample = Sample()
    chosen = np.unique(
        np.linspace(len(frames) // 5, len(frames) - 1, options.test_frames).round().astype(int)
    )
    for index in chosen:
        labeller.add(frames[index], sample, len(chosen))
    if not sample.frames:  # of a run that left at once what can be labelled, at least the start
        labeller.add(frames[0], sample, 1)
    return StudentTrajectory(sample, picoseconds, failure, mean, interrupted)


def compare(
    potential: Potential, frames: Sequence[Frame], driver: str, temperature: float, **facts: Any
) -> Comparison:
    """The student's errors on frames that the teacher labelled."""
    errors = error_metrics(frames, predict_frames(potential, frames))
    forces = np.concatenate([frame.forces for frame in frames if frame.forces is not None])
    return Comparison(
        driver=driver,
        temperature_k=temperature,
        frames=len(frames),
        forces_mae_mev_per_ang=errors["forces_mae_mev_per_ang"],
        forces_rmse_mev_per_ang=errors["forces_rmse_mev_per_ang"],
        forces_rms_ev_per_ang=float(np.sqrt(np.mean(forces**2))),
        energy_mae_mev_per_atom=errors["energy_mae_mev_per_atom"],
        stress_mae_mev_per_ang3=errors.get("stress_mae_mev_per_ang3"),
        **facts,
    )
