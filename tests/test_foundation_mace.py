"""Checkpoints of the MACE package give its energies, forces and stress here, and nothing that is in them runs."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import resource
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from command_line import run_forked
from equipes.calculators import Calculator
from equipes.errors import InputError
from equipes.foundation import pickles, read_mace_checkpoint
from equipes.foundation.mace import recognises
from equipes.foundation.mace_weights import plain_number
from equipes.graph import AtomGraph
from equipes.models import Potential, load
from equipes.models.potential import Prediction

BUNDLED = Path(__file__).parent / "data" / "mace"
NAMES = ("agnostic_two_heads", "density_agnesi_zbl", "residual_soft_four_bodies")
GOLDENS = ("mp0_small_like", "mp0_medium_like", "mpa0_medium_like", "rmd17_like")


def predict(potential: Potential, atoms: Atoms) -> Prediction:
    return potential(AtomGraph.from_atoms(atoms, potential.cutoff))


def error(actual: Any, expected: Any, scale: float | None = None) -> float:
    """Largest difference over the largest element (or `scale`)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    size = np.abs(expected).max() if scale is None else scale
    return float(np.abs(actual - expected).max() / size) if size else float(np.abs(actual).max())


def differences(potential: Potential, atoms: Atoms, expected: dict[str, Any]) -> dict[str, float]:
    """Energies without those of the isolated atoms, forces and stress, relative to their size."""
    result = predict(potential, atoms)
    model = potential.model
    alone = model.atomic_energies[model.head, potential.type_of_number[torch.tensor(atoms.numbers)]].numpy()
    found = {}
    if "energies" in expected:
        found["energies"] = error(result.energies.numpy() - alone, np.array(expected["energies"]) - alone)
    interaction = abs(expected["energy"] - alone.sum())
    found["energy"] = error(result.energy[0].item(), expected["energy"], max(interaction, 1e-3))
    found["forces"] = error(result.forces.numpy(), expected["forces"])
    if expected.get("stress") is not None:
        found["stress"] = error(result.stress[0].numpy(), expected["stress"])
    return found


def recorded(name: str) -> dict[str, Any]:
    return json.loads((BUNDLED / f"{name}.json").read_text())


def atoms_of(golden: dict[str, Any]) -> Atoms:
    return Atoms(golden["symbols"], positions=golden["positions"], cell=golden["cell"], pbc=golden["pbc"])


@pytest.mark.parametrize("name", NAMES)
def test_bundled(name: str) -> None:
    for key, golden in recorded(name).items():
        head = key.split("/")[0]
        for dtype, tolerance in ((None, 1e-12), ("float32", 1e-4)):
            potential = read_mace_checkpoint(BUNDLED / f"{name}.model", head=head, dtype=dtype)
            assert potential.dtype == (torch.float64 if dtype is None else torch.float32)
            found = differences(potential, atoms_of(golden), golden)
            assert max(found.values()) <= tolerance, (key, found)


@pytest.mark.parametrize("name", GOLDENS)
def test_all(shared_data: Path, name: str) -> None:
    """Structures and forces are written with 8 decimals; files in float32 have couplings rounded to that."""
    folder = shared_data / "goldens" / "mace"
    for dtype in ("float64", "float32"):
        potential = read_mace_checkpoint(folder / f"{name}.model", dtype=dtype)
        tolerance = 1e-4 if dtype == "float32" else 1e-5 if name.startswith("mp") else 2e-7
        for atoms in ase.io.read(folder / f"{name}.extxyz", index=":"):
            stress = atoms.calc.results.get("stress")
            expected = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": None if stress is None else atoms.get_stress(voigt=False),
            }
            found = differences(potential, atoms, expected)
            assert max(found.values()) <= tolerance, (dtype, atoms.info["name"], found)


@pytest.mark.parametrize("name", ["mp0_small_like", "mpa0_medium_like"])
def test_frozen_like_the_package(shared_data: Path, name: str) -> None:
    """For the elements of the structures, to the error of positions written with 8 decimals."""
    folder = shared_data / "goldens" / "mace"
    potential = read_mace_checkpoint(folder / f"{name}.model", dtype="float64")
    for atoms in ase.io.read(folder / f"{name}.extxyz", index=":"):
        frozen = potential.freeze(sorted(set(atoms.get_chemical_symbols())), tolerance=1e-7)
        graph = AtomGraph.from_atoms(atoms, frozen.cutoff)
        result, there = frozen(graph), frozen.on("cpu")(graph)
        # The form for GPUs, which computes here with plain torch.
        assert there.energy.item() == pytest.approx(result.energy.item(), rel=1e-12)
        assert error(there.forces.numpy(), result.forces.numpy()) < 1e-10
        assert result.energy.item() == pytest.approx(atoms.get_potential_energy(), rel=1e-6), atoms.info[
            "name"
        ]
        assert error(result.forces.numpy(), atoms.get_forces()) < 1e-5
        if "stress" in atoms.calc.results:
            assert error(result.stress[0].numpy(), atoms.get_stress(voigt=False)) < 1e-5


