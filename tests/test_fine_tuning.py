"""Trainings that begin with a trained potential: what they keep, what they write, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
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
from command_line import run_forked
from equipes.data import Frame, write_frames
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import build
from equipes.models.parts import part_of, reference_energies
from equipes.training import Config, load_config, train
from equipes.training.fine_tuning import labelled
from fine_tuning_samples import OTHER_SHIFTS, SHIFTS, SPECIES, base, config, frames, molecules, teacher, write

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fine_tuning")
    write(made)
    return made


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Path:
    """All weights, no replay."""
    out = folder / "tuned"
    train(config(folder, {"max_steps": 60}), out, console=QUIET)
    return out


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Path:
    """Adapters, with replay."""
    out = folder / "adapted"
    train(config(folder, {"max_steps": 60}, adapter_rank=2, replay="crystals"), out, console=QUIET)
    return out


def facts(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text())["fine_tuning"])


def weights(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def change(name: str, out: Path, folder: Path) -> float:
    """Of one parameter from the base to the result, relative."""
    before, after = (weights(path)[name] for path in (folder / "base.safetensors", out / "model.safetensors"))
    return float(np.abs(after - before).max() / np.abs(before).max())


def test_it_begins_with_the_base_and_its_new_reference_energies(folder: Path, tuned: Path) -> None:
    found = facts(tuned)
    corrections = found["reference_energy_corrections_ev"]
    assert corrections == pytest.approx({s: OTHER_SHIFTS[s] - SHIFTS[s] for s in "HCO"}, abs=0.5)
    before = found["validation_before"]
    # Hundreds of eV would be left without them.
    assert before["val_energy_mae_mev_per_atom"] < 50
    validation = json.loads((tuned / "summary.json").read_text())["validation"]
    assert validation["val_forces_mae_mev_per_ang"] < 0.7 * before["val_forces_mae_mev_per_ang"], (
        "and learns from there"
    )
    potential = equipes.load(tuned / "model.safetensors")
    assert potential.species == SPECIES
    values = dict(zip(SPECIES, reference_energies(potential.model).tolist(), strict=True))
    for symbol in SPECIES:
        assert values[symbol] == pytest.approx(SHIFTS[symbol] + corrections.get(symbol, 0.0), abs=1e-12)
    assert change("scales", tuned, folder) == 0
    assert change("layers.0.radial_network.weights.0", tuned, folder) > 1e-3


def test_the_file_says_what_it_was_made_of(folder: Path, tuned: Path) -> None:
    import hashlib

    digest = hashlib.sha256((folder / "base.safetensors").read_bytes()).hexdigest()
    provenance = equipes.load(tuned / "model.safetensors").provenance
    assert provenance["fine_tuning"] == facts(tuned)
    assert provenance["fine_tuning"]["base"] == "base.safetensors"
    assert provenance["fine_tuning"]["base_sha256"] == digest
    assert provenance["data"]["n_train"] == 20
    assert provenance["config"]["fine_tuning"]["base"] == "base.safetensors"
    assert str(folder) not in json.dumps(provenance)
    again = facts_of_second_generation(folder, tuned)
    assert again["base_provenance"]["fine_tuning"]["base_sha256"] == digest
    assert "config" not in again["base_provenance"]


def facts_of_second_generation(folder: Path, tuned: Path) -> dict[str, Any]:
    out = folder / "second"
    train(config(folder, {"max_steps": 1}, base=str(tuned / "model.safetensors")), out, console=QUIET)
    return facts(out)


def test_forgetting_is_measured_against_the_base(folder: Path, tuned: Path) -> None:
    from equipes.training.replay import held_out

    forgetting = facts(tuned)["forgetting"]
    assert forgetting["n_structures"] == 8
    assert forgetting["before"]["energy_mae_mev_per_atom"] < 1e-6
    assert forgetting["before"]["forces_mae_mev_per_ang"] < 1e-6
    # By hand.
    start, end = base("sevennet", "float32"), equipes.load(tuned / "model.safetensors")
    corrections = facts(tuned)["reference_energy_corrections_ev"]
    energies, forces, size = [], [], []
    for atoms in held_out(SPECIES, 8, 0):
        graph = AtomGraph.from_atoms(atoms, 4.0)
        one, other = start(graph), end(graph)
        shift = sum(corrections.get(symbol, 0.0) for symbol in atoms.symbols)
        energies.append(abs(other.energy.item() - one.energy.item() - shift) / len(atoms))
        forces.append((other.forces - one.forces).abs().flatten())
        size.append(one.forces.flatten())
    after = forgetting["after"]
    assert after["energy_mae_mev_per_atom"] == pytest.approx(1e3 * np.mean(energies), rel=1e-3)
    assert after["forces_mae_mev_per_ang"] == pytest.approx(1e3 * torch.cat(forces).mean().item(), rel=1e-3)
    rms = torch.cat(size).square().mean().sqrt().item()
    assert forgetting["size"]["forces_rmse_mev_per_ang"] == pytest.approx(1e3 * rms, rel=1e-3)


def test_replay_keeps_what_the_base_knew(folder: Path, tuned: Path) -> None:
    out = folder / "replayed"
    train(config(folder, {"max_steps": 60}, replay="crystals", replay_weight=10.0), out, console=QUIET)
    found = facts(out)
    assert found["replayed"] == 12
    for name in ("energy_mae_mev_per_atom", "forces_mae_mev_per_ang"):
        assert found["forgetting"]["after"][name] < 0.75 * facts(tuned)["forgetting"]["after"][name]
    validation = json.loads((out / "summary.json").read_text())["validation"]
    assert (
        validation["val_forces_mae_mev_per_ang"]
        < 0.9 * (found["validation_before"]["val_forces_mae_mev_per_ang"])
    )


def test_own_structures_can_be_replayed(folder: Path) -> None:
    write_frames([Frame(a, None, None, None, None, "", 0) for a in molecules(10)], folder / "own.xyz")
    out = folder / "own"
    train(config(folder, {"max_steps": 2}, replay=str(folder / "own.xyz")), out, console=QUIET)
    found = facts(out)
    assert found["replayed"] == 8
    assert found["forgetting"]["n_structures"] == 2
    assert found["forgetting"]["structures"] == "structures of own.xyz, not replayed"


def test_adapters_are_merged_in_the_file(folder: Path, adapted: Path) -> None:
    """An ordinary model, whose linear layers have changed by matrices of low rank and nothing else."""
    validation = json.loads((adapted / "summary.json").read_text())["validation"]
    before = facts(adapted)["validation_before"]
    assert validation["val_forces_mae_mev_per_ang"] < before["val_forces_mae_mev_per_ang"]
    own = {name for name in weights(adapted / "model.safetensors") if not name.startswith("familiarity")}
    assert own == weights(folder / "base.safetensors").keys()
    for name in weights(folder / "base.safetensors"):
        moved = change(name, adapted, folder)
        linear = part_of(name) in ("interactions", "readout")
        assert (moved > 1e-4) == (linear or name == "shifts"), name
    assert facts(adapted)["trained_parameters"] < 0.6 * facts(folder / "tuned")["trained_parameters"]


def test_the_result_runs_everywhere(adapted: Path) -> None:
    potential = equipes.load(adapted / "model.safetensors")
    graph = AtomGraph.from_atoms(molecules(2)[1], 4.0)
    expected = potential(graph).forces.numpy()
    double = equipes.load(adapted / "model.safetensors", dtype="float64")
    np.testing.assert_allclose(double(graph).forces, expected, atol=1e-5)
    few = equipes.load(adapted / "model.safetensors", species=["O", "H", "C"])
    np.testing.assert_allclose(few(graph).forces, expected, atol=1e-5)
    atoms = molecules(2)[1]
    atoms.calc = equipes.Calculator(adapted / "model.safetensors")
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["nequip", "mace", "schnet", "physnet", "ani"])
@pytest.mark.parametrize("rank", [None, 2])
def test_every_architecture_can_be_a_base(tmp_path: Path, architecture: str, rank: int | None) -> None:
    write(tmp_path, architecture)
    settings = config(tmp_path, {"max_steps": 2}, adapter_rank=rank, replay="crystals")
    moves = KeepWeights()
    if architecture == "ani" and rank:
        with pytest.raises(InputError, match="this ani potential has no linear layers to adapt"):
            train(settings, tmp_path / "run", console=QUIET)
        return
    train(settings, tmp_path / "run", console=QUIET, callbacks=[moves])
    potential = equipes.load(tmp_path / "run" / "model.safetensors")
    assert potential.architecture == architecture
    assert facts(tmp_path / "run")["validation_before"]["val_energy_mae_mev_per_atom"] < 100
    name = "embedding" if architecture != "ani" else "networks.weights.0"
    assert (moves.after[name] > 0) == (rank is None), "adapters leave the embedding as it is"


def test_isolated_atoms_have_their_energy_in_the_end(tmp_path: Path) -> None:
    write(tmp_path, "nequip")
    atoms = labelled(teacher(base("nequip")), [Atoms(symbol) for symbol in OTHER_SHIFTS], "atoms")
    write_frames(
        [*frames(architecture="nequip"), *(replace(f, energy=f.energy + 0.3) for f in atoms)],
        tmp_path / "data.xyz",
        overwrite=True,
    )
    train(config(tmp_path, {"max_steps": 3}), tmp_path / "run", console=QUIET)
    tuned = equipes.load(tmp_path / "run" / "model.safetensors")
    for frame in atoms:
        energy = float(tuned(equipes.AtomGraph.from_atoms(frame.atoms, tuned.cutoff)).energy.detach())
        assert energy == pytest.approx(frame.energy + 0.3, abs=1e-7)


def test_parts_have_their_own_rates(folder: Path) -> None:
    """Adam's first step moves each weight by the learning rate."""
    rate = 1e-3
    settings = {"max_steps": 1, "ema_decay": 0, "learning_rate": rate, "warmup": 0, "schedule": "constant"}
    rates = {"radial": 0.5, "readout": 2.0, "references": 0.1}
    out = folder / "rates"
    keep = KeepWeights()
    tuning = config(folder, settings, rates=rates, freeze=["embedding"], layer_decay=0.25)
    train(tuning, out, console=QUIET, callbacks=[keep])
    assert keep.after["embedding"] == 0
    for name, factor in {
        "readout.0.weights.0e": 2.0,
        "layers.1.linear_2.weights.0e": 1.0,
        "layers.0.linear_2.weights.0e": 0.25,
        "layers.1.radial_network.weights.0": 0.5,
        "layers.0.radial_network.weights.0": 0.125,
        "shifts": 0.1,
    }.items():
        assert keep.after[name] == pytest.approx(factor * rate, rel=0.02), name


