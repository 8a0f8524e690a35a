"""Relaxations of many structures at once: each as if it were alone, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

import equipes
from equipes import InputError
from equipes.calculators.batched import BatchedEvaluator, StructureError
from equipes.calculators.together import Together
from equipes.cli import app, run
from equipes.simulate import RelaxResult, SimulationError, relax
from equipes.simulate.batch_relax import relax_together

SMALL = {
    "num_layers": 1,
    "num_features": 4,
    "l_max": 1,
    "r_max": 3.5,
    "avg_num_neighbors": 10.0,
    "per_type_energy_scales": 0.3,
}


@pytest.fixture(scope="module")
def potential() -> equipes.Potential:
    return equipes.build("nequip", ["H", "O", "Cu"], SMALL, dtype="float64", seed=3)


@pytest.fixture
def calculator(potential: equipes.Potential) -> equipes.Calculator:
    return equipes.Calculator(potential, dtype="float64", exact=True)


def structures() -> list[Atoms]:
    """Crystals and molecules, some of whose atoms are fixed, that take different numbers of steps."""
    found = [bulk("Cu", a=3.6 + 0.1 * i, cubic=True) for i in range(3)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.1 * seed, seed=seed)
    held = molecule("H2O2")
    held.set_constraint(FixAtoms([0]))
    return [*found, molecule("H2O"), held]


def alike(found: RelaxResult, alone: RelaxResult) -> None:
    assert (found.steps, found.converged, found.cell_relaxed) == (
        alone.steps,
        alone.converged,
        alone.cell_relaxed,
    )
    assert found.energy_ev == pytest.approx(alone.energy_ev, abs=1e-8)
    np.testing.assert_allclose(found.atoms.positions, alone.atoms.positions, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.atoms.cell.array, alone.atoms.cell.array, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("at_once", "options"), [(64, {}), (2, {"optimizer": "fire", "cell": False}), (3, {"steps": 2})]
)
def test_each_structure_relaxes_as_it_would_alone(
    calculator: equipes.Calculator, at_once: int, options: dict
) -> None:
    options = {"steps": 12, "fmax": 0.002, **options}
    given = structures()
    ended, threads = [], threading.active_count()
    found = relax_together(
        given, calculator, at_once=at_once, on_end=lambda index, _: ended.append(index), **options
    )
    assert sorted(ended) == list(range(5))
    steps = set()
    for atoms, result in zip(given, found, strict=True):
        alike(result, relax(atoms, calculator, **options))
        steps.add(result.steps)
    assert len(steps) > 1 or options["steps"] == 2
    assert threading.active_count() == threads


def test_batches_stay_full_and_are_halved_without_memory(
    calculator: equipes.Calculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = structures() * 2
    searches = [lambda asking, atoms=atoms: relax(atoms, asking, steps=6, fmax=1e-6) for atoms in given]
    together = Together(calculator, 4)
    expected = together.run(searches)
    # Every evaluation but those at the end is of four structures, although some searches are shorter than others.
    assert max(together.evaluations) == 4 and together.evaluations[0] == 4
    assert together.evaluations == sorted(together.evaluations, reverse=True)
    evaluate, sizes = BatchedEvaluator.__call__, []

    def limited(self, now, **options):
        sizes.append(now.n_structures)
        if now.n_structures > 1:
            raise torch.OutOfMemoryError("no memory left")
        return evaluate(self, now, **options)

    monkeypatch.setattr(BatchedEvaluator, "__call__", limited)
    little = Together(calculator, 4)
    for a, b in zip(little.run(searches), expected, strict=True):
        alike(a, b)
    assert sizes[:4] == [4, 2, 1, 1] and max(sizes[4:]) == 1


def test_a_relaxation_that_cannot_go_on_ends_alone(
    calculator: equipes.Calculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the neighbours of one structure are refused on the way, and where the cell explodes."""
    given = structures()
    evaluate, calls = BatchedEvaluator.__call__, []

    def refusing(self, now, **options):
        calls.append(now.n_structures)
        if len(calls) == 3:
            raise StructureError(1, "atoms 0 (Cu) and 1 (Cu) are at the same place; remove one of them")
        return evaluate(self, now, **options)

    expected = relax_together(given, calculator, steps=6, fmax=1e-6)
    monkeypatch.setattr(BatchedEvaluator, "__call__", refusing)
    found = relax_together(given, calculator, steps=6, fmax=1e-6)
    failed = [i for i, result in enumerate(found) if isinstance(result, SimulationError)]
    assert calls[2] == 5 and failed == [1]
    assert "step 2: atoms 0 (Cu) and 1 (Cu) are at the same place" in str(found[failed[0]])
    assert calls[3] == calls[2] - 1
    for i in set(range(5)) - set(failed):
        alike(found[i], expected[i])


