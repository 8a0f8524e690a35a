"""Packages of NequIP: read as data, with the values that nequip itself gives; hostile ones are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import yaml

import equipes
from equipes.cli import app, run
from equipes.errors import InputError
from equipes.foundation import read_checkpoint
from equipes.foundation.nequip_package import CONFIG, PROGRAM, _model_config, read_package, recognises

DATA = Path(__file__).parent / "data" / "nequip"
PACKAGE = DATA / "package.nequip.zip"
ROOT = "m.nequip"
Members = dict[str, bytes]


def changed(path: Path, change: Callable[[Members], object], compression: int = zipfile.ZIP_STORED) -> Path:
    """The package with something of it changed."""
    with zipfile.ZipFile(PACKAGE) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def with_config(**values: Any) -> Callable[[Members], object]:
    """A change of the model's arguments; None takes one out."""

    def change(members: Members) -> None:
        config = yaml.safe_load(members[f"{ROOT}/{CONFIG}"])
        model = config["training_module"]["model"]
        for key, value in values.items():
            model.pop(key, None) if value is None else model.update({key: value})
        members[f"{ROOT}/{CONFIG}"] = yaml.safe_dump(config).encode()

    return change


def with_text(name: str, text: bytes) -> Callable[[Members], object]:
    return lambda members: members.update({f"{ROOT}/{name}": text})


def test_values_are_nequips() -> None:
    potential = read_checkpoint(PACKAGE)
    assert potential.species == ("O", "Hf") and potential.provenance["versions"]["nequip"] == "0.19.1"
    for case in json.loads((DATA / "package.json").read_text()):
        atoms = ase.Atoms(case["symbols"], positions=case["positions"], cell=case["cell"], pbc=case["pbc"])
        atoms.calc = equipes.Calculator(potential, dtype="float64", exact=True)
        assert atoms.get_potential_energy() == pytest.approx(case["energy"], abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), case["forces"], atol=1e-10)
        if "stress" in case:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), case["stress"], atol=1e-12)


def test_the_command_converts_it(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert run(app, ["convert", str(PACKAGE), str(out)], "equipes") == 0
    assert equipes.load(out).species == ("O", "Hf")


def test_only_packages_are_recognised(tmp_path: Path) -> None:
    assert recognises(PACKAGE)
    assert not recognises(DATA / "package.json") and not recognises(tmp_path / "nothing.nequip.zip")


@pytest.mark.parametrize("name", ["model.nequip.pt2", "model.nequip.pth"])
def test_compiled_models_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PACKAGE.read_bytes())
    with pytest.raises(InputError, match="would have to be run; convert the package"):
        read_checkpoint(tmp_path / name)


