"""`equipes benchmark`: official splits, tiny trainings, tables beside published figures, resuming, bad input."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from command_line import run_forked
from equipes.benchmark import (
    Row,
    markdown,
    mlearn_case,
    molecule_frames,
    published,
    rmd17_case,
    temperature_case,
)
from equipes.benchmark.download import download_rmd17
from equipes.data import Frame, read_frames, write_frames
from equipes.errors import InputError
from training_samples import DATA

ATOMS = 9


def equipes(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_forked(*arguments, cwd=Path.cwd())


def arrays(count: int) -> dict[str, np.ndarray]:
    """Frames of ethanol, repeated with a little noise in the labels so that each is recognisable."""
    with np.load(DATA / "ethanol.npz") as file:
        whole = {name: file[name] for name in file.files}
    n = len(whole["energies"])
    repeats = -(-count // n)
    result = {"nuclear_charges": whole["nuclear_charges"]}
    for name in ("coords", "energies", "forces"):
        result[name] = np.concatenate([whole[name]] * repeats)[:count].copy()
    result["energies"] += 1e-6 * np.arange(count)
    result["coords"] += 1e-4 * np.random.default_rng(0).normal(size=result["coords"].shape)
    return result


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rmd17_ethanol_train_01.npz` and `…_test_01.npz`."""
    folder = tmp_path_factory.mktemp("plain")
    np.savez(folder / "rmd17_ethanol_train_01.npz", **arrays(1000))
    np.savez(folder / "rmd17_ethanol_test_01.npz", **arrays(20))
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the published archive."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "rmd17" / "npz_data").mkdir(parents=True)
    (folder / "rmd17" / "splits").mkdir()
    np.savez(folder / "rmd17" / "npz_data" / "rmd17_ethanol.npz", **arrays(2100))
    order = np.random.default_rng(1).permutation(2100)
    np.savetxt(folder / "rmd17" / "splits" / "index_train_01.csv", order[:1000], fmt="%d")
    np.savetxt(folder / "rmd17" / "splits" / "index_test_01.csv", order[1000:2000], fmt="%d")
    return folder


