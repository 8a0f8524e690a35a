"""Dynamics of many systems at once: each as if it were alone, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

import equipes
from equipes import InputError
from equipes.calculators.batched import BatchedEvaluator
from equipes.cli import app, run
from equipes.simulate import MDSettings, SimulationError, run_md
from equipes.simulate.batch_md import TABLE as RUNS
from equipes.simulate.batch_md import BatchedMDResult, System, run_md_together
from equipes.simulate.records import CHECKPOINT, FAILURE, FINAL, SUMMARY, TABLE, TRAJECTORY, read_table

SMALL = {
    "num_layers": 1,
    "num_features": 4,
    "l_max": 1,
    "r_max": 3.2,
    "avg_num_neighbors": 10.0,
    "per_type_energy_scales": 0.1,
}


@pytest.fixture(scope="module")
def potential() -> equipes.Potential:
    return equipes.build("nequip", ["H", "O", "Cu"], SMALL, dtype="float64", seed=3)


@pytest.fixture
def calculator(potential: equipes.Potential) -> equipes.Calculator:
    return equipes.Calculator(potential, dtype="float64", exact=True)


def crystal() -> Atoms:
    return bulk("Cu", a=3.7, cubic=True)


def systems(settings: MDSettings, *structures: Atoms) -> list[System]:
    """Of different sizes and periodicities, each with its own temperature and seed."""
    starts = structures or (crystal(), molecule("H2O"), bulk("CuO", "rocksalt", a=4.3, cubic=True), crystal())
    return [
        System(f"s{i}", atoms, replace(settings, temperature=200.0 + 50 * i, seed=i))
        for i, atoms in enumerate(starts)
    ]


def colliding() -> Atoms:
    """Two atoms, 1.5 Å apart, that are 0.2 Å apart after 10 fs."""
    atoms = Atoms("OH", positions=[[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    speed = 1.3 / (10 * units.fs)
    heavy, light = atoms.get_masses()
    along = speed * heavy * light / (heavy + light)
    atoms.set_momenta([[along, 0.0, 0.0], [-along, 0.0, 0.0]])
    return atoms


def alike(one: Path, other: Path, tolerance: float = 1e-9) -> None:
    """The same rows and frames, to round-off."""
    for a, b in zip(read_table(one / TABLE), read_table(other / TABLE), strict=True):
        assert a.step == b.step
        assert a.total_energy_ev == pytest.approx(b.total_energy_ev, abs=2 * tolerance)
        assert a.temperature_k == pytest.approx(b.temperature_k, abs=2e-4)
        if a.pressure_gpa is not None:
            assert a.pressure_gpa == pytest.approx(b.pressure_gpa, abs=2e-6)
    frames = [ase.io.read(where / TRAJECTORY, index=":") for where in (one, other)]
    for a, b in zip(*frames, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=1e-7)
        np.testing.assert_allclose(a.get_momenta(), b.get_momenta(), rtol=0, atol=1e-7)


def identical(one: BatchedMDResult, other: BatchedMDResult) -> bool:
    files = [f"{name}/{file}" for name in one.summaries for file in (TABLE, TRAJECTORY, FINAL)]
    return all((one.out / file).read_bytes() == (other.out / file).read_bytes() for file in files)


# -- the same as alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ensemble", "thermostat"), [("nve", "bussi"), ("nvt", "bussi"), ("nvt", "langevin")]
)
def test_each_system_is_the_run_that_it_would_be_alone(
    calculator: equipes.Calculator, tmp_path: Path, ensemble: str, thermostat: str
) -> None:
    settings = MDSettings(ensemble, steps=25, timestep=1.0, interval=5, thermostat=thermostat)
    if ensemble == "nvt":
        settings = replace(settings, temperature_end=600.0)
    several = systems(settings)
    result = run_md_together(several, calculator, tmp_path / "together")
    assert not result.failures and not result.interrupted
    for system in several:
        alone = run_md(system.atoms, calculator, system.settings, tmp_path / system.name)
        alike(result.out / system.name, alone.out)
        mine, its = result.summaries[system.name], alone.summary
        assert mine["completed"] and mine["settings"] == its["settings"]
        assert json.loads((result.out / system.name / SUMMARY).read_text()) == mine
        assert mine["mean_temperature_k"] == pytest.approx(its["mean_temperature_k"], abs=1e-3)


def test_batches_of_any_size_give_the_same(
    calculator: equipes.Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = systems(MDSettings("nvt", steps=10, interval=5, thermostat="langevin"))
    whole = run_md_together(several, calculator, tmp_path / "whole")
    parts = run_md_together(several, calculator, tmp_path / "threes", batch_size=3)
    evaluate, sizes = BatchedEvaluator.__call__, []

    def noted(self, now, **options):
        sizes.append(len(now.numbers))
        return evaluate(self, now, **options)

    # On a CPU batches are divided by their atoms: 4 and 3, 8, 4.
    monkeypatch.setattr("equipes.simulate.batch.ATOMS_ON_CPU", 7)
    monkeypatch.setattr(BatchedEvaluator, "__call__", noted)
    few = run_md_together(several, calculator, tmp_path / "few")
    assert sizes == 11 * [7, 8, 4]
    for system in several:
        alike(whole.out / system.name, parts.out / system.name)
        alike(whole.out / system.name, few.out / system.name)


def test_without_memory_for_all_batches_are_halved(
    calculator: equipes.Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    evaluate = BatchedEvaluator.__call__

    def limited(self, now, **options):
        sizes.append(now.n_structures)
        if now.n_structures > 1:
            raise torch.OutOfMemoryError("no memory left")
        return evaluate(self, now, **options)

    several = systems(MDSettings("nve", steps=2, interval=1))
    expected = run_md_together(several, calculator, tmp_path / "enough")
    monkeypatch.setattr(BatchedEvaluator, "__call__", limited)
    result = run_md_together(several, calculator, tmp_path / "little")
    assert sizes[:4] == [4, 2, 1, 1]
    for system in several:
        alike(expected.out / system.name, result.out / system.name)


# -- physics ---------------------------------------------------------------------------------------------------------


def test_energy_is_conserved_to_second_order(calculator: equipes.Calculator, tmp_path: Path) -> None:
    fluctuation = {}
    for timestep in (0.5, 1.0):
        settings = MDSettings("nve", steps=round(40 / timestep), timestep=timestep, interval=1, reach=0.0)
        several = systems(settings, crystal(), bulk("CuO", "rocksalt", a=4.3, cubic=True))
        result = run_md_together(several, calculator, tmp_path / str(timestep))
        fluctuation[timestep] = [
            np.std([row.total_energy_ev for row in read_table(result.out / system.name / TABLE)])
            for system in several
        ]
    np.testing.assert_allclose(np.divide(fluctuation[1.0], fluctuation[0.5]), 4.0, rtol=0.2)


def test_langevin_brings_every_replica_to_its_temperature(
    calculator: equipes.Calculator, tmp_path: Path
) -> None:
    """Equipartition, over eight replicas at either of two temperatures, started at rest or too hot."""
    targets = [150.0] * 8 + [400.0] * 8
    settings = MDSettings(
        "nvt", steps=150, timestep=2.0, interval=3, thermostat="langevin", thermostat_time=20.0,
        reach=0.0, trajectory=False,
    )  # fmt: skip
    several = [
        System(f"s{i}", crystal(), replace(settings, temperature=target, seed=i))
        for i, target in enumerate(targets)
    ]
    result = run_md_together(several, calculator, tmp_path / "run")
    means = np.array(
        [
            np.mean([row.temperature_k for row in read_table(result.out / system.name / TABLE)][10:])
            for system in several
        ]
    )
    for target, found in ((150.0, means[:8]), (400.0, means[8:])):
        assert found.std() > 0
        error = found.std(ddof=1) / np.sqrt(8)
        assert error < 0.06 * target
        assert abs(found.mean() - target) < 4 * error


# -- a system that fails ---------------------------------------------------------------------------------------------


def test_a_system_that_blows_up_is_named_and_the_others_go_on(
    calculator: equipes.Calculator, tmp_path: Path
) -> None:
    settings = MDSettings("nve", steps=20, timestep=1.0, interval=10)
    several = systems(settings)
    kept = replace(settings, temperature=None, keep_velocities=True)
    several = [*several[:2], System("wild", colliding(), kept), *several[2:]]
    result = run_md_together(several, calculator, tmp_path / "run")
    assert list(result.failures) == ["wild"]
    assert "step 10: atoms 0 (O) and 1 (H) are 0.2" in result.failures["wild"]
    assert (result.out / "wild" / FAILURE).is_file() and not (result.out / "wild" / FINAL).exists()
    assert result.summaries["wild"]["stopped"] == result.failures["wild"]
    rows = (result.out / RUNS).read_text().splitlines()
    assert len(rows) == 6 and rows[3].startswith("wild,") and "closer" in rows[3]
    for system in several:
        if system.name != "wild":
            alone = run_md(system.atoms, calculator, system.settings, tmp_path / system.name)
            alike(result.out / system.name, alone.out)


def test_a_structure_that_cannot_be_evaluated_any_more_fails_alone(
    calculator: equipes.Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the neighbours of one system are refused in the middle of a step."""
    from equipes.calculators.batched import BatchedNeighbors, StructureError

    several = systems(MDSettings("nvt", steps=8, interval=4, thermostat="langevin"))
    graph, calls = BatchedNeighbors.graph, []

    def refusing(self, now, **options):
        calls.append(now.n_structures)
        if len(calls) == 4 and now.n_structures == 4:
            raise StructureError(1, "atoms 0 (O) and 1 (H) are at the same place; remove one of them")
        return graph(self, now, **options)

    monkeypatch.setattr(BatchedNeighbors, "graph", refusing)
    result = run_md_together(several, calculator, tmp_path / "run")
    assert result.failures == {
        "s1": "step 3: atoms 0 (O) and 1 (H) are at the same place; remove one of them"
    }
    assert calls[:6] == [4, 4, 4, 4, 3, 3]
    monkeypatch.undo()
    for system in (several[0], several[2], several[3]):
        alone = run_md(system.atoms, calculator, system.settings, tmp_path / system.name)
        alike(result.out / system.name, alone.out)


