"""`equipes evaluate` and `equipes predict` as a user types them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest

import equipes
from equipes.cli import app, run
from equipes.cli.inputs import parse_keys, parse_units
from equipes.data import LabelKeys, Units, read_frames
from equipes.errors import InputError
from equipes.graph import AtomGraph

DATA = Path(__file__).parent / "data"
REQUIRED = (
    "energy_mae_mev_per_atom",
    "energy_rmse_mev_per_atom",
    "forces_mae_mev_per_ang",
    "forces_rmse_mev_per_ang",
    "stress_mae_mev_per_ang3",
    "stress_rmse_mev_per_ang3",
)


@dataclass(frozen=True)
class Output:
    status: int
    out: str
    err: str


@pytest.fixture
def equipes_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Output]:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> Output:
        capsys.readouterr()
        status = run(app, [str(argument) for argument in arguments], "equipes")
        captured = capsys.readouterr()
        return Output(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained potential of silicon that says it was trained on data in kcal/mol."""
    small = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 4, "avg_num_neighbors": 20.0}
    potential = equipes.build("nequip", ["Si", "O"], {**small, "per_type_energy_shifts": -5.4}, seed=3)
    potential.provenance = {
        "config": {"data": {"units": {"energy": "kcal/mol", "length": "Ang", "stress": None}}}
    }
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    potential.save(path)
    return path


SILICON = DATA / "silicon.xyz"


def test_evaluate_prints_and_writes_the_errors(
    equipes_command: Callable[..., Output], model: Path, tmp_path: Path
) -> None:
    done = equipes_command(
        "evaluate", model, SILICON, "--json", tmp_path / "errors.json", "--dtype", "float64"
    )
    assert (done.status, done.err) == (0, "")
    errors = json.loads((tmp_path / "errors.json").read_text())
    frames = read_frames(SILICON)
    assert errors["n_frames"] == len(frames)
    assert errors["n_atoms"] == sum(len(frame.atoms) for frame in frames)
    assert errors["dtype"] == "float64"
    assert errors["model"] == str(model)
    assert list(errors["per_element"]) == ["Si"]
    assert set(errors["per_config_type"]) == {frame.config_type for frame in frames}

    # The same numbers by the shortest way there is, one frame at a time.
    potential = equipes.load(model, dtype="float64")
    said = [potential(AtomGraph.from_atoms(frame.atoms, potential.cutoff)) for frame in frames]
    energy = [(float(p.energy) - f.energy) / len(f.atoms) for f, p in zip(frames, said, strict=True)]
    forces = np.concatenate(
        [(p.forces.numpy() - f.forces).ravel() for f, p in zip(frames, said, strict=True)]
    )
    stress = np.concatenate(
        [(p.stress.numpy()[0] - f.stress).ravel() for f, p in zip(frames, said, strict=True)]
    )
    for name, difference in zip(
        ("energy", "forces", "stress"), (np.array(energy), forces, stress), strict=True
    ):
        mae, rmse = (
            next(key for key in REQUIRED if key.startswith(f"{name}_{kind}")) for kind in ("mae", "rmse")
        )
        assert errors[mae] == pytest.approx(1000 * np.abs(difference).mean(), rel=1e-9)
        assert errors[rmse] == pytest.approx(1000 * np.sqrt((difference**2).mean()), rel=1e-9)
    for words in (
        "7 frames",
        "energy (meV/atom)",
        "forces (meV/Å)",
        "stress (meV/Å³)",
        "baseline",
        "Surface",
        "Si",
    ):
        assert words in done.out


def test_json_on_stdout_is_alone_there(
    equipes_command: Callable[..., Output], model: Path, tmp_path: Path
) -> None:
    done = equipes_command("evaluate", model, SILICON, "--json", "-", "--report", tmp_path / "report.html")
    assert done.status == 0
    assert set(REQUIRED) <= set(json.loads(done.out, parse_constant=pytest.fail))
    assert "report.html" in done.err


