"""Distillation: what is sampled, a student and its report, resuming, an unstable student, bad input."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from rich.console import Console

import equipes
from equipes.cli import app, run
from equipes.cli import distill as command
from equipes.data import read_frames
from equipes.distillation import Distillation, DistillationOptions, compare_speed, distill
from equipes.distillation import run as stage
from equipes.distillation.comparison import student_trajectory
from equipes.distillation.settings import sampling_parts, student_cutoff, supercell_for
from equipes.errors import InputError
from equipes.training.metrics import predict_frames
from pair_calculator import PairCalculator, argon

QUIET = Console(quiet=True)
TINY = (
    "model.num_layers=1", "model.l_max=1", "model.num_features=4", "model.num_bessels=4", "train.max_steps=6",
    "model.radial_mlp_width=8", "train.max_minutes=null",
)  # fmt: skip
OPTIONS = DistillationOptions(
    frames=20, temperatures=(50.0,), timestep=5.0, student=TINY, test_picoseconds=0.1, test_frames=2
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    out = tmp_path_factory.mktemp("made") / "fast.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        # Drawing the page takes longer than all the rest, and has tests of its own.
        patch.setattr(
            "equipes.report.write_report", lambda path, *_, **facts: path.write_text(facts["subtitle"])
        )
        return distill(argon(), PairCalculator(), out, OPTIONS, teacher_name="pairs", console=QUIET)


def test_a_student_and_its_report(made: Distillation) -> None:
    model = equipes.load(made.model)
    assert model.species == ("Ar",)
    assert made.frames == 20
    frames = read_frames(made.work / "frames.extxyz")
    kinds = [(frame.config_type or "").split(" ")[0].rstrip(",") for frame in frames]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "strains": 3, "vacancy": 3, "interstitial": 2, "dynamics": 12,
    }  # fmt: skip
    content = json.loads((made.work / "distillation.json").read_text())
    assert content["teacher"] == "pairs"
    assert [(row["driver"], row["temperature_k"]) for row in content["comparisons"]] == [
        ("teacher", 50.0),
        ("student", 50.0),
    ]
    assert content["speed"]["gain"] == pytest.approx(made.speed.teacher_ms / made.speed.student_ms)
    assert made.speed.n_atoms >= 200
    assert (made.work / "report.html").read_text() == "against pairs on held-out trajectories"


def test_errors_are_those_against_the_teacher(made: Distillation) -> None:
    held_out = read_frames(made.work / "held-out.extxyz")
    predictions = predict_frames(equipes.load(made.model), held_out)
    first = [
        np.abs(prediction.forces - frame.forces)
        for frame, prediction in zip(held_out[:2], predictions, strict=False)
    ]
    assert made.comparisons[0].forces_mae_mev_per_ang == pytest.approx(1e3 * np.mean(first), rel=1e-5)
    for frame in (held_out[0], held_out[-1]):  # of the teacher's dynamics, of the student's
        atoms = frame.atoms.copy()
        atoms.calc = PairCalculator()
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-9)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-9)


def test_held_out_frames_are_not_those_of_the_training(made: Distillation) -> None:
    known = [frame.atoms.positions for frame in read_frames(made.work / "frames.extxyz")]
    for frame in read_frames(made.work / "held-out.extxyz"):
        same = [
            p
            for p in known
            if p.shape == frame.atoms.positions.shape and np.allclose(p, frame.atoms.positions)
        ]
        assert not same


def test_what_was_stopped_goes_on(
    made: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_record", lambda *_: None)  # its page takes longer than all the rest
    out = tmp_path / "fast.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "student_trajectory", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            distill(argon(), PairCalculator(), out, OPTIONS, teacher_name="pairs", console=QUIET)
    assert not out.exists()
    with pytest.raises(InputError, match="overwrite"):
        distill(argon(), PairCalculator(), out, OPTIONS, teacher_name="pairs", console=QUIET)
    with pytest.raises(InputError, match=r"teacher = pairs, not others"):
        distill(argon(), PairCalculator(), out, OPTIONS, teacher_name="others", resume=True, console=QUIET)
    monkeypatch.setattr(
        stage, "sampling_parts", lambda *_: [replace(part, sampler=_never) for part in sampling_parts(*_)]
    )
    distill(argon(), PairCalculator(), out, OPTIONS, teacher_name="pairs", resume=True, console=QUIET)
    assert out.read_bytes() == made.model.read_bytes()
    # What is refused does not cost what was there.
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="of another kind"):
        distill(argon(), _Refusing(), out, OPTIONS, overwrite=True, console=QUIET)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


class _Refusing(PairCalculator):
    def calculate(self, *_: Any, **__: Any) -> None:
        raise InputError("atoms of another kind")


def _never(*_: Any) -> Any:
    raise AssertionError("sampled again what was kept")


def test_an_unstable_student_is_told(tmp_path: Path) -> None:
    """Atoms of the size of caesium in an argon crystal fly apart."""
    swollen = PairCalculator(epsilon=1.0, sigma=4.9, cutoff=5.2)
    run = student_trajectory(argon(), swollen, PairCalculator(), OPTIONS, 60.0, tmp_path / "md")
    assert run.failure is not None
    assert "step" in run.failure
    assert len(run.sample) > 0


def test_supercells_and_cutoffs() -> None:
    salt = bulk("MgO", "rocksalt", a=4.25)
    assert student_cutoff(salt, 5.0) == 4.5
    assert student_cutoff(salt, 4.0) == 4.0
    assert student_cutoff(bulk("Ar", "fcc", a=5.3), 6.0) == 6.0
    options = DistillationOptions()
    cell = supercell_for(salt, options, 4.5)
    assert len(cell) == 2 * 3**3  # faces of the primitive cell are 2.45 Å apart
    assert len(supercell_for(salt, replace(options, supercell=(2, 1, 1)), 4.5)) == 4
    assert len(supercell_for(molecule("H2O"), options, 4.5)) == 3
    with pytest.raises(InputError, match="more than the 400"):
        supercell_for(salt, replace(options, supercell=(10, 10, 10)), 4.5)
    with pytest.raises(InputError, match="only a crystal"):
        supercell_for(molecule("H2O"), replace(options, supercell=(2, 1, 1)), 4.5)
    for atoms in (cell, molecule("H2O")):
        for frames in (20, 137, 500):
            parts = sampling_parts(atoms, replace(options, frames=frames))
            assert sum(part.count for part in parts) == frames
            assert len({part.name for part in parts}) == len(parts)
    assert options.timestep_for(cell) == 2.0
    assert options.timestep_for(molecule("H2O")) == 1.0


def test_a_molecule_has_normal_modes() -> None:
    names = [part.name for part in sampling_parts(molecule("H2O"), DistillationOptions(frames=40))]
    assert names == ["normal modes", "dynamics 0", "dynamics 1", "dynamics 2"]  # one for each temperature


def test_every_temperature_is_sampled() -> None:
    options = DistillationOptions(frames=20, temperatures=(20.0, 40.0, 60.0), timestep=5.0)
    walks = [part for part in sampling_parts(argon(), options) if part.name.startswith("dynamics")]
    samples = [part.sampler(PairCalculator(), np.random.default_rng(1)) for part in walks]
    kinds = {frame.config_type for sample in samples for frame in sample.frames}
    assert kinds == {"dynamics 20 K", "dynamics 40 K", "dynamics 60 K"}


def test_speed_is_measured_on_a_supercell() -> None:
    class Slow(PairCalculator):
        def calculate(self, *arguments: Any, **named: Any) -> None:
            super().calculate(*arguments, **named)
            time.sleep(0.05)

    speed = compare_speed(bulk("Ar", "fcc", a=5.3, cubic=True), Slow(), PairCalculator())
    assert speed.n_atoms >= 200
    assert speed.teacher_ms > 50
    assert 1.2 < speed.gain < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, "too few"),
        ({"temperatures": ()}, "above 0 K"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"supercell": (0, 1, 1)}, "repetitions"),
        ({"student": ("model.num_layer=3",)}, "did you mean model.num_layers"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        distill(
            argon(), PairCalculator(), tmp_path / "a.safetensors", replace(OPTIONS, **changes), console=QUIET
        )


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\*\.safetensors"):
        distill(argon(), PairCalculator(), tmp_path / "a.pt", OPTIONS, console=QUIET)
    (tmp_path / "there.safetensors").write_text("")
    with pytest.raises(InputError, match="exists"):
        distill(argon(), PairCalculator(), tmp_path / "there.safetensors", OPTIONS, console=QUIET)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "start", lambda *_, **__: (argon(), PairCalculator()))
    monkeypatch.setattr(command, "fingerprint", lambda *_, **__: "pairs")
    monkeypatch.setattr(stage, "_record", lambda *_: None)
    arguments = [
        "distill", "teacher", *TINY, "--structure", "argon.xyz", "--out", str(tmp_path / "fast.safetensors"),
        "--frames", "20", "--temperature", "40", "--timestep", "4", "--test-ps", "0.1", "--defect", "none",
        "--json", str(tmp_path / "numbers.json"),
    ]  # fmt: skip
    status = run(app, arguments, "equipes")
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "times the teacher's" in captured.out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [row["driver"] for row in numbers["comparisons"]] == ["teacher", "student"]
    assert numbers["stable"] is True
    assert run(app, arguments, "equipes") == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
