"""Checkpoints are read as data: what a hostile or damaged one asks for does not happen."""

from __future__ import annotations

import collections
import io
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipes.errors import InputError
from equipes.foundation import read_sevennet
from equipes.foundation.pickles import Record, read_pickled
from sevennet_checkpoints import plain


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class WithState:
    """Pickles as an object of this class with a state."""

    def __init__(self) -> None:
        self.path = "state"

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("ran")


def archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **changes: Any) -> Path:
    """A checkpoint with this pickle."""
    with zipfile.ZipFile(path, "w", changes.get("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", changes.get("byteorder", "little"))
        for name, content in (storages or {}).items():
            file.writestr(f"archive/data/{name}", content)
    return path


def tensor(length: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of a float32 tensor on the storage "0"."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", length) if isinstance(value, Storage) else None

    stream = io.BytesIO()
    rebuilt = Call(
        torch._utils._rebuild_tensor_v2, Storage(), offset, shape, strides, False, collections.OrderedDict()
    )
    Pickler(stream, 2).dump(rebuilt)
    return stream.getvalue()


def hostile(proof: Path) -> dict[str, bytes]:
    """Pickles that would do something, as `pickle.loads` runs them."""
    port = 47_113
    calls = {
        "write a file": Call(open, str(proof), "w"),
        "run a command": Call(os.system, f"touch {proof}"),
        "run python": Call(exec, f"open({str(proof)!r}, 'w')"),
        "evaluate": Call(eval, f"open({str(proof)!r}, 'w')"),
        "run a program": Call(subprocess.Popen, ["touch", str(proof)]),
        "open a socket": Call(socket.create_connection, ("127.0.0.1", port)),
        "allocate 100 GB": Call(bytearray, 100_000_000_000),
        "allocate a tensor of 100 GB": Call(torch.Tensor, 25_000_000_000),
        "allocate an array of 100 GB": Call(np.zeros, 100_000_000_000),
        "import a module": Call(__import__, "antigravity"),
        "load another pickle": Call(pickle.loads, pickle.dumps(Call(open, str(proof), "w"))),
        "load by torch": Call(torch.load, str(proof)),
        "look something up": Call(getattr, Call(__import__, "os"), "getcwd"),
        "a class with a state": WithState(),
    }  # fmt: skip
    programs = {
        f"{name}, protocol {p}": pickle.dumps(call, p) for name, call in calls.items() for p in (2, 4)
    }
    # Hidden in a dict of weights, where the rest looks right.
    weights = {"model_state_dict": {"x": calls["write a file"]}, "config": {}}
    programs["in the weights"] = pickle.dumps(weights, 2)
    # The old way of naming and calling at once, and an extension registry.
    programs["INST"] = b"(S'touch " + str(proof).encode() + b"'\nios\nsystem\n."
    programs["OBJ"] = b"(cos\nsystem\nS'touch " + str(proof).encode() + b"'\no."
    programs["EXT"] = b"\x80\x02\x82\x01."
    # C unpicklers make room for as many memos as the highest number.
    programs["a memo of 64 GB"] = b"\x80\x02Nr\xff\xff\xff\xff."
    programs["bytes of 100 GB"] = b"\x80\x04\x8e" + struct.pack("<Q", 100_000_000_000) + b"abc."
    programs["a string of 100 GB"] = b"\x80\x04\x8d" + struct.pack("<Q", 100_000_000_000) + b"abc."
    programs["a long frame"] = b"\x80\x04\x95" + struct.pack("<Q", 100_000_000_000) + b"N."
    programs["no end"] = b"\x80\x02}"
    programs["nothing"] = b""
    programs["empty stack"] = b"\x80\x02."
    programs["self-containing"] = b"\x80\x02]q\x00h\x00a."
    return programs


def test_hostile_pickles_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof"
    programs = hostile(proof)
    opened: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *where: opened.append(where))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, program in programs.items():
        path = archive(tmp_path / "model.pth", program)
        with pytest.raises(InputError, match=r"model\.pth: ") as caught:
            read_sevennet(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 250, name
        assert not proof.exists(), name
    assert not opened
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_the_hostile_pickles_would_work(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    proof = tmp_path / "proof"
    for name in ("write a file, protocol 2", "run a command, protocol 4", "INST", "OBJ"):
        pickle.loads(hostile(proof)[name])
        assert proof.exists(), name
        proof.unlink()


def test_what_is_asked_for_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pth", pickle.dumps(Call(os.system, "true"), 2))
    with pytest.raises(InputError, match=r"asks for '(posix|nt)', 'system'.*nothing of it was run"):
        read_sevennet(path)


def test_plain_checkpoints_are_read(tmp_path: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    content = {
        "dict": {"a": 1, 2: -3.5, "nested": [True, False, None, (), (1,), (1, 2, 3, 4, 5)]},
        "large": 2**40,
        "negative": -(2**70),
        "text": "Å" * 300,
        "grid": grid,
        "transposed": grid.t(),
        "column": grid[:, 2],
        "ordered": collections.OrderedDict(a=torch.ones(2, dtype=torch.float64)),
        "integers": torch.tensor([1, 2, 3]),
        "flags": torch.tensor([True, False]),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "array": np.arange(3.0),
        "device": torch.device("cpu"),
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pth")
    found = read_pickled(tmp_path / "model.pth")
    assert found.keys() == content.keys()
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
        elif name in ("array", "device"):
            assert isinstance(found[name], Record)
        elif name == "ordered":
            assert torch.equal(found[name]["a"], value["a"])
        else:
            assert found[name] == value, name


@pytest.mark.parametrize(
    ("length", "shape", "strides", "offset"),
    [
        (4, (5,), (1,), 0),
        (4, (4,), (1,), 1),
        (4, (2, 2), (3, 1), 0),
        (4, (4,), (-1,), 3),
        (4, (-4,), (1,), 0),
        (4, (25_000_000_000,), (0,), 0),
        (4, (2**40, 2**40), (0, 0), 0),
    ],
)
def test_tensors_do_not_reach_beyond_their_data(
    tmp_path: Path, length: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    stored = {"0": np.arange(4, dtype=np.float32).tobytes()}
    good = archive(tmp_path / "good.pth", tensor(4, (2, 2), (2, 1)), stored)
    assert read_pickled(good).tolist() == [[0.0, 1.0], [2.0, 3.0]]
    bad = archive(tmp_path / "bad.pth", tensor(length, shape, strides, offset), stored)
    with pytest.raises(InputError, match="not lie in its storage"):
        read_pickled(bad)


def test_archives_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pickled(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_bytes(b"not a zip")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({"a": 1}))
    for name in ("text.pth", "legacy.pth"):
        with pytest.raises(InputError, match=r"not a file written by torch\.save"):
            read_pickled(tmp_path / name)
    bomb = archive(tmp_path / "bomb.pth", pickle.dumps("0" * 10**7, 2), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    with pytest.raises(InputError, match="compressed parts"):
        read_pickled(bomb)
    with pytest.raises(InputError, match="byte order"):
        read_pickled(archive(tmp_path / "big.pth", pickle.dumps({}, 2), byteorder="big"))
    with zipfile.ZipFile(tmp_path / "empty.pth", "w") as file:
        file.writestr("archive/version", "3")
    with pytest.raises(InputError, match=r"not a file written by torch\.save"):
        read_pickled(tmp_path / "empty.pth")


def test_damaged_checkpoints_are_refused_or_read(tmp_path: Path) -> None:
    """Cut short, and with bytes changed: an `InputError`, or a model where the damage met nothing that matters."""
    whole = plain().save(tmp_path / "good.pth").read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "model.pth"
    for length in rng.integers(0, len(whole) - 1, 60):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.pth: "):
            read_sevennet(path)
    start, end = whole.index(b"data.pkl"), whole.index(b"data/0")
    outcomes = collections.Counter()
    for trial in range(400):
        damaged = bytearray(whole)
        # Mostly in the pickle, where a wrong byte means another instruction; the checksum there is put right again.
        low, high = (start + 8, end) if trial % 4 else (0, len(whole))
        for place in rng.integers(low, high, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        if trial % 4:
            path.write_bytes(with_checksums(bytes(damaged), path))
        try:
            read_sevennet(path)
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 5, outcomes


def with_checksums(content: bytes, path: Path) -> bytes:
    """The archive written anew around the same entries, so that damage is met by the reader and not by the checksum."""
    whole = bytearray(content)
    with zipfile.ZipFile(path) as file:
        entries = {}
        for info in file.infolist():
            name_length, extra_length = struct.unpack_from("<HH", whole, info.header_offset + 26)
            first = info.header_offset + 30 + name_length + extra_length
            entries[info.filename] = bytes(whole[first : first + info.file_size])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path.read_bytes()


def test_reading_imports_nothing(tmp_path: Path) -> None:
    """In a fresh process: the modules that a pickle names are not imported."""
    archive(tmp_path / "model.pth", pickle.dumps(Call(__import__, "antigravity"), 4))
    code = (
        "import sys\nfrom equipes.errors import InputError\nfrom equipes.foundation import read_sevennet\n"
        f"try: read_sevennet({str(tmp_path / 'model.pth')!r})\n"
        "except InputError as error: print('refused', 'antigravity' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["refused", "False"]
