"""`equipes data check|convert|split`: what they print and write, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from equipes import cli
from equipes.data import Units, read_frames

DATA = Path(__file__).parent / "data"
KCAL = Units(energy="kcal/mol", length="Ang")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process: starting another one for each command would take most of the time."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Done:
        capsys.readouterr()
        status = cli.run(cli.app, [str(argument) for argument in arguments], "equipes")
        return Done(status, *capsys.readouterr())

    return command


def test_check_describes_good_data(run: Run) -> None:
    done = run("data", "check", DATA / "data_copper_volumes.xyz")
    assert done.returncode == 0 and done.stderr == ""
    for part in ("11 (44 atoms, 4 each)", "Cu4 ×11", "as energy", "0.87", "nothing suspicious found"):
        assert part in done.stdout


def test_check_as_json_and_nothing_else_on_stdout(run: Run) -> None:
    done = run("data", "check", DATA / "ethanol.npz", "--units", "kcal/mol,Ang", "--json", "-")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    content = report["splits"]["data"]
    assert report["findings"] == []
    assert content["n_frames"] == 12 and content["n_atoms"] == 108
    assert content["elements"] == {"H": 72, "C": 24, "O": 12}
    frames = read_frames(DATA / "ethanol.npz", units=KCAL)
    rms = np.sqrt(np.mean([frame.forces**2 for frame in frames]))
    assert abs(content["forces"]["rms"] - rms) < 1e-9
    assert content["stress"]["pressure_gpa"] is None


def test_check_of_faulty_data_ends_with_status_2(run: Run, tmp_path: Path) -> None:
    text = (DATA / "data_copper_volumes.xyz").read_text()
    (tmp_path / "nan.xyz").write_text(_with_nan(text))
    done = run("data", "check", tmp_path / "nan.xyz", "--json", tmp_path / "report.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error [not-finite]" in done.stdout and "frame 0: forces of atom 0 (Cu)" in done.stdout
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["severity"] == "error" and finding["frames"] == [f"{tmp_path}/nan.xyz frame 0"]


def _with_nan(text: str) -> str:
    lines = text.splitlines(keepends=True)
    words = lines[2].split()
    lines[2] = " ".join([*words[:-1], "nan"]) + "\n"
    return "".join(lines)


def test_check_compares_training_and_test(run: Run) -> None:
    sample = DATA / "data_copper_volumes.xyz"
    done = run("data", "check", sample, "--test", sample)
    assert done.returncode == 2
    assert "error [duplicates-across-splits] 11 frames of test are in train too" in done.stdout


def test_check_without_units_is_one_sentence(run: Run) -> None:
    done = run("data", "check", DATA / "ethanol.npz")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert "set --units, for MD17 and rMD17 kcal/mol,Ang" in done.stderr


def test_convert_and_back(run: Run, tmp_path: Path) -> None:
    first = run("data", "convert", DATA / "ethanol.npz", tmp_path / "a.xyz", "--units", "kcal/mol,Ang")
    assert first.returncode == 0 and "12 frames (energy in 12, forces in 12)" in first.stdout
    assert run("data", "convert", tmp_path / "a.xyz", tmp_path / "a.db").returncode == 0
    for frame, original in zip(
        read_frames(tmp_path / "a.db"), read_frames(DATA / "ethanol.npz", units=KCAL), strict=True
    ):
        assert frame.energy == original.energy
        np.testing.assert_array_equal(frame.forces, original.forces)
    again = run("data", "convert", tmp_path / "a.db", tmp_path / "a.xyz")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert run("data", "convert", tmp_path / "a.db", tmp_path / "a.xyz", "--overwrite").returncode == 0


def test_convert_takes_labels_under_any_key(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text('1\nProperties=species:S:1:pos:R:3 ccsd=-3.5 pbc="F F F"\nCu 0 0 0\n')
    done = run("data", "convert", tmp_path / "a.xyz", tmp_path / "b.xyz", "--keys", "energy=ccsd")
    assert done.returncode == 0
    assert read_frames(tmp_path / "b.xyz")[0].energy == -3.5
    wrong = run("data", "convert", tmp_path / "a.xyz", tmp_path / "c.xyz", "--keys", "energy=mp2")
    assert wrong.returncode == 2 and "no frame has 'mp2' (there are 'ccsd'" in wrong.stderr


def test_split(run: Run, tmp_path: Path) -> None:
    sample, out = DATA / "data_copper_volumes.xyz", tmp_path / "split"
    done = run("data", "split", sample, "--n-val", "2", "--n-test", "0.2", "--seed", "1", "--out", out)
    assert done.returncode == 0
    indices = json.loads((out / "split.json").read_text())
    assert {name: len(part) for name, part in indices.items()} == {"train": 7, "val": 2, "test": 2}
    assert sorted(i for part in indices.values() for i in part) == list(range(11))
    frames = read_frames(sample)
    for name, part in indices.items():
        assert [f.energy for f in read_frames(out / f"{name}.xyz")] == [frames[i].energy for i in part]
    run(
        "data", "split", sample, "--n-val", "2", "--n-test", "0.2", "--seed", "2", "--out", tmp_path / "other"
    )
    assert json.loads((tmp_path / "other/split.json").read_text()) != indices
    again = run(
        "data", "split", sample, "--n-val", out / "split.json", "--out", tmp_path / "again", "--json", "-"
    )
    assert json.loads(again.stdout)["n_val"] == 2
    assert (tmp_path / "again/val.xyz").read_bytes() == (out / "val.xyz").read_bytes()


def test_split_refuses(run: Run, tmp_path: Path) -> None:
    sample, out = DATA / "data_copper_volumes.xyz", tmp_path / "split"
    assert "take all 11" in run("data", "split", sample, "--n-val", "11", "--out", out).stderr
    assert "neither a number" in run("data", "split", sample, "--n-val", "some", "--out", out).stderr
    assert not out.exists()
    assert run("data", "split", sample, "--n-val", "2", "--out", out).returncode == 0
    second = run("data", "split", sample, "--n-train", "2", "--out", out, "--overwrite")
    assert second.returncode == 2 and "val.xyz is of another split" in second.stderr
