"""Files appear whole or not at all, and nothing is overwritten by accident."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from equipes.errors import InputError
from equipes.files import atomic_write, empty_directories_removed, new_directory


def write(path: Path, text: str, **options: bool) -> None:
    with atomic_write(path, **options) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(path.suffix)
        temporary.write_text(text)
        assert not path.exists() or path.read_text() != text


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    write(tmp_path / "result.tar.gz", "content")
    assert os.listdir(tmp_path) == ["result.tar.gz"]
    assert (tmp_path / "result.tar.gz").read_text() == "content"


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    write(tmp_path / "ours.txt", "x")
    (tmp_path / "ordinary.txt").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.txt", "ordinary.txt")]
    assert modes[0] == modes[1]


def half_written(path: Path, error: BaseException, **options: bool) -> None:
    with atomic_write(path, **options) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "kept.txt").write_text("old")
    with pytest.raises(type(error)):
        half_written(tmp_path / "kept.txt", error, overwrite=True)
    assert os.listdir(tmp_path) == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_nothing_is_overwritten_without_consent(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "first")
    with pytest.raises(InputError, match=r"a\.txt exists; give --overwrite"):
        write(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"
    write(tmp_path / "a.txt", "second", overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "second"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the directory .*absent does not exist; create it first"):
        write(tmp_path / "absent" / "a.txt", "x")


FAILURES = [
    (errno.ENOSPC, "the disk is full"),
    (errno.EDQUOT, "quota is used up"),
    (errno.EACCES, "permission denied"),
    (errno.EROFS, "read-only"),
]


@pytest.mark.parametrize(("code", "message"), FAILURES)
def test_the_operating_system_refuses_while_writing(tmp_path: Path, code: int, message: str) -> None:
    with pytest.raises(InputError, match=rf"cannot write .*a\.txt: .*{message}"):
        half_written(tmp_path / "a.txt", OSError(code, os.strerror(code)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("code", "message"), FAILURES)
def test_the_operating_system_refuses_to_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.txt", "x")
    with pytest.raises(InputError, match=message):
        new_directory(tmp_path / "run")


def test_errors_of_the_writer_itself_pass_through(tmp_path: Path) -> None:
    """Only what has a remedy is explained; a bug must not look like a user's mistake."""
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "another-file-that-is-absent").read_text()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), atomic_write(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x")
    assert os.listdir(tmp_path) == []


def test_new_directory(tmp_path: Path) -> None:
    made = new_directory(tmp_path / "a" / "b")
    assert made.is_dir() and os.listdir(made) == []
    assert new_directory(made) == made  # still empty
    (made / "file.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty; give --overwrite"):
        new_directory(made)
    assert new_directory(made, overwrite=True) == made
    assert os.listdir(made) == ["file.txt"]
    with pytest.raises(InputError, match="is a file, not a directory"):
        new_directory(made / "file.txt")
    with pytest.raises(InputError, match=r"cannot write|not a directory"):
        new_directory(made / "file.txt" / "below")


def make_and_fail(folder: Path, error: Exception) -> None:
    with empty_directories_removed():
        new_directory(folder / "there", overwrite=True)
        new_directory(folder / "new" / "deep")
        new_directory(folder / "used")
        (folder / "used" / "file").touch()
        raise error


def test_a_refusal_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError):
        make_and_fail(tmp_path, InputError("no"))
    assert set(os.listdir(tmp_path)) == {"there", "used"}


def test_a_mistake_of_ours_leaves_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"):
        make_and_fail(tmp_path, ValueError("ours"))
    assert set(os.listdir(tmp_path)) == {"there", "new", "used"}


def test_directories_are_kept_where_nothing_is_refused(tmp_path: Path) -> None:
    with empty_directories_removed():
        new_directory(tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]
