"""MACE in the native engine and frozen, against autograd through plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.kernels.native import engine
from equipes.models import Potential, build
from equipes.models.mace import INTERACTIONS
from test_native import EXACT, SPECIES, make_graph, results, skip_what_is_not_built
from test_native_shapes import empty_graph

pytestmark = pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")

RESIDUAL = "RealAgnosticResidualInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
SMALL: dict[str, Any] = {
    "r_max": 3.0,
    "num_bessel": 5,
    "max_ell": 2,
    "hidden_irreps": "5x0e + 5x1o",
    "radial_MLP": [9, 7],
    "MLP_irreps": "4x0e",
    "avg_num_neighbors": 6.0,
    "atomic_energies": {"H": -3.0, "C": 5.0, "O": 0.5},
    "atomic_inter_scale": 1.7,
    "atomic_inter_shift": -0.3,
}
TWO_HEADS: dict[str, Any] = {
    "heads": ["other", "Default"],
    "atomic_energies": {"other": 7.0, "Default": SMALL["atomic_energies"]},
    "atomic_inter_scale": [3.0, 0.9],
    "atomic_inter_shift": [0.1, 0.2],
}
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "residual from the first layer": {"interaction_cls_first": RESIDUAL, "num_elements": 89},
    "scalars between layers": {"hidden_irreps": "5x0e", "max_ell": 3, "interaction_cls_first": RESIDUAL},
    "whole vectors": {"hidden_irreps": "16x0e", "max_ell": 1},
    "several vectors": {
        "hidden_irreps": "33x0e",
        "max_ell": 1,
        "correlation": 2,
        "interaction_cls_first": RESIDUAL,
    },
    "one channel": {"hidden_irreps": "1x0e + 1x1o"},
    "pseudovectors": {"hidden_irreps": "3x0e + 3x1o + 3x1e"},
    "pseudoscalars": {"hidden_irreps": "2x0o + 2x0e + 2x1o", "max_ell": 1},
    "hidden to l = 2": {
        "hidden_irreps": "3x0e + 3x1o + 3x2e",
        "correlation": 2,
        "interaction_cls_first": RESIDUAL,
    },
    "five bodies": {"max_ell": 1, "correlation": 4},
    "two bodies": {"correlation": 1},
    "one layer": {"num_interactions": 1},
    "three layers": {"num_interactions": 3, "correlation": [1, 3, 2], "hidden_irreps": "4x0e + 4x1o"},
    "l = 4": {"max_ell": 4, "correlation": 2, "hidden_irreps": "3x0e"},
    "no hidden radial layer": {"radial_MLP": []},
    "Agnesi": {"distance_transform": "Agnesi", "interaction_cls_first": RESIDUAL},
    "Soft": {"distance_transform": "Soft"},
    "repulsion": {"pair_repulsion": True, "distance_transform": "Agnesi"},
    "two heads": TWO_HEADS,
    "density": {"interaction_cls_first": DENSITY},
    "density after scalars": {"hidden_irreps": "17x0e", "interaction_cls": DENSITY_RESIDUAL},
    "density everywhere, everything": {
        "interaction_cls_first": DENSITY_RESIDUAL,
        "interaction_cls": DENSITY,
        "distance_transform": "Soft",
        "pair_repulsion": True,
        **TWO_HEADS,
    },
}
# Freezing takes longer than anything else here, above all for pairs of species: enough to see every part once.
FROZEN = [
    "residual from the first layer",
    "scalars between layers",
    "several vectors",
    "pseudovectors",
    "hidden to l = 2",
    "five bodies",
    "one layer",
    "three layers",
    "repulsion",
    "density",
    "density everywhere, everything",
]


def potential_of(options: dict[str, Any], dtype: str = "float64") -> Potential:
    skip_what_is_not_built((SMALL | options)["max_ell"])
    potential = build("mace", SPECIES, SMALL | options, dtype=dtype, seed=2).train()
    for name in ("atomic_energies", "scale", "shift"):
        potential.model.get_parameter(name).requires_grad_()
    return potential


@pytest.fixture(scope="module")
def graph() -> AtomGraph:
    return make_graph()


def compare(
    potential: Potential, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch, tolerance: float = EXACT
) -> None:
    assert engine.engine_for(potential.model) is not None
    found = results(potential, graph)
    monkeypatch.setenv("EQUIPES_KERNEL", "reference")
    expected = results(potential, graph)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = value.abs().max()
        assert size > 0 or not found[name].any(), name
        assert (found[name] - value).abs().max() <= tolerance * max(size, 1e-3), name


@pytest.mark.parametrize("name", MODELS)
def test_engine_like_reference(name: str, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(potential_of(MODELS[name]), graph, monkeypatch)


@pytest.mark.parametrize(
    ("name", "threads"),
    [("residual from the first layer", 1), ("whole vectors", 3), ("density after scalars", 2)],
)
def test_unusual_graphs(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Species that do not occur, atoms that nobody sees, edges beyond the cutoff, nothing at all."""
    from ase import Atoms

    pair = Atoms("CO", positions=[[0, 0, 0], [0, 0.2, 1.1]])
    graphs = {
        "two species": AtomGraph.from_atoms(pair, 3.0),
        "lone atoms": AtomGraph.batch([AtomGraph.from_atoms(Atoms(s), 3.0) for s in ("O", "O", "H")]),
        "far edges": make_graph(4.2),
    }
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for graph in graphs.values():
            with pytest.MonkeyPatch.context() as patch:
                compare(potential_of(MODELS[name]), graph, patch)
        monkeypatch.setenv("EQUIPES_KERNEL", "native")
        assert not any(value.any() for value in results(potential_of(MODELS[name]), empty_graph()).values())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name", ["base", "residual from the first layer", "several vectors", "density everywhere, everything"]
)
def test_threads(name: str, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        compare(potential_of(MODELS[name]), graph, monkeypatch)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["base", "density"])
def test_float32(name: str, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(potential_of(MODELS[name], "float32"), graph, monkeypatch, 2e-4)


@settings(max_examples=8, deadline=None)
@given(
    channels=st.integers(1, 20),
    hidden=st.sampled_from(["0e", "0e + 1o", "0e + 1o + 2e"]),
    max_ell=st.integers(0, 2),
    correlation=st.integers(1, 3),
    layers=st.integers(1, 3),
    first=st.sampled_from([*INTERACTIONS]),
    other=st.sampled_from([*INTERACTIONS]),
    transform=st.sampled_from(["None", "Agnesi", "Soft"]),
    threads=st.integers(1, 3),
)
def test_engine_of_any_shape(
    channels: int,
    hidden: str,
    max_ell: int,
    correlation: int,
    layers: int,
    first: str,
    other: str,
    transform: str,
    threads: int,
) -> None:
    options = {
        "hidden_irreps": " + ".join(f"{channels}x{irrep}" for irrep in hidden.split(" + ")),
        "max_ell": max_ell,
        "correlation": correlation,
        "num_interactions": layers,
        "distance_transform": transform,
        "interaction_cls_first": first,
        "interaction_cls": other,
    }
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pytest.MonkeyPatch.context() as patch:
            compare(potential_of(options), make_graph(), patch)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_is_the_model_to_the_error_of_the_splines(name: str, graph: AtomGraph) -> None:
    potential = potential_of(MODELS[name]).eval()
    found, expected = potential.freeze(tolerance=1e-8)(graph), potential(graph)
    for what in ("energies", "forces", "virial"):
        ours, theirs = getattr(found, what), getattr(expected, what)
        size = (theirs - theirs.mean()).abs().max() if what == "energies" else theirs.abs().max()
        assert (ours - theirs).abs().max() < 2e-6 * size, what


@pytest.mark.parametrize("name", ["base", "density everywhere, everything"])
def test_frozen_for_some_species(name: str) -> None:
    from ase import Atoms

    potential = potential_of(MODELS[name]).eval()
    atoms = Atoms("OCCO", positions=[[0, 0, 0], [1.3, 0, 0.2], [1.5, 1.2, 0.9], [0.1, 1.4, -0.8]])
    graph = AtomGraph.from_atoms(atoms, 3.0)
    found, expected = potential.freeze(["O", "C"], tolerance=1e-8)(graph), potential(graph)
    assert (found.forces - expected.forces).abs().max() < 2e-6 * expected.forces.abs().max()
    assert (found.energies - expected.energies).abs().max() < 1e-6


def test_frozen_file(tmp_path: Any, graph: AtomGraph) -> None:
    from equipes.models import load_frozen

    frozen = potential_of(MODELS["density"] | MODELS["two heads"]).eval().freeze(tolerance=1e-4)
    frozen.save(tmp_path / "frozen.safetensors")
    again = load_frozen(tmp_path / "frozen.safetensors")
    assert torch.equal(again(graph).forces, frozen(graph).forces)


def test_too_many_pairs_of_species_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipes import InputError
    from equipes.models import mace_blueprint

    monkeypatch.setattr(mace_blueprint, "MAX_TABLES", 1e4)
    with pytest.raises(InputError, match="differ from pair to pair"):
        potential_of(MODELS["Agnesi"]).eval().freeze(["H", "C"], tolerance=1e-3)
