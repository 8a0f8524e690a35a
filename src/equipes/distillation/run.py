"""From a teacher and a structure to a student and what it is worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import BaseCalculator
from rich.console import Console

from equipes.calculators import Calculator
from equipes.data import Frame, write_frames
from equipes.distillation.comparison import (
    Comparison,
    Speed,
    compare,
    compare_speed,
    student_trajectory,
    teacher_trajectory,
)
from equipes.distillation.settings import (
    DistillationOptions,
    is_crystal,
    sampling_parts,
    student_cutoff,
    supercell_for,
)
from equipes.errors import InputError
from equipes.files import atomic_write, new_directory, refuse_overwrite
from equipes.models import Potential, load
from equipes.sampling import Sample, collect, describe
from equipes.simulate import relax
from equipes.simulate.store import structure_key
from equipes.training import TrainingResult, load_config, train
from equipes.training.display import sampling_progress

SAMPLES, FRAMES, HELD_OUT, SUMMARY, REPORT = (
    "samples.npz", "frames.extxyz", "held-out.extxyz", "distillation.json", "report.html",
)  # fmt: skip
_STUDENT = (
    "model.num_layers=2", "model.l_max=2", "model.num_features=32", "train.batch_size=2",
    "data.checks=off",
)  # fmt: skip
_VERSION = 1


class Interrupted(Exception):  # noqa: N818 - as KeyboardInterrupt, it is no error
    """A signal stopped the work; the same with `resume` goes on."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@dataclass(frozen=True)
class Distillation:
    """A student and its report.

    Attributes:
        model: its file.
        work: directory of everything else: sampled frames, training, held-out trajectories, report.
        n_atoms: of the supercell that was sampled.
        frames, discarded: labelled geometries, and how many were left out and why.
        training: validation errors of the student.
        steps, minutes: of the training.
        parameters, cutoff: of the student.
        comparisons: on held-out trajectories.
        speed: of both.
    """

    model: Path
    work: Path
    n_atoms: int
    frames: int
    discarded: str
    training: dict[str, Any]
    steps: int
    minutes: float
    parameters: int
    cutoff: float
    comparisons: tuple[Comparison, ...]
    speed: Speed

    @property
    def stable(self) -> bool:
        """Whether every run of the student's dynamics came to its end."""
        return all(comparison.stable is not False for comparison in self.comparisons)

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        own = {**asdict(self), "model": str(self.model), "work": str(self.work), "stable": self.stable}
        return {**own, "speed": self.speed.summary()}


