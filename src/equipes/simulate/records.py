"""What molecular dynamics leaves on the disk: trajectory, table, and a checkpoint that knows how long both were."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from zipfile import BadZipFile

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from equipes.errors import InputError
from equipes.files import atomic_write, writing_to

TRAJECTORY = "trajectory.extxyz"
TABLE = "md.csv"
CHECKPOINT = "checkpoint.npz"
SUMMARY = "md.json"
FINAL = "final.extxyz"
FAILURE = "failure.extxyz"
PLOT = "md.png"
OBSERVED_PLOT = "order.png"
PAGE = "report.html"
UNCERTAIN = "uncertain.extxyz"

# What calculators say of each atom beyond its force; see `equipes.Committee` and `equipes.Calculator`.
PER_ATOM = ("forces_std", "feature_distance")
_FORMAT = 1
_DIGITS = {"step": "d", "time_fs": ".10g", "temperature_k": ".4f", "pressure_gpa": ".6f"}


@dataclass(frozen=True)
class Row:
    """One row of md.csv; None where the ensemble or structure has no such quantity."""

    step: int
    time_fs: float
    potential_energy_ev: float
    kinetic_energy_ev: float
    total_energy_ev: float
    temperature_k: float
    conserved_energy_ev: float | None = None
    volume_ang3: float | None = None
    pressure_gpa: float | None = None

    def header(self) -> str:
        """The names of the columns that this row fills, as a line."""
        return ",".join(name for name, value in asdict(self).items() if value is not None) + "\n"

    def line(self) -> str:
        """The row as a line."""
        return (
            ",".join(
                format(value, _DIGITS.get(name, ".9f"))
                for name, value in asdict(self).items()
                if value is not None
            )
            + "\n"
        )


def read_table(path: Path) -> list[Row]:
    """The rows of an md.csv."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[0].split(",")
    rows = []
    for line in lines[1:]:
        values: dict[str, Any] = {
            name: float(value) for name, value in zip(names, line.split(","), strict=True)
        }
        rows.append(Row(**{**values, "step": int(values["step"])}))
    return rows


def snapshot(atoms: ase.Atoms, *, results: bool = True, **info: float) -> ase.Atoms:
    """A copy with positions, cell and momenta, and nothing else that came with the user's structure.

    With `results` it carries energy and forces too, and what the calculator says of their uncertainty.
    """
    frame = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses() if atoms.has("masses") else None,
        momenta=atoms.get_momenta() if atoms.has("momenta") else None,
        constraint=[constraint.copy() for constraint in atoms.constraints],
    )
    frame.info.update(info)
    if results:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
        for name in PER_ATOM:
            if name in getattr(atoms.calc, "results", {}):
                frame.set_array(name, np.array(atoms.calc.results[name]))
    return frame


def frame_text(frame: ase.Atoms) -> bytes:
    """One frame of extended XYZ."""
    text = io.StringIO()
    write_extxyz(text, [frame])
    return text.getvalue().encode()


class Recorder:
    """Appends rows and frames, whole ones only as far as a checkpoint knows them.

    A checkpoint is written after what it counts is on the disk. Continuing cuts both files to the lengths that it
    names, so no row or frame is missing or twice, whenever the process was killed.
    """

    def __init__(self, out: Path, *, table_bytes: int = 0, trajectory_bytes: int = 0) -> None:
        self.out = out
        with writing_to(out):
            self._table = _open_at(out / TABLE, table_bytes)
            self._trajectory = _open_at(out / TRAJECTORY, trajectory_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.close()
        self._trajectory.close()

    def append(self, row: Row, frame: ase.Atoms | None) -> None:
        """Add a row, and a frame if there is one; raises `InputError` on a full disk."""
        with writing_to(self.out):
            self._table.write(
                (row.header() if self._table.tell() == 0 else "").encode() + row.line().encode()
            )
            if frame is not None:
                self._trajectory.write(frame_text(frame))
            self._table.flush()
            self._trajectory.flush()

    def checkpoint(self, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Put a state on the disk from which the run can go on: arrays, and anything that JSON can hold."""
        with writing_to(self.out):
            for file in (self._table, self._trajectory):
                file.flush()
                os.fsync(file.fileno())
        facts = {
            **facts,
            "format": _FORMAT,
            "table_bytes": self._table.tell(),
            "trajectory_bytes": self._trajectory.tell(),
        }
        with atomic_write(self.out / CHECKPOINT, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)


def read_checkpoint(out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of the last checkpoint in `out`; raises `InputError` when there is none that can be read."""
    path = out / CHECKPOINT
    if not path.is_file():
        raise InputError(f"{out} has no {CHECKPOINT} to continue from; leave out --resume to start anew")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(str(arrays.pop("facts")))
        version = facts["format"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is damaged; start anew with --overwrite") from error
    if version != _FORMAT:
        raise InputError(f"{path} has format {version}, and this version reads {_FORMAT}; start anew")
    for name, key in ((TABLE, "table_bytes"), (TRAJECTORY, "trajectory_bytes")):
        length = (out / name).stat().st_size if (out / name).is_file() else 0
        if length < facts[key]:
            raise InputError(
                f"{out / name} is shorter than when {CHECKPOINT} was written; start anew with --overwrite"
            )
    return arrays, facts


def remove_old_records(out: Path) -> None:
    """Delete what an earlier run left, so that nothing of it is taken for the new one's."""
    names = (
        TRAJECTORY, TABLE, CHECKPOINT, SUMMARY, FINAL, FAILURE, PLOT, OBSERVED_PLOT, PAGE, UNCERTAIN,
    )  # fmt: skip
    for name in names:
        (out / name).unlink(missing_ok=True)


def remove_other_runs(folder: Path, earlier: Iterable[str], names: Collection[str]) -> None:
    """Delete those of the `earlier` runs in `folder` that are not among `names`.

    What runs write is deleted, and their directories if nothing else is there.
    """
    for name in earlier:
        where = folder / name
        if name not in names and Path(name).name == name and (where / CHECKPOINT).is_file():
            remove_old_records(where)
            with suppress(OSError):
                where.rmdir()


def _open_at(path: Path, length: int) -> BinaryIO:
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(length)
    file.seek(length)
    return file
