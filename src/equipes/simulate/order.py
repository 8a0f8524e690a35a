"""Order in a trajectory: radial distribution functions and coordination numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import ase
import numpy as np
from ase.neighborlist import neighbor_list

from equipes.errors import InputError


@dataclass(frozen=True)
class RadialDistribution:
    """g(r) of a pair of elements, averaged over frames.

    Attributes:
        pair: the two symbols.
        distances_ang, values: `[R]`, middles of bins, and g there (1 without any order).
        running: `[R]`, the mean number of atoms of the second element within the end of each bin, around one of the
            first.
        peak_ang: where g is largest.
        minimum_ang: the first minimum behind the first peak, where neighbours end.
    """

    pair: tuple[str, str]
    distances_ang: np.ndarray
    values: np.ndarray
    running: np.ndarray
    peak_ang: float
    minimum_ang: float

    @property
    def coordination(self) -> float:
        """The mean number of neighbours, within the first minimum."""
        return float(self.running[int(np.searchsorted(self.distances_ang, self.minimum_ang))])


def radial_distributions(
    frames: Sequence[ase.Atoms], *, reach: float = 6.0, bins: int = 120
) -> list[RadialDistribution]:
    """g(r) of every pair of elements up to `reach` (Å), also beyond half of a small cell.

    Raises `InputError` without frames, for structures that are not periodic in all directions, or a reach or number of
    bins that makes no sense.
    """
    if not frames or not all(atoms.pbc.all() and atoms.cell.rank == 3 for atoms in frames):
        raise InputError("radial distributions need frames that are periodic in all three directions")
    if not (0 < reach < 30 and bins >= 10):
        raise InputError(f"the reach must lie between 0 and 30 Å with at least 10 bins, not {reach}, {bins}")
    edges = np.linspace(0, reach, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    symbols = sorted(set(frames[0].get_chemical_symbols()))
    numbers = {symbol: ase.Atoms(symbol).numbers[0] for symbol in symbols}
    counts = {pair: np.zeros(bins) for pair in combinations_with_replacement(symbols, 2)}
    expected = {pair: np.zeros(bins) for pair in counts}
    for atoms in frames:
        first, second, lengths = neighbor_list("ijd", atoms, reach)
        for (a, b), total in counts.items():
            chosen = (atoms.numbers[first] == numbers[a]) & (atoms.numbers[second] == numbers[b])
            total += np.histogram(lengths[chosen], edges)[0]
            n_a, n_b = (int((atoms.numbers == numbers[symbol]).sum()) for symbol in (a, b))
            expected[a, b] += n_a * (n_b - (a == b)) / atoms.get_volume() * shells
    results = []
    middles = (edges[1:] + edges[:-1]) / 2
    for (a, b), total in counts.items():
        values = np.divide(total, expected[a, b], out=np.zeros(bins), where=expected[a, b] > 0)
        around = sum(int((atoms.numbers == numbers[a]).sum()) for atoms in frames)
        peak, minimum = _first_shell(values)
        results.append(
            RadialDistribution(
                pair=(a, b),
                distances_ang=middles,
                values=values,
                running=np.cumsum(total) / around,
                peak_ang=float(middles[peak]),
                minimum_ang=float(middles[minimum]),
            )
        )
    return results


def coordination_numbers(atoms: ase.Atoms, centre: str, around: str, cutoff: float) -> np.ndarray:
    """How many atoms `around` lie within `cutoff` (Å) of each atom `centre`, `[N of centre]`.

    >>> from ase.build import bulk
    >>> coordination_numbers(bulk("Si", cubic=True), "Si", "Si", 2.6)
    array([4, 4, 4, 4, 4, 4, 4, 4])
    """
    first, second = neighbor_list("ij", atoms, cutoff)
    symbols = np.array(atoms.get_chemical_symbols())
    found = np.bincount(first[symbols[second] == around], minlength=len(atoms))
    return found[symbols == centre]


def _first_shell(values: np.ndarray) -> tuple[int, int]:
    """Indices of the first peak and of the lowest place between it and the next rise to half of it."""
    smooth = np.convolve(values, np.ones(3) / 3, mode="same")
    above = np.flatnonzero(smooth > 0.5 * smooth.max()) if smooth.max() > 0 else np.array([0])
    start = int(above[0])
    end = start
    while end + 1 < len(smooth) and smooth[end + 1] > 0.5 * smooth.max():
        end += 1
    peak = start + int(values[start : end + 1].argmax())
    behind = smooth[end:]
    rises = np.flatnonzero(behind > behind[: max(1, len(behind) // 2)].min() + 0.3)
    later = rises[rises > int(behind[: max(1, len(behind) // 2)].argmin())]
    stop = end + int(later[0]) if len(later) else len(smooth)
    minimum = end + int(smooth[end:stop].argmin()) if stop > end else end
    return peak, minimum
