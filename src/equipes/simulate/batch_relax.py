"""Relaxation of many structures at once: each as `relax` does it, with the evaluations of all in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import Calculator as AseCalculator

from equipes.calculators.ase import Calculator
from equipes.calculators.dispersion import WithDispersion
from equipes.calculators.together import Together
from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.relax import RelaxResult, relax
from equipes.simulate.store import Store, structure_key

# Structures that relax at the same time, unless told otherwise: enough for a GPU, and few enough threads.
AT_ONCE = 64


def relax_together(
    structures: Sequence[ase.Atoms],
    calculator: Calculator,
    *,
    names: Sequence[str] | None = None,
    at_once: int = AT_ONCE,
    kept: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    d3: str | None = None,
    on_end: Callable[[int, RelaxResult | SimulationError], None] | None = None,
    **options: Any,
) -> list[RelaxResult | SimulationError]:
    """Relax many structures, of any sizes, elements and periodicities.

    Each goes the way that `relax` goes with it alone, to round-off; when one has converged, the next begins, so that
    batches stay full.

    Args:
        structures: not changed.
        calculator: the potential.
        names: what sentences call them.
        at_once: structures that relax at the same time, at most.
        kept: a directory for the evaluations of each structure, from which a batch that was stopped goes on.
        facts: what they depend on besides structure and options, such as the potential.
        d3: add the D3(BJ) dispersion of this functional (`equipes.calculators.WithDispersion`), structure by structure.
        on_end: called with the index of a structure and its result as soon as there is one.
        options: of `relax`: cell, pressure, fmax, smax, steps, symmetry, constant_volume, freedom, optimizer.

    Returns:
        For each structure the result, or the sentence that says why its relaxation cannot go on.

    Raises:
        InputError: options that do not fit a structure, an element that the potential does not know, a structure
            without sense, dispersion that cannot be had. The structure is named.
    """
    if at_once < 1:
        raise InputError(f"the batch size must be 1 or more, not {at_once}")
    called = [f"structure {index}" for index in range(len(structures))] if names is None else list(names)
    known = set((calculator.potential or calculator.frozen).species)  # type: ignore[union-attr]
    for name, atoms in zip(called, structures, strict=True):
        unknown = sorted(set(atoms.symbols) - known)
        if unknown:
            raise InputError(
                f"{name}: the potential does not know {', '.join(unknown)}, only {', '.join(sorted(known))}; leave"
                " such structures out or take a potential trained on all their elements"
            )
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)

    # The number of steps and the limits may be others when it goes on.
    same = {name: options[name] for name in sorted(options) if name not in ("steps", "fmax", "smax")}

    def search(index: int) -> Callable[[AseCalculator], RelaxResult]:
        def relaxed(asking: AseCalculator) -> RelaxResult:
            if d3 is not None:
                asking = WithDispersion(asking, d3)
            if kept is None:
                return relax(structures[index], asking, **options)
            path = kept / f"{index}.npz"
            made_with = {**(facts or {}), "structure": structure_key(structures[index]), "options": same}
            with Store(path, made_with, resume=path.is_file()) as store:
                return relax(structures[index], asking, store=store, **options)

        return relaxed

    def told(index: int, result: RelaxResult | Exception) -> None:
        if isinstance(result, InputError):
            raise InputError(f"{called[index]}: {result}") from result
        if not isinstance(result, RelaxResult | SimulationError):
            raise result
        if on_end is not None:
            on_end(index, result)

    together: Together[RelaxResult] = Together(calculator, at_once)
    found = together.run([search(index) for index in range(len(structures))], told)
    return [result for result in found if isinstance(result, RelaxResult | SimulationError)]
