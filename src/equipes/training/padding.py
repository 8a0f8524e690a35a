"""Batches in memory that stays where it is, so that a GPU can record a step of training and play it again.

What there is room for beyond the batch belongs to one more structure that nobody has labelled: atoms of a species that
the batch has, with edges longer than the cutoff from themselves to their own images. Like any structure it has no edges
to the others, and without labels it adds nothing to the loss, its gradient or the number of labels. So no model and no
loss needs to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equipes.data import LabelledGraph
from equipes.graph import AtomGraph, SpeciesGroups
from equipes.models.device_padding import Room, bucket
from equipes.training.stream import Batch

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PaddedGraph(AtomGraph):
    """A graph of which everything is there already that a GPU would have to be waited for.

    Attributes:
        sizes: `[S]` int64, atoms per structure.
        cell_volumes: `[S]` Å³.
        edges_of_senders: `[N + 1]` int64, see `sender_pointer`.
        groups: the atoms of each species, or None for a model that does not ask.
    """

    sizes: Tensor
    cell_volumes: Tensor
    edges_of_senders: Tensor
    groups: SpeciesGroups | None

    @property
    def atoms_per_structure(self) -> Tensor:
        return self.sizes

    @property
    def volumes(self) -> Tensor:
        return self.cell_volumes

    @property
    def sender_pointer(self) -> Tensor:
        return self.edges_of_senders

    @property
    def _crosses_boundaries(self) -> bool:
        return True  # at least in the padding

    def species_groups(self, types: Tensor, n_species: int) -> SpeciesGroups:
        if self.groups is None:
            raise RuntimeError("the model asks for the atoms of each species, but has no GROUPS_SPECIES")
        return self.groups


def room_for(batch: Batch, types: Tensor, n_species: int, *, grouped: bool) -> Room:
    """The bucket of a batch, with one structure and at least one atom more than it has.

    Args:
        batch: on the CPU.
        types: `[N]`, index of each atom's species.
        n_species: that the model knows.
        grouped: whether the model asks for the atoms of each species; those that do not occur get no room.
    """
    graph = batch.labelled.graph
    groups: tuple[int, ...] = ()
    if grouped:
        counts = torch.bincount(types, minlength=n_species).tolist()
        groups = tuple(bucket(count) if count else 0 for count in counts)
    return Room(bucket(graph.n_atoms), bucket(graph.n_edges), graph.n_structures + 1, groups)


class PaddedBatch:
    """Room on a device for the batch of a step, which two copies fill without anybody waiting.

    Args:
        room: what shall fit, see `room_for`.
        cutoff: of the graphs, Å.
        device: where.

    Attributes:
        room: what fits.
        types: `[room.atoms]` int64, index of each atom's species.
        labelled: the structures with their labels, which are NaN in the padding.
        joint_counts: see `Batch`.
        weights: `[3]` float64, of the terms of the loss.
    """

    def __init__(self, room: Room, cutoff: float, device: torch.device) -> None:
        self.room, self.device, self.cutoff = room, device, cutoff
        n, e, s = room.atoms, room.edges, room.structures
        self._integers: Shapes = {
            "types": (n,), "numbers": (n,), "structure": (n,), "slot": (n,), "receiver": (e,), "sender": (e,),
            "sender_order": (e,), "row_pointer": (n + 1,), "sender_pointer": (n + 1,), "sizes": (s,), "frame": (s,),
            "groups": (sum(room.groups),),
        }  # fmt: skip
        self._numbers: Shapes = {
            "positions": (n, 3), "forces": (n, 3), "shift": (e, 3), "cell": (s, 3, 3), "stress": (s, 3, 3),
            "volumes": (s,), "energy": (s,), "joint_counts": (3,), "weights": (3,),
        }  # fmt: skip
        self._on_device = [
            torch.zeros(_length(shapes), dtype=dtype, device=device)
            for shapes, dtype in ((self._integers, torch.int64), (self._numbers, torch.float64))
        ]
        own = self._views(*self._on_device)
        groups = SpeciesGroups(own["groups"].split(room.groups), own["slot"]) if room.groups else None
        graph = PaddedGraph(
            positions=own["positions"],
            numbers=own["numbers"],
            cell=own["cell"],
            pbc=torch.ones(s, 3, dtype=torch.bool, device=device),
            structure=own["structure"],
            receiver=own["receiver"],
            sender=own["sender"],
            shift=own["shift"],
            row_pointer=own["row_pointer"],
            sender_order=own["sender_order"],
            cutoff=cutoff,
            sizes=own["sizes"],
            cell_volumes=own["volumes"],
            edges_of_senders=own["sender_pointer"],
            groups=groups,
        )
        self.types = own["types"]
        self.labelled = LabelledGraph(graph, own["energy"], own["forces"], own["stress"], own["frame"])
        self.joint_counts, self.weights = own["joint_counts"], own["weights"]

    def _views(self, integers: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        return {**_views(integers, self._integers), **_views(numbers, self._numbers)}

    def fill(self, batch: Batch, types: Tensor, weights: Tensor) -> None:
        """Take over a batch that is on the CPU; `room.holds` must be true of what it needs, or the room larger.

        Args:
            batch: the batch.
            types: `[N]`, index of each of its atoms' species.
            weights: `[3]`, of the terms of the loss.
        """
        graph, room = batch.labelled.graph, self.room
        n, e, s = graph.n_atoms, graph.n_edges, graph.n_structures
        if n >= room.atoms or e > room.edges or s + 1 != room.structures:
            raise ValueError(f"{n} atoms with {e} edges in {s} structures have no room in {room}")
        # Memory that a GPU can fetch from by itself. It is not used again before that has happened: torch sees to it.
        pinned = self.device.type == "cuda"
        host = [torch.empty(len(own), dtype=own.dtype, pin_memory=pinned) for own in self._on_device]
        own = self._views(*host)

        _fill(own["types"], types, int(types[0]))
        _fill(own["numbers"], graph.numbers, int(graph.numbers[0]))
        _fill(own["structure"], graph.structure, s)
        _fill(own["positions"], graph.positions, 0.0)
        _fill(own["cell"], graph.cell, 0.0)
        own["cell"][s] = 2 * self.cutoff * torch.eye(3)
        _fill(own["volumes"], graph.volumes, (2 * self.cutoff) ** 3)
        _fill(own["sizes"], graph.atoms_per_structure, room.atoms - n)

        # The same number for each atom of the padding: a kernel takes as long as its longest row.
        spread = n + torch.arange(room.edges - e) * (room.atoms - n) // max(room.edges - e, 1)
        own["receiver"][:e], own["receiver"][e:] = graph.receiver, spread
        own["sender"][:e], own["sender"][e:] = graph.sender, spread
        _fill(own["shift"], graph.shift, 0.0)
        own["shift"][e:, 0] = 1.0
        ends = torch.arange(n, room.atoms + 1)
        for name, pointer in (("row_pointer", graph.row_pointer), ("sender_pointer", graph.sender_pointer)):
            own[name][:n] = pointer[:n]
            own[name][n:] = e + torch.searchsorted(spread, ends)
        own["sender_order"][:e] = graph.sender_order
        own["sender_order"][e:] = torch.arange(e, room.edges)

        _fill(own["energy"], batch.labelled.energy, math.nan)
        _fill(own["forces"], batch.labelled.forces, math.nan)
        _fill(own["stress"], batch.labelled.stress, math.nan)
        _fill(own["frame"], batch.labelled.frame, -1)
        own["joint_counts"].copy_(batch.joint_counts)
        own["weights"].copy_(weights)
        if room.groups:
            self._group(own["groups"], own["slot"], types)
        for there, here in zip(self._on_device, host, strict=True):
            there.copy_(here, non_blocking=True)

    def _group(self, groups: Tensor, slot: Tensor, types: Tensor) -> None:
        """Sort the atoms into the groups. What room is left holds the last atom, and one of these places is that of all
        atoms of the padding."""
        found = SpeciesGroups.of(types, len(self.room.groups))
        groups.fill_(self.room.atoms - 1)
        start, free = 0, -1
        for atoms, size in zip(found.atoms, self.room.groups, strict=True):
            if len(atoms) > size:
                raise ValueError(f"{len(atoms)} atoms of a species have no room in {self.room}")
            groups[start : start + len(atoms)] = atoms
            slot[atoms] = torch.arange(start, start + len(atoms))
            if len(atoms) < size:
                free = start + len(atoms)
            start += size
        if free < 0:
            raise ValueError(f"the padding has no place among the species of {self.room}")
        slot[len(types) :] = free


def _length(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _views(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _fill(buffer: Tensor, values: Tensor, rest: float) -> None:
    buffer[: len(values)] = values
    buffer[len(values) :] = rest
