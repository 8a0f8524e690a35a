"""Pre-training: cheap frames from training frames alone, weights that carry on, resuming from any death, two rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from rich.console import Console

import equipes
from equipes.benchmark import BenchmarkSettings, Case, HeldOut, Row, markdown
from equipes.benchmark import run as benchmark
from equipes.cli import app, run
from equipes.data import read_frames
from equipes.errors import InputError
from equipes.training import Config, load_config, train, trainer
from equipes.training import cheap_labels as stage
from equipes.training.inputs import read_splits
from equipes.training.metrics import error_metrics, predict_frames
from spring_calculator import Springs
from test_train import DieAt, Died
from training_samples import DATA, ethanol

QUIET = Console(quiet=True)
REST = read_frames(DATA / "ethanol.npz", units=equipes.data.Units(energy="kcal/mol"))[0].atoms


@pytest.fixture(scope="module", autouse=True)
def cheap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Springs in place of xTB, and a cache of our own; the list has an entry for each part that was calculated."""
    made: list[int] = []

    def calculator(*_: object, **__: object) -> Springs:
        made.append(1)
        return Springs(REST, stiffness=5.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "xtb_calculator", calculator)
        patch.setenv("EQUIPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield made


def config(**changes: Any) -> Config:
    own = ethanol(**{"max_steps": 20, "validate_every": 3, **changes.pop("train", {})})
    section = {"frames": 12, "share": 0.4, **changes.pop("pretraining", {})}
    tree = own.model_dump(mode="json", exclude_unset=True)
    tree["data"] |= changes.pop("data", {})
    return Config.model_validate({**tree, "pretraining": section})


def same(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cheap: list[int]) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config(), out, console=QUIET)
    return out


