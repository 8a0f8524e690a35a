"""Molecular dynamics against statistical mechanics, and a record that survives being killed."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

import equipes
from equipes import InputError
from equipes.simulate import MDSettings, SimulationError, run_md
from equipes.simulate.ensembles import degrees_of_freedom, thermal_momenta
from equipes.simulate.records import CHECKPOINT, FAILURE, FINAL, SUMMARY, TABLE, TRAJECTORY, read_table
from equipes.simulate.statistics import drift, mean_with_error
from pair_calculator import PairCalculator, argon, same_record, settings_for

ENSEMBLES = ("nve", "nvt", "npt")


def cluster() -> Atoms:
    """Seven argon atoms, held together strongly."""
    positions = 3.8 * np.array(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], float
    )
    return Atoms("Ar7", positions=positions)


def strong() -> PairCalculator:
    return PairCalculator(epsilon=0.2)


# -- physics ---------------------------------------------------------------------------------------------------------


def test_energy_is_conserved_to_second_order_in_the_time_step(tmp_path: Path) -> None:
    fluctuation = {}
    for timestep in (2.0, 4.0):
        settings = MDSettings(
            "nve", steps=round(1600 / timestep), timestep=timestep, temperature=60.0, interval=1
        )
        result = run_md(argon(), PairCalculator(), settings, tmp_path / str(timestep))
        energies = np.array([row.total_energy_ev for row in read_table(result.out / TABLE)])
        fluctuation[timestep] = energies.std()
        assert abs(result.summary["energy_drift_mev_per_atom_per_ps"]) < 0.01
    assert fluctuation[4.0] / fluctuation[2.0] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize(
    ("atoms", "ensemble", "degrees"),
    [
        (argon(), "nvt", 93),
        (argon(), "npt", 96),
        (cluster(), "nvt", 15),
        (molecule("N2"), "nvt", 1),
        (molecule("CO2"), "nvt", 3),
    ],
)
def test_first_velocities_are_thermal_and_without_rigid_motion(
    atoms: Atoms, ensemble: str, degrees: int
) -> None:
    """Equipartition: k T / 2 for each degree of freedom that is left, over many draws."""
    rng = np.random.default_rng(5)
    energies = []
    for _ in range(400):
        thermal_momenta(atoms, 300.0, ensemble, rng)
        energies.append(atoms.get_kinetic_energy())
        if ensemble != "npt":
            np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-10)
            if not atoms.pbc.any():
                np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-9)
    assert degrees_of_freedom(atoms, ensemble) == degrees
    # A linear CO2 has, at its start, one degree more than when it bends.
    moving = degrees + (len(atoms) == 3)
    expected = moving / 2 * units.kB * 300
    assert np.mean(energies) == pytest.approx(expected, abs=4 * expected * np.sqrt(2 / moving / 400))


def test_nve_starts_with_exactly_the_temperature(tmp_path: Path) -> None:
    result = run_md(cluster(), strong(), MDSettings("nve", steps=0, temperature=80.0), tmp_path / "run")
    assert read_table(result.out / TABLE)[0].temperature_k == pytest.approx(80.0, abs=1e-3)
    np.testing.assert_allclose(result.atoms.get_angular_momentum(), 0, atol=1e-9)


def test_nvt_is_canonical(tmp_path: Path) -> None:
    """Mean and variance of the temperature of a cluster in vacuum, whose rigid motion must not be counted."""
    settings = MDSettings(
        "nvt", steps=8000, timestep=6.0, temperature=80.0, interval=5, thermostat_time=50.0, seed=2
    )
    result = run_md(cluster(), strong(), settings, tmp_path / "run")
    summary = result.summary
    assert summary["degrees_of_freedom"] == 15
    error = summary["mean_temperature_k_error"]
    assert error < 2.5
    assert abs(summary["mean_temperature_k"] - 80) < 3.5 * error
    temperatures = np.array([row.temperature_k for row in read_table(result.out / TABLE)])[300:]
    assert temperatures.std() == pytest.approx(80 * np.sqrt(2 / 15), rel=0.1)
    # Every degree of freedom has its share, not only their sum: the momenta of each atom.
    frames = ase.io.read(result.out / TRAJECTORY, index="300:")
    per_atom = np.mean(
        [(frame.get_momenta() ** 2).sum(axis=1) / frame.get_masses() for frame in frames], axis=0
    )
    np.testing.assert_allclose(per_atom / (units.kB * 80), 15 / 7, rtol=0.2)
    assert np.abs(result.atoms.get_angular_momentum()).max() < 1e-6
    # The thermostat's own bookkeeping makes a conserved energy.
    assert abs(summary["energy_drift_mev_per_atom_per_ps"]) < 0.1


@pytest.mark.parametrize("flexible", [False, True])
def test_npt_holds_temperature_and_pressure(tmp_path: Path, flexible: bool) -> None:
    settings = MDSettings(
        "npt",
        steps=4000,
        timestep=8.0,
        temperature=40.0,
        pressure=0.2,
        thermostat_time=100.0,
        barostat_time=500.0,
        flexible_cell=flexible,
        seed=1,
    )
    calculator = PairCalculator(cutoff=4.9)
    summary = run_md(argon(), calculator, settings, tmp_path / "run").summary
    assert abs(summary["mean_temperature_k"] - 40) < 3.5 * summary["mean_temperature_k_error"] + 0.2
    assert summary["mean_temperature_k_error"] < 1
    assert abs(summary["mean_pressure_gpa"] - 0.2) < 4 * summary["mean_pressure_gpa_error"]
    assert summary["mean_pressure_gpa_error"] < 0.02
    assert abs(summary["mean_volume_ang3"] / argon().get_volume() - 1) > 0.05
    final = ase.io.read(tmp_path / "run" / FINAL)
    shape = final.cell.array / final.cell.lengths().mean()
    assert bool(np.abs(shape - np.eye(3)).max() < 1e-9) != flexible


def test_the_seed_decides(tmp_path: Path) -> None:
    settings = MDSettings("nvt", steps=20, timestep=5.0, temperature=50.0)
    runs = {
        name: run_md(argon(), PairCalculator(), replace(settings, seed=seed), tmp_path / name).atoms.positions
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    np.testing.assert_array_equal(runs["a"], runs["b"])
    assert np.abs(runs["a"] - runs["c"]).max() > 1e-3


def test_velocities_can_be_kept(tmp_path: Path) -> None:
    start = cluster()
    thermal_momenta(start, 50.0, "nve", np.random.default_rng(0))
    settings = MDSettings("nve", steps=10, timestep=5.0, keep_velocities=True)
    run_md(start, strong(), settings, tmp_path / "run")
    first = ase.io.read(tmp_path / "run" / TRAJECTORY, index=0)
    np.testing.assert_allclose(first.get_momenta(), start.get_momenta(), atol=1e-7)


# -- the record ------------------------------------------------------------------------------------------------------


def test_the_record_can_be_read_back(tmp_path: Path) -> None:
    start = argon()
    start.info["REF_energy"] = 1.0
    start.arrays["REF_forces"] = np.ones((32, 3))
    given = start.copy()
    settings = MDSettings("nvt", steps=25, timestep=5.0, temperature=50.0, interval=5)
    result = run_md(start, PairCalculator(), settings, tmp_path / "run", potential="pair")
    frames = ase.io.read(tmp_path / "run" / TRAJECTORY, index=":")
    rows = read_table(tmp_path / "run" / TABLE)
    assert [row.step for row in rows] == [frame.info["step"] for frame in frames] == [0, 5, 10, 15, 20, 25]
    for row, frame in zip(rows, frames, strict=True):
        assert "REF_energy" not in frame.info
        assert "REF_forces" not in frame.arrays
        assert frame.get_potential_energy() == pytest.approx(row.potential_energy_ev, abs=1e-6)
        assert frame.get_kinetic_energy() == pytest.approx(row.kinetic_energy_ev, abs=1e-5)
        assert row.time_fs == 5.0 * row.step
        frame.calc, forces = PairCalculator(), frame.get_forces()
        np.testing.assert_allclose(frame.get_forces(), forces, atol=1e-6)
        pressure = -frame.get_stress(include_ideal_gas=True)[:3].mean() / units.GPa
        assert pressure == pytest.approx(row.pressure_gpa, abs=1e-5)
    stored = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert stored == json.loads(json.dumps(result.summary))
    assert stored["completed"]
    assert stored["potential"] == "pair"
    np.testing.assert_allclose(
        ase.io.read(tmp_path / "run" / FINAL).positions, result.atoms.positions, atol=1e-7
    )
    assert start == given
    assert not start.has("momenta")


def test_a_molecule_has_no_volume_or_pressure_column(tmp_path: Path) -> None:
    run_md(cluster(), strong(), MDSettings("nve", steps=2, temperature=10.0), tmp_path / "run")
    header = (tmp_path / "run" / TABLE).read_text().splitlines()[0]
    assert header.startswith(
        "step,time_fs,potential_energy_ev,kinetic_energy_ev,total_energy_ev,temperature_k"
    )
    assert "volume" not in header
    assert "pressure" not in header


def test_fixed_atoms_stay(tmp_path: Path) -> None:
    start = cluster()
    start.set_constraint(FixAtoms([0, 1]))
    result = run_md(
        start, strong(), MDSettings("nvt", steps=50, temperature=50.0, timestep=5.0), tmp_path / "run"
    )
    assert result.summary["degrees_of_freedom"] == 15
    np.testing.assert_array_equal(result.atoms.positions[:2], start.positions[:2])
    assert np.abs(result.atoms.positions[2:] - start.positions[2:]).min() > 0


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_run_in_parts_is_the_run_in_one(tmp_path: Path, ensemble: str) -> None:
    whole = run_md(argon(), PairCalculator(cutoff=4.9), settings_for(ensemble, 60), tmp_path / "whole")
    for steps in (25, 26, 60):  # not multiples of the interval
        part = run_md(
            argon(),
            PairCalculator(cutoff=4.9),
            settings_for(ensemble, steps),
            tmp_path / "part",
            resume=steps > 25,
        )
    np.testing.assert_array_equal(part.atoms.positions, whole.atoms.positions)
    np.testing.assert_array_equal(part.atoms.get_momenta(), whole.atoms.get_momenta())
    assert same_record(tmp_path / "whole", tmp_path / "part")
    keys = ("mean_temperature_k", "energy_drift_mev_per_atom_per_ps", "steps", "time_fs")
    assert [whole.summary[key] for key in keys] == [part.summary[key] for key in keys]


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_so_it_is_with_a_potential_and_its_neighbour_list(tmp_path: Path, ensemble: str) -> None:
    """A new process builds its list elsewhere along the way; forces must not show it."""
    hyperparameters = {
        "num_layers": 1,
        "num_features": 4,
        "l_max": 1,
        "r_max": 3.6,
        "per_type_energy_scales": 0.05,
    }
    potential = equipes.build("nequip", ["Cu"], hyperparameters, seed=1)
    crystal = bulk("Cu", cubic=True) * (2, 2, 1)
    settings = MDSettings(
        ensemble, steps=24, timestep=4.0, temperature=900.0, interval=4, seed=3, barostat_time=100.0
    )
    calculators = [equipes.Calculator(potential, skin=0.3) for _ in range(3)]
    run_md(crystal, calculators[0], settings, tmp_path / "whole")
    run_md(crystal, calculators[1], replace(settings, steps=13), tmp_path / "part")
    run_md(crystal, calculators[2], settings, tmp_path / "part", resume=True)
    assert 2 <= calculators[0].neighbor_list_builds < 20
    assert same_record(tmp_path / "whole", tmp_path / "part")


def test_handlers_of_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_md(cluster(), strong(), MDSettings("nve", steps=1, temperature=10.0), tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"timestep": 2.0}, "timestep = 4.0, not 2.0"),
        ({"temperature": 61.0}, "temperature = 60.0, not 61.0"),
        ({"ensemble": "nve"}, "ensemble = nvt, not nve"),
        ({"seed": 8}, "seed = 7, not 8"),
        ({"interval": 2}, "interval = 3, not 2"),
        ({"steps": 3}, "already done 9 steps, more than 3"),
    ],
)
def test_only_the_same_run_is_continued(tmp_path: Path, change: dict, sentence: str) -> None:
    settings = settings_for("nvt", 9)
    run_md(argon(), PairCalculator(), settings, tmp_path / "run")
    with pytest.raises(InputError, match=sentence):
        run_md(argon(), PairCalculator(), replace(settings, **change), tmp_path / "run", resume=True)


def test_nor_with_another_potential_structure_or_file(tmp_path: Path) -> None:
    out, settings = tmp_path / "run", settings_for("nvt", 9)
    run_md(argon(), PairCalculator(), settings, out, potential="one")
    with pytest.raises(InputError, match="potential = one, not two"):
        run_md(argon(), PairCalculator(), settings, out, potential="two", resume=True)
    with pytest.raises(InputError, match="other atoms"):
        run_md(argon()[:31], PairCalculator(), settings, out, potential="one", resume=True)
    with pytest.raises(InputError, match="not both"):
        run_md(argon(), PairCalculator(), settings, out, potential="one", resume=True, overwrite=True)
    with pytest.raises(InputError, match="has no checkpoint"):
        run_md(argon(), PairCalculator(), settings, tmp_path / "elsewhere", resume=True)
    with (out / TABLE).open("r+") as table:
        table.truncate(20)
    with pytest.raises(InputError, match=r"md\.csv is shorter"):
        run_md(argon(), PairCalculator(), settings, out, potential="one", resume=True)
    (out / CHECKPOINT).write_bytes((out / CHECKPOINT).read_bytes()[:300])
    with pytest.raises(InputError, match="damaged"):
        run_md(argon(), PairCalculator(), settings, out, potential="one", resume=True)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out, settings = tmp_path / "run", MDSettings("nve", steps=2, temperature=10.0)
    run_md(cluster(), strong(), settings, out)
    kept = (out / TRAJECTORY).read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        run_md(cluster(), strong(), replace(settings, seed=5), out)
    assert (out / TRAJECTORY).read_bytes() == kept
    (out / FAILURE).write_text("of an earlier run")
    run_md(cluster(), strong(), replace(settings, seed=5), out, overwrite=True)
    assert (out / TRAJECTORY).read_bytes() != kept
    assert not (out / FAILURE).exists()


# -- what cannot go on ------------------------------------------------------------------------------------------------


class Fails(Calculator):
    """Free atoms, until something goes wrong at the fifth step."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        self.calls += 1
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        if self.calls > 5:
            if self.how == "forces":
                forces[2, 1] = np.nan
            elif self.how == "energy":
                energy = np.inf
            elif self.how == "heat":
                forces[3] = [0, 0, 500.0]
            elif self.how == "drift":
                energy = 10.0
            elif self.how == "element":
                raise InputError("the potential does not know Ar")
        self.results = {"energy": energy, "forces": forces}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("forces", r"step 5: the force on atom 2 \(Ar\) is not a finite number"),
        ("energy", r"step 5: the energy is not a finite number"),
        ("heat", r"step 5: the temperature is \d+ K \(atom 3 \(Ar\) is the fastest\)"),
        ("drift", r"step 5: the conserved energy has changed by 1\.43 eV/atom"),
        ("element", r"step 5: the potential does not know Ar"),
    ],
)
def test_a_run_that_breaks_stops_and_says_where(tmp_path: Path, how: str, sentence: str) -> None:
    settings = MDSettings("nve", steps=50, timestep=10.0, temperature=10.0, interval=2)
    with pytest.raises(SimulationError, match=sentence):
        run_md(cluster(), Fails(how), settings, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert stored["steps"] == 5
    assert not stored["completed"]
    assert stored["stopped"].startswith("step 5")
    assert [row.step for row in read_table(tmp_path / "run" / TABLE)] == [0, 2, 4]
    assert ase.io.read(tmp_path / "run" / FAILURE).info["step"] == 5


def test_atoms_inside_each_other_stop_it(tmp_path: Path) -> None:
    start = Atoms("ArHCu", positions=[[0, 0, 0], [5, 3, 0], [9, 0, 0]], cell=[12, 12, 12], pbc=True)
    start.set_momenta([[0, 0, 0], [0, 0, 0], [2.0, 0, 0]])
    settings = MDSettings("nve", steps=200, timestep=10.0, keep_velocities=True)
    free = Fails("never")
    with pytest.raises(
        SimulationError, match=r"atoms 0 \(Ar\) and 2 \(Cu\) are [01]\.\d\d Å apart, closer than"
    ):
        run_md(start, free, settings, tmp_path / "run")
    # The same journey is allowed to someone who says so.
    run_md(start, Fails("never"), replace(settings, closest_fraction=0.0), tmp_path / "allowed")


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (cluster(), {"ensemble": "nph"}, "choose nve, nvt or npt"),
        (cluster(), {"temperature": None}, "nve needs a temperature"),
        (cluster(), {"ensemble": "nvt", "temperature": 0.0}, "nvt needs a temperature above 0 K"),
        (cluster(), {"temperature": -5.0}, "0 K or more"),
        (cluster(), {"timestep": 0.0}, "timestep must be a positive time"),
        (cluster(), {"timestep": float("nan")}, "timestep must be a positive time"),
        (cluster(), {"steps": -1}, "steps must be 0 or more"),
        (cluster(), {"interval": 0}, "interval 1 or more"),
        (cluster(), {"ensemble": "npt"}, "periodic in all three directions"),
        (cluster(), {"pressure": 1.0}, "belong to npt"),
        (cluster(), {"keep_velocities": True}, "no velocities to keep"),
        (Atoms("Ar"), {}, "nothing can move"),
    ],
)
def test_bad_settings(tmp_path: Path, atoms: Atoms, options: dict, sentence: str) -> None:
    settings = MDSettings(**{"ensemble": "nve", "steps": 5, "temperature": 10.0, **options})
    with pytest.raises(InputError, match=sentence):
        run_md(atoms, strong(), settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- statistics -------------------------------------------------------------------------------------------------------


def test_the_error_of_a_correlated_mean_is_honest() -> None:
    """An autoregressive series has a known error of its mean, many times the one of independent values."""
    rng = np.random.default_rng(0)
    phi, n, ratios = 0.95, 4096, []
    for _ in range(20):
        series = np.zeros(n)
        noise = rng.normal(size=n)
        for k in range(1, n):
            series[k] = phi * series[k - 1] + noise[k]
        mean, error = mean_with_error(list(series))
        assert mean == pytest.approx(series.mean())
        ratios.append(error * np.sqrt(n) * (1 - phi))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.25)
    assert mean_with_error([1.0] * 15) == (1.0, None)
    assert mean_with_error([1.0] * 16) == (1.0, 0.0)
    assert mean_with_error([]) == (None, None)


@pytest.mark.parametrize("length", [4000.0, 100.0, 20.0, 10.0, 5.0])
def test_the_error_of_a_short_series_covers(length: float) -> None:
    """Of series worth only so many independent values, 68 % and 95 % of the means lie within one and two errors."""
    rng, n, count = np.random.default_rng(0), 400, 300
    phi = np.exp(-2 * length / n)
    series = rng.normal(size=(n, count))
    series[0] /= np.sqrt(1 - phi**2)
    for k in range(1, n):
        series[k] += phi * series[k - 1]
    found = np.array([mean_with_error(list(one)) for one in series.T])
    ratio = np.abs(found[:, 0] / found[:, 1])
    assert 0.60 < (ratio < 1).mean() < 0.80
    assert (ratio < 2).mean() > 0.85


def test_the_drift_is_the_slope() -> None:
    times = np.linspace(0, 20, 50)
    wave = 0.3 * np.cos(2 * np.pi * times * 50 / 20 / 50 * 5)
    assert drift(times, 7.0 - 0.02 * times) == pytest.approx(-0.02)
    assert drift(times, 7.0 - 0.02 * times + wave) == pytest.approx(-0.02, abs=0.01)
    assert drift([0.0, 1.0], [0.0, 1.0]) is None
