"""Datasets of graphs: labels stay with their structures, in batches too."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from equipes.data import GraphDataset, LabelledGraph, Units, read_frames
from equipes.errors import InputError
from equipes.graph import AtomGraph

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def dataset() -> GraphDataset:
    bulk = read_frames(DATA / "hafnia.xyz")
    molecules = read_frames(DATA / "ethanol.npz", units=Units("kcal/mol"))[:2]
    return GraphDataset([bulk[0], *molecules, replace(bulk[1], energy=None, forces=None)], 4.0)


def test_items_hold_graph_and_labels(dataset: GraphDataset) -> None:
    assert len(dataset) == 4
    for position, frame in enumerate(dataset.frames):
        item = dataset[position]
        assert item.frame.tolist() == [position] and item.graph.cutoff == 4.0
        assert item.energy.dtype == item.forces.dtype == item.stress.dtype == torch.float64
        assert item.energy.shape == (1,) and item.stress.shape == (1, 3, 3)
        expected = AtomGraph.from_atoms(frame.atoms, 4.0)
        for field in fields(AtomGraph):
            value = getattr(expected, field.name)
            same = torch.equal if isinstance(value, torch.Tensor) else float.__eq__
            assert same(getattr(item.graph, field.name), value)
        if frame.energy is None:
            assert item.energy.isnan().all() and item.forces.isnan().all()
            assert item.forces.shape == (len(frame.atoms), 3)
        else:
            assert item.energy.item() == frame.energy
            np.testing.assert_array_equal(item.forces, frame.forces)
        if frame.stress is None:
            assert item.stress.isnan().all()
        else:
            np.testing.assert_array_equal(item.stress[0], frame.stress)


def test_a_batch_is_its_items_side_by_side(dataset: GraphDataset) -> None:
    items = [dataset[i] for i in (3, 0, 2)]
    batch = LabelledGraph.batch(items)
    assert batch.frame.tolist() == [3, 0, 2]
    assert batch.graph.n_structures == 3
    for s, item in enumerate(items):
        atoms = batch.graph.structure == s
        assert torch.equal(batch.graph.numbers[atoms], item.graph.numbers)
        assert torch.equal(batch.forces[atoms].nan_to_num(), item.forces.nan_to_num())
        assert torch.equal(batch.energy[s : s + 1].nan_to_num(), item.energy.nan_to_num())
        assert torch.equal(batch.stress[s].nan_to_num(), item.stress[0].nan_to_num())
    moved = batch.to("cpu")
    assert torch.equal(moved.graph.sender, batch.graph.sender) and torch.equal(moved.frame, batch.frame)


def test_structures_without_a_graph_name_their_frame() -> None:
    good = read_frames(DATA / "hafnia.xyz")
    flat = replace(good[0], atoms=Atoms("H2", positions=[[0, 0, 0], [0, 0, 0]]), source="a.xyz", index=7)
    with pytest.raises(InputError, match=r"^a\.xyz frame 7: "):
        GraphDataset([good[1], flat], 3.0)
    with pytest.raises(InputError, match="no frames"):
        GraphDataset([], 3.0)
    with pytest.raises(InputError, match="cutoff"):
        GraphDataset(good, 0.0)
