"""What to train and to test on: rMD17 with its official splits, molecules heated beyond the training data, crystals and
melts of elements (mlearn).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipes.data import Frame, Units, read_frames
from equipes.errors import InputError

MOLECULES = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "paracetamol", "salicylic",
    "toluene", "uracil",
)  # fmt: skip
ELEMENTS = ("Ni", "Cu", "Li", "Mo", "Si", "Ge")
N_VALIDATION = 50
LEARNING_CURVE = (10, 25, 50, 100, 300, 950)
_KCAL = {"energy": "kcal/mol", "length": "Ang"}


@dataclass(frozen=True)
class HeldOut:
    """Frames that training never sees.

    Attributes:
        name: as in the published tables.
        path: the file.
        indices: which of its frames; None for all.
    """

    name: str
    path: Path
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Case:
    """One training: its data section, and the frames to test on afterwards.

    Attributes:
        benchmark: `rmd17`, `acac`, `3bpa` or `mlearn`.
        system: the molecule, or the element.
        n_train: frames to fit.
        data: the data section of the training's config.
        tests: in the order of the table.
    """

    benchmark: str
    system: str
    n_train: int
    data: dict[str, Any]
    tests: tuple[HeldOut, ...]

    @property
    def units(self) -> Units | None:
        return Units(**self.data["units"]) if "units" in self.data else None


def rmd17_case(folder: Path, molecule: str, n_train: int, split: int = 1) -> Case:
    """The first `n_train` frames of an official training split, its last 50 to validate, the official test split.

    Args:
        folder: with `rmd17_<molecule>_train_01.npz` and `…_test_01.npz`, or the official archive unpacked:
            `npz_data/rmd17_<molecule>.npz` and `splits/index_train_01.csv`, below it or below `rmd17/`.
        molecule: its name in the archive.
        n_train: 1 to 950.
        split: 1 to 5.

    Raises:
        InputError: an unknown molecule, a size out of range, or files that are not there.
    """
    if molecule not in MOLECULES:
        raise InputError(f"rMD17 has no molecule '{molecule}'; it has {', '.join(MOLECULES)}")
    if not 1 <= n_train <= 1000 - N_VALIDATION:
        raise InputError(
            f"{n_train} frames: a split of rMD17 has 1000, {N_VALIDATION} of them to validate; give fewer"
        )
    number = f"{split:02d}"
    own = [folder / f"rmd17_{molecule}_{part}_{number}.npz" for part in ("train", "test")]
    if all(path.is_file() for path in own):
        train, test, order = own[0], HeldOut("test", own[1]), np.arange(1000)
    else:
        root = folder / "rmd17" if (folder / "rmd17").is_dir() else folder
        train = root / "npz_data" / f"rmd17_{molecule}.npz"
        if not train.is_file():
            raise InputError(
                f"{folder}: neither {own[0].name} nor npz_data/{train.name} is there; give the folder of rMD17, "
                "or --download to fetch it"
            )
        order = _indices(root / "splits" / f"index_train_{number}.csv")
        test = HeldOut("test", train, tuple(_indices(root / "splits" / f"index_test_{number}.csv").tolist()))
    data = {
        "train": str(train),
        "n_train": order[:n_train].tolist(),
        "n_val": order[-N_VALIDATION:].tolist(),
        "units": _KCAL,
    }
    return Case("rmd17", molecule, n_train, data, (test,))


def _indices(path: Path) -> np.ndarray:
    try:
        indices = np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a list of frame numbers ({error}); unpack the archive of rMD17 again"
        ) from error
    if len(indices) != 1000 or len(np.unique(indices)) != 1000:
        raise InputError(f"{path}: not 1000 different frame numbers; unpack the archive of rMD17 again")
    return indices


def temperature_case(
    folder: Path, benchmark: str, n_train: int = 450, *, isolated_atoms: bool = False
) -> Case:
    """Trained at 300 K, tested elsewhere: acetylacetone (`acac`) and 3BPA (`3bpa`).

    Of `train_300K.xyz` the last 50 frames validate. Every `test_*.xyz` is a test set. Reference energies are fitted to
    the frames; with `isolated_atoms` they are those of `isolated_atoms.xyz` or `iso_atoms.xyz`, and the energy of
    atomisation, tens of eV, is to be learnt too.

    Raises:
        InputError: no training file, no test file, no isolated atoms though asked for, or too few frames.
    """
    train = folder / "train_300K.xyz"
    tests = sorted(folder.glob("test_*.xyz"), key=lambda path: _kelvin(path.stem))
    if not train.is_file():
        raise InputError(f"{folder}: no {train.name}; give the folder of {benchmark}")
    if not tests:
        raise InputError(
            f"{folder}: no test_*.xyz to test on; give the folder with the test sets of {benchmark}"
        )
    count = len(read_frames(train))
    if n_train + N_VALIDATION > count:
        raise InputError(
            f"{train}: {count} frames are too few for {n_train} to train and {N_VALIDATION} to validate on"
        )
    data: dict[str, Any] = {
        "train": str(train),
        "n_train": list(range(n_train)),
        "n_val": list(range(count - N_VALIDATION, count)),
    }
    if isolated_atoms:
        found = [
            path for name in ("isolated_atoms", "iso_atoms") if (path := folder / f"{name}.xyz").is_file()
        ]
        if not found:
            raise InputError(f"{folder}: no isolated_atoms.xyz; leave out --isolated-atoms, or add it")
        data["reference_energies"] = _isolated_atoms(found[0])
    named = tuple(HeldOut(_published_name(path.stem), path) for path in tests)
    return Case(benchmark, benchmark, n_train, data, named)


def mlearn_case(folder: Path, element: str) -> Case:
    """One element of mlearn: its ground state, strained cells, surfaces, melts, and crystals with a vacancy.

    Y. Zuo et al., J. Phys. Chem. A 124, 731 (2020), doi:10.1021/acs.jpca.9b08723. Every tenth frame of
    `<element>_train.xyz` validates, so that each kind of structure does; `<element>_test.xyz` is the test set.

    Raises:
        InputError: an element that it does not have, or files that are not there.
    """
    if element not in ELEMENTS:
        raise InputError(f"mlearn has no element '{element}'; it has {', '.join(ELEMENTS)}")
    train, test = (folder / f"{element}_{part}.xyz" for part in ("train", "test"))
    for path in (train, test):
        if not path.is_file():
            raise InputError(
                f"{folder}: no {path.name}; give the folder of mlearn, converted to extended XYZ"
            )
    count = len(read_frames(train))
    validation = list(range(9, count, 10))
    data = {
        "train": str(train),
        "n_train": [index for index in range(count) if index not in set(validation)],
        "n_val": validation,
    }
    return Case("mlearn", element, count - len(validation), data, (HeldOut("test", test),))


def _kelvin(stem: str) -> tuple[bool, int, str]:
    """Test sets in the order of temperature, then the others."""
    found = re.search(r"(\d+)K", stem)
    return found is None, int(found[1]) if found else 0, stem


def _published_name(stem: str) -> str:
    """`test_MD_600K` and `test_600K` are 600K; `test_dih_beta120` is dih_beta120."""
    found = re.search(r"\d+K$", stem)
    return found[0] if found else stem.removeprefix("test_")


def _isolated_atoms(path: Path) -> dict[str, float]:
    energies = {}
    for frame in read_frames(path):
        if len(frame.atoms) != 1 or frame.energy is None:
            raise InputError(
                f"{frame.label}: not one atom with an energy, as a file of isolated atoms has them"
            )
        energies[str(frame.atoms.symbols[0])] = frame.energy
    return energies


def molecule_frames(test: HeldOut, units: Units | None) -> Sequence[Frame]:
    """The frames of a test set."""
    frames = read_frames(test.path, units=units)
    if test.indices is None:
        return frames
    if max(test.indices) >= len(frames):
        raise InputError(
            f"{test.path}: has {len(frames)} frames, but the split names frame {max(test.indices)}"
        )
    return [frames[index] for index in test.indices]
