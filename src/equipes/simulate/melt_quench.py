"""Glasses: a crystal is melted, cooled down at a constant rate, and looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.io import iread, read

from equipes.errors import InputError
from equipes.files import new_directory
from equipes.simulate import records
from equipes.simulate.crystals import checked_supercell
from equipes.simulate.md import run_md
from equipes.simulate.order import RadialDistribution, coordination_numbers, radial_distributions
from equipes.simulate.records import Row
from equipes.simulate.results import Check, Provenance, plain
from equipes.simulate.settings import MDSettings

_CITATIONS = (
    "G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007)",
    "K. Vollmayr, W. Kob, K. Binder, Phys. Rev. B 54, 15808 (1996)",
)
_STAGES = ("melt", "quench", "anneal")


@dataclass(frozen=True)
class MeltQuenchOptions:
    """What `melt_quench` does; all at constant volume, unless `pressure` is given.

    Attributes:
        melt: K, and `melt_steps` there.
        cold: K, reached in `quench_steps` at a constant rate, and `anneal_steps` there.
        timestep: fs.
        interval: steps between frames.
        supercell: how often the structure is repeated.
        pressure: GPa; with it the volume changes (npt). None keeps the volume.
        seed: of velocities and thermostat.
        reach: Å, of the radial distributions.
    """

    melt: float = 4000.0
    cold: float = 300.0
    melt_steps: int = 5000
    quench_steps: int = 20_000
    anneal_steps: int = 2500
    timestep: float = 1.0
    interval: int = 50
    supercell: tuple[int, int, int] = (1, 1, 1)
    pressure: float | None = None
    seed: int = 0
    reach: float = 6.0

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        checked_supercell(self.supercell)
        if not self.melt > self.cold > 0:
            raise InputError(f"a melt must be hotter than the glass, not {self.melt} K and {self.cold} K")
        if min(self.melt_steps, self.quench_steps, self.anneal_steps) < self.interval or self.interval < 1:
            raise InputError(
                f"every stage needs at least one interval of {self.interval} steps, not {self.melt_steps},"
                f" {self.quench_steps}, {self.anneal_steps}"
            )

    @property
    def rate(self) -> float:
        """K/ps."""
        return (self.melt - self.cold) / (self.quench_steps * self.timestep / 1000)

    def stages(self) -> dict[str, MDSettings]:
        """The settings of each stage."""
        ensemble: Any = "nvt" if self.pressure is None else "npt"
        common: dict[str, Any] = {
            "ensemble": ensemble,
            "timestep": self.timestep,
            "interval": self.interval,
            "pressure": self.pressure or 0.0,
        }
        return {
            "melt": MDSettings(**common, steps=self.melt_steps, temperature=self.melt, seed=self.seed),
            "quench": MDSettings(
                **common,
                steps=self.quench_steps,
                temperature=self.melt,
                temperature_end=self.cold,
                keep_velocities=True,
                seed=self.seed + 1,
            ),
            "anneal": MDSettings(
                **common,
                steps=self.anneal_steps,
                temperature=self.cold,
                keep_velocities=True,
                seed=self.seed + 2,
            ),
        }


@dataclass(frozen=True)
class MeltQuenchResult:
    """A glass.

    Attributes:
        atoms: the last structure.
        rate_k_per_ps: of cooling.
        melt, glass: radial distributions of the second half of the melt, and of the anneal.
        coordination: of the last structure, by pair ("Si-O"): how many atoms have how many neighbours, within the first
            minimum of g(r).
        melt_displacement_ang: root of the mean-square displacement in the melt: whether it was one.
        density_g_per_cm3: of the last structure.
        interrupted: a signal stopped it; it can be continued.
        provenance: method, citations, convergence, warnings.
    """

    atoms: ase.Atoms
    rate_k_per_ps: float
    melt: list[RadialDistribution]
    glass: list[RadialDistribution]
    coordination: dict[str, dict[int, int]]
    melt_displacement_ang: float
    density_g_per_cm3: float
    interrupted: bool
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def melt_quench(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: MeltQuenchOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    potential: str = "",
    on_step: Callable[[str, int, Row], None] | None = None,
) -> MeltQuenchResult:
    """Melt a structure, cool it down, keep it cold; each stage in a directory of its own in `out`.

    Arguments as of `run_md`; `on_step` is called with the stage, its step and the last row.

    Raises:
        InputError: options that make no sense, or a directory that cannot be used.
        SimulationError: a run that left what is physically possible.
    """
    options.check()
    structure = atoms.repeat(options.supercell)
    folder = Path(out)
    if not resume:
        new_directory(folder, overwrite=overwrite)
    interrupted = False
    for stage, settings in options.stages().items():
        where = folder / stage
        run = run_md(
            structure,
            calculator,
            settings,
            where,
            resume=resume and (where / records.CHECKPOINT).is_file(),
            overwrite=overwrite,
            potential=potential,
            on_step=None if on_step is None else _with(on_step, stage),
        )
        if run.interrupted:
            interrupted = True
            break
        structure = read(where / records.FINAL)
    if interrupted:
        return MeltQuenchResult(
            structure, options.rate, [], [], {}, 0.0, _density(structure), True, Provenance("", ())
        )
    return _analyzed(folder, options)


def _with(on_step: Callable[[str, int, Row], None], stage: str) -> Callable[[int, Row], None]:
    return lambda step, row: on_step(stage, step, row)


def _analyzed(folder: Path, options: MeltQuenchOptions) -> MeltQuenchResult:
    frames = {stage: _frames(folder / stage / records.TRAJECTORY) for stage in ("melt", "anneal")}
    last = frames["anneal"][-1]
    hot = frames["melt"]
    melt, glass = (
        radial_distributions(part[len(part) // 2 :], reach=options.reach) for part in (hot, frames["anneal"])
    )
    moved = float(np.sqrt(((hot[-1].positions - hot[0].positions) ** 2).sum(axis=1).mean()))
    coordination = {}
    for distribution in glass:
        a, b = distribution.pair
        for centre, around in {(a, b), (b, a)}:
            counts = Counter(
                int(n) for n in coordination_numbers(last, centre, around, distribution.minimum_ang)
            )
            coordination[f"{centre}-{around}"] = dict(sorted(counts.items()))
    nearest = min(distribution.peak_ang for distribution in melt)
    warnings = []
    if moved < nearest:
        warnings.append(
            f"atoms moved by {moved:.2f} Å only in the melt, less than the distance of neighbours ({nearest:.2f} Å):"
            " the crystal did not melt; take a higher temperature or more steps"
        )
    warnings.append(
        f"cooled at {options.rate:.3g} K/ps, a million times faster than in a laboratory: the glass has more defects"
    )
    cold = np.mean([atoms.get_temperature() for atoms in frames["anneal"][len(frames["anneal"]) // 2 :]])
    check = Check(
        "the anneal instead of what was asked for: the temperature",
        float(abs(cold / options.cold - 1)),
        0.2,
    )
    picoseconds = {
        stage: settings.steps * options.timestep / 1000 for stage, settings in options.stages().items()
    }
    held = "constant volume" if options.pressure is None else f"{options.pressure:g} GPa"
    method = (
        f"Melt-quench of {len(last)} atoms at {held}: {picoseconds['melt']:g} ps at {options.melt:g} K, cooled to"
        f" {options.cold:g} K in {picoseconds['quench']:g} ps, {picoseconds['anneal']:g} ps there; coordination within"
        " the first minimum of g(r)"
    )
    return MeltQuenchResult(
        atoms=last,
        rate_k_per_ps=options.rate,
        melt=melt,
        glass=glass,
        coordination=dict(sorted(coordination.items())),
        melt_displacement_ang=moved,
        density_g_per_cm3=_density(last),
        interrupted=False,
        provenance=Provenance(method, _CITATIONS, (check,), tuple(warnings)),
    )


def _frames(path: Path) -> list[ase.Atoms]:
    return list(iread(path, index=":", format="extxyz"))


def _density(atoms: ase.Atoms) -> float:
    return float(atoms.get_masses().sum() / atoms.get_volume() * 1.66053906660)
