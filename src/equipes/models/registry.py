"""The architectures by name, and building them with fresh weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase.data import atomic_numbers

from equipes.errors import InputError
from equipes.models.ani import ANI
from equipes.models.mace import MACE
from equipes.models.nequip import NequIP
from equipes.models.physnet import PhysNet
from equipes.models.potential import Architecture, Potential
from equipes.models.schnet import SchNet
from equipes.models.sevennet import SevenNet

ARCHITECTURES: dict[str, type[Architecture]] = {
    "nequip": NequIP,
    "mace": MACE,
    "sevennet": SevenNet,
    "schnet": SchNet,
    "physnet": PhysNet,
    "ani": ANI,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build(
    architecture: str,
    species: Sequence[str],
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    seed: int = 0,
) -> Potential:
    """A potential with fresh random weights.

    Args:
        architecture: a name in `ARCHITECTURES`.
        species: chemical symbols that it shall know.
        hyperparameters: keyword arguments of the architecture; what is not given has its default.
        dtype: "float32" or "float64", of the network.
        seed: of the weights; the global random state is left as it was.

    Raises:
        InputError: an unknown architecture, species, hyperparameter or dtype, or a value out of its range.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture '{architecture}'; equipes has {', '.join(ARCHITECTURES)}")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype '{dtype}'; use {' or '.join(DTYPES)}")
    species = list(species)
    unknown = [symbol for symbol in species if symbol not in atomic_numbers or symbol == "X"]
    if unknown or not species or len(set(species)) != len(species):
        what = (
            f"{', '.join(unknown)} is no element"
            if unknown
            else "each element must be named once, and one at least"
        )
        raise InputError(f"species {species}: {what}; give chemical symbols such as ['H', 'O']")
    cls = ARCHITECTURES[architecture]
    known = [name for name in inspect.signature(cls).parameters if name != "species"]
    for name in hyperparameters or {}:
        if name not in known:
            raise InputError(f"{architecture} has no hyperparameter '{name}'; it has {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(species, **dict(hyperparameters or {}))
    for name, parameter in model.named_parameters():
        if name not in cls.EXACT:
            parameter.data = parameter.data.to(DTYPES[dtype])
    return Potential(architecture, hyperparameters or {}, species, model)
