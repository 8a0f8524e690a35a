"""What the data says about the scales of a model: reference energies, size of forces, number of neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from equipes.data.frames import Frame
from equipes.errors import InputError
from equipes.graph import AtomGraph


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energy of each element that is subtracted before learning.

    Attributes:
        values: eV by chemical symbol, in the order of atomic numbers.
        determined: whether the compositions of the frames fix each of them (true for given ones).
        message: what a user should know, in one sentence, or None.
        residual_rms_mev_per_atom: what is left of the energies without them; NaN where no frame has an energy.
    """

    values: dict[str, float]
    determined: bool
    message: str | None
    residual_rms_mev_per_atom: float


def elements(frames: Iterable[Frame]) -> tuple[str, ...]:
    """Chemical symbols of all atoms, in the order of atomic numbers."""
    numbers: set[int] = set()
    for frame in frames:
        numbers.update(np.unique(frame.atoms.numbers).tolist())
    return tuple(chemical_symbols[number] for number in sorted(numbers))


def composition_counts(frames: Sequence[Frame], species: Sequence[str]) -> np.ndarray:
    """`[frames, species]`, how many atoms of each element."""
    column = np.zeros(len(chemical_symbols), dtype=int)
    column[[atomic_numbers[symbol] for symbol in species]] = np.arange(len(species))
    counts = np.zeros((len(frames), len(species)))
    for row, frame in zip(counts, frames, strict=True):
        row += np.bincount(column[frame.atoms.numbers], minlength=len(species))
    return counts


def least_squares_references(counts: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, bool]:
    """Reference energies `[species]` by least squares, and whether the compositions determine them.

    The mean energy per atom is subtracted first and added to every element afterwards, so that whatever compositions
    leave open (all of it for a single molecule) is spread evenly over the atoms.

    Args:
        counts: `[frames, species]`.
        energies: `[frames]`, eV.
    """
    mean = energies.sum() / counts.sum()
    rest = energies - mean * counts.sum(axis=1)
    solution, _, rank, _ = np.linalg.lstsq(counts, rest, rcond=1e-10)
    return mean + solution, bool(rank == counts.shape[1])


def fit_reference_energies(
    frames: Sequence[Frame], given: Mapping[str, float] | None = None
) -> ReferenceEnergies:
    """Reference energies of the elements in `frames`, by least squares on their energies, or as given.

    Args:
        frames: frames; those without an energy do not count.
        given: eV by chemical symbol, in place of the fit; must cover every element of the frames.

    Raises:
        InputError: an unknown chemical symbol, an element without a given energy, or an energy that is not finite.
    """
    species = elements(frames)
    labelled = [frame for frame in frames if frame.energy is not None]
    counts = composition_counts(labelled, species)
    energies = np.array([frame.energy for frame in labelled], dtype=float)
    if not np.isfinite(energies).all():
        bad = labelled[int(np.argmin(np.isfinite(energies)))]
        raise InputError(f"{bad.label}: the energy is {bad.energy}; remove the frame")
    message: str | None
    if given is not None:
        values = np.array([_checked(given, species)[symbol] for symbol in species])
        determined, message = True, None
    elif not labelled:
        values = np.zeros(len(species))
        determined, message = False, "no frame has an energy, so the reference energies are 0"
    else:
        values, determined = least_squares_references(counts, energies)
        message = None
        if not determined:
            message = (
                f"the compositions of the frames do not determine the reference energies of {', '.join(species)}; "
                "what they leave open is spread evenly over the atoms, so energies of other compositions mean little"
            )
    residual = energies - counts @ values
    rms = np.sqrt(np.mean((residual / counts.sum(axis=1)) ** 2)) * 1e3 if labelled else float("nan")
    return ReferenceEnergies(
        values=dict(zip(species, values.tolist(), strict=True)),
        determined=determined,
        message=message,
        residual_rms_mev_per_atom=float(rms),
    )


def forces_rms(frames: Iterable[Frame]) -> float:
    """Root mean square of all force components, eV/Å.

    Raises:
        InputError: no frame has forces.
    """
    squares, count = 0.0, 0
    for frame in frames:
        if frame.forces is not None:
            squares += float(np.sum(frame.forces**2))
            count += frame.forces.size
    if count == 0:
        raise InputError(
            "no frame has forces, so their size cannot be measured; set model.per_type_energy_scales"
        )
    return float(np.sqrt(squares / count))


def mean_neighbors(graphs: Iterable[AtomGraph]) -> float:
    """Mean number of neighbours within the cutoff, over all atoms of all graphs.

    Raises:
        InputError: no graphs.
    """
    edges, atoms = 0, 0
    for graph in graphs:
        edges += graph.n_edges
        atoms += graph.n_atoms
    if atoms == 0:
        raise InputError("neighbours cannot be counted without structures; give at least one")
    return edges / atoms


def _checked(given: Mapping[str, float], species: Sequence[str]) -> dict[str, float]:
    unknown = [symbol for symbol in given if atomic_numbers.get(symbol, 0) == 0]
    if unknown:
        raise InputError(f"reference energies: {unknown[0]!r} is not a chemical symbol; correct it")
    missing = [symbol for symbol in species if symbol not in given]
    if missing:
        raise InputError(
            f"reference energies: none for {', '.join(missing)}; give one for each element, or none at all"
        )
    values = {symbol: float(value) for symbol, value in given.items()}
    for symbol, value in values.items():
        if not np.isfinite(value):
            raise InputError(f"reference energies: that of {symbol} is {value}; give a finite number of eV")
    return values
