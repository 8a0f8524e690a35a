"""Whether energies change by the work that forces and stress do: it tells a wrong unit or a wrong sign.

Between two similar structures with the same atoms, along a straight line in fractional coordinates s and cell C,

    dE = - sum_i F_i . (ds_i C) + V stress : (C^-1 dC)

whose integral by the trapezoid rule is exact up to third order in the change. The ratio of energy change and work is 1
for labels that belong together, whatever the material; -1, or a conversion factor, tells what is wrong. Molecules are
turned onto each other first (W. Kabsch, Acta Cryst. A 32, 922 (1976)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import units
from ase.geometry import complete_cell

from equipes.data.findings import Finding, labels
from equipes.data.frames import Frame

_MAX_DISPLACEMENT = 0.5  # Å, beyond it energies are not quadratic in any sense
_MAX_STRAIN = 0.05
_NO_STRAIN = 1e-8
_SOME_STRAIN = 1e-4
_NEIGHBOURS = 4
_MAX_PAIRS = 5_000
# Of molecules, whose frames may be shuffled, the nearest are looked for among so many frames and interatomic distances.
_SEARCHED = 1_000
_MAX_DISTANCES = 2_000
_MIN_PAIRS = 6
_AROUND = 0.3
_AGREEING = 0.5
_RIGHT = (0.5, 2.0)
_MATCH = 0.2

_FORCES_UNITS: Mapping[str, float] = {
    "kcal/mol/Ang": units.kcal / units.mol,
    "kJ/mol/Ang": units.kJ / units.mol,
    "Ha/Bohr": units.Hartree / units.Bohr,
    "Ha/Ang": units.Hartree,
    "meV/Ang": 1e-3,
}
_ENERGY_UNITS: Mapping[str, float] = {
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Ha": units.Hartree,
    "meV": 1e-3,
}
_STRESS_UNITS: Mapping[str, float] = {
    "GPa": units.GPa,
    "kbar": 0.1 * units.GPa,
    "Ha/Bohr^3": units.Hartree / units.Bohr**3,
    "meV/Ang^3": 1e-3,
}


@dataclass(frozen=True)
class WorkRatio:
    """Energy change per work, as the data has them.

    Attributes:
        ratio: 1 for consistent labels.
        agreement: share of the pairs, weighted by their work, whose own ratio is within 30 % of `ratio`.
        pairs: number of pairs of similar structures that it was measured on.
    """

    ratio: float
    agreement: float
    pairs: int

    @property
    def decided(self) -> bool:
        """Whether there are enough pairs and they agree."""
        return self.pairs >= _MIN_PAIRS and self.agreement >= _AGREEING

    @property
    def right(self) -> bool:
        """Whether the ratio is near 1: incomplete basis sets and large steps move it a little."""
        return _RIGHT[0] <= self.ratio <= _RIGHT[1]


def work_ratios(frames: Sequence[Frame]) -> tuple[WorkRatio | None, WorkRatio | None]:
    """The ratio for forces (pairs of equal cell) and for stress (pairs of slightly different cell).

    None where no two structures are similar enough.
    """
    of_forces: list[tuple[float, float, float]] = []
    of_stress: list[tuple[float, float, float]] = []
    for first, second in _similar_pairs(frames):
        change = second.energy - first.energy  # type: ignore[operator]  # only frames with energies are paired
        step = _Step.between(first, second)
        if step is None:
            continue
        if step.strain < _NO_STRAIN:
            of_forces.append((step.work_of_forces, change, step.displacement))
        elif step.strain > _SOME_STRAIN and step.work_of_stress is not None:
            of_stress.append((step.work_of_stress, change - step.work_of_forces, 0.0))
    return _ratio(of_forces), _ratio(of_stress)


def consistency_findings(frames: Sequence[Frame]) -> list[Finding]:
    """Warnings about files whose forces or stress do not belong to their energies."""
    findings = []
    for name, members in _files(frames).items():
        forces, stress = work_ratios(members)
        if forces is not None and forces.decided and not forces.right:
            message = f"{name}: {_told('forces', forces, _forces_suspects(members))}"
            findings.append(Finding("warning", "forces-unit", message, labels(members)))
        elif stress is not None and stress.decided and not stress.right:
            message = f"{name}: {_told('stress', stress, _stress_suspects())}"
            findings.append(Finding("warning", "stress-unit", message, labels(members)))
    return findings


def _forces_suspects(frames: Sequence[Frame]) -> dict[str, float]:
    """What may be wrong, and the ratio that it gives."""
    suspects = {f"the energies are in {unit}": 1 / factor for unit, factor in _ENERGY_UNITS.items()}
    sizes = {len(frame.atoms) for frame in frames}
    if len(sizes) == 1:
        suspects["the energies are per atom and should be total"] = 1 / sizes.pop()
    suspects["the forces have the opposite sign: set data.units.forces to -eV/Ang"] = -1.0
    for unit, factor in _FORCES_UNITS.items():
        suspects[f"the forces are in {unit}: set data.units.forces to {unit}"] = factor
        suspects[
            f"the forces are in {unit} with the opposite sign: set data.units.forces to -{unit}"
        ] = -factor
    return suspects


def _stress_suspects() -> dict[str, float]:
    suspects = {"the stress has the opposite sign: set data.units.stress to -eV/Ang^3": -1.0}
    for unit, factor in _STRESS_UNITS.items():
        suspects[f"the stress is in {unit}: set data.units.stress to {unit}"] = factor
        suspects[
            f"the stress is in {unit} with the opposite sign: set data.units.stress to -{unit}"
        ] = -factor
    return suspects


def _told(quantity: str, measured: WorkRatio, suspects: Mapping[str, float]) -> str:
    text = (
        f"between similar structures the energy changes by {measured.ratio:.3g} times the work of the {quantity} "
        f"({measured.pairs} pairs), where it should be 1"
    )
    distance = {
        what: abs(np.log(measured.ratio / ratio))
        for what, ratio in suspects.items()
        if measured.ratio * ratio > 0
    }
    nearest = min(distance, key=lambda what: distance[what], default=None)
    if nearest is None or distance[nearest] > _MATCH:
        return f"{text}; check units and sign of energy, forces and stress, and data.units"
    return f"{text}; perhaps {nearest}"


def _files(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Frames by file, so that one wrong file shows; files of few frames (one calculation each) together."""
    files: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: (frame.source, frame.index)):
        if frame.energy is not None and frame.forces is not None and _finite(frame):
            files.setdefault(frame.source, []).append(frame)
    small = [name for name, members in files.items() if len(members) <= _MIN_PAIRS]
    if len(small) > 1:
        together = [frame for name in small for frame in files.pop(name)]
        files[f"{small[0]} … {small[-1]}"] = together
    return files


