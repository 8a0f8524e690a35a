"""Crystals: the references make sense, and a calculator's lattice constants and bulk moduli come out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.calculators.emt import EMT

from command_line import run_forked
from equipes.benchmark import CRYSTALS, TRANSITIONS, crystal_benchmark, transition_benchmark
from equipes.benchmark.crystals import chosen
from equipes.benchmark.polymorphs import chosen_transitions
from equipes.errors import InputError


def test_references_fit_the_structures() -> None:
    assert len(CRYSTALS) >= 12 and len({item.name for item in CRYSTALS}) == len(CRYSTALS)
    for item in CRYSTALS:
        atoms = item.make()
        volume = atoms.get_volume() / len(atoms)
        assert volume == pytest.approx(item.volume_ang3, rel=0.02), item.name
        # Atoms where they belong: no two of them closer than a bond.
        distances = atoms.get_all_distances(mic=True)
        if len(atoms) > 1:
            assert distances[~np.eye(len(atoms), dtype=bool)].min() > 1.3, item.name
        if item.experiment is not None:
            assert item.experiment[0] == pytest.approx(item.volume_ang3, rel=0.08)
        counts = atoms.symbols.formula.count().values()
        assert max(counts) <= 2 * min(counts), item.name
    assert chosen(["Si"], ["Si"])[0].lattice_constant(20.453) == pytest.approx(5.470, abs=1e-3)
    assert chosen(["GaN"], ["Ga", "N"])[0].lattice_constant(11.7) is None


def test_a_calculator_with_known_answers() -> None:
    """Effective-medium theory: Cu and Al as in Jacobsen, Stoltze and Nørskov (1996)."""
    copper, aluminium = crystal_benchmark(EMT(), chosen(["Cu", "Al"], ["Cu", "Al"]))
    assert copper.name == "Cu" and copper.a_ang == pytest.approx(3.59, abs=0.01)
    assert copper.bulk_modulus_gpa == pytest.approx(134, abs=4)
    assert aluminium.a_ang == pytest.approx(3.995, abs=0.01)
    assert aluminium.bulk_modulus_gpa == pytest.approx(39.6, abs=2)
    assert copper.error_a_percent == pytest.approx(100 * (copper.a_ang / copper.reference_a_ang - 1))
    assert copper.error_volume_percent == pytest.approx(
        100 * (copper.volume_ang3_per_atom / copper.reference_volume_ang3_per_atom - 1)
    )


def test_polymorphs_are_other_structures_of_the_same_substance() -> None:
    for item in TRANSITIONS:
        (stable,) = (c for c in CRYSTALS if (c.name, c.structure) == (item.substance, item.stable))
        ours, theirs = item.make(), stable.make()
        assert ours.symbols.formula.reduce()[0].count() == theirs.symbols.formula.reduce()[0].count(), item
        assert ours.get_volume() / len(ours) == pytest.approx(stable.volume_ang3, rel=0.45), item
        repeated = ours * (2, 2, 2)
        distances = repeated.get_all_distances(mic=True)
        assert distances[~np.eye(len(repeated), dtype=bool)].min() > 1.6, item
        assert item.difference_ev > 0, item


def test_differences_of_a_calculator_with_known_answers() -> None:
    """In effective-medium theory fcc and hcp differ by next to nothing, and bcc lies above them."""
    found = transition_benchmark(EMT(), chosen_transitions(["Cu"], ["Cu", "Al"]))
    assert [(r.substance, r.other) for r in found] == [("Cu", "hcp"), ("Cu", "bcc")]
    assert found[0].difference_ev_per_atom == pytest.approx(-0.001, abs=5e-4)
    assert found[1].difference_ev_per_atom == pytest.approx(0.033, abs=5e-4)
    for result in found:
        assert result.error_mev_per_atom == pytest.approx(
            1000 * (result.difference_ev_per_atom - result.reference_ev_per_atom)
        )


def test_which_crystals() -> None:
    assert [item.name for item in chosen([], ["Mg", "O", "Cu"])] == ["Cu", "MgO"]
    with pytest.raises(InputError, match="no crystal is called Xx; there are Si, Ge"):
        chosen(["Xx"], ["Si"])
    with pytest.raises(InputError, match="knows none of these crystals"):
        chosen(["Si"], ["H"])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def emt(*_: object, **__: object) -> EMT:
        calculator = EMT()
        calculator.frozen, calculator.potential = None, SimpleNamespace(species=("Cu", "Al"))
        return calculator

    monkeypatch.setattr("equipes.calculators.Calculator", emt)
    done = run_forked("benchmark", "crystals", "Cu", "--model", "any", "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Cu fcc" in done.stdout and "Lejaeghere" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["crystals"][0]["name"] == "Cu"
    assert [entry["other"] for entry in written["polymorphs"]] == ["hcp", "bcc"]
    assert "Cu hcp - fcc" in done.stdout
    assert written["mean_error_volume_percent"] == pytest.approx(
        abs(written["crystals"][0]["error_volume_percent"])
    )
