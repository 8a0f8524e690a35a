"""D3(BJ) dispersion on top of a calculator."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.io import read, write

import equipes
from equipes.calculators import WithDispersion
from equipes.calculators.dispersion import warning_about
from equipes.cli import app, run
from equipes.errors import InputError
from equipes.foundation.registry import published
from equipes.simulate import Store
from equipes.simulate.evaluations import evaluate

pytest.importorskip("dftd3", reason="dftd3 is not installed (pip install 'equipes[dispersion]')")


class Nothing(LennardJones):
    """Energy, forces and stress of nothing."""

    def __init__(self) -> None:
        super().__init__(epsilon=0.0)


def dispersion_of(atoms: Atoms, functional: str = "PBE") -> Atoms:
    atoms = atoms.copy()
    atoms.calc = WithDispersion(Nothing(), functional)
    return atoms


@pytest.mark.parametrize("distance", [6.0, 7.1, 10.0])
def test_two_argon_atoms_have_the_energy_of_the_formula(distance: float) -> None:
    # C6 of argon, the square root of its expectation values' ratio Q, and PBE's parameters, as Grimme published them.
    c6, q, s8, a1, a2 = 64.6462, 3.44677275, 0.7875, 0.4289, 4.4407
    c8, damping = 3 * c6 * q * q, a1 * np.sqrt(3) * q + a2
    expected = -c6 / (distance**6 + damping**6) - s8 * c8 / (distance**8 + damping**8)
    pair = dispersion_of(Atoms("Ar2", positions=[[0, 0, 0], [0, 0, distance * units.Bohr]]))
    assert pair.get_potential_energy() == pytest.approx(expected * units.Hartree, rel=2e-5)


def test_there_are_two_bodies_only() -> None:
    side = 3.8
    corners = [[0, 0, 0], [side, 0, 0], [side / 2, side * np.sqrt(3) / 2, 0]]
    three, two = (dispersion_of(Atoms(f"Ar{n}", positions=corners[:n])) for n in (3, 2))
    assert three.get_potential_energy() == pytest.approx(3 * two.get_potential_energy(), rel=1e-5)


def test_forces_and_stress_are_derivatives() -> None:
    crystal = bulk("SiC", "zincblende", a=4.4)
    crystal.rattle(0.1, seed=1)
    crystal.set_cell(crystal.cell.array @ [[1.02, 0.03, 0], [0.03, 0.99, 0.01], [0, 0.01, 1]], True)
    atoms = dispersion_of(crystal)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    step = 1e-3

    def energy(positions: np.ndarray, strain: np.ndarray) -> float:
        moved = atoms.copy()
        moved.positions = positions
        moved.set_cell(moved.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return float(dispersion_of(moved).get_potential_energy())

    zero = np.zeros((3, 3))
    for index in np.ndindex(forces.shape):
        shift = np.zeros_like(forces)
        shift[index] = step
        slope = (energy(atoms.positions + shift, zero) - energy(atoms.positions - shift, zero)) / (2 * step)
        assert -slope == pytest.approx(forces[index], abs=1e-6)
    step = 3e-3  # neighbours are counted up to a sharp end, whose tiny jumps a smaller step would see
    for i, j in ((0, 0), (0, 1), (1, 2), (2, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        slope = (energy(atoms.positions, strain) - energy(atoms.positions, -strain)) / (2 * step)
        assert slope / atoms.get_volume() == pytest.approx(stress[i, j], rel=2e-3, abs=2e-7)


def test_it_is_added_to_what_the_calculator_says() -> None:
    potential = equipes.build(
        "nequip", ["C", "H"], {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 4}
    )
    methane = molecule("CH4")
    methane.calc = equipes.Calculator(potential, exact=True)
    plain = methane.get_potential_energy(), methane.get_forces()
    alone = dispersion_of(methane)
    methane.calc = WithDispersion(equipes.Calculator(potential, exact=True), "PBE")
    assert methane.get_potential_energy() == pytest.approx(plain[0] + alone.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(methane.get_forces(), plain[1] + alone.get_forces(), atol=1e-12)
    assert methane.calc.results["dispersion_energy"] == pytest.approx(alone.get_potential_energy())
    assert alone.get_potential_energy() < -1e-3
    assert methane.calc.results["free_energy"] == methane.calc.results["energy"]
    with pytest.raises(PropertyNotImplementedError):
        methane.get_potential_energies()
    # One model serves while atoms move, and another one when they change.
    methane.rattle(0.1)
    assert methane.calc.get_property("energy", methane) == pytest.approx(
        equipes_energy(methane, potential) + dispersion_of(methane).get_potential_energy(), abs=1e-12
    )
    del methane[4]
    assert methane.get_potential_energy() == pytest.approx(
        equipes_energy(methane, potential) + dispersion_of(methane).get_potential_energy(), abs=1e-12
    )


def equipes_energy(atoms: Atoms, potential: equipes.Potential) -> float:
    atoms = atoms.copy()
    atoms.calc = equipes.Calculator(potential, exact=True)
    return float(atoms.get_potential_energy())


def test_workflows_do_not_lose_it_in_batches() -> None:
    """They evaluate an exact potential of ours past its calculator."""
    potential = equipes.build(
        "nequip", ["Si"], {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 4}
    )
    atoms = bulk("Si")
    atoms.calc = WithDispersion(equipes.Calculator(potential, exact=True), "PBE")
    (found,) = evaluate([bulk("Si")], atoms.calc, store=Store())
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    assert found.energy < equipes_energy(bulk("Si"), potential) - 0.1


def test_committees_keep_their_spread() -> None:
    small = {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 4}
    committee = equipes.Committee(
        [equipes.build("nequip", ["Si"], small, seed=s) for s in (1, 2)], exact=True
    )
    atoms = bulk("Si")
    atoms.rattle(0.1)
    atoms.calc = WithDispersion(committee, "PBE")
    assert atoms.get_stress().shape == (6,) and atoms.calc.results["forces_std"].shape == (2,)
    with pytest.raises(InputError, match="familiarize"):
        atoms.calc.feature_distances(atoms)


def test_functionals() -> None:
    assert warning_about("PBE", published("7net-0")) is None
    assert warning_about("pbe", None) is None
    assert warning_about("r2SCAN", published("mace-matpes-r2scan-0")) is None
    assert "parameters are those of B3LYP" in (warning_about("B3LYP", published("7net-0")) or "")
    included = replace(published("7net-0"), functional="PBE-D3(BJ)")
    with pytest.raises(InputError, match="dispersion in it; leave out --d3"):
        warning_about("PBE", included)
    with pytest.raises(InputError, match="no parameters for 'nonsense'"):
        WithDispersion(Nothing(), "nonsense")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    with pytest.raises(InputError, match=r"pip install 'equipes\[dispersion\]'"):
        WithDispersion(Nothing(), "PBE")


def test_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 4}
    equipes.build("nequip", ["Si"], small).save(tmp_path / "model.safetensors")
    write("si.xyz", bulk("Si", cubic=True))
    md = ["md", "model.safetensors", "si.xyz", "--ensemble", "nve", "--temperature", "300"]
    md += ["--steps", "2", "--exact", "--out"]
    assert run(app, [*md, "with", "--d3", "PBE"], "equipes") == 0
    assert run(app, [*md, "without"], "equipes") == 0
    energies = [
        json.loads(Path(name, "md.json").read_text())["mean_potential_energy_ev"]
        for name in ("with", "without")
    ]
    silicon = dispersion_of(bulk("Si", cubic=True))
    assert energies[0] - energies[1] == pytest.approx(silicon.get_potential_energy(), rel=1e-2)
    assert "D3(BJ) of PBE" in json.loads(Path("with", "md.json").read_text())["potential"]
    assert run(app, [*md, "other", "--d3", "nonsense"], "equipes") == 2


def test_many_structures_relax_with_it_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 4}
    equipes.build("nequip", ["Si"], small, dtype="float64").save(tmp_path / "model.safetensors")
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.02, seed=0)
    write("si.xyz", crystal)
    options = ["--steps", "2", "--dtype", "float64", "--d3", "PBE", "--exact"]
    assert run(app, ["relax", "model.safetensors", "si.xyz", "--out", "one.xyz", *options], "equipes") == 1
    assert (
        run(app, ["relax-batch", "model.safetensors", "si.xyz", "--out", "all.xyz", *options], "equipes") == 1
    )
    one, found = read("one.xyz"), read("all.xyz")
    assert found.get_potential_energy() == pytest.approx(one.get_potential_energy(), abs=1e-8)
    bare = equipes.Calculator("model.safetensors", dtype="float64", exact=True).get_potential_energy(one)
    assert abs(one.get_potential_energy() - bare) > 0.1
    # Continued without it, the steps kept would be of another potential.
    assert run(app, ["relax-batch", "model.safetensors", "si.xyz", "--out", "all.xyz", *options[:-3],
                     "--exact", "--resume"], "equipes") == 2  # fmt: skip
    capsys.readouterr()
    assert run(app, ["md-batch", "model.safetensors", "si.xyz", "--d3", "PBE"], "equipes") == 2
    assert "--d3" in capsys.readouterr().err
