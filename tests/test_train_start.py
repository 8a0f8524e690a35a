"""Where a training begins that has isolated atoms for reference energies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

import equipes
from equipes.data import Frame, GraphDataset
from equipes.training.start import begin_at_mean_energies

ALONE = {"H": -13.6, "C": -1029.0, "O": -2042.0}
SMALL = {
    "nequip": {"num_layers": 2, "l_max": 1, "num_features": 8, "per_type_energy_shifts": ALONE},
    "sevennet": {"num_layers": 2, "l_max": 1, "num_features": 8, "per_type_energy_shifts": ALONE},
    "mace": {"hidden_irreps": "8x0e + 8x1o", "max_ell": 1, "correlation": 2, "atomic_energies": ALONE},
}


def dataset(binding: float) -> GraphDataset:
    frames = []
    for index, name in enumerate(["CH4", "H2O", "C2H6", "CH3OH", "CO2", "H2", "CO", "C2H4"] * 2):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=index)
        energy = sum(ALONE[s] for s in atoms.symbols) - binding * len(atoms)
        frames.append(Frame(atoms, energy, None, None, None, "made.xyz", index))
    frames += [Frame(Atoms(s), ALONE[s], None, None, None, "made.xyz", 16) for s in ALONE]
    return GraphDataset(frames, 4.0)


def off(potential: equipes.Potential, data: GraphDataset) -> np.ndarray:
    """eV/atom, of each frame."""
    return np.array(
        [
            (float(potential(graph, forces=False, stress=False).energy.detach()) - frame.energy)
            / len(frame.atoms)
            for graph, frame in zip(data.graphs, data.frames, strict=True)
        ]
    )


@pytest.mark.parametrize("architecture", sorted(SMALL))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bonds_are_there_from_the_first_step_and_isolated_atoms_stay(architecture: str, dtype: str) -> None:
    potential = equipes.build(
        architecture, list(ALONE), {"r_max": 4.0, **SMALL[architecture]}, seed=2, dtype=dtype
    )
    data = dataset(binding=4.0)
    assert np.abs(off(potential, data)[:-3]).min() > 3
    assert begin_at_mean_energies(potential, data, scale=1.0)
    after = off(potential, data)
    assert np.abs(after[:-3]).mean() < 0.8
    # SevenNet's network says something of an atom alone, the others nothing.
    np.testing.assert_allclose(after[-3:], 0, atol=2 if architecture == "sevennet" else 1e-6)


def test_nothing_moves_where_references_leave_little_or_a_bias_will_do() -> None:
    for architecture, binding in (("nequip", 0.2), ("schnet", 4.0)):
        settings = SMALL.get(architecture, {"per_type_energy_shifts": ALONE})
        potential = equipes.build(architecture, list(ALONE), {"r_max": 4.0, **settings}, seed=2)
        before = {name: value.clone() for name, value in potential.named_parameters()}
        assert not begin_at_mean_energies(potential, dataset(binding), scale=1.0)
        assert all(torch.equal(value, before[name]) for name, value in potential.named_parameters())
