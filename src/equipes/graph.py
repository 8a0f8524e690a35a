"""Graphs of atoms: who is near whom, in one structure or in a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import ase
import numpy as np
import torch
import vesin
from ase.geometry import complete_cell
from torch import Tensor

from equipes.device_neighbors import ATOMS_FOR_THREADS, neighbors_on_device
from equipes.errors import InputError

# Below this many atoms a GPU has nothing to do that would pay for asking it (not measured yet).
_ATOMS_FOR_GPU = 2000
# Closer than this two atoms have no direction between them.
_COINCIDENT = 1e-6


@dataclass(frozen=True, eq=False)
class SpeciesGroups:
    """The atoms of each species side by side, for what all atoms of a species have in common.

    Attributes:
        atoms: for each species, `[n_s]` int64.
        slot: `[N]` int64, where each atom stands in the concatenation of `atoms`.
    """

    atoms: tuple[Tensor, ...]
    slot: Tensor

    @classmethod
    def of(cls, types: Tensor, n_species: int) -> SpeciesGroups:
        """Of the index of each atom's species, `[N]`. The host waits for a GPU, to know how many there are."""
        order = torch.argsort(types, stable=True)
        counts = torch.bincount(types, minlength=n_species).tolist()
        return cls(order.split(counts), torch.argsort(order))