class KeepWeights(pl.Callback):
    """How far the first step moved each parameter."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        named = module.potential.model.named_parameters()
        self.before = {name: parameter.detach().clone() for name, parameter in named}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        named = module.potential.model.named_parameters()
        self.after = {name: (p.detach() - self.before[name]).abs().max().item() for name, p in named}


class Died(BaseException):
    pass


class DieAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.state.step == self.step:
            raise Died


def test_a_fine_tuning_that_died_resumes_exactly(folder: Path) -> None:
    """Adapters, replay and the average of the weights, from a checkpoint after every step."""
    short = {"max_steps": 12, "checkpoint_every_minutes": 0, "validate_every": 4}
    settings = config(folder, short, adapter_rank=2, replay="crystals")
    whole, died = folder / "whole", folder / "died"
    train(settings, whole, console=QUIET)
    for step in (3, 10):
        with pytest.raises(Died):
            train(settings, died, resume=True, console=QUIET, callbacks=[DieAt(step)])
    train(None, died, resume=True, console=QUIET)
    assert json.loads((whole / "summary.json").read_text())["validation"]["step"] > 3, "it has learnt"
    assert (died / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert facts(died) == facts(whole)
    changed = config(folder, short, adapter_rank=3, replay="crystals")
    with pytest.raises(InputError, match=r"another value of fine_tuning\.adapter_rank"):
        train(changed, died, resume=True, console=QUIET)


def test_another_base_is_no_resumption(folder: Path, tmp_path: Path) -> None:
    write(tmp_path)
    train(config(tmp_path, {"max_steps": 2}), tmp_path / "run", console=QUIET)
    build("sevennet", ["H", "C", "O"], {"r_max": 4.0, "num_layers": 1}).save(
        tmp_path / "base.safetensors", overwrite=True
    )
    with pytest.raises(InputError, match=r"begun with another fine_tuning\.base"):
        train(config(tmp_path, {"max_steps": 3}), tmp_path / "run", resume=True, console=QUIET)


def test_the_written_config_trains_the_same(folder: Path, adapted: Path, tmp_path: Path) -> None:
    written = load_config(adapted / "config.yaml")
    assert written.fine_tuning is not None and written.fine_tuning.replay_batch_size is not None
    assert written.model.species == list(SPECIES)
    train(written, tmp_path / "again", console=QUIET)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        adapted / "model.safetensors"
    ).read_bytes()


def test_new_elements_and_only_those_of_the_data(tmp_path: Path) -> None:
    """Carbon is new to a base of H, O, Si and begins as silicon; only the data's elements are kept."""
    from equipes.models import keep_species

    write(tmp_path)
    small = keep_species(base("sevennet", "float32"), ["H", "O", "Si"])
    small.save(tmp_path / "small.safetensors")
    own = {"base": str(tmp_path / "small.safetensors")}
    train(config(tmp_path, {"max_steps": 2}, **own), tmp_path / "all", console=QUIET)
    assert equipes.load(tmp_path / "all" / "model.safetensors").species == ("H", "O", "Si", "C")
    assert facts(tmp_path / "all")["new_elements"] == {"C": "Si"}
    forgetting = facts(tmp_path / "all")["forgetting"]
    assert forgetting["before"]["forces_mae_mev_per_ang"] < 1e-3
    assert forgetting["after"]["forces_mae_mev_per_ang"] > 1e-3
    train(config(tmp_path, {"max_steps": 2}, keep_species="data", **own), tmp_path / "few", console=QUIET)
    assert equipes.load(tmp_path / "few" / "model.safetensors").species == ("H", "C", "O")
    assert facts(tmp_path / "few")["forgetting"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"r_max": 5.0}}, r"model.r_max is 5 Å, but .*base.safetensors has a cutoff of 4 Å"),
        ({"model": {"species": ["H", "C"]}}, "model.species does not name O, which the data has"),
        ({"modal": "PBE"}, "has no modality 'PBE'"),
        ({"freeze": ["embedding", "radial", "interactions", "readout"]}, "every part is frozen"),
        ({"freeze": ["interactions", "readout"], "adapter_rank": 2}, "no linear layers to adapt"),
        ({"base": "nothing.safetensors"}, "nothing.safetensors: no such model file"),
        ({"base": "8net-0"}, "8net-0: no such model file, nor a published potential"),
        ({"base": "7net/7net-0.pth"}, r"7net-0.pth: no such"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_said(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    changes = dict(changes)
    model = changes.pop("model", {})
    settings = config(folder, {"max_steps": 1}, **changes)
    if model:
        settings = Config.model_validate(settings.model_dump(exclude={"model"}) | {"model": model})
    with pytest.raises(InputError, match=message):
        train(settings, tmp_path / "run", console=QUIET)


def test_unknown_elements_cannot_be_replayed(folder: Path, tmp_path: Path) -> None:
    from ase.build import bulk

    write_frames([Frame(bulk("Cu"), None, None, None, None, "", 0)] * 2, tmp_path / "copper.xyz")
    with pytest.raises(InputError, match=r"copper.xyz frame 0: Cu cannot be replayed"):
        train(config(folder, replay=str(tmp_path / "copper.xyz")), tmp_path / "run", console=QUIET)


def test_labels_in_other_units_stop_it(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    unit = 23.0605
    data = [replace(f, energy=unit * f.energy, forces=unit * f.forces) for f in frames()]  # type: ignore[operator]
    write_frames(data, tmp_path / "data.xyz")
    settings = config(tmp_path, base=str(folder / "base.safetensors"))
    with pytest.raises(InputError, match=r"times those of .*base.safetensors, as in kcal/mol"):
        train(settings, tmp_path / "run", console=QUIET)


def test_a_base_of_several_kinds_needs_one_named(tmp_path: Path) -> None:
    shifts = {"low": dict.fromkeys(SPECIES, 1.0), "high": SHIFTS}
    kinds = {"modalities": ["low", "high"], "per_type_energy_shifts": shifts}
    write(tmp_path, **kinds)
    with pytest.raises(InputError, match=r"of reference calculation low, high; choose one with --modal"):
        train(config(tmp_path), tmp_path / "run", console=QUIET)
    train(config(tmp_path, {"max_steps": 2}, modal="high"), tmp_path / "run", console=QUIET)
    written = weights(tmp_path / "run" / "model.safetensors")["shifts"]
    assert written[0].tolist() == [1.0] * 6, "the other kind keeps its reference energies"
    assert written[1, :3] == pytest.approx(list(OTHER_SHIFTS.values()), abs=1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"num_layers": 3}}, "model: num_layers cannot be set, since fine_tuning.base has that"),
        ({"model": {"architecture": "mace"}}, "model.architecture is mace, but fine_tuning.base decides it"),
        ({"fine_tuning": None, "model": {"architecture": "fine-tuned"}}, "there is no fine_tuning.base"),
        ({"fine_tuning": {"freeze": ["head"]}}, "fine_tuning.base is missing"),
        ({"fine_tuning": {"base": "x", "freeze": ["head"]}}, "fine_tuning.freeze.0"),
        ({"fine_tuning": {"base": "x", "adapter_rank": 0}}, "fine_tuning.adapter_rank"),
        ({"fine_tuning": {"base": "x", "rank": 4}}, "fine_tuning.rank is not a known key"),
    ],
)
def test_configs_that_contradict_themselves(tree: dict[str, Any], message: str) -> None:
    from equipes.training.loading import validated

    whole = {"data": {"train": "x.xyz"}, "fine_tuning": {"base": "base.safetensors"}} | tree
    with pytest.raises(InputError, match=message):
        validated(whole, "config.yaml")


