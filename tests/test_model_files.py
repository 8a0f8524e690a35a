"""One file per model: what is written is read back bit for bit, and nothing else passes for a model."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import build, files, load

HYPERPARAMETERS = {
    "r_max": 3.0,
    "num_layers": 2,
    "l_max": 1,
    "num_features": [4, 3],
    "num_bessels": 3,
    "radial_mlp_width": 5,
    "avg_num_neighbors": {"H": 2.5, "O": 4.0},
    "per_type_energy_shifts": {"H": -13.6, "O": -2041.83},
    "per_edge_type_cutoff": {"H": {"O": 2.5}},
    "bessel_trainable": True,
    "zbl": True,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    potential = build("nequip", ["H", "O"], HYPERPARAMETERS, seed=4)
    potential.provenance = {"data": ["water.xyz"], "note": "Ångström, ñ, 漢"}
    potential.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["equipes"])


def rewrite(path: Path, change: Any) -> Path:
    """The same file with another header or other weights: `change(header, weights)` alters them in place."""
    header = header_of(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    change(header, weights)
    other = path.with_name("changed.safetensors")
    save_file(weights, other, metadata={"equipes": json.dumps(header)})
    return other


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_bit_equal(tmp_path: Path, dtype: str) -> None:
    potential = build("nequip", ["O", "H"], HYPERPARAMETERS, dtype=dtype, seed=2).eval()
    potential.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert not again.training
    assert again.dtype == potential.dtype
    assert again.species == ("O", "H")
    assert again.hyperparameters == potential.hyperparameters
    ours, theirs = potential.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    from ase import Atoms

    water = Atoms("OHH", positions=[[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.05, -0.75, -0.5]])
    graph = AtomGraph.from_atoms(water, 3.0)
    first, second = potential(graph), again(graph)
    assert torch.equal(first.energies, second.energies) and torch.equal(first.forces, second.forces)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_header(path: Path) -> None:
    header = header_of(path)
    assert header["format_version"] == 1 <= files.FORMAT_VERSION  # 2 is for what a plain model does not have
    assert header["architecture"] == "nequip"
    assert header["species"] == ["H", "O"]
    assert header["hyperparameters"] == HYPERPARAMETERS
    assert header["units"] == {"energy": "eV", "length": "Ang", "forces": "eV/Ang", "stress": "eV/Ang^3"}
    assert header["provenance"]["note"] == "Ångström, ñ, 漢"
    assert header["equipes_version"]


def test_loaded_as_another_number_type(path: Path) -> None:
    single, double = load(path), load(path, dtype="float64")
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert double.provenance == single.provenance
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a.double(), b.double())
    with pytest.raises(InputError, match="unknown dtype 'float8'"):
        load(path, dtype="float8")


def test_nothing_is_overwritten(path: Path) -> None:
    before = path.read_bytes()
    other = build("nequip", ["H", "O"], HYPERPARAMETERS, seed=5)
    with pytest.raises(InputError, match=r"model\.safetensors exists"):
        other.save(path)
    assert path.read_bytes() == before
    other.save(path, overwrite=True)
    assert path.read_bytes() != before
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    potential = build("nequip", ["H"], {"num_layers": 1})
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        potential.save(tmp_path / "model.pt")
    with pytest.raises(InputError, match="does not exist"):
        potential.save(tmp_path / "absent" / "model.safetensors")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the file is written, then the disk is full: nothing stays."""
    potential = build("nequip", ["H"], {"num_layers": 1})

    def write_half(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(InputError, match="the disk is full"):
        potential.save(tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_missing_file(tmp_path: Path) -> None:
    for name in ("absent.safetensors", "."):
        with pytest.raises(InputError, match="no such model file"):
            load(tmp_path / name)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 0.5, -1])