def test_labels_that_are_not_there_are_null(
    equipes_command: Callable[..., Output], model: Path, tmp_path: Path
) -> None:
    frames = ase.io.read(SILICON, ":")
    for atoms in frames:
        atoms.calc = None
        atoms.info["E0"] = -5.0 * len(atoms)
    ase.io.write(tmp_path / "bare.xyz", frames)
    done = equipes_command("evaluate", model, tmp_path / "bare.xyz", "--json", "-", "--keys", "energy=E0")
    errors = json.loads(done.out)
    assert errors["energy_mae_mev_per_atom"] > 0
    assert errors["forces_mae_mev_per_ang"] is None
    assert errors["stress_mae_mev_per_ang3"] is None
    # Without the key there is nothing at all to compare with.
    done = equipes_command("evaluate", model, tmp_path / "bare.xyz")
    assert done.status == 2
    assert "no energies, forces or stresses to compare with; name them with --keys" in done.err


def test_the_report_takes_the_logs(
    equipes_command: Callable[..., Output], model: Path, tmp_path: Path
) -> None:
    (model.parent / "metrics.csv").write_text("step,train_loss\n1,2.0\n2,1.0\n")
    header = "time_fs,potential_energy_ev,kinetic_energy_ev,total_energy_ev,temperature_k\n"
    (tmp_path / "md").mkdir()
    (tmp_path / "md" / "md.csv").write_text(header + "0,-1,0.5,-0.5,300\n1,-1,0.5,-0.5,301\n")
    try:
        done = equipes_command(
            *("evaluate", model, SILICON, "--report", tmp_path / "r.html", "--md", tmp_path / "md"),
            *("--plots", tmp_path / "plots", "--plot-format", "svg"),
        )
    finally:
        (model.parent / "metrics.csv").unlink()
    assert done.status == 0
    page = (tmp_path / "r.html").read_text()
    assert all(
        f'<h2 id="{section}">' in page
        for section in ("errors", "structures", "training", "dynamics", "model")
    )
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"parity_forces.svg", "learning_curves.svg", "dynamics.svg"} <= names


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".db", ".traj", ".json"])
def test_predictions_are_read_by_ase_and_have_no_error(
    equipes_command: Callable[..., Output], model: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"predicted{suffix}"
    done = equipes_command("predict", model, SILICON, target)
    assert (done.status, done.err) == (0, "")
    structures = ase.io.read(target, ":")
    originals = read_frames(SILICON)
    assert len(structures) == len(originals)
    potential = equipes.load(model)
    for atoms, original in zip(structures, originals, strict=True):
        said = potential(AtomGraph.from_atoms(original.atoms, potential.cutoff))
        assert atoms.get_potential_energy() == pytest.approx(float(said.energy), rel=1e-6)
        assert atoms.get_potential_energy() != pytest.approx(original.energy, rel=1e-3)
        np.testing.assert_allclose(atoms.get_forces(), said.forces.numpy(), atol=1e-5)
        np.testing.assert_allclose(atoms.get_stress(voigt=False), said.stress.numpy()[0], atol=1e-6)
    errors = json.loads(equipes_command("evaluate", model, target, "--json", "-").out)
    assert errors["energy_max_mev_per_atom"] < 0.01
    assert errors["forces_max_mev_per_ang"] < 0.1
    assert errors["stress_max_mev_per_ang3"] < 0.01


def test_predict_needs_no_labels(equipes_command: Callable[..., Output], model: Path, tmp_path: Path) -> None:
    molecule = ase.Atoms("SiO2", positions=[[0, 0, 0], [0, 0, 1.6], [0, 0, -1.6]])
    ase.io.write(tmp_path / "in.xyz", molecule, format="xyz")
    assert equipes_command("predict", model, tmp_path / "in.xyz", tmp_path / "out.xyz").status == 0
    atoms = ase.io.read(tmp_path / "out.xyz")
    assert atoms.get_forces().shape == (3, 3)
    assert "stress" not in atoms.calc.results  # it has no volume


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "MODEL", DATA / "hafnia.xyz"],
            r"hafnia.xyz frame 0: the model does not know Hf, only Si, O",
        ),
        (
            ["predict", "MODEL", DATA / "hafnia.xyz", "OUT.xyz"],
            r"hafnia.xyz frame 0: the model does not know Hf",
        ),
        (
            [
                "evaluate",
                "MODEL",
                DATA / "ethanol.npz",
                SILICON,
            ],  # units of training hold for npz files alone
            "ethanol.npz: an npz file does not say its units; set --units, for MD17 and rMD17 kcal/mol,Ang",
        ),
        (["evaluate", "MODEL", SILICON, "--units", "stone,Ang"], "unknown unit 'stone' for --units"),
        (["evaluate", "MODEL", SILICON, "--keys", "energy=nothing"], "set --keys energy=…"),
        (["evaluate", "MODEL", SILICON, "--keys", "dipole=d"], "--keys dipole=d: cannot read 'dipole=d'"),
        (["evaluate", "MODEL", "absent.xyz"], "absent.xyz: no such file"),
        (["evaluate", "absent.safetensors", SILICON], "absent.safetensors"),
        (
            ["evaluate", "MODEL", SILICON, "--device", "abacus"],
            "--device abacus: there is no such device here",
        ),
        (["evaluate", "MODEL", SILICON, "--metrics", "absent.csv"], "--metrics absent.csv: no such file"),
        (["evaluate", "MODEL", SILICON, "--md", "absent"], "--md absent: no md.csv there"),
        (["evaluate", "MODEL", SILICON, "--plots", "plots", "--plot-format", "gif"], "'gif' is not one of"),
        (["evaluate", "MODEL", DATA / "hafnia.xyz", "--plots", "plots"], "does not know Hf"),
        (
            ["evaluate", "MODEL", SILICON, "--plots", SILICON],
            "silicon.xyz exists and is not an empty directory",
        ),
        (["predict", "MODEL", SILICON, "out.cif"], "unknown format '.cif'"),
        (["predict", "MODEL", SILICON, "absent/out.xyz"], "the directory absent does not exist"),
        (["evaluate", "MODEL", SILICON, "--report", "absent/r.html"], "the directory absent does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    equipes_command: Callable[..., Output],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = equipes_command(*(model if argument == "MODEL" else argument for argument in arguments))
    assert done.status == 2
    assert done.err.startswith("Error: ")
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--report", "--json", "--plots", "OUT"])
def test_existing_output_is_refused_before_any_work(
    equipes_command: Callable[..., Output],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    place = mine = tmp_path / "mine.xyz"
    if option == "--plots":
        place.mkdir()
        mine = place / "parity_forces.png"
    mine.write_text("mine")
    arguments = ["evaluate", model, SILICON, option, place]
    if option == "OUT":
        arguments = ["predict", model, SILICON, place]
    with monkeypatch.context() as patched:
        patched.setattr(equipes, "load", lambda *_, **__: pytest.fail("the work was begun"), raising=False)
        done = equipes_command(*arguments)
    assert done.status == 2
    assert re.search(r"mine\.xyz exists.*; give --overwrite", done.err)
    assert mine.read_text() == "mine"
    assert equipes_command(*arguments, "--overwrite").status == 0
    assert mine.read_bytes() != b"mine"


def test_suspicions_go_to_stderr(equipes_command: Callable[..., Output], model: Path, tmp_path: Path) -> None:
    predicted = tmp_path / "predicted.xyz"
    equipes_command("predict", model, SILICON, predicted)
    frames = ase.io.read(predicted, ":")
    for atoms in frames:
        atoms.info["sigma"] = -atoms.get_stress(voigt=False)
    ase.io.write(tmp_path / "wrong.xyz", frames, columns=["symbols", "positions"])
    keys = "energy=energy,stress=sigma"
    done = equipes_command("evaluate", model, tmp_path / "wrong.xyz", "--keys", keys, "--json", "-")
    assert done.status == 0
    assert "Warning: the reference stress follows the model's but have the opposite sign" in done.err
    assert len(json.loads(done.out)["warnings"]) == 1


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("kcal/mol,Ang", Units(energy="kcal/mol", length="Ang")),
        ("Ha, Bohr", Units(energy="Ha", length="Bohr")),
        ("kJ/mol", Units(energy="kJ/mol")),
        ("stress=-kbar", Units(stress="-kbar")),
        ("energy=Ha,forces=Ha/Bohr", Units(energy="Ha", forces="Ha/Bohr")),
    ],
)
def test_units(text: str | None, expected: Units | None) -> None:
    assert parse_units(text) == expected


