"""Diffusion: random walks of known coefficients, a published trajectory, Arrhenius lines, runs that go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units

from equipes import InputError
from equipes.cli import app, run
from equipes.simulate.diffusion import (
    DiffusionOptions,
    Motion,
    analyze_diffusion,
    arrhenius,
    mean_square_displacement,
    motion_of,
    nernst_einstein,
)
from equipes.simulate.diffusion_runs import DiffusionRunOptions, diffusion
from pair_calculator import PairCalculator, argon


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def walk(rng: np.random.Generator, spread=(1.0, 1.0, 1.0), ions: int = 20, together: int = 1) -> Motion:
    """Lithium ions that walk at random (in groups that move together), with resting oxygen, all drifting away."""
    steps = np.repeat(rng.normal(size=(1000, ions // together, 3)), together, axis=1) * spread
    moved = np.zeros((1000, ions + 4, 3))
    moved[:, :ions] = np.cumsum(steps, axis=0)
    moved += 0.3 * np.arange(1000)[:, None, None]
    return Motion(np.array([3] * ions + [8] * 4), np.array([6.9] * ions + [16.0] * 4), moved, 20.0, 1000.0)


def test_the_displacement_is_the_definition(rng: np.random.Generator) -> None:
    x = np.cumsum(rng.normal(size=(50, 3, 3)), axis=0)
    direct = [np.mean((x[lag:] - x[: len(x) - lag]) ** 2, axis=0) for lag in range(50)]
    np.testing.assert_allclose(mean_square_displacement(x), direct, atol=1e-9)


@pytest.mark.parametrize("together", [1, 4])
def test_random_walks_and_their_errors(rng: np.random.Generator, together: int) -> None:
    known = 0.5 * 1e-4 / 0.02  # half the variance of a step, Å², over its time, ps
    results = [
        analyze_diffusion(walk(rng, together=together), 500.0, DiffusionOptions("Li")) for _ in range(30)
    ]
    found = np.array([result.diffusion_cm2_per_s for result in results])
    errors = np.array([result.diffusion_error for result in results])
    assert found.mean() == pytest.approx(known, abs=4 * found.std() / np.sqrt(30))
    # The errors are those that the walks really have, not smaller, also when ions move together.
    assert 0.8 < np.sqrt(np.mean(errors**2)) / found.std() < 1.8
    if together == 4:
        ratio = np.mean([result.charge_diffusion_cm2_per_s for result in results]) / found.mean()
        assert ratio == pytest.approx(4, rel=0.35)


def test_directions_and_drift(rng: np.random.Generator) -> None:
    result = analyze_diffusion(walk(rng, (2.0, 1.0, 0.0), ions=200), 500.0, DiffusionOptions("Li"))
    x, y, z = result.components_cm2_per_s
    assert x / y == pytest.approx(4, rel=0.3)
    assert z == pytest.approx(0, abs=1e-9)
    drifting = analyze_diffusion(walk(rng), 500.0, DiffusionOptions("Li", remove_drift=False))
    assert drifting.diffusion_cm2_per_s > 10 * result.diffusion_cm2_per_s


def test_the_published_trajectory_is_covered(shared_data: Path) -> None:
    stored = np.load(shared_data / "data" / "lgps_aimd_600K" / "lgps_600K_displacements.npz")
    atoms = Atoms(list(stored["symbols"]), cell=stored["cell"])
    moved = stored["displacements"].transpose(1, 0, 2).astype(float)
    interval = float(stored["time_step_fs"] * stored["step_skip"])
    motion = Motion(atoms.numbers, atoms.get_masses(), moved, interval, atoms.get_volume())
    result = analyze_diffusion(motion, 600.0, DiffusionOptions("Li"))
    path = shared_data / "data" / "reference" / "ionic_transport.json"
    known = json.loads(path.read_text())["LGPS_AIMD_600K_file"]["expected_from_repository_test"]
    diffusion_known = known["tracer_diffusivity_cm2_per_s"]
    assert abs(result.diffusion_cm2_per_s - diffusion_known) < result.diffusion_error
    assert result.diffusion_cm2_per_s == pytest.approx(diffusion_known, rel=0.15)
    assert result.conductivity_ms_per_cm is not None and result.conductivity_error is not None
    assert abs(result.conductivity_ms_per_cm - known["conductivity_mS_per_cm"]) < result.conductivity_error
    conductivity = nernst_einstein(diffusion_known, 20, motion.volume_ang3 or 0, 600.0)
    assert conductivity == pytest.approx(known["conductivity_mS_per_cm"], rel=1e-3)
    # Twenty picoseconds are few hops, and that is said.
    assert any("few hops" in warning for warning in result.provenance.warnings)
    assert not result.provenance.converged


def test_wrapped_frames_are_unwrapped() -> None:
    cell = np.diag([5.0, 6.0, 7.0])
    truth = np.cumsum(np.full((40, 2, 3), 0.3), axis=0)
    frames = [
        Atoms("LiO", positions=p % np.diag(cell), cell=cell * (1 + 0.001 * k), pbc=True)
        for k, p in enumerate(truth)
    ]
    for k, atoms in enumerate(frames):
        atoms.set_cell(cell)
        atoms.set_cell(cell * (1 + 0.001 * k), scale_atoms=True)
    moved = motion_of(frames, 10.0).displacements
    np.testing.assert_allclose(moved[-1], truth[-1] - truth[0], rtol=0.05)
    frames[3].positions[0] += [2.1, 0, 0]
    with pytest.raises(InputError, match="frame 3: an atom moved by almost half the cell"):
        motion_of(frames, 10.0)


def test_an_activation_energy_is_recovered(rng: np.random.Generator) -> None:
    results = []
    for temperature in (600.0, 800.0, 1000.0, 1300.0):
        spread = np.sqrt(200 * np.exp(-0.25 / (units.kB * temperature)))
        results.append(analyze_diffusion(walk(rng, (spread,) * 3), temperature, DiffusionOptions("Li")))
    line = arrhenius(results, 1000.0, 1.0)
    assert abs(line.activation_energy_ev - 0.25) < 2.5 * line.activation_energy_error
    assert line.activation_energy_error < 0.08
    known = 200 * 0.5e-4 / 0.02 * np.exp(-0.25 / (units.kB * 300.0))
    assert abs(np.log(line.diffusion_300k_cm2_per_s / known)) < 2.5 * np.log(line.factor_300k)
    with pytest.raises(InputError, match="at least two temperatures"):
        arrhenius(results[:1], None, 1.0)


LIQUID = DiffusionRunOptions(
    temperatures=(250.0, 400.0),
    analysis=DiffusionOptions("Ar", blocks=2, charge=0.0),
    steps=260,
    timestep=8.0,
    interval=5,
)


def liquid() -> Atoms:
    atoms = argon()
    atoms.set_cell(atoms.cell.array * 1.2, scale_atoms=True)
    return atoms


def test_runs_at_two_temperatures_go_on_to_the_same_result(tmp_path: Path) -> None:
    calculator = PairCalculator(cutoff=6.0)
    whole = diffusion(liquid(), calculator, LIQUID, tmp_path / "whole")
    assert whole.arrhenius is not None
    assert whole.temperatures[1].diffusion_cm2_per_s > 1e-5

    def stop(kelvin, step, row) -> None:
        if kelvin == 400.0 and step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diffusion(liquid(), calculator, LIQUID, tmp_path / "stopped", on_step=stop)
    again = diffusion(liquid(), calculator, LIQUID, tmp_path / "stopped", resume=True)
    assert again.summary() == whole.summary()
    # What is replaced does not stay beside what replaces it, nor is it gone before that is there.
    with pytest.raises(InputError, match="temperature"):
        diffusion(
            liquid(), calculator, replace(LIQUID, temperatures=(-1.0,)), tmp_path / "whole", overwrite=True
        )
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"250K", "400K"}
    (tmp_path / "whole" / "250K").rename(tmp_path / "whole" / "mine")
    (tmp_path / "stopped" / "250K").rename(tmp_path / "whole" / "1e+03K")
    diffusion(
        liquid(), calculator, replace(LIQUID, temperatures=(400.0,)), tmp_path / "whole", overwrite=True
    )
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"400K", "mine"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (DiffusionOptions("Na"), "no Na in the structure; it has Li, O"),
        (DiffusionOptions("Li", window=(0.5, 0.2)), "two fractions, ascending"),
        (DiffusionOptions("Li", blocks=1), "at least 2 blocks"),
        (DiffusionOptions("Li", skip=0.95), "50 frames are too few for 5 blocks"),
    ],
)
def test_bad_input(rng: np.random.Generator, options: DiffusionOptions, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        analyze_diffusion(walk(rng), 300.0, options)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: PairCalculator(cutoff=6.0))
    Path("any").touch()
    ase.io.write("argon.extxyz", liquid())
    options = ["--mobile", "Ar", "--temperature", 300, "--temperature", 400, "--steps", 260, "--interval", 5]
    options += ["--timestep", 8, "--blocks", 2]
    assert equipes_command("diffusion", "any", "argon.extxyz", "--out", "d", *options) == 0
    shown = capsys.readouterr()
    assert "D of Ar" in shown.out and "activation energy" in shown.out
    assert Path("d/arrhenius.png").exists() and Path("d/report.html").exists()
    summary = json.loads(Path("d/diffusion.json").read_text())
    frames = "d/300K/trajectory.extxyz"
    measured = summary["temperatures"][0]["temperature_k"]
    given = ["--mobile", "Ar", "--temperature", measured, "--skip", 0.1, "--blocks", 2]
    assert equipes_command("msd", frames, "--out", "m", *given) == 0
    again = json.loads(Path("m/msd.json").read_text())
    known = summary["temperatures"][0]["diffusion_cm2_per_s"]
    assert again["diffusion_cm2_per_s"] == pytest.approx(known, rel=1e-9)
    assert equipes_command("msd", "argon.extxyz", *given) == 2
    assert "do not say their time" in capsys.readouterr().err
