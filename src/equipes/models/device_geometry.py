"""Edges of a frozen potential on a device: vectors, harmonics and repulsion, and the way back to forces and virials.

Everything is a function of tensors whose sizes the host knows, so that nothing waits for the device: an edge that does
not count (beyond the cutoff, in the skin of the list, in the padding of a bucket) is not taken out but multiplied by
nothing. Sums go over the edges of one receiver or of one sender, in their order, so that they have the same bits every
time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equipes.graph import AtomGraph
from equipes.harmonics import raising_matrix
from equipes.nn.radial import polynomial_cutoff
from equipes.nn.zbl import SCREENING

# A reduced distance that is beyond every cutoff.
_FAR = 2.0


@dataclass(frozen=True, eq=False)
class DeviceAtoms:
    """Atoms and the edges between them as the sweeps read them, `equipes.kernels.splines.Edges` among other things.

    There may be more edges than count: those beyond the cutoff, and those from `row_pointer[-1]` on, whose numbers mean
    nothing (but whose indices are those of some atom). From atom `n_real` on atoms mean nothing either.

    Attributes:
        types: `[N]` int64, index of each atom's species.
        groups: the atoms of each species, `[n_s]` int64; None where all atoms may go together.
        positions: `[N, 3]` float64, Å.
        cell: `[S, 3, 3]` float64, Å.
        receiver, sender: `[E]` int64; edges are sorted by receiver.
        shift: `[E, 3]` whole lattice vectors, any number type; None if no edge crosses a boundary.
        row_pointer, sender_pointer: `[N + 1]` int64.
        sender_order: `[E]` int64, sorts the edges by sender.
        structure: `[N]` int64; None for one structure.
        structure_pointer: `[S + 1]` int64, where the atoms of each structure begin; None for one structure.
        n_real: `[1]` int64 on the device; None if all atoms are real.
    """

    types: Tensor
    groups: tuple[Tensor, ...] | None
    positions: Tensor
    cell: Tensor
    receiver: Tensor
    sender: Tensor
    shift: Tensor | None
    row_pointer: Tensor
    sender_pointer: Tensor
    sender_order: Tensor
    structure: Tensor | None = None
    structure_pointer: Tensor | None = None
    n_real: Tensor | None = None

    @classmethod
    def of(cls, graph: AtomGraph, types: Tensor, groups: tuple[Tensor, ...] | None) -> DeviceAtoms:
        """Of a graph on the device."""
        several = graph.n_structures > 1
        pointer = None
        if several:
            numbers = torch.arange(graph.n_structures + 1, device=graph.structure.device)
            pointer = torch.searchsorted(graph.structure, numbers)
        return cls(
            types=types,
            groups=groups,
            positions=graph.positions,
            cell=graph.cell,
            receiver=graph.receiver,
            sender=graph.sender,
            shift=graph.shift,
            row_pointer=graph.row_pointer,
            sender_pointer=graph.sender_pointer,
            sender_order=graph.sender_order,
            structure=graph.structure if several else None,
            structure_pointer=pointer,
        )

    @property
    def n_atoms(self) -> int:
        """N, with those that mean nothing."""
        return self.types.shape[0]

    @property
    def n_edges(self) -> int:
        """E, with those that do not count."""
        return self.receiver.shape[0]

    @property
    def n_structures(self) -> int:
        """S."""
        return self.cell.shape[0]

    def only_real(self, values: Tensor) -> Tensor:
        """`[N, ...]` with zeros for the atoms that mean nothing."""
        if self.n_real is None:
            return values
        real = torch.arange(self.n_atoms, device=values.device) < self.n_real
        return torch.where(real.view(-1, *[1] * (values.dim() - 1)), values, 0.0)

    def sums_of_structures(self, values: Tensor) -> Tensor:
        """`[N, ...]` -> `[S, ...]`, of the real atoms."""
        if self.structure_pointer is None:
            return self.only_real(values).sum(0, keepdim=True)
        return segment_sums(values, self.structure_pointer)


@dataclass(frozen=True, eq=False)
class EdgeGeometry:
    """What the layers and the reverse sweep need of the edges, `[E, ...]`; zero or one where an edge does not count.

    Attributes:
        counts: whether an edge is nearer than its cutoff.
        vectors: `[E, 3]` Å, from receiver to sender.
        lengths: Å; 1 where an edge does not count.
        directions: `[E, 3]`.
        reduced: lengths in units of the cutoff; `_FAR` where an edge does not count.
        cutoffs: Å, one number or one for each edge.
    """

    counts: Tensor
    vectors: Tensor
    lengths: Tensor
    directions: Tensor
    reduced: Tensor
    cutoffs: Tensor


def edge_geometry(atoms: DeviceAtoms, cutoffs: Tensor) -> EdgeGeometry:
    """The geometry in float64; `cutoffs` are Å, `[]` or `[n_species, n_species]` by receiver and sender."""
    vectors = atoms.positions.index_select(0, atoms.sender) - atoms.positions.index_select(0, atoms.receiver)
    if atoms.shift is not None:
        shift = atoms.shift.to(vectors.dtype)
        if atoms.structure is None:
            vectors = torch.addmm(vectors, shift, atoms.cell.select(0, 0))
        else:
            cells = atoms.cell.index_select(0, atoms.structure.index_select(0, atoms.receiver))
            vectors = vectors + (shift.unsqueeze(1) @ cells).squeeze(1)
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    if cutoffs.dim() > 0:
        receiver = atoms.types.index_select(0, atoms.receiver)
        sender = atoms.types.index_select(0, atoms.sender)
        cutoffs = cutoffs.flatten().index_select(0, receiver * len(cutoffs) + sender)
    reduced = lengths / cutoffs
    place = torch.arange(atoms.n_edges, device=lengths.device)
    counts = (place < atoms.row_pointer.select(0, -1)) & (reduced < 1) & (lengths > 0)
    lengths = torch.where(counts, lengths, 1.0)
    vectors = torch.where(counts.unsqueeze(1), vectors, 0.0)
    return EdgeGeometry(
        counts=counts,
        vectors=vectors,
        lengths=lengths,
        directions=vectors / lengths.unsqueeze(1),
        reduced=torch.where(counts, reduced, _FAR),
        cutoffs=cutoffs,
    )


def harmonics_of(l_max: int, directions: Tensor) -> Tensor:
    """`[E, (l_max+1)²]` as `equipes.harmonics.spherical_harmonics` has them, without autograd."""
    values = directions.new_empty(directions.shape[0], (l_max + 1) ** 2)
    values.narrow(1, 0, 1).fill_(1.0)
    if l_max > 0:
        torch.mul(directions, 3**0.5, out=_degree(values, 1))
    for l in range(1, l_max):
        product = _degree(values, l).unsqueeze(2) * _degree(values, 1).unsqueeze(1)
        matrix = raising_matrix(l, directions.dtype, directions.device)
        torch.mm(product.flatten(1), matrix, out=_degree(values, l + 1))
    return values


def harmonics_reverse(l_max: int, harmonics: Tensor, cotangents: Tensor) -> Tensor:
    """From the cotangents of the harmonics those of the directions, `[E, 3]`; not yet orthogonal to the directions."""
    if l_max == 0:
        return cotangents.new_zeros(cotangents.shape[0], 3)
    first = _degree(harmonics, 1)
    own = cotangents.clone()
    total = torch.zeros_like(first)  # of Y_1 as a factor of the higher ones
    for l in reversed(range(1, l_max)):
        matrix = raising_matrix(l, harmonics.dtype, harmonics.device)
        product = (_degree(own, l + 1) @ matrix.T).unflatten(1, (2 * l + 1, 3))
        total.add_((product * _degree(harmonics, l).unsqueeze(2)).sum(1))
        _degree(own, l).add_((product * first.unsqueeze(1)).sum(2))
    return (_degree(own, 1) + total) * 3**0.5


def _degree(values: Tensor, l: int) -> Tensor:
    """The part of one degree of rows of harmonics, `[E, 2l+1]`, the same memory."""
    return values.narrow(1, l**2, 2 * l + 1)


def edge_gradients(geometry: EdgeGeometry, radial_slope: Tensor, direction_cotangents: Tensor) -> Tensor:
    """dE/dr of each edge, `[E, 3]` float64.

    Args:
        geometry: of the edges.
        radial_slope: `[E]`, dE/d|r|.
        direction_cotangents: `[E, 3]`, dE/d(r/|r|).
    """
    n = geometry.directions
    along = (direction_cotangents * n).sum(1, keepdim=True)
    gradient = n * radial_slope.unsqueeze(1) + (
        direction_cotangents - along * n
    ) / geometry.lengths.unsqueeze(1)
    return torch.where(geometry.counts.unsqueeze(1), gradient, 0.0)


def forces_and_virials(
    atoms: DeviceAtoms, geometry: EdgeGeometry, gradient: Tensor, *, virial: bool
) -> tuple[Tensor, Tensor | None]:
    """Forces `[N, 3]`, and -dE/dstrain of each structure `[S, 3, 3]` if asked for, from dE/dr of the edges."""
    sent = segment_sums(gradient.index_select(0, atoms.sender_order), atoms.sender_pointer)
    if not virial:
        return segment_sums(gradient, atoms.row_pointer) - sent, None
    outer = (geometry.vectors.unsqueeze(2) * gradient.unsqueeze(1)).flatten(1)  # [E, 9]
    received = segment_sums(torch.cat([gradient, outer], dim=1), atoms.row_pointer)
    total = atoms.sums_of_structures(received.narrow(1, 3, 9)).unflatten(1, (3, 3))
    return received.narrow(1, 0, 3) - sent, -(total + total.transpose(1, 2)) / 2


def segment_sums(values: Tensor, pointer: Tensor) -> Tensor:
    """`[E, ...]` -> `[N, ...]`: sums from pointer to pointer, in order; what is beyond the last pointer is not read."""
    return torch.segment_reduce(values, "sum", offsets=pointer, axis=0, unsafe=True)


@dataclass(frozen=True, eq=False)
class Repulsion:
    """The screened nuclear repulsion (`equipes.nn.ZBL`, `equipes.nn.CovalentZBL`) with its derivative.

    Attributes:
        power: of the cutoff function.
        charges, inverse_lengths: `[n_species, n_species]`, ½ K Z_i Z_j in eV Å and 1/a in 1/Å.
        cutoffs: `[n_species, n_species]` Å; None: those of the model.
        screening: the terms (c, k) of φ.
    """

    power: int
    charges: Tensor
    inverse_lengths: Tensor
    cutoffs: Tensor | None = None
    screening: tuple[tuple[float, float], ...] = SCREENING

    def __call__(self, atoms: DeviceAtoms, geometry: EdgeGeometry) -> tuple[Tensor, Tensor]:
        """Energies of the atoms `[N]` eV, and dE/d|r| of the edges `[E]`."""
        pair = atoms.types.index_select(0, atoms.receiver) * len(self.charges)
        pair = pair + atoms.types.index_select(0, atoms.sender)
        charge = self.charges.flatten().index_select(0, pair)
        inverse = self.inverse_lengths.flatten().index_select(0, pair)
        r, x, cutoffs, p = geometry.lengths, geometry.reduced, geometry.cutoffs, self.power
        counts = geometry.counts
        if self.cutoffs is not None:
            cutoffs = self.cutoffs.flatten().index_select(0, pair)
            x = r / cutoffs
            counts = counts & (x < 1)
        screening, slope = torch.zeros_like(r), torch.zeros_like(r)
        for c, k in self.screening:
            term = c * torch.exp(-k * r * inverse)
            screening += term
            slope -= k * inverse * term
        u = polynomial_cutoff(x, p)
        u_slope = -(p * (p + 1) * (p + 2) / 2) * x ** (p - 1) * (1 - x) ** 2 / cutoffs
        energies = charge / r * screening * u
        slopes = charge / r * (slope * u + screening * u_slope - screening * u / r)
        energies = torch.where(counts, energies, 0.0)
        return segment_sums(energies, atoms.row_pointer), torch.where(counts, slopes, 0.0)
