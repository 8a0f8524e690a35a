"""Buffers of fixed size for structures of changing size, and steps that a GPU records once and plays again.

A recorded step (a CUDA graph) works on the same memory every time. So atoms and edges have room for some more than
there are, sizes are rounded up to buckets, and what fits into the buckets needs no new recording.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from equipes.models.device_geometry import DeviceAtoms

Result = TypeVar("Result")
_SMALLEST = 32
# Numbers of neighbours go up and down; as long as the room is not larger than this it is kept.
_GENEROUS = 1.5


def bucket(count: int) -> int:
    """The room for `count` things: at least one more, and at most an eighth more above the smallest room.

    >>> [bucket(count) for count in (0, 31, 32, 1000, 1024)]
    [32, 32, 36, 1024, 1152]
    """
    room = _SMALLEST
    while room <= count:
        room *= 2
    if room == _SMALLEST:
        return room
    step = room // 16
    return (count // step + 1) * step


@dataclass(frozen=True)
class Room:
    """How many atoms, edges, structures and atoms of each species fit; no species where they go together."""

    atoms: int
    edges: int
    structures: int
    groups: tuple[int, ...]

    @classmethod
    def for_(cls, atoms: DeviceAtoms) -> Room:
        """The bucket of some atoms; there is always an atom to spare, which padding belongs to."""
        groups = () if atoms.groups is None else tuple(bucket(len(group)) for group in atoms.groups)
        return cls(bucket(atoms.n_atoms), bucket(atoms.n_edges), atoms.n_structures, groups)

    def holds(self, need: Room) -> bool:
        """Whether there is the room that is needed, and not much more."""
        if self.structures != need.structures or len(self.groups) != len(need.groups):
            return False
        pairs = zip(
            (self.atoms, self.edges, *self.groups), (need.atoms, need.edges, *need.groups), strict=True
        )
        return all(wanted <= there <= _GENEROUS * max(wanted, _SMALLEST) for there, wanted in pairs)


class PaddedAtoms:
    """`DeviceAtoms` in memory that stays where it is.

    What lies beyond the real atoms and edges belongs to the last atom, which is never real: no sum of another atom
    reads it. `atoms.positions` and `atoms.cell` may be written at any time, the rest by `fill`.

    Args:
        room: what shall fit.
        device: where.
        positions: `[room.atoms, 3]` float64 to work on, in place of own memory.

    Attributes:
        room: what fits.
        atoms: the buffers.
    """

    def __init__(self, room: Room, device: torch.device | str, *, positions: Tensor | None = None) -> None:
        self.room = room
        self.n_atoms = self.n_edges = 0

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        n, e, s = room.atoms, room.edges, room.structures
        self.atoms = DeviceAtoms(
            types=zeros(n),
            groups=tuple(zeros(size) for size in room.groups) or None,
            positions=zeros(n, 3, dtype=torch.float64) if positions is None else positions,
            cell=zeros(s, 3, 3, dtype=torch.float64),
            receiver=zeros(e),
            sender=zeros(e),
            shift=zeros(e, 3, dtype=torch.int32),
            row_pointer=zeros(n + 1),
            sender_pointer=zeros(n + 1),
            sender_order=zeros(e),
            structure=zeros(n) if s > 1 else None,
            structure_pointer=zeros(s + 1) if s > 1 else None,
            n_real=zeros(1),
        )

    def fits(self, atoms: DeviceAtoms) -> bool:
        """Whether some atoms have room here, and not much more of it than they would be given."""
        return self.room.holds(Room.for_(atoms))

    def fill(self, given: DeviceAtoms) -> None:
        """Take over some atoms with their edges; `fits` must hold, or the room be larger."""
        own, n, e = self.atoms, given.n_atoms, given.n_edges
        if n >= self.room.atoms or e > self.room.edges or given.n_structures != self.room.structures:
            raise ValueError(f"{n} atoms with {e} edges have no room in {self.room}")
        spare = self.room.atoms - 1
        _fill(own.types, given.types, 0)
        _fill(own.positions, given.positions, 0.0)
        own.cell.copy_(given.cell)
        _fill(own.receiver, given.receiver, spare)
        _fill(own.sender, given.sender, spare)
        assert own.shift is not None and own.n_real is not None
        if given.shift is None:
            own.shift.zero_()
        else:
            _fill(own.shift, given.shift, 0)
        # The rows of padding atoms are empty: their edges, if there are any, lie beyond the last row.
        _fill(own.row_pointer, given.row_pointer, e)
        _fill(own.sender_pointer, given.sender_pointer, e)
        _fill(own.sender_order, given.sender_order, 0)
        own.n_real.fill_(n)
        for group, atoms in zip(own.groups or (), given.groups or (), strict=True):
            _fill(group, atoms, spare)
        if own.structure is not None and given.structure is not None:
            assert own.structure_pointer is not None and given.structure_pointer is not None
            _fill(own.structure, given.structure, self.room.structures - 1)
            own.structure_pointer.copy_(given.structure_pointer)
        self.n_atoms, self.n_edges = n, e


def _fill(buffer: Tensor, values: Tensor, rest: float) -> None:
    buffer[: len(values)].copy_(values)
    buffer[len(values) :].fill_(rest)


class Recorder(Protocol):
    """Records what a function does in the memory of a device, to do it again without the function."""

    def __call__(
        self, function: Callable[[], Result], device: torch.device, *, touched: Sequence[Tensor], pool: Any
    ) -> tuple[Callable[[], None], Result]:
        """What plays it, and the result, which playing writes over; for the arguments see `Replay`."""


def _cuda_graph(
    function: Callable[[], Result], device: torch.device, *, touched: Sequence[Tensor], pool: Any
) -> tuple[Callable[[], None], Result]:
    with torch.cuda.device(device):
        # Derivatives of earlier steps that wait to be collected would draw the streams of those into the recording.
        gc.collect()
        # First calls compile kernels and set up libraries, which no recording may contain; on a stream of their own,
        # as torch asks for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            before = [tensor.detach().clone() for tensor in touched]
            for _ in range(2):
                function()
            for tensor, values in zip(touched, before, strict=True):
                tensor.detach().copy_(values)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = function()
    return graph.replay, result


RECORDERS: dict[str, Recorder] = {"cuda": _cuda_graph}
"""By type of device."""


class Replay(Generic[Result]):
    """A function of memory that stays where it is: on a GPU recorded at its first call and played after that.

    Its result lies in the same memory every time, and the next call writes over it. Elsewhere the function is called.

    Args:
        function: takes nothing and gives what it finds.
        device: where it works.
        record: record it, where that is possible.
        touched: what the function changes beside its result and what it writes over. As it is called before it is
            recorded, this is put back then.
        pool: of memory, shared with other recordings that are never played at the same time and whose results are no
            longer needed by then (`torch.cuda.graph_pool_handle`).
    """

    def __init__(
        self,
        function: Callable[[], Result],
        device: torch.device | str,
        *,
        record: bool = True,
        touched: Sequence[Tensor] = (),
        pool: Any = None,
    ) -> None:
        self._function = function
        self.device = torch.device(device)
        self._recorder = RECORDERS.get(self.device.type) if record else None
        self._touched, self._pool = touched, pool
        self._recorded: tuple[Callable[[], None], Result] | None = None

    def prepare(self) -> None:
        """Record it now, where it will be played."""
        if self._recorder is not None and self._recorded is None:
            self._recorded = self._recorder(
                self._function, self.device, touched=self._touched, pool=self._pool
            )

    def __call__(self) -> Result:
        self.prepare()
        if self._recorded is None:
            return self._function()
        play, result = self._recorded
        play()
        return result