def test_an_impossible_start_is_refused_before_anything_is_written(
    calculator: equipes.Calculator, tmp_path: Path
) -> None:
    several = systems(MDSettings("nve", steps=5))
    several[2].atoms.positions[1] = several[2].atoms.positions[0]
    with pytest.raises(InputError, match=r"s2: atoms 0 \(Cu\) and 1 .* same place"):
        run_md_together(several, calculator, tmp_path / "run")
    several[2].atoms.positions[1] += 0.3
    with pytest.raises(SimulationError, match=r"s2: step 0: atoms 0 .* closer"):
        run_md_together(several, calculator, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- stopped and continued -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thermostat", ["bussi", "langevin"])
def test_stopped_and_continued_it_is_bit_for_bit_the_same(
    calculator: equipes.Calculator, tmp_path: Path, thermostat: str
) -> None:
    settings = MDSettings("nvt", steps=24, timestep=1.0, interval=4, thermostat=thermostat)
    several = systems(settings)
    whole = run_md_together(several, calculator, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        assert total == 24 * 4
        if done >= 4 * 13:
            os.kill(os.getpid(), signal.SIGTERM)

    parts = run_md_together(several, calculator, tmp_path / "parts", on_step=stop)
    assert parts.interrupted and {s["steps"] for s in parts.summaries.values()} == {13}
    assert not parts.summaries["s0"]["completed"]
    parts = run_md_together(several, calculator, tmp_path / "parts", resume=True)
    assert not parts.interrupted
    assert identical(whole, parts)


def test_either_kind_of_run_continues_the_other(calculator: equipes.Calculator, tmp_path: Path) -> None:
    """And runs that were left at different steps, as by a kill, wait for each other."""
    settings = MDSettings("nvt", steps=20, timestep=1.0, interval=4)
    several = systems(settings)
    whole = run_md_together(several, calculator, tmp_path / "whole")
    out = tmp_path / "parts"
    for system, steps in zip(several[:3], (3, 11, 20), strict=True):
        run_md(system.atoms, calculator, replace(system.settings, steps=steps), out / system.name)
    mixed = run_md_together(several, calculator, out, resume=True)
    for system in several:
        assert mixed.summaries[system.name]["steps"] == 20
        alike(whole.out / system.name, out / system.name)
    longer = replace(several[0].settings, steps=30)
    further = run_md(several[0].atoms, calculator, longer, out / "s0", resume=True)
    alone = run_md(several[0].atoms, calculator, longer, tmp_path / "alone")
    alike(further.out, alone.out)


RUNNER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import equipes
from equipes.simulate import MDSettings
from equipes.simulate.batch_md import run_md_together
from test_batch_md import SMALL, systems
potential = equipes.build("nequip", ["H", "O", "Cu"], SMALL, dtype="float64", seed=3)
def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.005)
run_md_together(
    systems(MDSettings("nvt", steps=60, interval=4, thermostat="langevin")),
    equipes.Calculator(potential, dtype="float64", exact=True), Path(sys.argv[1]), on_step=slowly,
    checkpoint_seconds=0.1,
)
"""


def test_killed_and_continued_it_is_the_same(calculator: equipes.Calculator, tmp_path: Path) -> None:
    several = systems(MDSettings("nvt", steps=60, interval=4, thermostat="langevin"))
    whole = run_md_together(several, calculator, tmp_path / "whole")
    code = RUNNER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        for line in process.stdout:
            if int(line) >= 4 * 40:
                process.kill()
                break
    assert (tmp_path / "killed" / "s3" / CHECKPOINT).is_file()
    again = run_md_together(several, calculator, tmp_path / "killed", resume=True)
    for system in several:
        alike(whole.out / system.name, again.out / system.name)


def test_what_cannot_be_continued(calculator: equipes.Calculator, tmp_path: Path) -> None:
    several = systems(MDSettings("nve", steps=2))
    with pytest.raises(InputError, match="nothing to continue from"):
        run_md_together(several, calculator, tmp_path / "run", resume=True)
    run_md_together(several, calculator, tmp_path / "run", potential="one")
    with pytest.raises(InputError, match="not empty"):
        run_md_together(several, calculator, tmp_path / "run", potential="one")
    with pytest.raises(InputError, match=r"s0: .*started with potential = one, not other"):
        run_md_together(several, calculator, tmp_path / "run", potential="other", resume=True)
    with pytest.raises(InputError, match="not both"):
        run_md_together(several, calculator, tmp_path / "run", resume=True, overwrite=True)


def test_nothing_is_left_of_the_runs_that_are_replaced(
    calculator: equipes.Calculator, tmp_path: Path
) -> None:
    several, out = systems(MDSettings("nve", steps=2)), tmp_path / "run"
    run_md_together(several, calculator, out)
    (out / "s2" / "notes.txt").write_text("mine")
    run_md(
        crystal(), calculator, MDSettings("nve", steps=1, temperature=100.0), out / "elsewhere"
    )  # somebody else's
    with pytest.raises(InputError, match="moves one system at a time"):
        run_md_together(systems(MDSettings("npt", steps=2), crystal()), calculator, out, overwrite=True)
    assert all((out / system.name / FINAL).is_file() for system in several)
    run_md_together(several[:2], calculator, out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"s0", "s1", "s2", "elsewhere", RUNS}
    assert [path.name for path in (out / "s2").iterdir()] == ["notes.txt"]
    assert (out / "elsewhere" / CHECKPOINT).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "npt"}, "npt moves one system at a time"),
        ({"ensemble": "nvt", "thermostat": "nose-hoover"}, "nose-hoover moves one system"),
        ({"timestep": 2.0}, "s1 has timestep = 2.0 and s0 has 0.5"),
        ({"max_feature_distance": 1.0}, "limits of uncertainty"),
        ({"temperature": -1.0}, "s1: the temperature must be 0 K or more"),
    ],
)
def test_systems_that_cannot_go_together(
    calculator: equipes.Calculator, tmp_path: Path, changes: dict, message: str
) -> None:
    several = systems(MDSettings("nve", steps=2))
    several[1] = replace(several[1], settings=replace(several[1].settings, **changes))
    with pytest.raises(InputError, match=message):
        run_md_together(several, calculator, tmp_path / "run")


def test_names_and_constraints(calculator: equipes.Calculator, tmp_path: Path) -> None:
    several = systems(MDSettings("nve", steps=2))
    with pytest.raises(InputError, match="name s0"):
        run_md_together([several[0], several[0]], calculator, tmp_path / "run")
    several[0].atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="s0: atoms that are held fixed"):
        run_md_together(several, calculator, tmp_path / "run")
    with pytest.raises(InputError, match="no systems"):
        run_md_together([], calculator, tmp_path / "run")


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(potential: equipes.Potential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    potential.save("model.safetensors")
    ase.io.write("copper.extxyz", crystal())
    ase.io.write("water.extxyz", [molecule("OH"), molecule("H2O")])
    return tmp_path


def command(*arguments: str) -> int:
    return run(app, ["md-batch", "model.safetensors", *arguments], "equipes")


def test_the_command_runs_every_structure_at_every_temperature(
    here: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--out", "run", "--ensemble", "nvt", "--steps", "5", "--dtype", "float64"]
    several = ["--temperature", "300,450", "--replicas", "2", "--frame", "all", "--seed", "7"]
    assert command("water.extxyz", *options, *several, "--json", "runs.json") == 0
    shown = capsys.readouterr().out
    assert "water-1-450K-1" in shown and "steps/s" in shown
    summary = json.loads(Path("runs.json").read_text())
    assert summary["n_systems"] == 8 and summary["failures"] == {}
    names = list(summary["systems"])
    assert names[:3] == ["water-0-300K-0", "water-0-300K-1", "water-0-450K-0"]
    assert [found["settings"]["seed"] for found in summary["systems"].values()] == list(range(7, 15))
    # One of them, with its seed, by the command for one.
    single = ["md", "model.safetensors", "water.extxyz", "--frame", "1", "--out", "alone", "--seed", "14"]
    assert run(app, [*single, "--temperature", "450", *options[2:]], "equipes") == 0
    alike(here / "run" / "water-1-450K-1", here / "alone")
    assert (here / "run" / RUNS).read_text().count("\n") == 9


def test_the_command_names_what_failed(here: Path, capsys: pytest.CaptureFixture) -> None:
    quiet = crystal()
    quiet.set_momenta(np.eye(4, 3) * 0.1)
    ase.io.write("several.extxyz", [quiet, colliding()])
    options = ["--out", "run", "--ensemble", "nve", "--steps", "12", "--timestep", "1", "--interval", "5"]
    assert command("several.extxyz", *options, "--keep-velocities", "--frame", "all") == 1
    shown = capsys.readouterr()
    assert "Error: several-1: step 10: atoms 0 (O) and 1 (H)" in shown.err and "(failed)" in shown.out
    assert (here / "run" / "several-0" / FINAL).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "warm"], "--temperature warm: write numbers"),
        (["--temperature", "300,300"], "stands twice"),
        (["--temperature", "300", "--frame", "last"], "--frame last: give a number, or all"),
        (["--temperature", "300", "--frame", "4"], "has no frame 4"),
    ],
)
def test_the_command_refuses(
    here: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert command("water.extxyz", "--out", "run", "--ensemble", "nve", "--steps", "2", *options) == 2
    assert message in capsys.readouterr().err
    assert not (here / "run").exists()


def test_a_committee_is_refused(here: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["md-batch", "a,b", "water.extxyz", "--out", "run", "--ensemble", "nve", "--steps", "2"]
    assert run(app, arguments, "equipes") == 2
    assert "a committee moves one system at a time" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("thermostat", ["bussi", "langevin"])
def test_on_a_gpu_it_is_the_run_of_the_cpu(
    potential: equipes.Potential, calculator: equipes.Calculator, tmp_path: Path, thermostat: str
) -> None:
    several = systems(MDSettings("nvt", steps=20, interval=5, thermostat=thermostat))
    here = run_md_together(several, calculator, tmp_path / "cpu")
    on_gpu = equipes.Calculator(potential, "cuda", dtype="float64", exact=True)
    there = run_md_together(several, on_gpu, tmp_path / "gpu")
    for system in several:
        alike(here.out / system.name, there.out / system.name, 1e-7)
