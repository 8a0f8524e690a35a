"""Results of independent calculations, kept on the disk as they come, so that a stopped workflow goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import BadZipFile

import ase
import numpy as np

from equipes.errors import InputError
from equipes.files import atomic_write

_SECONDS_BETWEEN_WRITES = 2.0
_WRITING = 0.05  # of the time, at most
_FORMAT = 1


def structure_key(atoms: ase.Atoms) -> str:
    """A short name for elements, positions, cell and periodicity, the same wherever the structure came from."""
    digest = hashlib.sha256()
    for array in (atoms.numbers.astype("<i8"), atoms.pbc.astype("<i8"), atoms.cell.array, atoms.positions):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{atoms.get_chemical_formula()} {digest.hexdigest()[:16]}"


class Store:
    """Named groups of arrays in one npz file, or only in memory.

    Args:
        path: the file; None keeps everything in memory.
        facts: what the calculations depend on (potential, structure, options), as plain JSON values. What is on the
            disk is used only if it was made with the same.
        resume: read what is there; without it the file starts empty.

    Raises:
        InputError: with `resume`, a file that is missing, damaged, or made with other facts.
    """

    def __init__(
        self, path: Path | None = None, facts: Mapping[str, Any] | None = None, *, resume: bool = False
    ):
        self.path = path
        self.facts = json.loads(json.dumps(dict(facts or {})))
        self._arrays: dict[str, np.ndarray] = {}
        self._written = time.monotonic()
        self._pause = _SECONDS_BETWEEN_WRITES
        self._changed = not resume
        self._made = False
        self.reused = 0
        if resume and path is not None:
            self._read(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, InputError) and not self._arrays:
            self._leave_nothing()
        else:
            self.write()

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under `name`; None if there are none."""
        found = {
            key.partition("|")[2]: array for key, array in self._arrays.items() if key.startswith(f"{name}|")
        }
        if not found:
            return None
        self.reused += 1
        return found

    def put(self, name: str, **arrays: Any) -> None:
        """Keep arrays under `name`; they are on the disk within seconds, or later where writing takes long."""
        self._arrays.update({f"{name}|{key}": np.asarray(value) for key, value in arrays.items()})
        self._changed = True
        if time.monotonic() - self._written > self._pause:
            self.write()

    def write(self) -> None:
        """Bring everything to the disk."""
        if self.path is None or not self._changed:
            return
        began = time.monotonic()
        self._made |= not self.path.exists()
        facts = np.array(json.dumps({"format": _FORMAT, "facts": self.facts}))
        with atomic_write(self.path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, facts=facts, **self._arrays)
        self._changed = False
        self._written = time.monotonic()
        self._pause = max(_SECONDS_BETWEEN_WRITES, (self._written - began) / _WRITING)

    def _leave_nothing(self) -> None:
        """Of a calculation that was refused before its first result."""
        if self.path is not None and self._made:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file to continue from; leave out --resume to start anew")
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            head = json.loads(str(arrays.pop("facts")))
            version, facts = head["format"], head["facts"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} is damaged; start anew with --overwrite") from error
        if version != _FORMAT:
            raise InputError(f"{path} has format {version}, and this version reads {_FORMAT}; start anew")
        for name in sorted({*facts, *self.facts}):
            if facts.get(name) != self.facts.get(name):
                raise InputError(
                    f"{path} was made with {name} = {facts.get(name)}, not {self.facts.get(name)}; continue with the"
                    " same, or start anew with --overwrite"
                )
        self._arrays = arrays
