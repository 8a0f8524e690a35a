"""Whole trainings: what they write, that they resume exactly after any death, and what stops them."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ase import Atoms
from rich.console import Console
from safetensors import safe_open

import equipes
from equipes.data import Frame, GraphDataset, LabelledGraph, write_frames
from equipes.errors import InputError
from equipes.training import Config, load_config, train
from equipes.training.loading import dump_config
from training_samples import TINY, ethanol, uneven_frames, write_uneven

QUIET = Console(quiet=True)


# A rate so high that validation stagnates at once.
PLATEAU = {
    "schedule": "plateau",
    "plateau_patience": 1,
    "validate_every": 1,
    "learning_rate": 0.3,
    "ema_decay": 0,
}


class Died(BaseException):
    """A death at a chosen moment, in place of a signal."""


class DieAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.state.step == self.step:
            raise Died


class KeepGradients(pl.Callback):
    """The gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if not self.gradients:
            named = module.potential.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def rows(out: Path) -> list[dict[str, str]]:
    """metrics.csv without the column that a clock decides."""
    with open(out / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


def same(left: Path, right: Path) -> bool:
    return (left / "model.safetensors").read_bytes() == (right / "model.safetensors").read_bytes() and rows(
        left
    ) == rows(right)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(ethanol(), out, console=QUIET)
    return out


def test_what_a_training_writes(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == {
        "model.safetensors", "config.yaml", "metrics.csv", "summary.json", "checkpoints",
    }  # fmt: skip
    table = rows(undisturbed)
    assert [int(row["step"]) for row in table] == [0, 4, 8, 12]
    assert float(table[-1]["epoch"]) == pytest.approx(12 * 3 / 7)
    assert all(float(row["val_forces_mae_mev_per_ang"]) > 0 for row in table)
    assert float(table[-1]["val_loss"]) < float(table[0]["val_loss"])
    assert table[-1]["val_stress_mae_mev_per_ang3"] == ""
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["reason"] == "the budget was used"
    best = min(table, key=lambda row: float(row["val_loss"]))
    assert summary["validation"]["val_loss"] == float(best["val_loss"])
    potential = equipes.load(undisturbed / "model.safetensors")
    assert potential.provenance["validation"]["step"] == int(best["step"])
    assert potential.provenance["config_hash"] == summary["config_hash"]
    assert potential.provenance["data"]["n_train"] == 7
    assert str(undisturbed) not in json.dumps(potential.summary())


def test_the_saved_model_has_the_errors_of_its_row(undisturbed: Path) -> None:
    from equipes.training.inputs import read_splits
    from equipes.training.metrics import error_metrics, predict_frames

    config = load_config(undisturbed / "config.yaml")
    frames = read_splits(config.data, config.train.seed).val
    potential = equipes.load(undisturbed / "model.safetensors")
    metrics = error_metrics(frames, predict_frames(potential, frames))
    validation = json.loads((undisturbed / "summary.json").read_text())["validation"]
    for name in ("energy_mae_mev_per_atom", "forces_mae_mev_per_ang", "forces_rmse_mev_per_ang"):
        assert validation[f"val_{name}"] == pytest.approx(metrics[name], rel=1e-5)


def test_the_written_config_trains_the_same(undisturbed: Path, tmp_path: Path) -> None:
    config = load_config(undisturbed / "config.yaml")
    assert config.train.batch_size == 3
    assert isinstance(config.model.per_type_energy_shifts, dict)
    train(config, tmp_path / "again", console=QUIET)
    assert same(undisturbed, tmp_path / "again")


def test_the_global_random_state_is_not_touched(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - it is the global state that must not change
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    train(ethanol(max_steps=1), tmp_path / "run", console=QUIET)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("changes", "deaths"),
    [
        ({"checkpoint_every_minutes": 0}, (3, 4, 11)),
        ({"checkpoint_every_minutes": 1000}, (2, 6, 9)),
        ({"checkpoint_every_minutes": 0, "optimizer": "soap"}, (5,)),
        ({"checkpoint_every_minutes": 0, **PLATEAU}, (7,)),
        ({"checkpoint_every_minutes": 0, "energy_weight": {0: 1, 0.5: 10}, "schedule": "wsd"}, (5,)),
    ],
    ids=["each step", "validations only", "soap", "plateau", "weights"],
)
def test_a_training_that_died_resumes_exactly(
    tmp_path: Path, undisturbed: Path, changes: dict[str, Any], deaths: tuple[int, ...]
) -> None:
    config = ethanol(**changes)
    if set(changes) == {"checkpoint_every_minutes"}:
        whole = undisturbed
    else:
        whole = tmp_path / "whole"
        train(config, whole, console=QUIET)
    out = tmp_path / "died"
    for step in deaths:
        with pytest.raises(Died):
            train(config, out, resume=True, console=QUIET, callbacks=[DieAt(step)])
    train(config, out, resume=True, console=QUIET)
    assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(whole)]
    assert rows(out) == rows(whole)
    if "plateau_patience" in changes:
        assert len({row["lr"] for row in rows(whole)}) > 3
    # The file's header names the config; the weights are what must be equal.
    assert weights(out).keys() == weights(whole).keys()
    for name, value in weights(out).items():
        assert np.array_equal(value, weights(whole)[name]), name


@pytest.mark.parametrize(
    "death", ["before the row", "after the row", "before the model", "before the checkpoint"]
)
def test_death_between_two_files_changes_nothing(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    from equipes.models import Potential
    from equipes.training.records import MetricsFile
    from equipes.training.supervisor import Supervisor

    owner, name = {
        "before the row": (MetricsFile, "append"),
        "after the row": (MetricsFile, "append"),
        "before the model": (Potential, "save"),
        "before the checkpoint": (Supervisor, "_save"),
    }[death]
    original = getattr(owner, name)
    calls = 0

    def deadly(*arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 and death != "after the row":
            raise Died
        original(*arguments, **keywords)
        if calls == 2:
            raise Died

    out = tmp_path / "died"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Died):
            train(ethanol(), out, console=QUIET)
    train(ethanol(), out, resume=True, console=QUIET)
    assert same(out, undisturbed)


def weights(out: Path) -> dict[str, np.ndarray]:
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def run_training(config: Config, out: Path) -> None:
    """In a process of its own."""
    result = train(config, out, resume=True, console=QUIET)
    raise SystemExit(128 + result.signal if result.signal else 0)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have torch and Lightning imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["equipes.training.trainer", "test_train"])
    return context


def test_kill_9_at_any_moment_changes_nothing(tmp_path: Path, undisturbed: Path, processes: Any) -> None:
    out = tmp_path / "killed"
    config = ethanol(checkpoint_every_minutes=0)
    rng = np.random.default_rng(1)
    checkpoint = out / "checkpoints" / "last.ckpt"
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = processes.Process(target=run_training, args=(config, out))
        process.start()
        while process.is_alive() and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
    process = processes.Process(target=run_training, args=(config, out))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert rows(out) == rows(undisturbed)
    for name, value in weights(out).items():
        assert np.array_equal(value, weights(undisturbed)[name]), name
    assert not list(out.rglob(".*"))  # no temporary files of killed writers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_first(tmp_path: Path, processes: Any, number: int) -> None:
    out = tmp_path / "stopped"
    config = ethanol(max_steps=100000, checkpoint_every_minutes=1000, validate_every=100000)
    process = processes.Process(target=run_training, args=(config, out))
    process.start()
    while process.is_alive() and not (out / "model.safetensors").exists():
        time.sleep(0.005)
    time.sleep(0.1)  # no checkpoint is due for a day
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["equipes"]["state"]
    assert 1 <= state["step"] < 100000
    assert not (out / "summary.json").exists()


def test_resuming_what_has_ended_changes_nothing(undisturbed: Path) -> None:
    before = (undisturbed / "model.safetensors").read_bytes(), (undisturbed / "metrics.csv").read_bytes()
    result = train(None, undisturbed, resume=True, console=QUIET)
    assert result.steps == 12
    assert result.reason == "the budget was used"
    assert before == (
        (undisturbed / "model.safetensors").read_bytes(),
        (undisturbed / "metrics.csv").read_bytes(),
    )


def test_a_larger_budget_continues(tmp_path: Path) -> None:
    train(ethanol(max_steps=2), tmp_path / "run", console=QUIET)
    result = train(ethanol(max_steps=5), tmp_path / "run", resume=True, console=QUIET)
    assert result.steps == 5
    assert [row["step"] for row in rows(tmp_path / "run")] == ["0", "2", "4", "5"]


def test_only_the_same_training_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(ethanol(max_steps=1), out, console=QUIET)
    with pytest.raises(InputError, match=r"another value of train\.batch_size, train\.loss"):
        train(ethanol(max_steps=1, batch_size=2, loss="huber"), out, resume=True, console=QUIET)
    config = ethanol(max_steps=1)
    other = config.model_copy(update={"data": config.data.model_copy(update={"split_seed": 3})})
    with pytest.raises(InputError, match="other frames"):
        train(other, out, resume=True, console=QUIET)
    (out / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train(config, out, resume=True, console=QUIET)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = ethanol(max_steps=1)
    train(config, out, console=QUIET)
    with pytest.raises(InputError, match="--resume to continue it, --overwrite to replace it"):
        train(config, out, console=QUIET)
    train(ethanol(max_steps=2), out, overwrite=True, console=QUIET)
    assert [row["step"] for row in rows(out)] == ["0", "2"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(InputError, match="not empty"):
        train(config, tmp_path / "other", console=QUIET)


def test_what_is_refused_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it turns out late."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no CUDA device"):
        train(ethanol(max_steps=1, accelerator="gpu"), tmp_path / "new" / "run", console=QUIET)
    assert not any(tmp_path.iterdir())
    out = tmp_path / "run"
    train(ethanol(max_steps=1), out, console=QUIET)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="torch finds no CUDA device"):
        train(ethanol(max_steps=1, accelerator="gpu"), out, overwrite=True, console=QUIET)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_no_validation_is_begun_that_would_crowd_out_the_last() -> None:
    from equipes.training.schedules import Budget

    assert not Budget(None, 6.0).is_short(4.0, 0.9)
    assert Budget(None, 6.0).is_short(4.3, 0.9)
    assert not Budget(100, None).is_short(1e9, 0.9)


@pytest.mark.parametrize("every", [10**6, 20])
def test_a_budget_in_minutes_includes_the_last_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    from equipes.training import supervisor

    validate = supervisor.validate

    def slow(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(0.8)
        return validate(*arguments, **keywords)

    monkeypatch.setattr(supervisor, "validate", slow)
    config = ethanol(max_steps=None, max_minutes=0.1, validate_every=every)
    result = train(config, tmp_path / "run", console=QUIET)
    # Training stops in time for the last validation, and none is begun that would leave no room for it.
    assert 60 * result.minutes < 6 - 0.8
    assert result.steps > 10
    steps = [int(row["step"]) for row in rows(tmp_path / "run")]
    assert steps[0] == 0 and steps[-1] == result.steps
    assert all(step % every == 0 for step in steps[:-1])
    assert float(rows(tmp_path / "run")[-1]["lr"]) < 0.001


def test_early_stopping(tmp_path: Path) -> None:
    config = ethanol(max_steps=1000, learning_rate=1e-12, ema_decay=0.5, validate_every=2, early_stopping=2)
    result = train(config, tmp_path / "run", console=QUIET)
    assert result.steps < 50
    assert result.reason == "no improvement in 2 validations"


def test_gradients_are_clipped(tmp_path: Path) -> None:
    keep = KeepGradients()
    train(ethanol(max_steps=1, gradient_clip=1e-3), tmp_path / "run", console=QUIET, callbacks=[keep])
    norm = torch.cat([gradient.flatten() for gradient in keep.gradients.values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_names_the_frame(tmp_path: Path) -> None:
    frames = [frame for frame in uneven_frames() if frame.stress is None]
    for frame in frames:
        if frame.index == 2:
            frame.forces[1, 0] = np.inf  # type: ignore[index]
    write_frames(frames, tmp_path / "bad.xyz")
    config = Config.model_validate(
        {
            "data": {
                "train": str(tmp_path / "bad.xyz"),
                "n_train": [0, 1, 2, 3],
                "n_val": [4],
                "checks": "off",
            },
            "model": TINY | {"per_type_energy_scales": 1.0},
            "train": {"max_steps": 50, "batch_size": 2, "checkpoint_every_minutes": 0},
        }
    )
    with pytest.raises(InputError, match=r"not finite at step \d+, with .*bad\.xyz frame 2 in the batch"):
        train(config, tmp_path / "run", console=QUIET)


def test_bad_data_stops_before_training_unless_only_warned_of(tmp_path: Path) -> None:
    frames = uneven_frames()
    frames[0].forces[0, 0] = np.nan  # type: ignore[index]
    write_frames(frames, tmp_path / "bad.xyz")
    data = {"train": str(tmp_path / "bad.xyz"), "n_val": 1}
    tree = {"data": data, "model": TINY, "train": {"max_steps": 1}}
    with pytest.raises(InputError, match=r"bad\.xyz frame 0"):
        train(Config.model_validate(tree), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_test_frames_are_evaluated_at_the_end(tmp_path: Path) -> None:
    config = ethanol(max_steps=1)
    config = config.model_copy(update={"data": config.data.model_copy(update={"n_test": 2})})
    result = train(config, tmp_path / "run", console=QUIET)
    assert result.test is not None
    assert result.test["n_frames"] == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"] == result.test


def test_defaults_come_from_the_data(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "data": {"train": str(write_uneven(tmp_path)), "n_val": 2, "checks": "warn"},
            "train": {"max_steps": 1},
        }
    )
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"num_features": 2, "l_max": 0})}
    )
    train(config, tmp_path / "run", console=QUIET)
    written = load_config(tmp_path / "run" / "config.yaml")
    assert written.train.stress_weight == 1.0
    assert written.data.n_train == 7
    assert written.model.species == ["H", "C", "O"]
    assert written.model.avg_num_neighbors is not None
    assert all(value is not None for value in (written.train.batch_size, written.train.validate_every))
    assert written.train.learning_rate == 0.01