def test_truncated(path: Path, length: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if length == 0.5 else int(length)])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable model file"):
        load(path)


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="not a model of equipes"):
        load(tmp_path / "foreign.safetensors")
    np.savez(tmp_path / "arrays.safetensors.npz", a=np.zeros(3))
    (tmp_path / "arrays.safetensors.npz").rename(tmp_path / "arrays.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch.safetensors")
    (tmp_path / "text.safetensors").write_text("x" * 500)
    for name in ("arrays", "torch", "text"):
        with pytest.raises(InputError, match=f"{name}.safetensors: not a readable model file"):
            load(tmp_path / f"{name}.safetensors")


def test_reading_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError):
        load(tmp_path / "trap.safetensors")
    assert not (tmp_path / "sprung").exists()


def drop(key: str) -> Any:
    return lambda header, weights: header.pop(key)


def put(**values: Any) -> Any:
    return lambda header, weights: header.update(values)


CHANGES = {
    "no version": (drop("format_version"), "header cannot be read"),
    "no architecture": (drop("architecture"), "has no 'architecture'"),
    "no species": (drop("species"), "has no 'species'"),
    "no hyperparameters": (drop("hyperparameters"), "has no 'hyperparameters'"),
    "no dtype": (drop("dtype"), "has no 'dtype'"),
    "no provenance": (drop("provenance"), "has no 'provenance'"),
    "version is a word": (put(format_version="new"), "header cannot be read"),
    "from the future": (
        put(format_version=99, equipes_version="9.9"),
        r"written by equipes 9\.9 in a newer format",
    ),
    "unknown architecture": (put(architecture="oracle"), "unknown architecture 'oracle'"),
    "unknown dtype": (put(dtype="float16"), "unknown dtype"),
    "unknown species": (put(species=["H", "Zz"]), "Zz is no element"),
    "species are a number": (put(species=5), "safetensors"),
    "hyperparameters are a list": (put(hyperparameters=[1, 2]), "safetensors"),
    "unknown hyperparameter": (
        put(hyperparameters=HYPERPARAMETERS | {"magic": 1}),
        "no hyperparameter 'magic'",
    ),
    "hyperparameter of another type": (
        put(hyperparameters=HYPERPARAMETERS | {"r_max": "far"}),
        "safetensors",
    ),
    "other layers": (put(hyperparameters=HYPERPARAMETERS | {"num_layers": 3}), "no weights 'layers"),
    "other width": (put(hyperparameters=HYPERPARAMETERS | {"radial_mlp_width": 6}), "have shape"),
    "weights missing": (lambda header, weights: weights.pop("embedding"), "no weights 'embedding'"),
    "weights too many": (
        lambda header, weights: weights.update(extra=torch.zeros(2)),
        "unknown weights 'extra'",
    ),
    "weights of another shape": (
        lambda header, weights: weights.update(embedding=torch.zeros(7, 7)),
        r"'embedding' have shape \[7, 7\]",
    ),
    "weights of another type": (
        lambda header, weights: weights.update(embedding=weights["embedding"].to(torch.int32)),
        "safetensors",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_headers_and_weights(path: Path, name: str) -> None:
    change, message = CHANGES[name]
    changed = rewrite(path, change)
    with pytest.raises(InputError, match=message) as error:
        load(changed)
    assert "changed.safetensors" in str(error.value)


def test_header_that_is_no_json(path: Path) -> None:
    for text in ("{", "[]", "5", "null"):
        save_file({"embedding": torch.zeros(2)}, path, metadata={"equipes": text})
        with pytest.raises(InputError, match="header cannot be read"):
            load(path)


def test_any_damaged_byte_is_an_input_error_or_harmless(path: Path) -> None:
    """Bytes all over the file, most of them in the header, are changed one at a time."""
    content, rng = path.read_bytes(), np.random.default_rng(0)
    size = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for place in [*range(8), *rng.integers(8, size, 150), *rng.integers(size, len(content), 10)]:
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            load(path)
        except InputError:
            refused += 1
    assert refused > 100
