"""Reading the data in pickled torch files without running anything that is in them.

A `.model` or `.pth` file with a pickled Python object is a program: `pickle` and `torch.load` without `weights_only`
run it. Here the program is interpreted by a machine that has no instruction for running anything: a call of any
function or class in the file becomes a `Record` of its name and arguments. Only tensors, sets and ordered dictionaries
are built. What the file makes us hold in memory is bounded by the file's own size.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipes.errors import InputError

MAX_PROGRAM_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**20
MAX_MEMBERS = 100_000
MAX_DIMENSIONS = 16
_MAX_NUMBERS = 2**40
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What damaged zip files make `zipfile` raise.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, KeyError, IndexError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A function or class that the file names: only its name, never the thing."""

    module: str
    name: str


@dataclass(eq=False)
class Record:
    """What a call in the file would have made: the name of what was called, the arguments, and what was put into it.

    Attributes:
        name: of the function or class.
        arguments: of the call.
        state: what `__setstate__` would have got, or None.
        items: what would have been appended or set by key.
    """

    name: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def attribute(self, key: str, default: Any = None) -> Any:
        """An entry of a state that is a dictionary."""
        return self.state.get(key, default) if isinstance(self.state, dict) else default

    def __repr__(self) -> str:
        return f"Record({self.name.module}.{self.name.name})"


class _MalformedError(ValueError):
    """The program makes no sense; the message says why."""


def is_pickled(path: str | os.PathLike[str], mentions: str) -> bool:
    """Whether a file is a torch zip whose program contains the text `mentions`; any other file is not."""
    try:
        with _Archive(Path(path)) as archive:
            return mentions.encode() in archive.program
    except InputError:
        return False


def read_pickled(path: str | os.PathLike[str]) -> Any:
    """The object in a file written by `torch.save`, with `Record`s in place of all objects but tensors and containers.

    Raises:
        InputError: the file is missing, damaged, or no such file.
    """
    path = Path(path)
    with _Archive(path) as archive:
        return _run(archive, path)


def read_packaged(
    path: str | os.PathLike[str], program: str, texts: Iterable[str]
) -> tuple[Any, dict[str, str]]:
    """An object in a file written by `torch.package`, as `read_pickled` gives it, and some of its texts.

    Args:
        path: the file.
        program: of the object, such as `model/eager_model.pkl`.
        texts: names of members to read beside it, none larger than `MAX_TEXT_BYTES`.

    Raises:
        InputError: the file is missing, damaged, or has no such members.
    """
    path = Path(path)
    with _Archive(path, program, ".data/{}.storage") as archive:
        return _run(archive, path), {name: archive.text(name) for name in texts}


def packages(path: str | os.PathLike[str], program: str) -> bool:
    """Whether a file is a zip of torch with this program in it; any other file is not."""
    try:
        with _Archive(Path(path), program):
            return True
    except InputError:
        return False


def _run(archive: _Archive, path: Path) -> Any:
    try:
        return _Machine(archive.tensor_storage).run(archive.program)
    except _MalformedError as error:
        raise InputError(
            f"{path}: {error}; the file is damaged or not what it claims, fetch it again"
        ) from error
    except _DAMAGED as error:
        raise InputError(f"{path}: cannot be read ({error}); the file is damaged, fetch it again") from error


class _Archive:
    """The zip around the program and the tensors' numbers; inside a folder of any name."""

    def __init__(self, path: Path, program: str = "data.pkl", storages: str = "data/{}") -> None:
        self.path = path
        self._program, self._place = program, storages
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the path of a model file")
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGED as error:
            raise InputError(
                f"{path}: not a file written by torch.save ({error}); it is damaged, or of another kind"
            ) from error
        try:
            self._root = self._check()
            self.program = self._zip.read(f"{self._root}/{program}")
        except InputError:
            self._zip.close()
            raise
        except _DAMAGED as error:
            self._zip.close()
            raise InputError(
                f"{path}: cannot be read ({error}); the file is damaged, fetch it again"
            ) from error
        self._storages: dict[str, Tensor] = {}

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _check(self) -> str:
        """The name of the archive's folder, once the sizes are known to be honest."""
        members = self._zip.infolist()
        programs = [member for member in members if member.filename.partition("/")[2] == self._program]
        if len(programs) != 1 or len(members) > MAX_MEMBERS:
            raise InputError(f"{self.path}: not a file written by torch.save; give the path of a model file")
        # torch stores without compression. A compressed member could unpack to any size.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(f"{self.path}: has compressed parts, which torch.save never writes; not read")
        if sum(member.file_size for member in members) > self.path.stat().st_size:
            raise InputError(
                f"{self.path}: claims more data than the file has; it is damaged, fetch it again"
            )
        if programs[0].file_size > MAX_PROGRAM_BYTES:
            raise InputError(
                f"{self.path}: its {self._program} is larger than {MAX_PROGRAM_BYTES} bytes; not read"
            )
        root = programs[0].filename.partition("/")[0]
        names = {member.filename for member in members}
        if f"{root}/byteorder" in names and self._zip.read(f"{root}/byteorder") != sys.byteorder.encode():
            raise InputError(f"{self.path}: written on a machine with another byte order; convert it there")
        return root

    def text(self, name: str) -> str:
        """A member that is a text."""
        try:
            if self._zip.getinfo(f"{self._root}/{name}").file_size > MAX_TEXT_BYTES:
                raise InputError(f"{self.path}: its {name} is larger than {MAX_TEXT_BYTES} bytes; not read")
            return self._zip.read(f"{self._root}/{name}").decode()
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError(
                f"{self.path}: its {name} cannot be read ({error}); the file is damaged, fetch it again"
            ) from error

    def tensor_storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """All numbers of one storage, `[n]`."""
        if key not in self._storages:
            content = bytearray(self._zip.read(f"{self._root}/{self._place.format(key)}"))
            if len(content) % dtype.itemsize:
                raise _MalformedError(f"the storage {key!r} has no whole number of {dtype} values")
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        storage = self._storages[key]
        if storage.dtype != dtype:
            raise _MalformedError(f"the storage {key!r} is used as {storage.dtype} and as {dtype}")
        return storage


