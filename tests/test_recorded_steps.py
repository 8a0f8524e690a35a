"""Steps of training as a GPU records them, here on the CPU through the same code and a tape in the graph's place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

import tape
from equipes.data import GraphDataset, LabelledGraph
from equipes.errors import InputError
from equipes.models import Potential, build
from equipes.models.device_padding import RECORDERS, Room
from equipes.nn.adapters import LowRankAdapters, adaptable
from equipes.training import recorded
from equipes.training.config import TrainConfig
from equipes.training.losses import Loss, label_counts, weighted_mean
from equipes.training.module import TrainingModule
from equipes.training.optimizers import Moves, set_learning_rate
from equipes.training.padding import PaddedBatch, room_for
from equipes.training.recorded import RecordedStep, can_record
from equipes.training.stream import Batch, BatchStream
from training_samples import uneven_frames

PLAIN_FILL = PaddedBatch.fill
SPECIES = ["N", "H", "C", "O"]  # the first does not occur
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "nequip": (
        "nequip",
        {
            "num_layers": 2, "l_max": 1, "num_features": 3, "num_bessels": 3, "radial_mlp_width": 4, "zbl": True,
            "per_edge_type_cutoff": {"H": {"C": 2.5}, "O": 3.0}, "per_type_energy_shifts_trainable": True,
            "per_type_energy_scales_trainable": True,
        },
    ),
    "mace": (
        "mace",
        {
            "max_ell": 1, "hidden_irreps": "3x0e + 3x1o", "correlation": 2, "num_bessel": 3, "radial_MLP": [4],
            "MLP_irreps": "2x0e", "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
            "distance_transform": "Agnesi", "pair_repulsion": True,
        },
    ),
    "sevennet": (
        "sevennet",
        {"num_layers": 2, "l_max": 1, "num_features": 3, "num_bessels": 3, "radial_mlp_width": 4, "xplor_on": 3.0},
    ),
    "schnet": ("schnet", {"num_features": 4, "num_interactions": 2, "gaussian_spacing": 1.0}),
    "physnet": ("physnet", {"num_features": 4, "num_basis": 5, "num_modules": 2}),
    "ani": ("ani", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> GraphDataset:
    return GraphDataset(uneven_frames(), 4.0)


def make(name: str) -> Potential:
    architecture, hyperparameters = MODELS[name]
    potential = build(architecture, SPECIES, {**hyperparameters, "r_max": 4.0}, dtype="float64", seed=1)
    return potential.train()


def batch_of(dataset: GraphDataset, indices: list[int]) -> Batch:
    labelled = LabelledGraph.batch([dataset[index] for index in indices])
    counts = label_counts(labelled)
    return Batch(labelled, counts, counts + 1)


def share(potential: Potential, padded: PaddedBatch, loss: Loss) -> Tensor:
    prediction = potential.evaluate(padded.types, padded.labelled.graph)
    return weighted_mean(loss.sums(prediction, padded.labelled), padded.joint_counts, padded.weights)


@pytest.mark.parametrize("kernel", ["reference", "native"])
@pytest.mark.parametrize("name", list(MODELS))
def test_padding_adds_nothing(
    name: str, kernel: str, dataset: GraphDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient, with batches that lack labels, periods or species, in buffers used before."""
    monkeypatch.setenv("EQUIPES_KERNEL", kernel)
    potential = make(name)
    parameters = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    cases = [("mae", [4, 2, 0, 6]), ("mse", [0, 3, 7, 1]), ("huber", [8, 5, 6, 1])]
    batches = [batch_of(dataset, indices) for _, indices in cases]
    all_types = [potential.type_of_number[batch.labelled.graph.numbers] for batch in batches]
    grouped = potential.model.GROUPS_SPECIES
    rooms = [room_for(b, t, len(SPECIES), grouped=grouped) for b, t in zip(batches, all_types, strict=True)]
    assert all(room.structures == 5 and room.groups[:1] == (0,) * grouped for room in rooms)
    groups = tuple(map(max, zip(*(room.groups for room in rooms), strict=True)))
    largest = Room(max(room.atoms for room in rooms), max(room.edges for room in rooms), 5, groups)
    padded = PaddedBatch(largest, 4.0, torch.device("cpu"))
    for (kind, _), batch, types in zip(cases, batches, all_types, strict=True):
        loss = Loss(kind, 1.3)
        padded.fill(batch, types, weights)
        found = share(potential, padded, loss)
        prediction = potential(batch.labelled.graph)
        expected = weighted_mean(loss.sums(prediction, batch.labelled), batch.joint_counts, weights)
        assert abs(found.item() - expected.item()) < 1e-12 * expected.item()
        pairs = zip(
            torch.autograd.grad(found, parameters, allow_unused=True),
            torch.autograd.grad(expected, parameters, allow_unused=True),
            strict=True,
        )
        for one, other in pairs:
            assert (one is None) == (other is None)
            if one is not None:
                assert (one - other).abs().max().item() <= 1e-12 * other.abs().max().item()


