"""The native engine and kernels against autograd through the reference kernel, in value and in parameter gradients."""

from __future__ import annotations

import copy
import gc
import importlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import o3
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.kernels.native import engine, generate
from equipes.models import Potential, build
from equipes.models.nequip import NequIP
from equipes.models.potential import Prediction
from equipes.models.sevennet import SevenNet

EXACT = 1e-12
SPECIES = ("H", "C", "O")

pytestmark = pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")

SMALL: dict[str, Any] = {
    "r_max": 3.0,
    "num_layers": 3,
    "l_max": 2,
    "num_features": 5,
    "num_bessels": 6,
    "radial_mlp_width": 12,
    "avg_num_neighbors": 6.0,
}
TRAINABLE = {"per_type_energy_scales_trainable": True, "per_type_energy_shifts_trainable": True}
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "scalars only": {"l_max": 0},
    "l_max 1": {"l_max": 1},
    "l_max 3": {"l_max": 3, "num_features": 3, "num_layers": 2},
    "l_max 4": {"l_max": 4, "num_features": [4, 2, 1, 1, 2], "num_layers": 2},
    "l_max 3 without parity": {"l_max": 3, "parity": False, "num_features": [5, 4, 3, 2]},
    "without parity": {"parity": False},
    "unequal multiplicities": {"num_features": [7, 4, 2]},
    "whole vectors": {"num_features": 16, "num_layers": 2},
    "several vectors": {"num_features": [48, 33, 16], "num_layers": 2},
    "one channel": {"num_features": 1},
    "one layer": {"num_layers": 1},
    "embedding of its own width": {"type_embed_num_features": 3},
    "energies per species": {
        "per_type_energy_scales": {"H": 0.7, "C": 1.9, "O": -1.2},
        "per_type_energy_shifts": {"H": -3.0, "C": 5.0, "O": 0.5},
        **TRAINABLE,
    },
    "norms per species": {"avg_num_neighbors": {"H": 2.0, "C": 9.0, "O": 5.0}},
    "cutoffs per pair": {"per_edge_type_cutoff": {"H": {"C": 2.1, "H": 1.4}, "O": 2.6}},
    "no hidden radial layer": {"radial_mlp_depth": 0, "bessel_trainable": True},
    "one hidden radial layer": {"radial_mlp_depth": 1, "radial_mlp_width": 7, "polynomial_cutoff_p": 4},
    "trainable roots": {"bessel_trainable": True, "per_edge_type_cutoff": {"C": 2.2}},
    "readout network": {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 9},
    "zbl": {"zbl": True, "zbl_polynomial_cutoff_p": 5, **TRAINABLE},
    "sevennet": {
        "architecture": "sevennet",
        "denominator": [2.0, 3.0, 1.5],
        "embedding_fan_in": 89,
        **TRAINABLE,
    },
    "sevennet with X-PLOR": {
        "architecture": "sevennet",
        "l_max": 3,
        "num_layers": 2,
        "num_features": [8, 3, 2, 4],
        "xplor_on": 2.1,
        "readout_width": 3,
    },
    "sevennet, one layer": {"architecture": "sevennet", "num_layers": 1, "radial_mlp_depth": 0},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_graph(cutoff: float = 3.0) -> AtomGraph:
    """Molecules, a skewed cell smaller than the cutoff, a lone atom, and atoms that nobody sees, in one batch."""
    random = np.random.default_rng(5)

    def some(n: int, size: float) -> Atoms:
        return Atoms(random.choice(SPECIES, n), positions=random.uniform(0, size, (n, 3)))

    crystal = some(4, 2.6)
    crystal.set_cell(np.eye(3) * 2.7 + random.normal(0, 0.2, (3, 3)))
    crystal.pbc = True
    sparse = some(5, 3.0)
    sparse.positions[3] += 50
    structures = [some(7, 3.5), crystal, Atoms("O"), sparse]
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])


def skip_what_is_not_built(degree: int) -> None:
    """A smaller build, as `sanitizers.sh` can make, has not all degrees that the sources have."""
    extension = native.module()
    if extension is not None and extension.max_l < degree <= generate.MAX_L:
        pytest.skip(f"this build has kernels for l up to {extension.max_l} only (EQUIPES_MAX_L)")