@pytest.fixture(scope="module")
def heated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the layout of acetylacetone: 300 K to train, 600 K and a dihedral (energies only) to test."""
    folder = tmp_path_factory.mktemp("acac")
    rng = np.random.default_rng(2)

    def frames(count: int, noise: float, forces: bool = True) -> list[Frame]:
        made = []
        for index in range(count):
            atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.2, 0.93, 0]])
            shift = noise * rng.normal(size=(3, 3))
            atoms.positions += shift
            made.append(
                Frame(
                    atoms,
                    float(-10 + (shift**2).sum()),
                    -2 * shift if forces else None,
                    None,
                    None,
                    "made",
                    index,
                )
            )
        return made

    write_frames(frames(60, 0.05), folder / "train_300K.xyz")
    write_frames(frames(6, 0.1), folder / "test_MD_600K.xyz")
    write_frames(frames(4, 0.05, forces=False), folder / "test_dihedral.xyz")
    alone = [
        Frame(Atoms(s), e, None, None, None, "made", i) for i, (s, e) in enumerate([("H", -1.5), ("O", -7.0)])
    ]
    write_frames(alone, folder / "isolated_atoms.xyz")
    return folder


def test_official_splits(plain: Path, archive: Path) -> None:
    case = rmd17_case(plain, "ethanol", 300)
    assert case.data["n_train"] == list(range(300))
    assert case.data["n_val"] == list(range(950, 1000))
    assert len(molecule_frames(case.tests[0], case.units)) == 20
    case = rmd17_case(archive, "ethanol", 50)
    order = np.loadtxt(archive / "rmd17" / "splits" / "index_train_01.csv", dtype=int)
    test = np.loadtxt(archive / "rmd17" / "splits" / "index_test_01.csv", dtype=int)
    assert case.data["n_train"] == order[:50].tolist()
    assert case.data["n_val"] == order[950:].tolist()
    frames = molecule_frames(case.tests[0], case.units)
    assert [frame.index for frame in frames] == test.tolist()
    assert rmd17_case(archive / "rmd17", "ethanol", 50) == rmd17_case(archive, "ethanol", 50)


def test_the_splits_of_the_real_data(shared_data: Path) -> None:
    for molecule in ("ethanol", "aspirin"):
        case = rmd17_case(shared_data / "data" / "rmd17", molecule, 950)
        train = {
            frame.positions.tobytes()
            for frame in (f.atoms for f in read_frames(case.data["train"], units=case.units))
        }
        test = {f.atoms.positions.tobytes() for f in molecule_frames(case.tests[0], case.units)}
        assert len(train) == len(test) == 1000
        assert not train & test


def test_trains_tests_and_resumes(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["benchmark", "rmd17", "--data", plain, "--out", out, "--molecule", "ethanol", "--frames", 8]
    command += ["--model", "schnet", "--model", "nequip", "--minutes", 0.02]
    command += ["--set", "batch_size=4", "--set", "nequip:num_features=4", "--set", "nequip:num_layers=1"]
    first = equipes(*command)
    assert first.returncode == 0, first.stderr
    assert "| ethanol | 8 | test | **schnet** |" in first.stdout
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["architecture"] for row in rows] == ["schnet", "nequip"]
    for row in rows:
        assert row["errors"]["energy_mae_mev"] == pytest.approx(
            ATOMS * row["errors"]["energy_mae_mev_per_atom"]
        )
        assert row["errors"]["forces_rmse_mev_per_ang"] > row["errors"]["forces_mae_mev_per_ang"] > 0
        assert 0 < row["hours"] < 0.01
        assert row["parameters"] > 100
    # Done is done: the second call trains nothing, and one more model is one more row.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    second = equipes(*command, "--model", "ani", "--json", tmp_path / "all.json")
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row["architecture"] for row in json.loads((tmp_path / "all.json").read_text())["rows"]] == [
        "schnet",
        "nequip",
        "ani",
    ]
    # A result with other settings is not passed off as one with these.
    third = equipes(*command[:-2], "--set", "nequip:num_layers=2")
    assert third.returncode == 2
    assert "model.num_layers" in third.stderr and "give another --out" in third.stderr


def test_learning_curve(plain: Path, tmp_path: Path) -> None:
    result = equipes(
        "benchmark", "rmd17", "--data", plain, "--out", tmp_path, "--molecule", "ethanol", "--model", "schnet",
        "--learning-curve", "--frames", 4, "--frames", 8, "--minutes", 0.01, "--set", "schnet:num_features=8",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figure = (tmp_path / "learning_curve.svg").read_text()
    assert "force MAE" in figure and "schnet" in figure and "NequIP, published" in figure


def test_extrapolation(heated: Path, tmp_path: Path) -> None:
    assert "reference_energies" not in temperature_case(heated, "acac", 10).data
    case = temperature_case(heated, "acac", 10, isolated_atoms=True)
    assert [test.name for test in case.tests] == ["600K", "dihedral"]
    assert case.data["reference_energies"] == {"H": -1.5, "O": -7.0}
    assert case.data["n_val"] == list(range(10, 60))
    result = equipes(
        "benchmark", "acac", "--data", heated, "--out", tmp_path, "--model", "schnet", "--frames", 10,
        "--minutes", 0.01, "--set", "num_features=8", "--json", "-",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["test"] for row in rows] == ["600K", "dihedral"]
    assert rows[0]["errors"]["forces_rmse_mev_per_ang"] > 0
    assert rows[1]["errors"]["forces_rmse_mev_per_ang"] is None
    assert "forces RMSE" in (tmp_path / "results.md").read_text()


def row(**changes: object) -> Row:
    values = {
        "benchmark": "rmd17", "system": "ethanol", "n_train": 950, "architecture": "mace", "test": "test",
        "errors": {
            f"{q}_{k}_{u}": 1.234
            for q, u in (("energy", "mev"), ("energy", "mev_per_atom"), ("forces", "mev_per_ang"))
            for k in ("mae", "rmse")
        },
        "hours": 0.5, "steps": 10, "parameters": 12345, "conditions": {"threads": 1},
    } | changes  # fmt: skip
    return Row(**values)


def test_published_figures_stand_beside_ours() -> None:
    text = markdown([row(), row(architecture="nequip")])
    assert "| ethanol | 950 | test | **mace** | 1.23 | 1.23 | 1.23 | 0.50 | 12,345 |" in text
    assert text.count("*NequIP, published*") == 1
    assert "| ethanol | 950 | test | *NequIP, published* | 0.4 | | 2.8 | | |" in text
    assert "*SchNet, published †*" in text and "† SchNet: trained on 1000 frames of the original MD17" in text
    assert "arXiv:2206.07697" in text and "Conditions: threads 1." in text
    fifty = markdown([row(n_train=50)])
    assert "| ethanol | 50 | test | *NequIP, published* | 8.7 | | 40.2 | | |" in fifty
    assert "published" not in markdown([row(n_train=100)])
    hot = markdown([row(benchmark="3bpa", system="3bpa", n_train=450, test="1200K")])
    assert "| 3bpa | 450 | 1200K | *MACE, published* | 29.8 | | 62 | | |" in hot
    assert "energy RMSE, meV" in hot
    crystal = markdown([row(benchmark="mlearn", system="Ge", n_train=206)])
    assert "| Ge | 206 | test | *ACE (large), published* | | 2.2 | 51 | | |" in crystal


def test_elements(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for part, count in (("train", 25), ("test", 3)):
        frames = []
        for index in range(count):
            atoms = bulk("Ge", cubic=True)
            moved = 0.05 * rng.normal(size=(8, 3))
            moved -= moved.mean(0)
            atoms.positions += moved
            frames.append(
                Frame(atoms, float(-36 + 3 * (moved**2).sum()), -6 * moved, None, None, "made", index)
            )
        write_frames(frames, tmp_path / f"Ge_{part}.xyz")
    case = mlearn_case(tmp_path, "Ge")
    assert case.data["n_val"] == [9, 19] and case.n_train == 23
    assert sorted(case.data["n_train"] + case.data["n_val"]) == list(range(25))
    result = equipes(
        "benchmark", "mlearn", "--data", tmp_path, "--out", tmp_path / "out", "--element", "Ge", "--model",
        "schnet", "--minutes", 0.02, "--set", "num_features=8", "--json", "-",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["rows"]
    assert (found["system"], found["test"], found["n_train"]) == ("Ge", "test", 23)
    with pytest.raises(InputError, match=r"no Cu_train\.xyz"):
        mlearn_case(tmp_path, "Cu")
    with pytest.raises(InputError, match="mlearn has no element 'Fe'"):
        mlearn_case(tmp_path, "Fe")


def test_published_figures_are_those_of_the_reference_data(shared_data: Path) -> None:
    reference = json.loads((shared_data / "data" / "reference" / "rmd17_published_mae.json").read_text())
    for frames, key in (("950", "N_train_1000"), ("50", "N_train_50")):
        for molecule, figures in reference[key].items():
            ours = published()["rmd17"]["frames"][frames][molecule]
            for model, forces in figures["force_MAE_meV_per_A"].items():
                if forces is not None:
                    assert ours[model] == [figures["energy_MAE_meV"][model], forces]


def test_bad_input(plain: Path, heated: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["rmd17", "--data", plain, "--molecule", "water"], "rMD17 has no molecule 'water'"),
        (["rmd17", "--data", plain, "--molecule", "ethanol", "--frames", 951], "951 frames"),
        (["rmd17", "--data", tmp_path, "--molecule", "ethanol"], "--download to fetch it"),
        (["rmd17", "--data", plain, "--molecule", "ethanol", "--model", "gap"], "unknown architecture 'gap'"),
        (
            ["rmd17", "--data", plain, "--molecule", "ethanol", "--set", "gap:a=1"],
            "unknown architecture 'gap'",
        ),
        (["rmd17", "--data", plain, "--molecule", "ethanol", "--set", "xyzzy=1"], "xyzzy is not a known key"),
        (["acac", "--data", plain], "no train_300K.xyz"),
        (["acac", "--data", heated], "60 frames are too few for 450"),
    ):
        result = equipes("benchmark", *arguments, "--out", tmp_path / "out")
        assert result.returncode == 2, arguments
        assert words in result.stderr
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(heated / "train_300K.xyz", alone)
    with pytest.raises(InputError, match=r"no test_\*\.xyz"):
        temperature_case(alone, "3bpa", 5)
    shutil.copy(heated / "test_dihedral.xyz", alone)
    with pytest.raises(InputError, match="leave out --isolated-atoms"):
        temperature_case(alone, "3bpa", 5, isolated_atoms=True)


def test_download(archive: Path, tmp_path: Path) -> None:
    packed = tmp_path / "rmd17.tar.bz2"
    with tarfile.open(packed, "w:bz2") as tar:
        tar.add(archive / "rmd17" / "splits", "rmd17/splits")
        tar.add(archive / "rmd17" / "npz_data", "rmd17/npz_data")
        outside = tarfile.TarInfo("../outside.txt")
        outside.size = 3
        tar.addfile(outside, io.BytesIO(b"bad"))
    folder = tmp_path / "data"
    download_rmd17(folder, packed.as_uri())
    assert rmd17_case(folder, "ethanol", 50).data["n_val"] == rmd17_case(archive, "ethanol", 50).data["n_val"]
    assert {path.name for path in folder.iterdir()} == {"rmd17"}
    assert not (tmp_path / "outside.txt").exists()
    download_rmd17(folder, "https://nowhere.invalid/")  # is there already
    (tmp_path / "text").write_text("not an archive")
    for url, words in (
        ((tmp_path / "text").as_uri(), "no archive of rMD17"),
        ((tmp_path / "absent").as_uri(), "cannot be fetched"),
    ):
        with pytest.raises(InputError, match=words):
            download_rmd17(tmp_path / "other", url)
        assert not list((tmp_path / "other").iterdir())