def distill(
    structure: ase.Atoms,
    teacher: BaseCalculator,
    out: str | Path,
    options: DistillationOptions | None = None,
    *,
    work: str | Path | None = None,
    teacher_name: str = "",
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Distillation:
    """Train a small fast potential on what a large one says around a structure, and compare both.

    Args:
        structure: a crystal, which is relaxed with its cell by the teacher and repeated, or anything else.
        teacher: any ASE calculator with energy and forces.
        out: the student's file, `*.safetensors`.
        options: sampling, student, test.
        work: directory for all the rest; `out` with `-distillation` for its suffix by default.
        teacher_name: says which potential the teacher is; work is only continued with the same.
        resume: continue what is in `work`.
        overwrite: replace `out` and what is in `work`.
        console: where progress goes; stderr by default.

    Raises:
        InputError: anything wrong with options, structure or files.
        SimulationError: a structure that the teacher cannot relax or sample.
        Interrupted: a signal ended it.
    """
    options = options or DistillationOptions()
    options.check()
    console = console or Console(stderr=True)
    out = refuse_overwrite(out, overwrite=overwrite or resume)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: a model is written as *.safetensors; give such a name to --out")
    work = Path(work) if work is not None else out.with_name(f"{out.stem}-distillation")
    _prepare(work, resume=resume, overwrite=overwrite)

    if is_crystal(structure):
        structure = relax(structure, teacher, fmax=0.01, smax=0.1).atoms
    known = (teacher.potential or teacher.frozen) if isinstance(teacher, Calculator) else None
    cutoff = student_cutoff(structure, known.cutoff if known is not None else None)
    cell = supercell_for(structure, options, cutoff)
    if not resume:
        _remove_earlier(work)
    sample = _sampled(cell, teacher, options, work / SAMPLES, teacher_name, console)
    write_frames(sample.frames, work / FRAMES, overwrite=True)
    console.print(_sentence(cell, sample), highlight=False, soft_wrap=True)

    result = _trained(options, cutoff, work, console, resume=resume)
    potential = load(result.model)
    student = Calculator(potential)
    student.freeze_for(cell.symbols)
    comparisons, held_out = _compared(cell, potential, student, teacher, options, work, console)
    speed = compare_speed(structure, teacher, student, seed=options.seed)
    write_frames(held_out, work / HELD_OUT, overwrite=True)
    with atomic_write(out, overwrite=True) as temporary:
        shutil.copyfile(result.model, temporary)
    distillation = Distillation(
        model=out,
        work=work,
        n_atoms=len(cell),
        frames=len(sample),
        discarded=describe(sample.discarded),
        training=result.validation,
        steps=result.steps,
        minutes=result.minutes,
        parameters=sum(p.numel() for p in potential.parameters()),
        cutoff=potential.cutoff,
        comparisons=tuple(comparisons),
        speed=speed,
    )
    _record(distillation, potential, held_out, teacher_name, options)
    return distillation


def _prepare(work: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume continues a distillation and --overwrite replaces it; give one of them")
    new_directory(work, overwrite=resume or overwrite)


def _remove_earlier(work: Path) -> None:
    """What an earlier distillation left; nobody else's files are removed."""
    if (work / SAMPLES).exists():
        for name in (SAMPLES, FRAMES, HELD_OUT, SUMMARY, REPORT):
            (work / name).unlink(missing_ok=True)
        for folder in work.glob("dynamics-*"):
            shutil.rmtree(folder)


def _sampled(
    cell: ase.Atoms,
    teacher: BaseCalculator,
    options: DistillationOptions,
    path: Path,
    teacher_name: str,
    console: Console,
) -> Sample:
    facts = {
        "version": _VERSION,
        "teacher": teacher_name,
        "structure": structure_key(cell),
        "frames": options.frames,
        "temperatures": list(options.temperatures),
        "strain": options.strain,
        "defects": list(options.defects),
        "timestep": options.timestep_for(cell),
    }
    with sampling_progress(console) as progress:
        return collect(
            sampling_parts(cell, options),
            lambda: teacher,
            seed=options.seed,
            path=path,
            facts=facts,
            progress=progress,
        )


def _sentence(cell: ase.Atoms, sample: Sample) -> str:
    left_out = f"; left out {describe(sample.discarded)}" if sample.discarded else ""
    return f"sampled     {len(sample)} geometries of {cell.get_chemical_formula()}{left_out}"


def _trained(
    options: DistillationOptions, cutoff: float, work: Path, console: Console, *, resume: bool
) -> TrainingResult:
    settings = [
        f"data.train={json.dumps(str(work / FRAMES))}",
        f"model.r_max={cutoff}",
        *_STUDENT,
        f"train.max_minutes={options.minutes}",
        f"train.seed={options.seed}",
        *options.student,
    ]
    result = train(
        load_config(None, settings), work / "training", resume=resume, overwrite=not resume, console=console
    )
    if result.signal:
        raise Interrupted(result.signal)
    return result


def _compared(
    cell: ase.Atoms,
    potential: Potential,
    student: BaseCalculator,
    teacher: BaseCalculator,
    options: DistillationOptions,
    work: Path,
    console: Console,
) -> tuple[list[Comparison], list[Frame]]:
    """Errors on held-out trajectories of both, and the frames of them."""
    comparisons: list[Comparison] = []
    frames: list[Frame] = []
    temperatures = options.test_temperatures()
    console.print(
        f"testing     dynamics at {', '.join(f'{t:g}' for t in temperatures)} K, {options.test_picoseconds:g} ps each",
        highlight=False,
    )
    for temperature in temperatures:
        sample = teacher_trajectory(cell, teacher, options, temperature)
        span = len(sample) * 10 * options.timestep_for(cell) / 1000
        comparisons.append(compare(potential, sample.frames, "teacher", temperature, picoseconds=span))
        frames += sample.frames
    for temperature in temperatures:
        run = student_trajectory(
            cell, student, teacher, options, temperature, work / f"dynamics-{temperature:g}K"
        )
        if run.interrupted:
            raise Interrupted(2)
        comparisons.append(
            compare(
                potential,
                run.sample.frames,
                "student",
                temperature,
                picoseconds=run.picoseconds,
                stable=run.failure is None,
                failure=run.failure,
                mean_temperature_k=run.mean_temperature,
            )
        )
        frames += run.sample.frames
    return comparisons, frames


def _record(
    distillation: Distillation,
    potential: Potential,
    held_out: Sequence[Frame],
    teacher_name: str,
    options: DistillationOptions,
) -> None:
    """The numbers as JSON and the page with parity plots, learning curves and the hottest run."""
    from equipes.report import write_report
    from equipes.training.metrics import predict_frames

    work = distillation.work
    content = {"teacher": teacher_name, "options": asdict(options), **distillation.summary()}
    with atomic_write(work / SUMMARY, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(
        work / REPORT,
        held_out,
        predict_frames(potential, held_out),
        model=potential.summary(),
        title=distillation.model.name,
        subtitle=f"against {teacher_name or 'the teacher'} on held-out trajectories",
        metrics_csv=work / "training" / "metrics.csv",
        md_csv=work / f"dynamics-{max(options.test_temperatures()):g}K" / "md.csv",
        overwrite=True,
    )