@pytest.mark.parametrize(("architecture", "rate"), [("sevennet", 0.002), ("schnet", 0.0006)])
def test_the_usual_learning_rate_is_a_fifth_of_that_of_the_base(
    architecture: str, rate: float, tmp_path: Path
) -> None:
    write(tmp_path, architecture)
    train(config(tmp_path, {"max_steps": 1, "learning_rate": None}), tmp_path / "run", console=QUIET)
    assert load_config(tmp_path / "run" / "config.yaml").train.learning_rate == pytest.approx(rate)


def test_one_command(folder: Path, tmp_path: Path) -> None:
    command = ("train", "--from", folder / "base.safetensors", "--data", folder / "data.xyz", "--out", "run")
    done = run_forked(*command, "max_steps=3", "forgetting_frames=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "base.safetensors (sevennet)" in done.stderr
    for line in ("before     energy", "forgotten  energy"):
        assert line in done.stdout
    done = run_forked(*command[:-1], "other", "--modal", "PBE", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no modality 'PBE'" in done.stderr and "Traceback" not in done.stderr


def test_the_report_shows_what_was_forgotten(tuned: Path, tmp_path: Path) -> None:
    from equipes.report import write_report
    from equipes.report.page import _fact

    write_report(tmp_path / "report.html", model=equipes.load(tuned / "model.safetensors").summary())
    page = (tmp_path / "report.html").read_text()
    after = page.split("<dt>forgetting</dt>")[1].split("<dt>after</dt>")[1]
    forces = facts(tuned)["forgetting"]["after"]["forces_mae_mev_per_ang"]
    assert _fact(forces) in after
    assert "base.safetensors" in page