def potential_of(hyperparameters: dict[str, Any], dtype: str = "float64", seed: int = 2) -> Potential:
    skip_what_is_not_built(hyperparameters.get("l_max", 2))
    architecture = hyperparameters.get("architecture", "nequip")
    small = (
        SMALL if architecture == "nequip" else {k: v for k, v in SMALL.items() if k != "avg_num_neighbors"}
    )
    chosen = {k: v for k, v in (small | hyperparameters).items() if k != "architecture"}
    return build(architecture, SPECIES, chosen, dtype=dtype, seed=seed).train()


def loss_of(prediction: Prediction) -> Tensor:
    """Energy, forces and stress, each with weights that differ from element to element, and not linear."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    assert prediction.forces is not None and prediction.virial is not None
    for value in (prediction.energies, prediction.energy, prediction.forces, prediction.virial):
        weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        total = total + (weight * value).sum() + 0.3 * (weight * value**2).sum()
    return total


def results(potential: Potential, graph: AtomGraph) -> dict[str, Tensor]:
    """Energies, forces, virial, and the gradient of the loss by every parameter."""
    prediction = potential(graph)
    parameters = {n: p for n, p in potential.model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        loss_of(prediction), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    assert prediction.forces is not None and prediction.virial is not None
    values = {"energies": prediction.energies, "forces": prediction.forces, "virial": prediction.virial}
    return {k: v.detach() for k, v in values.items()} | dict(zip(parameters, gradients, strict=True))


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Of each result, relative to its largest element; what is zero must be zero."""
    assert ours.keys() == theirs.keys()
    found = {}
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        scale = float(expected.abs().max())
        found[name] = float((ours[name] - expected).abs().max()) / (scale if scale > 0 else 1e-300)
    return found


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Results of a potential with one kernel; sees to it that the native ones are the engine's."""

    def compute(name: str, potential: Potential, graph: AtomGraph) -> dict[str, Tensor]:
        calls = []
        run = engine.Engine._forward
        monkeypatch.setenv("EQUIPES_KERNEL", name)
        monkeypatch.setattr(engine.Engine, "_forward", lambda *args: calls.append(1) or run(*args))
        found = results(potential, graph)
        monkeypatch.setattr(engine.Engine, "_forward", run)
        assert bool(calls) == (name == "native")
        return found

    return compute


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_engine_is_exact(name: str, threads: int, by_kernel: Any) -> None:
    torch.set_num_threads(threads)
    potential, graph = potential_of(MODELS[name]), make_graph()
    expected = by_kernel("reference", potential, graph)
    worst = differences(by_kernel("native", potential, graph), expected)
    assert max(worst.values()) < EXACT, worst
    # Nothing is compared with nothing: gradients that vanish belong to features that reach no energy.
    assert sum(bool(value.any()) for value in expected.values()) > 0.8 * len(expected)


def test_engine_in_float32(by_kernel: Any) -> None:
    graph = make_graph()
    single, double = potential_of({"num_features": 16}, "float32"), potential_of({"num_features": 16})
    ours = by_kernel("native", single, graph)
    theirs = by_kernel("reference", single, graph)
    exact = by_kernel("reference", double, graph)
    assert all(value.dtype == (torch.float64 if n in ("energies", "forces", "virial") else torch.float32)
               for n, value in ours.items())  # fmt: skip
    mine, reference = differences(ours, exact), differences(theirs, exact)
    assert max(mine.values()) < 3 * max(reference.values()) < 1e-4


@pytest.mark.parametrize("name", ["lone atoms", "two atoms", "edges beyond the cutoff", "one atom, no cell"])
def test_engine_on_unusual_graphs(name: str, by_kernel: Any) -> None:
    far = Atoms("HCO", positions=np.eye(3) * 40)
    pair = Atoms("HO", positions=[[0, 0, 0], [0, 0.1, 1.0]])
    graphs = {
        "lone atoms": AtomGraph.batch([AtomGraph.from_atoms(far, 3.0)] * 2),
        "two atoms": AtomGraph.from_atoms(pair, 3.0),
        "edges beyond the cutoff": make_graph(4.2),
        "one atom, no cell": AtomGraph.from_atoms(Atoms("C"), 3.0),
    }
    potential = potential_of(TRAINABLE)
    expected = by_kernel("reference", potential, graphs[name])
    worst = differences(by_kernel("native", potential, graphs[name]), expected)
    assert max(worst.values()) < EXACT, worst


