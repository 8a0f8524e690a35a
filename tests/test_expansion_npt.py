"""Thermal expansion by dynamics: known fluctuations come back, and a crystal agrees with itself in several ways."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate import NPTExpansionOptions, SimulationError, expansion_npt
from equipes.simulate.expansion_npt import expansion_from_tables, slope_at
from equipes.simulate.records import TABLE, Row, read_table
from pair_calculator import PairCalculator, argon

OPTIONS = NPTExpansionOptions(
    temperatures=(8.0, 16.0, 24.0),
    steps=900,
    timestep=8.0,
    interval=3,
    supercell=(1, 1, 1),
    thermostat_time=60.0,
    barostat_time=150.0,
    relax=False,
)


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def test_known_fluctuations_come_back(rng: np.random.Generator) -> None:
    """Gaussian volumes of a cell of 8 primitive ones with B = 100 GPa, α = 3e-5/K and Cp = 25 J/K/mol."""
    structure = bulk("Cu", a=3.6, cubic=True) * (2, 1, 1)
    modulus, alpha, capacity = 100.0 * units.GPa, 3e-5, 25.0 * units.J / units.mol
    options = NPTExpansionOptions(temperatures=(200.0, 300.0, 400.0, 500.0), equilibration=0.0)
    tables = []
    for t in options.temperatures:
        volume = 96.0 * np.exp(alpha * (t - 300.0))
        v = volume + np.sqrt(units.kB * t * volume / modulus) * rng.standard_normal(20_000)
        # cov(V, H) = k T² V α, and <H> rises with the heat capacity.
        h = alpha * t * modulus * (v - volume) + 8 * capacity * t + 0.3 * rng.standard_normal(len(v))
        tables.append([Row(k, float(k), 0.0, 0.0, h[k], t, None, v[k], 0.0) for k in range(len(v))])
    result = expansion_from_tables(tables, structure, options)
    assert result.volume_ang3[1] == pytest.approx(12.0, rel=1e-3)  # of one primitive cell
    for found, error, known in (
        (result.bulk_modulus_gpa, result.bulk_modulus_error_gpa, 100.0),
        (result.expansion_per_k, result.expansion_error_per_k, alpha),
    ):
        assert (np.abs(found - known) < 4 * error).all()
        assert (error < 0.1 * known).all()
    np.testing.assert_allclose(result.heat_capacity_j_per_k_per_mol, 25.0, rtol=0.05)
    assert result.provenance.checks[0].converged
    assert len(result.provenance.checks) == 5
    spread = np.std([row.volume_ang3 for row in tables[1]])
    assert result.volume_error_ang3[1] == pytest.approx(spread / 8 / np.sqrt(20_000), rel=0.35)


def test_the_slope_and_its_error(rng: np.random.Generator) -> None:
    x, errors = np.linspace(0, 1, 6), np.full(6, 0.1)
    slopes, said = [], None
    for _ in range(400):
        slope, said = slope_at(x, 2 * x + 3 * x**2 + 0.1 * rng.standard_normal(6), errors)
        slopes.append(slope)
    np.testing.assert_allclose(np.mean(slopes, axis=0), 2 + 6 * x, atol=0.15)
    np.testing.assert_allclose(np.std(slopes, axis=0), said, rtol=0.5)


@pytest.fixture(scope="module")
def crystal(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("npt") / "run"
    return out, expansion_npt(argon(), PairCalculator(cutoff=4.9), OPTIONS, out)


def test_a_crystal_expands_and_softens_as_its_fluctuations_say(crystal) -> None:
    _, result = crystal
    assert (np.diff(result.volume_ang3) > 3 * result.volume_error_ang3[1:]).all()
    assert result.linear_per_k(16.0) > 3 * result.linear_error_per_k(16.0)
    slope_and_fluctuation = result.provenance.checks[0]
    assert slope_and_fluctuation.change < 2 * slope_and_fluctuation.limit
    # Of atoms at rest in the same volume the stiffness is higher, and not by much.
    atoms = argon()
    edge = (32 * result.volume_ang3[1] / atoms.get_volume()) ** (1 / 3)
    volumes, energies = [], []
    for scale in np.linspace(0.99, 1.01, 7):
        squeezed = atoms.copy()
        squeezed.set_cell(atoms.cell.array * edge * scale, scale_atoms=True)
        squeezed.calc = PairCalculator(cutoff=4.9)
        volumes.append(squeezed.get_volume())
        energies.append(squeezed.get_potential_energy())
    curve = np.polyfit(np.array(volumes) - volumes[3], energies, 4)
    at_rest = 2 * curve[2] * volumes[3] / units.GPa
    assert 0.6 < result.bulk_modulus_gpa[1] / at_rest < 1.2
    assert (result.bulk_modulus_error_gpa < 0.3 * result.bulk_modulus_gpa).all()


def test_a_stopped_one_goes_on_to_the_same_result(tmp_path: Path, crystal) -> None:
    def stop(kelvin: float, step: int, row) -> None:
        if kelvin == 16.0 and step == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expansion_npt(argon(), PairCalculator(cutoff=4.9), OPTIONS, tmp_path / "x", on_step=stop)
    result = expansion_npt(argon(), PairCalculator(cutoff=4.9), OPTIONS, tmp_path / "x", resume=True)
    for name in ("volume_ang3", "bulk_modulus_gpa", "expansion_per_k"):
        np.testing.assert_array_equal(getattr(result, name), getattr(crystal[1], name))


def test_a_crystal_that_is_none_any_more_is_told(crystal) -> None:
    out, _ = crystal
    tables = [read_table(out / name / TABLE) for name in OPTIONS.settings()]
    tables[2] = [replace(row, volume_ang3=2 * row.volume_ang3) for row in tables[2]]
    warned = expansion_from_tables(tables, argon(), OPTIONS).provenance.warnings
    assert any("24 K" in sentence and "melted" in sentence for sentence in warned)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), {}, "needs a crystal"),
        (argon(), {"temperatures": (20.0, 30.0)}, "at least three"),
        (argon(), {"steps": 300}, "too few for an error"),
        (argon(), {"shape": "round"}, "unknown shape 'round'"),
    ],
)
def test_bad_input(tmp_path: Path, atoms, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        expansion_npt(atoms, PairCalculator(), replace(OPTIONS, **options), tmp_path / "x")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    monkeypatch.setattr(sys.modules["equipes.simulate.expansion_npt"], "_FEWEST_ROWS", 4)
    monkeypatch.setattr("equipes.cli.workflow.fingerprint", lambda *_, **__: "any")
    Path("any").touch()
    ase.io.write("copper.extxyz", bulk("Cu", a=3.6, cubic=True))
    command = ["expansion", "any", "copper.extxyz", "--method", "npt", "--out", "x"]
    temperatures = [word for t in (200, 300, 400) for word in ("--temperature", t)]
    assert equipes_command(*command, "--volumes", 5) == 2
    assert "--volumes does not belong to --method npt" in capsys.readouterr().err
    shape = ["--supercell", 1, 1, 1, "--steps", 170, "--timestep", 2, "--shape", "lengths"]
    assert equipes_command(*command, *temperatures, *shape) == 0
    assert "bulk modulus" in capsys.readouterr().out
    assert "3Dmol" in Path("x/report.html").read_text()
    assert Path("x/expansion.png").exists()
    found = json.loads(Path("x/expansion.json").read_text())
    assert len(found["volume_error_ang3"]) == 3
    # What is replaced starts anew, and nothing of the first is taken for it.
    seen = []

    def note(*_, resume: bool, overwrite: bool, **__) -> None:
        seen.append((resume, overwrite))
        raise SimulationError("seen")

    monkeypatch.setattr(sys.modules["equipes.simulate.expansion_npt"], "expansion_npt", note)
    assert equipes_command(*command, *temperatures, *shape, "--overwrite") == 1
    assert equipes_command(*command, *temperatures, *shape, "--resume") == 1
    assert seen == [(False, True), (True, False)]
