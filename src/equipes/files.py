"""Writing files so that a reader never meets half of one and nothing is overwritten by accident."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from equipes.errors import InputError

# The mask can only be read by setting it, which two threads must not do at the same time.
_asking_umask = threading.Lock()
_REMEDY = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "permission denied; choose a place you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a directory; choose another place",
    errno.EISDIR: "it is a directory; give a file name",
}


# Directories that were made inside `empty_directories_removed`, each after those it lies in.
_made: ContextVar[list[Path] | None] = ContextVar("made", default=None)


def _input_error(path: Path, error: OSError) -> InputError:
    remedy = _REMEDY.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"cannot write {path}: {remedy}")


@contextmanager
def writing_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an operating-system error inside the block into an `InputError` that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _REMEDY:
            raise _input_error(Path(path), error) from error
        raise


def refuse_overwrite(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """`path` as a `Path`; raises `InputError` when it exists and may not be overwritten."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give --overwrite (overwrite=True) to replace it, or another name")
    return path


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, moved into place when the block ends well and removed when it does not.

    The temporary name keeps the suffix, so libraries that choose a format by it do so correctly.
    Raises `InputError` when `path` exists and `overwrite` is not set, when its directory is missing or cannot be
    written, and when the disk is full.
    """
    path = refuse_overwrite(path, overwrite=overwrite)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    temporary: Path | None = None
    try:
        with writing_to(path):
            handle, name = tempfile.mkstemp(
                prefix=f".{path.stem}-", suffix="".join(path.suffixes), dir=path.parent
            )
            temporary = Path(name)
            os.close(handle)
            # mkstemp makes files private; the finished file gets the permissions of an ordinary new one.
            with _asking_umask:
                umask = os.umask(0)
                os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            yield temporary
            # The data must be on the disk before the name is, or a power cut could leave an empty file.
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
            temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def empty_directories_removed() -> Iterator[None]:
    """When the block ends in an `InputError`, what `new_directory` made in it is removed if it is empty.

    What is refused shall leave nothing behind, but that a directory cannot be written shall be known before the work.
    """
    made: list[Path] = []
    token = _made.set(made)
    try:
        yield
    except InputError:
        for path in reversed(made):
            with suppress(OSError):  # not empty, or gone
                path.rmdir()
        raise
    finally:
        _made.reset(token)


def new_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Create the directory `path` (and its parents).

    Raises `InputError` when it is a file, when it exists and is not empty and `overwrite` is not set, or when it
    cannot be created or written.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file, not a directory; give another name")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(
            f"{path} exists and is not empty; give --overwrite to write into it, or another name"
        )
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    made = _made.get()
    if made is not None:
        made += reversed(missing)
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path
