"""The same potential, made for fewer or more elements or for one of its modalities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from ase.data import atomic_numbers

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


def add_species(potential: Potential, new: Mapping[str, str]) -> Potential:
    """The potential with further elements, each of which begins as a copy of one that it knows.

    What it says of the elements that it knew stays the same. Covalent radii and nuclear charges are the new elements'
    own.

    Args:
        potential: the potential.
        new: for each new element the known one that it begins as; see `nearest_element`.

    Raises:
        InputError: an element that it knows already, or copies from one that it does not know; an architecture whose
            tables cannot grow.
    """
    tables = type(potential.model).PER_SPECIES
    if not tables:
        raise InputError(
            f"a {potential.architecture} potential cannot be given further elements ({', '.join(new)}); leave them out "
            "of the data, or train from scratch"
        )
    for symbol, source in new.items():
        if symbol in potential.species or source not in potential.species:
            raise InputError(
                f"{symbol} cannot begin as {source}: a new element begins as one of {', '.join(potential.species)}"
            )
    old = len(potential.species)
    rows = torch.tensor([*range(old), *(potential.species.index(source) for source in new.values())])
    species = [*potential.species, *new]
    hyperparameters = _extended(potential.hyperparameters | potential.model.fixed_hyperparameters(), new)
    dtype = str(potential.dtype).removeprefix("torch.")
    own = build(potential.architecture, species, hyperparameters, dtype=dtype).model
    parameters = dict(own.named_parameters())
    weights = {}
    for name, tensor in potential.model.state_dict().items():
        dimension = next((tables[pattern] for pattern in tables if fnmatchcase(name, pattern)), None)
        if dimension is not None:
            grown = tensor.index_select(dimension, rows.to(tensor.device))
            if name not in parameters:  # a property of the element, not a weight
                fresh = own.state_dict()[name].to(tensor.device)
                grown = torch.cat([tensor, fresh.narrow(dimension, old, len(new))], dimension)
            tensor = grown
        weights[name] = tensor
    return _rebuilt(potential, species, hyperparameters, weights)


def nearest_element(symbol: str, known: Sequence[str]) -> str:
    """The element among `known` that is chemically nearest: of the nearest group, then of the nearest period.

    Lanthanides and actinides count as between groups 3 and 4, in their order; hydrogen stands above the halogens.

    >>> nearest_element("Br", ["H", "O", "Cl", "I"]), nearest_element("Nd", ["Y", "Ce", "Lu"])
    ('Cl', 'Ce')
    """
    group, period = _place(atomic_numbers[symbol])

    def distance(other: str) -> tuple[float, int, int]:
        its_group, its_period = _place(atomic_numbers[other])
        return (
            abs(its_group - group),
            abs(its_period - period),
            abs(atomic_numbers[other] - atomic_numbers[symbol]),
        )

    return min(known, key=distance)


def _place(number: int) -> tuple[float, int]:
    """Group (1 to 18, fractions in the f block) and period."""
    if number == 1:
        return 17.0, 1
    noble = (0, 2, 10, 18, 36, 54, 86, 118)
    period = next(p for p, last in enumerate(noble) if number <= last)
    position, length = number - noble[period - 1], noble[period] - noble[period - 1]
    if position <= 2 and number != 2:
        return float(position), period
    if length == 32 and 3 <= position <= 17:  # La to Lu, Ac to Lr
        return 3 + (position - 3) / 15, period
    return float(18 - (noble[period] - number)), period


def _extended(values: Mapping[str, Any], new: Mapping[str, str]) -> dict[str, Any]:
    """Hyperparameters with an entry for each new element wherever the one it begins as has one, at any depth."""
    whole = {
        name: _extended(value, new) if isinstance(value, Mapping) else value for name, value in values.items()
    }
    return whole | {symbol: whole[source] for symbol, source in new.items() if source in whole}


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
