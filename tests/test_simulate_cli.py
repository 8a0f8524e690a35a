"""`equipes relax`, `md` and `eos` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

import equipes
from equipes.cli import app, run

MD = ("md", "MODEL", "--out", "run", "--steps", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    hyperparameters = {
        "num_layers": 1,
        "num_features": 4,
        "l_max": 1,
        "r_max": 3.0,
        "per_type_energy_scales": 0.1,
    }
    equipes.build("nequip", ["Cu", "H", "O"], hyperparameters, seed=1).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    ase.io.write("copper.extxyz", bulk("Cu", a=3.7))
    ase.io.write("crystal.extxyz", bulk("Cu", a=3.6, cubic=True) * (2, 2, 1))
    ase.io.write("water.extxyz", [molecule("OH"), molecule("H2O")])
    return tmp_path


@pytest.fixture
def emt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a potential with known properties in the place of a model's."""
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    monkeypatch.setattr("equipes.cli.simulate.fingerprint", lambda *_, **__: "EMT")


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


def test_relax_says_that_the_cell_relaxes_and_writes(
    here: Path, emt: None, capsys: pytest.CaptureFixture
) -> None:
    files = ["--json", "relax.json", "--trajectory", "path.traj", "--report", "path.html"]
    status = equipes_command("relax", "any", "copper.extxyz", *files)
    shown = " ".join(capsys.readouterr().out.split())  # lines are as long as the terminal is wide
    assert status == 0
    assert "until every force is below 0.01 eV/Å and every component of stress + pressure below 0.05" in shown
    assert "Nocedal" in shown
    assert "3Dmol" in Path("path.html").read_text()
    assert Path("path.png").stat().st_size > 1000
    assert "Atoms and cell relax, at 0 GPa; --no-cell holds the cell." in shown
    assert "converged" in shown
    summary = json.loads(Path("relax.json").read_text())
    assert summary["converged"]
    relaxed = ase.io.read("copper_relaxed.extxyz")
    assert relaxed.get_volume() == pytest.approx(3.59**3 / 4, rel=1e-3)
    assert relaxed.get_potential_energy() == pytest.approx(summary["energy_ev"])
    path = ase.io.read("path.traj", index=":")
    assert len(path) == summary["steps"] + 1
    assert path[0].get_volume() == pytest.approx(3.7**3 / 4)
    # Nothing is overwritten.
    assert equipes_command("relax", "any", "copper.extxyz") == 2
    assert "copper_relaxed.extxyz exists" in capsys.readouterr().err
    assert equipes_command("relax", "any", "copper.extxyz", "--no-cell", "--overwrite") == 0
    assert "the cell is held" in capsys.readouterr().out


