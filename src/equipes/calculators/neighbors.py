"""A neighbour list with a skin: built a little too far, used until an atom may have crossed the margin."""

from __future__ import annotations

from functools import cached_property

import ase
import numpy as np
import torch
from ase.geometry import complete_cell

from equipes.graph import AtomGraph


class SkinnedNeighbors:
    """Graphs of one structure as it moves, from a neighbour list collected up to `cutoff + skin` (Verlet, 1967).

    With a `device` the lists are collected for it and stay there; the graphs are on the CPU.

    The list is used again as long as no pair that it lacks can have come closer than the cutoff, and the graph handed
    out holds exactly the edges shorter than the cutoff, in the order that a fresh list has. So a result never depends
    on which structures came before: a simulation continued from a file repeats the uninterrupted one bit for bit.
    """

    def __init__(self, cutoff: float, skin: float, device: torch.device | str = "cpu") -> None:
        self.cutoff = cutoff
        self.skin = skin
        self.device = device
        self.builds = 0
        self._list: NeighborList | None = None

    def graph(self, atoms: ase.Atoms) -> AtomGraph:
        """The graph of `atoms` with all edges shorter than the cutoff; raises what `AtomGraph.from_atoms` raises."""
        return self._within_cutoff(atoms, self.list_of(atoms))

    def list_of(self, atoms: ase.Atoms) -> NeighborList:
        """A list with at least all edges shorter than the cutoff, for who leaves out the others himself."""
        if self._list is None or not self._covers(atoms, self._list):
            self._list = None  # stays so when the structure is refused
            self._list = NeighborList(
                atoms, AtomGraph.from_atoms(atoms, self.cutoff + self.skin, self.device)
            )
            self.builds += 1
        return self._list

    def _covers(self, atoms: ase.Atoms, old: NeighborList) -> bool:
        """Whether a list still holds every pair closer than the cutoff.

        With a cell that deforms by F (h = h0 F), x_i = (x0_i + d_i) F, a pair that the list lacks had
        |r0| >= cutoff + skin and is now at |r| = |(r0 + d_j - d_i) F| >= s (cutoff + skin - 2 max|d|), where s is the
        smallest singular value of F.
        """
        if not (np.array_equal(atoms.numbers, old.numbers) and np.array_equal(atoms.pbc, old.pbc)):
            return False
        smallest_stretch, displacements = 1.0, atoms.positions - old.positions
        cell = atoms.cell.array
        if atoms.pbc.any() and not np.array_equal(cell, old.cell):
            # Where there is no lattice vector no image is ever taken, so any completion of the cell serves.
            deformation = np.linalg.solve(complete_cell(old.cell), complete_cell(cell))
            smallest_stretch = float(np.linalg.svd(deformation, compute_uv=False)[-1])
            if not smallest_stretch * (self.cutoff + self.skin) >= self.cutoff:
                return False  # also of a cell so flat that the next line could not be solved
            displacements = np.linalg.solve(deformation.T, atoms.positions.T).T - old.positions
        farthest = float(np.sqrt(np.einsum("ni,ni->n", displacements, displacements).max()))
        # Written so that a position that is not a number asks for a new list, which then names the atom.
        return bool(smallest_stretch * (self.cutoff + self.skin - 2 * farthest) >= self.cutoff)

    def _within_cutoff(self, atoms: ase.Atoms, known: NeighborList) -> AtomGraph:
        # In NumPy, because for small structures the calls cost more than the arithmetic, and these are cheaper.
        x, cell = atoms.positions.copy(), atoms.cell.array.copy()
        vectors = x.take(known.sender, axis=0) - x.take(known.receiver, axis=0)
        if known.crosses_boundaries:
            vectors += known.shift @ cell
        near = np.einsum("ei,ei->e", vectors, vectors) < self.cutoff**2
        kept = near.nonzero()[0]
        # How many of the first k edges are near: the new place of an edge, and of the rows' ends.
        count = np.zeros(len(near) + 1, dtype=np.int64)
        np.cumsum(near, out=count[1:])
        by_sender = known.sender_order.compress(near.take(known.sender_order))
        tensor = torch.from_numpy
        return AtomGraph(
            positions=tensor(x),
            numbers=known.graph.numbers.cpu(),
            cell=tensor(cell).unsqueeze(0),
            pbc=known.graph.pbc.cpu(),
            structure=known.graph.structure.cpu(),
            receiver=tensor(known.receiver.take(kept)),
            sender=tensor(known.sender.take(kept)),
            shift=tensor(known.shift.take(kept, axis=0)),
            row_pointer=tensor(count.take(known.row_pointer)),
            sender_order=tensor(count.take(by_sender)),
            cutoff=self.cutoff,
        )


class NeighborList:
    """A list of neighbours and the structure that it was collected for, as NumPy arrays if asked (see `AtomGraph`)."""

    def __init__(self, atoms: ase.Atoms, graph: AtomGraph) -> None:
        self.graph = graph
        self.numbers, self.pbc = atoms.numbers.copy(), atoms.pbc.copy()
        self.positions, self.cell = atoms.positions.copy(), atoms.cell.array.copy()

    @cached_property
    def receiver(self) -> np.ndarray:
        return self.graph.receiver.cpu().numpy()

    @cached_property
    def sender(self) -> np.ndarray:
        return self.graph.sender.cpu().numpy()

    @cached_property
    def shift(self) -> np.ndarray:
        return self.graph.shift.cpu().numpy()

    @cached_property
    def crosses_boundaries(self) -> bool:
        return bool(self.shift.any())

    @cached_property
    def row_pointer(self) -> np.ndarray:
        return self.graph.row_pointer.cpu().numpy()

    @cached_property
    def sender_order(self) -> np.ndarray:
        return self.graph.sender_order.cpu().numpy()
