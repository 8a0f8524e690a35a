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


ISOLATED = 6.0
"""Å; an atom with nothing nearer, not even its own image, is isolated."""

# Two energies of one isolated atom that differ by more are two kinds of calculation, or two states.
_SAME_ENERGY = 1e-3


def is_isolated(frame: Frame) -> bool:
    """Whether the frame is one atom alone, in vacuum or in a large box."""
    if len(frame.atoms) != 1:
        return False
    return not frame.atoms.pbc.any() or AtomGraph.from_atoms(frame.atoms, ISOLATED).n_edges == 0


def isolated_energies(frames: Iterable[Frame]) -> dict[str, float]:
    """Energies of the isolated atoms among the frames, eV by chemical symbol.

    Raises:
        InputError: two energies for one element.
    """
    found: dict[str, Frame] = {}
    for frame in frames:
        if frame.energy is None or not is_isolated(frame):
            continue
        symbol = frame.atoms.symbols[0]
        first = found.setdefault(symbol, frame)
        if abs(frame.energy - first.energy) > _SAME_ENERGY:  # type: ignore[operator]  # it has one
            raise InputError(
                f"{first.label} and {frame.label}: two energies of an isolated {symbol} atom, {first.energy:.6g} and "
                f"{frame.energy:.6g} eV; remove one, or set data.reference_energies"
            )
    return {symbol: float(frame.energy) for symbol, frame in found.items()}  # type: ignore[arg-type]


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
    """Reference energies of the elements in `frames`: as given, of isolated atoms among them, or by least squares.

    A model of two far atoms has the sum of their reference energies, so that an isolated atom among the frames (one
    alone, without an image within 6 Å) decides the reference energy of its element. Those of elements without one are
    fitted to the energies of all other frames.

    Args:
        frames: frames; those without an energy do not count.
        given: eV by chemical symbol, in place of all that; must cover every element of the frames.

    Raises:
        InputError: an unknown chemical symbol, an element without a given energy, an energy that is not finite, or
            two energies of one isolated atom.
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
        values, determined, message = _found(labelled, species, counts, energies)
    residual = energies - counts @ values
    rms = np.sqrt(np.mean((residual / counts.sum(axis=1)) ** 2)) * 1e3 if labelled else float("nan")
    return ReferenceEnergies(
        values=dict(zip(species, values.tolist(), strict=True)),
        determined=determined,
        message=message,
        residual_rms_mev_per_atom=float(rms),
    )


def _found(
    frames: Sequence[Frame], species: Sequence[str], counts: np.ndarray, energies: np.ndarray
) -> tuple[np.ndarray, bool, str | None]:
    """Reference energies `[species]` of isolated atoms and of the fit, whether they are determined, and what to say."""
    alone = isolated_energies(frames)
    values = np.array([alone.get(symbol, 0.0) for symbol in species])
    open_ = np.array([symbol not in alone for symbol in species])
    fitted = [symbol for symbol in species if symbol not in alone]
    said = (
        [f"the reference energies of {', '.join(alone)} are those of isolated atoms in the data"]
        if alone
        else []
    )
    determined = True
    having = counts[:, open_].any(axis=1)
    if having.any():
        values[open_], determined = least_squares_references(
            counts[having][:, open_], (energies - counts @ values)[having]
        )
    if alone and fitted:
        said.append(
            f"those of {', '.join(fitted)} are fitted to what is left, bonds included: add their isolated atoms too"
        )
    if not determined:
        said.append(
            f"the compositions of the frames do not determine the reference energies of {', '.join(fitted)}; "
            "what they leave open is spread evenly over the atoms, so energies of other compositions mean little"
        )
    return values, determined, "; ".join(said) or None


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
