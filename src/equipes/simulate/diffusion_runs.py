"""Diffusion by molecular dynamics at one or more temperatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import BaseCalculator
from ase.io import iread

from equipes.errors import InputError
from equipes.files import new_directory
from equipes.simulate import records
from equipes.simulate.crystals import checked_supercell
from equipes.simulate.diffusion import (
    ArrheniusResult,
    DiffusionOptions,
    DiffusionResult,
    analyze_diffusion,
    arrhenius,
    motion_of,
)
from equipes.simulate.records import Row
from equipes.simulate.results import Provenance, plain
from equipes.simulate.runs import run_all
from equipes.simulate.settings import MDSettings

_CITATIONS = ("G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007)",)


@dataclass(frozen=True)
class DiffusionRunOptions:
    """What `diffusion` runs and how it is analysed.

    Attributes:
        temperatures: K, ascending; two or more give an activation energy.
        steps: of each run, equilibration included.
        equilibration: fraction of them at the start that is left out.
        timestep: fs.
        interval: steps between frames.
        supercell: how often the structure is repeated.
        seed: of the first velocities.
        analysis: see `DiffusionOptions`; its `skip` is replaced by `equilibration`.
    """

    temperatures: tuple[float, ...]
    analysis: DiffusionOptions
    steps: int = 50_000
    equilibration: float = 0.1
    timestep: float = 2.0
    interval: int = 25
    supercell: tuple[int, int, int] = (1, 1, 1)
    seed: int = 0

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        checked_supercell(self.supercell)
        replace(self.analysis, skip=self.equilibration).check()
        ascending = sorted(set(self.temperatures)) == list(self.temperatures)
        if not self.temperatures or not ascending or any(t <= 0 for t in self.temperatures):
            raise InputError(f"temperatures must be above 0 K and ascending, not {self.temperatures}")
        frames = int((1 - self.equilibration) * (self.steps // max(self.interval, 1)))
        if frames < 20 * self.analysis.blocks:
            raise InputError(
                f"{self.steps} steps with a frame every {self.interval} leave {frames} frames to analyse, too few for"
                f" {self.analysis.blocks} blocks; take more steps or a smaller interval"
            )


@dataclass(frozen=True)
class DiffusionRunResult:
    """Diffusion at each temperature, and the activation energy where there are several."""

    atoms: ase.Atoms
    temperatures: list[DiffusionResult]
    arrhenius: ArrheniusResult | None
    interrupted: bool
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def diffusion(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: DiffusionRunOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    potential: str = "",
    on_step: Callable[[float, int, Row], None] | None = None,
) -> DiffusionRunResult:
    """Molecular dynamics at constant volume and each temperature, in directories of `out`, and its analysis.

    Args:
        atoms: the structure, relaxed and of the density that it shall have; not changed.
        calculator: any ASE calculator.
        options: see `DiffusionRunOptions`.
        out: directory; each temperature gets one of its own in it, as `run_md` writes them.
        resume: go on where the runs in `out` stopped.
        overwrite: replace what is in `out`.
        potential: says which potential it is; runs continue only with the same.
        on_step: called with the temperature, the step and the last row.

    Raises:
        InputError: options that make no sense, an element that is not there, a directory that cannot be used.
        SimulationError: a run that left what is physically possible.
    """
    options.check()
    structure = atoms.repeat(options.supercell)
    if options.analysis.mobile not in structure.get_chemical_symbols():
        there = ", ".join(sorted(set(structure.get_chemical_symbols())))
        raise InputError(f"no {options.analysis.mobile} in the structure; it has {there}")
    folder = Path(out)
    if not resume:
        new_directory(folder, overwrite=overwrite)
    analysis = replace(options.analysis, skip=options.equilibration)
    settings = {
        f"{temperature:g}K": MDSettings(
            "nvt",
            steps=options.steps,
            timestep=options.timestep,
            temperature=temperature,
            seed=options.seed,
            interval=options.interval,
        )
        for temperature in options.temperatures
    }
    summaries, interrupted = run_all(
        structure,
        calculator,
        settings,
        folder,
        resume=resume,
        overwrite=overwrite,
        potential=potential,
        on_step=None
        if on_step is None
        else lambda name, step, row: on_step(settings[name].temperature or 0.0, step, row),
    )
    results, volumes = [], []
    for name, summary in summaries.items():
        frames = list(iread(folder / name / records.TRAJECTORY, index=":", format="extxyz"))
        motion = motion_of(frames, options.interval * options.timestep)
        volumes.append(motion.volume_ang3)
        measured = float(summary["mean_temperature_k"] or settings[name].temperature or 0.0)
        results.append(analyze_diffusion(motion, measured, analysis))
    line, notes = None, []
    if len(results) > 1:
        try:
            line = arrhenius(results, volumes[0], options.analysis.charge)
        except InputError as error:
            notes.append(f"no activation energy: {error}")
    return DiffusionRunResult(
        atoms=structure,
        temperatures=results,
        arrhenius=line,
        interrupted=interrupted,
        provenance=_provenance(options, results, notes),
    )


def _provenance(options: DiffusionRunOptions, results: list[DiffusionResult], notes: list[str]) -> Provenance:
    checks, warned = [], list(notes)
    for result in results:
        at = f"{result.temperature_k:.0f} K: "
        checks += [replace(check, what=at + check.what) for check in result.provenance.checks]
        warned += [at + warning for warning in result.provenance.warnings]
    warned.append("cells of other sizes were not tried; give --supercell to see whether D depends on it")
    picoseconds = options.steps * options.timestep / 1000
    own = results[0].provenance if results else Provenance("", ())
    method = (
        f"Molecular dynamics at constant volume with stochastic velocity rescaling, {picoseconds:g} ps at each"
        f" temperature, the first {100 * options.equilibration:g} % left out; {own.method[:1].lower()}{own.method[1:]}"
    )
    return Provenance(method, (*_CITATIONS, *own.citations), tuple(checks), tuple(warned))
