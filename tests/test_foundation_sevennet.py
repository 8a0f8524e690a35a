"""Checkpoints of the SevenNet package give its energies and forces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_stress

from equipes.errors import InputError
from equipes.foundation import read_sevennet
from equipes.graph import AtomGraph
from equipes.models import Potential, build, convert, load
from laws import ROUND_OFF, close
from sevennet_checkpoints import Reference, config, modal, plain, structure

OLD_SIGN = ((1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1))
# What differs from the plain checkpoint, and the tables of the other sign.
POLYNOMIAL = {"cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 5}}
KINDS: dict[str, tuple[dict[str, Any], tuple[tuple[int, int, int], ...]]] = {
    "XPLOR": ({}, ()),
    "old sign": ({}, OLD_SIGN),
    "polynomial cutoff": (POLYNOMIAL, ()),
    "harmonics that grow": ({"_normalize_sph": False}, ()),
    "l_max 3": ({"lmax": 3, "hidden": "4x0e+3x1e+2x2e+1x3e"}, OLD_SIGN),
    "one layer": ({"num_convolution_layer": 1}, ()),
    "modalities": (modal({"fine": 0, "coarse": 1}), OLD_SIGN),
}


def exact(potential: Potential, **changes: Any) -> Potential:
    """In float64, with the file's float32 numbers."""
    chosen = build(potential.architecture, potential.species, potential.hyperparameters | changes)
    chosen.model.load_state_dict(potential.model.state_dict())
    return convert(chosen, "float64").eval()


@pytest.mark.parametrize("kind", KINDS)
def test_energies_and_forces_are_those_of_e3nn(tmp_path: Path, kind: str) -> None:
    changes, flipped = KINDS[kind]
    reference = Reference(config(**changes), flipped)
    potential = read_sevennet(reference.save(tmp_path / "model.pth"))
    assert potential.species == ("C", "H", "O")
    modalities = potential.hyperparameters["modalities"] or [None]
    for index, modality in enumerate(modalities):
        chosen = exact(potential, modality=modality)
        for seed in range(2):
            graph = AtomGraph.from_atoms(structure(seed), chosen.cutoff)
            energies, forces = reference.energies(graph, index)
            prediction = chosen(graph)
            close(prediction.energies, energies, ROUND_OFF, f"energies of structure {seed}")
            close(prediction.forces, forces, ROUND_OFF, f"forces on structure {seed}")


def test_published_weights_give_the_golden_numbers(shared_data: Path, published: Path) -> None:
    """The 11 July 2024 checkpoint, on crystals, molecules, a slab, a small cell and an atom."""
    frames = read(shared_data / "goldens" / "sevennet0_float64.extxyz", ":")
    potential = read_sevennet(published)
    for dtype, tolerances in (("float64", (1e-6, 2e-6, 1e-7)), ("float32", (1e-4, 1e-4, 1e-4))):
        chosen = convert(potential, dtype)
        for atoms in frames:
            prediction = chosen(AtomGraph.from_atoms(atoms, chosen.cutoff))
            expected = atoms.calc.results
            errors = [
                abs(prediction.energy.item() - expected["energy"]) / len(atoms),
                np.abs(prediction.forces.numpy() - expected["forces"]).max(),
            ]
            if "stress" in expected:
                stress = full_3x3_to_voigt_6_stress(prediction.stress[0].numpy())
                errors.append(np.abs(stress - expected["stress"]).max())
            for error, tolerance in zip(errors, tolerances, strict=False):
                assert error < tolerance, (atoms.info, dtype, errors)


def test_our_file_holds_the_same_model(tmp_path: Path) -> None:
    potential = read_sevennet(plain().save(tmp_path / "model.pth"))
    potential.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    graph = AtomGraph.from_atoms(structure(), potential.cutoff)
    assert torch.equal(again(graph).energies, potential(graph).energies)
    assert again.provenance == {"converted_from": "sevennet", "version": "0.9.1", "epoch": 12}


