"""A potential beside data of another origin: reference energies that fit both, and units that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from equipes.data import (
    Frame,
    GraphDataset,
    LabelledGraph,
    ReferenceEnergies,
    elements,
    fit_reference_energies,
    is_isolated,
)
from equipes.data.statistics import composition_counts, least_squares_references
from equipes.errors import InputError
from equipes.models import Potential
from equipes.models.parts import reference_energies
from equipes.training.metrics import predict_frames

_EDGES_IN_BATCH = 20_000
_FRAMES_COMPARED = 10
# An energy that a network gives to an atom alone is more than this, eV.
_NOTHING = 1e-6
# Labels in other units are this many times those in eV and Å.
_FACTORS = {
    "kcal/mol": 23.0605,
    "kJ/mol": 96.4853,
    "meV": 1000.0,
    "Ha and Ang": 1 / 27.2114,
    "Ha and Bohr": 1 / 51.4221,
    "Ry and Bohr": 1 / 25.7110,
}


def fit_shifts(
    potential: Potential, dataset: GraphDataset, given: Mapping[str, float] | None = None
) -> ReferenceEnergies:
    """New reference energies of the elements in the data, by what the potential's energies leave of the labels.

    Where the network says nothing of an atom alone (NequIP, MACE), an isolated atom among the frames decides that of
    its element. Where it does, the energy of an isolated atom can be learnt, and counts as that of any frame.

    The rest are corrections by least squares, so that what the compositions leave open stays as it is in the potential
    but for the mean correction of all their atoms.

    Args:
        potential: knows the elements.
        dataset: frames; those without an energy do not count.
        given: eV by chemical symbol, in place of the fit; must cover every element of the frames.

    Raises:
        InputError: as of `fit_reference_energies`, also two energies of one isolated atom.
    """
    frames = dataset.frames
    species = elements(frames)
    before = dict(zip(potential.species, reference_energies(potential.model).tolist(), strict=True))
    labelled = [index for index, frame in enumerate(frames) if frame.energy is not None]
    if given is not None or not labelled:
        result = fit_reference_energies(frames, given)
        if not labelled and given is None:
            message = "no frame has an energy, so the base's reference energies stay as they are"
            result = replace(result, values={symbol: before[symbol] for symbol in species}, message=message)
        return result
    fit_reference_energies(frames)  # refuses what is not finite, and two energies of one isolated atom
    predicted = _energies(potential, [dataset[index] for index in labelled])
    counts = composition_counts([frames[index] for index in labelled], species)
    rest = np.array([frames[index].energy for index in labelled]) - predicted
    pinned = {}
    for index, energy, correction in zip(labelled, predicted.tolist(), rest.tolist(), strict=True):
        symbol = frames[index].atoms.symbols[0]
        if is_isolated(frames[index]) and abs(energy - before[symbol]) < _NOTHING:
            pinned[symbol] = correction
    corrections = np.array([pinned.get(symbol, 0.0) for symbol in species])
    open_ = np.array([symbol not in pinned for symbol in species])
    fitted = [symbol for symbol in species if symbol not in pinned]
    having = counts[:, open_].any(axis=1)
    determined = True
    if having.any():
        corrections[open_], determined = least_squares_references(
            counts[having][:, open_], (rest - counts @ corrections)[having]
        )
    said = []
    if pinned:
        said.append(f"the reference energies of {', '.join(pinned)} are those of isolated atoms in the data")
    if not determined:
        said.append(
            f"the compositions of the frames do not determine the reference energies of {', '.join(fitted)}; what "
            "they leave open is corrected by the same for all atoms, so energies of other compositions mean little"
        )
    left = (rest - counts @ corrections) / counts.sum(axis=1)
    return ReferenceEnergies(
        values={symbol: before[symbol] + float(c) for symbol, c in zip(species, corrections, strict=True)},
        determined=determined,
        message="; ".join(said) or None,
        residual_rms_mev_per_atom=1e3 * float(np.sqrt(np.mean(left**2))),
    )


def check_units(potential: Potential, frames: Sequence[Frame], name: str) -> None:
    """Labels in other units, or of the other sign, are many times what the base predicts, and still parallel to it.

    Args:
        potential: the base.
        frames: the first few with forces are looked at.
        name: of the base.

    Raises:
        InputError: so it is.
    """
    compared = [frame for frame in frames if frame.forces is not None and len(frame.atoms) > 1][
        :_FRAMES_COMPARED
    ]
    if not compared:
        return
    predictions = predict_frames(potential, compared)
    reference = np.concatenate([frame.forces.ravel() for frame in compared])  # type: ignore[union-attr]
    predicted = np.concatenate([p.forces.ravel() for p in predictions])  # type: ignore[union-attr]
    product, size = float(reference @ predicted), float(predicted @ predicted)
    if size == 0 or product**2 < 0.5 * size * float(reference @ reference):
        return  # too little in common to tell
    ratio = product / size
    where = f"{compared[0].label}: its forces are"
    if ratio < 0:
        raise InputError(f"{where} opposite to those of {name}; these are gradients: change their sign")
    if not 1 / 4 < ratio < 4:
        unit, factor = min(_FACTORS.items(), key=lambda item: abs(np.log(ratio / item[1])))
        guess = f", as in {unit}" if abs(np.log(ratio / factor)) < 0.4 else ""
        raise InputError(
            f"{where} {ratio:.3g} times those of {name}{guess}; energies must be in eV and lengths in Å: set data.units"
        )


def _energies(potential: Potential, items: Sequence[LabelledGraph]) -> np.ndarray:
    """`[frames]` eV."""
    energies: list[torch.Tensor] = []
    start = edges = 0
    for stop, item in enumerate(items, start=1):
        edges += item.graph.n_edges
        if edges >= _EDGES_IN_BATCH or stop == len(items):
            batch = LabelledGraph.batch(items[start:stop])
            energies.append(potential.eval()(batch.graph, forces=False, stress=False).energy.detach())
            start, edges = stop, 0
    return np.asarray(torch.cat(energies).numpy())