def test_energies_alone_train_without_forces_being_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equipes.models import Potential

    asked: list[tuple[bool, bool]] = []
    forward = Potential.forward

    def spy(self: Potential, graph: Any, *, forces: bool = True, stress: bool = True) -> Any:
        if self.training:
            asked.append((forces, stress))
        return forward(self, graph, forces=forces, stress=stress)

    monkeypatch.setattr(Potential, "forward", spy)
    frames = [f for f in uneven_frames() if f.forces is None or f.index == 0]
    write_frames(frames, tmp_path / "energies.xyz")
    tree = {
        "data": {"train": str(tmp_path / "energies.xyz"), "n_train": [1, 2], "n_val": [0], "checks": "off"},
        "model": TINY | {"species": ["H", "C", "O"]},
        "train": {"max_steps": 3, "batch_size": 2},
    }
    train(Config.model_validate(tree), tmp_path / "run", console=QUIET)
    assert asked == [(False, False)] * 3


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    train(ethanol(max_steps=2, loggers=["tensorboard"], log_every=1), tmp_path / "run", console=QUIET)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    monkeypatch.setattr("equipes.training.loggers.find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package wandb is not installed"):
        train(ethanol(max_steps=2, loggers=["wandb"]), tmp_path / "other", console=QUIET)


