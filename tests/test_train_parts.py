"""The parts of training: losses, schedules, the batch stream, averages, optimisers, metrics.csv."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipes.data import GraphDataset, LabelledGraph
from equipes.errors import InputError
from equipes.models import build
from equipes.training.config import TrainConfig
from equipes.training.ema import average_of, update_average
from equipes.training.losses import Loss, label_counts, weighted_mean
from equipes.training.optimizers import build_optimizer, default_optimizer, set_learning_rate
from equipes.training.records import MetricsFile, SafeCheckpointIO
from equipes.training.schedules import Budget, Clock, learning_rate_factor, stepwise
from equipes.training.soap import SOAP
from equipes.training.stream import BatchStream
from equipes.training.validation import validate
from training_samples import TINY, uneven_frames

ONES = torch.ones(3, dtype=torch.float64)


@pytest.fixture(scope="module")
def dataset() -> GraphDataset:
    return GraphDataset(uneven_frames(), 4.0)


def random_prediction(batch: LabelledGraph, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def random(label: torch.Tensor) -> torch.Tensor:
        return torch.randn(label.shape, generator=generator, dtype=torch.float64).requires_grad_()

    return SimpleNamespace(
        energy=random(batch.energy), forces=random(batch.forces), virial=random(batch.stress)
    )


def test_the_loss_is_its_definition(dataset: GraphDataset) -> None:
    """Written out with loops over what is labelled."""
    batch = LabelledGraph.batch([dataset[i] for i in range(len(dataset))])
    predicted = random_prediction(batch)
    scale = 1.7
    sums, counts = np.zeros(3), np.zeros(3)
    start = 0
    for s, frame in enumerate(dataset.frames):
        n = len(frame.atoms)
        if frame.energy is not None:
            sums[0] += ((predicted.energy[s].item() - frame.energy) / n / scale) ** 2
            counts[0] += 1
        if frame.forces is not None:
            sums[1] += (
                ((predicted.forces[start : start + n].detach().numpy() - frame.forces) / scale) ** 2
            ).sum()
            counts[1] += 3 * n
        if frame.stress is not None:
            stress = -predicted.virial[s].detach().numpy() / frame.atoms.get_volume()
            sums[2] += (((stress - frame.stress) * frame.atoms.get_volume() / n / scale) ** 2).sum()
            counts[2] += 9
        start += n
    loss = Loss("mse", scale)
    np.testing.assert_allclose(loss.sums(predicted, batch).detach().numpy(), sums, rtol=1e-12)
    np.testing.assert_array_equal(label_counts(batch).numpy(), counts)
    weights = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    value = weighted_mean(loss.sums(predicted, batch), label_counts(batch), weights).item()
    assert value == pytest.approx((np.array([2.0, 3.0, 5.0]) * sums / counts).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_what_is_not_labelled_has_no_gradient(dataset: GraphDataset, kind: str) -> None:
    batch = LabelledGraph.batch([dataset[i] for i in range(len(dataset))])
    predicted = random_prediction(batch)
    Loss(kind).sums(predicted, batch).sum().backward()
    for value, label in (
        (predicted.energy, batch.energy),
        (predicted.forces, batch.forces),
        (predicted.virial, batch.stress),
    ):
        assert label.isnan().any()
        assert (~label.isnan()).any()
        assert torch.isfinite(value.grad).all()
        assert torch.equal(value.grad != 0, ~label.isnan())


def test_huber_is_the_square_for_small_and_linear_for_large_residuals(dataset: GraphDataset) -> None:
    item = dataset[0]
    for shift, expected in ((0.05, 0.05**2), (3.0, 2 * 0.1 * (3.0 - 0.05))):
        predicted = SimpleNamespace(energy=item.energy + shift * item.graph.n_atoms, forces=None, virial=None)
        assert Loss("huber", 1.0, 0.1).sums(predicted, item)[0].item() == pytest.approx(expected, rel=1e-9)


def test_mae_takes_absolute_values_and_lengths_of_force_residuals(dataset: GraphDataset) -> None:
    item = dataset[0]
    residual = torch.zeros_like(item.forces)
    residual[0] = torch.tensor([3.0, 0.0, 4.0])
    forces = (item.forces + residual).requires_grad_()
    energy = item.energy - 2.0 * item.graph.n_atoms
    sums = Loss("mae", 0.5).sums(SimpleNamespace(energy=energy, forces=forces, virial=None), item)
    assert sums[0].item() == pytest.approx(4.0, rel=1e-9)
    assert sums[1].item() == pytest.approx(3**0.5 * 5.0 / 0.5, rel=1e-9)
    sums[1].backward()
    assert forces.grad is not None
    # A residual of nothing has no direction, and must not make the gradient one of nothing.
    expected = torch.zeros_like(forces)
    expected[0] = 3**0.5 / 0.5 * residual[0] / 5.0
    torch.testing.assert_close(forces.grad, expected, rtol=1e-6, atol=0)


def test_an_infinite_label_is_not_taken_for_a_missing_one(dataset: GraphDataset) -> None:
    item = dataset[0]
    spoilt = LabelledGraph(item.graph, item.energy + math.inf, item.forces, item.stress, item.frame)
    assert not torch.isfinite(Loss().sums(random_prediction(item), spoilt)[0])
    assert label_counts(spoilt)[0] == 1


def test_a_prediction_that_is_not_a_number_is_not_taken_for_a_missing_label(dataset: GraphDataset) -> None:
    item = dataset[0]
    predicted = random_prediction(item)
    predicted.forces = predicted.forces + torch.tensor([math.nan, 0.0, 0.0])
    assert Loss().sums(predicted, item).isnan().tolist() == [False, True, False]


def test_validation_adds_up_batches(dataset: GraphDataset) -> None:
    potential = build("nequip", ("H", "C", "O"), TINY, dtype="float64").eval()
    items = [dataset[i] for i in range(len(dataset))]
    one = validate(potential, [LabelledGraph.batch(items)], Loss(), ONES, stress=True)
    many = validate(potential, items, Loss(), ONES, stress=True)
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert value is not None
        assert many[name] == pytest.approx(value, rel=1e-9), name
    errors, atoms = 0.0, 0
    for item, frame in zip(items, dataset.frames, strict=True):
        if frame.forces is not None:
            forces = potential(item.graph).forces
            assert forces is not None
            errors += np.abs(forces.numpy() - frame.forces).sum()
            atoms += len(frame.atoms)
    assert one["val_forces_mae_mev_per_ang"] == pytest.approx(1e3 * errors / (3 * atoms), rel=1e-9)
    without = validate(potential, items[:1], Loss(), ONES, stress=False)
    assert without["val_stress_mae_mev_per_ang3"] is None


def test_weights_change_in_steps() -> None:
    weight = {0.0: 1.0, 0.75: 10.0}
    assert [stepwise(weight, p) for p in (0.0, 0.5, 0.7499, 0.75, 1.0)] == [1, 1, 1, 10, 10]
    assert stepwise({0.5: 3.0}, 0.1) == 3.0
    assert stepwise(2.0, 0.3) == 2.0


def test_learning_rates() -> None:
    def factors(schedule: str) -> list[float]:
        return [
            learning_rate_factor(schedule, p, warmup=0.1, cooldown=0.2)
            for p in (0.0, 0.05, 0.1, 0.55, 0.8, 0.9, 1.0)
        ]

    assert factors("cosine") == pytest.approx(
        [0, 0.5, 1, 0.5, 0.5 - 0.5 * math.cos(math.pi * 2 / 9), 0.0301537, 0], abs=1e-6
    )
    assert factors("wsd") == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
    assert factors("constant") == factors("plateau") == pytest.approx([0, 0.5, 1, 1, 1, 1, 1])


def test_budgets_end_at_whichever_comes_first() -> None:
    assert Budget(100, None).progress(25, 1e9) == 0.25
    assert Budget(None, 60).progress(10**9, 15) == 0.25
    assert Budget(None, 60).progress(0, 25, after=10) == 0.5
    assert Budget(None, 60).progress(0, 30, before=10, after=10) == 0.5
    assert Budget(None, 60).progress(0, 5, before=10) == 0.0
    assert Budget(100, 60).progress(25, 45) == 0.75
    assert Budget(100, 60).progress(90, 45) == 0.9
    assert Budget(None, 1).progress(1, 0.5, after=5) == 1.0


def test_a_clock_of_the_processor_does_not_count_what_others_do() -> None:
    clocks = {kind: Clock(kind) for kind in ("wall", "processor")}
    time.sleep(0.3)
    assert clocks["wall"].elapsed() >= 0.3
    assert clocks["processor"].elapsed() < 0.1
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert clocks["processor"].elapsed() >= 0.2


def test_every_frame_comes_once_a_pass_and_the_order_depends_on_seed_and_step_only(
    dataset: GraphDataset,
) -> None:
    stream = BatchStream(dataset, 4, seed=7)
    n = len(dataset)
    assert n % 4
    flat = [i for step in range(n) for i in stream.indices(step)]
    for number in range(4):
        assert sorted(flat[number * n : (number + 1) * n]) == list(range(n))
    assert flat[:n] != flat[n : 2 * n]
    late = BatchStream(dataset, 4, seed=7)
    assert late.indices(6) == stream.indices(6)
    late.step = 4
    assert next(iter(late)).labelled.frame.tolist() == stream.indices(4)
    assert BatchStream(dataset, 4, seed=8).indices(0) != stream.indices(0)
    assert stream.passes(n) == 4


def test_processes_share_each_batch(dataset: GraphDataset) -> None:
    whole = next(iter(BatchStream(dataset, 5, seed=1)))
    parts = []
    for rank in range(2):
        stream = BatchStream(dataset, 5, seed=1)
        stream.rank, stream.world = rank, 2
        parts.append(next(iter(stream)))
    assert sorted(i for part in parts for i in part.labelled.frame.tolist()) == sorted(
        whole.labelled.frame.tolist()
    )
    for part in parts:
        assert torch.equal(part.joint_counts, whole.counts)
        assert torch.equal(part.counts, label_counts(part.labelled))
    assert torch.equal(parts[0].counts + parts[1].counts, whole.counts)


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = average_of(model)
    expected = model.weight.item()
    for step in range(20):
        nn.init.constant_(model.weight, float(step))
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        update_average(list(average.parameters()), list(model.parameters()), step, 0.8)
        assert average.weight.item() == pytest.approx(expected, rel=1e-12)
    assert not average.weight.requires_grad
    update_average(list(average.parameters()), list(model.parameters()), 20, 0.0)
    assert torch.equal(average.weight, model.weight)


class Toy(nn.Module):
    """A vector, a matrix and a tensor, in two number types, and something that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.vector = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.tensor = nn.Parameter(torch.randn(4, 2, 3, generator=generator))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self) -> torch.Tensor:
        return sum((p.double() - 0.5).square().sum() for p in (self.vector, self.matrix, self.tensor))  # type: ignore[return-value]


