"""Phonons: forces of DFT give the known frequencies, a chain the formula, an unstable crystal its imaginary modes."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import equipes
from equipes import InputError
from equipes.cli import app, run
from equipes.simulate.harmonic import harmonic, harmonic_from_forces
from equipes.simulate.phonons import PhononOptions, phonons, phonons_from_forces
from equipes.simulate.store import Store
from pair_calculator import PairCalculator

FAST = PhononOptions(supercell=(2, 2, 2), mesh=20.0, points=40, temperatures=(400.0, 100.0))


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def test_forces_of_dft_give_the_known_frequencies(shared_data: Path) -> None:
    folder = shared_data / "data" / "si_phono3py"
    unit = ase.io.read(folder / "Si-PBE_POSCAR-unitcell", format="vasp")
    displaced = ase.io.read(folder / "si_pbe_fc3_displacements.xyz", index=0)
    result = phonons_from_forces(unit, [displaced], (2, 2, 2))
    known = json.loads((shared_data / "data" / "reference" / "phonons.json").read_text())[
        "Si_PBE_computed_here"
    ]
    for label in ("X", "L", "W", "K"):
        np.testing.assert_allclose(result.points_thz[label], known["frequencies_THz"][label], rtol=0.01)
    optical = known["frequencies_THz"]["Gamma"][3:]
    np.testing.assert_allclose(result.points_thz["Γ"][3:], optical, rtol=0.01)
    np.testing.assert_allclose(result.points_thz["Γ"][:3], 0, atol=0.01)
    capacity = result.thermal.heat_capacity_j_per_k_per_mol[30]
    assert capacity == pytest.approx(known["Cv_300K_J_per_K_per_mol_of_primitive_cell(2 Si)"], rel=0.01)
    assert result.stable
    assert any("not looked at" in warning for warning in result.provenance.warnings)


def test_atoms_may_come_in_any_order(shared_data: Path, rng: np.random.Generator) -> None:
    folder = shared_data / "data" / "si_phono3py"
    unit = ase.io.read(folder / "Si-PBE_POSCAR-unitcell", format="vasp")
    displaced = ase.io.read(folder / "si_pbe_fc3_displacements.xyz", index=0)
    order = rng.permutation(64)
    shuffled = displaced[order]
    shuffled.calc = SinglePointCalculator(shuffled, forces=displaced.get_forces()[order])
    known = harmonic_from_forces(unit, [displaced], (2, 2, 2)).force_constants
    found = harmonic_from_forces(unit, [shuffled], (2, 2, 2)).force_constants
    np.testing.assert_allclose(found, known, atol=1e-9)


def test_nearest_neighbour_springs_have_the_known_frequencies() -> None:
    """An fcc crystal of springs k: at X the longitudinal mode has ω² = 8 k/m, the transverse ones 4 k/m."""
    a, k = 5.3, 0.7  # eV/Å²

    class Springs(PairCalculator):
        def _pair(self, r):
            stretch = np.where(
                r < 4.3, r - a / np.sqrt(2), 0.0
            )  # nothing is left to be shifted at the cutoff
            return 0.5 * k * stretch**2, k * stretch

    atoms = bulk("Ar", "fcc", a=a, cubic=True)
    options = PhononOptions(supercell=(3, 3, 3), relax=False, mesh=20.0, points=20, check_supercell=False)
    result = phonons(atoms, Springs(cutoff=4.4), options)
    unit = np.sqrt(k / 39.948) * 15.633302  # THz of ω² = 1 eV/Å²/u
    expected = unit * np.sqrt([4, 4, 8])
    np.testing.assert_allclose(result.points_thz["X"], expected, rtol=1e-3)


def test_an_unstable_crystal_is_flagged() -> None:
    # Body-centred copper turns into the face-centred one.
    result = phonons(bulk("Cu", "bcc", a=2.88, cubic=True), EMT(), FAST)
    assert not result.stable
    assert result.lowest_thz < -0.5
    assert result.imaginary[0][1] == pytest.approx(result.lowest_thz)
    assert "imaginary modes" in " ".join(result.provenance.warnings)


def test_copper_is_stable_and_its_convergence_is_told() -> None:
    result = phonons(bulk("Cu", a=3.6, cubic=True), EMT(), FAST)
    assert result.stable
    assert result.supercell == (2, 2, 2)
    by_half, by_size = result.provenance.checks
    assert by_half.converged
    assert "supercell 1 1 1 instead of 2 2 2" in by_size.what
    assert not by_size.converged  # four atoms are too few
    dulong_petit = 3 * 8.314
    assert 0.9 * dulong_petit < result.thermal.heat_capacity_j_per_k_per_mol[3] < dulong_petit
    assert np.trapezoid(result.dos, result.dos_thz) == pytest.approx(3, rel=0.05)
    assert json.loads(json.dumps(result.summary()))["stable"] is True


def test_polar_crystals_get_a_note() -> None:
    options = PhononOptions(supercell=(1, 1, 1), mesh=10.0, points=10, relax=False)
    model = equipes.build("nequip", ["Na", "Cl"], {"num_layers": 1, "num_features": 4, "r_max": 4.0}, seed=2)
    calculator = equipes.Calculator(model, dtype="float64")
    result = phonons(bulk("NaCl", "rocksalt", a=5.6), calculator, options)
    assert any("Born charges" in warning for warning in result.provenance.warnings)
    assert any("was not looked at" in warning for warning in result.provenance.warnings)


def test_batches_of_a_potential_are_one_by_one() -> None:
    model = equipes.build("nequip", ["Cu"], {"num_layers": 1, "num_features": 4, "r_max": 4.0}, seed=2)
    calculator = equipes.Calculator(model, dtype="float64")

    class Wrapped(EMT):  # the same potential, unseen
        def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
            calculator.calculate(atoms)
            self.results = calculator.results

    unit = bulk("Cu", "hcp", a=2.5, c=4.4)
    known, _ = harmonic(unit, Wrapped(), (2, 2, 1), 0.01)
    found, _ = harmonic(unit, calculator, (2, 2, 1), 0.01)
    scale = np.abs(known.force_constants).max()
    np.testing.assert_allclose(found.force_constants, known.force_constants, atol=1e-9 * scale)


def test_a_stopped_calculation_goes_on(tmp_path: Path) -> None:
    atoms = bulk("Cu", "hcp", a=2.55, c=4.17)

    def stop(what: str, done: int, total: int) -> None:
        if what == "displaced supercells" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "done.npz") as store:
        phonons(atoms, EMT(), FAST, store=store, progress=stop)
    with Store(tmp_path / "done.npz", resume=True) as store:
        result = phonons(atoms, EMT(), FAST, store=store)
        assert store.reused == 3
    whole = phonons(atoms, EMT(), FAST)
    assert np.array_equal(result.phonopy.force_constants, whole.phonopy.force_constants)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), PhononOptions(), "needs a crystal"),
        (bulk("Cu"), PhononOptions(supercell=(2, 0, 2)), "three whole numbers"),
        (bulk("Cu"), PhononOptions(displacement=0.0), "between 0 and 0.3"),
        (bulk("Cu"), PhononOptions(born="absent"), "absent: no such file"),
        (bulk("Cu"), PhononOptions(temperatures=(0.0, 10.0)), "highest above 0 K"),
    ],
)
def test_bad_input(atoms, options, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        phonons(atoms, EMT(), options)


def test_bad_displaced_structures() -> None:
    unit = bulk("Cu", a=3.6, cubic=True)
    moved = unit * (2, 2, 2)
    moved.positions[:2] += 0.01
    with pytest.raises(InputError, match="displaced structure 0: no forces"):
        phonons_from_forces(unit, [moved], (2, 2, 2))
    moved.calc = SinglePointCalculator(moved, forces=np.zeros((32, 3)))
    with pytest.raises(InputError, match="2 atoms are displaced, not one"):
        phonons_from_forces(unit, [moved], (2, 2, 2))
    with pytest.raises(InputError, match="another cell than the supercell's 4"):
        phonons_from_forces(unit, [moved], (1, 1, 1))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipes.simulate.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'equipes\[phonons\]'"):
        phonons(bulk("Cu"), EMT())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    Path("any").touch()
    ase.io.write("copper.extxyz", bulk("Cu", a=3.6))
    options = ["--length", 4, "--mesh", 20, "--max-temperature", 300]
    assert equipes_command("phonons", "any", "copper.extxyz", "--out", "ph", *options) == 0
    shown = capsys.readouterr().out
    assert "at X" in shown and "heat capacity" in shown and "NOT converged" in shown
    names = {"phonons.json", "phonons.png", "thermal.png", "report.html", "structure.extxyz"}
    assert {path.name for path in Path("ph").iterdir()} == names | {"calculations.npz", "phonopy.yaml"}
    import phonopy

    again = phonopy.load("ph/phonopy.yaml", produce_fc=False, log_level=0)
    again.run_qpoints([[0.5, 0, 0.5]])
    summary = json.loads(Path("ph/phonons.json").read_text())
    np.testing.assert_allclose(again.qpoints.frequencies[0], summary["points_thz"]["X"], rtol=1e-3)
