"""Crystals: the references make sense, and a calculator's lattice constants and bulk moduli come out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.calculators.emt import EMT

from command_line import run_forked
from equipes.benchmark import CRYSTALS, crystal_benchmark
from equipes.benchmark.crystals import chosen
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
    assert written["mean_error_volume_percent"] == pytest.approx(
        abs(written["crystals"][0]["error_volume_percent"])
    )
