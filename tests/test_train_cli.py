"""`equipes train`, `equipes schema` and `nequip-train`, in this process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import equipes
from equipes.cli import app, run
from equipes.training import load_config
from training_samples import DATA, write_uneven

SMALL = ["num_layers=1", "l_max=1", "num_features=2", "max_steps=2", "validate_every=1"]


def test_data_alone_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    data = write_uneven(tmp_path)
    assert (
        run(
            app,
            ["train", "--data", str(data), "--out", str(out), *SMALL, "checks=warn", "n_val=[6]"],
            "equipes",
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "forces, meV/Å" in captured.out
    assert "stress, meV/Å³" in captured.out
    assert "8 training, 1 validation" in captured.err
    assert equipes.load(out / "model.safetensors").species == ("H", "C", "O")


def test_config_json_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DATA / "ethanol.npz", tmp_path)
    (tmp_path / "config.yaml").write_text(
        "data: {train: ethanol.npz, units: {energy: kcal/mol}, n_train: 6, n_val: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(app, ["train", "config.yaml", *SMALL, "--out", "run", "--json", "-"], "equipes") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["steps"] == 2
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert run(app, ["train", "config.yaml", *SMALL, "--out", "run"], "equipes") == 2
    assert "--resume" in capsys.readouterr().err
    # From elsewhere, without the config: what was run is in the directory.
    monkeypatch.chdir("/")
    again = ["train", "--out", str(tmp_path / "run"), "--resume", "max_steps=3", "--json", "-"]
    assert run(app, again, "equipes") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_nequip_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipes.cli import nequip_train

    shutil.copy(DATA / "ethanol.npz", tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "r_max: 3.5\nnum_layers: 1\nl_max: 1\nnum_features: 2\n"
        "data: {train: ethanol.npz, units: {energy: kcal/mol}, n_train: 6, n_val: 3}\ntrain: {max_steps: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nequip-train", "mine.yaml"])
    with pytest.raises(SystemExit) as caught:
        nequip_train()
    assert caught.value.code == 0
    assert load_config("mine/config.yaml").model.r_max == 3.5
    assert equipes.load("mine/model.safetensors").cutoff == 3.5


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["schema"], "equipes") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {"data", "model", "train", "fine_tuning", "pretraining"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.xyz"], "--out DIR"),
        (["--out", "run"], "nothing to train on"),
        (["--out", "run", "--resume"], "no training to resume"),
        (["a.yaml", "b.yaml", "--out", "run"], "two config files are given"),
        (["a.yaml", "--data", "b.xyz", "--out", "run"], "both the config a.yaml and --data"),
        (["a.yaml", "--out", "run"], "a.yaml: no such config file"),
        (["--data", "a.xyz", "--out", "run"], "a.xyz"),
        (["--data", "a.xyz", "--out", "run", "max_minuts=3"], "did you mean train.max_minutes?"),
        (["--data", "a.xyz", "--out", "run", "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(app, ["train", *arguments], "equipes") == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()
