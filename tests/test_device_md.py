"""`run_md` on a device: the run that it is on the CPU, thermostats included, with the host away between two rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from equipes import Calculator
from equipes.models.device_frozen import DevicePotential
from equipes.models.frozen import describe_potential
from equipes.simulate import MDSettings, SimulationError, run_md
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.simulate.device_md import device_mover
from equipes.simulate.records import read_table
from test_device_dynamics import moving
from test_frozen import make


@pytest.fixture(scope="module")
def potential() -> DevicePotential:
    return DevicePotential(describe_potential(make("base"), None, 1e-3)[0], "cpu")


@pytest.fixture
def on_device(potential: DevicePotential, monkeypatch: pytest.MonkeyPatch) -> Calculator:
    """A calculator whose potential is frozen for a device, which here is the CPU."""
    monkeypatch.setattr("equipes.calculators.ase.runs_natively", lambda device: False)
    calculator = Calculator(make("base"), dtype="float64", freeze=True, skin=0.3)
    calculator.frozen, calculator._may_freeze = potential, False
    return calculator


def by_ase(calculator: Calculator, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on ASE moves the atoms."""
    monkeypatch.setattr("equipes.simulate.md.device_mover", lambda *_: None)


def settings(kind: str = "nvt", **changes: object) -> MDSettings:
    ensemble, _, thermostat = kind.partition("-")
    given: dict = {"temperature": 400.0, "interval": 6, "thermostat_time": 20.0, "seed": 3, "timestep": 0.7}
    return MDSettings(ensemble, **({"steps": 33, "thermostat": thermostat or "bussi"} | given | changes))


CASES = {
    "nve": settings("nve", temperature=900.0),
    "bussi": settings(),
    "langevin": settings("nvt-langevin"),
    "ramp": settings(temperature_end=900.0),
    "langevin ramp": settings("nvt-langevin", temperature_end=900.0),
    "long interval": settings(interval=100),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_the_cpu(
    case: str, on_device: Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = moving()
    steps: list[int] = []
    ours = run_md(
        atoms, on_device, CASES[case], tmp_path / "device", on_step=lambda step, _: steps.append(step)
    )
    assert len(steps) < 12, "the host was there too often"
    by_ase(on_device, monkeypatch)
    reference = run_md(atoms, on_device, CASES[case], tmp_path / "ase")
    np.testing.assert_allclose(ours.atoms.positions, reference.atoms.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        ours.atoms.get_velocities(), reference.atoms.get_velocities(), rtol=0, atol=1e-8
    )
    for mine, other in zip(
        *(read_table(tmp_path / name / "md.csv") for name in ("device", "ase")), strict=True
    ):
        for name, value in vars(other).items():
            assert getattr(mine, name) == (None if value is None else pytest.approx(value, abs=1e-6)), name
    frames = [read(tmp_path / name / "trajectory.extxyz", ":") for name in ("device", "ase")]
    for mine, other in zip(*frames, strict=True):
        np.testing.assert_allclose(mine.get_forces(), other.get_forces(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["nvt", "nvt-langevin"])
def test_either_continues_the_other(
    kind: str, on_device: Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms, whole = moving(), settings(kind)
    straight = run_md(atoms, on_device, whole, tmp_path / "straight")
    run_md(atoms, on_device, replace(whole, steps=14), tmp_path / "parts")
    with monkeypatch.context() as patch:
        by_ase(on_device, patch)
        run_md(atoms, on_device, replace(whole, steps=20), tmp_path / "parts", resume=True)
    last = run_md(atoms, on_device, whole, tmp_path / "parts", resume=True)
    np.testing.assert_allclose(last.atoms.positions, straight.atoms.positions, rtol=0, atol=1e-8)
    summary = json.loads((tmp_path / "parts" / "md.json").read_text())
    assert summary["completed"] and summary["steps"] == 33


def test_blocks_taken_back_have_the_same_random_numbers(
    on_device: Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of neighbours that do not last make steps be done again; the run stays the same."""
    atoms, whole = moving(), settings(temperature=3000.0, interval=20, keep_velocities=True)
    taken_back = []
    restore = DeviceDynamics._restore
    monkeypatch.setattr(DeviceDynamics, "_restore", lambda own: (taken_back.append(own), restore(own)))
    found = []
    for name, skin in (("short", 0.05), ("long", 3.0)):
        on_device.skin = skin
        found.append(run_md(atoms, on_device, whole, tmp_path / name).atoms)
    assert taken_back and len(set(map(id, taken_back))) == 1  # with the short skin alone
    np.testing.assert_allclose(found[0].positions, found[1].positions, rtol=0, atol=1e-8)


def test_the_last_structure_has_a_calculator_that_calculates(on_device: Calculator, tmp_path: Path) -> None:
    end = run_md(moving(), on_device, settings("nve", steps=3), tmp_path / "run").atoms
    assert end.calc is on_device
    before = end.get_potential_energy()
    end.positions[0] += 0.1
    assert abs(end.get_potential_energy() - before) > 1e-4


def test_what_asks_for_the_host_is_left_to_ase(on_device: Calculator) -> None:
    atoms = moving()
    assert device_mover(atoms, on_device, settings()) is not None
    for other in (settings("npt"), settings("nvt-nose-hoover"), settings(max_feature_distance=1.0)):
        assert device_mover(atoms, on_device, other) is None
    assert device_mover(atoms, Calculator(make("base"), exact=True), settings()) is None


def test_a_run_that_explodes_is_told_of(on_device: Calculator, tmp_path: Path) -> None:
    atoms: Atoms = moving()
    velocities = atoms.get_velocities()
    velocities[0] = [0.4, 0.0, 0.0]
    atoms.set_velocities(velocities)
    hot = settings("nve", keep_velocities=True, temperature=None, timestep=3.0, steps=200)
    with pytest.raises(SimulationError):
        run_md(atoms, on_device, hot, tmp_path / "run")
    assert (tmp_path / "run" / "failure.extxyz").exists()
    assert json.loads((tmp_path / "run" / "md.json").read_text())["stopped"]
