"""Reading frames: anything ASE reads, ASE databases, and the npz layouts of MD17 and rMD17."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import ase

from equipes.data.frames import SEARCH, Frame, LabelKeys
from equipes.data.labels import FALLBACK_KEYS, frame_from_atoms, named_values
from equipes.data.npz import read_npz
from equipes.data.units import Units
from equipes.errors import InputError

logger = logging.getLogger("equipes.data")

# What is read from a directory; any other format is read when its file is named.
_IN_DIRECTORIES = re.compile(
    r"(.+\.(xyz|extxyz|npz|db|traj)(\.(gz|bz2|xz))?|OUTCAR.*|.*vasprun.*\.xml(\.gz)?)", re.IGNORECASE
)
_OWN_UNITS = re.compile(r"OUTCAR|vasp.*\.xml", re.IGNORECASE)
_DATABASES = {".db", ".json", ".aselmdb"}

Paths = str | Path | Sequence[str | Path]


def read_frames(paths: Paths, *, keys: LabelKeys = SEARCH, units: Units | None = None) -> list[Frame]:
    """The frames of one or several files, one after another, in eV and Å.

    Energy, forces and stress are looked for under their usual names (`equipes.data.labels.USUAL_KEYS`) in the
    calculator's results, the frame's info, its arrays and the columns of a database; `free_energy` serves as
    energy only where there is no other, and a warning is logged. A label that a frame does not have is None. ASE's
    Voigt order (xx yy zz yz xz xy) holds for a stress of six numbers; a virial becomes -virial/volume.

    Args:
        paths: a file, a directory (all data files in it), a pattern such as `runs/*/OUTCAR`, or several of these.
        keys: names of the labels in the file, where they are not the usual ones.
        units: of positions and labels; None means eV and Å, except for npz, where they must be declared.

    Raises:
        InputError: a file that is missing, empty or cannot be read, a configured key that no frame has, undeclared
            units of an npz file, or labels of a wrong shape.
    """
    frames: list[Frame] = []
    available: dict[str, None] = {}
    for path, source in _files(paths):
        if not os.access(path, os.R_OK):
            raise InputError(f"{source}: no permission to read it; change its permissions")
        if path.suffix.lower() == ".npz":
            frames += read_npz(path, source, keys, units)
            continue
        if units not in (None, Units()) and _OWN_UNITS.search(path.name):
            raise InputError(
                f"{source}: files of this code carry their units, which are converted; leave data.units out for it"
            )
        count = 0
        for count, atoms in enumerate(_read_ase(path, source), start=1):
            if len(atoms) == 0:
                raise InputError(f"{source} frame {count - 1}: no atoms; remove the frame")
            frames.append(frame_from_atoms(atoms, source, count - 1, keys, units or Units()))
            available.update(dict.fromkeys(named_values(atoms)))
        if count == 0:
            raise InputError(f"{source}: no frames in it; give a file with at least one")
    _require_keys(frames, keys, list(available))
    if keys.energy is None:
        _say_fallbacks(frames)
    return frames


def _files(paths: Paths) -> Iterator[tuple[Path, str]]:
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise InputError("no data files given; name at least one")
    for name in map(str, given):
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(
                file for file in path.iterdir() if file.is_file() and _IN_DIRECTORIES.fullmatch(file.name)
            )
            if not found:
                raise InputError(
                    f"{name}: no data files in this directory (xyz, npz, db, traj, OUTCAR, vasprun.xml)"
                )
            yield from ((file, str(Path(name) / file.name)) for file in found)
        elif path.exists():
            yield path, name
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            yield from ((Path(match), match) for match in matches)
        else:
            what = "no file matches this pattern" if glob.has_magic(name) else "no such file"
            raise InputError(f"{name}: {what}; check the path")


def _read_ase(path: Path, source: str) -> Iterator[ase.Atoms]:
    from ase.db import connect
    from ase.io import iread

    whole = 0
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{source}: the file is empty; give one with frames")
        if path.suffix.lower() in _DATABASES:
            with connect(path) as database:
                for row in database.select():
                    yield row.toatoms(add_additional_information=True)
        else:
            for atoms in iread(path, index=":", do_not_split_by_at_sign=True):
                yield atoms
                whole += 1
    except InputError:
        raise
    # ASE's readers raise whatever their parsing meets, from IndexError to AssertionError.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        where = f" after {whole} whole frames" if whole else ""
        raise InputError(
            f"{source}: cannot be read{where} ({reason}); check that it is whole and of a format ASE knows"
        ) from error


def _require_keys(frames: Sequence[Frame], keys: LabelKeys, available: Sequence[str]) -> None:
    if not available:  # npz only, where the reader itself looks
        return
    for field in fields(LabelKeys):
        name = getattr(keys, field.name)
        if name is not None and all(getattr(frame.keys, field.name) is None for frame in frames):
            files = ", ".join(dict.fromkeys(frame.source for frame in frames))
            there = ", ".join(repr(key) for key in sorted(available)) or "nothing"
            raise InputError(
                f"{files}: no frame has {name!r} (there are {there}); set data.keys.{field.name} to one of them"
            )


def _say_fallbacks(frames: Sequence[Frame]) -> None:
    for source in dict.fromkeys(frame.source for frame in frames):
        read = [f for f in frames if f.source == source and f.keys.energy in FALLBACK_KEYS["energy"]]
        if read:
            logger.warning(
                "%s: %d frames have only a 'free_energy', which is taken; set data.keys.energy if another is meant",
                source,
                len(read),
            )
