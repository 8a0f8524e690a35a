"""Which frames are for training, validation and test; never one for two of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equipes.errors import InputError

# How many frames: a number, a fraction of all, their numbers, or a file with their numbers.
Size = int | float | Sequence[int] | np.ndarray | str | Path


def split_indices(
    n: int,
    n_train: Size | None,
    n_val: Size | None,
    n_test: Size | None = None,
    *,
    seed: int,
    keep: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Choose frames for training, validation and test at random, without overlap.

    A size is a number of frames (int), a fraction of all (float between 0 and 1), a list of frame numbers, or a file
    with them (`read_indices`). None means none for validation and test, and all that is left for training.
    Validation and test do not change when only `n_train` does, and smaller training sets are parts of larger ones.

    Args:
        n: number of frames.
        n_train: for training.
        n_val: for validation.
        n_test: for test.
        seed: equal seeds give equal splits.
        keep: frames that are not drawn but always for training (isolated atoms), unless a list has them. A number
            for `n_train` counts them.

    Returns:
        Arrays of frame numbers, ascending where all the rest was taken or they were drawn, in the given order where
        listed, under `train`, `val` and `test`; a part without frames is left out.

    Raises:
        InputError: more frames asked for than there are, an empty part, overlapping lists, or a number out of range.
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    parts: dict[str, np.ndarray] = {}
    for name, size in sizes.items():
        if size is not None and not isinstance(size, int | float | np.integer | np.floating):
            parts[name] = _listed(size, n, name)
    _refuse_overlap(parts)
    taken = np.concatenate([np.empty(0, dtype=int), *parts.values()])
    kept = (
        np.setdiff1d(np.asarray(keep, dtype=int), taken) if "train" not in parts else np.empty(0, dtype=int)
    )
    free = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(n), [*taken, *kept]))
    counts = {
        name: _count(size, n, name)
        for name, size in sizes.items()
        if isinstance(size, int | float | np.integer | np.floating)
    }
    wanted, asked = sum(counts.values()), ", ".join(f"n_{name} {count}" for name, count in counts.items())
    if "train" in counts:
        counts["train"] = max(0, counts["train"] - len(kept))
    if sum(counts.values()) > len(free):
        raise InputError(
            f"{asked}: {wanted} frames asked for, but there are {len(free) + len(kept)}; ask for fewer"
        )
    back = len(free)
    for name in ("test", "val"):
        if name in counts:
            parts[name] = np.sort(free[back - counts[name] : back])
            back -= counts[name]
    if n_train is None:
        if back + len(kept) == 0:
            raise InputError(
                f"no frames are left for training: validation and test take all {n}; ask for fewer"
            )
        parts["train"] = np.sort([*free[:back], *kept])
    elif "train" in counts:
        parts["train"] = np.sort([*free[: counts["train"]], *kept])
    return {name: parts[name] for name in sizes if name in parts}


def read_indices(path: str | Path, name: str) -> np.ndarray:
    """Frame numbers (from 0) from a file.

    Text with whole numbers between white space or commas, `.npy`, or, by the name of the part (`train`, `val`, `test`)
    unless there is only one list, `.npz` and `.json`.

    Raises:
        InputError: a missing or unreadable file, no such part, or anything but whole numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; data.n_{name} is a number, a fraction, a list, or a file of numbers"
        )
    try:
        content = _content(path, name)
        indices = np.asarray(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not a list of frame numbers ({error}); write whole numbers, one a line"
        ) from error
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise InputError(f"{path}: not a list of whole frame numbers; write one a line")
    return indices.astype(np.int64)


def _content(path: Path, name: str) -> object:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _part({key: archive[key] for key in archive.files}, path, name)
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        content = json.loads(text)
        return _part(content, path, name) if isinstance(content, dict) else content
    return [int(word) for word in text.replace(",", " ").split()]


def _part(content: dict[str, object], path: Path, name: str) -> object:
    if name in content:
        return content[name]
    if len(content) == 1:
        return next(iter(content.values()))
    raise InputError(
        f"{path}: no list {name!r} (there are {', '.join(map(repr, content)) or 'none'}); name one so"
    )


def _listed(size: Sequence[int] | np.ndarray | str | Path, n: int, name: str) -> np.ndarray:
    source = f"n_{name}"
    if isinstance(size, str | Path):
        source = str(size)
        indices = read_indices(size, name)
    else:
        indices = np.asarray(size)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise InputError(f"{source}: {size!r} is not a list of whole frame numbers")
        indices = indices.astype(np.int64)
    if indices.size == 0:
        raise InputError(f"{source}: the list of frames is empty; give at least one or leave it out")
    out = indices[(indices < 0) | (indices >= n)]
    if out.size:
        raise InputError(
            f"{source}: there is no frame {out[0]}; the data has {n}, numbered from 0 to {n - 1}"
        )
    values, times = np.unique(indices, return_counts=True)
    if (times > 1).any():
        raise InputError(f"{source}: frame {values[times > 1][0]} is listed twice; list each once")
    return indices


def _refuse_overlap(parts: dict[str, np.ndarray]) -> None:
    names = list(parts)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            common = np.intersect1d(parts[first], parts[second])
            if common.size:
                raise InputError(
                    f"frame {common[0]} is in both {first} and {second} ({common.size} such frames); "
                    "list each frame in one part only"
                )


def _count(size: int | float, n: int, name: str) -> int:
    if isinstance(size, bool):
        raise InputError(f"n_{name}: {size} is neither a number of frames nor a fraction")
    if isinstance(size, int | np.integer):
        if size < 1:
            raise InputError(
                f"n_{name}: {size} frames make an empty split; give a positive number or leave it out"
            )
        return int(size)
    if not 0 < size < 1:
        raise InputError(
            f"n_{name}: {size} is not a fraction between 0 and 1; a number of frames is written whole"
        )
    count = round(size * n)
    if count == 0:
        raise InputError(f"n_{name}: the fraction {size} of {n} frames is an empty split; give a larger one")
    return count