def test_every_weight_counts() -> None:
    """A change of any weights by a thousandth is seen, except in those of the head that is not used."""
    golden = recorded(NAMES[0])["Default/crystal"]
    potential = read_mace_checkpoint(BUNDLED / f"{NAMES[0]}.model", head="Default")
    for name, parameter in potential.named_parameters():
        kept = parameter.detach().clone()
        parameter.data = kept * (1 + 1e-3)
        if name == "model.atomic_energies":  # `differences` takes them off
            worst = abs(predict(potential, atoms_of(golden)).energy.item() - golden["energy"])
        else:
            worst = max(differences(potential, atoms_of(golden), golden).values())
        parameter.data = kept
        assert worst > 3e-12, f"{name}: {worst:.1e}"


def test_heads_are_asked_for(tmp_path: Path) -> None:
    path = BUNDLED / "agnostic_two_heads.model"
    assert read_mace_checkpoint(path).model.head == 0
    assert read_mace_checkpoint(path, head="other").model.head == 1
    with pytest.raises(InputError, match=r"model\.head must be one of Default, other, not third"):
        read_mace_checkpoint(path, head="third")


def test_round_trip_through_our_file_is_bit_equal(tmp_path: Path) -> None:
    for name in NAMES:
        potential = read_mace_checkpoint(BUNDLED / f"{name}.model", dtype="float32")
        potential.save(tmp_path / f"{name}.safetensors")
        again = load(tmp_path / f"{name}.safetensors")
        atoms = atoms_of(next(iter(recorded(name).values())))
        first, second = predict(potential, atoms), predict(again, atoms)
        for field in ("energies", "forces", "stress"):
            assert torch.equal(getattr(first, field), getattr(second, field))


def test_recognises() -> None:
    assert all(recognises(BUNDLED / f"{name}.model") for name in NAMES)
    assert not recognises(BUNDLED / "README.md")
    assert not recognises(BUNDLED / "absent.model")
    assert not recognises(BUNDLED.parent / "ethanol.npz")


# Files that mean harm


def written(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A zip as torch.save writes it, around any program."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", sys.byteorder)
        for key, content in (storages or {"0": bytes(64)}).items():
            archive.writestr(f"model/data/{key}", content)
    return path


class Does:
    """A pickle that calls a function when it is loaded by the library."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(tmp_path: Path) -> dict[str, bytes]:
    """Programs that write a file, open a socket, start a command, fill the memory, or never end."""
    mark = tmp_path / "mark"
    module = f"open({str(mark)!r}, 'w').write('was here')"
    address = ("127.0.0.1", 9)
    dumps = {
        "write": pickle.dumps(Does(exec, module), 2),
        "write 4": pickle.dumps(Does(exec, module), 4),
        "evaluate": pickle.dumps(Does(eval, module), 2),
        "open": pickle.dumps(Does(open, str(mark), "w"), 2),
        "system": pickle.dumps(Does(os.system, f"touch {mark}"), 2),
        "socket": pickle.dumps(Does(socket.create_connection, address, 1), 2),
        "in a dict": pickle.dumps({"model": [Does(os.system, f"touch {mark}")]}, 2),
        # mace.modules.models.ScaleShiftMACE, whose state is a call
        "in a model": b"\x80\x02cmace.modules.models\nScaleShiftMACE\n)\x81"
        + pickle.dumps({"_modules": Does(exec, module)}, 2)[2:-1]
        + b"b.",
        "100 GB of bytes": b"\x80\x04\x8e" + (100 * 2**30).to_bytes(8, "little") + b"x.",
        "100 GB of text": b"\x80\x04\x8d" + (100 * 2**30).to_bytes(8, "little") + b"x.",
        "a memo of 4 billion": b"\x80\x02Nr\xff\xff\xff\xff.",
        "bytearray of 100 GB": pickle.dumps(Does(bytearray, 100 * 2**30), 2),
        "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "deep tuples as a key": b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00K\x01s.",
        "list in itself": b"\x80\x02]q\x00h\x00a.",
        "modules in themselves": b"\x80\x02cmace.modules.models\nScaleShiftMACE\n)\x81q\x00"
        b"}X\x08\x00\x00\x00_modulesq\x01}X\x01\x00\x00\x00aq\x02h\x00ssb.",
        "empty stack": b"\x80\x020.",
        "no end": b"\x80\x02]]]]",
        "nothing": b"",
        "get of nothing": b"\x80\x02h\x07.",
        "extension": b"\x80\x02\x82\x01.",
    }
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
    tensor = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    for name, (offset, size, stride) in {
        "tensor of 10^12 times one number": (0, (10**6, 10**6), (0, 0)),
        "tensor beyond its storage": (10, (4, 4), (4, 1)),
        "tensor before its storage": (-3, (2,), (1,)),
        "tensor of fractions": (0, (2.5,), (1,)),
    }.items():
        numbers = b"".join(pickle.dumps(x, 2)[2:-1] for x in (offset, size, stride))
        dumps[name] = tensor + numbers + b"\x89)tR."
    return dumps


CASES = tuple(hostile(Path("/nowhere")))


@pytest.fixture
def little_memory() -> Any:
    """No more than 2 GB beyond what is in use, so that a hundred cannot be taken by surprise."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc").is_dir()
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("case", CASES)
def test_hostile_programs_do_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "hostile.model", hostile(tmp_path)[case])

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", no_network)
    modules = set(sys.modules)
    with pytest.raises(InputError, match=r"hostile\.model: \S+ .{10}") as caught:
        read_mace_checkpoint(path)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "mark").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.model"}
    assert not {name for name in set(sys.modules) - modules if name.startswith(("mace", "e3nn"))}


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("tensor")])
def test_tensors_lie_in_their_storage(case: str, tmp_path: Path) -> None:
    """None is made that is larger than the numbers in the file, whoever would use it."""
    path = written(tmp_path / "tensor.pt", hostile(tmp_path)[case])
    with pytest.raises(InputError, match="a tensor that does not lie in its storage"):
        pickles.read_pickled(path)