def uneven_config(folder: Path, devices: int) -> Config:
    """Six frames in a batch, in float64, with everything that makes a mean of means wrong."""
    return Config.model_validate(
        {
            "data": {
                "train": str(folder / "uneven.xyz"),
                "n_train": [0, 1, 2, 3, 4, 6],
                "n_val": [5],
                "checks": "off",
            },
            "model": TINY | {"dtype": "float64"},
            "train": {"max_steps": 2, "batch_size": 6, "devices": devices, "accelerator": "cpu", "warmup": 0},
        }
    )


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Lightning starts the second process by running the same command again."""
    import subprocess
    import sys

    write_uneven(tmp_path)
    keep = KeepGradients()
    train(uneven_config(tmp_path, 1), tmp_path / "one", console=QUIET, callbacks=[keep])
    dump_config(uneven_config(tmp_path, 2), tmp_path / "two.yaml")
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    script = Path(__file__).parent / "two_processes.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment, timeout=120)
    joint = torch.load(tmp_path / "gradients", weights_only=True)
    assert joint.keys() == keep.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in keep.gradients.values())
    for name, gradient in keep.gradients.items():
        torch.testing.assert_close(joint[name], gradient, rtol=1e-10, atol=1e-12 * largest)
    for left, right in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for column, value in left.items():
            if value:
                assert float(right[column]) == pytest.approx(float(value), rel=1e-8), column
    # The test would be void if halves of the batch weighed the same.
    dataset = GraphDataset(uneven_frames(), 4.0)
    halves = [LabelledGraph.batch([dataset[i] for i in part]) for part in ((0, 2, 4), (1, 3, 6))]
    assert halves[0].graph.n_atoms != halves[1].graph.n_atoms


def test_energies_that_contradict_the_forces_are_said_at_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frames = []
    for index, distance in enumerate(rng.uniform(0.8, 1.2, size=40)):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, distance]])
        stretch = distance - 1.0
        gradient = np.array([[0, 0, -stretch], [0, 0, stretch]]) * 20.0  # in place of forces
        frames.append(Frame(atoms, 10.0 * stretch**2, gradient, None, None, "h2.xyz", index))
    write_frames(frames, tmp_path / "h2.xyz")
    config = Config.model_validate(
        {
            "data": {"train": str(tmp_path / "h2.xyz"), "n_val": 12, "checks": "off"},
            "model": {**TINY, "dtype": "float64"},
            "train": {
                "max_steps": 120,
                "batch_size": 7,
                "learning_rate": 0.05,
                "energy_weight": 0.01,
                "validate_every": 120,
            },
        }
    )
    result = train(config, tmp_path / "run")
    assert any("rise where the model's fall" in sentence for sentence in result.warnings)
    assert json.loads((result.out / "summary.json").read_text())["warnings"] == list(result.warnings)
