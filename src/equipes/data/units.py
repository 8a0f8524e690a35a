"""Units in which labels may come, and their conversion to eV and Å."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ase import units as ase_units

from equipes.errors import InputError

ENERGY_UNITS: Mapping[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
    "Ha": ase_units.Hartree,
    "Ry": ase_units.Rydberg,
}
LENGTH_UNITS: Mapping[str, float] = {"Ang": 1.0, "Bohr": ase_units.Bohr, "nm": ase_units.nm}
PRESSURE_UNITS: Mapping[str, float] = {
    "GPa": ase_units.GPa,
    "kbar": 0.1 * ase_units.GPa,
    "bar": ase_units.bar,
    "Pa": ase_units.Pascal,
}
_ALIASES = {
    "ang": "Ang",
    "angstrom": "Ang",
    "a": "Ang",
    "å": "Ang",
    "bohr": "Bohr",
    "a0": "Bohr",
    "ha": "Ha",
    "hartree": "Ha",
    "eh": "Ha",
    "ry": "Ry",
    "rydberg": "Ry",
    "ev": "eV",
    "kcal mol-1": "kcal/mol",
    "kj mol-1": "kJ/mol",
}


@dataclass(frozen=True)
class Units:
    """The units in which a file holds positions and labels.

    Attributes:
        energy: one of `ENERGY_UNITS`.
        length: one of `LENGTH_UNITS`; holds for positions and cell too.
        forces: `energy/length` written out, such as `Ha/Bohr`, with a leading minus for gradients; None: of the
            two above.
        stress: `energy/length^3`, or GPa, kbar, bar, Pa; with a leading minus for the opposite sign (compression
            positive), as in `-kbar`; None: of the two above.

    Raises:
        InputError: an unknown unit.
    """

    energy: str = "eV"
    length: str = "Ang"
    forces: str | None = None
    stress: str | None = None

    def __post_init__(self) -> None:
        # Each property raises for a unit that it does not know: better now than at the first frame.
        _ = (self.to_ev, self.to_angstrom, self.to_ev_per_angstrom, self.to_ev_per_angstrom3)

    @property
    def to_ev(self) -> float:
        """Multiply an energy by this."""
        return _factor(self.energy, ENERGY_UNITS, "energy")

    @property
    def to_angstrom(self) -> float:
        """Multiply a length by this."""
        return _factor(self.length, LENGTH_UNITS, "length")

    @property
    def to_ev_per_angstrom(self) -> float:
        """Multiply a force by this."""
        if self.forces is None:
            return self.to_ev / self.to_angstrom
        sign, name = _signed(self.forces)
        energy, length = _ratio(name, "forces")
        return sign * _factor(energy, ENERGY_UNITS, "forces") / _factor(length, LENGTH_UNITS, "forces")

    @property
    def to_ev_per_angstrom3(self) -> float:
        """Multiply a stress by this to have eV/Å³ with ASE's sign."""
        if self.stress is None:
            return self.to_ev / self.to_angstrom**3
        sign, name = _signed(self.stress)
        if name in PRESSURE_UNITS:
            return sign * PRESSURE_UNITS[name]
        energy, length = _ratio(name, "stress")
        for power in ("^3", "**3", "3", "³"):
            length = length.removesuffix(power)
        return sign * _factor(energy, ENERGY_UNITS, "stress") / _factor(length, LENGTH_UNITS, "stress") ** 3


def _signed(name: str) -> tuple[float, str]:
    return (-1.0, name[1:]) if name.startswith("-") else (1.0, name)


def _ratio(name: str, quantity: str) -> tuple[str, str]:
    energy, slash, length = name.rpartition("/")
    if not slash:
        known = ", ".join(PRESSURE_UNITS) + " or energy/length^3" if quantity == "stress" else "energy/length"
        raise InputError(f"unknown unit {name!r} for data.units.{quantity}; write {known}")
    return energy, length


def _factor(name: str, known: Mapping[str, float], quantity: str) -> float:
    factor = known.get(name, known.get(_ALIASES.get(name.strip().lower(), "")))
    if factor is None:
        raise InputError(f"unknown unit {name!r} for data.units.{quantity}; use one of {', '.join(known)}")
    return factor
