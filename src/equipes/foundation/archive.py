"""Reading checkpoints that PyTorch pickled, as data: nothing in the file can name something that then runs."""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipes.errors import InputError

_MAX_PICKLE = (
    64 * 2**20
)  # bytes; the structure around the tensors of a real checkpoint takes a thousandth of it
_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_DICT = "collections OrderedDict"
# What tells of arrays and devices. We need none of them, so they stay what they are here: names.
_UNUSED = {
    "torch device",
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy.dtypes Float32DType",
    "_codecs encode",
}


class Unread:
    """What stands where a checkpoint has something that is neither a plain value nor a tensor."""

    def __repr__(self) -> str:
        return "(not read)"


class _RefusedError(Exception):
    """The reason why a checkpoint is not read."""


class _Name(str):
    """What a pickle calls by name."""


class _Mark:
    """The start of a group of values on the stack."""


def read_archive(path: str | os.PathLike[str]) -> Any:
    """The content of a file written by `torch.save`: dicts, lists, tuples, strings, numbers and tensors on the CPU.

    A pickle is a program, and unpickling runs it. Here only those of its instructions are followed that build data, by
    a reader that has no means to call anything; of the functions and classes that a checkpoint may name, tensors and
    ordered dicts are understood, NumPy arrays and devices are passed over (`Unread`), and any other is refused.
    Nothing larger than the file itself is allocated.

    Raises:
        InputError: the file is missing, damaged, or asks for more than that.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, path.stat().st_size).read()
    except _RefusedError as error:
        raise InputError(
            f"{path}: {error}; nothing of it was run. Fetch the file from its publisher"
        ) from error
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not a checkpoint that torch.save wrote, or only a part of one ({error}); fetch the file again"
        ) from error
    except (
        ArithmeticError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        MemoryError,
        EOFError,
    ) as error:
        raise InputError(
            f"{path}: the checkpoint is damaged ({type(error).__name__}); fetch the file again"
        ) from error


class _Reader:
    """One archive: a zip of the pickle and the storages of its tensors, all of them uncompressed."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in self.entries.values()) or (
            sum(entry.file_size for entry in self.entries.values()) > size
        ):
            raise _RefusedError("the archive unpacks to more than its size, which no checkpoint does")
        pickles = [name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _RefusedError("not a checkpoint that torch.save wrote (it has no data.pkl)")
        self.root = pickles[0].removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in self.entries and archive.read(order) != b"little":
            raise _RefusedError("it was written on a big-endian machine, which equipes does not read")
        self.storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        entry = self.entries[f"{self.root}data.pkl"]
        if entry.file_size > _MAX_PICKLE:
            raise _RefusedError(f"the structure of the checkpoint takes {entry.file_size / 2**20:.0f} MiB")
        return _run(self.archive.read(entry), self._storage)

    def _storage(self, reference: Any) -> Tensor:
        """The flat tensor that `("storage", type, key, device, length)` stands for."""
        kind, storage, key, _, length = reference
        dtype = _STORAGES.get(storage)
        if kind != "storage" or dtype is None:
            raise _RefusedError(f"it stores {_shown(storage)}, which equipes does not read")
        name = f"{self.root}data/{key}"
        if name not in self.storages:
            content = bytearray(self.archive.read(name))
            self.storages[name] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        stored = self.storages[name]
        if stored.dtype != dtype or len(stored) != length:
            raise _RefusedError(
                f"the tensor data {_shown(key)} are not of the size that the checkpoint states"
            )
        return stored


def _run(program: bytes, storage: Callable[[Any], Tensor]) -> Any:
    """Follow the instructions of a pickle that build data."""
    stack: list[Any] = []
    memory: dict[int, Any] = {}

    def group() -> list[Any]:
        """What lies on the stack above the last mark, taken off with it."""
        start = max(index for index, value in enumerate(stack) if isinstance(value, _Mark))
        values = stack[start + 1 :]
        del stack[start:]
        return values

    def fill(pairs: list[Any]) -> None:
        if type(stack[-1]) is not dict:
            raise _RefusedError("it sets items of something that is no dict")
        stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(values: list[Any]) -> None:
        if type(stack[-1]) is not list:
            raise _RefusedError("it appends to something that is no list")
        stack[-1].extend(values)

    argument: Any
    for instruction, argument, _ in pickletools.genops(program):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction.name == "NEWTRUE")
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE"
                | "BINBYTES" | "SHORT_BINBYTES"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(instruction.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "TUPLE":
                stack.append(tuple(group()))
            case "MARK":
                stack.append(_Mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                fill([key, value])
            case "SETITEMS":
                fill(group())
            case "APPEND":
                value = stack.pop()
                extend([value])
            case "APPENDS":
                extend(group())
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "MEMOIZE":
                memory[len(memory)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_known(f"{module} {name}"))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_made(name, arguments))
            case "BUILD":
                stack.pop()
                # A state dict carries attributes (its `_metadata`), which we do not need.
                if type(stack[-1]) not in (Unread, dict):
                    raise _RefusedError("it sets the state of something that has none")
            case other:
                raise _RefusedError(f"it has the instruction {other}, which no checkpoint needs")
    raise _RefusedError("it ends too early")


def _known(name: object) -> _Name:
    if name not in _STORAGES and name not in _UNUSED and name not in (_TENSOR, _DICT):
        raise _RefusedError(
            f"it asks for {_shown(str(name).replace(' ', '.'))}, which a checkpoint of weights has no need of"
        )
    return _Name(name)


def _made(name: Any, arguments: Any) -> Any:
    """What a function or class of this name would return."""
    if not isinstance(name, _Name):
        raise _RefusedError("it calls something that is no function")
    if name == _TENSOR:
        flat, offset, shape, strides = arguments[:4]
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        numbers = (offset, *shape, *strides)
        if (
            not isinstance(flat, Tensor)
            or any(type(number) is not int or number < 0 for number in numbers)
            or math.prod(shape) > len(flat)
            or (math.prod(shape) and last >= len(flat))
        ):
            raise _RefusedError("a tensor reaches beyond its data")
        return flat.as_strided(shape, strides, offset)
    if name == _DICT:
        if arguments != ():
            raise _RefusedError("an ordered dict is filled in an unusual way")
        return {}
    return Unread()


def _shown(value: object) -> str:
    """A few characters of what the file says, fit to print."""
    text = (
        "".join(c for c in str(value)[:80] if c.isprintable())
        if isinstance(value, str)
        else type(value).__name__
    )
    return f"'{text}'"