def test_gradient_is_the_change_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences, so that the reference's autograd is not the only witness."""
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential, graph = potential_of({"zbl": True, "bessel_trainable": True, **TRAINABLE}), make_graph()
    gradients = results(potential, graph)
    generator = torch.Generator().manual_seed(3)
    step = 1e-5
    for name, parameter in potential.model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for shift in (-2, -1, 1, 2):
            with torch.no_grad():
                parameter += shift * step * direction
                losses.append(float(loss_of(potential(graph))))
                parameter -= shift * step * direction
        numerical = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
        analytical = float((gradients[name] * direction).sum())
        assert numerical == pytest.approx(analytical, rel=1e-6, abs=1e-6 * abs(losses[0])), name


@pytest.mark.parametrize("forces", [True, False])
def test_energy_loss_alone(forces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    potential, graph = potential_of({}), make_graph()
    found = []
    for kernel in ("reference", "native"):
        monkeypatch.setenv("EQUIPES_KERNEL", kernel)
        loss = (potential(graph, forces=forces, stress=False).energy ** 2).sum()
        trainable = [p for p in potential.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trainable)
        found.append(dict(enumerate(gradients)))
    assert max(differences(found[1], found[0]).values()) < EXACT


def test_same_thread_count_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential, graph = potential_of({"num_features": 16}, "float32"), make_graph()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        first = results(potential, graph)
        for _ in range(3):
            again = results(potential, graph)
            assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("instruction_set", native.usable_instruction_sets())
def test_every_instruction_set(instruction_set: str, by_kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = importlib.import_module(f"equipes.kernels.native._{instruction_set}")
    assert extension.instruction_set == instruction_set
    monkeypatch.setattr(native, "module", lambda: extension)
    for hyperparameters in (
        {"l_max": 3, "num_features": [9, 4, 3, 2], "num_layers": 2},
        {"num_features": 16},
    ):
        potential, graph = potential_of(hyperparameters), make_graph()
        expected = by_kernel("reference", potential, graph)
        assert max(differences(by_kernel("native", potential, graph), expected).values()) < EXACT


def test_choice_of_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = native.usable_instruction_sets()
    monkeypatch.delenv("EQUIPES_INSTRUCTION_SET", raising=False)
    assert native.instruction_set() == usable[0]
    monkeypatch.setenv("EQUIPES_INSTRUCTION_SET", usable[-1])
    assert native.instruction_set() == usable[-1]
    monkeypatch.setenv("EQUIPES_INSTRUCTION_SET", "mmx")
    with pytest.raises(InputError, match="EQUIPES_INSTRUCTION_SET=mmx does not run here; set it to one of"):
        native.instruction_set()


def test_backward_twice_and_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential, graph = potential_of({}), make_graph()
    other = AtomGraph.from_atoms(Atoms("HCOH", positions=np.eye(4, 3) * 1.2), 3.0)
    parameters = [p for p in potential.model.parameters() if p.requires_grad]
    alone = [torch.autograd.grad(loss_of(potential(g)), parameters) for g in (graph, other)]
    losses = [loss_of(potential(g)) for g in (graph, other)]
    for _ in range(2):
        for index in (0, 1):  # while the state of the other one is alive
            again = torch.autograd.grad(losses[index], parameters, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(again, alone[index], strict=True))


def test_changed_parameters_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential, graph = potential_of({}), make_graph()
    loss = loss_of(potential(graph))
    with torch.no_grad():
        potential.model.embedding += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_engine_follows_the_model(by_kernel: Any) -> None:
    """Whatever becomes of the parameters: new values, new tensors, another dtype, a copy."""
    graph = make_graph()
    potential, other = potential_of({}), potential_of({}, seed=8)
    before = by_kernel("native", potential, graph)
    clone = copy.deepcopy(potential)
    potential.model.load_state_dict(other.model.state_dict())
    expected = by_kernel("reference", other, graph)
    assert max(differences(by_kernel("native", potential, graph), expected).values()) < EXACT
    assert max(differences(by_kernel("native", clone, graph), before).values()) == 0
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.1)
    changed = by_kernel("native", other, graph)
    assert max(differences(changed, by_kernel("reference", other, graph)).values()) < EXACT
    single = other.to(torch.float32)
    assert max(differences(by_kernel("native", single, graph), changed).values()) < 1e-3


def test_replaced_parameters(by_kernel: Any) -> None:
    graph, potential = make_graph(), potential_of({})
    by_kernel("native", potential, graph)
    weights = potential.model.layers[1].linear_2.weights
    for name in list(weights):
        weights[name] = torch.nn.Parameter(weights[name].detach().t().contiguous().t() * 2)
    expected = by_kernel("reference", potential, graph)
    assert max(differences(by_kernel("native", potential, graph), expected).values()) < EXACT


def test_frozen_parameters_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential, graph = potential_of({}), make_graph()
    expected = results(potential, graph)
    frozen = potential.model.layers[0].radial_network.weights[1]
    frozen.requires_grad_(False)
    loss_of(potential(graph)).backward()
    assert frozen.grad is None
    embedding = potential.model.embedding
    assert embedding.grad is not None and torch.equal(embedding.grad, expected["embedding"])


def test_eval_mode_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    prediction = potential_of({}).eval()(make_graph())
    assert not prediction.energy.requires_grad
    assert prediction.forces is not None and not prediction.forces.requires_grad


def test_engine_dies_with_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    potential = potential_of({})
    potential(make_graph())
    engines = weakref.ref(engine._engines[potential.model])
    del potential
    gc.collect()
    assert engines() is None


def test_threads_of_python_share_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    torch.set_num_threads(1)
    potential = potential_of({}).eval()
    graphs = [AtomGraph.from_atoms(Atoms("HCO", positions=np.eye(3) * (1 + 0.1 * k)), 3.0) for k in range(4)]
    expected = [potential(graph).forces for graph in graphs]
    found: dict[int, list[Tensor]] = {k: [] for k in range(4)}

    def work(k: int) -> None:
        for _ in range(20):
            found[k].append(potential(graphs[k]).forces)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(forces, expected[k]) for k in range(4) for forces in found[k])


