"""Data of another convention than the model's is noticed, and good data is left in peace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units

from equipes.data import Frame, Units, read_frames
from equipes.training.metrics import FramePrediction
from equipes.training.suspicions import suspicions

DATA = Path(__file__).parent / "data"


@pytest.fixture
def frames() -> list[Frame]:
    return read_frames(DATA / "silicon.xyz") + read_frames(
        DATA / "ethanol.npz", units=Units(energy="kcal/mol")
    )


@pytest.fixture
def predictions(frames: list[Frame], rng: np.random.Generator) -> list[FramePrediction]:
    """Those of a mediocre model: errors of a few tens of meV."""
    return [
        FramePrediction(
            frame.energy + 0.02 * rng.normal() * len(frame.atoms),
            frame.forces * 0.95 + 0.05 * rng.normal(size=frame.forces.shape),
            None if frame.stress is None else frame.stress + 1e-3 * rng.normal(size=(3, 3)),
        )
        for frame in frames
    ]


def test_errors_of_a_mediocre_model_are_no_suspicion(
    frames: list[Frame], predictions: list[FramePrediction], rng: np.random.Generator
) -> None:
    assert suspicions(frames, predictions) == []
    # Nothing but the size of its forces stands in the ratio of two units to the labels.
    size = np.linalg.norm(np.concatenate([f.forces for f in frames]))
    noise = [rng.normal(size=f.forces.shape) for f in frames]
    scale = size / np.linalg.norm(np.concatenate(noise)) * units.kcal / units.mol
    untrained = [
        FramePrediction(p.energy, scale * forces, p.stress)
        for p, forces in zip(predictions, noise, strict=True)
    ]
    assert suspicions(frames, untrained) == []


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (units.mol / units.kcal, "kcal/mol/Å"),
        (units.mol / units.kJ, "kJ/mol/Å"),
        (units.Bohr / units.Hartree, "Ha/Bohr"),
        (-1.0, "opposite sign"),
    ],
)
def test_forces_in_another_unit_or_sign(
    frames: list[Frame], predictions: list[FramePrediction], factor: float, said: str
) -> None:
    wrong = [replace(frame, forces=factor * frame.forces) for frame in frames]
    (sentence,) = suspicions(wrong, predictions)
    assert "forces" in sentence
    assert said in sentence


@pytest.mark.parametrize(
    ("factor", "said"),
    [(-1.0, ["opposite sign"]), (1 / units.GPa, ["GPa"]), (-10 / units.GPa, ["opposite sign", "kbar"])],
)
def test_stress_in_another_unit_or_sign(
    frames: list[Frame], predictions: list[FramePrediction], factor: float, said: list[str]
) -> None:
    wrong = [
        frame if frame.stress is None else replace(frame, stress=factor * frame.stress) for frame in frames
    ]
    (sentence,) = suspicions(wrong, predictions)
    assert "stress" in sentence
    assert all(words in sentence for words in said)


def test_energies_of_another_level_of_theory(frames: list[Frame], predictions: list[FramePrediction]) -> None:
    molecules = [(f, p) for f, p in zip(frames, predictions, strict=True) if not f.atoms.pbc.any()]
    moved = [replace(f, energy=f.energy + 9.0 * len(f.atoms)) for f, _ in molecules]
    (sentence,) = suspicions(moved, [p for _, p in molecules])
    assert "nearly constant" in sentence
    assert "level of theory" in sentence


def test_a_few_numbers_are_no_evidence(frames: list[Frame]) -> None:
    one = replace(frames[0], forces=frames[0].forces[:2], stress=None)
    assert suspicions([one], [FramePrediction(one.energy, -one.forces, None)]) == []


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (units.mol / units.kcal, "look like kcal/mol"),
        (1 / units.Hartree, "look like Ha"),
        (-1.0, "rise where the model's fall"),
        (None, "energies per atom"),
    ],
)
def test_energies_in_another_unit_or_per_atom(frames: list[Frame], factor: float | None, said: str) -> None:
    molecules = [frame for frame in frames if not frame.atoms.pbc.any()]
    mean = np.mean([frame.energy for frame in molecules])
    # As a model trained on such labels says it: their mean, and changes in eV as its forces have them.
    right = [FramePrediction(frame.energy, frame.forces, None) for frame in molecules]
    wrong = [
        replace(f, energy=mean + (f.energy - mean) * (1 / len(f.atoms) if factor is None else factor))
        for f in molecules
    ]
    (sentence,) = suspicions(wrong, right)
    assert said in sentence
    assert suspicions(molecules, right) == []
