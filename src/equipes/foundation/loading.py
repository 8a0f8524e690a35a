"""Potentials from any file that we can read, and by the name that they were published under."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from equipes import models
from equipes.errors import InputError
from equipes.foundation import fetch, mace, nequip_package, sevennet
from equipes.foundation.nequip import read_nequip_npz
from equipes.foundation.pickles import is_pickled
from equipes.foundation.registry import published
from equipes.models import Potential, adapted

# What the program of a pickled file mentions, and what then reads it.
_PICKLED: dict[str, Callable[[Path], Potential]] = {
    "mace.modules": mace.read_checkpoint,
    "model_state_dict": sevennet.read_checkpoint,
}


def load(
    model: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    species: Sequence[str] | None = None,
    modal: str | None = None,
) -> Potential:
    """Read a potential, ready to predict (`eval()` mode).

    Args:
        model: a `*.safetensors` file written by equipes, or the name of a published potential (`equipes models list`),
            which is fetched if it is not there yet.
        device: where to put it.
        dtype: "float32" or "float64" in place of the one it was stored in.
        species: keep only these elements of those that it knows.
        modal: of a potential that knows several kinds of reference calculation, the one to speak for.

    Raises:
        InputError: the file is missing, damaged, not a model of equipes, or written by a newer version; an element or
            a kind of calculation that the potential does not know; a published one that cannot be fetched.
    """
    return adapted(models.load(locate(model), device=device, dtype=dtype), species=species, modal=modal)


def locate(model: str | os.PathLike[str], *, report: Callable[[str], None] = fetch.say) -> Path:
    """The path of a model: itself, or where the published potential of this name is, once it has been fetched.

    Raises:
        InputError: neither a file nor a published potential, or one that cannot be fetched.
    """
    path = Path(model)
    if "," in str(model) and not path.exists():
        raise InputError(f"{model}: several models, where one is wanted; give one of them")
    if path.exists() or path.name != str(model) or path.suffix == ".safetensors":
        return path
    if published(str(model)) is None:
        raise InputError(
            f"{model}: no such model file, nor a published potential of this name; give the path of a *.safetensors "
            "file, or a name that `equipes models list` has"
        )
    return fetch.get(str(model), report=report)


def read_checkpoint(path: str | os.PathLike[str], *, head: str | None = None) -> Potential:
    """A potential from a file of another package, whose kind is recognised by what is in it. Nothing of it is run.

    Checkpoints of SevenNet (`*.pth`) and MACE (`*.model`) are known, and of NequIP packages (`*.nequip.zip`) and
    weights (`*.npz` with its configuration).

    Args:
        path: the file.
        head: of a MACE with several, the one to use; its "Default" one if it has that.

    Raises:
        InputError: the file is missing, damaged, or of none of these kinds; a head that it does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: a file of equipes already; nothing to convert")
    if head is not None and not is_pickled(path, "mace.modules"):
        raise InputError(f"{path}: no checkpoint of MACE, so a head ({head}) means nothing; leave it out")
    if path.suffix == ".npz":
        return read_nequip_npz(path)
    nequip_package.refuse_compiled(path)
    if nequip_package.recognises(path):
        return nequip_package.read_package(path)
    for mention, reader in _PICKLED.items():
        if is_pickled(path, mention):
            return reader(path) if head is None else mace.read_checkpoint(path, head=head)
    raise InputError(
        f"{path}: no checkpoint of SevenNet (*.pth) or MACE (*.model), nor package (*.nequip.zip) or weights (*.npz) "
        "of NequIP; it is damaged or of another kind"
    )
