"""Graphs against a brute-force search, their bookkeeping, their batches, and the input they refuse."""

from __future__ import annotations

import itertools
from dataclasses import fields

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from equipes.errors import InputError
from equipes.graph import AtomGraph
from structures import KINDS, ensembles, random_structure, seeds


def brute_force(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    """(receiver, sender, shift) of every pair closer than the cutoff, by looking at far more images than can matter."""
    cell, positions = atoms.cell.array, atoms.positions
    # An atom may lie several cells outside its own, so the images needed depend on how far apart atoms are listed.
    reach = cutoff + np.linalg.norm(np.ptp(positions, axis=0))
    heights = np.linalg.norm(np.linalg.pinv(cell), axis=0)
    ranges = [
        range(-int(np.ceil(reach * h)) - 1, int(np.ceil(reach * h)) + 2) if periodic else range(1)
        for periodic, h in zip(atoms.pbc, heights, strict=True)
    ]
    shifts = np.array(list(itertools.product(*ranges)))
    found = set()
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        lengths = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
        same_atom = (i == j) & ~shifts.any(axis=1)
        found |= {(i, j, *map(int, shift)) for shift in shifts[(lengths < cutoff) & ~same_atom]}
    return found


def edges(graph: AtomGraph) -> list[tuple[int, ...]]:
    return [
        (i, j, *map(int, shift))
        for i, j, shift in zip(
            graph.receiver.tolist(), graph.sender.tolist(), graph.shift.tolist(), strict=True
        )
    ]


def check(graph: AtomGraph) -> None:
    """What every graph promises, single or batch."""
    n, e = graph.n_atoms, graph.n_edges
    assert graph.positions.dtype == graph.cell.dtype == graph.shift.dtype == torch.float64
    assert {graph.numbers.dtype, graph.structure.dtype, graph.receiver.dtype, graph.sender.dtype} == {
        torch.int64
    }
    assert graph.row_pointer.shape == (n + 1,) and graph.sender_order.shape == (e,)
    assert (graph.receiver.diff() >= 0).all() and (graph.structure.diff() >= 0).all()
    assert torch.equal(graph.row_pointer.diff(), torch.bincount(graph.receiver, minlength=n))
    assert graph.row_pointer[0] == 0 and graph.row_pointer[-1] == e
    assert (graph.sender[graph.sender_order].diff() >= 0).all()
    assert torch.equal(graph.sender_order.sort().values, torch.arange(e))
    assert torch.equal(graph.structure[graph.sender], graph.structure[graph.receiver])
    assert torch.equal(graph.shift, graph.shift.round())
    lengths = graph.edge_vectors().norm(dim=1)
    assert (lengths < graph.cutoff).all() and (lengths > 0).all()


@given(ensemble=ensembles(max_atoms=6), cutoff=st.floats(1.0, 6.0))
def test_edges_are_those_of_a_brute_force_search(ensemble: list[Atoms], cutoff: float) -> None:
    for atoms in ensemble:
        graph = AtomGraph.from_atoms(atoms, cutoff)
        check(graph)
        found = edges(graph)
        assert len(set(found)) == len(found)
        assert set(found) == brute_force(atoms, cutoff), atoms.info["kind"]
        # Every edge has its reverse.
        assert set(found) == {(j, i, -a, -b, -c) for i, j, a, b, c in found}


@given(seed=seeds)
def test_atoms_listed_outside_their_cell(seed: int) -> None:
    """The same neighbours at the same vectors; only the shifts know that an atom is listed elsewhere."""
    rng = np.random.default_rng(seed)
    atoms = random_structure("crystal", 4, rng)
    images = rng.integers(-4, 5, (4, 3))
    away = atoms.copy()
    away.positions += images @ atoms.cell.array
    first, second = AtomGraph.from_atoms(atoms, 4.0), AtomGraph.from_atoms(away, 4.0)
    check(second)
    assert set(edges(second)) == brute_force(away, 4.0)
    moved = {(i, j, *(shift - images[j] + images[i])) for i, j, *shift in edges(first)}
    assert set(edges(second)) == moved


def test_one_atom_in_a_small_box() -> None:
    graph = AtomGraph.from_atoms(Atoms("Cu", cell=[2.0, 2.0, 2.0], pbc=True), 4.1)
    check(graph)
    inside = [s for s in itertools.product(range(-3, 4), repeat=3) if 0 < 2 * np.linalg.norm(s) < 4.1]
    assert graph.n_edges == len(inside) == 32
    assert (graph.sender == 0).all()


def test_very_flat_cell() -> None:
    """A cell whose vectors are long but nearly parallel needs many images."""
    cell = np.array([[3.0, 0.0, 0.0], [14.8, 1.5, 0.0], [0.4, 0.2, 6.0]])
    atoms = Atoms("CO", positions=[[0, 0, 0], [1.0, 0.4, 2.0]], cell=cell, pbc=True)
    assert set(edges(AtomGraph.from_atoms(atoms, 3.5))) == brute_force(atoms, 3.5)


def test_left_handed_cell() -> None:
    atoms = random_structure("crystal", 3, np.random.default_rng(2))
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    assert set(edges(AtomGraph.from_atoms(atoms, 4.0))) == brute_force(atoms, 4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_edge_vectors_under_other_positions_and_cells(kind: str) -> None:
    """Homogeneous strain of positions and cell strains every edge, images included."""
    atoms = random_structure(kind, 4, np.random.default_rng(1))
    graph = AtomGraph.from_atoms(atoms, 3.5)
    strain = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(3, 3, dtype=torch.float64)
    strained = graph.edge_vectors(graph.positions @ strain, graph.cell @ strain)
    torch.testing.assert_close(strained, graph.edge_vectors() @ strain, rtol=0, atol=1e-13)
    expected = [
        atoms.positions[j] - atoms.positions[i] + np.array(s) @ atoms.cell.array for i, j, *s in edges(graph)
    ]
    torch.testing.assert_close(graph.edge_vectors(), torch.tensor(np.array(expected)), rtol=0, atol=1e-13)


def test_isolated_atoms_have_no_edges() -> None:
    graph = AtomGraph.from_atoms(Atoms("HOH", positions=[[0, 0, 0], [50, 0, 0], [50, 1.0, 0]]), 5.0)
    check(graph)
    assert edges(graph) == [(1, 2, 0, 0, 0), (2, 1, 0, 0, 0)]
    assert graph.row_pointer.tolist() == [0, 0, 1, 2]
    alone = AtomGraph.from_atoms(Atoms("H"), 5.0)
    check(alone)
    assert alone.n_edges == 0
    assert alone.edge_vectors().shape == (0, 3)


def test_a_pair_exactly_at_the_cutoff_is_continuous() -> None:
    """Whether or not an edge of the cutoff's length is listed, one shorter by a hair is and one longer is not."""
    counts = [
        AtomGraph.from_atoms(Atoms("H2", positions=[[0, 0, 0], [d, 0, 0]]), 3.0).n_edges
        for d in (3 - 1e-9, 3 + 1e-9)
    ]
    assert counts == [2, 0]


def test_batch_is_the_graphs_side_by_side() -> None:
    rng = np.random.default_rng(5)
    structures = [random_structure(kind, 3, rng) for kind in KINDS]
    structures.insert(0, Atoms("H"))
    structures.insert(3, Atoms("O"))
    structures.append(Atoms("CH", positions=[[0, 0, 0], [80, 0, 0]]))
    graphs = [AtomGraph.from_atoms(atoms, 3.5) for atoms in structures]
    batch = AtomGraph.batch(graphs)
    check(batch)
    assert batch.n_structures == len(structures)
    assert batch.atoms_per_structure.tolist() == [len(atoms) for atoms in structures]
    assert batch.n_edges == sum(graph.n_edges for graph in graphs) > 0
    first_atom, first_edge = 0, 0
    for index, graph in enumerate(graphs):
        atoms, row = (
            slice(first_atom, first_atom + graph.n_atoms),
            slice(first_edge, first_edge + graph.n_edges),
        )
        assert (batch.structure[atoms] == index).all()
        for name in ("positions", "numbers"):
            assert torch.equal(getattr(batch, name)[atoms], getattr(graph, name))
        assert torch.equal(batch.cell[index], graph.cell[0]) and torch.equal(batch.pbc[index], graph.pbc[0])
        assert torch.equal(batch.receiver[row] - first_atom, graph.receiver)
        assert torch.equal(batch.sender[row] - first_atom, graph.sender)
        assert torch.equal(batch.edge_vectors()[row], graph.edge_vectors())
        first_atom, first_edge = atoms.stop, row.stop


def test_batches_of_batches() -> None:
    rng = np.random.default_rng(6)
    graphs = [AtomGraph.from_atoms(random_structure(kind, 3, rng), 3.5) for kind in KINDS]
    nested = AtomGraph.batch([AtomGraph.batch(graphs[:2]), graphs[2], AtomGraph.batch(graphs[3:])])
    flat = AtomGraph.batch(graphs)
    for field in fields(AtomGraph):
        left, right = getattr(nested, field.name), getattr(flat, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_equal_input_gives_equal_graphs() -> None:
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    first, second = (AtomGraph.from_atoms(atoms, 6.0) for _ in range(2))
    for field in fields(AtomGraph):
        left, right = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    order = list(zip(first.receiver.tolist(), first.sender.tolist(), first.shift.tolist(), strict=True))
    assert order == sorted(order)


def test_graph_keeps_its_own_copy() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [1, 0, 0]])
    graph = AtomGraph.from_atoms(atoms, 3.0)
    atoms.positions += 5
    assert graph.positions[0].tolist() == [0, 0, 0]


def test_to_device() -> None:
    graph = AtomGraph.from_atoms(Atoms("H2", positions=[[0, 0, 0], [1, 0, 0]]), 3.0)
    moved = graph.to("meta")
    assert moved.positions.device.type == moved.sender_order.device.type == "meta"
    assert moved.cutoff == 3.0


H2 = Atoms("H2", positions=[[0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_cutoff(cutoff: float) -> None:
    with pytest.raises(InputError, match="cutoff must be a positive length"):
        AtomGraph.from_atoms(H2, cutoff)


def test_no_atoms() -> None:
    with pytest.raises(InputError, match="no atoms"):
        AtomGraph.from_atoms(Atoms(), 3.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_position_not_finite(bad: float) -> None:
    atoms = Atoms("HO", positions=[[0, 0, 0], [1, bad, 0]])
    with pytest.raises(InputError, match=r"atom 1 \(O\).*not finite"):
        AtomGraph.from_atoms(atoms, 3.0)


def test_cell_not_finite() -> None:
    atoms = H2.copy()
    atoms.set_cell(np.diag([4.0, np.nan, 4.0]))
    with pytest.raises(InputError, match="cell is not finite"):
        AtomGraph.from_atoms(atoms, 3.0)


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        ([4.0, 4.0, 0.0], True, "periodic along c"),
        ([0.0, 4.0, 0.0], (True, True, False), "periodic along a"),
        ([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 5.0]], True, "in a plane"),
        ([[4.0, 0, 0], [0, 3.0, 0], [4.0, 3.0, 0]], True, "in a plane"),
        ([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 0]], (True, True, False), "in a plane"),
    ],
)
def test_degenerate_cell(cell: list, pbc: object, message: str) -> None:
    atoms = H2.copy()
    atoms.set_cell(cell)
    atoms.pbc = pbc
    with pytest.raises(InputError, match=message):
        AtomGraph.from_atoms(atoms, 3.0)


def test_two_atoms_at_the_same_place() -> None:
    atoms = Atoms("HCO", positions=[[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    with pytest.raises(InputError, match=r"atoms 1 \(C\) and 2 \(O\) are at the same place"):
        AtomGraph.from_atoms(atoms, 3.0)
    image = Atoms("HC", positions=[[0, 0, 0], [4, 0, 0]], cell=[4.0, 4.0, 4.0], pbc=True)
    with pytest.raises(InputError, match="same place"):
        AtomGraph.from_atoms(image, 3.0)


def test_batches_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="empty list"):
        AtomGraph.batch([])
    with pytest.raises(InputError, match="different cutoffs"):
        AtomGraph.batch([AtomGraph.from_atoms(H2, 3.0), AtomGraph.from_atoms(H2, 4.0)])
