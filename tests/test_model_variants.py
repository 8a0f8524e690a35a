"""The same potential for fewer elements, or for one of its modalities, says the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms

import equipes
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import Potential, adapted, build, choose_modality, keep_species
from laws import ROUND_OFF, close

SPECIES = ["H", "C", "N", "O", "Si"]
SHIFTS = {symbol: float(index) for index, symbol in enumerate(SPECIES)}
SMALL = {"num_layers": 3, "l_max": 1, "num_features": 4, "r_max": 3.5, "per_type_energy_shifts": SHIFTS}
NEQUIP = {
    "avg_num_neighbors": {symbol: 3.0 + index for index, symbol in enumerate(SPECIES)},
    "per_edge_type_cutoff": {"O": {"H": 2.0, "Si": 3.0}, "Si": 3.1},
    "zbl": True,
}
SEVENNET = {
    "modalities": ["low", "high"],
    "modality": "high",
    "per_type_energy_shifts": {"low": SHIFTS, "high": dict.fromkeys(SPECIES, 7.0)},
}


MACE = {
    "max_ell": 2,
    "hidden_irreps": "4x0e + 4x1o",
    "radial_MLP": [8],
    "avg_num_neighbors": 2.0,
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
    "r_max": 4.5,
    "heads": ["low", "high"],
    "head": "high",
    "atomic_energies": {"low": SHIFTS, "high": dict.fromkeys(SPECIES, 7.0)},
}
SCHNET = {"num_features": 8, "per_type_energy_shifts": SHIFTS}


def potential(architecture: str, dtype: str = "float64") -> Potential:
    own: dict[str, dict[str, Any]] = {
        "nequip": SMALL | NEQUIP,
        "sevennet": SMALL | SEVENNET,
        "mace": MACE,
        "schnet": SCHNET,
        "physnet": {"num_features": 8, "num_modules": 2},
    }
    return build(architecture, SPECIES, own[architecture], dtype=dtype, seed=3).eval()


def water() -> Atoms:
    return Atoms("OHH", positions=[[0.0, 0.0, 0.0], [0.95, 0.1, 0.0], [-0.2, 0.94, 0.1]])


@pytest.mark.parametrize("architecture", ["nequip", "sevennet", "mace", "schnet", "physnet"])
def test_fewer_elements(architecture: str) -> None:
    whole = potential(architecture)
    kept = keep_species(whole, ["O", "H"])
    assert kept.species == ("O", "H") and not kept.training
    graph = AtomGraph.from_atoms(water(), whole.cutoff)
    first, second = whole(graph), kept(graph)
    close(second.energies, first.energies, ROUND_OFF, "energies")
    close(second.forces, first.forces, ROUND_OFF, "forces")
    assert sum(p.numel() for p in kept.parameters()) < sum(p.numel() for p in whole.parameters())
    with pytest.raises(InputError, match="does not know Si"):
        kept(AtomGraph.from_atoms(Atoms("Si"), whole.cutoff))
    with pytest.raises(InputError, match="does not know Xe; it knows H, C"):
        keep_species(whole, ["H", "Xe"])
    # Twice, and through a file.
    close(
        keep_species(kept, ["H", "O"])(graph).energies, first.energies, ROUND_OFF, "energies after two cuts"
    )


def test_the_number_type_stays() -> None:
    assert keep_species(potential("sevennet", "float32"), ["H"]).dtype == torch.float32


def test_an_architecture_without_tables_of_species(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = potential("nequip")
    monkeypatch.setattr(type(whole.model), "PER_SPECIES", {})
    with pytest.raises(InputError, match="nequip potential cannot be cut"):
        keep_species(whole, ["H"])


@pytest.mark.parametrize("architecture", ["sevennet", "mace"])
def test_another_modality(architecture: str) -> None:
    high = potential(architecture)
    low = choose_modality(high, "low")
    graph = AtomGraph.from_atoms(water(), high.cutoff)
    difference = (high(graph).energies - low(graph).energies).abs()
    assert difference.min() > 1e-3
    assert torch.equal(choose_modality(low, "high")(graph).energies, high(graph).energies)
    with pytest.raises(InputError, match="no modality 'middle'; it has low, high"):
        choose_modality(high, "middle")
    with pytest.raises(InputError, match="one kind of reference calculation"):
        choose_modality(potential("nequip"), "high")


def test_both_at_once_and_neither() -> None:
    whole = potential("sevennet")
    assert adapted(whole) is whole
    changed = adapted(whole, species=["H", "O"], modal="low")
    assert changed.species == ("H", "O") and changed.hyperparameters["modality"] == "low"
    atoms = water()
    atoms.calc = equipes.Calculator(whole, dtype="float64", species=["H", "O"], modal="low")
    graph = AtomGraph.from_atoms(water(), whole.cutoff)
    assert atoms.get_potential_energy() == pytest.approx(changed(graph).energy.item(), rel=1e-12)
