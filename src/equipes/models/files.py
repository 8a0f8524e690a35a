"""One file for a potential: `*.safetensors`, weights plus a JSON header. Reading it never runs code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from equipes import __version__
from equipes.errors import InputError
from equipes.files import atomic_write
from equipes.kernels import native
from equipes.models.familiarity import Familiarity
from equipes.models.frozen import FrozenPotential
from equipes.models.potential import UNITS, Potential
from equipes.models.registry import DTYPES, build

if TYPE_CHECKING:
    from collections.abc import Mapping

# Raised when the header or the names of weights change, together with a step in `load` that brings older files up.
FORMAT_VERSION = 2
# What a file without anything newer says, so that older versions of equipes read it: 2 is for familiarity.
_PLAIN_VERSION = 1
_KEY = "equipes"
_FAMILIARITY = "familiarity."


def save(potential: Potential, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a potential; see `Potential.save`."""
    known = potential.familiarity
    header = {
        "format_version": _PLAIN_VERSION if known is None else FORMAT_VERSION,
        "equipes_version": __version__,
        "architecture": potential.architecture,
        "species": list(potential.species),
        "hyperparameters": potential.hyperparameters,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "units": UNITS,
        "provenance": potential.provenance,
    }
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in potential.model.state_dict().items()
    }
    if known is not None:
        header["familiarity"] = dict(known.facts)
        weights |= {_FAMILIARITY + name: array.contiguous() for name, array in known.arrays().items()}
    _write(path, header, weights, overwrite=overwrite)


def save_frozen(frozen: FrozenPotential, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a frozen potential; see `FrozenPotential.save`."""
    header = {
        "format_version": _PLAIN_VERSION,
        "equipes_version": __version__,
        "architecture": frozen.architecture,
        "species": list(frozen.species),
        "cutoff": frozen.cutoff,
        "frozen": frozen.structure,
        "deviation": frozen.deviation,
        "dtype": str(frozen.dtype).removeprefix("torch."),
        "units": UNITS,
        "provenance": frozen.provenance,
    }
    arrays = {name: torch.from_numpy(array) for name, array in frozen.arrays.items()}
    _write(path, header, arrays, overwrite=overwrite)


def _write(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    overwrite: bool,
) -> None:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"cannot write {path}: a model file ends in .safetensors; give it that suffix")
    with atomic_write(path, overwrite=overwrite) as temporary:
        # Written by ourselves, so that a full disk is the operating system's error, which `atomic_write` explains.
        temporary.write_bytes(serialize(dict(weights), metadata={_KEY: json.dumps(header, allow_nan=False)}))


def load(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: str | None = None
) -> Potential:
    """Read a potential, ready to predict (`eval()` mode).

    Args:
        path: a `*.safetensors` file written by equipes.
        device: where to put it.
        dtype: "float32" or "float64" in place of the one it was stored in.

    Raises:
        InputError: the file is missing, damaged, not a model of equipes, or written by a newer version; or it holds a
            frozen potential (see `load_frozen`).
    """
    path = Path(path)
    header, weights = _read(path)
    if "frozen" in header:
        raise InputError(
            f"{path}: a frozen potential, which serves simulations only (equipes.Calculator, equipes.load_frozen); "
            "give the model that it was made from"
        )
    try:
        potential = build(
            header["architecture"], header["species"], header["hyperparameters"], dtype=header["dtype"]
        )
        potential.provenance = header["provenance"]
        extra = {name for name in weights if name.startswith(_FAMILIARITY)}
        if extra or "familiarity" in header:
            arrays = {name.removeprefix(_FAMILIARITY): weights.pop(name) for name in extra}
            facts = header["familiarity"]
            potential.familiarity = Familiarity.from_arrays(arrays, facts, len(potential.species))
    except KeyError as error:
        raise InputError(
            f"{path}: the model's header has no {error}; the file is damaged, fetch it again"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: the model's header makes no sense ({error}); the file is damaged, fetch it again"
        ) from error
    _fill(potential, weights, path)
    if dtype is not None:
        potential = convert(potential, dtype)
    return potential.to(device).eval()


def load_frozen(path: str | os.PathLike[str], *, dtype: str | None = None) -> FrozenPotential:
    """Read a frozen potential.

    Args:
        path: a `*.safetensors` file written by `FrozenPotential.save` or `equipes freeze`.
        dtype: "float32" or "float64" in place of the one it was made for.

    Raises:
        InputError: the file is missing, damaged, not a frozen potential of equipes, or written by a newer version; or
            the native code was not built.
    """
    path = Path(path)
    header, weights = _read(path)
    if "frozen" not in header:
        raise InputError(f"{path}: not a frozen potential but a model; read it with equipes.load")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"unknown dtype '{dtype}'; use {' or '.join(DTYPES)}")
    if native.module() is None:
        raise InputError(
            f"{path}: a frozen potential needs the native code, which was not built; use the model itself"
        )
    try:
        return FrozenPotential(
            header["architecture"],
            header["species"],
            header["cutoff"],
            DTYPES[dtype or header["dtype"]],
            header["frozen"],
            {name: tensor.numpy() for name, tensor in weights.items()},
            header["deviation"],
            header["provenance"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, InputError) as error:
        raise InputError(
            f"{path}: the frozen potential makes no sense ({error}); the file is damaged, fetch it again"
        ) from error


def is_frozen(path: str | os.PathLike[str]) -> bool:
    """Whether a model file holds a frozen potential; raises what `load` raises for a file that is no model."""
    return "frozen" in _read_header(Path(path))


def convert(potential: Potential, dtype: str) -> Potential:
    """A copy of the potential with a network of another number type ("float32" or "float64")."""
    copy = build(potential.architecture, potential.species, potential.hyperparameters, dtype=dtype)
    copy.provenance = dict(potential.provenance)
    copy.familiarity = potential.familiarity
    own = copy.model.state_dict()
    copy.model.load_state_dict(
        {name: tensor.detach().to(own[name].dtype) for name, tensor in potential.model.state_dict().items()}
    )
    return copy.to(potential.device).train(potential.training)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    header = _read_header(path)
    with _explaining(path), safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return header, weights


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such model file; give the path of a *.safetensors file")
    with _explaining(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise InputError(
            f"{path}: a safetensors file, but not a model of equipes (its header has no '{_KEY}')"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = int(header["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the model's header cannot be read; the file is damaged, fetch it again"
        ) from error
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: written by equipes {header.get('equipes_version')} in a newer format (version {version}); "
            "update equipes to read it"
        )
    return header


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable model file ({error}); it is damaged, or not a *.safetensors file"
        ) from error


def _fill(potential: Potential, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put the weights in, refusing missing, extra or misshapen ones."""
    own = potential.model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        what = f"no weights '{missing[0]}'" if missing else f"unknown weights '{extra[0]}'"
        raise InputError(f"{path}: {what} for this architecture; the file is damaged, fetch it again")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"{path}: weights '{name}' have shape {list(weights[name].shape)}, the architecture needs "
                f"{list(tensor.shape)}; the file is damaged, fetch it again"
            )
        if tensor.dtype != weights[name].dtype:
            raise InputError(
                f"{path}: weights '{name}' are {weights[name].dtype}, the header says {tensor.dtype}; "
                "the file is damaged, fetch it again"
            )
    potential.model.load_state_dict(dict(weights))
