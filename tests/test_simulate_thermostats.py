"""Other thermostats, ramps, and what comes of them: radial distributions, glasses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate import MDSettings, run_md
from equipes.simulate.melt_quench import MeltQuenchOptions, melt_quench
from equipes.simulate.order import coordination_numbers, radial_distributions
from equipes.simulate.records import CHECKPOINT, TABLE, read_table
from pair_calculator import PairCalculator, argon, same_record

THERMOSTATS = ("nose-hoover", "langevin")


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


@pytest.mark.parametrize("thermostat", THERMOSTATS)
def test_a_thermostat_is_canonical(tmp_path: Path, thermostat: str) -> None:
    settings = MDSettings(
        "nvt",
        steps=1500,
        timestep=8.0,
        temperature=60.0,
        interval=3,
        thermostat_time=80.0,
        seed=3,
        thermostat=thermostat,
    )
    result = run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "run")
    summary = result.summary
    degrees = {"nose-hoover": 3 * 32 - 3, "langevin": 3 * 32}[thermostat]
    assert summary["degrees_of_freedom"] == degrees
    error = summary["mean_temperature_k_error"]
    assert error < 2.0
    assert abs(summary["mean_temperature_k"] - 60) < 3.5 * error + 0.3
    temperatures = np.array([row.temperature_k for row in read_table(result.out / TABLE)])[100:]
    assert temperatures.std() == pytest.approx(60 * np.sqrt(2 / degrees), rel=0.2)
    drift = summary["energy_drift_mev_per_atom_per_ps"]
    assert (drift is None) == (thermostat == "langevin")
    assert drift is None or abs(drift) < 0.05


def ramp(ensemble: str, thermostat: str = "bussi") -> MDSettings:
    return MDSettings(
        ensemble,
        steps=60,
        timestep=4.0,
        temperature=60.0,
        temperature_end=30.0,
        interval=3,
        seed=7,
        barostat_time=200.0,
        pressure_end=0.4 if ensemble == "npt" else None,
        thermostat=thermostat,
    )


@pytest.mark.parametrize(
    "settings", [ramp("nvt"), ramp("npt"), *(ramp("nvt", thermostat) for thermostat in THERMOSTATS)]
)
def test_a_ramp_in_parts_is_the_ramp_in_one(tmp_path: Path, settings: MDSettings) -> None:
    run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "whole")

    def stop(step, row) -> None:
        if step == 25:
            raise KeyboardInterrupt

    options = {"checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "part", on_step=stop, **options)
    run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "part", resume=True)
    assert same_record(tmp_path / "whole", tmp_path / "part")
    with pytest.raises(InputError, match="over 60 steps and cannot have 70"):
        run_md(argon(), PairCalculator(), replace(settings, steps=70), tmp_path / "part", resume=True)


@pytest.mark.parametrize("thermostat", ["bussi", *THERMOSTATS])
def test_the_temperature_follows_the_ramp(tmp_path: Path, thermostat: str) -> None:
    settings = replace(
        ramp("nvt", thermostat), steps=600, timestep=8.0, temperature=20.0, temperature_end=80.0
    )
    result = run_md(
        argon(), PairCalculator(cutoff=4.9), replace(settings, thermostat_time=60.0), tmp_path / "run"
    )
    temperatures = np.array([row.temperature_k for row in read_table(result.out / TABLE)])
    assert temperatures[40:80].mean() == pytest.approx(20 + 60 * 0.3, rel=0.2)
    assert temperatures[160:].mean() == pytest.approx(20 + 60 * 0.9, rel=0.2)


def test_the_pressure_follows_the_ramp(tmp_path: Path) -> None:
    settings = replace(
        ramp("npt"), steps=900, timestep=8.0, temperature_end=None, pressure_end=1.0, barostat_time=300.0
    )
    rows = read_table(run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "run").out / TABLE)
    assert np.mean([row.pressure_gpa for row in rows[240:]]) == pytest.approx(0.9, rel=0.15)


def test_a_checkpoint_without_the_new_settings_goes_on(tmp_path: Path) -> None:
    settings = MDSettings("nvt", steps=10, timestep=4.0, temperature=60.0)
    run_md(argon(), PairCalculator(), settings, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays.pop("facts")))
    for name in ("thermostat", "temperature_end", "pressure_end"):
        del facts["settings"][name]
    np.savez(path, facts=np.array(json.dumps(facts)), **arrays)
    result = run_md(argon(), PairCalculator(), replace(settings, steps=20), tmp_path / "run", resume=True)
    assert result.summary["steps"] == 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"thermostat": "andersen"}, "unknown thermostat 'andersen'"),
        ({"ensemble": "npt", "thermostat": "langevin"}, "belongs to nvt"),
        ({"ensemble": "nve", "temperature_end": 30.0}, "nve has no temperature to change"),
        ({"temperature_end": 0.0}, "temperature_end must be above 0"),
        ({"pressure_end": 1.0}, "nvt has no pressure to change"),
    ],
)
def test_bad_settings(tmp_path: Path, options: dict, sentence: str) -> None:
    settings = replace(MDSettings("nvt", steps=5, temperature=60.0), **options)
    with pytest.raises(InputError, match=sentence):
        run_md(argon(), PairCalculator(), settings, tmp_path / "run")


def test_radial_distributions_of_known_structures(rng: np.random.Generator) -> None:
    silicon = bulk("Si", a=5.43, cubic=True) * (2, 2, 2)
    silicon.rattle(0.05, seed=1)
    (only,) = radial_distributions([silicon])
    assert only.pair == ("Si", "Si")
    assert only.peak_ang == pytest.approx(2.35, abs=0.1)
    assert 2.6 < only.minimum_ang < 3.6
    assert only.coordination == pytest.approx(4)
    gas = [
        ase.Atoms("Ar200", positions=20 * rng.random((200, 3)), cell=[20] * 3, pbc=True) for _ in range(20)
    ]
    (even,) = radial_distributions(gas)
    np.testing.assert_allclose(even.values[60:], 1, atol=0.12)
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    assert (coordination_numbers(salt, "Na", "Cl", 3.2) == 6).all()
    unlike = next(d for d in radial_distributions([salt], bins=60) if d.pair == ("Cl", "Na"))
    assert unlike.peak_ang == pytest.approx(2.8, abs=0.06)
    assert unlike.coordination == pytest.approx(6)
    with pytest.raises(InputError, match="periodic in all three"):
        radial_distributions([])


def liquid() -> ase.Atoms:
    atoms = argon()
    atoms.set_cell(atoms.cell.array * 1.12, scale_atoms=True)
    return atoms


FAST = MeltQuenchOptions(
    melt=600.0, cold=20.0, melt_steps=200, quench_steps=300, anneal_steps=100, timestep=8.0, interval=10
)


def test_a_glass_is_made_and_goes_on_to_the_same(tmp_path: Path) -> None:
    whole = melt_quench(liquid(), PairCalculator(cutoff=5.2), FAST, tmp_path / "whole")
    assert whole.rate_k_per_ps == pytest.approx(580 / 2.4)
    assert whole.melt_displacement_ang > 3
    assert 8 < whole.glass[0].coordination < 14
    assert sum(whole.coordination["Ar-Ar"].values()) == 32
    assert whole.atoms.get_kinetic_energy() < 3 * 32 * units.kB * 40

    def stop(stage, step, row) -> None:
        if stage == "quench" and step == 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        melt_quench(liquid(), PairCalculator(cutoff=5.2), FAST, tmp_path / "part", on_step=stop)
    again = melt_quench(liquid(), PairCalculator(cutoff=5.2), FAST, tmp_path / "part", resume=True)
    assert np.array_equal(again.atoms.positions, whole.atoms.positions)
    with pytest.raises(InputError, match="hotter than the glass"):
        melt_quench(liquid(), PairCalculator(), replace(FAST, melt=10.0), tmp_path / "cold")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: PairCalculator(cutoff=5.2))
    Path("any").touch()
    ase.io.write("argon.extxyz", argon())
    options = ["--melt", 600, "--cold", 20, "--melt-steps", 100, "--quench-steps", 100, "--anneal-steps", 50]
    options += ["--timestep", 8, "--interval", 10]
    assert equipes_command("melt-quench", "any", "argon.extxyz", "--out", "glass", *options) == 0
    assert "Ar-Ar" in capsys.readouterr().out
    assert Path("glass/rdf.png").exists() and Path("glass/quench/md.csv").exists()
    assert equipes_command("melt-quench", "any", "argon.extxyz", "--out", "glass", *options) == 2
