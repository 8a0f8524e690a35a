"""Conductivity by dynamics: estimators of known processes, driven atoms, going on after a stop, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from scipy.signal import lfilter

import equipes
from equipes import InputError
from equipes.calculators import Calculator
from equipes.cli import app, run
from equipes.simulate import flux_runs
from equipes.simulate.correlation import autocorrelation, cepstrum, integrate
from equipes.simulate.flux_runs import Driven, FluxRun
from equipes.simulate.green_kubo import GreenKuboOptions, analyze_flux, green_kubo
from equipes.simulate.heat_flux import WATTS, Carried, FluxOf
from equipes.simulate.hnemd import HNEMDOptions, hnemd
from equipes.simulate.store import Store

SHORT = GreenKuboOptions(
    300.0, steps=420, equilibration=60, runs=2, timestep=1.0, interval=2, correlation=0.05, seed=3
)
DRIVEN = HNEMDOptions(300.0, steps=100, equilibration=20, interval=1, timestep=2.0, field=1e-3, seed=3)


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def relaxing(n: int, interval: float, time: float, rng: np.random.Generator) -> np.ndarray:
    """A flux `[n, 3]` that forgets in `time`, with the integral `time`, under a vibration that conducts nothing."""
    keep = np.exp(-interval / time)
    settled = rng.normal(size=(1, 3))
    kicks = np.sqrt(1 - keep**2) * rng.normal(size=(n - 1, 3))
    x = lfilter([1.0], [1.0, -keep], np.concatenate([settled, kicks]), axis=0)
    return x + 3 * np.diff(rng.normal(size=(n + 1, 3)), axis=0)


def test_a_correlation_is_what_it_says(rng: np.random.Generator) -> None:
    flux = rng.normal(size=(50, 3))
    found = autocorrelation(flux, 7)
    for lag in range(7):
        pairs = flux[: 50 - lag].T @ flux[lag:] / (50 - lag)
        np.testing.assert_allclose(found[lag, [0, 1, 2]], np.diag(pairs), rtol=1e-10)
        np.testing.assert_allclose(found[lag, 5], (pairs[0, 1] + pairs[1, 0]) / 2, rtol=1e-10, atol=1e-12)


def test_errors_are_those_that_repetition_gives() -> None:
    """Over thirty independent sets of data the estimates scatter around the truth as their errors say."""
    rng, true = np.random.default_rng(5), 2.0
    direct, smooth = [], []
    for _ in range(30):
        fluxes = [relaxing(4000, 0.05, true, rng) for _ in range(3)]
        found = integrate(fluxes, 0.05, 40.0)
        assert found.settled
        direct.append((found.mean[found.cutoff] - true) / found.mean_error[found.certain])
        spectrum = cepstrum(fluxes, 0.05, 3.0 / found.times[found.cutoff])
        smooth.append((spectrum.value - true) / spectrum.error)
    for deviations in (np.array(direct), np.array(smooth)):
        assert abs(deviations.mean()) < 1.0
        assert 0.5 < deviations.std() < 1.6
    assert (np.abs(direct) < 2).mean() > 0.85


def test_the_whole_tensor_and_lags_that_are_too_short(rng: np.random.Generator) -> None:
    mix = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 2.0]])
    found = integrate([relaxing(6000, 0.05, 1.0, rng) @ mix.T for _ in range(4)], 0.05, 20.0)
    at = found.cutoff
    for index, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        error = found.running_error[found.certain, index]
        assert abs(found.running[at, index] - (mix @ mix.T)[a, b]) < 3.5 * error
        assert error < 1.2 * np.sqrt((mix @ mix.T)[a, a] * (mix @ mix.T)[b, b])
    slow = integrate([relaxing(20_000, 0.05, 5.0, rng) for _ in range(4)], 0.05, 3.0)
    assert not slow.settled


def test_units(rng: np.random.Generator) -> None:
    """κ = <J²> τ / (V k_B T²): 1 eV Å/fs, squared, for 1 ps, in 1000 Å³ at 300 K."""
    atoms = Atoms("Ar", cell=[10, 10, 10], pbc=True)
    runs = []
    for _ in range(4):
        flux = relaxing(6000, 50.0, 1000.0, rng)
        runs.append(FluxRun(flux, np.full(6000, 300.0), np.zeros(6000), 0.1))
    options = GreenKuboOptions(300.0, steps=60_000, runs=4, timestep=5.0, interval=10, correlation=20.0)
    found = analyze_flux(atoms, runs, options)
    joule = units._e
    expected = (joule * 1e-10 / 1e-15) ** 2 * 1e-12 / (1e-27 * units._k * 300.0**2)
    assert pytest.approx(1.602176634e6, rel=1e-6) == WATTS
    assert abs(found.conductivity / expected - 1) < 3 * found.error / expected
    assert found.error < 0.2 * expected
    assert found.picoseconds == 1200.0
    assert found.provenance.converged


@pytest.fixture(scope="module")
def solid() -> tuple[Atoms, Calculator]:
    """Atoms that nuclear repulsion keeps apart, at constant volume, with a weak network between them."""
    potential = equipes.build(
        "nequip",
        ["Cu"],
        {
            "r_max": 3.2,
            "num_layers": 2,
            "l_max": 1,
            "num_features": 4,
            "radial_mlp_width": 8,
            "per_type_energy_scales": 0.05,
            "zbl": True,
            "avg_num_neighbors": 12.0,
        },
        seed=2,
    )
    atoms = bulk("Cu", a=3.7, cubic=True) * (2, 1, 1)
    return atoms, Calculator(potential)


def stopped_twice(
    monkeypatch: pytest.MonkeyPatch, path: Path, first: int, second: int, calculate: Callable[..., Any]
) -> Any:
    """What `calculate(store, progress)` returns after it was interrupted after so many steps, and went on."""
    monkeypatch.setattr(flux_runs, "_CHECKPOINT_SECONDS", 0.0)
    for part, last in enumerate((first, second)):
        calls = 0

        def stop(what: str, done: int, total: int, last: int = last) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), Store(path, {"a": 1}, resume=part > 0) as store:
            calculate(store, stop)
    with Store(path, {"a": 1}, resume=True) as store:
        return calculate(store, lambda *_: None)


def test_a_stopped_calculation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solid: tuple[Atoms, Calculator]
) -> None:
    atoms, calculator = solid
    whole = green_kubo(atoms, calculator, SHORT)
    again = stopped_twice(
        monkeypatch,
        tmp_path / "flux.npz",
        150,
        450,
        lambda store, progress: green_kubo(atoms, calculator, SHORT, store=store, progress=progress),
    )
    np.testing.assert_array_equal(again.running, whole.running)
    assert again.temperature_k == whole.temperature_k
    assert whole.picoseconds == 2 * 0.42
    assert whole.drift_mev < 5
    assert 100 < whole.temperature_k < 400
    # More runs and other correlations use what is there.
    with Store(tmp_path / "flux.npz", {"a": 1}, resume=True) as store:
        fewer = green_kubo(atoms, calculator, replace(SHORT, runs=1, correlation=0.1), store=store)
    assert fewer.picoseconds == 0.42


def test_driven_runs_go_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solid: tuple[Atoms, Calculator]
) -> None:
    atoms, calculator = solid
    whole = hnemd(atoms, calculator, DRIVEN)
    again = stopped_twice(
        monkeypatch,
        tmp_path / "driven.npz",
        70,
        90,
        lambda store, progress: hnemd(atoms, calculator, DRIVEN, store=store, progress=progress),
    )
    np.testing.assert_array_equal(again.running, whole.running)
    assert whole.fields.tolist() == [1e-3, 5e-4]
    assert np.isfinite(whole.at_field_error).all()
    assert whole.provenance.checks[0].what.startswith("half the field")


def test_the_power_of_the_field_is_the_flux_along_it(solid: tuple[Atoms, Calculator]) -> None:
    atoms, calculator = solid
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)
    atoms.numbers[::2] = 29
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3))
    atoms.set_masses(np.linspace(20, 90, len(atoms)))  # the net force goes as the masses
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    flux_of = FluxOf(Calculator(calculator.potential, dtype="float64"))
    (carried,) = flux_of([atoms])
    rest = Carried(np.full(len(atoms), -0.2), np.full((len(atoms), 3, 3), 0.1))
    field = 1e-3 * np.array([0.0, 0.6, 0.8])
    atoms.calc = Driven(flux_of, field, rest)
    pull = atoms.get_forces() - carried.forces
    np.testing.assert_allclose(pull.sum(axis=0), 0, atol=1e-12)
    v = atoms.get_velocities() * units.fs
    kinetic = 0.5 * atoms.get_masses() * (v**2).sum(axis=1) / units.fs**2
    without_kinetic = carried.flux(atoms, rest) - kinetic @ v
    assert float((pull * v).sum()) == pytest.approx(without_kinetic @ field, rel=1e-9)
    along = field / np.linalg.norm(field)
    np.testing.assert_allclose(
        atoms.calc.flux(atoms), (carried.flux(atoms, rest) @ along) * along, rtol=1e-9, atol=1e-15
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, solid: tuple[Atoms, Calculator]) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("heat")
    atoms, calculator = solid
    calculator.potential.save(folder / "model.safetensors")
    ase.io.write(folder / "solid.extxyz", atoms)
    return folder / "model.safetensors", folder / "solid.extxyz"


@pytest.mark.parametrize(
    ("method", "options", "figure"),
    [
        ("green-kubo", ("--steps", 240, "--runs", 1, "--correlation", 0.05), "green-kubo.png"),
        ("hnemd", ("--steps", 100, "--field", 1e-3, "--direction", 0, 0, 1), "hnemd.png"),
    ],
)
def test_the_command(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, method: str, options, figure: str
) -> None:
    out = tmp_path / "out"
    common = (*files, "--method", method, "--temperature", 300, "--equilibration", 20, "--interval", 1)
    assert equipes_command("conductivity", *common, *options, "--out", out) == 0
    summary = json.loads((out / "conductivity.json").read_text())
    assert summary["options"]["temperature"] == 300
    assert summary["conductivity"] is not None
    assert "virials" in summary["provenance"]["method"]
    assert (out / figure).stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert "W/(m K)" in page
    assert "Langer" in page
    assert "±" in capsys.readouterr().out
    # Going on with what is there takes no dynamics, and says when it is something else.
    assert equipes_command("conductivity", *common, *options, "--out", out, "--resume") == 0
    assert json.loads((out / "conductivity.json").read_text()) == summary
    assert equipes_command("conductivity", *common, *options, "--seed", 5, "--out", out, "--resume") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--method", "green-kubo"), "runs at one temperature"),
        (("--method", "hnemd", "--temperature", 300, "--temperature", 400), "runs at one temperature"),
        (("--method", "hnemd", "--temperature", 300, "--mesh", 20), "--mesh belongs to --method phonons"),
        (("--method", "green-kubo", "--temperature", 300, "--cutoff-pair", 4), "--cutoff-pair belongs to"),
        (("--steps", 1000), "--steps belongs to --method green-kubo and hnemd"),
        (("--method", "hnemd", "--temperature", 300, "--correlation", 2), "--correlation belongs to"),
        (("--method", "green-kubo", "--temperature", 300, "--steps", 100), "too few for a conductivity"),
        (("--method", "hnemd", "--temperature", 300, "--steps", 90), "too few for a conductivity"),
        (("--method", "hnemd", "--temperature", 300, "--field", -1), "field must be above 0"),
        (("--method", "hnemd", "--temperature", 300, "--direction", 0, 0, 0), "not zero"),
        (("--method", "hnemd", "--temperature", 300, "--settling", 0.8), "settling must be a fraction"),
        (("--method", "green-kubo", "--temperature", -3), "temperature must be above 0"),
    ],
)
def test_what_makes_no_sense(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, options, sentence: str
) -> None:
    assert equipes_command("conductivity", *files, *options, "--out", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_has_no_flux(solid: tuple[Atoms, Calculator], water: Atoms) -> None:
    atoms, calculator = solid
    with pytest.raises(InputError, match="only a potential of this package"):
        green_kubo(atoms, EMT(), SHORT)
    held = atoms.copy()
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="atoms that are held"):
        green_kubo(held, calculator, SHORT)
    with pytest.raises(InputError, match="periodic in all three"):
        hnemd(water, calculator, DRIVEN)
