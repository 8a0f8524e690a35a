"""Weights of the NequIP reference package give its energies, forces, stress and virial."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from equipes.errors import InputError
from equipes.foundation import from_nequip, read_nequip_npz
from equipes.graph import AtomGraph
from equipes.models import Potential, load

BUNDLED = Path(__file__).parent / "data" / "nequip"
COPIES = ("l2_parity_zbl_edgecut_pertypeN_float64", "l2_noparity_readoutmlp_float32")
GOLDENS = tuple(
    f"{name}_{dtype}"
    for name in ("l1_parity", "l2_noparity_readoutmlp", "l2_parity_zbl_edgecut_pertypeN")
    for dtype in ("float64", "float32")
)
STRUCTURES = ("pbc", "mol", "iso")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def graph_of(golden: np.lib.npyio.NpzFile, structure: str, cutoff: float) -> AtomGraph:
    numbers, positions, cell, pbc = (
        golden[f"{structure}/{key}"] for key in ("numbers", "pos", "cell", "pbc")
    )
    return AtomGraph.from_atoms(Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc), cutoff)


def errors(potential: Potential, golden: np.lib.npyio.NpzFile, structure: str) -> dict[str, float]:
    """Largest difference over the largest element of the reference, for each quantity."""
    graph = graph_of(golden, structure, potential.cutoff)
    assert graph.n_edges == golden[f"{structure}/n_edges"]
    prediction = potential(graph)
    shifts = potential.hyperparameters["per_type_energy_shifts"]
    reference = np.array([shifts[potential.species[t]] for t in potential.type_of_number[graph.numbers]])
    values = {
        "total_energy": (prediction.energy, 0.0),
        "atomic_energy": (prediction.energies, 0.0),
        # Shifts can be a thousand times what the network contributes; without them nothing hides.
        "interaction energy": (prediction.energies, reference),
        "forces": (prediction.forces, 0.0),
        "virial": (prediction.virial, 0.0),
        "stress": (prediction.stress, 0.0),
    }
    result = {}
    for name, (value, offset) in values.items():
        key = "atomic_energy" if name == "interaction energy" else name
        shape = tuple(value.shape)
        expected = golden[f"{structure}/{key}"].reshape(shape) - offset
        actual = value.numpy() - offset
        # Without a volume the reference divides by zero, and we say NaN.
        assert np.isfinite(actual).all() == np.isfinite(expected).all(), name
        if not np.isfinite(expected).all():
            assert np.isnan(actual).all(), name
            continue
        scale, error = np.abs(expected).max(), np.abs(actual - expected).max()
        # The isolated atom: zero is exactly zero.
        result[name] = error / scale if scale > 0 else (0.0 if error == 0 else np.inf)
    assert ("stress" in result) == (structure == "pbc")
    return result


def check(path: Path, structure: str) -> None:
    potential = read_nequip_npz(path)
    with np.load(path) as golden:
        assert json.loads(str(golden["config"]))["model_dtype"] == str(potential.dtype).removeprefix("torch.")
        found = errors(potential, golden, structure)
    assert max(found.values()) <= TOLERANCES[potential.dtype], found


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", COPIES)
def test_bundled(name: str, structure: str) -> None:
    check(BUNDLED / f"{name}.npz", structure)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", GOLDENS)
def test_all(shared_data: Path, name: str, structure: str) -> None:
    check(shared_data / "goldens" / "nequip" / f"{name}.npz", structure)


def test_every_weight_counts() -> None:
    """A change of any weights by a thousandth is seen, except in weights that cannot reach the energy."""
    path = BUNDLED / f"{COPIES[0]}.npz"
    potential = read_nequip_npz(path)
    last = len(potential.model.layers) - 1
    # The last layer couples to scalars only what has the parity of the harmonics, so the rest of its input, and what
    # makes it, is idle in the reference model too.
    idle = {
        f"model.layers.{part}.weights.{irrep}"
        for part in (f"{last - 1}.linear_2", f"{last}.linear_1")
        for irrep in ("1e", "2o")
    }
    assert idle < dict(potential.named_parameters()).keys()
    with np.load(path) as golden:
        for name, parameter in potential.named_parameters():
            kept = parameter.detach().clone()
            parameter.data = kept * (1 + 1e-3)
            worst = max(errors(potential, golden, "pbc").values())
            parameter.data = kept
            assert (worst > TOLERANCES[torch.float64]) == (name not in idle), f"{name}: {worst:.1e}"


@pytest.mark.parametrize("name", COPIES)
def test_round_trip_through_our_file_is_bit_equal(tmp_path: Path, name: str) -> None:
    potential = read_nequip_npz(BUNDLED / f"{name}.npz")
    potential.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.dtype == potential.dtype
    assert again.provenance == potential.provenance
    ours, theirs = potential.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    with np.load(BUNDLED / f"{name}.npz") as golden:
        for structure in STRUCTURES:
            graph = graph_of(golden, structure, potential.cutoff)
            first, second = potential(graph), again(graph)
            for field in ("energy", "energies", "forces", "virial"):
                assert torch.equal(getattr(first, field), getattr(second, field)), (structure, field)
            assert torch.equal(first.stress.nan_to_num(7.0), second.stress.nan_to_num(7.0))


def config_and_weights() -> tuple[dict, dict]:
    with np.load(BUNDLED / f"{COPIES[0]}.npz") as golden:
        return json.loads(str(golden["config"])), {
            k[2:]: golden[k] for k in golden.files if k.startswith("w/")
        }


def test_lightning_prefix_and_tensors_are_accepted() -> None:
    config, weights = config_and_weights()
    lightning = {
        name.replace("model.func.", "model.sole_model.model.func."): torch.tensor(w)
        for name, w in weights.items()
    }
    plain, prefixed = from_nequip(config, weights), from_nequip(config, lightning)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), prefixed.parameters(), strict=True))
    assert all(a is not b for a, b in zip(plain.parameters(), prefixed.parameters(), strict=True))


def test_conversion_refuses_what_it_does_not_understand() -> None:
    config, weights = config_and_weights()
    with pytest.raises(InputError, match="'new_feature'"):
        from_nequip(config | {"new_feature": 3}, weights)
    with pytest.raises(InputError, match="type_names"):
        from_nequip({k: v for k, v in config.items() if k != "type_names"}, weights)
    missing = {k: v for k, v in weights.items() if not k.endswith("layer1_convnet.conv.sc.weight")}
    with pytest.raises(InputError, match=r"no 'model\.func\.layer1_convnet\.conv\.sc\.weight'"):
        from_nequip(config, missing)
    with pytest.raises(InputError, match=r"'extra'.*does not ask for"):
        from_nequip(config, weights | {"model.func.extra": np.zeros(3)})
    with pytest.raises(InputError, match=r"num_features = \[6, 5, 3\].*linear_1\.weight' are 77 numbers"):
        from_nequip(config | {"num_features": [6, 5, 3]}, weights)
    with pytest.raises(InputError, match=r"shape|radial_mlp_width"):
        from_nequip(config | {"radial_mlp_width": 17}, weights)


def test_fixture_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_nequip_npz(tmp_path / "absent.npz")
    whole = (BUNDLED / f"{COPIES[0]}.npz").read_bytes()
    for name, content in (("text.npz", b"not a zip"), ("half.npz", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_nequip_npz(tmp_path / name)
    np.savez(tmp_path / "other.npz", positions=np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"other\.npz"):
        read_nequip_npz(tmp_path / "other.npz")
    # Reading must not run code: an object array is refused, not unpickled.
    np.savez(tmp_path / "object.npz", config=np.array({"type_names": ["H"]}, dtype=object))
    with pytest.raises(InputError, match=r"object\.npz"):
        read_nequip_npz(tmp_path / "object.npz")