def test_the_hostile_programs_are_hostile(tmp_path: Path) -> None:
    """pickle, which would be the obvious way of reading, runs them."""
    for case in ("write", "write 4", "evaluate", "open", "system", "in a dict"):
        pickle.loads(hostile(tmp_path)[case])
        assert (tmp_path / "mark").exists(), case
        (tmp_path / "mark").unlink()


def test_a_real_checkpoint_with_a_call_inside(tmp_path: Path) -> None:
    """The program of a real file, whose model has one more attribute: what a call would give."""
    with zipfile.ZipFile(BUNDLED / f"{NAMES[1]}.model") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in members if name.endswith("data.pkl"))
    evil = pickle.dumps({"evil": Does(os.system, f"touch {tmp_path / 'mark'}")}, 2)[2:-1]
    # After the model stands on the stack, its state is built once more with the call inside.
    assert members[program].endswith(b"b.")
    members[program] = members[program][:-1] + evil + b"0."
    path = tmp_path / "evil.model"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    golden = recorded(NAMES[1])["Default/crystal"]
    assert max(differences(read_mace_checkpoint(path), atoms_of(golden), golden).values()) < 1e-12
    assert not (tmp_path / "mark").exists()


def test_sizes_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = written(tmp_path / "packed.model", bytes(10**7), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        read_mace_checkpoint(packed)
    monkeypatch.setattr(pickles, "MAX_PROGRAM_BYTES", 10)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_mace_checkpoint(BUNDLED / f"{NAMES[0]}.model")
    monkeypatch.setattr(pickles, "MAX_MEMBERS", 3)
    with pytest.raises(InputError, match=r"torch\.save"):
        read_mace_checkpoint(BUNDLED / f"{NAMES[0]}.model")


def test_truncated_and_flipped_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """Either a sentence, or (in bytes that nothing reads) the very same potential."""
    whole = (BUNDLED / "density_agnesi_zbl.model").read_bytes()
    reference = [p.detach() for p in read_mace_checkpoint(BUNDLED / "density_agnesi_zbl.model").parameters()]
    path = tmp_path / "damaged.model"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged\.model"):
            read_mace_checkpoint(path)
    refused = 0
    # Spread over the file, and dense in its directory at the end.
    places = [*rng.integers(0, len(whole), 60), *rng.integers(len(whole) - 4000, len(whole), 60)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        try:
            found = list(read_mace_checkpoint(path).parameters())
        except InputError:
            refused += 1
            continue
        assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True)), place
    assert refused > 30


