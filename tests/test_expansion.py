"""Thermal expansion: forces of DFT give silicon's well-known minimum, a cheap potential agrees with its dynamics."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate import SimulationError
from equipes.simulate.expansion import ExpansionOptions, expansion, expansion_from_harmonics
from equipes.simulate.harmonic import harmonic_from_forces
from equipes.simulate.store import Store

FAST = ExpansionOptions(supercell=(2, 2, 2), volumes=5, mesh=20.0, highest=500.0, step=25.0)


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def test_forces_of_dft_make_silicon_shrink_when_it_warms_up(shared_data: Path) -> None:
    """Silicon contracts between about 20 and 120 K and expands above, by 2.6e-6/K at 300 K (experiment)."""
    folder = shared_data / "data"
    unit = ase.io.read(folder / "si_phono3py" / "Si-PBE_POSCAR-unitcell", format="vasp")
    harmonics, energies = [], []
    path = folder / "phonopy_examples" / "si_pbe_volumes_displacements.xyz"
    for atoms in ase.io.read(path, index=":7"):
        scaled = unit.copy()
        scaled.set_cell(np.eye(3) * (atoms.get_volume() / 8) ** (1 / 3), scale_atoms=True)
        phonon = harmonic_from_forces(scaled, [atoms], (2, 2, 2))
        entry = phonon.dataset["first_atoms"][0]
        at_rest = (
            atoms.get_potential_energy() + 0.5 * entry["forces"][entry["number"]] @ entry["displacement"]
        )
        harmonics.append(phonon)
        energies.append(at_rest / 32)
    result = expansion_from_harmonics(harmonics, energies, ExpansionOptions(mesh=40.0), unit)
    assert result.linear_per_k(100.0) < 0
    assert result.linear_per_k(300.0) == pytest.approx(2.6e-6, abs=1e-6)
    assert (4 * result.volume_ang3[0]) ** (1 / 3) == pytest.approx(5.479, abs=0.003)
    assert result.bulk_modulus_gpa[0] == pytest.approx(88, rel=0.03)  # PBE
    assert result.provenance.converged


@pytest.fixture(scope="module")
def copper():
    return expansion(bulk("Cu", a=3.6), EMT(), FAST)


def test_copper_obeys_thermodynamics(copper) -> None:
    t, v, alpha = copper.temperatures_k, copper.volume_ang3, copper.expansion_per_k
    slope = np.gradient(v, t) / v
    np.testing.assert_allclose(alpha[2:-1], slope[2:-1], rtol=0.03)
    at = copper.at(450.0)
    # Cp - Cv = α² B V T, and the Grüneisen parameter α B V / Cv, with Cv from both.
    volume = v[at] * 1e-30 * 6.02214076e23
    bulk_modulus = copper.bulk_modulus_gpa[at] * 1e9
    difference = alpha[at] ** 2 * bulk_modulus * volume * t[at]
    constant_volume = copper.heat_capacity_j_per_k_per_mol[at] - difference
    assert constant_volume == pytest.approx(3 * 8.314, rel=0.03)
    gruneisen = alpha[at] * bulk_modulus * volume / constant_volume
    assert copper.gruneisen[at] == pytest.approx(gruneisen, rel=0.03)
    # At no temperature only zero-point motion makes it softer than the equation of state has it, 134.5 GPa.
    assert copper.bulk_modulus_gpa[0] == pytest.approx(132, rel=0.04)
    assert (np.diff(v) > 0).all() and (np.diff(copper.bulk_modulus_gpa) < 0).all()


def test_unstable_volumes_are_left_out_and_told() -> None:
    options = ExpansionOptions(supercell=(2, 2, 2), volumes=5, mesh=20.0, relax=False)
    with pytest.raises(SimulationError, match="stable at only 0 of 5 volumes"):
        expansion(bulk("Cu", "bcc", a=2.88), EMT(), options)


def test_a_stopped_calculation_goes_on(tmp_path: Path, copper) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "volumes" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "done.npz") as store:
        expansion(bulk("Cu", a=3.6), EMT(), FAST, store=store, progress=stop)
    with Store(tmp_path / "done.npz", resume=True) as store:
        result = expansion(bulk("Cu", a=3.6), EMT(), FAST, store=store)
        assert store.reused >= 9
    assert np.array_equal(result.volume_ang3, copper.volume_ang3)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), ExpansionOptions(), "needs a crystal"),
        (bulk("Cu"), ExpansionOptions(volumes=4), "at least 5 volumes"),
        (bulk("Cu"), ExpansionOptions(largest=0.99), "from below to above 1"),
        (bulk("Cu"), ExpansionOptions(highest=20.0), "at least 5 of them"),
    ],
)
def test_bad_input(atoms, options, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        expansion(atoms, EMT(), options)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    Path("any").touch()
    ase.io.write("copper.extxyz", bulk("Cu", a=3.6))
    options = ["--supercell", 2, 2, 2, "--volumes", 5, "--max-temperature", 400]
    assert equipes_command("expansion", "any", "copper.extxyz", "--out", "x", *options) == 0
    assert "linear expansion" in capsys.readouterr().out
    assert Path("x/expansion.png").exists()
    assert len(json.loads(Path("x/expansion.json").read_text())["volume_ang3"]) == 41
