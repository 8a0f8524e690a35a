"""Order in a trajectory: radial distribution functions and coordination numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import ase
import numpy as np
from ase.neighborlist import neighbor_list

from equipes.errors import InputError
from equipes.graph import AtomGraph


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
    counts = PairCounts(frames[0].numbers, reach, bins)
    for atoms in frames:
        counts.add(atoms)
    return counts.distributions()


class PairCounts:
    """Pairs of elements by distance, added up over frames.

    Args:
        numbers: `[N]`, atomic numbers.
        reach: Å.
        bins: how many.
    """

    def __init__(self, numbers: np.ndarray, reach: float, bins: int) -> None:
        self.reach = reach
        self.edges = np.linspace(0, reach, bins + 1)
        elements, self.kinds = np.unique(numbers, return_inverse=True)
        symbols = ase.Atoms(numbers=elements).get_chemical_symbols()
        order = np.argsort(symbols)  # pairs are named in alphabetical order
        rank = np.empty(len(order), dtype=int)
        rank[order] = np.arange(len(order))
        self.kinds = rank[self.kinds]
        self.symbols = [symbols[k] for k in order]
        self.sizes = np.bincount(self.kinds)
        self.frames = 0
        self.counts = np.zeros((len(order), len(order), bins), dtype=np.int64)
        self.inverse_volume = 0.0

    def add(self, atoms: ase.Atoms) -> None:
        """Count the pairs of one frame, periodic images included."""
        graph = AtomGraph.from_atoms(atoms, self.reach)
        lengths = graph.edge_vectors().norm(dim=1).numpy()
        first, second = self.kinds[graph.receiver.numpy()], self.kinds[graph.sender.numpy()]
        bins = len(self.edges) - 1
        place = np.minimum((lengths * (bins / self.reach)).astype(np.int64), bins - 1)
        size = len(self.symbols)
        flat = np.bincount((first * size + second) * bins + place, minlength=size * size * bins)
        self.counts += flat.reshape(self.counts.shape)
        self.frames += 1
        self.inverse_volume += 1 / atoms.get_volume()

    def distributions(self) -> list[RadialDistribution]:
        """g(r) of every pair."""
        shells = 4 / 3 * np.pi * np.diff(self.edges**3)
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        results = []
        for a, b in combinations_with_replacement(range(len(self.symbols)), 2):
            total = self.counts[a, b].astype(float)
            expected = self.sizes[a] * (self.sizes[b] - (a == b)) * self.inverse_volume * shells
            values = np.divide(total, expected, out=np.zeros(len(total)), where=expected > 0)
            peak, minimum = _first_shell(values)
            results.append(
                RadialDistribution(
                    pair=(self.symbols[a], self.symbols[b]),
                    distances_ang=middles,
                    values=values,
                    running=np.cumsum(total) / (self.sizes[a] * self.frames),
                    peak_ang=float(middles[peak]),
                    minimum_ang=float(middles[minimum]),
                )
            )
        return results

    def state(self) -> dict[str, np.ndarray]:
        """Everything to go on from, by name."""
        return {
            "pairs_frames": np.array(self.frames),
            "pairs_counts": self.counts,
            "pairs_inverse_volume": np.array(self.inverse_volume),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.frames, self.counts = int(state["pairs_frames"]), state["pairs_counts"]
        self.inverse_volume = float(state["pairs_inverse_volume"])


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