def test_models_that_the_engine_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(NequIP):
        """May compute anything."""

    assert engine.engine_for(NequIP(SPECIES, **SMALL)) is not None
    assert engine.engine_for(Changed(SPECIES, **SMALL)) is None
    assert engine.engine_for(NequIP(SPECIES, **(SMALL | {"l_max": 5, "num_features": 1}))) is None
    assert engine.engine_for(NequIP(SPECIES, **SMALL).to(torch.bfloat16)) is None
    assert engine.engine_for(torch.nn.Linear(2, 2)) is None
    assert engine.engine_for(SevenNet(SPECIES)) is not None
    assert engine.engine_for(SevenNet(SPECIES, normalize_harmonics=False)) is None
    assert engine.engine_for(SevenNet(SPECIES, modalities=("a", "b"), modality="a")) is None


def test_l_max_beyond_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference does it, without a word."""
    potential = potential_of({"l_max": 5, "num_features": 1, "num_layers": 2})
    graph = make_graph()
    forces = []
    for kernel in ("native", "reference"):
        monkeypatch.setenv("EQUIPES_KERNEL", kernel)
        forces.append(potential.eval()(graph).forces)
    assert torch.equal(*forces)


def test_couplings_are_up_to_date() -> None:
    assert generate.TARGET.read_text(encoding="utf-8") == generate.header(), "run generate.py again"


def test_couplings_are_those_of_e3nn() -> None:
    text = generate.TARGET.read_text(encoding="utf-8")
    count = 0
    for part in text.split("struct Couplings<")[1:]:
        l1, l2, l3 = (int(l) for l in part.split(">")[0].split(","))
        tensor = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64)
        for line in part.split("};")[0].split("terms[] = {")[1].split("}"):
            if "{" in line:
                m1, m2, m3, value = line.split("{")[-1].split(",")
                tensor[int(m1), int(m2), int(m3)] = float(value)
        expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * (2 * l3 + 1) ** 0.5
        assert (tensor - expected).abs().max() < 1e-14
        count += 1
    degrees = range(generate.MAX_L + 1)
    assert count == sum(abs(a - b) <= c <= a + b for a in degrees for b in degrees for c in degrees)


def test_profile_counts_time_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    extension = native.module()
    assert extension is not None
    potential, graph = potential_of({"num_features": 16}), make_graph()
    extension.profile(True)
    results(potential, graph)
    profiled = extension.profiled()
    extension.profile(False)
    assert all(profiled[name][0] > 0 for name in ("messages, forward", "messages, dual reverse", "gate"))
    assert profiled["linear"][1] > 0
    results(potential, graph)
    assert not any(extension.profiled()[name][0] for name in profiled)
