"""The same potential, made for fewer elements or for one of its modalities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from equipes.errors import InputError
from equipes.models.potential import Potential
from equipes.models.registry import build


def adapted(
    potential: Potential, *, species: Sequence[str] | None = None, modal: str | None = None
) -> Potential:
    """The potential for some of its elements and one of its modalities; None leaves it as it is.

    Raises:
        InputError: see `keep_species` and `choose_modality`.
    """
    if modal is not None:
        potential = choose_modality(potential, modal)
    return potential if species is None else keep_species(potential, species)


def choose_modality(potential: Potential, modality: str) -> Potential:
    """The potential that speaks for one kind of reference calculation of those that it knows.

    Raises:
        InputError: it does not know this one, or has but one.
    """
    # The heads of a MACE are the same by another name.
    key, names = ("head", "heads") if "heads" in potential.hyperparameters else ("modality", "modalities")
    known = potential.hyperparameters.get(names, ())
    if modality not in known:
        what = (
            f"it has {', '.join(known)}" if known else "it was trained on one kind of reference calculation"
        )
        raise InputError(f"the potential has no modality '{modality}'; {what}")
    hyperparameters = potential.hyperparameters | {key: modality}
    made = _rebuilt(potential, potential.species, hyperparameters, potential.model.state_dict())
    # A modality goes into the features; heads share them.
    if key == "head" or potential.hyperparameters.get(key) == modality:
        made.familiarity = potential.familiarity
    return made


def keep_species(potential: Potential, species: Sequence[str]) -> Potential:
    """The potential without what belongs to other elements than these; what it says of these stays the same.

    Raises:
        InputError: an element that it does not know, or an architecture whose tables cannot be cut.
    """
    unknown = [symbol for symbol in species if symbol not in potential.species]
    if unknown:
        raise InputError(
            f"the potential does not know {', '.join(unknown)}; it knows {', '.join(potential.species)}"
        )
    tables = type(potential.model).PER_SPECIES
    if not tables:
        raise InputError(f"a {potential.architecture} potential cannot be cut to some of its elements")
    kept = torch.tensor([potential.species.index(symbol) for symbol in species])
    weights = {}
    for name, tensor in potential.model.state_dict().items():
        dimension = next((tables[pattern] for pattern in tables if fnmatchcase(name, pattern)), None)
        weights[name] = (
            tensor if dimension is None else tensor.index_select(dimension, kept.to(tensor.device))
        )
    gone = set(potential.species) - set(species)
    hyperparameters = _without(potential.hyperparameters, gone) | potential.model.fixed_hyperparameters()
    made = _rebuilt(potential, species, hyperparameters, weights)
    made.familiarity = None if potential.familiarity is None else potential.familiarity.of_species(kept)
    return made


def _without(values: Mapping[str, Any], species: Collection[str]) -> dict[str, Any]:
    """Hyperparameters without the entries of some species, at any depth."""
    return {
        name: _without(value, species) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in species
    }


def _rebuilt(
    potential: Potential,
    species: Sequence[str],
    hyperparameters: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
) -> Potential:
    dtype = str(potential.dtype).removeprefix("torch.")
    made = build(potential.architecture, species, hyperparameters, dtype=dtype)
    made.provenance = dict(potential.provenance)
    made.model.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    return made.to(potential.device).train(potential.training)