def _finite(frame: Frame) -> bool:
    values = (frame.energy, frame.forces, frame.stress, frame.atoms.positions, frame.atoms.cell.array)
    return all(np.isfinite(value).all() for value in values if value is not None)


def _similar_pairs(frames: Sequence[Frame]) -> Iterator[tuple[Frame, Frame]]:
    """Pairs that are near in the order of the file or in volume."""
    groups: dict[bytes, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.atoms.numbers.tobytes() + frame.atoms.pbc.tobytes(), []).append(frame)
    pairs: list[tuple[Frame, Frame]] = []
    for members in groups.values():
        by_volume = np.argsort(
            [abs(np.linalg.det(frame.atoms.cell.array)) for frame in members], kind="stable"
        )
        near = {
            (min(order[i], order[i + step]), max(order[i], order[i + step]))
            for order in (range(len(members)), by_volume.tolist())
            for step in range(1, _NEIGHBOURS + 1)
            for i in range(len(members) - step)
        }
        if not members[0].atoms.pbc.any():
            near |= _alike(members)
        pairs += [(members[i], members[j]) for i, j in sorted(near)]
    # Of very many pairs an even choice is enough.
    yield from pairs[:: max(1, len(pairs) // _MAX_PAIRS)]


def _alike(members: Sequence[Frame]) -> set[tuple[int, int]]:
    """Pairs of molecules with nearly equal distances between their atoms, wherever they stand in the file."""
    n_atoms = len(members[0].atoms)
    chosen = np.arange(len(members))[:: max(1, -(-len(members) // _SEARCHED))]
    first, second = np.triu_indices(n_atoms, k=1)
    if len(first) == 0 or len(first) > _MAX_DISTANCES or len(chosen) < 2:
        return set()
    positions = np.stack([members[i].atoms.positions for i in chosen])
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=2)
    distances -= distances.mean(axis=0)
    sizes = (distances**2).sum(axis=1)
    apart = sizes[:, None] + sizes - 2 * distances @ distances.T
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :_NEIGHBOURS]
    return {
        (int(min(chosen[i], chosen[j])), int(max(chosen[i], chosen[j])))
        for i, row in enumerate(nearest)
        for j in row
    }


def _turned(second: Frame, first: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Positions (around their mean) and forces of the second molecule, turned onto the first."""
    there = second.atoms.positions - second.atoms.positions.mean(axis=0)
    here = first.atoms.positions - first.atoms.positions.mean(axis=0)
    left, _, right = np.linalg.svd(there.T @ here)
    left[:, -1] *= np.sign(np.linalg.det(left @ right))
    rotation = left @ right
    return there @ rotation, second.forces @ rotation


@dataclass(frozen=True)
class _Step:
    displacement: float
    strain: float
    work_of_forces: float
    work_of_stress: float | None

    @classmethod
    def between(cls, first: Frame, second: Frame) -> _Step | None:
        """The work along the straight line between two structures; None where they are too different."""
        atoms = first.atoms
        if atoms.pbc.any():
            cells = [complete_cell(frame.atoms.cell.array) for frame in (first, second)]
            if min(abs(np.linalg.det(cell)) for cell in cells) == 0:
                return None
        else:
            cells = [np.eye(3), np.eye(3)]
        inverses = [np.linalg.inv(cell) for cell in cells]
        gradients = [inverse @ (cells[1] - cells[0]) for inverse in inverses]
        strain = float(np.abs(gradients[0]).max())
        if strain > _MAX_STRAIN:
            return None
        positions, last = second.atoms.positions, second.forces
        if not atoms.pbc.any():
            positions, last = _turned(second, first)
        change = positions @ inverses[1] - atoms.positions @ inverses[0]
        change -= np.round(change) * atoms.pbc
        change -= change.mean(axis=0)
        steps = [change @ cell for cell in cells]
        displacement = float(np.abs(steps[0]).max())
        if displacement > _MAX_DISPLACEMENT:
            return None
        forces = [np.vdot(end, step) for end, step in zip((first.forces, last), steps, strict=True)]
        work_of_stress = None
        if first.stress is not None and second.stress is not None:
            ends = zip((first, second), cells, gradients, strict=True)
            work_of_stress = 0.5 * float(
                sum(
                    abs(np.linalg.det(cell)) * np.vdot(frame.stress, gradient)
                    for frame, cell, gradient in ends
                )
            )
        return cls(displacement, strain, -0.5 * float(sum(forces)), work_of_stress)


def _ratio(pairs: Sequence[tuple[float, float, float]]) -> WorkRatio | None:
    """The ratio that minimises the sum of |change - ratio * work|: the median weighted by |work|.

    Of the (work, change, size of the step) the nearer half counts: the error of the trapezoid rule is of third order in
    the size. Steps of the same size count all.
    """
    work, change, size = np.array(pairs).reshape(-1, 3).T
    change, work, size = (values[work != 0] for values in (change, work, size))
    if len(work) == 0:
        return None
    near = size <= np.sort(size)[min(len(size), max(2 * _MIN_PAIRS, -(-len(size) // 2))) - 1]
    change, work = change[near], work[near]
    order = np.argsort(change / work)
    ratios, weights = (change / work)[order], np.abs(work)[order]
    total = np.cumsum(weights)
    median = ratios[np.searchsorted(total, total[-1] / 2)]
    agreeing = weights[np.abs(ratios - median) < _AROUND * abs(median)].sum() / total[-1]
    return WorkRatio(float(median), float(agreeing), len(work))
