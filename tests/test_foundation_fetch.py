"""Published potentials: got once, from wherever they are, checked, converted, and then used by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import read, write

import equipes
from command_line import run_forked
from equipes.errors import InputError
from equipes.foundation import MODELS, fetch, get, locate, read_checkpoint
from equipes.foundation.registry import ALIASES, InWheel, Published, published
from equipes.models import ARCHITECTURES, load
from sevennet_checkpoints import Reference, config, modal, plain, structure

MEMBER = "small_package_of_potentials/weights/model.pth"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Publisher:
    """A made-up potential in a made-up wheel, in the registry under the name `small`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.data = folder / "data"
        monkeypatch.setenv("EQUIPES_DATA", str(self.data))
        self.checkpoint = plain().save(folder / "model.pth")
        self.wheel = folder / "small_package_of_potentials-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(self.checkpoint, MEMBER)
            archive.writestr("small_package_of_potentials/__init__.py", "raise RuntimeError('imported')")
        source = InWheel(
            "small_package_of_potentials", "1.0", sha256(self.wheel), self.wheel.stat().st_size, MEMBER
        )
        size = self.checkpoint.stat().st_size
        self.publish(source=source, sha256=sha256(self.checkpoint), size=size, modalities=())
        self.said: list[str] = []

    def publish(self, **changes: Any) -> Published:
        model = replace(MODELS.get("small", MODELS["7net-0"]), name="small", **changes)
        self.monkeypatch.setitem(MODELS, "small", model)
        return model

    def get(self, **options: Any) -> Path:
        return get("small", report=self.said.append, **options)

    def install(self, folder: Path) -> None:
        """Unpack the wheel where python looks for packages."""
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(folder)
        self.monkeypatch.syspath_prepend(str(folder))

    def pip(self, outcome: Path | str) -> list[list[str]]:
        """Let pip deliver a file, or fail with a message; returns the commands as they come."""
        commands: list[list[str]] = []

        def run_command(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            if isinstance(outcome, str):
                return subprocess.CompletedProcess(command, 1, "", outcome)
            (Path(command[command.index("--dest") + 1]) / outcome.name).write_bytes(outcome.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        self.monkeypatch.setattr(subprocess, "run", run_command)
        return commands


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    return Publisher(tmp_path, monkeypatch)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path).model.state_dict()


def test_the_registry_makes_sense() -> None:
    assert len(MODELS) >= 14
    for name, model in MODELS.items():
        assert published(name.upper()) is model and model.name == name
        assert len(model.elements) == len(set(model.elements)) == 89
        assert model.commercial == (model.licence == "MIT")
        if isinstance(model.source, InWheel):
            assert len(model.source.wheel_sha256) == len(model.sha256 or "") == 64
        else:
            assert model.source.startswith("https://") and model.source.endswith(".model")
        assert model.architecture in ARCHITECTURES or model.architecture == "mace"
    assert set(ALIASES.values()) <= set(MODELS) and not set(ALIASES) & set(MODELS)
    assert len({str(model.source) for model in MODELS.values()}) == len(MODELS)


def test_from_an_installed_package_that_is_not_imported(publisher: Publisher, tmp_path: Path) -> None:
    publisher.install(tmp_path / "site")
    commands = publisher.pip("no network")
    path = publisher.get()
    assert "small_package_of_potentials" not in sys.modules and not commands
    assert path == publisher.data / "models" / "small.safetensors"
    expected = read_checkpoint(publisher.checkpoint).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights(path).items())
    provenance = load(path).provenance
    assert provenance["published_as"] == "small" and provenance["sha256"] == sha256(publisher.checkpoint)
    assert provenance["licence"] == "MIT"


def test_another_version_of_the_package_is_passed_over(publisher: Publisher, tmp_path: Path) -> None:
    publisher.install(tmp_path / "site")
    (tmp_path / "site" / MEMBER).write_bytes(b"other weights")
    assert len(publisher.pip(publisher.wheel)) == 0
    commands = publisher.pip(publisher.wheel)
    publisher.get()
    assert len(commands) == 1


