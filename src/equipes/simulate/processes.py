"""Calculations that do not depend on each other, spread over processes of one thread each.

The threads that one calculation would have (`torch.get_num_threads()`, that is OMP_NUM_THREADS) become as many
processes: a small structure has not enough atoms to keep several threads busy, and ASE's own part runs on one thread
only. Every process does what one process with one thread would do, so results are bit for bit those of a run with one
thread.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch
from ase.calculators.calculator import BaseCalculator

from equipes.calculators.ase import Calculator
from equipes.errors import InputError
from equipes.models import FrozenPotential
from equipes.simulate.errors import SimulationError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(KeyboardInterrupt):
    """A calculation that ended because a signal asked for it, and can be continued."""


# Below so many atoms in all, starting processes takes longer than the work.
_WORTHWHILE_ATOMS = 1000
# Of the processes' time, more than this must be spent at work; several threads in one process reach about as much.
_WORTHWHILE_SHARE = 0.8


def processes_for_runs(calculator: BaseCalculator, runs: int) -> int:
    """How many processes so many long runs of equal length are worth: none may stand idle for long."""
    count = processes_for(calculator, _WORTHWHILE_ATOMS, runs)
    return count if runs / (-(-runs // count) * count) > _WORTHWHILE_SHARE else 1


def processes_for(calculator: BaseCalculator, atoms: int, items: int) -> int:
    """How many processes `items` calculations with `atoms` atoms in all are worth.

    One for a calculator that is not ours, whose state a copy of the process might share; one for a potential that is
    not frozen (autograd and GPUs do not outlive a copy); and one where processes cannot be copied (Windows) or had
    better not be (macOS). If there will be several, the calculator forgets what it calculated last.
    """
    if not isinstance(calculator, Calculator) or not isinstance(calculator.frozen, FrozenPotential):
        return 1
    if not sys.platform.startswith("linux") or multiprocessing.parent_process() is not None:
        return 1
    count = min(torch.get_num_threads(), items) if atoms >= _WORTHWHILE_ATOMS else 1
    if count > 1:
        calculator.reset()  # what it remembers was calculated with several threads, whose sums have another order
    return count


def spread(
    function: Callable[[Item, Callable[[Any], None]], Result],
    items: Sequence[Item],
    processes: int,
    *,
    on_note: Callable[[Any], None] = lambda _: None,
) -> Generator[Result, None, None]:
    """`function` of each item, in order, as they come.

    The processes are copies of this one, so that nothing but results has to be sent. Their errors are raised here.

    Args:
        function: takes an item, and a function that passes a note of how far it is to `on_note`.
        items: what is to be calculated.
        processes: one calculates here.
        on_note: called in this process.

    Raises:
        SimulationError: a process ended without an answer (killed, out of memory).
    """
    if processes <= 1 or len(items) <= 1:
        for item in items:
            yield function(item, on_note)
        return
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(min(processes, len(items)))]
    workers = []
    for number, (_, own) in enumerate(pipes):
        others = [end for pipe in pipes for end in pipe if end is not own]
        mine = list(enumerate(items))[number :: len(pipes)]
        workers.append(context.Process(target=_work, args=(function, mine, own, others), daemon=True))
    try:
        for worker in workers:
            worker.start()
        for _, sender in pipes:
            sender.close()
        yield from _in_order([receiver for receiver, _ in pipes], len(items), on_note)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
        for pipe in pipes:
            for end in pipe:
                end.close()


def _in_order(pipes: list[Connection], count: int, on_note: Callable[[Any], None]) -> Iterator[Any]:
    answers: dict[int, Any] = {}
    open_pipes: list[Any] = list(pipes)
    for number in range(count):
        while number not in answers:
            for pipe in wait(open_pipes):
                assert isinstance(pipe, Connection)
                try:
                    kind, about, content = pipe.recv()
                except EOFError as lost:
                    if len(open_pipes) == 1 or number % len(pipes) == pipes.index(pipe):
                        raise SimulationError(
                            f"the process that did calculation {number} ended without an answer; if memory ran out,"
                            " give fewer threads (OMP_NUM_THREADS)"
                        ) from lost
                    open_pipes.remove(pipe)
                    continue
                if kind == "error":
                    raise content
                if kind == "note":
                    on_note(content)
                else:
                    answers[about] = content
        yield answers.pop(number)


def _work(
    function: Callable[[Item, Callable[[Any], None]], Result],
    items: Sequence[tuple[int, Item]],
    pipe: Connection,
    others: Sequence[Connection],
) -> None:
    """What one process does; when the one that started it is gone, so is its pipe, and it ends."""
    for end in others:
        end.close()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all; the process that started this one ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        for number, item in items:
            answer = function(item, lambda note, number=number: pipe.send(("note", number, note)))  # type: ignore[misc]
            pipe.send(("done", number, answer))
    except (InputError, SimulationError, Stopped) as error:
        pipe.send(("error", -1, error))
    except BrokenPipeError:
        return