class _Mark:
    """Where a list of arguments begins on the stack."""


_MARK = _Mark()
_SIMPLE_KEYS = (str, int, float, bool, bytes, type(None))


class _Machine:
    """The stack machine of the pickle language, for data only."""

    def __init__(self, tensor_storage: Callable[[str, torch.dtype], Tensor]) -> None:
        self.tensor_storage = tensor_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
                if opcode.name == "STOP":
                    return self._pop()
                if opcode.name in _CONSTANTS:
                    self.stack.append(_CONSTANTS[opcode.name](argument))
                elif opcode.name in _INSTRUCTIONS:
                    _INSTRUCTIONS[opcode.name](self, argument)
                elif opcode.name not in ("PROTO", "FRAME"):
                    raise _MalformedError(
                        f"its program has the instruction {opcode.name}, which torch.save never writes"
                    )
        except _MalformedError:
            raise
        except (IndexError, TypeError, AttributeError, UnicodeError) as error:
            raise _MalformedError(f"its program makes no sense ({error})") from error
        raise _MalformedError("its program has no end")

    # The stack

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _MalformedError("its program takes from an empty stack")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise _MalformedError("its program takes from an empty stack")
        self.stack.pop()
        return items[::-1]

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _MalformedError("its program takes from an empty stack")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        self._pop()

    def put(self, index: int) -> None:
        self.memo[index] = self._top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _MalformedError("its program refers to something that it never made")
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def tuple_from_mark(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    # Containers

    def append(self, _: Any) -> None:
        self._extend([self._pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.items += items
        elif isinstance(target, list):
            target += items
        else:
            raise _MalformedError("its program appends to something that is no list")

    def add_items(self, _: Any) -> None:
        items, target = self._pop_to_mark(), self._top()
        if not isinstance(target, set):
            raise _MalformedError("its program adds to something that is no set")
        target.update(_keys(items))

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise _MalformedError("its program sets a key without a value")
        pairs = zip(keys, values, strict=True)
        if isinstance(target, Record):
            target.items += list(pairs)
        elif isinstance(target, dict):
            target.update(zip(_keys(keys), values, strict=True))
        else:
            raise _MalformedError("its program sets keys of something that is no dictionary")

    # Objects

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def stack_name(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _MalformedError("its program names a class by something that is no text")
        self.stack.append(Name(module, name))

    def call(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise _MalformedError("its program calls something that has no name")
        self.stack.append(self._make(function, arguments))

    def call_with_keywords(self, _: Any) -> None:
        keywords = self._pop()
        self.call(None)
        if isinstance(self._top(), Record) and isinstance(keywords, dict):
            self._top().items += list(keywords.items())

    def build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, OrderedDict | Tensor):  # whose extra attributes nobody needs
            raise _MalformedError("its program gives a state to something that has none")

    def persistent(self, _: Any) -> None:
        identity = self._pop()
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise _MalformedError("its program refers to something outside that is no storage of a tensor")
        _, kind, key, _, _ = identity
        if not isinstance(kind, Name) or kind.name not in _STORAGES or not isinstance(key, str | int):
            raise _MalformedError(f"a tensor of unknown kind {getattr(kind, 'name', kind)!r}")
        self.stack.append(self.tensor_storage(str(key), _STORAGES[kind.name]))

    def _make(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        known = _MADE.get((function.module, function.name))
        return Record(function, arguments) if known is None else known(*arguments)


def _keys(items: Iterable[Any]) -> list[Any]:
    """The items, if hashing them is quick: a nest of tuples can take longer than the age of the world."""
    result = list(items)
    for item in result:
        parts = item if isinstance(item, tuple) else (item,)
        if not all(isinstance(part, _SIMPLE_KEYS) for part in parts):
            raise _MalformedError(f"a dictionary or set with a key of type {type(item).__name__}")
    return result


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage, if it lies inside and repeats nothing."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise _MalformedError("a tensor without numbers, or of too many dimensions")
    if not all(type(number) is int and 0 <= number < _MAX_NUMBERS for number in numbers):
        raise _MalformedError("a tensor that does not lie in its storage")
    count, last = 1, offset
    for extent, step in zip(size, stride, strict=True):
        count *= extent
        last += (extent - 1) * step
    if count and (last >= storage.numel() or count > storage.numel()):
        raise _MalformedError("a tensor that does not lie in its storage")
    return torch.as_strided(storage, size, stride, offset) if count else storage.new_empty(size)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    if arguments not in ((), ([],), ((),)):
        raise _MalformedError("an ordered dictionary made of something else")
    return OrderedDict()


def _set_of(*arguments: Any) -> set[Any]:
    items = arguments[0] if arguments else ()
    if not isinstance(items, list | tuple):
        raise _MalformedError("a set made of something else")
    return set(_keys(items))


_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set_of,
    ("__builtin__", "set"): _set_of,
}
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_SET": lambda _: set(),
    **dict.fromkeys(
        (
            "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
            "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
        ),
        lambda argument: argument,
    ),
}  # fmt: skip
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
