"""Lattice thermal conductivity: forces of DFT give the known values, and physics holds for a cheap potential."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate.conductivity import ConductivityOptions, conductivity, conductivity_from_forces
from equipes.simulate.store import Store

FAST = ConductivityOptions(
    supercell=(2, 2, 2), meshes=(8.0, 12.0), temperatures=(300.0, 600.0, 1200.0), full=False, isotopes=False
)


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def dft_files(shared_data: Path) -> tuple[Path, Path]:
    folder = shared_data / "data" / "si_phono3py"
    return folder / "Si-PBE_phono3py_disp.yaml", folder / "Si-PBE_FORCES_FC3"


def test_the_full_solution_of_dft_forces_on_a_coarse_mesh(shared_data: Path) -> None:
    options = ConductivityOptions(meshes=(22.0,), temperatures=(300.0,), isotopes=False)
    result = conductivity_from_forces(*dft_files(shared_data), options)
    assert result.meshes == [(7, 7, 7)]
    # Of phono3py 4.10 by its own interface, from the same files.
    assert result.relaxation_time[0, 0, 0] == pytest.approx(92.63, rel=0.01)
    assert result.full is not None
    assert result.full[0, 0, 0] == pytest.approx(95.49, rel=0.01)


@pytest.fixture(scope="module")
def copper():
    return conductivity(bulk("Cu", a=3.6), EMT(), FAST)


def test_it_falls_with_the_inverse_temperature(copper) -> None:
    assert copper.supercell_atoms == 8
    products = copper.best[:, 0] * copper.temperatures_k
    assert (copper.best[:, :3] > 0).all()
    np.testing.assert_allclose(products[1], products[2], rtol=0.02)  # far above the Debye temperature
    np.testing.assert_allclose(copper.best[:, 0], copper.best[:, 2], rtol=1e-6)  # cubic
    assert [check.what[:18] for check in copper.provenance.checks] == ["a mesh without end"]


def test_isotopes_resist_and_a_cutoff_saves_work(copper) -> None:
    isotopes = conductivity(bulk("Cu", a=3.6), EMT(), replace(FAST, isotopes=True))
    assert (isotopes.best[:, 0] < copper.best[:, 0]).all()
    assert any("Tamura" in citation for citation in isotopes.provenance.citations)
    near = conductivity(bulk("Cu", a=3.6), EMT(), replace(FAST, cutoff_pair=2.0))
    assert near.displaced_supercells < copper.displaced_supercells
    assert "pairs within 2 Å" in near.provenance.method


def test_a_stopped_calculation_goes_on(tmp_path: Path, copper) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("mesh") and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "done.npz") as store:
        conductivity(bulk("Cu", a=3.6), EMT(), FAST, store=store, progress=stop)

    class Never(EMT):
        def calculate(self, atoms=None, *args, **kwargs) -> None:
            assert len(atoms) == 1  # only the structure given is looked at again
            super().calculate(atoms, *args, **kwargs)

    with Store(tmp_path / "done.npz", resume=True) as store:
        result = conductivity(bulk("Cu", a=3.6), Never(), FAST, store=store)
    assert np.array_equal(result.best, copper.best)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), ConductivityOptions(), "needs a crystal"),
        (bulk("Cu"), ConductivityOptions(meshes=(30.0, 20.0)), "ascending"),
        (bulk("Cu"), ConductivityOptions(temperatures=(0.0,)), "above 0 K"),
        (bulk("Cu"), ConductivityOptions(cutoff_pair=-1.0), "cutoff of pairs"),
    ],
)
def test_bad_input(atoms, options, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        conductivity(atoms, EMT(), options)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        conductivity_from_forces(tmp_path / "a.yaml", tmp_path / "b")
    for name in ("a.yaml", "b"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match="cannot be read together"):
        conductivity_from_forces(tmp_path / "a.yaml", tmp_path / "b")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    Path("any").touch()
    ase.io.write("copper.extxyz", bulk("Cu", a=3.6))
    options = ["--supercell", 2, 2, 2, "--mesh", 8, "--mesh", 12, "--temperature", 300, "--rta-only"]
    assert equipes_command("conductivity", "any", "copper.extxyz", "--out", "k", *options) == 0
    assert "relaxation time, 300 K" in capsys.readouterr().out
    assert Path("k/conductivity.png").stat().st_size > 1000
    assert json.loads(Path("k/conductivity.json").read_text())["full"] is None
