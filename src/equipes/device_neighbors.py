"""Neighbours searched where the positions are, on a GPU: nothing but the number of edges comes to the host.

The search is vesin's, through the interface that the CPU search uses, which goes to CUDA for tensors on a GPU. There it
gives pairs in no order (of one receiver together at best), so that rows, the order of senders and shifts are sorted
here; the result is the list that `AtomGraph.from_atoms` has on the CPU, row by row.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields

import torch
import vesin
from torch import Tensor

# Below this many atoms starting threads costs more than the search itself.
ATOMS_FOR_THREADS = 2000


@dataclass(frozen=True, eq=False)
class Found:
    """All directed pairs within the cutoff, sorted by receiver, sender and shift; see `AtomGraph`.

    `shift` is `[E, 3]` int32.
    """

    receiver: Tensor
    sender: Tensor
    shift: Tensor
    row_pointer: Tensor
    sender_pointer: Tensor
    sender_order: Tensor


def neighbors_on_device(positions: Tensor, box: Tensor, pbc: Tensor, cutoff: float) -> Found:
    """Neighbours of one structure, on the device of its positions.

    Where vesin cannot search on that device (no CUDA runtime, too many pairs for its buffers) or gives a list that
    cannot be right, a warning says so and the search is done on the CPU.

    Args:
        positions: `[N, 3]` float64, Å.
        box: `[3, 3]` float64, lattice vectors, also of directions without a period, or zeros where there is none.
        pbc: `[3]` bool.
        cutoff: Å.
    """
    try:
        return _search(positions, box, pbc, cutoff)
    except RuntimeError as error:
        if positions.device.type == "cpu":
            raise
        warnings.warn(
            f"neighbours are searched on the CPU, more slowly; on {positions.device}: {error}", stacklevel=2
        )
    found = _search(positions.cpu(), box.cpu(), pbc.cpu(), cutoff)
    return Found(*(getattr(found, field.name).to(positions.device) for field in fields(Found)))


def _search(positions: Tensor, box: Tensor, pbc: Tensor, cutoff: float) -> Found:
    n_threads = 1 if len(positions) < ATOMS_FOR_THREADS else 0
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=n_threads)
    pairs, shift = search.compute(points=positions, box=box, periodic=pbc, quantities="PS", copy=True)
    return sorted_neighbors(pairs.contiguous().view(torch.int64), shift, len(positions))


def sorted_neighbors(pairs: Tensor, shift: Tensor, n_atoms: int) -> Found:
    """The list of pairs `[E, 2]` int64 and shifts `[E, 3]` int32 in any order.

    Raises:
        RuntimeError: a pair whose opposite is missing.
    """
    # By shift first, then by pair: one number for both could be too large for 64 bits in a cell that atoms left far
    # behind.
    low = shift.min(0).values if len(shift) else shift.new_zeros(3)
    place = (shift - low).long()
    span = place.max(0).values + 1 if len(shift) else place.new_ones(3)
    order = torch.argsort((place[:, 0] * span[1] + place[:, 1]) * span[2] + place[:, 2], stable=True)
    code = pairs[:, 0] * n_atoms + pairs[:, 1]
    order = order.index_select(0, torch.argsort(code.index_select(0, order), stable=True))
    receiver = pairs[:, 0].index_select(0, order)
    sender = pairs[:, 1].index_select(0, order)
    sender_order = torch.argsort(sender, stable=True)
    senders = sender.index_select(0, sender_order)
    # Every pair has its opposite, so that sorted by sender the ends are those sorted by receiver. Here the host waits
    # for the device, as it did for the number of pairs.
    if not bool(((senders == receiver) & (receiver.index_select(0, sender_order) == sender)).all()):
        raise RuntimeError("the search gave a list that is not symmetric")
    ends = torch.arange(n_atoms + 1, device=pairs.device)
    return Found(
        receiver=receiver,
        sender=sender,
        shift=shift.index_select(0, order),
        row_pointer=torch.searchsorted(receiver, ends),
        sender_pointer=torch.searchsorted(senders, ends),
        sender_order=sender_order,
    )
