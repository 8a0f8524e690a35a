"""Elastic constants against second derivatives of the energy, tabulated averages, and other orientations."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.spacegroup import crystal

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate import SimulationError
from equipes.simulate.crystals import point_group, to_standard_axes
from equipes.simulate.elastic import (
    ElasticOptions,
    elastic,
    fit_tensor,
    invariant_tensors,
    polycrystal,
    strain_modes,
)
from equipes.simulate.store import Store, structure_key


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


@pytest.fixture(scope="module")
def copper_result():
    return elastic(bulk("Cu", a=3.65), EMT())


def test_copper_is_the_curvature_of_the_energy(copper_result) -> None:
    c = copper_result.tensor_gpa
    cell = copper_result.atoms

    def energy(strain: np.ndarray) -> float:
        strained = cell.copy()
        strained.set_cell(cell.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = EMT()
        return strained.get_potential_energy()

    def curvature(mode: np.ndarray, h: float = 2e-3) -> float:
        second = (energy(h * mode) - 2 * energy(0 * mode) + energy(-h * mode)) / h**2
        return second / cell.get_volume() / units.GPa

    assert c[0, 0] == pytest.approx(curvature(np.diag([1.0, 0, 0])), rel=2e-3)
    assert 2 * (c[0, 0] - c[0, 1]) == pytest.approx(curvature(np.diag([1.0, -1.0, 0])), rel=5e-3)
    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = 0.5
    assert c[3, 3] == pytest.approx(curvature(shear), rel=2e-3)
    assert copper_result.spacegroup == "Fm-3m"
    assert copper_result.independent == 3
    assert copper_result.strained_cells == 8
    assert copper_result.stable
    assert copper_result.provenance.converged
    # The error is what halving the strain changes: the third derivative of the energy, which is there.
    assert 1e-3 < copper_result.errors_gpa.max() < 0.2
    assert json.loads(json.dumps(copper_result.summary()))["provenance"]["citations"]


def test_a_turned_crystal_has_the_same_tensor(copper_result) -> None:
    turned = bulk("Cu", a=3.6, cubic=True)
    turned.rotate(30, (1, 2, 0.5), rotate_cell=True)
    np.testing.assert_allclose(elastic(turned, EMT()).tensor_gpa, copper_result.tensor_gpa, atol=0.3)


def test_internal_relaxation_matters_and_symmetry_changes_nothing() -> None:
    # In the close-packed hexagonal lattice the atoms move against each other under strain.
    hexagonal = bulk("Cu", "hcp", a=2.55, c=4.17)
    relaxed = elastic(hexagonal, EMT(), ElasticOptions(strain=0.005)).tensor_gpa
    clamped = elastic(hexagonal, EMT(), ElasticOptions(strain=0.005, relax_positions=False)).tensor_gpa
    assert clamped[0, 0] > relaxed[0, 0] + 1.0
    assert relaxed[5, 5] == pytest.approx((relaxed[0, 0] - relaxed[0, 1]) / 2, rel=1e-6)
    # All six strains, and no assumption: what the symmetry gave must come out.
    responses = []
    for mode in np.eye(6):
        calls = [
            _stress_of(hexagonal, sign * 0.0025 * mode, ElasticOptions(relax_cell=False)) for sign in (1, -1)
        ]
        responses.append((calls[0] - calls[1]) / 0.005)
    free = fit_tensor(np.eye(6), np.array(responses), invariant_tensors(np.eye(3)[None]))
    symmetric = elastic(hexagonal, EMT(), ElasticOptions(strain=0.005, relax_cell=False)).tensor_gpa
    np.testing.assert_allclose(free, symmetric, atol=0.5)


def _stress_of(atoms, strain, options) -> np.ndarray:
    from equipes.simulate.elastic import _stresses

    turned = to_standard_axes(atoms)
    return _stresses(turned, EMT(), {"cell": strain}, options, Store(), lambda *_: None)[0]


@pytest.mark.parametrize(
    ("spacegroup", "cell", "constants", "modes"),
    [
        (227, (5.4, 5.4, 5.4, 90, 90, 90), 3, 2),
        (186, (3.2, 3.2, 5.2, 90, 90, 120), 5, 3),
        (152, (4.9, 4.9, 5.4, 90, 90, 120), 6, 3),
        (136, (4.6, 4.6, 3.0, 90, 90, 90), 6, 4),
        (62, (10.3, 6.0, 4.7, 90, 90, 90), 9, 6),
        (14, (5.1, 5.2, 5.3, 90, 99, 90), 13, 6),
        (2, (5.1, 5.6, 6.3, 80, 99, 105), 21, 6),
    ],
)
def test_symmetry_leaves_the_known_number_of_constants(spacegroup, cell, constants, modes) -> None:
    atoms = crystal("Si", [(0.11, 0.23, 0.37)], spacegroup=spacegroup, cellpar=cell)
    invariant = invariant_tensors(point_group(to_standard_axes(atoms)))
    assert len(invariant) == constants
    assert len(strain_modes(invariant)) <= modes


def test_averages_of_copper_are_the_tabulated_ones() -> None:
    tensor = np.zeros((6, 6))
    tensor[:3, :3] = 121.4
    tensor += np.diag([168.4 - 121.4] * 3 + [75.4] * 3)
    moduli = polycrystal(tensor)
    # Simmons and Wang, Single Crystal Elastic Constants (1971): K 137, G by Voigt 54.6 and by Reuss 40.0 GPa.
    assert moduli.bulk_hill_gpa == pytest.approx(137.07, abs=0.01)
    assert moduli.shear_voigt_gpa == pytest.approx(54.64, abs=0.01)
    assert moduli.shear_reuss_gpa == pytest.approx(40.0, abs=0.1)
    assert moduli.universal_anisotropy == pytest.approx(5 * 54.64 / moduli.shear_reuss_gpa - 5, abs=0.01)


def test_an_unstable_crystal_is_told() -> None:
    # Held at a volume far too large copper falls apart.
    result = elastic(bulk("Cu", a=4.6), EMT(), ElasticOptions(relax_cell=False))
    assert not result.stable
    assert result.moduli is None
    assert any("not stable" in warning for warning in result.provenance.warnings)
    assert any("under a stress" in warning for warning in result.provenance.warnings)


def test_a_stopped_calculation_goes_on(tmp_path: Path, copper_result) -> None:
    atoms, facts = bulk("Cu", a=3.65), {"structure": structure_key(bulk("Cu", a=3.65))}

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "done.npz", facts) as store:
        elastic(atoms, EMT(), store=store, progress=stop)
    with Store(tmp_path / "done.npz", facts, resume=True) as store:
        result = elastic(atoms, EMT(), store=store)
        assert store.reused == 5  # the relaxed cell, that without strain, and three strains
    assert np.array_equal(result.tensor_gpa, copper_result.tensor_gpa)
    with pytest.raises(InputError, match=r"was made with structure = Cu [0-9a-f]{16}, not None"):
        Store(tmp_path / "done.npz", {}, resume=True)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), ElasticOptions(), "needs a crystal"),
        (bulk("Cu"), ElasticOptions(strain=0.0), "between 0 and 0.1"),
        (bulk("Cu"), ElasticOptions(fmax=-1), "must be above 0"),
    ],
)
def test_bad_input(atoms, options, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        elastic(atoms, EMT(), options)


def test_atoms_that_do_not_relax_are_told() -> None:
    class Noisy(EMT):
        """Forces that never vanish, as of a network in too few digits."""

        def calculate(self, *args, **kwargs) -> None:
            super().calculate(*args, **kwargs)
            self.results["forces"] = self.results["forces"] + 0.01 * noise.choice([-1, 1], size=(2, 3))

    noise = np.random.default_rng(1)

    with pytest.raises(SimulationError, match=r"unstrained: the atoms did not relax to 0.001 eV/Å"):
        elastic(bulk("Cu", "hcp", a=2.55, c=4.17), Noisy(), ElasticOptions(relax_cell=False))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    Path("any").touch()
    ase.io.write("copper.extxyz", bulk("Cu", a=3.6))
    assert equipes_command("elastic", "any", "copper.extxyz") == 0
    shown = capsys.readouterr().out
    assert "bulk modulus" in shown
    assert "Hill, Proc. Phys. Soc." in shown
    out = Path("copper_elastic")
    names = {"elastic.json", "elastic.png", "report.html", "structure.extxyz", "calculations.npz"}
    assert {path.name for path in out.iterdir()} == names
    summary = json.loads((out / "elastic.json").read_text())
    assert summary["moduli"]["bulk_hill_gpa"] == pytest.approx(134.5, abs=0.5)
    page = (out / "report.html").read_text()
    assert "bulk modulus" in page and "<svg" in page and "structures-data" in page
    assert equipes_command("elastic", "any", "copper.extxyz") == 2
    assert "copper_elastic exists" in capsys.readouterr().err
    assert equipes_command("elastic", "any", "copper.extxyz", "--resume", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["tensor_gpa"] == summary["tensor_gpa"]
    assert equipes_command("elastic", "any", "copper.extxyz", "--resume", "--strain", 0.02) == 2
    assert "was made with options" in capsys.readouterr().err
