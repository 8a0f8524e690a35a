"""Uncertainty as a user meets it: train, familiarize, evaluate, predict and md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

import equipes
from equipes.cli import app, run
from equipes.data import read_frames

SILICON = Path(__file__).parent / "data" / "silicon.xyz"
SMALL = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 4, "per_type_energy_shifts": -5.4}


def command(*words: object) -> int:
    return run(app, [str(word) for word in words], "equipes")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small potentials that were shown the frames of silicon."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        equipes.build("nequip", ["Si"], SMALL, seed=seed).save(folder / f"plain{seed}.safetensors")
        done = command(
            "familiarize",
            folder / f"plain{seed}.safetensors",
            SILICON,
            "--out",
            folder / f"{seed}.safetensors",
        )
        assert done == 0
    return [folder / "1.safetensors", folder / "2.safetensors"]


def test_a_training_ends_with_knowing_its_frames(tmp_path: Path) -> None:
    words = ["train.max_steps=2", "data.n_val=1", "data.test=null", "model.r_max=4", "model.num_layers=1"]
    words += ["model.l_max=1", "model.num_features=4", "train.batch_size=1"]
    assert command("train", f"data.train={SILICON}", *words, "--out", tmp_path / "run") == 0
    potential = equipes.load(tmp_path / "run" / "model.safetensors")
    frames = read_frames(str(SILICON))
    known = potential.summary()["familiarity"]
    assert known["structures"] == len(frames) - 1
    assert known["source"] == "training frames; calibrated with validation frames"
    assert f"over {len(frames[0].atoms)} atoms of held-out structures" in known["calibration"]


def test_familiarize_says_what_it_did_and_changes_no_energy(
    models: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "known.safetensors"
    words = ("familiarize", models[0], SILICON, "--held-out", SILICON, "--out", out, "--json", "-")
    assert command(*words) == 0
    facts = json.loads(capsys.readouterr().out)["familiarity"]
    assert (
        facts["source"] == "silicon.xyz; calibrated with silicon.xyz" and "held-out" in facts["calibration"]
    )
    atoms = read(SILICON)
    energies = []
    for path in (models[0], out):
        atoms.calc = equipes.Calculator(path, exact=True)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]
    assert command(*words) == 2 and "exists" in capsys.readouterr().err
    assert command("familiarize", models[0], SILICON, "--out", tmp_path / "x.pt") == 2


def test_evaluate_sets_uncertainty_against_errors(
    models: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    both = ",".join(map(str, models))
    words = ["evaluate", both, SILICON, "--json", tmp_path / "e.json", "--plots", tmp_path / "plots"]
    assert command(*words, "--report", tmp_path / "e.html") == 0
    printed = capsys.readouterr().out
    assert "forces std" in printed and "feature distance" in printed and "energy std" in printed
    found = json.loads((tmp_path / "e.json").read_text())
    assert set(found["uncertainty"]) == {"forces_std", "feature_distance", "energy_std"}
    assert len(found["uncertainty"]["forces_std"]["bins"]) == 10
    assert (tmp_path / "plots" / "forces_std_uncertainty.png").is_file()
    assert "error of the force on each atom over its feature distance" in (tmp_path / "e.html").read_text()
    # The errors are those of the mean.
    frames = read_frames(str(SILICON))
    differences = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.calc = equipes.Committee(models, dtype=None, exact=True)
        differences.append(np.abs(atoms.get_forces() - frame.forces).ravel())
    mae = 1000 * np.concatenate(differences).mean()
    assert found["forces_mae_mev_per_ang"] == pytest.approx(mae, rel=1e-4)


def test_evaluate_says_nothing_of_uncertainty_where_there_is_none(
    models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", models[0].parent / "plain1.safetensors", SILICON) == 0
    assert "uncertainty" not in capsys.readouterr().out


def test_predict_writes_columns(models: list[Path], tmp_path: Path) -> None:
    assert command("predict", ",".join(map(str, models)), SILICON, tmp_path / "out.xyz") == 0
    frame = read(tmp_path / "out.xyz")
    atoms = read(SILICON)
    atoms.calc = equipes.Committee(models, exact=True, feature_distance=True)
    atoms.get_forces()
    for name in ("forces_std", "feature_distance"):
        np.testing.assert_allclose(frame.arrays[name], atoms.calc.results[name], rtol=1e-3, atol=1e-5)
    assert frame.info["energy_std"] == pytest.approx(atoms.calc.results["energy_std"], rel=1e-3)


def test_md_stops_with_status_3(
    models: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "md",
        models[0],
        SILICON,
        "--ensemble",
        "nvt",
        "--temperature",
        "3000",
        "--steps",
        "60",
        "--timestep",
        "3",
    ]
    words += ["--exact", "--max-feature-distance", "1.2", "--out", tmp_path / "md"]
    assert command(*words) == 3
    said = capsys.readouterr().err
    assert "feature distance" in said and "uncertain.extxyz" in said and "--resume" in said
    assert (tmp_path / "md" / "uncertain.extxyz").is_file()
    assert command(*words[:-4], "--max-forces-std", "1", "--out", tmp_path / "other") == 2
    assert "needs a committee" in capsys.readouterr().err


def test_a_committee_is_refused_where_one_model_is_wanted(
    models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("info", ",".join(map(str, models))) == 2
    assert "several models, where one is wanted" in capsys.readouterr().err
    assert command("evaluate", f"{models[0]},{models[0]}", SILICON) == 2
    assert "twice" in capsys.readouterr().err