@dataclass(frozen=True)
class AtomGraph:
    """Atoms and the directed edges between all pairs (periodic images included) closer than a cutoff.

    N atoms in S structures with E edges; lengths in Å. Edge e points from its sender to its receiver, and its vector is
    `positions[sender] - positions[receiver] + shift @ cell`. Edges are sorted by receiver.

    Attributes:
        positions: `[N, 3]` float64.
        numbers: `[N]` int64, atomic numbers.
        cell: `[S, 3, 3]` float64, rows are lattice vectors, zero where there is none.
        pbc: `[S, 3]` bool, periodic directions.
        structure: `[N]` int64, ascending, the structure that an atom belongs to.
        receiver: `[E]` int64, ascending.
        sender: `[E]` int64.
        shift: `[E, 3]` float64, whole numbers of lattice vectors.
        row_pointer: `[N + 1]` int64; the edges of receiver i are `row_pointer[i]:row_pointer[i + 1]`.
        sender_order: `[E]` int64, the permutation that sorts the edges by sender.
        cutoff: the distance up to which edges were collected.
    """

    positions: Tensor
    numbers: Tensor
    cell: Tensor
    pbc: Tensor
    structure: Tensor
    receiver: Tensor
    sender: Tensor
    shift: Tensor
    row_pointer: Tensor
    sender_order: Tensor
    cutoff: float

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms, cutoff: float, device: torch.device | str = "cpu") -> AtomGraph:
        """The graph of one structure.

        Every image within the cutoff counts, also of an atom with itself, so cells may be smaller than the cutoff.

        Args:
            atoms: any ASE structure: molecule, slab, crystal.
            cutoff: Å.
            device: where the graph is; on a GPU the neighbours of many atoms are searched there, with equal result.

        Raises:
            InputError: no atoms, a cutoff that is not positive, positions or cell that are not finite, a periodic
                direction without a lattice vector (or a flat cell), or two atoms at the same place.
        """
        if not (np.isfinite(cutoff) and cutoff > 0):
            raise InputError(f"the cutoff must be a positive length in Å, not {cutoff}")
        if len(atoms) == 0:
            raise InputError("the structure has no atoms; give at least one")
        positions = np.ascontiguousarray(atoms.positions, dtype=np.float64)
        cell = np.ascontiguousarray(atoms.cell.array, dtype=np.float64)
        if not np.isfinite(positions).all():
            atom = int(np.argwhere(~np.isfinite(positions).all(axis=1))[0, 0])
            raise InputError(
                f"atom {atom} ({atoms.symbols[atom]}) has a position that is not finite; correct it"
            )
        if not np.isfinite(cell).all():
            raise InputError("the cell is not finite; correct its lattice vectors")
        pbc = np.array(atoms.pbc, dtype=bool)
        box = lattice_box(cell, pbc)
        device = torch.device(device)
        if device.type == "cuda" and len(atoms) >= _ATOMS_FOR_GPU:
            graph = cls._searched_on_device(atoms, box, float(cutoff), device)
            graph._refuse_coincident_atoms(atoms)
            return graph
        receiver, sender, shift = _neighbours(positions, box, pbc, float(cutoff))
        counts = np.bincount(receiver, minlength=len(atoms))
        graph = cls(
            positions=torch.tensor(positions),
            numbers=torch.tensor(atoms.numbers, dtype=torch.int64),
            cell=torch.tensor(cell).unsqueeze(0),
            pbc=torch.tensor(pbc).unsqueeze(0),
            structure=torch.zeros(len(atoms), dtype=torch.int64),
            receiver=torch.tensor(receiver),
            sender=torch.tensor(sender),
            shift=torch.tensor(shift, dtype=torch.float64),
            row_pointer=torch.tensor(np.concatenate([[0], np.cumsum(counts)]), dtype=torch.int64),
            sender_order=torch.tensor(np.argsort(sender, kind="stable"), dtype=torch.int64),
            cutoff=float(cutoff),
        )
        graph._refuse_coincident_atoms(atoms)
        return graph if device.type == "cpu" else graph.to(device)

    @classmethod
    def _searched_on_device(
        cls, atoms: ase.Atoms, box: np.ndarray, cutoff: float, device: torch.device
    ) -> AtomGraph:
        positions = torch.tensor(atoms.positions, dtype=torch.float64, device=device)
        found = neighbors_on_device(
            positions,
            torch.tensor(box, dtype=torch.float64, device=device),
            torch.tensor(np.array(atoms.pbc, dtype=bool), device=device),
            cutoff,
        )
        return cls(
            positions=positions,
            numbers=torch.tensor(atoms.numbers, dtype=torch.int64, device=device),
            cell=torch.tensor(atoms.cell.array, dtype=torch.float64, device=device).unsqueeze(0),
            pbc=torch.tensor(np.array(atoms.pbc, dtype=bool), device=device).unsqueeze(0),
            structure=torch.zeros(len(atoms), dtype=torch.int64, device=device),
            receiver=found.receiver,
            sender=found.sender,
            shift=found.shift.to(torch.float64),
            row_pointer=found.row_pointer,
            sender_order=found.sender_order,
            cutoff=cutoff,
        )

    @staticmethod
    def batch(graphs: Sequence[AtomGraph]) -> AtomGraph:
        """Several graphs side by side, as one graph without edges between them.

        Raises:
            InputError: no graphs, or graphs of different cutoffs.
        """
        if len(graphs) == 0:
            raise InputError("an empty list of graphs cannot be batched; give at least one")
        cutoff = graphs[0].cutoff
        if any(graph.cutoff != cutoff for graph in graphs):
            raise InputError("graphs of different cutoffs cannot be batched; build them with one cutoff")
        if len(graphs) == 1:
            return graphs[0]
        atoms = np.cumsum([0] + [graph.n_atoms for graph in graphs]).tolist()
        edges = np.cumsum([0] + [graph.n_edges for graph in graphs]).tolist()
        structures = np.cumsum([0] + [graph.n_structures for graph in graphs]).tolist()

        def joined(name: str, offsets: Sequence[int] | None = None) -> Tensor:
            parts = [getattr(graph, name) for graph in graphs]
            if offsets is not None:
                parts = [part + offset for part, offset in zip(parts, offsets, strict=False)]
            return torch.cat(parts)

        pointers = [graph.row_pointer[:-1] + offset for graph, offset in zip(graphs, edges, strict=False)]
        return AtomGraph(
            positions=joined("positions"),
            numbers=joined("numbers"),
            cell=joined("cell"),
            pbc=joined("pbc"),
            structure=joined("structure", structures),
            receiver=joined("receiver", atoms),
            sender=joined("sender", atoms),
            shift=joined("shift"),
            row_pointer=torch.cat([*pointers, graphs[-1].row_pointer[-1:] + edges[-2]]),
            sender_order=joined("sender_order", edges),
            cutoff=cutoff,
        )

    @property
    def n_atoms(self) -> int:
        """N, the number of atoms in all structures."""
        return self.numbers.shape[0]

    @property
    def n_edges(self) -> int:
        """E, the number of directed edges."""
        return self.receiver.shape[0]

    @property
    def n_structures(self) -> int:
        """S, the number of structures."""
        return self.cell.shape[0]

    @property
    def atoms_per_structure(self) -> Tensor:
        """`[S]` int64."""
        return torch.bincount(self.structure, minlength=self.n_structures)

    @property
    def volumes(self) -> Tensor:
        """`[S]` Å³; zero for a cell without three lattice vectors."""
        return torch.linalg.det(self.cell).abs()

    def species_groups(self, types: Tensor, n_species: int) -> SpeciesGroups:
        """The atoms of each species; `types` `[N]` is the index of each atom's."""
        return SpeciesGroups.of(types, n_species)

    @cached_property
    def _crosses_boundaries(self) -> bool:
        return bool(self.shift.any())

    @cached_property
    def sender_pointer(self) -> Tensor:
        """`[N + 1]` int64; `sender_order[sender_pointer[j]:sender_pointer[j + 1]]` are the edges of sender j."""
        senders = self.sender.index_select(0, self.sender_order)
        # A search, because counting would make a GPU wait for the host.
        return torch.searchsorted(senders, torch.arange(self.n_atoms + 1, device=senders.device))

    def edge_vectors(self, positions: Tensor | None = None, cell: Tensor | None = None) -> Tensor:
        """Vectors from receiver to sender, `[E, 3]` float64, differentiable in positions and cell.

        Args:
            positions: `[N, 3]`, in place of the graph's own.
            cell: `[S, 3, 3]`, in place of the graph's own.
        """
        x = self.positions if positions is None else positions
        vectors = x.index_select(0, self.sender) - x.index_select(0, self.receiver)
        if self._crosses_boundaries:
            cells = (self.cell if cell is None else cell)[self.structure[self.receiver]]
            vectors = vectors + (self.shift.unsqueeze(1) @ cells).squeeze(1)
        return vectors

    def to(self, device: torch.device | str) -> AtomGraph:
        """The same graph on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cutoff"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def _refuse_coincident_atoms(self, atoms: ase.Atoms) -> None:
        distances = self.edge_vectors().norm(dim=1)
        if distances.numel() and float(distances.min()) < _COINCIDENT:
            edge = int(distances.argmin())
            i, j = sorted((int(self.receiver[edge]), int(self.sender[edge])))
            raise InputError(
                f"atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) are at the same place; remove one of them"
            )


def lattice_box(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Three lattice vectors of a volume, also where there is no period; zeros where there is none at all."""
    if not pbc.any():
        return np.zeros((3, 3))
    # Directions that are not periodic need some vector for the cell to have a volume; which one does not matter.
    # Parallel lattice vectors make the completed one NaN, and the volume with it; the comparison below tells of it.
    with np.errstate(invalid="ignore"):
        box = complete_cell(cell)
        volume = abs(np.linalg.det(box))
    lengths = np.linalg.norm(cell, axis=1)
    if (pbc & (lengths == 0)).any():
        axis = "abc"[int(np.argmax(pbc & (lengths == 0)))]
        raise InputError(
            f"the structure is periodic along {axis} but has no lattice vector there; set one, or pbc"
        )
    if not volume > 1e-9 * np.prod(np.linalg.norm(box, axis=1)):
        raise InputError("the lattice vectors lie in a plane: the cell has no volume; correct the cell")
    return np.asarray(box)


def _neighbours(
    positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(receiver, sender, shift) of all directed pairs, sorted by receiver, sender and shift, so that equal input gives
    equal order."""
    search = vesin.NeighborList(
        cutoff=cutoff, full_list=True, n_threads=1 if len(positions) < ATOMS_FOR_THREADS else 0
    )
    i, j, shift = search.compute(points=positions, box=box, periodic=pbc, quantities="ijS", copy=True)
    i, j, shift = i.astype(np.int64), j.astype(np.int64), shift.astype(np.int64)
    if len(i) == 0:
        return i, j, shift.reshape(0, 3)
    low = shift.min(axis=0)
    span = shift.max(axis=0) - low + 1
    code = ((i * len(positions) + j) * span[0] + shift[:, 0] - low[0]) * span[1] + shift[:, 1] - low[1]
    order = np.argsort(code * span[2] + shift[:, 2] - low[2])
    return i[order], j[order], shift[order]
