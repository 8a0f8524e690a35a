"""Energies and forces of many structures that do not depend on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.calculators.ase import Calculator
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import Potential
from equipes.models.device_frozen import DevicePotential
from equipes.simulate.errors import SimulationError
from equipes.simulate.processes import processes_for, spread
from equipes.simulate.results import Progress, silent
from equipes.simulate.safety import check_finite
from equipes.simulate.store import Store

# Small structures share the cost of a call; beyond this many atoms there is nothing left to share.
_ATOMS_IN_BATCH = 128


@dataclass(frozen=True)
class Evaluation:
    """Energy (eV) and forces `[N, 3]` (eV/Å) of one structure."""

    energy: float
    forces: np.ndarray


def evaluate(
    structures: Sequence[ase.Atoms],
    calculator: BaseCalculator,
    *,
    name: str = "structure",
    store: Store | None = None,
    progress: Progress = silent,
) -> list[Evaluation]:
    """Energy and forces of each structure, in order.

    Small ones go in batches where the calculator is a potential of ours that runs exactly; with one that was frozen for
    speed they are spread over processes (see `processes_for`).

    Args:
        structures: any; not changed. Constraints are not applied.
        calculator: any ASE calculator.
        name: what they are, for progress and for the store.
        store: where results are kept and looked for first.
        progress: called after every batch.

    Raises:
        InputError: a structure that the potential refuses.
        SimulationError: an energy or force that is not a number, naming the structure.
    """
    store = Store() if store is None else store
    batches, numbers = list(_batches(structures, calculator)), 0
    labels: list[list[str]] = []
    for batch in batches:
        labels.append([f"{name} {number}" for number in range(numbers, numbers + len(batch))])
        numbers += len(batch)
    known = [[store.get(label) for label in inside] for inside in labels]
    missing = [k for k, found in enumerate(known) if any(entry is None for entry in found)]
    processes = processes_for(
        calculator, sum(len(atoms) for k in missing for atoms in batches[k]), len(missing)
    )
    results: list[Evaluation] = []
    with closing(spread(lambda k, _: _evaluated(batches[k], calculator), missing, processes)) as fresh:
        for k, batch in enumerate(batches):
            if k not in missing:
                results += [
                    Evaluation(float(entry["energy"]), entry["forces"]) for entry in known[k] if entry
                ]
            else:
                for label, atoms, result in zip(labels[k], batch, next(fresh), strict=True):
                    _check_result(result, f"{label} ({atoms.get_chemical_formula()})")
                    store.put(label, energy=result.energy, forces=result.forces)
                    results.append(result)
            progress(name, len(results), len(structures))
    return results


def _check_result(result: Evaluation, what: str) -> None:
    if not (np.isfinite(result.energy) and np.isfinite(result.forces).all()):
        raise SimulationError(
            f"{what}: energy or forces are not finite numbers; train on structures like this one"
        )


def _batches(structures: Sequence[ase.Atoms], calculator: BaseCalculator) -> Iterator[list[ase.Atoms]]:
    """Always the same ones for the same structures, so that a resumed run has the same round-off."""
    together = _batching_potential(structures, calculator) is not None
    batch: list[ase.Atoms] = []
    for atoms in structures:
        if batch and not (together and sum(map(len, batch)) + len(atoms) <= _ATOMS_IN_BATCH):
            yield batch
            batch = []
        batch.append(atoms)
    if batch:
        yield batch


def _batching_potential(
    structures: Sequence[ase.Atoms], calculator: BaseCalculator
) -> Potential | DevicePotential | None:
    """The potential that takes batches; None where the calculator is another's or has frozen its own for the CPU."""
    if not isinstance(calculator, Calculator):
        return None
    symbols = {symbol for atoms in structures for symbol in atoms.symbols}
    frozen = calculator.freeze_for(symbols)
    if frozen is None:
        return calculator.potential
    return frozen if isinstance(frozen, DevicePotential) else None


def _evaluated(batch: Sequence[ase.Atoms], calculator: BaseCalculator) -> list[Evaluation]:
    potential = _batching_potential(batch, calculator)
    if potential is not None:
        graph = AtomGraph.batch([AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in batch])
        prediction = potential(graph.to(potential.device), forces=True, stress=False)
        assert prediction.forces is not None
        energies = prediction.energy.cpu().numpy().astype(float).reshape(-1)
        ends = np.cumsum([len(atoms) for atoms in batch])[:-1]
        forces = np.split(prediction.forces.cpu().numpy().astype(float), ends)
        return [Evaluation(float(energy), force) for energy, force in zip(energies, forces, strict=True)]
    results = []
    for atoms in batch:
        alone = atoms.copy()
        alone.set_constraint()
        alone.calc = calculator
        results.append(Evaluation(float(alone.get_potential_energy()), np.array(alone.get_forces())))
    return results


def checked_start(atoms: ase.Atoms, calculator: BaseCalculator, what: str) -> ase.Atoms:
    """A copy with the calculator, after making sure that it is a crystal the calculator can evaluate.

    Raises:
        InputError: not periodic in all three directions.
        SimulationError: an energy or force that is not a number.
    """
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError(f"{what} needs a crystal, periodic in all three directions; set cell and pbc")
    start = atoms.copy()
    start.calc = calculator
    check_finite(start, "the structure given")
    return start
