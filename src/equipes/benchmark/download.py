"""Fetching rMD17 from where its authors published it."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from equipes.errors import InputError
from equipes.files import writing_to

# Christensen and von Lilienfeld, doi:10.6084/m9.figshare.12672038
RMD17_URL = "https://figshare.com/ndownloader/files/23950376"
_MAX_BYTES = 4 * 2**30
_CHUNK = 2**20


def download_rmd17(folder: Path, url: str = RMD17_URL) -> None:
    """Fetch and unpack the archive of rMD17 into `folder`; nothing is done where it is there already.

    Only plain files below the archive's own folder are unpacked, up to 4 GB.

    Raises:
        InputError: no network, another answer than an archive, or a folder that cannot be written.
    """
    if (folder / "rmd17" / "npz_data").is_dir():
        return
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".rmd17-") as temporary:
            archive = Path(temporary) / "rmd17.tar.bz2"
            _fetch(url, archive)
            _unpack(archive, Path(temporary), url)
            (Path(temporary) / "rmd17").replace(folder / "rmd17")


def _fetch(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(target, "wb") as file:
            shutil.copyfileobj(answer, file, _CHUNK)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        raise InputError(
            f"{url} cannot be fetched ({error}); fetch it where there is a network, unpack it, and give its folder "
            "with --data"
        ) from error


def _unpack(archive: Path, folder: Path, url: str) -> None:
    unpacked = 0
    try:
        with tarfile.open(archive, "r:bz2") as tar:
            for member in tar:
                unpacked += member.size
                if unpacked > _MAX_BYTES:
                    raise InputError(f"{url} gave an archive larger than {_MAX_BYTES} bytes; it is not rMD17")
                if member.isfile() and member.name.startswith("rmd17/"):
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{url} gave no archive of rMD17 ({error}); fetch it by hand") from error
    if not (folder / "rmd17" / "npz_data").is_dir():
        raise InputError(f"{url} gave an archive without rmd17/npz_data; fetch rMD17 by hand")
