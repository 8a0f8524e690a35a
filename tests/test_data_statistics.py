"""Reference energies, size of forces, neighbours: what the data decides about a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from equipes.data import (
    Frame,
    GraphDataset,
    Units,
    elements,
    fit_reference_energies,
    forces_rms,
    mean_neighbors,
    read_frames,
)
from equipes.errors import InputError

DATA = Path(__file__).parent / "data"
ENERGIES = {"H": -13.6, "C": -1030.0, "O": -2043.5}


def frame(formula: str, energy: float | None = None, forces: np.ndarray | None = None) -> Frame:
    return Frame(Atoms(formula), energy, forces, None, None, "made.xyz", 0)


def total(formula: str) -> float:
    return sum(ENERGIES[symbol] for symbol in Atoms(formula).symbols)


def test_reference_energies_are_found_again() -> None:
    frames = [frame(f, total(f)) for f in ("H2", "CH4", "CO2", "H2O", "C2H6O")] + [frame("CO")]
    found = fit_reference_energies(frames)
    assert found.determined and found.message is None
    assert list(found.values) == ["H", "C", "O"]
    assert found.values == pytest.approx(ENERGIES, rel=1e-10)
    assert found.residual_rms_mev_per_atom < 1e-6


def test_isolated_atoms_are_the_reference_energies_of_their_elements() -> None:
    bound = [frame(f, total(f) - 4.0 * len(Atoms(f))) for f in ("CH4", "C2H6", "CH4", "CH2O", "H2O")]
    alone = [frame("H", ENERGIES["H"]), frame("C", ENERGIES["C"]), frame("O", ENERGIES["O"])]
    found = fit_reference_energies([*bound, *alone])
    assert found.values == ENERGIES
    assert found.determined and "H, C, O are those of isolated atoms" in str(found.message)
    # In a box that is large enough the atom is alone too; in a small one it is a crystal.
    box = Frame(Atoms("H", cell=[8, 8, 8], pbc=True), ENERGIES["H"], None, None, None, "made.xyz", 1)
    assert fit_reference_energies([*bound, box, *alone[1:]]).values == ENERGIES
    crystal = Frame(Atoms("H", cell=[3, 3, 3], pbc=True), -20.0, None, None, None, "made.xyz", 1)
    assert fit_reference_energies([*bound, crystal, *alone[1:]]).values["H"] != -20.0


def test_elements_without_an_isolated_atom_are_fitted_to_the_rest() -> None:
    frames = [frame("CH4", total("CH4") - 5), frame("C2H6", total("C2H6") - 10), frame("H", ENERGIES["H"])]
    found = fit_reference_energies(frames)
    assert found.values == pytest.approx({"H": ENERGIES["H"], "C": ENERGIES["C"] - 5})
    assert "those of C are fitted to what is left" in str(found.message)


def test_two_energies_of_an_isolated_atom_are_refused() -> None:
    with pytest.raises(InputError, match=r"two energies of an isolated H atom, -13.6 and -12 eV; remove one"):
        fit_reference_energies([frame("H2", -31.0), frame("H", -13.6), frame("H", -12.0)])
    assert fit_reference_energies([frame("H", -13.6), frame("H", -12.0)], {"H": -13.0}).values == {"H": -13.0}


def test_they_are_those_of_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    formulas = ["CH4", "C2H8", "C3H12O", "CO2H4"]
    energies = [total(f) + rng.normal() for f in formulas]
    found = fit_reference_energies([frame(f, e) for f, e in zip(formulas, energies, strict=True)])
    counts = np.array([[list(Atoms(f).symbols).count(s) for s in "HCO"] for f in formulas])
    mean = sum(energies) / counts.sum()
    expected = mean + np.linalg.pinv(counts) @ (energies - mean * counts.sum(axis=1))
    np.testing.assert_allclose(list(found.values.values()), expected, rtol=1e-9)
    rest = (energies - counts @ expected) / counts.sum(axis=1)
    assert found.residual_rms_mev_per_atom == pytest.approx(1e3 * np.sqrt(np.mean(rest**2)), rel=1e-6)


def test_a_single_molecule_is_spread_evenly_and_said_aloud() -> None:
    frames = read_frames(DATA / "ethanol.npz", units=Units("kcal/mol"))
    found = fit_reference_energies(frames)
    per_atom = np.mean([f.energy / 9 for f in frames])
    assert not found.determined
    assert "H, C, O" in found.message and "spread evenly" in found.message
    for value in found.values.values():
        assert value == pytest.approx(per_atom, rel=1e-9)


def test_frames_without_energy_do_not_count() -> None:
    with_energy = [frame(f, total(f)) for f in ("H2", "CH4", "CO2")]
    assert fit_reference_energies([frame("CH3"), *with_energy]).values == pytest.approx(ENERGIES)
    none = fit_reference_energies([frame("CH4")])
    assert (
        none.values == {"H": 0.0, "C": 0.0}
        and not none.determined
        and "no frame has an energy" in none.message
    )


def test_given_reference_energies() -> None:
    frames = [frame("CH4", total("CH4") + 5e-3)]
    found = fit_reference_energies(frames, {**ENERGIES, "U": 1})
    assert found.values == {"H": -13.6, "C": -1030.0} and found.determined
    assert found.residual_rms_mev_per_atom == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"C": -1.0}, "none for H, O; give one for each element"),
        ({"C": -1.0, "H": 0.0, "O": 1.0, "Xx": 1.0}, "'Xx' is not a chemical symbol"),
        ({"C": -1.0, "H": 0.0, "O": float("nan")}, "that of O is nan"),
    ],
)
def test_given_reference_energies_that_do_not_fit(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_reference_energies([frame("CH3OH", -5.0)], given)


def test_energies_that_are_not_finite_name_the_frame() -> None:
    with pytest.raises(InputError, match=r"made\.xyz frame 3: the energy is nan"):
        fit_reference_energies([frame("H2", -1.0), replace(frame("H2", float("nan")), index=3)])


def test_elements_are_in_the_order_of_atomic_numbers() -> None:
    assert elements([frame("OCu"), frame("HSi")]) == ("H", "O", "Si", "Cu")


def test_forces_rms() -> None:
    a, b = frame("H2", forces=np.full((2, 3), 2.0)), frame("H", forces=np.zeros((1, 3)))
    assert forces_rms([a, b, frame("C")]) == pytest.approx(np.sqrt(4 * 6 / 9))
    with pytest.raises(InputError, match="no frame has forces"):
        forces_rms([frame("C")])


def test_mean_neighbors_of_known_crystals() -> None:
    frames = [replace(frame("H"), atoms=atoms) for atoms in (bulk("Cu", cubic=True), bulk("Si"))]
    graphs = GraphDataset(frames, 2.7).graphs  # 12 neighbours of each of 4 Cu, 4 of each of 2 Si
    assert mean_neighbors(graphs) == pytest.approx((4 * 12 + 2 * 4) / 6)
    with pytest.raises(InputError):
        mean_neighbors([])
