"""The native engine's first layer by moments of the neighbourhoods, against autograd and against its messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.kernels.native import engine
from equipes.models import Potential, build
from test_native import EXACT, SPECIES, make_graph, results, skip_what_is_not_built
from test_native import MODELS as NEQUIP_MODELS
from test_native import SMALL as NEQUIP
from test_native_mace import MODELS as MACE_MODELS
from test_native_mace import SMALL as MACE

pytestmark = pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")

NEQUIPS = [
    "norms per species",
    "cutoffs per pair",
    "several vectors",
    "trainable roots",
    "embedding of its own width",
]
MACES = [
    "base",
    "residual from the first layer",
    "several vectors",
    "l = 4",
    "no hidden radial layer",
    "Agnesi",
    "density",
]


def force(monkeypatch: pytest.MonkeyPatch, way: int) -> None:
    """1: by moments; -1: by messages; 0: what is shorter."""
    make = engine.recipe_for

    def forced(model: Any) -> Any:
        recipe = make(model)
        assert recipe is not None
        recipe.description["moments"] = way
        return recipe

    monkeypatch.setattr(engine, "recipe_for", forced)
    engine._engines.clear()


def uses_moments(potential: Potential, graph: AtomGraph) -> bool:
    extension = native.module()
    assert extension is not None
    extension.profile(True)
    try:
        potential(graph)
        return bool(extension.profiled()["moments"][0] > 0)
    finally:
        extension.profile(False)


def model(kind: str, name: str) -> Potential:
    options = MACE | MACE_MODELS[name] if kind == "mace" else NEQUIP | NEQUIP_MODELS[name]
    if kind == "mace":
        skip_what_is_not_built(options["max_ell"])
    potential = build(kind, SPECIES, options, dtype="float64", seed=2).train()
    if kind == "mace":
        for parameter in ("atomic_energies", "scale", "shift"):
            potential.model.get_parameter(parameter).requires_grad_()
    return potential


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("kind", "name"), [("nequip", name) for name in NEQUIPS] + [("mace", name) for name in MACES]
)
def test_moments_give_what_autograd_gives(
    kind: str, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        potential, graph = model(kind, name), make_graph()
        force(monkeypatch, 1)
        assert uses_moments(potential, graph)
        found = results(potential, graph)
        if threads > 1:  # again, on as many threads: the same bits
            again = results(potential, graph)
            assert all(torch.equal(value, again[key]) for key, value in found.items())
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("EQUIPES_KERNEL", "reference")
    expected = results(potential, graph)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= EXACT * value.abs().max(), key


def test_the_shorter_way_is_taken() -> None:
    """Moments for one species with many neighbours, messages for several with few."""
    crystal = bulk("Si", cubic=True) * (2, 2, 2)
    molecule = Atoms("HCONF", positions=[[0, 0, 0], [1, 0, 0], [0, 1.1, 0], [0, 0, 1.2], [1, 1, 1]])
    options = {"r_max": 5.0, "max_ell": 2, "hidden_irreps": "32x0e", "radial_MLP": [64, 64]}
    for atoms, expected in ((crystal, True), (molecule, False)):
        species = sorted(set(atoms.get_chemical_symbols()))
        potential = build("mace", species, options).train()
        assert uses_moments(potential, AtomGraph.from_atoms(atoms, 5.0)) is expected
