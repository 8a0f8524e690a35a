"""Checks of hyperparameters, and numbers that may be given per species."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from equipes.errors import InputError

PerSpecies = float | Mapping[str, float]


def require(name: str, value: object, condition: bool, wanted: str) -> None:
    """Raise `InputError` in a hyperparameter's name unless the condition holds."""
    if not condition:
        raise InputError(f"model.{name} must be {wanted}, not {value}")


def refuse_unknown(name: str, given: Mapping[str, object], species: Sequence[str]) -> None:
    """Raise `InputError` where a hyperparameter has keys that are no species of the model."""
    unknown = sorted(set(given) - set(species))
    if unknown:
        raise InputError(
            f"model.{name} names {', '.join(unknown)}, but the model knows only {', '.join(species)}"
        )


def per_species(name: str, value: PerSpecies, species: Sequence[str]) -> nn.Parameter:
    """`[n_species]` float64: energies and norms stay exact whatever the dtype of the network."""
    if isinstance(value, Mapping):
        refuse_unknown(name, value, species)
        missing = [symbol for symbol in species if symbol not in value]
        if missing:
            raise InputError(f"model.{name} has no value for {', '.join(missing)}; give one")
        values = [float(value[symbol]) for symbol in species]
    else:
        values = [float(value)] * len(species)
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))
