"""What dynamics notes on the way is what its trajectory says, with or without one, in one piece or in several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from equipes import InputError
from equipes.simulate import MDSettings, radial_distributions, run_md
from equipes.simulate.diffusion import mean_square_displacement, motion_of
from equipes.simulate.observables import Displacements, Observables
from equipes.simulate.records import SUMMARY, TABLE, TRAJECTORY
from pair_calculator import PairCalculator, argon, settings_for

SETTINGS = replace(settings_for("npt", 240), reach=5.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("observables") / "run"
    return run_md(argon(), PairCalculator(cutoff=4.9), SETTINGS, out)


def test_it_is_what_the_trajectory_says(whole) -> None:
    frames = ase.io.read(whole.out / TRAJECTORY, index=":")
    kept = [frame for frame in frames if frame.info["step"] >= 48]  # without the first fifth
    (wanted,) = radial_distributions(kept, reach=5.0, bins=100)
    (found,) = whole.summary["radial_distributions"]
    np.testing.assert_allclose(found["values"], wanted.values, atol=1e-3 * wanted.values.max())
    assert found["coordination"] == pytest.approx(wanted.coordination, rel=1e-3)
    motion = motion_of(kept, 12.0)
    drift = motion.masses @ motion.displacements / motion.masses.sum()
    exact = mean_square_displacement(motion.displacements - drift[:, None]).mean(axis=1).sum(axis=1)
    lags = np.array(whole.summary["mean_square_displacement"]["lags_ps"])
    values = np.array(whole.summary["mean_square_displacement"]["ang2"]["Ar"])
    samples = np.round(lags / 0.012).astype(int)
    assert samples.max() >= len(kept) / 2
    every = samples <= 16  # farther lags have fewer origins
    np.testing.assert_allclose(values[every], exact[samples[every]], rtol=1e-4)
    np.testing.assert_allclose(values[~every], exact[samples[~every]], rtol=0.3)


def test_a_random_walk_moves_as_far_as_it_must(rng: np.random.Generator) -> None:
    atoms = argon()
    seen = Displacements(atoms)
    for _ in range(1000):
        seen.add(atoms)
        atoms.positions += 0.3 * rng.standard_normal(atoms.positions.shape)
    lags, values = seen.result()
    assert list(lags[:20]) == [*range(1, 17), 18, 20, 22, 24]
    assert lags[-1] > 800
    # The centre of mass, which is taken out, has one part in N of the motion.
    expected = 3 * 0.09 * lags * (1 - 1 / len(atoms))
    near = lags <= 200
    np.testing.assert_allclose(values["Ar"][near], expected[near], rtol=0.15)
    assert sum(level.nbytes for level in seen.levels) < 16 * 10 * atoms.positions.nbytes


def test_without_a_trajectory_in_two_parts_it_is_the_same(tmp_path: Path, whole) -> None:
    settings = replace(SETTINGS, trajectory=False)

    def stop(step, row) -> None:
        if step == 130:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_md(
            argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "x", on_step=stop, checkpoint_seconds=0
        )
    so_far = json.loads((tmp_path / "x" / SUMMARY).read_text())
    assert so_far["stopped"] == "running"
    assert so_far["radial_distributions"]
    result = run_md(argon(), PairCalculator(cutoff=4.9), settings, tmp_path / "x", resume=True)
    assert (tmp_path / "x" / TRAJECTORY).stat().st_size == 0
    assert (tmp_path / "x" / TABLE).read_bytes() == (whole.out / TABLE).read_bytes()
    for name in ("radial_distributions", "mean_square_displacement", "mean_pressure_gpa"):
        assert result.summary[name] == whole.summary[name]


def test_a_molecule_has_displacements_only() -> None:
    seen = Observables(molecule("H2O"), reach=5.0, first=0)
    seen.sample(0, molecule("H2O"))
    seen.sample(1, molecule("H2O"))
    assert seen.radial_distributions() == []
    assert set(seen.displacements.result()[1]) == {"H", "O"}


def test_convergence_is_said(whole) -> None:
    said = whole.summary["provenance"]
    assert "Quigley" in " ".join(said["citations"])
    assert any("too short" in sentence for sentence in said["warnings"]) or said["checks"]
    assert any("Langevin dynamics conserves no energy" in sentence for sentence in said["warnings"])


def test_a_run_that_is_not_in_equilibrium_says_so(tmp_path: Path) -> None:
    settings = MDSettings("nvt", steps=400, timestep=4.0, temperature=20.0, interval=2, thermostat_time=600.0)
    hot = argon()
    hot.rattle(0.35, seed=1)
    result = run_md(hot, PairCalculator(cutoff=4.9), settings, tmp_path / "run")
    energy = next(check for check in result.provenance.checks if "second half" in check.what)
    assert not energy.converged


@pytest.mark.parametrize("lengths", [True, False])
def test_lengths_alone_or_the_whole_shape(tmp_path: Path, lengths: bool) -> None:
    crystal = argon()
    crystal.set_cell([10.9, 10.4, 10.6], scale_atoms=True)
    settings = MDSettings(
        "npt",
        steps=300,
        timestep=4.0,
        temperature=40.0,
        barostat_time=200.0,
        flexible_cell=not lengths,
        flexible_lengths=lengths,
    )
    final = run_md(crystal, PairCalculator(cutoff=4.9), settings, tmp_path / "run").atoms
    off = np.abs(final.cell.array - np.diag(np.diag(final.cell.array))).max()
    assert (off == 0) == lengths
    ratios = np.diag(final.cell.array) / np.diag(crystal.cell.array)
    assert np.ptp(ratios) > 1e-3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flexible_lengths": True, "ensemble": "nvt"}, "belong to npt"),
        ({"flexible_lengths": True, "flexible_cell": True}, "either the whole shape"),
        ({"reach": 40.0}, "between 0 and 30"),
    ],
)
def test_bad_settings(tmp_path: Path, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run_md(argon(), PairCalculator(), replace(SETTINGS, **options), tmp_path / "run")


def test_lengths_need_an_orthorhombic_cell(tmp_path: Path) -> None:
    skewed = argon()
    skewed.set_cell([[10.6, 0, 0], [0.5, 10.6, 0], [0, 0, 10.6]])
    with pytest.raises(InputError, match="orthorhombic"):
        run_md(skewed, PairCalculator(), replace(SETTINGS, flexible_lengths=True), tmp_path / "run")