def test_both_stages_are_written_and_told(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == 12  # of 20, and 8 before
    before = summary["pretraining"]
    assert (before["steps"], before["frames"], before["structures"]) == (8, 12, ["C2H6O"])
    assert before["validation"]["val_forces_mae_mev_per_ang"] > 0
    folder = undisturbed / "pretraining"
    assert len(read_frames(folder / "frames.extxyz")) == 12
    assert {"model.safetensors", "metrics.csv", "config.yaml"} <= {path.name for path in folder.iterdir()}


def test_training_begins_where_pretraining_ended(undisturbed: Path) -> None:
    given = config()
    splits = read_splits(given.data, given.train.seed)
    pretrained = equipes.load(undisturbed / "pretraining" / "model.safetensors")
    expected = error_metrics(splits.val, predict_frames(pretrained, splits.val))
    with open(undisturbed / "metrics.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["step"] == "0"
    assert float(first["val_forces_mae_mev_per_ang"]) == pytest.approx(
        expected["forces_mae_mev_per_ang"], rel=1e-4
    )
    # Reference energies of the data: the model begins with the mean energy of the training frames.
    model = equipes.load(undisturbed / "model.safetensors")
    assert (
        model.hyperparameters["per_type_energy_scales"]
        == pretrained.hyperparameters["per_type_energy_scales"]
    )
    assert float(first["val_energy_mae_mev_per_atom"]) < 100
    assert (
        expected["energy_mae_mev_per_atom"] > 1e5
    )  # without them: the energies of springs against those of DFT


def test_only_training_frames_decide_what_is_sampled(tmp_path: Path, cheap: list[int]) -> None:
    frames = list(range(10))
    train(config(data={"n_train": frames[:5], "n_val": [5, 6]}), tmp_path / "one", console=QUIET)
    made = len(cheap)
    train(config(data={"n_train": frames[:5], "n_val": [7, 8, 9]}), tmp_path / "other", console=QUIET)
    assert len(cheap) == made + 1  # all from the cache; one calculator to see whether there is one
    train(config(data={"n_train": frames[1:6], "n_val": [0]}), tmp_path / "third", console=QUIET)
    assert len(cheap) > made + 2
    frames_of = [
        read_frames(tmp_path / name / "pretraining/frames.extxyz") for name in ("one", "other", "third")
    ]
    np.testing.assert_array_equal(frames_of[0][3].atoms.positions, frames_of[1][3].atoms.positions)
    assert frames_of[0][3].energy != frames_of[2][3].energy


def test_a_death_in_the_training_proper(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Died):
        train(config(), out, console=QUIET, callbacks=[DieAt(7)])
    train(None, out, resume=True, console=QUIET)
    assert same(out, undisturbed)
    # A larger budget is for the training that goes on; what it began with stays.
    began_with = (out / "pretraining" / "model.safetensors").read_bytes()
    more = load_config(out / "config.yaml", ["max_steps=40"])
    assert train(more, out, resume=True, console=QUIET).steps == 24
    assert (out / "pretraining" / "model.safetensors").read_bytes() == began_with


def test_a_death_in_the_pretraining(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train", lambda *a, **k: train(*a, **k, callbacks=[DieAt(4)]))
        with pytest.raises(Died):
            train(config(), out, console=QUIET)
    assert not (out / "model.safetensors").exists()
    steps: list[int] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            steps.append(module.state.step)

    monkeypatch.setattr(trainer, "train", lambda *a, **k: train(*a, **k, callbacks=[Count()]))
    train(None, out, resume=True, console=QUIET)
    assert same(out, undisturbed)
    assert steps == [5, 6, 7, 8]  # of eight, the first four are not made again


def test_a_death_while_sampling(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap: list[int]
) -> None:
    monkeypatch.setenv("EQUIPES_CACHE", str(tmp_path / "another"))
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "dynamics", lambda *_: (_ for _ in ()).throw(Died()))
        with pytest.raises(Died):
            train(config(), out, console=QUIET)
    train(None, out, resume=True, console=QUIET)
    assert same(out, undisturbed)


def test_other_settings_do_not_resume(undisturbed: Path) -> None:
    with pytest.raises(InputError, match=r"pretraining\.frames"):
        train(config(pretraining={"frames": 15}), undisturbed, resume=True, console=QUIET)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="one process"):
        train(config(train={"devices": 2}), tmp_path / "a", console=QUIET)
    molecule("CH4").write(tmp_path / "methane.xyz")
    with pytest.raises(InputError, match="no structure to sample around has O"):
        train(config(pretraining={"structure": str(tmp_path / "methane.xyz")}), tmp_path / "b", console=QUIET)
    monkeypatch.setattr(stage, "xtb_calculator", lambda *_, **__: Springs(REST, fails=1))
    with pytest.raises(InputError, match=r"cannot label geometries of C2H6O.*the calculator failed"):
        train(config(pretraining={"normal_modes": 0}), tmp_path / "c", console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [
        "methane.xyz"
    ]  # what is refused leaves nothing behind


def test_a_damaged_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_CACHE", str(tmp_path / "cache"))
    train(config(), tmp_path / "one", console=QUIET)
    (kept,) = (tmp_path / "cache" / "samples").iterdir()
    kept.write_bytes(kept.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot be read; remove the file"):
        train(config(), tmp_path / "two", console=QUIET)


def test_given_reference_energies_stay(tmp_path: Path) -> None:
    given = {"H": -13.0, "C": -1030.0, "O": -2040.0}
    train(config(data={"reference_energies": given}), tmp_path / "run", console=QUIET)
    resolved = load_config(tmp_path / "run" / "config.yaml")
    assert resolved.model.per_type_energy_shifts == given


@pytest.mark.parametrize("architecture", ["mace", "schnet"])
def test_other_architectures_carry_on(architecture: str, tmp_path: Path) -> None:
    own = config(train={"max_steps": 4}).model_dump(mode="json", exclude_unset=True)
    own["model"] = {"architecture": architecture, "r_max": 4.0}
    if architecture == "mace":
        own["model"] |= {"hidden_irreps": "4x0e + 4x1o", "max_ell": 1, "correlation": 2, "radial_MLP": [8]}
    result = train(Config.model_validate(own), tmp_path / "run", console=QUIET)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["val_energy_mae_mev_per_atom"]) < 100
    assert result.pretraining is not None


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    REST.write(tmp_path / "start.xyz")
    arguments = [
        "train", f"data.train={DATA / 'ethanol.npz'}", "data.units={energy: kcal/mol}", "n_train=7", "n_val=3",
        "num_layers=1", "l_max=1", "num_features=2", "r_max=4", "max_steps=4", "frames=12",
    ]  # fmt: skip
    structure = str(tmp_path / "start.xyz")
    status = run(
        app, [*arguments, "--pretrain-structure", structure, "--out", str(tmp_path / "run")], "equipes"
    )
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "12 GFN2-xTB geometries of C2H6O" in captured.out
    assert "Fine-tuning on 7 frames" in captured.err


def test_xtb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tblite", reason="tblite is not installed (pip install 'equipes[pretraining]')")
    from equipes.sampling import xtb_calculator

    monkeypatch.setattr(stage, "xtb_calculator", xtb_calculator)
    train(config(pretraining={"normal_modes": 0.5}), tmp_path / "run", console=QUIET)
    frames = read_frames(tmp_path / "run" / "pretraining" / "frames.extxyz")
    atoms: Atoms = frames[0].atoms.copy()
    atoms.calc = xtb_calculator()
    assert frames[0].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(frames[0].forces, atoms.get_forces(), atol=1e-3)


def test_two_rows_of_the_benchmark(tmp_path: Path) -> None:
    units = {"energy": "kcal/mol", "length": "Ang"}
    data = {"train": str(DATA / "ethanol.npz"), "n_train": [0, 1, 2, 3, 4], "n_val": [8, 9], "units": units}
    case = Case("rmd17", "ethanol", 5, data, (HeldOut("test", DATA / "ethanol.npz", (5, 6, 7)),))
    tiny = ("num_layers=1", "l_max=1", "num_features=2", "r_max=4", "train.max_steps=10")

    def rows(frames: int) -> list[Row]:
        settings = BenchmarkSettings(5.0, 0, {"": (*tiny, f"pretraining.frames={frames}")})
        starts = ("from scratch", "pre-trained")
        return [row for start in starts for row in benchmark(case, "nequip", settings, tmp_path, start=start)]

    first = rows(12)
    assert [row.start for row in first] == ["from scratch", "pre-trained"]
    assert [row.steps for row in first] == [10, 4]
    table = markdown(first)
    assert "| **nequip** |" in table
    assert "| **nequip, pre-trained** |" in table
    assert (tmp_path / "ethanol-5-nequip-pretrained" / "pretraining" / "frames.extxyz").exists()
    assert rows(12) == first  # from the disk
    with pytest.raises(InputError, match=r"another pretraining\.frames"):
        rows(15)
