"""Many structures that move at once: their neighbours, and their energies, forces and stresses, in one call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from equipes.calculators.ase import Calculator
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models.potential import Prediction


class StructureError(InputError):
    """One structure of a batch that cannot be evaluated; `index` says which."""

    def __init__(self, index: int, sentence: str) -> None:
        super().__init__(sentence)
        self.index = index


@dataclass(frozen=True)
class Structures:
    """S structures with N atoms together, as tensors on one device.

    Attributes:
        positions: `[N, 3]` float64, Å.
        numbers: `[N]` int64, atomic numbers.
        cell: `[S, 3, 3]` float64, Å, rows are lattice vectors.
        pbc: `[S, 3]` bool.
        structure: `[N]` int64, ascending, every one of 0 … S - 1 at least once.
    """

    positions: Tensor
    numbers: Tensor
    cell: Tensor
    pbc: Tensor
    structure: Tensor

    @classmethod
    def from_atoms(cls, structures: list[ase.Atoms], device: torch.device | str = "cpu") -> Structures:
        """The structures one after the other."""
        sizes = torch.tensor([len(atoms) for atoms in structures])
        return cls(
            positions=torch.tensor(np.concatenate([a.positions for a in structures]), device=device),
            numbers=torch.tensor(
                np.concatenate([a.numbers for a in structures]), dtype=torch.int64, device=device
            ),
            cell=torch.tensor(np.stack([a.cell.array for a in structures]), device=device),
            pbc=torch.tensor(np.stack([a.pbc for a in structures]), device=device),
            structure=torch.repeat_interleave(torch.arange(len(structures)), sizes).to(device),
        )

    @property
    def n_structures(self) -> int:
        """S."""
        return self.cell.shape[0]

    def atoms(self, index: int) -> ase.Atoms:
        """One of them."""
        mine = (self.structure == index).cpu().numpy()
        return ase.Atoms(
            numbers=self.numbers.cpu().numpy()[mine],
            positions=self.positions.detach().cpu().numpy()[mine],
            cell=self.cell[index].detach().cpu().numpy(),
            pbc=self.pbc[index].cpu().numpy(),
        )


class BatchedNeighbors:
    """Graphs of many structures as they move, from lists collected up to `cutoff + skin` (see `SkinnedNeighbors`).

    Whether the lists still serve is asked of all structures in one operation on their device, and only those that have
    moved too far get new ones. As with one structure, a result never depends on which positions came before.

    Args:
        cutoff, skin: Å.
        trimmed: hand out exactly the edges shorter than the cutoff; otherwise all that the lists have, for who leaves
            out the others himself.
    """

    def __init__(self, cutoff: float, skin: float, *, trimmed: bool = True) -> None:
        self.cutoff = cutoff
        self.skin = skin
        self.trimmed = trimmed
        self.builds = 0
        self._reference: Structures | None = None
        self._graphs: list[AtomGraph] = []
        self._joined: AtomGraph | None = None

    def graph(self, now: Structures, *, wrapped: bool = False) -> AtomGraph:
        """The graph of all structures, on their device.

        Args:
            now: the structures; where their number, elements or periodicity change, all lists are collected anew.
            wrapped: positions may jump by lattice vectors from one call to the next, as programs do that keep atoms
                inside the cell. They are taken back, which leaves all edge vectors what they are.

        Raises:
            StructureError: a structure without sense (see `AtomGraph.from_atoms`).
        """
        if self._reference is None or not self._same_atoms(now):
            self._reference, self._joined = None, None
            self._graphs = [self._collected(now, index) for index in range(now.n_structures)]
            self._reference = _copied(now)
        else:
            if wrapped:
                now = replace(now, positions=self._unwrapped(now))
            stale = self._stale(now)
            if bool(stale.any()):
                self._renew(now, torch.nonzero(stale).flatten().tolist())
        if self._joined is None:
            self._joined = AtomGraph.batch(self._graphs).to(now.positions.device)
            # Asked once here, and not again of every graph: on a GPU the answer is waited for.
            _ = self._joined._crosses_boundaries
        joined = self._joined
        graph = replace(joined, positions=now.positions, cell=now.cell)
        graph.__dict__["_crosses_boundaries"] = joined._crosses_boundaries
        return self._trimmed(graph) if self.trimmed else graph

    def forget(self) -> None:
        """Collect all lists anew at the next call."""
        self._reference = None

    def _collected(self, now: Structures, index: int) -> AtomGraph:
        self.builds += 1
        try:
            return AtomGraph.from_atoms(now.atoms(index), self.cutoff + self.skin)
        except InputError as error:
            raise StructureError(index, str(error)) from error

    def _renew(self, now: Structures, stale: list[int]) -> None:
        reference = self._reference
        assert reference is not None
        for index in stale:
            self._graphs[index] = self._collected(now, index)
        moved = torch.zeros(now.n_structures, dtype=torch.bool, device=now.cell.device)
        moved[stale] = True
        of_atoms = moved[now.structure].unsqueeze(1)
        self._reference = replace(
            reference,
            positions=torch.where(of_atoms, now.positions, reference.positions),
            cell=torch.where(moved.view(-1, 1, 1), now.cell, reference.cell),
        )
        self._joined = None

    def _same_atoms(self, now: Structures) -> bool:
        old = self._reference
        assert old is not None
        return (
            now.positions.device == old.positions.device
            and torch.equal(now.numbers, old.numbers)
            and torch.equal(now.structure, old.structure)
            and torch.equal(now.pbc, old.pbc)
        )

    def _stale(self, now: Structures) -> Tensor:
        """`[S]`, structures whose list may lack a pair closer than the cutoff; see `SkinnedNeighbors` for why."""
        old = self._reference
        assert old is not None
        positions, stretch = now.positions, now.cell.new_ones(now.n_structures)
        if not torch.equal(now.cell, old.cell):
            deformed = (now.cell != old.cell).flatten(1).any(dim=1)
            # A cell that lacks vectors is not worth the completion: its list is collected anew.
            sound = deformed & (torch.linalg.det(old.cell).abs() > 0) & (torch.linalg.det(now.cell).abs() > 0)
            one = torch.eye(3, dtype=now.cell.dtype, device=now.cell.device)
            before = torch.where(sound.view(-1, 1, 1), old.cell, one)
            after = torch.where(sound.view(-1, 1, 1), now.cell, one)
            deformation = torch.linalg.solve(before, after)  # old.cell @ deformation = now.cell
            stretch = torch.linalg.svdvals(deformation)[:, -1]
            stretch = torch.where(deformed & ~sound, torch.nan, stretch)
            back = torch.linalg.solve(after, before)
            positions = torch.einsum("ni,nij->nj", positions, back[now.structure])
        squared = (positions - old.positions).square().sum(dim=1)
        farthest = (
            torch.zeros_like(stretch)
            .scatter_reduce(0, now.structure, squared, reduce="amax", include_self=True)
            .sqrt()
        )
        # Written so that a position that is not a number asks for a new list, which then names the atom.
        return ~(stretch * (self.cutoff + self.skin - 2 * farthest) >= self.cutoff)

    def _unwrapped(self, now: Structures) -> Tensor:
        """Positions moved by whole lattice vectors to where they are nearest to those that the lists were made for."""
        old = self._reference
        assert old is not None
        periodic = now.pbc.any(dim=1) & (torch.linalg.det(now.cell).abs() > 0)
        periodic &= torch.linalg.det(old.cell).abs() > 0
        one = torch.eye(3, dtype=now.cell.dtype, device=now.cell.device)
        cell = torch.where(periodic.view(-1, 1, 1), now.cell, one)
        before = torch.where(periodic.view(-1, 1, 1), old.cell, one)
        fractions = torch.einsum("ni,nij->nj", now.positions, torch.linalg.inv(cell)[now.structure])
        origin = torch.einsum("ni,nij->nj", old.positions, torch.linalg.inv(before)[now.structure])
        images = torch.round(fractions - origin) * (now.pbc & periodic.unsqueeze(1))[now.structure]
        # A position that is not a number stays one, whatever the image is.
        return now.positions - torch.einsum("ni,nij->nj", images, cell[now.structure])

    def _trimmed(self, known: AtomGraph) -> AtomGraph:
        near = known.edge_vectors().square().sum(dim=1) < self.cutoff**2
        kept = near.nonzero().flatten()
        # How many of the first k edges are near: the new place of an edge, and of the rows' ends.
        count = torch.cat([torch.zeros_like(known.row_pointer[:1]), near.cumsum(0)])
        by_sender = known.sender_order[near[known.sender_order]]
        graph = replace(
            known,
            receiver=known.receiver[kept],
            sender=known.sender[kept],
            shift=known.shift[kept],
            row_pointer=count[known.row_pointer],
            sender_order=count[by_sender],
            cutoff=self.cutoff,
        )
        graph.__dict__["_crosses_boundaries"] = known._crosses_boundaries
        return graph


class BatchedEvaluator:
    """Energies, forces and stresses of many structures at once, by whatever a calculator would calculate them with.

    The numbers are those of the calculator for each structure alone, to round-off.

    Args:
        calculator: its potential, frozen where it would be, its device and its skin are used.
    """

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator
        self._prepared_for: Tensor | None = None
        self._neighbors: BatchedNeighbors | None = None

    @property
    def device(self) -> torch.device:
        """Where the structures have to be."""
        return self.calculator.device

    @property
    def neighbor_list_builds(self) -> int:
        """How often the neighbours of a structure were collected anew."""
        return 0 if self._neighbors is None else self._neighbors.builds

    def forget(self) -> None:
        """Collect all neighbours anew at the next call."""
        if self._neighbors is not None:
            self._neighbors.forget()

    def __call__(
        self, now: Structures, *, forces: bool = True, stress: bool = True, wrapped: bool = False
    ) -> Prediction:
        """Evaluate.

        Args:
            now: the structures, on `device`.
            forces, stress: compute them too. The stress of a structure whose cell has no volume is NaN.
            wrapped: see `BatchedNeighbors.graph`.

        Raises:
            InputError: an element that the potential does not know.
            StructureError: a structure without sense (see `AtomGraph.from_atoms`).
        """
        calculator = self.calculator
        if self._prepared_for is None or not torch.equal(now.numbers, self._prepared_for):
            symbols = {chemical_symbols[z] for z in now.numbers.unique().tolist()}
            known = set((calculator.potential or calculator.frozen).species)  # type: ignore[union-attr]
            if not symbols <= known:
                raise InputError(
                    f"the potential does not know {', '.join(sorted(symbols - known))}; it knows "
                    f"{', '.join(sorted(known))}. Use a potential trained on all elements of the structures"
                )
            calculator.freeze_for(symbols)
            self._prepared_for = now.numbers.clone()
        model = calculator.frozen or calculator.potential
        assert model is not None
        if self._neighbors is None:
            # Frozen potentials leave out edges beyond the cutoff themselves.
            self._neighbors = BatchedNeighbors(
                model.cutoff, calculator.skin, trimmed=calculator.frozen is None
            )
        self._neighbors.trimmed = calculator.frozen is None
        graph = self._neighbors.graph(now, wrapped=wrapped)
        return model(graph, forces=forces, stress=stress)


def _copied(now: Structures) -> Structures:
    # Whoever integrates may do so in place.
    return replace(now, positions=now.positions.detach().clone(), cell=now.cell.detach().clone())