def test_from_the_wheel_by_pip(publisher: Publisher) -> None:
    commands = publisher.pip(publisher.wheel)
    path = publisher.get()
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "small_package_of_potentials==1.0"
    assert {"--no-deps", "--only-binary"} <= set(command)
    assert any("downloading the wheel" in sentence for sentence in publisher.said)
    # From now on nothing is needed but the file.
    publisher.checkpoint.unlink()
    changed = path.stat().st_mtime_ns
    assert publisher.get() == path and len(commands) == 1 and path.stat().st_mtime_ns == changed
    publisher.get(overwrite=True)
    assert len(commands) == 2 and path.stat().st_mtime_ns > changed


def test_from_a_given_file(publisher: Publisher) -> None:
    first = weights(publisher.get(source=publisher.checkpoint))
    second = weights(publisher.get(source=publisher.wheel, overwrite=True))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_from_an_address(publisher: Publisher) -> None:
    publisher.publish(source=publisher.checkpoint.as_uri())
    publisher.get()
    publisher.publish(source=publisher.checkpoint.with_name("absent.pth").as_uri())
    with pytest.raises(InputError, match=r"could not be downloaded.*--from FILE"):
        publisher.get(overwrite=True)
    publisher.publish(source=publisher.checkpoint.as_uri(), sha256="0" * 64)
    with pytest.raises(InputError, match="sha256 differs"):
        publisher.get(overwrite=True)


def test_what_is_not_as_published_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    other = Reference(config(), seed=1).save(tmp_path / "other.pth")
    for source, sentence in (
        (other, "not the file of small"),
        (tmp_path / "absent.pth", "no such file"),
        (Path(shutil.copy(other, tmp_path / "other.whl")), "no wheel"),
    ):
        with pytest.raises(InputError, match=sentence):
            publisher.get(source=source)
    wrong = tmp_path / "wrong.whl"
    with zipfile.ZipFile(wrong, "w") as archive:
        archive.writestr(MEMBER, b"0" * publisher.checkpoint.stat().st_size)
    with pytest.raises(InputError, match="sha256 differs"):
        publisher.get(source=wrong)
    publisher.pip(wrong)
    with pytest.raises(InputError, match="not the published one"):
        publisher.get()
    assert not list((publisher.data / "models").iterdir())


def test_without_a_network(publisher: Publisher) -> None:
    publisher.pip("WARNING: something\nERROR: No matching distribution found")
    with pytest.raises(InputError, match=r"No matching distribution.*equipes models get small --from FILE"):
        publisher.get()
    with pytest.raises(InputError, match="could not download"):
        equipes.load("small")


def test_a_licence_that_must_be_accepted(publisher: Publisher) -> None:
    publisher.publish(commercial=False, licence="academic")
    with pytest.raises(InputError, match=r"licence of small is academic.*--accept-licence"):
        publisher.get(source=publisher.checkpoint)
    with pytest.raises(InputError, match="--accept-licence"):
        equipes.load("small")
    publisher.get(source=publisher.checkpoint, accept_licence=True)
    assert equipes.load("small").species == ("C", "H", "O")


def test_a_reader_that_is_not_there(publisher: Publisher) -> None:
    publisher.publish(reader="nothing")
    with pytest.raises(InputError, match="does not read nothing files"):
        publisher.get(source=publisher.checkpoint)


def test_a_directory_that_cannot_be_written(publisher: Publisher, tmp_path: Path) -> None:
    publisher.data.write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        publisher.get(source=publisher.checkpoint)


