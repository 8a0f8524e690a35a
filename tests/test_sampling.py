"""Sampling: the physics of each way, labels and their units, failures counted, and repetition to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from equipes.errors import InputError
from equipes.sampling import (
    DefectOptions,
    DynamicsOptions,
    NormalModeOptions,
    Part,
    StrainOptions,
    collect,
    defective,
    defects,
    dynamics,
    normal_modes,
    strains,
    xtb_calculator,
)
from equipes.sampling.normal_modes import vibrations
from equipes.simulate import SimulationError
from pair_calculator import PairCalculator, argon
from spring_calculator import Springs


@pytest.fixture
def tetrahedron() -> Atoms:
    """Four equal atoms, all joined: a rigid body with six vibrations."""
    return Atoms("N4", positions=[[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def test_vibrations_of_a_diatomic() -> None:
    pair = Atoms("HCl", positions=[[0, 0, 0], [0.3, 0.4, 1.2]])
    pair.calc = Springs(pair, stiffness=32.0)
    frequencies, modes = vibrations(pair)
    reduced = np.prod(pair.get_masses()) / pair.get_masses().sum()
    assert frequencies == pytest.approx([np.sqrt(32.0 / reduced)], rel=1e-3)
    assert modes.shape == (6, 1)


def test_normal_modes_share_the_energy_of_heat(tetrahedron: Atoms) -> None:
    options = NormalModeOptions(count=400, temperatures=(300.0,), largest_force=1e9)
    sample = normal_modes(tetrahedron, Springs(tetrahedron), options, np.random.default_rng(1))
    mean = np.mean([frame.energy for frame in sample.frames])
    # Six harmonic vibrations, kT/2 of potential energy each; 400 frames know it to 3 %.
    assert mean == pytest.approx(6 * units.kB * 300.0 / 2, rel=0.12)
    centres = [frame.atoms.positions.mean(axis=0) for frame in sample.frames]
    assert np.abs(centres).max() < 1e-9


def test_dynamics_has_the_temperature(tetrahedron: Atoms) -> None:
    options = DynamicsOptions(count=200, temperature=500.0, timestep=3.0, interval=8, thermostat_time=40.0)
    sample = dynamics(tetrahedron, Springs(tetrahedron), options, np.random.default_rng(2))
    assert len(sample) == 200
    mean = np.mean([frame.energy for frame in sample.frames])
    assert mean == pytest.approx(6 * units.kB * 500.0 / 2, rel=0.15)


def test_labels_are_those_of_the_geometry(tetrahedron: Atoms) -> None:
    sample = dynamics(
        tetrahedron, Springs(tetrahedron), DynamicsOptions(count=5, settle=3), np.random.default_rng(3)
    )
    for frame in sample.frames:
        atoms = frame.atoms.copy()
        atoms.calc = Springs(tetrahedron)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), rtol=1e-12)
        assert frame.stress is None


def test_strains_of_a_crystal() -> None:
    crystal = argon()
    sample = strains(
        crystal, PairCalculator(), StrainOptions(count=12, largest=0.03), np.random.default_rng(4)
    )
    strain = np.array(
        [np.linalg.solve(crystal.cell.array, frame.atoms.cell.array) - np.eye(3) for frame in sample.frames]
    )
    assert 0.02 < np.abs(strain).max() <= 0.03
    np.testing.assert_allclose(strain, strain.transpose(0, 2, 1), atol=1e-12)  # no rotation
    atoms = sample.frames[3].atoms.copy()
    atoms.calc = PairCalculator()
    np.testing.assert_allclose(sample.frames[3].stress, atoms.get_stress(voigt=False), rtol=1e-10)
    with pytest.raises(InputError, match="crystal"):
        strains(molecule("H2O"), PairCalculator(), StrainOptions(), np.random.default_rng(0))


def test_defects() -> None:
    rng = np.random.default_rng(5)
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    assert len(defective(salt, "vacancy", rng)) == 7
    interstitial = defective(salt, "interstitial", rng)
    assert len(interstitial) == 9
    assert interstitial.get_distances(8, range(8), mic=True).min() > 2.0  # the hole's 2.44 Å, nearly
    swapped = defective(salt, "antisite", rng)
    assert sorted(swapped.numbers) == sorted(salt.numbers)
    assert (swapped.numbers != salt.numbers).sum() == 2
    with pytest.raises(InputError, match="antisites"):
        defective(argon(), "antisite", rng)
    options = DefectOptions(
        kinds=("vacancy",),
        cells=2,
        dynamics=DynamicsOptions(count=3, temperature=40.0, timestep=4.0, settle=2, interval=2),
    )
    sample = defects(argon(), PairCalculator(), options, rng)
    assert [len(frame.atoms) for frame in sample.frames] == [31, 31, 31]
    assert all((frame.config_type or "").startswith("vacancy, dynamics") for frame in sample.frames)
    with pytest.raises(InputError, match="unknown defect 'dislocation'"):
        DefectOptions(kinds=("dislocation",)).check()  # type: ignore[arg-type]


def test_failures_are_counted_and_the_frames_are_made_all_the_same(tetrahedron: Atoms) -> None:
    options = DynamicsOptions(count=10, settle=5, interval=5)
    sample = dynamics(tetrahedron, Springs(tetrahedron, fails=23), options, np.random.default_rng(6))
    assert len(sample) == 10
    assert sample.discarded["the calculator failed"] >= 2


def test_nothing_but_failures_is_an_error(tetrahedron: Atoms) -> None:
    with pytest.raises(SimulationError, match="the calculator failed"):
        dynamics(tetrahedron, Springs(tetrahedron, fails=1), DynamicsOptions(), np.random.default_rng(7))


def test_violent_geometries_are_left_out(tetrahedron: Atoms) -> None:
    options = NormalModeOptions(count=30, temperatures=(1500.0,), largest_force=6.0)
    sample = normal_modes(tetrahedron, Springs(tetrahedron), options, np.random.default_rng(8))
    assert sample.discarded["forces above 6 eV/Å"] > 0
    assert max(np.linalg.norm(frame.forces, axis=1).max() for frame in sample.frames) <= 6.0


def walk(atoms: Atoms, calculator, rng: np.random.Generator):
    return dynamics(atoms, calculator, DynamicsOptions(count=3, settle=2, interval=2), rng)


def test_what_is_kept_is_what_would_be_made(tetrahedron: Atoms, tmp_path) -> None:
    from functools import partial

    path, calls = tmp_path / "samples.npz", []

    def calculator() -> Springs:
        calls.append(1)
        return Springs(tetrahedron)

    parts = [Part(name, 3, partial(walk, tetrahedron)) for name in ("a", "b", "c")]
    whole = collect(parts, calculator, seed=1)
    collect(parts[:2], calculator, seed=1, path=path)  # as a run that was stopped after two parts
    calls.clear()
    resumed = collect(parts, calculator, seed=1, path=path)
    assert len(calls) == 1
    for one, other in zip(whole.frames, resumed.frames, strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
        np.testing.assert_array_equal(one.forces, other.forces)
        assert one.config_type == other.config_type
    assert whole.frames[0].energy != whole.frames[3].energy  # parts have random numbers of their own
    with pytest.raises(InputError, match="seed"):
        collect(parts, calculator, seed=2, path=path)


def test_tight_binding_is_in_our_units() -> None:
    pytest.importorskip("tblite", reason="tblite is not installed (pip install 'equipes[pretraining]')")
    water = molecule("H2O")
    water.calc = xtb_calculator()
    # tblite's own documentation: -137.96777625229421 eV.
    assert water.get_potential_energy() == pytest.approx(-137.96777625, abs=1e-4)
    forces, step = water.get_forces(), 1e-3
    water.positions[0, 2] += step
    up = water.get_potential_energy()
    water.positions[0, 2] -= 2 * step
    assert forces[0, 2] == pytest.approx((water.get_potential_energy() - up) / (2 * step), rel=1e-3)
    with pytest.raises(InputError, match="unknown method"):
        xtb_calculator("PM7")


def test_without_tblite_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipes.simulate.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'equipes\[pretraining\]'"):
        xtb_calculator()
