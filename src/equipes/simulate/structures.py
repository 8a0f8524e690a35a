"""Reading the structure that a simulation starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
from ase.io import read

from equipes.errors import InputError


def read_structure(path: str | Path, frame: int = 0) -> ase.Atoms:
    """One structure of a file that ASE reads, with cell, velocities and constraints but without labels.

    Args:
        path: extended XYZ, CIF, POSCAR, trajectory, …
        frame: which one, counted from 0, or from the end if negative.

    Raises:
        InputError: a file that is missing or cannot be read, or a frame that it does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a structure")
    if path.suffix.lower() == ".npz":
        raise InputError(
            f"{path}: an npz file does not say its units; turn it into extended XYZ (equipes data convert)"
        )
    try:
        atoms: Any = read(path, index=frame, do_not_split_by_at_sign=True)
    except (IndexError, StopIteration) as error:
        raise InputError(
            f"{path}: has no frame {frame}; frames are counted from 0, or from the end with -1"
        ) from error
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read ({reason}); check that it is whole and of a format ASE knows"
        ) from error
    if len(atoms) == 0:
        raise InputError(f"{path} frame {frame}: no atoms; give a structure")
    atoms.calc = None
    return atoms


def read_trajectory(path: str | Path) -> list[ase.Atoms]:
    """All frames of a file that ASE reads. Raises `InputError` as `read_structure` does."""
    read_structure(path)  # which says what is wrong with the file, if anything
    try:
        frames: Any = read(path, index=":", do_not_split_by_at_sign=True)
    except Exception as error:  # a frame farther on may be broken
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read to its end ({reason}); check that it is whole") from error
    return list(frames)