def test_names_and_files(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.get(source=publisher.checkpoint)
    assert locate("small") == fetch.place_of(MODELS["small"]) == locate(Path("small"))
    monkeypatch.chdir(tmp_path)
    load(locate("small")).save(tmp_path / "own.safetensors")
    assert locate("own.safetensors") == Path("own.safetensors")
    (tmp_path / "small").write_text("a file of this name goes first")
    with pytest.raises(InputError, match="not a readable model file"):
        equipes.load("small")
    for name in ("smal", "no/such/file", "absent.safetensors"):
        with pytest.raises(InputError, match="no such model file"):
            equipes.load(name)
    with pytest.raises(InputError, match="did you mean 7net-0"):
        get("7net-o")


def test_recognised_by_what_is_in_it(publisher: Publisher, tmp_path: Path) -> None:
    moved = publisher.checkpoint.rename(tmp_path / "no_suffix")
    assert read_checkpoint(moved).architecture == "sevennet"
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pth")
    (tmp_path / "text.model").write_text("text")
    load(publisher.get(source=moved)).save(tmp_path / "ours.safetensors")
    for name, sentence in (
        ("other.pth", "another kind"),
        ("text.model", "another kind"),
        ("absent.pth", "no such file"),
        ("ours.safetensors", "nothing to convert"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_checkpoint(tmp_path / name)


def test_used_by_name(publisher: Publisher, tmp_path: Path) -> None:
    """Calculator and commands take the name, and give what the file gives."""
    publisher.get(source=publisher.checkpoint)
    atoms = structure()
    atoms.calc = equipes.Calculator("small")
    energy = atoms.get_potential_energy()
    atoms.calc = equipes.Calculator(locate("small"), species=["H", "C", "O"])
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-6)
    write(tmp_path / "in.extxyz", structure())
    for command in (
        [
            "md",
            "small",
            "in.extxyz",
            "--steps",
            "2",
            "--ensemble",
            "nve",
            "--temperature",
            "1",
            "--out",
            "run",
        ],
        ["predict", "small", "in.extxyz", "out.extxyz"],
        ["evaluate", "small", "out.extxyz"],
        ["info", "small"],
        ["models", "info", "small"],
        ["models", "list"],
        ["models", "get", "small"],
    ):
        done = run_forked(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    found = read(tmp_path / "out.extxyz").get_potential_energy()
    assert found == pytest.approx(energy, rel=1e-6)


def test_fetched_where_it_is_first_used(publisher: Publisher, tmp_path: Path) -> None:
    publisher.install(tmp_path / "site")
    write(tmp_path / "in.extxyz", structure())
    done = run_forked("predict", "small", "in.extxyz", "out.extxyz", cwd=tmp_path)
    assert done.returncode == 0 and "found in the installed package" in done.stderr
    assert (publisher.data / "models" / "small.safetensors").is_file()


def test_one_kind_of_calculation_of_several(publisher: Publisher, tmp_path: Path) -> None:
    checkpoint = Reference(config(**modal({"fine": 0, "coarse": 1}))).save(tmp_path / "modal.pth")
    publisher.publish(sha256=None)
    publisher.get(source=checkpoint)
    write(tmp_path / "in.extxyz", structure())
    energies = []
    for name in ("fine", "coarse"):
        atoms = structure()
        atoms.calc = equipes.Calculator("small", modal=name)
        done = run_forked("predict", "small", "in.extxyz", f"{name}.extxyz", "--modal", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        energies.append(atoms.get_potential_energy())
        assert read(tmp_path / f"{name}.extxyz").get_potential_energy() == pytest.approx(
            energies[-1], rel=1e-6
        )
    assert abs(energies[0] - energies[1]) > 0.1
    for options, sentence in (([], "choose one with --modal"), (["--modal", "other"], "fine, coarse")):
        done = run_forked("eos", "small", "in.extxyz", *options, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr


def test_the_commands_say_what_there_is(publisher: Publisher, tmp_path: Path) -> None:
    listed = json.loads(run_forked("models", "list", "--json", "-", cwd=tmp_path).stdout)["models"]
    assert {model["name"] for model in listed} == set(MODELS)
    assert not any(model["here"] for model in listed)
    done = run_forked("models", "get", "small", "--from", publisher.checkpoint, "--json", "-", cwd=tmp_path)
    (model,) = json.loads(done.stdout)["models"]
    assert Path(model["here"]).is_file() and "MIT licence" in done.stderr
    shown = run_forked("models", "info", "7net-mf-0", cwd=tmp_path).stdout
    assert (
        "R2SCAN, PBE" in shown
        and "doi:10.1021/jacs.4c14455" in shown
        and "equipes models get 7net-mf-0" in shown
    )
    for arguments, sentence in (
        (["get", "none"], "no published potential is called 'none'"),
        (["info", "none"], "no published potential is called 'none'"),
        (["get", "small", "7net-0", "--from", "x"], "--from FILE is for one NAME"),
        (["get", "mace-omat-0-medium"], "--accept-licence"),
    ):
        done = run_forked("models", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr, arguments


def test_convert_recognises_a_checkpoint(publisher: Publisher, tmp_path: Path) -> None:
    done = run_forked("convert", publisher.checkpoint, "out.safetensors", cwd=tmp_path)
    assert done.returncode == 0 and "sevennet" in done.stdout, done.stderr
    assert equipes.load(tmp_path / "out.safetensors").architecture == "sevennet"