def test_what_makes_no_sense_is_named(calculator: equipes.Calculator) -> None:
    given = structures()
    with pytest.raises(InputError, match="b: the potential does not know Au"):
        relax_together([given[0], bulk("Au")], calculator, names=["a", "b"])
    given[1].positions[1] = given[1].positions[0]
    with pytest.raises(InputError, match=r"structure 1: atoms 0 \(Cu\) and 1 .* same place"):
        relax_together(given, calculator)
    with pytest.raises(InputError, match="structure 3: the cell can only relax"):
        relax_together(structures(), calculator, cell=True, steps=1)
    with pytest.raises(InputError, match="batch size must be 1 or more"):
        relax_together(given, calculator, at_once=0)


def test_stopped_and_continued_nothing_is_calculated_twice(
    calculator: equipes.Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 8, "fmax": 1e-6, "kept": tmp_path / "steps", "facts": {"potential": "one"}}
    expected = relax_together(structures(), calculator, steps=8, fmax=1e-6)
    evaluate, sizes = BatchedEvaluator.__call__, []

    def interrupted(self, now, **named):
        sizes.append(now.n_structures)
        if len(sizes) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, now, **named)

    monkeypatch.setattr(BatchedEvaluator, "__call__", interrupted)
    # Shells start what runs in the background with this signal ignored.
    before_signal = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            relax_together(structures(), calculator, **options)
    finally:
        signal.signal(signal.SIGINT, before_signal)
    assert len(list((tmp_path / "steps").iterdir())) == 5
    before, sizes[:] = sum(sizes[:3]), [0] * 10
    for a, b in zip(relax_together(structures(), calculator, **options), expected, strict=True):
        alike(a, b)
    again = sum(sizes)
    sizes[:] = [0] * 10
    relax_together(structures(), calculator, **options)
    assert sum(sizes) == 0  # all of it was kept
    sizes[:] = [0] * 10
    relax_together(structures(), calculator, steps=8, fmax=1e-6)
    assert again + before == sum(sizes)
    with pytest.raises(InputError, match="was made with potential = one, not two"):
        relax_together(structures(), calculator, **{**options, "facts": {"potential": "two"}})


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(potential: equipes.Potential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    potential.save("model.safetensors")
    ase.io.write("copper.extxyz", structures()[:3])
    ase.io.write("water.extxyz", molecule("H2O"))
    return tmp_path


def command(*arguments: str) -> int:
    return run(app, ["relax-batch", "model.safetensors", *arguments], "equipes")


def test_the_command_relaxes_all_frames(here: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--out", "relaxed.extxyz", "--dtype", "float64", "--fmax", "0.02"]
    assert command("copper.extxyz", "water.extxyz", *options, "--json", "relaxed.json") == 0
    assert "copper-1" in capsys.readouterr().out
    frames = ase.io.read("relaxed.extxyz", index=":")
    summary = json.loads(Path("relaxed.json").read_text())
    assert [frame.info["name"] for frame in frames] == ["copper-0", "copper-1", "copper-2", "water"]
    assert list(summary["structures"]) == [frame.info["name"] for frame in frames]
    assert not Path("relaxed.steps").exists()
    single = ["relax", "model.safetensors", "copper.extxyz", "--frame", "2", "--out", "alone.extxyz"]
    assert run(app, [*single, *options[2:]], "equipes") == 0
    alone = ase.io.read("alone.extxyz")
    np.testing.assert_allclose(frames[2].positions, alone.positions, rtol=0, atol=1e-6)
    assert frames[2].get_potential_energy() == pytest.approx(alone.get_potential_energy(), abs=1e-7)
    assert command("copper.extxyz", *options) == 2  # what is there is not overwritten


def test_the_command_goes_on_with_more_steps(here: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["copper.extxyz", "--out", "relaxed.extxyz", "--dtype", "float64", "--fmax", "0.003"]
    assert command(*options, "--resume") == 2
    assert "nothing to continue from" in capsys.readouterr().err
    assert command(*options, "--steps", "1") == 1
    shown = capsys.readouterr().err
    assert "Error: copper-2: not converged after 1 steps" in shown and "--resume" in shown
    Path("relaxed.extxyz").unlink()
    assert command(*options) == 2
    assert "relaxations that did not end" in capsys.readouterr().err
    assert command(*options, "--resume") == 0
    assert len(ase.io.read("relaxed.extxyz", index=":")) == 3
    assert not Path("relaxed.steps").exists()


def test_the_command_refuses(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("water.extxyz", "--out", "r.extxyz", "--cell") == 2
    assert "water: the cell can only relax" in capsys.readouterr().err
    assert not Path("r.steps").exists()
    assert run(app, ["relax-batch", "a,b", "water.extxyz", "--out", "r.extxyz"], "equipes") == 2
    assert "a committee relaxes one structure at a time" in capsys.readouterr().err