def train_toy(model: Toy, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        set_learning_rate(optimizer, 1 - step / 1000)
        model.zero_grad()
        model.loss().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "soap"])
def test_optimizers_minimise_and_resume_exactly(name: str, tmp_path: Path) -> None:
    config = TrainConfig(optimizer=name, learning_rate=0.05)  # type: ignore[arg-type]
    model = Toy()
    before = model.loss().item()
    optimizer = build_optimizer(model, config)
    train_toy(model, optimizer, 25)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "half")
    train_toy(model, optimizer, 25)
    assert model.loss().item() < 0.5 * before

    again = Toy()
    half = torch.load(tmp_path / "half", weights_only=True)
    again.load_state_dict(half["model"])
    optimizer = build_optimizer(again, config)
    optimizer.load_state_dict(half["optimizer"])
    train_toy(again, optimizer, 25)
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_only_weights_of_order_one_take_soap_by_default() -> None:
    names = ("nequip", "sevennet", "mace", "schnet", "physnet", "ani", "fine-tuned")
    assert [default_optimizer(name) for name in names] == ["soap"] * 3 + ["adamw"] * 4


def test_soap_does_not_depend_on_the_axes() -> None:
    """Turned parameters with turned gradients take the same way, turned; Adam's do not."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn = [torch.linalg.qr(normal(n, n))[0] for n in (4, 5)]
    start, gradients = normal(4, 5), [normal(4, 1) * normal(1, 5) + 0.1 * normal(4, 5) for _ in range(40)]

    def way(make: Any, *, turned: bool) -> Tensor:
        change = (lambda x: turn[0] @ x @ turn[1].T) if turned else (lambda x: x)
        parameter = nn.Parameter(change(start).clone())
        optimizer = make([parameter])
        for gradient in gradients:
            parameter.grad = change(gradient)
            optimizer.step()
        return parameter.detach() - change(start)

    for make, agree in ((SOAP, True), (torch.optim.Adam, False)):
        expected = turn[0] @ way(make, turned=False) @ turn[1].T
        assert torch.allclose(way(make, turned=True), expected, rtol=1e-6, atol=1e-9) == agree


def test_soap_of_several_shapes_is_soap_of_each() -> None:
    generator = torch.Generator().manual_seed(4)
    shapes = ((3, 4), (3, 4), (2, 3, 4), (5,), (1, 6), (130, 2))
    starts = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    together = [nn.Parameter(start.clone()) for start in starts]
    alone = [nn.Parameter(start.clone()) for start in starts]
    optimizers = [SOAP(together), *(SOAP([parameter]) for parameter in alone)]
    for _ in range(12):
        for left, right in zip(together, alone, strict=True):
            left.grad = torch.randn(left.shape, generator=generator, dtype=torch.float64)
            right.grad = left.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for left, right, start in zip(together, alone, starts, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
        assert not torch.equal(left, start)


@pytest.mark.parametrize("name", ["adamw", "soap"])
def test_only_matrices_decay(name: str) -> None:
    config = TrainConfig(optimizer=name, learning_rate=0.01, weight_decay=0.1)  # type: ignore[arg-type]
    model = Toy()
    optimizer = build_optimizer(model, config)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for _ in range(3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    factors = {k: (v / before[k]).flatten() for k, v in model.named_parameters()}
    assert torch.equal(factors["vector"], torch.ones_like(factors["vector"]))
    steps = 2 if name == "soap" else 3  # SOAP only looks at its first gradient
    for k in ("matrix", "tensor"):
        torch.testing.assert_close(factors[k], torch.full_like(factors[k], (1 - 0.01 * 0.1) ** steps))


def test_metrics_file_restores_and_appends(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", ("step", "loss"))
    file.restore([])
    file.append({"step": 1, "loss": 0.1})
    file.append({"step": 2, "loss": None})
    assert file.path.read_text() == "step,loss\n1,0.1\n2,\n"
    with open(file.path, "a") as damaged:
        damaged.write("3,0.")
    file.restore([{"step": 1, "loss": 0.1}])
    file.append({"step": 2, "loss": 0.3})
    assert file.path.read_text() == "step,loss\n1,0.1\n2,0.3\n"


class Malicious:
    def __reduce__(self) -> Any:
        return (Path("/nonexistent/ran").write_text, ("x",))


def test_checkpoints_run_no_code_and_say_when_they_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    io = SafeCheckpointIO()
    io.save_checkpoint({"a": torch.ones(2)}, path)
    assert torch.equal(io.load_checkpoint(path)["a"], torch.ones(2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"last\.ckpt: not a readable checkpoint"):
        io.load_checkpoint(path)
    torch.save({"a": Malicious()}, path)
    with pytest.raises(InputError, match=r"last\.ckpt: not a readable checkpoint"):
        io.load_checkpoint(path)
