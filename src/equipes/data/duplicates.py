"""Finding structures that stand in the data more than once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ase
import numpy as np
from ase.geometry import complete_cell
from scipy.spatial import cKDTree

from equipes.data.findings import Finding, some
from equipes.data.frames import Frame

# Files keep four decimals at least; frames of one trajectory differ by more.
TOLERANCE = 2e-4
# Enough numbers to tell even slightly rattled crystals apart before all coordinates are compared.
_PROJECTIONS = 8
# Rounding errors of M coordinates add up to about their size in a unit-variance projection divided by sqrt(M).
_MARGIN = 10.0


def duplicate_pairs(structures: Sequence[ase.Atoms]) -> list[tuple[int, int]]:
    """Pairs (first occurrence, repetition) of the same geometry, ordered by the repetition.

    Same means: the same elements in the same order, and positions and cell equal within `TOLERANCE` after a common
    translation and up to lattice vectors. Rotated copies and copies with permuted atoms are not found.
    """
    first: dict[bytes, int] = {}
    pairs = []
    groups: dict[bytes, list[int]] = {}
    for index, atoms in enumerate(structures):
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            continue
        kind = atoms.numbers.tobytes() + atoms.pbc.tobytes()
        exact = kind + atoms.positions.tobytes() + atoms.cell.array.tobytes()
        earlier = first.setdefault(exact, index)
        if earlier != index:
            pairs.append((earlier, index))
        else:
            groups.setdefault(kind, []).append(index)
    for members in groups.values():
        if len(members) > 1:
            pairs += _near_pairs(structures, members)
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def _near_pairs(structures: Sequence[ase.Atoms], members: Sequence[int]) -> list[tuple[int, int]]:
    size = _coordinates(structures[members[0]]).size
    directions = np.random.default_rng(0).standard_normal((size, _PROJECTIONS)) / np.sqrt(size)
    points = np.array([_coordinates(structures[index]) @ directions for index in members])
    candidates = cKDTree(points).query_pairs(
        _MARGIN * TOLERANCE * np.sqrt(_PROJECTIONS), output_type="ndarray"
    )
    pairs = {}
    for i, j in sorted(map(tuple, candidates)):
        a, b = members[i], members[j]
        if (
            b not in pairs
            and np.abs(_coordinates(structures[a]) - _coordinates(structures[b])).max() < TOLERANCE
        ):
            pairs[b] = a
    return [(a, b) for b, a in pairs.items()]


def _coordinates(atoms: ase.Atoms) -> np.ndarray:
    """Coordinates in Å that do not change when all atoms move together or an atom moves by a lattice vector."""
    if not atoms.pbc.any():
        return (atoms.positions - atoms.positions[0]).ravel()
    cell = complete_cell(atoms.cell.array)
    lengths = np.linalg.norm(cell, axis=1)
    # The pseudo-inverse, because cells without a volume are for another check to complain about.
    fractional = (atoms.positions - atoms.positions[0]) @ np.linalg.pinv(cell)
    angles = 2 * np.pi * fractional
    radii = lengths / (2 * np.pi)
    on_circles = np.stack([radii * np.cos(angles), radii * np.sin(angles)])
    on_lines = np.stack([lengths * fractional, np.zeros_like(fractional)])
    return np.concatenate(
        [np.where(atoms.pbc, on_circles, on_lines).ravel(), atoms.cell.array[atoms.pbc].ravel()]
    )


def duplicate_findings(splits: Mapping[str, Sequence[Frame]]) -> list[Finding]:
    """An error for geometries shared by two splits, a warning for those repeated within one."""
    frames = [frame for members in splits.values() for frame in members]
    split = [name for name, members in splits.items() for _ in members]
    across: dict[tuple[str, str], list[tuple[Frame, Frame]]] = {}
    within: dict[str, list[tuple[Frame, Frame]]] = {}
    for a, b in duplicate_pairs([frame.atoms for frame in frames]):
        if split[a] == split[b]:
            within.setdefault(split[a], []).append((frames[a], frames[b]))
        else:
            across.setdefault((split[a], split[b]), []).append((frames[a], frames[b]))
    findings = [
        Finding(
            "error",
            "duplicates-across-splits",
            f"{len(pairs)} frames of {second} are in {first} too: {_equations(pairs)}; "
            "remove them from one of the two, or errors will look smaller than they are",
            tuple(frame.label for pair in pairs for frame in pair),
        )
        for (first, second), pairs in across.items()
    ]
    findings += [
        Finding(
            "warning",
            "duplicates",
            f"{name}: {len(pairs)} frames repeat the geometry of another: {_equations(pairs)}{_disagreement(pairs)}",
            tuple(frame.label for pair in pairs for frame in pair),
        )
        for name, pairs in within.items()
    ]
    return findings


def _equations(pairs: Sequence[tuple[Frame, Frame]]) -> str:
    if len({frame.source for pair in pairs for frame in pair}) == 1:
        return some([f"frame {b.index} = {a.index}" for a, b in pairs]) + f" of {pairs[0][0].source}"
    return some([f"{b.label} = {a.label}" for a, b in pairs])


def _disagreement(pairs: Sequence[tuple[Frame, Frame]]) -> str:
    differences = [
        abs(a.energy - b.energy) for a, b in pairs if a.energy is not None and b.energy is not None
    ]
    largest = max(differences, default=0.0)
    return f"; their energies differ by up to {largest:.3g} eV" if largest > 1e-3 else ""
