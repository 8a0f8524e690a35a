"""Shapes that nobody thought of: random models on random batches, the engine against the reference kernel.

`pytest tests/test_native_shapes.py --hypothesis-profile=thorough` looks at thirty times as many.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from equipes.graph import AtomGraph
from equipes.irreps import Irrep, Irreps
from equipes.kernels import KERNELS, MessagePassingForm, message_passing, native
from equipes.kernels.native import engine
from equipes.models import Potential, build
from test_native import SPECIES, loss_of, make_graph

EXACT = 1e-12
CUTOFF = 3.0
SETS = native.usable_instruction_sets()

pytestmark = pytest.mark.skipif(not SETS, reason="the native code was not built")

_MODULES = {name: importlib.import_module(f"equipes.kernels.native._{name}") for name in SETS}
_HIGHEST_L = min((module.max_l for module in _MODULES.values()), default=0)
# One, a few, around the widths of vectors (2, 4, 8) and of tiles of two (up to 16), and past several of them.
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 33)


@dataclass(frozen=True)
class Run:
    """How the native code is run."""

    instruction_set: str
    threads: int


runs = st.builds(Run, st.sampled_from(SETS or ("none",)), st.sampled_from([1, 2, 3]))


@contextmanager
def kernel(run: Run | None) -> Iterator[None]:
    """The engine of one instruction set with so many threads, or the reference kernel."""
    module, threads, variable = native.module, torch.get_num_threads(), os.environ.get("EQUIPES_KERNEL")
    try:
        os.environ["EQUIPES_KERNEL"] = "native" if run else "reference"
        if run:
            native.module = lambda: _MODULES[run.instruction_set]
            torch.set_num_threads(run.threads)
        yield
    finally:
        native.module = module
        torch.set_num_threads(threads)
        os.environ.pop("EQUIPES_KERNEL")
        if variable is not None:
            os.environ["EQUIPES_KERNEL"] = variable


# ---- Batches


def empty_graph() -> AtomGraph:
    """No structure at all; from no file comes such a graph, but a model may be asked."""
    whole = {
        name: torch.zeros(0, dtype=torch.int64) for name in ("numbers", "structure", "receiver", "sender")
    }
    return AtomGraph(
        positions=torch.zeros(0, 3, dtype=torch.float64),
        cell=torch.zeros(0, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(0, 3, dtype=torch.bool),
        shift=torch.zeros(0, 3, dtype=torch.float64),
        row_pointer=torch.zeros(1, dtype=torch.int64),
        sender_order=torch.zeros(0, dtype=torch.int64),
        cutoff=CUTOFF,
        **whole,
    )


def molecule(random: np.random.Generator, n: int) -> Atoms:
    return Atoms(random.choice(SPECIES, n), positions=_apart(random, n, 1.6 * n ** (1 / 3)))


def with_isolated_atoms(random: np.random.Generator, n: int) -> Atoms:
    atoms = molecule(random, n)
    for alone in {0, n // 2, n - 1}:
        atoms.positions[alone] += 40.0 * (1 + alone)
    return atoms


def lone_atoms(random: np.random.Generator, n: int) -> Atoms:
    return Atoms(random.choice(SPECIES, n), positions=50.0 * np.arange(n)[:, None] * [1, 0, 0])


def one_atom_cell(random: np.random.Generator, n: int) -> Atoms:
    cell = np.eye(3) * random.uniform(1.0, 1.7, 3) + random.normal(0, 0.15, (3, 3))
    return Atoms(random.choice(SPECIES, 1), cell=cell, pbc=True)


def small_cell(random: np.random.Generator, n: int) -> Atoms:
    size = 1.7 * n ** (1 / 3)
    atoms = Atoms(random.choice(SPECIES, n), positions=_apart(random, n, size))
    atoms.set_cell(np.eye(3) * (size + 0.5) + random.normal(0, 0.15, (3, 3)))
    atoms.pbc = (True, bool(random.integers(2)), bool(random.integers(2)))
    return atoms


def _apart(random: np.random.Generator, n: int, size: float) -> np.ndarray:
    """Points in a box that are not closer than 0.6 Å, where repulsion and the harmonics lose no digits."""
    points: list[np.ndarray] = []
    while len(points) < n:
        new = random.uniform(0, size, 3)
        if all(np.linalg.norm(new - point) > 0.6 for point in points):
            points.append(new)
    return np.array(points)


KINDS = {f.__name__: f for f in (molecule, with_isolated_atoms, lone_atoms, one_atom_cell, small_cell)}


@st.composite
def graphs(draw: st.DrawFn) -> AtomGraph:
    count = draw(st.sampled_from([2, 3, 1, 4, 0]), label="structures")
    kinds = [draw(st.sampled_from(list(KINDS)), label="kind") for _ in range(count)]
    random = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
    sizes = [draw(st.sampled_from([4, 1, 2, 3, 5, 7, 9]), label="atoms") for _ in kinds]
    structures = [KINDS[kind](random, n) for kind, n in zip(kinds, sizes, strict=True)]
    if not structures:
        return empty_graph()
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, CUTOFF) for atoms in structures])


# ---- The whole model


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A NequIP or a SevenNet, unequal multiplicities among them; high degrees with few channels."""
    l_max = draw(st.integers(0, _HIGHEST_L), label="l_max")
    channels = st.sampled_from(CHANNELS if l_max < 3 else CHANNELS[:4])
    both = {
        "r_max": CUTOFF,
        "l_max": l_max,
        "num_layers": draw(st.integers(1, 3 if l_max < 3 else 2), label="layers"),
        "num_features": [draw(channels, label="channels") for _ in range(l_max + 1)],
        "num_bessels": draw(st.integers(1, 9), label="bessels"),
        "bessel_trainable": draw(st.booleans(), label="trainable"),
        "polynomial_cutoff_p": draw(st.integers(2, 7), label="p"),
        "radial_mlp_depth": draw(st.integers(0, 2), label="depth"),
        "radial_mlp_width": draw(st.integers(1, 20), label="width"),
        "per_type_energy_scales": {"H": 0.7, "C": 1.9, "O": -1.2},
        "per_type_energy_shifts": {"H": -3.0, "C": 5.0, "O": 0.5},
        "per_type_energy_scales_trainable": draw(st.booleans()),
        "per_type_energy_shifts_trainable": draw(st.booleans()),
    }
    if draw(st.sampled_from([False, False, True]), label="sevennet"):
        return both | {
            "architecture": "sevennet",
            "xplor_on": draw(st.none() | st.floats(0.5, 2.9), label="on"),
            "readout_width": draw(st.none() | st.integers(1, 17), label="readout width"),
            "denominator": [draw(st.floats(1.0, 9.0)) for _ in range(both["num_layers"])],
            "embedding_fan_in": draw(st.none() | st.just(89)),
        }
    return both | {
        "architecture": "nequip",
        "parity": draw(st.booleans(), label="parity"),
        "type_embed_num_features": draw(st.none() | st.integers(1, 9), label="embedding"),
        "readout_mlp_hidden_layers_depth": draw(st.integers(0, 2), label="readout"),
        "readout_mlp_hidden_layers_width": draw(st.integers(1, 17), label="readout width"),
        "avg_num_neighbors": draw(st.sampled_from([1.0, {"H": 2.0, "C": 9.0, "O": 5.0}])),
        "per_edge_type_cutoff": draw(st.none() | st.just({"H": {"C": 2.1, "H": 1.4}, "O": 2.6})),
        "zbl": draw(st.booleans(), label="zbl"),
    }


