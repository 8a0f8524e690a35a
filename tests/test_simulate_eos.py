"""Lattice constants and bulk moduli against independent ways to them."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.eos import birchmurnaghan

from equipes import InputError
from equipes.report.equation_of_state import equation_of_state_plot
from equipes.simulate import SimulationError, Store, equation_of_state, relax


class OfVolume(Calculator):
    """An energy that is a known function of the volume per atom; atoms feel nothing."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        energy = len(atoms) * float(self.function(atoms.get_volume() / len(atoms)))
        self.results = {"energy": energy, "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize("a", [3.2, 3.59, 4.2])
def test_copper_from_near_and_far(a: float) -> None:
    result = equation_of_state(bulk("Cu", a=a), EMT(), volume_range=0.04)
    relaxed = relax(bulk("Cu", a=3.6), EMT(), smax=0.001)
    assert result.volume_ang3 == pytest.approx(relaxed.volume_ang3, rel=1e-4)
    assert result.lattice == "FCC"
    assert result.lattice_constants == {"a": pytest.approx((4 * relaxed.volume_ang3) ** (1 / 3), rel=1e-4)}
    # The bulk modulus is also -V dP/dV, by finite differences of the stress.
    pressures = []
    for factor in (0.999, 1.001):
        scaled = relaxed.atoms.copy()
        scaled.set_cell(scaled.cell.array * factor ** (1 / 3), scale_atoms=True)
        scaled.calc = EMT()
        pressures.append(-scaled.get_stress()[:3].mean())
    assert result.bulk_modulus_gpa == pytest.approx(
        (pressures[0] - pressures[1]) / 0.002 / units.GPa, rel=0.01
    )


def test_a_known_curve_is_recovered_also_under_a_huge_total_energy() -> None:
    modulus, derivative, volume, energy = 97.0 * units.GPa, 4.2, 20.0, -78901.23456
    calculator = OfVolume(lambda v: birchmurnaghan(v, energy, modulus, derivative, volume))
    result = equation_of_state(bulk("Si", cubic=True, a=5.6), calculator)
    assert result.bulk_modulus_gpa == pytest.approx(97.0, rel=1e-4)
    assert result.bulk_modulus_derivative == pytest.approx(4.2, rel=1e-3)
    assert result.volume_ang3 == pytest.approx(160.0, rel=1e-6)
    assert result.energy_ev == pytest.approx(8 * energy, abs=1e-5)
    assert result.lattice_constants["a"] == pytest.approx(160.0 ** (1 / 3), rel=1e-6)
    assert result.fit_rms_mev_per_atom < 1e-3
    assert result.atoms.get_volume() == pytest.approx(160.0, rel=1e-6)
    np.testing.assert_allclose(result.energies_at(result.volumes_ang3), result.energies_ev, atol=1e-5)


def test_atoms_relax_at_every_volume() -> None:
    start = bulk("Cu", cubic=True, a=3.6)
    start.rattle(0.05, seed=1)
    relaxed = equation_of_state(start, EMT(), points=5)
    held = equation_of_state(start, EMT(), points=5, relax_positions=False)
    assert relaxed.energy_ev < held.energy_ev - 0.01
    assert relaxed.bulk_modulus_gpa == pytest.approx(134, rel=0.02)


def test_the_input_stays_and_the_summary_is_plain() -> None:
    start = bulk("Cu", a=3.7)
    summary = equation_of_state(start, EMT(), points=5).summary()
    assert start.get_volume() == pytest.approx(3.7**3 / 4)
    assert json.loads(json.dumps(summary)) == summary


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    result = equation_of_state(bulk("Cu", a=3.6), EMT(), points=5)
    figure = equation_of_state_plot(result, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    curve, points = (figure.axes[0].lines[k].get_ydata() for k in (0, 1))
    assert np.min(curve) == pytest.approx(0, abs=0.01)
    assert len(points) == 5
    assert "FCC a = 3.5" in figure.axes[0].get_title("left")


@pytest.mark.parametrize("function", [lambda v: v, lambda v: -v, lambda v: -((v - 20) ** 2)])
def test_no_minimum_is_told(function) -> None:
    with pytest.raises(SimulationError, match="no minimum"):
        equation_of_state(bulk("Si", a=5.43), OfVolume(function), points=5)


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), {}, "needs a crystal"),
        (bulk("Cu"), {"points": 4}, "at least 5 points"),
        (bulk("Cu"), {"volume_range": 0.6}, "between 0 and 0.5"),
        (bulk("Cu"), {"volume_range": float("nan")}, "between 0 and 0.5"),
    ],
)
def test_bad_input(atoms: ase.Atoms, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        equation_of_state(atoms, EMT(), **options)


def test_a_stopped_one_goes_on(tmp_path: Path) -> None:
    whole = equation_of_state(bulk("Cu", a=3.5), EMT(), points=7)

    def stop(what: str, done: int, total: int) -> None:
        if total == 7 and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "done.npz") as store:
        equation_of_state(bulk("Cu", a=3.5), EMT(), points=7, store=store, progress=stop)
    with Store(tmp_path / "done.npz", resume=True) as store:
        result = equation_of_state(bulk("Cu", a=3.5), EMT(), points=7, store=store)
        assert store.reused >= 7
    assert result.energy_ev == whole.energy_ev
    assert result.bulk_modulus_gpa == whole.bulk_modulus_gpa
    assert result.provenance.converged
