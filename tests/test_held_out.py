"""Errors on labelled frames: what is compared, what is not, and the command that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

import equipes
from equipes.benchmark.held_out import SETS, held_out_errors, known_elements, robust_softening, softening
from equipes.cli import app, run
from equipes.data import Frame, read_frames
from equipes.errors import InputError
from equipes.foundation.registry import published
from equipes.report.held_out import place
from equipes.training.metrics import FramePrediction

SILICON = Path(__file__).parent / "data" / "silicon.xyz"


def labelled(n: int, rng: np.random.Generator) -> tuple[list[Frame], list[FramePrediction]]:
    """Frames of three elements in many compositions, and predictions with small random errors of energy."""
    frames, predictions = [], []
    for k in range(n):
        symbols = rng.choice(["Li", "O", "Fe"], rng.integers(2, 8))
        forces = rng.normal(size=(len(symbols), 3))
        atoms = Atoms(symbols, positions=3.0 * np.arange(3 * len(symbols)).reshape(-1, 3))
        energy, error = -5.0 * len(symbols), 0.01 * rng.normal() * len(symbols)
        frames.append(Frame(atoms, energy, forces, None, None, "frames.xyz", k))
        predictions.append(FramePrediction(energy + error, 0.8 * forces, None))
    return frames, predictions


def with_constants(
    frames: list[Frame], predictions: list[FramePrediction], constants: dict[str, float]
) -> list[FramePrediction]:
    """Predictions whose energies have other reference energies."""
    return [
        replace(p, energy=p.energy + sum(constants[s] for s in f.atoms.symbols))
        for f, p in zip(frames, predictions, strict=True)
    ]


def test_errors_softening_and_elements(rng: np.random.Generator) -> None:
    frames, predictions = labelled(40, rng)
    result = held_out_errors("frames.xyz", frames, predictions)
    energies = [(p.energy - f.energy) / len(f.atoms) for f, p in zip(frames, predictions, strict=True)]
    forces = np.concatenate([f.forces.ravel() for f in frames])
    assert result.energy_mae_mev_per_atom == pytest.approx(1000 * np.abs(energies).mean())
    assert result.softening == pytest.approx(0.8) and result.softening_robust == pytest.approx(0.8)
    assert result.force_mae_mev_per_ang == pytest.approx(200 * np.abs(forces).mean())
    assert result.force_rms_mev_per_ang == pytest.approx(1000 * np.sqrt(np.mean(forces**2)))
    assert result.stress_mae_gpa is None and not result.warnings
    assert sum(facts["n_atoms"] for facts in result.per_element.values()) == result.n_atoms
    iron = np.concatenate([f.forces[f.atoms.symbols == "Fe"].ravel() for f in frames])
    assert result.per_element["Fe"]["force_mae_mev_per_ang"] == pytest.approx(200 * np.abs(iron).mean())
    json.dumps(result.summary())


def test_energies_of_other_references_are_not_printed(rng: np.random.Generator) -> None:
    frames, predictions = labelled(40, rng)
    moved = with_constants(frames, predictions, {"Li": 0.1, "O": -0.7, "Fe": -2.0})
    result = held_out_errors("frames.xyz", frames, moved)
    assert result.energy_mae_mev_per_atom is None
    assert "energies are not compared: constants of the elements" in result.warnings[0]
    alike = held_out_errors("frames.xyz", frames, predictions)
    assert result.energy_mae_after_fit_mev_per_atom == pytest.approx(alike.energy_mae_after_fit_mev_per_atom)
    assert result.softening == alike.softening


def test_functionals_that_differ_are_not_compared(rng: np.random.Generator) -> None:
    frames, predictions = labelled(10, rng)

    def energy(functional: str | None, name: str, modal: str | None = None) -> float | None:
        model = published(name)
        return held_out_errors(
            "frames.xyz", frames, predictions, functional=functional, model=model, modal=modal
        ).energy_mae_mev_per_atom

    assert energy("PBE(+U)", "7net-0") is not None and energy(None, "7net-0") is not None
    assert energy("r²SCAN", "7net-0") is None
    assert (
        energy("r²SCAN", "7net-mf-0", "R2SCAN") is not None
        and energy("PBE(+U)", "7net-mf-0", "PBE") is not None
    )
    assert energy("PBE(+U)", "7net-mf-0", "R2SCAN") is None
    assert energy("PBE(+U)", "mace-matpes-r2scan-0") is None


def test_frames_of_the_training_set_are_said_to_be(rng: np.random.Generator) -> None:
    frames, predictions = labelled(5, rng)
    for name, said in (("mptrj-random-1k.xyz", True), ("mpf-TP.xyz", False)):
        warnings = held_out_errors(name, frames, predictions, model=published("7net-0")).warnings
        assert any("most are not held out for it" in sentence for sentence in warnings) == said
    assert not held_out_errors("mptrj-random-1k.xyz", frames, predictions).warnings
    assert all(known.functional == "PBE(+U)" for known in SETS.values())


def test_frames_of_unknown_elements_are_left_out(rng: np.random.Generator) -> None:
    frames, _ = labelled(30, rng)
    kept = known_elements(frames, ["Li", "O"])
    assert 0 < len(kept) < 30 and not any("Fe" in frame.atoms.symbols for frame in kept)
    with pytest.raises(InputError, match=r"frames\.xyz: no frame of elements"):
        known_elements(frames, ["Au"])


def test_softening_of_nothing() -> None:
    assert softening(np.zeros(3), np.ones(3)) is None and robust_softening(np.zeros(3), np.ones(3)) is None


def test_forces_below_the_errors_have_no_slope(rng: np.random.Generator) -> None:
    frames, predictions = labelled(20, rng)
    still = [replace(frame, forces=1e-3 * frame.forces) for frame in frames]
    result = held_out_errors("frames.xyz", still, predictions)
    assert result.softening is None and result.softening_robust is None
    assert result.per_element["O"]["softening"] is None
    assert "smaller than the errors" in result.warnings[0]


def test_places_in_the_periodic_table() -> None:
    places = [place(number) for number in range(1, 119)]
    assert len(set(places)) == 118
    assert [place(z) for z in (5, 13, 30, 31, 56, 71, 80, 86, 89, 103, 104)] == [
        (13, 2), (13, 3), (12, 4), (13, 4), (2, 6), (17, 8), (12, 6), (18, 6), (3, 9), (17, 9), (4, 7),
    ]  # fmt: skip


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    small = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 4, "per_type_energy_shifts": -5.4}
    model, page, numbers = (tmp_path / name for name in ("model.safetensors", "page.html", "numbers.json"))
    equipes.build("nequip", ["Si"], small).save(model)
    command = [
        "benchmark",
        "held-out",
        "--model",
        model,
        SILICON,
        "--elements",
        "--report",
        page,
        "--json",
        numbers,
    ]
    assert run(app, list(map(str, command)), "equipes") == 0
    printed = capsys.readouterr().out
    assert "slope" in printed and "silicon" in printed
    facts = json.loads(numbers.read_text())["sets"][0]
    frames = read_frames(str(SILICON))
    assert facts["n_frames"] == len(frames) and facts["per_element"]["Si"]["n_atoms"] == facts["n_atoms"]
    assert facts["stress_mae_gpa"] > 0
    text = page.read_text()
    assert (
        "errors of forces by element" in text
        and "http-equiv" in text
        and "src=" not in text.split("<script")[0]
    )
    assert run(app, list(map(str, command)), "equipes") == 2