def results(potential: Potential, graph: AtomGraph) -> dict[str, Tensor]:
    """Energies, forces, virial, and the gradient of a loss of them by every parameter."""
    prediction = potential(graph)
    names = [name for name, p in potential.model.named_parameters() if p.requires_grad]
    parameters = [potential.model.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(
        loss_of(prediction), parameters, allow_unused=True, materialize_grads=True
    )
    assert prediction.forces is not None and prediction.virial is not None
    values = {"energies": prediction.energies, "forces": prediction.forces, "virial": prediction.virial}
    return {k: v.detach() for k, v in values.items()} | dict(zip(names, gradients, strict=True))


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], usual: dict[str, float]) -> None:
    """Each result to 1e-12 of its size; where symmetry makes it vanish, of the size that it usually has."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        assert expected.isfinite().all() and ours[name].isfinite().all(), name
        scale = max(float(expected.abs().max()), usual[name])
        deviation = float((ours[name] - expected).abs().max())
        assert deviation <= EXACT * scale, f"{name}: {deviation:g} of {scale:g}"


@settings(max_examples=10 * settings().max_examples)
@given(hyperparameters=models(), graph=graphs(), run=runs, seed=st.integers(0, 2**16))
def test_engine_is_exact_for_all_shapes(
    hyperparameters: dict[str, Any], graph: AtomGraph, run: Run, seed: int
) -> None:
    architecture, own = hyperparameters["architecture"], dict(hyperparameters)
    del own["architecture"]
    potential = build(architecture, SPECIES, own, dtype="float64", seed=seed).train()
    with kernel(None):
        expected = results(potential, graph)
        usual = results(potential, make_graph(CUTOFF))
    with kernel(run):
        assert isinstance(engine.engine_for(potential.model), engine.Engine)
        found = results(potential, graph)
        again = results(potential, graph)
    event(f"{run.instruction_set}, {run.threads} threads, {'no' if graph.n_edges == 0 else 'some'} edges")
    compare(found, expected, {name: float(value.abs().max()) for name, value in usual.items()})
    assert all(torch.equal(again[name], value) for name, value in found.items())


# ---- The message passing alone


@st.composite
def forms(draw: st.DrawFn) -> MessagePassingForm:
    l_max = draw(st.integers(0, min(_HIGHEST_L, 3)), label="l_max")
    kinds = [Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1)]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True), label="input")
    wanted = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4, unique=True), label="wanted")
    channels = st.sampled_from(CHANNELS[:9])
    irreps_in = Irreps((draw(channels, label="channels"), irrep) for irrep in sorted(chosen))
    form = MessagePassingForm(irreps_in, l_max, wanted)
    assume(form.paths)  # without any there is nothing to differentiate
    return form


def operands(form: MessagePassingForm, graph: AtomGraph, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (graph.n_atoms, form.irreps_in.dim),
        (graph.n_edges, (form.l_max + 1) ** 2),
        (graph.n_edges, form.n_weights),
    )
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def derivatives(form: MessagePassingForm, graph: AtomGraph, seed: int) -> dict[str, Tensor]:
    """Messages, their derivatives in a direction, and the derivatives of these."""
    inputs = operands(form, graph, seed)
    messages = message_passing(form, *inputs, graph)
    generator = torch.Generator().manual_seed(seed + 1)
    direction = torch.randn(messages.shape, generator=generator, dtype=torch.float64)
    first = torch.autograd.grad((direction * messages).sum(), inputs, create_graph=True)
    total = sum(((value**2).sum() for value in first), torch.zeros((), dtype=torch.float64))
    second = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return {"messages": messages.detach()} | {
        f"{order} by {argument}": value.detach()
        for order, values in (("first", first), ("second", second))
        for argument, value in zip("xYw", values, strict=True)
    }


@settings(max_examples=10 * settings().max_examples)
@given(form=forms(), graph=graphs(), run=runs, seed=st.integers(0, 2**16))
def test_message_passing_is_exact_for_all_shapes(
    form: MessagePassingForm, graph: AtomGraph, run: Run, seed: int
) -> None:
    assert "native" in KERNELS
    with kernel(None):
        expected = derivatives(form, graph, seed)
    with kernel(run):
        found = derivatives(form, graph, seed)
    # Numbers drawn at random have no symmetry: what vanishes, vanishes exactly.
    compare(found, expected, dict.fromkeys(expected, 0.0))