def test_what_has_no_room_is_refused(dataset: GraphDataset) -> None:
    batch = batch_of(dataset, [0, 1])
    types = torch.ones(batch.labelled.graph.n_atoms, dtype=torch.int64)
    need = room_for(batch, types, 2, grouped=True)
    assert need.groups == (0, 32) and need.structures == 3
    weights = torch.ones(3)
    for room in (
        replace(need, atoms=batch.labelled.graph.n_atoms),
        replace(need, edges=batch.labelled.graph.n_edges - 1),
        replace(need, structures=2),
        replace(need, groups=(32, 0)),
        replace(need, groups=(0, batch.labelled.graph.n_atoms)),
    ):
        with pytest.raises(ValueError, match=r"room|place"):
            PaddedBatch(room, 4.0, torch.device("cpu")).fill(batch, types, weights)


# Steps.


def module_of(potential: Potential, dataset: GraphDataset, **settings: Any) -> TrainingModule:
    moves = None
    if settings.pop("adapters", False):
        # Of full rank, and not zero: axes without curvature have no direction, and any round-off turns them.
        model = potential.model
        names = [name for name in adaptable(model) if model.get_parameter(name).shape == (4, 4)]
        adapters = LowRankAdapters(model, names, 4, seed=2)
        for _, factor in adapters.factors():
            factor += 0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(4)).to(factor)
        moves = Moves(adapters=adapters)
    train = TrainConfig.model_validate({"gradient_clip": 1.0, "learning_rate": 0.01, **settings})
    labels = [frame.label for frame in dataset.frames]
    module = TrainingModule(potential, train, Loss(train.loss, 2.0), labels, moves=moves, replay_weight=0.1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.strategy.connect(module)
    module.trainer = trainer
    module.configure_optimizers()
    return module.train()


def poison(batch: Batch) -> None:
    """Nothing of the batch may be read after it was copied."""
    labelled = batch.labelled
    for owner in (labelled.graph, labelled):
        for field in fields(owner):
            value = getattr(owner, field.name)
            if isinstance(value, Tensor) and field.name != "frame":
                value.fill_(float("nan") if value.is_floating_point() else 1)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The CPU records, and batches that were copied hold garbage; the recordings are counted."""
    recordings: list[Any] = []

    def record(*args: Any, **given: Any) -> Any:
        recordings.append(args[0])
        return tape.record(*args, **given)

    fill = PaddedBatch.fill

    def fill_and_poison(self: PaddedBatch, batch: Batch, types: Tensor, weights: Tensor) -> None:
        fill(self, batch, types, weights)
        poison(batch)
        types.fill_(-1)
        weights.fill_(float("nan"))

    monkeypatch.setattr(PaddedBatch, "fill", fill_and_poison)
    monkeypatch.setenv("EQUIPES_KERNEL", "reference")
    monkeypatch.setitem(RECORDERS, "cpu", record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield recordings


def steps(module: TrainingModule, stream: BatchStream, number: int) -> list[tuple[float, float]]:
    """Loss and learning rate of each."""
    told = []
    batches = iter(stream)
    for step in range(number):
        module.state.progress = step / number
        batch = module.transfer_batch_to_device(next(batches), torch.device("cpu"), 0)
        module.training_step(batch, step)
        told.append((float(module.last_loss), module.learning_rate))
    return told


def both(
    name: str, dataset: GraphDataset, number: int = 10, replay: bool = False, **settings: Any
) -> tuple[TrainingModule, TrainingModule, list[Any]]:
    """Recorded and plain, after so many steps with the same batches of several sizes."""
    modules, told = [], []
    for record in (True, False):
        module = module_of(make(name), dataset, record_steps=record, **settings)
        other = BatchStream(dataset, 2, 5) if replay else None
        told.append(steps(module, BatchStream(dataset, 3, 0, other), number))
        modules.append(module)
    return modules[0], modules[1], told


def assert_equal(
    one: TrainingModule, other: TrainingModule, told: list[Any], tolerance: float = 1e-9
) -> None:
    for (loss, rate), (expected, same) in zip(*told, strict=True):
        assert rate == same and abs(loss - expected) < tolerance * expected
    begun = make(one.potential.architecture)
    for mine, theirs in ((one.potential, other.potential), (one.average, other.average)):
        for a, b, start in zip(mine.parameters(), theirs.parameters(), begun.parameters(), strict=True):
            moved = (b - start).abs().max().item()
            assert (a - b).abs().max().item() <= tolerance * moved
    assert one.state.loss_steps == other.state.loss_steps
    assert abs(one.collect_loss() - other.collect_loss()) < tolerance * other.collect_loss()


CHANGING = {"forces_weight": {0: 1.0, 0.5: 3.0}, "stress_weight": {0: 0.0, 0.3: 1.0}, "weight_decay": 0.1}


@pytest.mark.parametrize("name", ["nequip", "mace", "sevennet", "schnet", "physnet"])
def test_recorded_steps_are_the_steps(name: str, dataset: GraphDataset, recording: list[Any]) -> None:
    """Ten steps with batches of several sizes, weights, rates, clipping and averages that change from step to step."""
    one, other, told = both(name, dataset, optimizer="adamw", **CHANGING)
    assert_equal(one, other, told)
    assert one._recorded is not None and not one._recorded.refused and other._recorded is None
    kinds = len(one._recorded._recordings)
    assert 2 < kinds < 10 and len(recording) == kinds + 1


def test_recorded_steps_of_soap(
    dataset: GraphDataset, recording: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own update, from the same gradients: of others, round-off suffices to turn axes without curvature."""
    modules, told = [], []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(RecordedStep, "update", lambda self: None)
        modules.append(module_of(make("mace"), dataset, optimizer="soap", **CHANGING))
        told.append(steps(modules[-1], BatchStream(dataset, 3, 0), 6))
    assert_equal(*modules, told)


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
@pytest.mark.parametrize("adapters", [False, True])
def test_recorded_updates_are_the_updates(
    optimizer: str, adapters: bool, dataset: GraphDataset, recording: list[Any]
) -> None:
    """Twelve given gradients, with two steps between that are too large to record."""
    results = []
    for record in (True, False):
        generator = torch.Generator().manual_seed(3)
        module = module_of(make("schnet"), dataset, optimizer=optimizer, adapters=adapters, weight_decay=0.1)
        moved, parameters, played = module._moved, module._trainable, 0
        step = RecordedStep(
            module.potential, parameters, moved, module.optimizer, module._clip, module.adapters
        )  # type: ignore[arg-type]
        norms = []
        for number in range(12):
            given = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
            set_learning_rate(module.optimizer, 1 - number / 12)  # type: ignore[arg-type]
            norm = None
            if record and number not in (3, 4):
                step._reached = [True] * len(parameters)
                torch._foreach_copy_(step._gradients, given)
                step._set_gradients()
                norm = step.update()
                played += norm is not None
            else:
                for parameter, gradient in zip(parameters, given, strict=True):
                    parameter.grad = gradient
            if norm is None:
                if module.adapters is not None:
                    module.adapters.pull_back()
                norm = module._clip()
                module.optimizer.step()  # type: ignore[union-attr]
                if module.adapters is not None:
                    module.adapters.merge()
            norms.append(norm)
        assert played == (9 if record else 0)
        results.append([torch.stack(norms), *moved, *parameters])
    begun = make("schnet")
    assert len(recording) == 1
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max().item() <= 1e-10 * other.abs().max().item()
    assert any(
        not torch.equal(p, q) for p, q in zip(results[0][-3:], list(begun.parameters())[-3:], strict=True)
    )


@pytest.mark.parametrize("adapters", [False, True])
def test_recorded_fine_tuning(adapters: bool, dataset: GraphDataset, recording: list[Any]) -> None:
    """With frames that are replayed, each kind of batch in its own memory, and with adapters."""
    one, other, told = both("schnet", dataset, replay=True, optimizer="adamw", adapters=adapters, **CHANGING)
    assert_equal(one, other, told)
    assert {each.number for each in one._recorded._recordings} == {0, 1}  # type: ignore[union-attr]


def test_what_is_not_recorded(dataset: GraphDataset, recording: list[Any], monkeypatch: Any) -> None:
    """Too many kinds of batches, or too large ones, take plain steps between those that are recorded."""
    monkeypatch.setattr(PaddedBatch, "fill", PLAIN_FILL)
    for name, limit in (("MOST_RECORDINGS", 2), ("RECORDED_EDGES", 150)):
        with monkeypatch.context() as limited:
            limited.setattr(recorded, name, limit)
            one, other, told = both("schnet", dataset, optimizer="adamw", **CHANGING)
        assert_equal(one, other, told)
        padded = [each.padded.room.edges for each in one._recorded._recordings]  # type: ignore[union-attr]
        assert len(padded) == 2 if name == "MOST_RECORDINGS" else max(padded) < 200 and padded
    assert not can_record(make("ani"), torch.device("cpu"))
    module = module_of(make("schnet"), dataset, record_steps=False)
    assert not module._is_recorded(torch.device("cpu"))
    monkeypatch.delitem(RECORDERS, "cpu")
    assert not can_record(make("schnet"), torch.device("cpu"))


def test_a_device_that_refuses_is_asked_once(dataset: GraphDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise RuntimeError("out of luck\nand of words")

    expected = module_of(make("schnet"), dataset)
    losses = steps(expected, BatchStream(dataset, 3, 0), 4)
    for first_works in (False, True):
        asked.clear()

        def sometimes(*given: Any, works: bool = first_works, **also: Any) -> Any:
            if asked or not works:
                refuse()
            asked.append(1)
            return tape.record(*given, **also)

        monkeypatch.setenv("EQUIPES_KERNEL", "reference")
        monkeypatch.setitem(RECORDERS, "cpu", sometimes)
        module = module_of(make("schnet"), dataset)
        with pytest.warns(UserWarning, match="not recorded here, which is slower: out of luck$"):
            told = steps(module, BatchStream(dataset, 3, 0), 4)
        monkeypatch.delitem(RECORDERS, "cpu")
        assert len(asked) == 1 + first_works
        assert_equal(module, expected, [told, losses])


def test_the_tape_hears_what_waits(dataset: GraphDataset) -> None:
    """A model whose shapes depend on its atoms cannot be recorded, nor a step that looks at its loss."""
    padded_steps = recorded_step(make("ani"), dataset)
    with pytest.raises(tape.Waits, match="nonzero"):
        tape.record(padded_steps, torch.device("cpu"), touched=(), pool=None)
    step = recorded_step(make("schnet"), dataset)
    tape.record(step, torch.device("cpu"), touched=(), pool=None)
    with pytest.raises(tape.Waits, match="scalar"):
        tape.record(lambda: float(step()), torch.device("cpu"), touched=(), pool=None)


def recorded_step(potential: Potential, dataset: GraphDataset) -> Any:
    batch = batch_of(dataset, [0, 1])
    types = potential.type_of_number[batch.labelled.graph.numbers]
    room = room_for(batch, types, len(SPECIES), grouped=potential.model.GROUPS_SPECIES)
    padded = PaddedBatch(room, 4.0, torch.device("cpu"))
    padded.fill(batch, types, torch.ones(3))
    return lambda: share(potential, padded, Loss()).detach()


def test_a_loss_that_is_not_finite_is_told_with_its_frames(
    dataset: GraphDataset, recording: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PaddedBatch, "fill", PLAIN_FILL)
    module = module_of(make("schnet"), dataset)
    stream = BatchStream(dataset, 3, 0)
    steps(module, stream, 3)
    batch = stream._batch(3, 0, 1)
    batch.labelled.forces[0] = float("inf")
    first = dataset.frames[int(batch.labelled.frame[0])].label
    with pytest.raises(InputError, match=f"with {first} in the batch"):
        module.training_step(batch, 3)
