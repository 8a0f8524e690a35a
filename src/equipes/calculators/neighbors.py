"""A neighbour list with a skin: built a little too far, used until an atom may have crossed the margin."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import torch
from ase.geometry import complete_cell

from equipes.graph import AtomGraph


class SkinnedNeighbors:
    """Graphs of one structure as it moves, from a neighbour list collected up to `cutoff + skin` (Verlet, 1967).

    The list is used again as long as no pair that it lacks can have come closer than the cutoff, and the graph handed
    out holds exactly the edges shorter than the cutoff, in the order that a fresh list has. So a result never depends
    on which structures came before: a simulation continued from a file repeats the uninterrupted one bit for bit.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff = cutoff
        self.skin = skin
        self.builds = 0
        self._graph: AtomGraph | None = None
        self._numbers = np.empty(0)
        self._pbc = np.empty(0)
        self._positions = np.empty((0, 3))
        self._cell = np.empty((3, 3))

    def graph(self, atoms: ase.Atoms) -> AtomGraph:
        """The graph of `atoms` with all edges shorter than the cutoff; raises what `AtomGraph.from_atoms` raises."""
        if self._graph is None or not self._covers(atoms):
            self._build(atoms)
        assert self._graph is not None
        moved = replace(
            self._graph,
            positions=torch.tensor(atoms.positions, dtype=torch.float64),
            cell=torch.tensor(atoms.cell.array, dtype=torch.float64).unsqueeze(0),
        )
        return self._within_cutoff(moved)

    def _build(self, atoms: ase.Atoms) -> None:
        self._graph = None  # stays so when the structure is refused
        graph = AtomGraph.from_atoms(atoms, self.cutoff + self.skin)
        self._numbers, self._pbc = atoms.numbers.copy(), atoms.pbc.copy()
        self._positions, self._cell = atoms.positions.copy(), atoms.cell.array.copy()
        self._graph = graph
        self.builds += 1

    def _covers(self, atoms: ase.Atoms) -> bool:
        """Whether the list still holds every pair closer than the cutoff.

        With a cell that deforms by F (h = h0 F), x_i = (x0_i + d_i) F, a pair that the list lacks had
        |r0| >= cutoff + skin and is now at |r| = |(r0 + d_j - d_i) F| >= s (cutoff + skin - 2 max|d|), where s is the
        smallest singular value of F.
        """
        if not (np.array_equal(atoms.numbers, self._numbers) and np.array_equal(atoms.pbc, self._pbc)):
            return False
        smallest_stretch, displacements = 1.0, atoms.positions - self._positions
        cell = atoms.cell.array
        if atoms.pbc.any() and not np.array_equal(cell, self._cell):
            # Where there is no lattice vector no image is ever taken, so any completion of the cell serves.
            deformation = np.linalg.solve(complete_cell(self._cell), complete_cell(cell))
            smallest_stretch = float(np.linalg.svd(deformation, compute_uv=False)[-1])
            if not smallest_stretch * (self.cutoff + self.skin) >= self.cutoff:
                return False  # also of a cell so flat that the next line could not be solved
            displacements = np.linalg.solve(deformation.T, atoms.positions.T).T - self._positions
        farthest = float(np.sqrt(np.einsum("ni,ni->n", displacements, displacements).max()))
        # Written so that a position that is not a number asks for a new list, which then names the atom.
        return bool(smallest_stretch * (self.cutoff + self.skin - 2 * farthest) >= self.cutoff)

    def _within_cutoff(self, graph: AtomGraph) -> AtomGraph:
        x = graph.positions
        # One structure has one cell, which makes this several times faster than `edge_vectors`.
        vectors = (
            x.index_select(0, graph.sender) - x.index_select(0, graph.receiver) + graph.shift @ graph.cell[0]
        )
        squared = torch.einsum("ei,ei->e", vectors, vectors)
        near = squared < self.cutoff**2
        kept = near.nonzero().squeeze(1)
        # How many of the first k edges are near: the new place of an edge, and of the rows' ends.
        count = torch.zeros(graph.n_edges + 1, dtype=torch.int64)
        torch.cumsum(near, 0, out=count[1:])
        by_sender = graph.sender_order.index_select(
            0, near.index_select(0, graph.sender_order).nonzero().squeeze(1)
        )
        return replace(
            graph,
            receiver=graph.receiver.index_select(0, kept),
            sender=graph.sender.index_select(0, kept),
            shift=graph.shift.index_select(0, kept),
            row_pointer=count.index_select(0, graph.row_pointer),
            sender_order=count.index_select(0, by_sender),
            cutoff=self.cutoff,
        )
