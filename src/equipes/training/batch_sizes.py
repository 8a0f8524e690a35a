"""Batches as large as the memory allows, by measuring what the first ones took."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from equipes.graph import AtomGraph

if TYPE_CHECKING:
    from equipes.data import Frame

# Of the memory that is free, this part is used: what one batch takes says only roughly what the next one will.
SHARE = {"cuda": 0.8, "cpu": 0.5}
# Atoms and edges of the first batch; it is small beside any device, and large beside what every call costs anyway.
FIRST = 5_000
# A CPU is not faster with more: its caches are full (measured: the least time between 5000 and 20 000).
CEILING = {"cuda": math.inf, "cpu": 20_000}
_GROWTH = 4.0
# Sizes are rounded down to quarters of an octave, so that a few bytes more or less do not make other batches.
_STEPS_PER_OCTAVE = 4
# Graphs kept to choose from, in atoms and edges beside the limit of a batch; they take a small part of its memory.
_CHOICE = 4
_MOST_WAITING = 4096

Result = TypeVar("Result")


class Memory(Protocol):
    """What is known of the memory of a device."""

    def free(self) -> int:
        """Bytes that could be had."""

    def peak(self, calculate: Callable[[], Result]) -> tuple[Result, int | None]:
        """The result of a calculation, and the most bytes that it held beyond what was there before; None: unknown."""


class CUDAMemory:
    """Memory of a GPU as torch counts it: with what its allocator keeps for later."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """What the driver has, and what torch has but does not use."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0] + kept)

    def peak(self, calculate: Callable[[], Result]) -> tuple[Result, int | None]:
        """Of what torch allocated, from its statistics."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = calculate()
        torch.cuda.synchronize(self.device)
        return result, int(torch.cuda.max_memory_allocated(self.device) - before)


class HostMemory:
    """Memory of this process where Linux tells it; elsewhere nothing is known and batches keep to the ceiling."""

    def __init__(self, process: Path = Path("/proc/self"), machine: Path = Path("/proc/meminfo")) -> None:
        self.process = process
        self.machine = machine
        self._before: int | None = None

    def free(self) -> int:
        """What the machine has available, or the control group of this process, if that is less."""
        found = [_kilobytes(self.machine, "MemAvailable")]
        for group in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"):
            try:
                found.append(int(Path(group).read_text(encoding="ascii")))
            except (OSError, ValueError):  # none, or "max"
                found.append(None)
        available, limit, used = found
        room = [available] if limit is None or used is None else [available, limit - used]
        return min((value for value in room if value is not None), default=0)

    def peak(self, calculate: Callable[[], Result]) -> tuple[Result, int | None]:
        """The most that was resident beyond what was when it was asked first.

        So what earlier calculations left to be used again counts as taken, which it may be.
        """
        try:
            (self.process / "clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        except OSError:
            return calculate(), None
        if self._before is None:
            self._before = _kilobytes(self.process / "status", "VmHWM")
        result = calculate()
        after = _kilobytes(self.process / "status", "VmHWM")
        return result, None if self._before is None or after is None else max(after - self._before, 0)


def memory_of(device: torch.device) -> Memory:
    """What tells the memory of a device."""
    return CUDAMemory(device) if device.type == "cuda" else HostMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def weight(graph: AtomGraph) -> int:
    """Atoms and edges; memory grows with them."""
    return graph.n_atoms + graph.n_edges


class BatchSize:
    """How many atoms and edges a batch may have; it learns from the batches that were calculated.

    The first batch is small. What it took, by atom and edge, and what is free say how large the next may be, at most
    four times the last. Where memory runs out although, batches become half as large and do not grow again.

    Args:
        memory: of the device.
        share: of what is free, the part to use.
        ceiling: more atoms and edges than this are never wanted.
        first: of the first batch.
    """

    def __init__(
        self, memory: Memory, *, share: float, ceiling: float = math.inf, first: float = FIRST
    ) -> None:
        self.memory = memory
        self.share = share
        self.ceiling = ceiling
        self.limit = min(float(first), ceiling)
        self.heaviest = 0
        self.bytes_each: float | None = None

    @classmethod
    def on(cls, device: torch.device) -> BatchSize:
        """With what is known of the kinds of devices."""
        kind = "cpu" if device.type == "cpu" else "cuda"
        return cls(memory_of(device), share=SHARE[kind], ceiling=CEILING[kind])

    def measured(self, size: int, calculate: Callable[[], Result]) -> Result:
        """Calculate a batch of `size` atoms and edges, and learn from it."""
        result, taken = self.memory.peak(calculate)
        # Small batches say little of large ones: most of what they take is the same for all.
        if size >= self.heaviest:
            self.heaviest = size
            if taken is not None:
                self.bytes_each = taken / size
            if taken is None:
                fits = self.ceiling if self.ceiling < math.inf else self.limit
            elif self.bytes_each:
                fits = self.share * self.memory.free() / self.bytes_each
            else:  # everything was there already
                fits = math.inf
            self.limit = _rounded(min(fits, _GROWTH * max(size, self.limit), self.ceiling))
        return result

    def too_large(self, size: int) -> None:
        """A batch of `size` atoms and edges did not fit."""
        self.limit = min(self.limit, size / 2)
        self.ceiling = self.limit


def packed(
    frames: Sequence[Frame], graph_of: Callable[[Frame], AtomGraph], size: BatchSize
) -> Iterator[list[tuple[int, AtomGraph]]]:
    """Graphs of the frames with their indices, in batches that come near to the limit of the moment.

    Of some graphs that wait, the largest goes first, and then whatever still fits, in the order of size (first fit,
    decreasing). A graph that is larger than the limit makes a batch of its own.
    """
    waiting: list[tuple[int, AtomGraph]] = []
    total, next_frame = 0, 0
    while waiting or next_frame < len(frames):
        while (
            next_frame < len(frames) and total < _CHOICE * size.limit and len(waiting) < _MOST_WAITING
        ) or not waiting:
            waiting.append((next_frame, graph_of(frames[next_frame])))
            total += weight(waiting[-1][1])
            next_frame += 1
        waiting.sort(key=lambda item: (-weight(item[1]), item[0]))
        batch: list[tuple[int, AtomGraph]] = []
        left: list[tuple[int, AtomGraph]] = []
        room = size.limit
        for item in waiting:
            if not batch or weight(item[1]) <= room:
                batch.append(item)
                room -= weight(item[1])
            else:
                left.append(item)
        waiting = left
        total -= sum(weight(graph) for _, graph in batch)
        yield batch


def halved(batch: list[tuple[int, AtomGraph]]) -> tuple[list[tuple[int, AtomGraph]], ...]:
    """Two batches of about half the size, in the same order, of one with several graphs."""
    whole, so_far, place = sum(weight(graph) for _, graph in batch), 0, 0
    while 2 * so_far < whole:
        so_far += weight(batch[place][1])
        place += 1
    cut = min(place, len(batch) - 1)
    return batch[:cut], batch[cut:]


def _rounded(limit: float) -> float:
    if limit <= 1 or math.isinf(limit):
        return max(limit, 1.0)
    return 2.0 ** (math.floor(math.log2(limit) * _STEPS_PER_OCTAVE + 1e-9) / _STEPS_PER_OCTAVE)


def _kilobytes(path: Path, name: str) -> int | None:
    """Bytes of a line such as `VmHWM:  123 kB`."""
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
