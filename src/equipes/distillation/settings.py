"""What a distillation is, and which geometries the teacher is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.data import mean_neighbors
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.sampling import (
    DefectOptions,
    DynamicsOptions,
    NormalModeOptions,
    Part,
    Sample,
    StrainOptions,
    defects,
    dynamics,
    normal_modes,
    strains,
)
from equipes.sampling.defects import Defect
from equipes.sampling.sample import bare

_FRAMES_OF_WALK = 25
_WIDTH = 1.6  # times the cutoff of the student: the least width of a supercell
_LARGEST_CELL = 400  # atoms
_CUTOFFS = (4.5, 5.0, 5.5, 6.0)  # Å
_FEWEST_NEIGHBOURS = 20
_LIGHT = 3.0  # u; hydrogen moves faster than anything else
# Fractions of the frames. Dynamics gets what is left.
_STRAINS, _DEFECTS, _MODES = 0.15, 0.25, 0.25


@dataclass(frozen=True)
class DistillationOptions:
    """Sampling, the student, and its test.

    Attributes:
        frames: geometries for the teacher to label.
        temperatures: K, of the dynamics.
        strain: largest strain of cells; dynamics takes place in cells strained half as much.
        defects: kinds, of a crystal; empty for none.
        supercell: repetitions of the structure; None makes it 1.6 times as wide as the student's cutoff.
        timestep: fs; None is 1 with hydrogen and 2 without.
        student: settings of its training, such as `model.num_features=16` or `train.max_steps=20000`.
        minutes: budget of the training.
        test_picoseconds: length of each run of the student's own dynamics.
        test_frames: of each held-out trajectory.
        seed: of everything random.
    """

    frames: int = 500
    temperatures: tuple[float, ...] = (300.0, 650.0, 1000.0)
    strain: float = 0.04
    defects: tuple[Defect, ...] = ("vacancy", "interstitial")
    supercell: tuple[int, int, int] | None = None
    timestep: float | None = None
    student: tuple[str, ...] = ()
    minutes: float = 10.0
    test_picoseconds: float = 10.0
    test_frames: int = 10
    seed: int = 0

    def check(self) -> None:
        """Raises `InputError` for numbers without sense."""
        if self.frames < 20:
            raise InputError(f"{self.frames} frames are too few to learn from; give 20 or more")
        if not self.temperatures or not all(np.isfinite(t) and t > 0 for t in self.temperatures):
            raise InputError(f"temperatures must be above 0 K, not {list(self.temperatures)}")
        for name in ("minutes", "test_picoseconds", "test_frames"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.timestep is not None and not (np.isfinite(self.timestep) and self.timestep > 0):
            raise InputError(f"the time step must be above 0 fs, not {self.timestep}")
        if self.supercell is not None and min(self.supercell) < 1:
            raise InputError(f"a supercell has 1 or more repetitions each way, not {self.supercell}")

    def test_temperatures(self) -> tuple[float, ...]:
        """Both ends of the range, and two between them: K.

        >>> DistillationOptions(temperatures=(300.0, 650.0, 1000.0)).test_temperatures()
        (300.0, 533.0, 767.0, 1000.0)
        """
        ends = min(self.temperatures), max(self.temperatures)
        return tuple(dict.fromkeys(float(t) for t in np.linspace(*ends, 4).round()))

    def timestep_for(self, atoms: ase.Atoms) -> float:
        """fs."""
        if self.timestep is not None:
            return self.timestep
        return 1.0 if atoms.get_masses().min() < _LIGHT else 2.0


def is_crystal(atoms: ase.Atoms) -> bool:
    """Whether it is periodic in all three directions."""
    return bool(atoms.pbc.all() and atoms.cell.rank == 3)


def student_cutoff(atoms: ase.Atoms, teacher: float | None) -> float:
    """4.5 Å, or as much more (to 6 Å, and not beyond the teacher's) as gives atoms of a crystal twenty neighbours."""
    cutoffs = [cutoff for cutoff in _CUTOFFS if teacher is None or cutoff <= teacher] or [float(teacher or 0)]
    for cutoff in cutoffs:
        if (
            not is_crystal(atoms)
            or mean_neighbors([AtomGraph.from_atoms(atoms, cutoff)]) >= _FEWEST_NEIGHBOURS
        ):
            return cutoff
    return cutoffs[-1]


def supercell_for(atoms: ase.Atoms, options: DistillationOptions, cutoff: float) -> ase.Atoms:
    """The crystal repeated until no pair of its faces is nearer than 1.6 cutoffs; other structures stay as they are.

    Raises:
        InputError: a supercell of more than 400 atoms.
    """
    if not is_crystal(atoms):
        if options.supercell is not None and options.supercell != (1, 1, 1):
            raise InputError(
                "only a crystal, periodic in all three directions, has a supercell; leave it out"
            )
        return bare(atoms)
    repeats = options.supercell
    if repeats is None:
        widths = 1 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
        first, second, third = (max(1, int(np.ceil(_WIDTH * cutoff / width - 1e-6))) for width in widths)
        repeats = (first, second, third)
    cell = bare(atoms).repeat(repeats)
    if len(cell) > _LARGEST_CELL:
        raise InputError(
            f"the supercell {'x'.join(map(str, repeats))} has {len(cell)} atoms, more than the {_LARGEST_CELL} that "
            "can be labelled in reasonable time; give a smaller --supercell or structure"
        )
    return cell


def sampling_parts(cell: ase.Atoms, options: DistillationOptions) -> list[Part]:
    """What to label: strained cells, dynamics and defects of a crystal; dynamics and normal modes of others."""
    parts: list[Part] = []
    left = options.frames
    if is_crystal(cell):
        share = round(_STRAINS * options.frames)
        strained = StrainOptions(count=share, largest=options.strain)
        parts.append(Part("strains", share, partial(_strains, cell, strained)))
        left -= share
        if options.defects:
            share = round(_DEFECTS * options.frames)
            parts += _pieces("defects", share, options, partial(_defective_walk, cell, options))
            left -= share
    else:
        share = round(_MODES * options.frames)
        modes = NormalModeOptions(count=share, temperatures=options.temperatures)
        parts.append(Part("normal modes", share, partial(_modes, cell, modes)))
        left -= share
    return parts + _pieces("dynamics", left, options, partial(_walk, cell, options))


def walk_options(
    cell: ase.Atoms, options: DistillationOptions, temperature: float, count: int
) -> DynamicsOptions:
    """Dynamics with a frame every ten steps."""
    step = options.timestep_for(cell)
    return DynamicsOptions(
        count=count, temperature=temperature, timestep=step, interval=10, settle=round(100 / step)
    )


def _pieces(name: str, total: int, options: DistillationOptions, walk: partial[Sample]) -> list[Part]:
    """Parts of about 25 frames, one for each temperature at least; they take temperatures and defects in turns."""
    count = max(len(options.temperatures), round(total / _FRAMES_OF_WALK))
    shares = [len(share) for share in np.array_split(np.arange(total), count)]
    return [Part(f"{name} {n}", share, partial(walk, n, share)) for n, share in enumerate(shares) if share]


def _turn(options: DistillationOptions, number: int) -> float:
    """The hottest first, which are the hardest to learn, where the turns do not come out even."""
    return sorted(options.temperatures, reverse=True)[number % len(options.temperatures)]


def _walk(
    cell: ase.Atoms,
    options: DistillationOptions,
    number: int,
    count: int,
    calculator: BaseCalculator,
    rng: np.random.Generator,
) -> Sample:
    """Dynamics in a cell that is strained a little, so that the student knows pressure at every temperature."""
    temperature = _turn(options, number)
    atoms = bare(cell)
    if is_crystal(cell):
        # Crystals expand when they are heated.
        dilation = np.eye(3) * rng.uniform(-0.25, 0.5) * options.strain
        shear = rng.uniform(-1, 1, (3, 3)) * options.strain / 8
        atoms.set_cell(cell.cell.array @ (np.eye(3) + dilation + 0.5 * (shear + shear.T)), scale_atoms=True)
    return dynamics(atoms, calculator, walk_options(cell, options, temperature, count), rng)


def _defective_walk(
    cell: ase.Atoms,
    options: DistillationOptions,
    number: int,
    count: int,
    calculator: BaseCalculator,
    rng: np.random.Generator,
) -> Sample:
    kinds: Sequence[Defect] = options.defects
    temperature = _turn(options, number)
    own = DefectOptions(
        kinds=tuple(kinds[(number + turn) % len(kinds)] for turn in range(len(kinds))),
        cells=min(2, count),
        dynamics=walk_options(cell, options, temperature, count),
    )
    return defects(cell, calculator, own, rng)


def _strains(
    cell: ase.Atoms, options: StrainOptions, calculator: BaseCalculator, rng: np.random.Generator
) -> Sample:
    return strains(cell, calculator, options, rng)


def _modes(
    cell: ase.Atoms, options: NormalModeOptions, calculator: BaseCalculator, rng: np.random.Generator
) -> Sample:
    return normal_modes(cell, calculator, options, rng)