def test_targets_are_looked_at_before_the_work(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("there.extxyz").touch()
    for command, option in (
        ("relax", "--out"),
        ("relax", "--trajectory"),
    ):
        name = "there.extxyz"
        assert equipes_command(command, "absent.safetensors", "absent.cif", option, name) == 2
        assert f"{name} exists" in capsys.readouterr().err


def test_relax_without_convergence_is_status_1(here: Path, emt: None, capsys: pytest.CaptureFixture) -> None:
    assert equipes_command("relax", "any", "water.extxyz", "--frame", -1, "--steps", 1, "--json", "-") == 1
    shown = capsys.readouterr()
    assert not json.loads(shown.out)["converged"]
    assert "Error: not converged after 1 steps: largest force" in shown.err
    assert Path("water_relaxed.extxyz").exists()


def test_relax_goes_on_where_it_had_too_few_steps(
    here: Path, emt: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the very same end, calculates nothing twice, and leaves nothing behind."""
    given = ["relax", "any", "water.extxyz", "--frame", -1]
    assert equipes_command(*given, "--out", "whole.extxyz", "--trajectory", "whole.traj") == 0
    assert equipes_command(*given, "--steps", 2) == 1
    assert "--resume" in capsys.readouterr().err
    assert equipes_command(*given) == 2
    assert "water_relaxed.extxyz exists" in capsys.readouterr().err
    Path("water_relaxed.extxyz").unlink()
    assert equipes_command(*given) == 2
    assert "give --resume, or --overwrite" in capsys.readouterr().err
    assert equipes_command(*given, "--optimizer", "fire", "--resume") == 2
    assert "was made with options" in capsys.readouterr().err
    assert equipes_command(*given, "--fmax", -1, "--resume") == 2  # and nothing of the run before is lost
    evaluations = []
    calculate = EMT.calculate
    monkeypatch.setattr(EMT, "calculate", lambda *a, **k: (evaluations.append(1), calculate(*a, **k)))
    assert equipes_command(*given, "--resume", "--trajectory", "path.traj") == 0
    whole, path = ase.io.read("whole.traj", ":"), ase.io.read("path.traj", ":")
    assert len(evaluations) == len(whole) - 3 == len(path) - 3
    assert all((a.positions == b.positions).all() for a, b in zip(whole, path, strict=True))
    assert not list(Path().glob("*.npz"))
    assert equipes_command(*given, "--fmax", -1, "--out", "refused.extxyz") == 2
    assert not list(Path().glob("*.npz"))
    assert equipes_command(*given, "--resume") == 2
    assert "no such file to continue from" in capsys.readouterr().err


def test_relax_with_a_model(here: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    status = equipes_command(
        "relax", model, "copper.extxyz", "--no-cell", "--dtype", "float64", "--out", "out.xyz"
    )
    assert status == 0  # one atom alone in its cell feels no force
    np.testing.assert_allclose(ase.io.read("out.xyz").get_forces(), 0, atol=1e-10)


def test_md_writes_its_directory_and_goes_on(here: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["md", model, "crystal.extxyz", "--out", "run", "--ensemble", "nvt", "--temperature", 300]
    options += ["--timestep", 2, "--interval", 5]
    assert equipes_command(*options, "--steps", 20) == 0
    shown = capsys.readouterr().out
    assert "mean temperature" in shown
    assert "meV/atom/ps" in shown
    names = {"trajectory.extxyz", "md.csv", "md.json", "md.png", "final.extxyz", "checkpoint.npz"}
    names |= {"order.png", "report.html"}
    assert "g(r) of Cu-Cu" in shown
    assert "Bussi" in shown
    assert "the conserved energy per atom changes by" in shown
    page = Path("run/report.html").read_text()
    assert "3Dmol" in page
    assert page.count("<svg") == 2
    assert {path.name for path in Path("run").iterdir()} == names
    assert equipes_command(*options, "--steps", 40) == 2
    assert "run exists and is not empty" in capsys.readouterr().err
    assert equipes_command(*options, "--steps", 40, "--resume", "--json", "-") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 40
    assert summary["potential"].startswith("sha256:")
    assert len(ase.io.read("run/trajectory.extxyz", index=":")) == 9
    other = equipes.load(model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save("other.safetensors")
    options[1] = "other.safetensors"
    assert equipes_command(*options, "--steps", 60, "--resume") == 2
    assert "was started with potential" in capsys.readouterr().err


def test_md_that_breaks_is_status_1(here: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    squeezed = bulk("Cu", a=3.6, cubic=True)
    squeezed.positions[1] = squeezed.positions[0] + [0.6, 0, 0]
    ase.io.write("squeezed.extxyz", squeezed)
    options = [
        "md",
        model,
        "squeezed.extxyz",
        "--out",
        "run",
        "--ensemble",
        "nve",
        "--temperature",
        10,
        "--steps",
        5,
    ]
    assert equipes_command(*options) == 1
    assert "Error: step 0: atoms 0 (Cu) and 1 (Cu) are 0.60 Å apart" in capsys.readouterr().err
    assert not Path("run").exists()


def test_eos_prints_constants(
    here: Path, emt: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("equipes.cli.workflow.fingerprint", lambda *_, **__: "any")
    assert equipes_command("eos", "any", "copper.extxyz", "--json", "eos.json") == 0
    shown = capsys.readouterr().out
    assert "FCC a = 3.5" in shown
    assert "GPa" in shown
    assert "Birch" in shown
    assert "the Vinet equation of state: the bulk modulus changes by" in shown
    summary = json.loads(Path("eos.json").read_text())
    assert summary["lattice_constants"]["a"] == pytest.approx(3.59, abs=0.002)
    assert summary["bulk_modulus_gpa"] == pytest.approx(134, abs=2)
    best = ase.io.read("copper_eos/structure.extxyz")
    assert best.get_volume() == pytest.approx(summary["volume_ang3"])
    assert Path("copper_eos/eos.png").stat().st_size > 1000
    assert "3Dmol" in Path("copper_eos/report.html").read_text()
    assert equipes_command("eos", "any", "copper.extxyz") == 2
    assert "copper_eos exists" in capsys.readouterr().err
    assert equipes_command("eos", "any", "copper.extxyz", "--resume") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["relax", "MODEL", "absent.xyz"], "absent.xyz: no such file"),
        (["relax", "absent.safetensors", "copper.extxyz"], "absent.safetensors"),
        (["relax", "MODEL", "copper.extxyz", "--frame", "3"], "copper.extxyz: has no frame 3"),
        (["relax", "MODEL", "broken.xyz"], "broken.xyz: cannot be read"),
        (["relax", "MODEL", "water.extxyz", "--cell"], "periodic in all three directions"),
        (["relax", "MODEL", "frames.npz"], "frames.npz: an npz file does not say its units"),
        (["relax", "MODEL", "copper.extxyz", "--out", "nowhere/out.xyz"], "nowhere"),
        (
            ["relax", "MODEL", "copper.extxyz", "--out", "relaxed.foo"],
            "relaxed.foo: .foo is no format that ASE writes",
        ),
        (["eos", "MODEL", "water.extxyz"], "needs a crystal"),
        ([*MD, "water.extxyz", "--ensemble", "nvt"], "needs a temperature"),
        ([*MD, "water.extxyz", "--ensemble", "nvx"], "nvx"),
        ([*MD, "water.extxyz", "--ensemble", "nve", "--resume"], "run has no checkpoint.npz"),
        (
            [*MD, "silicon.extxyz", "--ensemble", "nve", "--temperature", "9"],
            "does not know Si; it knows Cu, H, O",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    here: Path, model: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    Path("broken.xyz").write_text("3\nno lattice\nH 0 0\n")
    Path("frames.npz").write_bytes(b"")
    ase.io.write("silicon.extxyz", bulk("Si", cubic=True))
    status = equipes_command(*[model if argument == "MODEL" else argument for argument in arguments])
    *notes, error = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert error.startswith("Error: ")
    assert sentence in error
    assert all(note.startswith("Frozen for ") for note in notes)  # which is no mistake
    assert not Path("run").exists()


def test_md_of_a_supercell(here: Path, emt: None, capsys: pytest.CaptureFixture) -> None:
    options = ["--ensemble", "nve", "--temperature", "300", "--supercell", "2", "2", "1"]
    assert equipes_command(*MD, "copper.extxyz", *options) == 0
    final = ase.io.read("run/final.extxyz")
    assert len(final) == 4
    np.testing.assert_allclose(final.cell, np.diag([2, 2, 1]) @ bulk("Cu", a=3.7).cell)
    # A run goes on only in the same supercell.
    assert equipes_command(*MD, "copper.extxyz", *options[:-1], "2", "--resume") == 2
    assert equipes_command(*MD, "water.extxyz", *options) == 2
    assert "only where water.extxyz is periodic (FFF)" in " ".join(capsys.readouterr().err.split())
