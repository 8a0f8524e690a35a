"""What a run of molecular dynamics learns about its atoms as it goes, without its trajectory.

Radial distributions are counts, added up. The mean-square displacement over all times from one sample to the whole run
is that of a multiple-tau correlator (J. Ramírez, S. K. Sukumaran, B. Vorselaars, A. E. Likhtman, J. Chem. Phys. 133,
154103, 2010): level k remembers the last positions of every 2^k-th sample, so memory and work grow with the logarithm
of the length of the run.
"""

from __future__ import annotations

import ase
import numpy as np

from equipes.simulate.order import PairCounts, RadialDistribution

_REMEMBERED = 16  # positions on each level
_BINS_PER_ANGSTROM = 20


class Observables:
    """Accumulates over samples of one structure; its state is arrays, so that a run goes on exactly.

    Args:
        atoms: the structure at the start.
        reach: of the radial distributions, Å; 0, and a structure that is not periodic all around, has none.
        first: the step from which samples count.
    """

    def __init__(self, atoms: ase.Atoms, *, reach: float, first: int) -> None:
        self.first = first
        bulk = bool(atoms.pbc.all() and atoms.cell.rank == 3)
        self.pairs = (
            PairCounts(atoms.numbers, reach, max(10, round(_BINS_PER_ANGSTROM * reach)))
            if bulk and reach > 0
            else None
        )
        self.displacements = Displacements(atoms)

    def sample(self, step: int, atoms: ase.Atoms) -> None:
        """Take notice of the atoms as they are; before the first step that counts, nothing happens."""
        if step < self.first:
            return
        if self.pairs is not None:
            self.pairs.add(atoms)
        self.displacements.add(atoms)

    def radial_distributions(self) -> list[RadialDistribution]:
        """g(r) of every pair of elements; empty without samples."""
        return [] if self.pairs is None or self.pairs.frames == 0 else self.pairs.distributions()

    def state(self) -> dict[str, np.ndarray]:
        """Everything to go on from, by name."""
        own = {"first": np.array(self.first), **self.displacements.state()}
        return own if self.pairs is None else {**own, **self.pairs.state()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.first = int(state["first"])
        self.displacements.restore(state)
        if self.pairs is not None:
            self.pairs.restore(state)


class Displacements:
    """Mean-square displacements by element over lags that double, after the motion of the centre of mass.

    Positions are followed in fractions of the cell, so that one that breathes moves nobody.
    """

    def __init__(self, atoms: ase.Atoms) -> None:
        self.masses = atoms.get_masses()
        self.elements, self.kinds = np.unique(atoms.numbers, return_inverse=True)
        self.sizes = np.bincount(self.kinds)
        self.periodic = atoms.cell.rank == 3
        self.samples = 0
        self.last: np.ndarray | None = None
        self.place = np.zeros((len(atoms), 3))
        self.levels: list[np.ndarray] = []  # [n, N, 3] on each level, the newest last
        self.sums = np.zeros((0, _REMEMBERED, len(self.elements)))  # Å², by level and steps back
        self.counts = np.zeros((0, _REMEMBERED), dtype=np.int64)

    def add(self, atoms: ase.Atoms) -> None:
        """The next sample; between two of them every atom moved as its unwrapped positions say."""
        now = atoms.cell.scaled_positions(atoms.positions) if self.periodic else atoms.positions.copy()
        if self.last is not None:
            moved = now - self.last
            self.place = self.place + (moved @ atoms.cell.array if self.periodic else moved)
        self.last = now
        place = self.place - self.masses @ self.place / self.masses.sum()
        level = 0
        while self.samples % (1 << level) == 0 and (level == 0 or self.samples >= 1 << level):
            if level == len(self.levels):
                self._open(level)
            self._correlate(level, place)
            level += 1
        self.samples += 1

    def _open(self, level: int) -> None:
        """A level that begins with the very first sample, which is still the oldest on the level below."""
        self.levels.append(self.levels[level - 1][:1] if level else np.zeros((0, *self.place.shape)))
        self.sums = np.concatenate([self.sums, np.zeros((1, *self.sums.shape[1:]))])
        self.counts = np.concatenate([self.counts, np.zeros((1, _REMEMBERED), dtype=np.int64)])

    def _correlate(self, level: int, place: np.ndarray) -> None:
        past = self.levels[level][::-1]
        squared = ((place - past) ** 2).sum(axis=2)  # [n, N]
        for back, values in enumerate(squared):
            self.sums[level, back] += np.bincount(self.kinds, values, len(self.elements)) / self.sizes
            self.counts[level, back] += 1
        self.levels[level] = np.concatenate([self.levels[level], place[None]])[-_REMEMBERED:]

    def result(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Lags in samples, `[L]`, and the mean-square displacement in Å² of each element, `[L]`."""
        lags, values = [], []
        for level, counts in enumerate(self.counts):
            # The lags of the lower half are known from the level below, which has twice the origins.
            for back in range(0 if level == 0 else _REMEMBERED // 2, _REMEMBERED):
                if counts[back]:
                    lags.append((back + 1) << level)
                    values.append(self.sums[level, back] / counts[back])
        table = np.array(values).reshape(len(lags), len(self.elements))
        symbols = ase.Atoms(numbers=self.elements).get_chemical_symbols()
        return np.array(lags), {symbol: table[:, k] for k, symbol in enumerate(symbols)}

    def state(self) -> dict[str, np.ndarray]:
        """Everything to go on from, by name."""
        known = {} if self.last is None else {"moved_last": self.last}
        levels = {f"moved_level_{number}": places for number, places in enumerate(self.levels)}
        return {
            "moved_samples": np.array(self.samples),
            "moved_place": self.place,
            "moved_sums": self.sums,
            "moved_counts": self.counts,
            **known,
            **levels,
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Undo `state`."""
        self.samples = int(state["moved_samples"])
        self.place, self.last = state["moved_place"], state.get("moved_last")
        self.sums, self.counts = state["moved_sums"], state["moved_counts"]
        self.levels = [state[f"moved_level_{number}"] for number in range(len(self.counts))]