def changed(tmp_path: Path, change: Any, name: str = NAMES[1]) -> Path:
    """A bundled checkpoint whose pickled program is altered as bytes, lengths kept or not."""
    with zipfile.ZipFile(BUNDLED / f"{name}.model") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    path = tmp_path / "changed.model"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, change(content) if member.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ScaleShiftMACE", b"AtomicDipolesMACE", "holds a AtomicDipolesMACE"),
        (b"AgnesiTransform", b"OtherTransform", "distance transform OtherTransform"),
        (
            b"mace.modules.radial\nBesselBasis",
            b"mace.modules.radial\nGaussianBasis",
            "radial basis GaussianBasis",
        ),
        (
            b"RealAgnosticDensityResidualInteractionBlock",
            b"RealAgnosticAttResidualInteractionBlock",
            "RealAgnosticAttResidualInteractionBlock",
        ),
        (b"torch.nn.functional\nsilu", b"torch.nn.functional\ntanh", "activation"),
        (b"torch\nDoubleStorage", b"torch\nHalfStorage", "float16"),
    ],
)
def test_what_equipes_does_not_have(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = changed(tmp_path, lambda program: program.replace(old, new, 1))
    with pytest.raises(InputError, match=rf"changed\.model: .*({message})"):
        read_mace_checkpoint(path)


def test_other_files(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "dict.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    (tmp_path / "text.model").write_text("not a model")
    with zipfile.ZipFile(tmp_path / "zip.model", "w") as archive:
        archive.writestr("a/b.txt", "text")
    for name, words in (
        ("dict.pt", "holds a dict"),
        ("linear.pt", "holds a Linear"),
        ("text.model", r"torch\.save"),
        ("zip.model", r"torch\.save"),
        ("absent.model", "no such file"),
    ):
        with pytest.raises(InputError, match=rf"{name}.*{words}"):
            read_mace_checkpoint(tmp_path / name)
    with pytest.raises(InputError):
        read_mace_checkpoint(tmp_path)


def test_numbers_of_numpy(tmp_path: Path) -> None:
    """Some files have a NumPy number where others have a plain one."""
    for protocol in (2, 4):
        path = written(tmp_path / f"{protocol}.model", pickle.dumps(np.float64(61.9647), protocol))
        assert plain_number(pickles.read_pickled(path), "number") == 61.9647
    for value in (
        None,
        "x",
        True,
        math.nan,
        pickles.Record(pickles.Name("numpy", "scalar"), (None, b"short")),
    ):
        with pytest.raises(InputError, match="is no number"):
            plain_number(value, "number")


def test_tensors_and_containers_come_back(tmp_path: Path) -> None:
    """The reader reads what torch writes: views of one storage, every number type, containers of all kinds."""
    base = torch.arange(24, dtype=torch.float64)
    tensors = {
        "view": base.view(4, 6)[1:3, ::2],
        "whole": base,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        **{
            str(t): torch.ones(2).to(t)
            for t in (torch.int64, torch.int32, torch.bool, torch.float16, torch.bfloat16)
        },
    }
    stored = {
        "tensors": tensors,
        "tuple": (1, 2.5, "x", None, True, 2**70),
        "set": {"a", 1},
        "bytes": b"raw",
        7: [[], {}],
    }
    torch.save(stored, tmp_path / "data.pt")
    found = pickles.read_pickled(tmp_path / "data.pt")
    for name, tensor in tensors.items():
        assert torch.equal(found["tensors"][name], tensor) and found["tensors"][name].dtype == tensor.dtype
    assert found["tuple"] == stored["tuple"] and found["set"] == stored["set"] and found[7] == [[], {}]
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2).state_dict(), buffer)
    (tmp_path / "state.pt").write_bytes(buffer.getvalue())
    assert set(pickles.read_pickled(tmp_path / "state.pt")) == {"weight", "bias"}


def test_convert_on_the_command_line(tmp_path: Path) -> None:
    path = BUNDLED / "agnostic_two_heads.model"
    done = run_forked("convert", path, "out.safetensors", "--head", "other", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    golden = recorded("agnostic_two_heads")["other/crystal"]
    atoms = atoms_of(golden)
    atoms.calc = Calculator(tmp_path / "out.safetensors", dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(golden["energy"], abs=1e-10)
    assert atoms.get_stress(voigt=False) == pytest.approx(np.array(golden["stress"]), abs=1e-12)
    written(tmp_path / "evil.model", hostile(tmp_path)["system"])
    for arguments, words in (
        (["evil.model", "a.safetensors"], "evil.model: no checkpoint of"),
        ([BUNDLED.parent / "ethanol.npz", "a.safetensors", "--head", "x"], "no checkpoint of MACE"),
        ([path, "out.safetensors"], "--overwrite"),
        ([path, "b.safetensors", "--head", "x"], "model.head must be one of Default, other"),
    ):
        failed = run_forked("convert", *arguments, cwd=tmp_path)
        assert failed.returncode == 2
        assert words in failed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out.safetensors", "evil.model"}