REFUSED: dict[str, tuple[Callable[[Members], object], str]] = {
    "another model": (
        with_config(_target_="allegro.model.AllegroModel"),
        "only the package's own code knows",
    ),
    "a changed model": (with_config(_target_="nequip.model.modify"), "only the package's own code knows"),
    "unknown key": (with_config(convnet_resnet=True), "convnet_resnet.*no counterpart"),
    "not resolved": (with_config(r_max="${cutoff}"), "not resolved"),
    "more layers": (with_config(num_layers=3), "num_layers = 3, and the weights have 2"),
    "endless layers": (with_config(num_layers=10**12), "num_layers = 1000000000000"),
    "giant channels": (with_config(num_features=10**9), "num_features = 1000000000"),
    "giant channels of one l": (with_config(num_features=[4, 10**9]), "num_features"),
    "no channels": (with_config(num_features=[4, 0]), "num_features"),
    "giant network": (with_config(radial_mlp_width=10**10), "radial_mlp_width"),
    "giant readout": (with_config(readout_mlp_hidden_layers_depth=10**9), "readout_mlp_hidden_layers_depth"),
    "giant basis": (with_config(num_bessels=10**10), "num_bessels"),
    "giant embedding": (with_config(type_embed_num_features=10**10), "type_embed_num_features"),
    "high l": (with_config(l_max=10**12), "l_max = 1000000000000; equipes has"),
    "texts for numbers": (with_config(num_layers="two"), "num_layers = two"),
    "other neighbours": (with_config(avg_num_neighbors=30.0), "disagree about avg_num_neighbors"),
    "no neighbours": (with_config(avg_num_neighbors={"O": 3.0}), "avg_num_neighbors"),
    "no species": (with_config(type_names=None), "avg_num_neighbors|type_names"),
    "no elements": (with_config(type_names=["A", "B"]), "no element"),
    "no model": (with_text(CONFIG, b"training_module: {}"), "describes no model"),
    "a list": (with_text(CONFIG, b"- 1"), "no mapping"),
    "no YAML": (with_text(CONFIG, b"a: [1"), "no YAML"),
    "deep YAML": (with_text(CONFIG, b"[" * 100_000), "no YAML"),
    "a YAML bomb": (
        with_text(CONFIG, b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
        "refers to parts of itself",
    ),
    "YAML that calls": (with_text(CONFIG, b"a: !!python/object/apply:os.system ['true']"), "no YAML"),
    "a large text": (with_text(CONFIG, b"#" * 2**21), "larger than"),
    "no text": (with_text(CONFIG, b"\xff\xfe\xff"), "cannot be read"),
    "no config": (lambda members: members.pop(f"{ROOT}/{CONFIG}"), "cannot be read"),
    "no weights": (lambda members: members.pop(f"{ROOT}/.data/13.storage"), "cannot be read|makes no sense"),
    "two programs": (with_text(f"../other/{PROGRAM}", b"N."), r"."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(what: str, tmp_path: Path) -> None:
    change, sentence = REFUSED[what]
    if what == "two programs":
        path = changed(tmp_path / "model.nequip.zip", lambda members: members.update({f"b/{PROGRAM}": b"N."}))
    else:
        path = changed(tmp_path / "model.nequip.zip", change)
    with pytest.raises(InputError, match=sentence) as caught:
        read_package(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_compressed_packages_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "model.nequip.zip", lambda members: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        read_package(path)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def test_hostile_packages_do_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    calls = [
        Call(os.system, f"touch {proof}"),
        Call(open, str(proof), "w"),
        Call(exec, f"open({str(proof)!r}, 'w')"),
        Call(bytearray, 10**11),
        {"sole_model": Call(os.mkdir, str(proof))},
    ]
    for call in calls:
        program = pickle.dumps(call, 2)
        path = changed(tmp_path / "model.nequip.zip", with_text(PROGRAM, program))
        with pytest.raises(InputError):
            read_checkpoint(path)
        assert not proof.exists()
    pickle.loads(pickle.dumps(calls[0]))
    assert proof.exists()  # else this would prove nothing


def test_a_model_that_holds_itself_twice_is_refused_at_once(tmp_path: Path) -> None:
    # Forty levels, at each of which the level below stands twice: 10^12 modules for who walks through them.
    names = b"".join(b"X\x01\x00\x00\x00" + name + b"h\x00" for name in (b"a", b"b"))
    program = b"\x80\x02cnequip\nGraphModel\n)\x81}bq\x00"
    for _ in range(40):
        program += b"0cnequip\nGraphModel\n)\x81}X\x08\x00\x00\x00_modules}(" + names + b"usbq\x00"
    path = changed(tmp_path / "model.nequip.zip", with_text(PROGRAM, program + b"."))
    with pytest.raises(InputError, match="more than 20000 modules"):
        read_package(path)


def test_the_code_inside_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    code = f"open({str(proof)!r}, 'w')".encode()

    def change(members: Members) -> None:
        for name in (
            "nequip/__init__.py",
            "nequip/nn/graph_model.py",
            "model/__init__.py",
            "torch/__init__.py",
        ):
            members[f"{ROOT}/{name}"] = code

    assert read_checkpoint(changed(tmp_path / "model.nequip.zip", change)).species == ("O", "Hf")
    assert not proof.exists()


def test_damaged_packages_end_in_a_sentence(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = PACKAGE.read_bytes()
    path = tmp_path / "model.nequip.zip"
    with zipfile.ZipFile(PACKAGE) as file:
        program = file.read(f"{ROOT}/{PROGRAM}")
    for _ in range(10):
        path.write_bytes(whole[: rng.integers(len(whole))])
        with pytest.raises(InputError, match=r"model\.nequip\.zip: "):
            read_checkpoint(path)
    refused = []
    for _ in range(15):
        damaged = bytearray(program)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            read_package(changed(path, with_text(PROGRAM, bytes(damaged))))
        except InputError as error:
            refused.append(str(error))
    assert refused and all(sentence.startswith(str(path)) for sentence in refused)


def test_defaults_and_presets_are_nequips() -> None:
    preset = {"_target_": "nequip.model.PresetNequIPGNNModel", "preset": "M", "r_max": 6.0, "l_max": 1}
    config = _model_config({"training_module": {"model": preset}})
    assert (config["num_layers"], config["l_max"], config["num_features"]) == (4, 1, [128, 64, 32])
    assert config["parity"] is False and config["radial_mlp_width"] == 128
    # Values that are the reference's defaults may be left out, though ours are others.
    with zipfile.ZipFile(PACKAGE) as file:
        stored = yaml.safe_load(io.BytesIO(file.read(f"{ROOT}/{CONFIG}")))["training_module"]["model"]
    assert stored["l_max"] == 1 and stored["radial_mlp_depth"] == 1


def test_keys_that_are_the_references_defaults_may_be_left_out(tmp_path: Path) -> None:
    change = with_config(l_max=None, radial_mlp_depth=None, parity=None, polynomial_cutoff_p=None)
    potential = read_package(changed(tmp_path / "model.nequip.zip", change))
    whole = read_package(PACKAGE)
    assert potential.hyperparameters == whole.hyperparameters
