"""Independent calculations in several processes: the numbers of one, in order, and no process left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

import equipes
from equipes import InputError
from equipes.simulate import ElasticOptions, PhononOptions, SimulationError, Store, elastic, phonons
from equipes.simulate.processes import processes_for, processes_for_runs, spread

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="processes are copied on Linux only"
)


def square(item: int, tell) -> int:
    tell(item)
    time.sleep(0.02 * (item % 2))  # so that they do not end in order
    return item * item


def test_answers_come_in_order_and_notes_arrive() -> None:
    notes: list[int] = []
    assert list(spread(square, range(7), 3, on_note=notes.append)) == [n * n for n in range(7)]
    assert sorted(notes) == list(range(7))


def test_errors_come_through() -> None:
    def refuse(item: int, _) -> int:
        if item == 2:
            raise InputError("not this one")
        return item

    with pytest.raises(InputError, match="not this one"):
        list(spread(refuse, range(5), 2))


def test_a_process_that_is_killed_is_told() -> None:
    def die(item: int, _) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(SimulationError, match="ended without an answer"):
        list(spread(die, range(4), 2))


def test_who_stops_listening_leaves_nobody_behind(tmp_path: Path) -> None:
    def note_process(item: int, _) -> int:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.01 if item < 2 else 30)
        return item

    answers = spread(note_process, range(4), 2)
    assert next(answers) == 0
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < 15
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


@pytest.fixture(scope="module")
def calculator():
    hyperparameters = {
        "num_layers": 1,
        "num_features": 4,
        "l_max": 1,
        "r_max": 3.5,
        "per_type_energy_scales": 0.05,
    }
    potential = equipes.build("nequip", ["Cu"], hyperparameters, seed=1)
    frozen = equipes.Calculator(potential, dtype="float64", freeze=True)
    if frozen.freeze_for(["Cu"]) is None:
        pytest.skip("nothing is frozen without native code")
    return frozen


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_how_many_are_worth_it(calculator, two_threads) -> None:
    calculator.calculate(bulk("Cu"), ["forces"])
    assert processes_for(calculator, 5000, 8) == 2
    assert calculator.results == {}  # of two threads, which are not those of one
    assert processes_for(calculator, 100, 8) == 1
    assert processes_for_runs(calculator, 4) == 2
    assert processes_for_runs(calculator, 3) == 1
    exact = equipes.Calculator(calculator.potential, dtype="float64")
    assert processes_for(exact, 5000, 8) == 1


def test_workflows_give_the_same_bits_in_two_processes(calculator, monkeypatch) -> None:
    """Each process has one thread, and no result depends on what was calculated before it."""
    copper = bulk("Cu", a=3.6)
    unstable = {"relax": False, "check_supercell": False, "mesh": 20.0, "points": 10}
    options = PhononOptions(supercell=(4, 4, 4), **unstable)
    strained = ElasticOptions(relax_cell=False)
    torch_threads = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            monkeypatch.setattr("equipes.simulate.processes._WORTHWHILE_ATOMS", 2)
            store = Store()
            calculator.calculate(copper * (1, 1, 2), ["forces"])  # which it remembers
            displaced = phonons(copper * (1, 1, 2), calculator, options, store=store).phonopy.force_constants
            found.append((displaced, elastic(copper, calculator, strained, store=store).tensor_gpa))
    finally:
        torch.set_num_threads(torch_threads)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.abs(one).max() > 1e-3
