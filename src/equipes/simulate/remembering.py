"""A calculator that keeps every answer, so that a stopped search goes the same way again without new calculations."""

from __future__ import annotations

from typing import Any

import ase
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes

from equipes.simulate.store import Store, structure_key

_KEPT = ("energy", "forces", "stress")


class Remembering(Calculator):
    """What another calculator says, asked once for each structure and then looked up.

    Args:
        calculator: the one to ask.
        store: where its answers are kept and looked for first.
    """

    def __init__(self, calculator: BaseCalculator, store: Store) -> None:
        super().__init__()
        self.implemented_properties = [
            name for name in _KEPT if name in getattr(calculator, "implemented_properties", _KEPT)
        ]
        self._calculator = calculator
        self._store = store

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Energy (eV), forces (eV/Å) and stress (eV/Å³), those that are asked for."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        key = structure_key(self.atoms)
        for name in properties or ["energy"]:
            label = f"{key} {name}"
            found: dict[str, Any] | None = self._store.get(label)
            if found is None:
                found = {"value": self._calculator.get_property(name, self.atoms)}
                self._store.put(label, **found)
            value = found["value"]
            self.results[name] = float(value) if name == "energy" else value.copy()