def test_names_of_old_releases(tmp_path: Path) -> None:
    reference = plain()
    expected = read_sevennet(reference.save(tmp_path / "new.pth")).model.state_dict()
    weights = reference.weights
    for new, old in (
        ("edge_embedding", "EdgeEmbedding"),
        ("denominator", "denumerator"),
        ("reduce_", "reducing nn "),
        ("rescale_atomic_energy", "rescale atomic energy"),
        ("_self_interaction_2", " self interaction 2"),
        ("_convolution.", " convolution."),
    ):
        weights = {name.replace(new, old): value for name, value in weights.items()}
    assert "0 convolution.denumerator" in weights
    found = read_sevennet(reference.save(tmp_path / "old.pth", weights)).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_model_of_several_modalities_speaks_for_one(tmp_path: Path) -> None:
    path = Reference(config(**modal({"fine": 0, "coarse": 1}))).save(tmp_path / "model.pth")
    potential = read_sevennet(path)
    graph = AtomGraph.from_atoms(structure(), potential.cutoff)
    with pytest.raises(InputError, match="fine, coarse; choose one"):
        potential(graph)
    with pytest.raises(InputError, match="no modality 'middle'; it knows fine, coarse"):
        exact(potential, modality="middle")
    fine, coarse = (exact(potential, modality=name)(graph).energies for name in ("fine", "coarse"))
    assert (fine - coarse).abs().max() > 0.1


def hidden(irreps: str) -> dict[str, Any]:
    return {"irreps_manual": ["4x0e", irreps, irreps, "4x0e"]}


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "parity": ({"is_parity": True}, "'is_parity' .* is True"),
    "other self-connection": ({"self_connection_type": "nequip"}, "self_connection_type"),
    "no elements": ({"_type_map": {}}, "_type_map"),
    "wrong elements": ({"_type_map": {1: 0, 200: 1, 8: 2}}, "_type_map"),
    "numbers twice": ({"_type_map": {1: 0, 6: 0, 8: 2}}, "_type_map"),
    "huge channels": ({"irreps_manual": ["9999999999x0e"] * 4}, "irreps_manual"),
    "huge hidden channels": (hidden("99999999x0e+99999999x1e+9999999x2e"), "shape"),
    "odd irreps": (hidden("4x0e+3x1o+2x2e"), "irreps_manual"),
    "irreps that are none": ({"irreps_manual": ["4x0e", "?", "4x0e", "4x0e"]}, "irreps"),
    "many layers": ({"num_convolution_layer": 10**9, "irreps_manual": ["4x0e"]}, "num_convolution_layer"),
    "many elements": ({"_type_map": dict(zip(range(1, 101), range(100), strict=True))}, "shape"),
    "negative cutoff": ({"cutoff": -1.0}, "'cutoff' .* positive"),
    "cutoff that is text": ({"cutoff": "five"}, "cutoff"),
    "unknown cutoff function": ({"cutoff_function": {"cutoff_function_name": "cosine"}}, "cutoff_function"),
    "cutoff function begins late": (
        {"cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 9.0}},
        "xplor_on",
    ),
    "many basis functions": ({"radial_basis": {"bessel_basis_num": 9}}, "shape"),
    "no basis": ({"radial_basis": None}, "bessel_basis_num"),
    "wide radial network": ({"weight_nn_hidden_neurons": [600, 600]}, "shape"),
    "modalities without rows": (modal({"a": 0, "b": 1}), "shape"),
    "tensor in place of a flag": ({"is_parity": torch.ones(3)}, "is_parity"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_configurations_that_the_weights_do_not_bear_out(tmp_path: Path, case: str) -> None:
    changes, sentence = BAD_CONFIGS[case]
    path = plain().save(tmp_path / "model.pth", **changes)
    with pytest.raises(InputError, match=rf"model\.pth: .*{sentence}"):
        read_sevennet(path)


def test_weights_that_the_configuration_does_not_bear_out(tmp_path: Path) -> None:
    good = plain()
    layer = "1_self_interaction_2.linear.weight"
    table = "1_convolution.convolution._compiled_main_left_right._w3j_1_1_1"
    cases = (
        (layer, None, f"no '{layer}'"),
        (layer, good.weights[layer][:-1], f"'{layer}' have shape"),
        (layer, good.weights[layer] * float("nan"), "finite"),
        (layer, good.weights[layer].long(), "finite"),
        (table, None, f"no '{table}'"),
        (table, good.weights[table] * 2, "no Wigner 3j symbol"),
        ("0_convolution.denominator", torch.tensor([0.0]), "denominator"),
        ("0_convolution.denominator", torch.ones(2), "denominator"),
        ("rescale_atomic_energy.shift", torch.ones(4), "3 species"),
        ("extra.weight", torch.ones(4), "'extra.weight', which the config does not ask for"),
        ("extra.weight", 4.0, "tensors by name"),
    )
    for name, value, sentence in cases:
        weights = {key: own for key, own in {**good.weights, name: value}.items() if own is not None}
        with pytest.raises(InputError, match=sentence):
            read_sevennet(good.save(tmp_path / "model.pth", weights))
    for content in ({"model_state_dict": {}}, {"config": {}}, [1, 2], {"config": 3, "model_state_dict": {}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"other\.pth: "):
            read_sevennet(tmp_path / "other.pth")