@pytest.mark.parametrize("text", ["", "eV,Ang,GPa", "energy=", "mass=u", "eV,energy=eV"])
def test_units_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=r"--units .*cannot read"):
        parse_units(text)


def test_keys() -> None:
    assert parse_keys(None) == LabelKeys()
    assert parse_keys(["energy=E, forces=F", "config_type=kind"]) == LabelKeys("E", "F", None, "kind")
    for text in ("energy", "energy=", "mass=m", "energy=a,energy=b"):
        with pytest.raises(InputError, match=r"--keys .*cannot read"):
            parse_keys([text])


def test_help_is_instant() -> None:
    # Importing the command must not import torch; a fresh process shows it.
    import subprocess

    code = "import sys, equipes.cli.evaluate; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- published data ---------------------------------------------------------------------------------------------------


def test_npz_has_the_units_declared_in_training_unless_told_otherwise(
    equipes_command: Callable[..., Output], tmp_path: Path
) -> None:
    small = {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 2, "avg_num_neighbors": 8.0}
    potential = equipes.build("nequip", ["H", "C", "O"], {**small, "per_type_energy_shifts": -468.0})
    unknown, known = tmp_path / "unknown.safetensors", tmp_path / "known.safetensors"
    potential.save(unknown)
    potential.provenance = {"config": {"data": {"units": {"energy": "kcal/mol", "length": "Ang"}}}}
    potential.save(known)
    data = DATA / "ethanol.npz"

    refused = equipes_command("evaluate", unknown, data, "--json", "-")
    assert refused.status == 2
    assert "does not say its units; set --units" in refused.err
    taken = equipes_command("evaluate", known, data, "--json", "-")
    assert "Units: energy=kcal/mol,length=Ang, as declared for the model's training" in taken.err
    declared = equipes_command("evaluate", unknown, data, "--units", "kcal/mol,Ang", "--json", "-")
    other = equipes_command("evaluate", known, data, "--units", "kJ/mol,Ang", "--json", "-")
    errors = [json.loads(done.out)["forces_mae_mev_per_ang"] for done in (taken, declared, other)]
    assert errors[0] == errors[1] != errors[2]


def test_rmd17_is_evaluated_in_its_declared_units(
    equipes_command: Callable[..., Output], shared_data: Path, tmp_path: Path
) -> None:
    small = {"r_max": 3.0, "num_layers": 1, "l_max": 1, "num_features": 2, "avg_num_neighbors": 8.0}
    path = tmp_path / "model.safetensors"
    equipes.build("nequip", ["H", "C", "O"], {**small, "per_type_energy_shifts": -468.0}).save(path)
    data = shared_data / "data" / "rmd17" / "rmd17_ethanol_test_01.npz"
    errors = json.loads(equipes_command("evaluate", path, data, "--units", "kcal/mol,Ang", "--json", "-").out)
    assert (errors["n_frames"], errors["n_atoms"]) == (1000, 9000)
    raw = np.load(data)
    kcal = 0.0433641153
    base = errors["baseline"]
    assert base["energy_rmse_mev_per_atom"] == pytest.approx(
        1000 * kcal * raw["energies"].std() / 9, rel=1e-6
    )
    assert base["forces_mae_mev_per_ang"] == pytest.approx(
        1000 * kcal * np.abs(raw["forces"]).mean(), rel=1e-6
    )
