"""Lattice constants and bulk moduli of simple crystals against PBE and experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.collections import dcdft
from ase.spacegroup import crystal

from equipes.errors import InputError
from equipes.simulate import equation_of_state, relax

_DELTA = "all-electron PBE: Lejaeghere et al., Crit. Rev. Solid State Mater. Sci. 39, 1 (2014)"
_MP = "PBE, Voigt-Reuss-Hill: Materials Project {} (CC-BY 4.0), collected by matcalc"
_UNTRACED = "PBE, a usual value of the literature, not traced to one source"


@dataclass(frozen=True)
class Crystal:
    """A crystal and what is known of it.

    Attributes:
        name: such as "SiC".
        structure: its kind, such as "zincblende".
        make: gives it near its PBE volume.
        volume_ang3: PBE reference, Å³ per atom.
        bulk_modulus_gpa: PBE reference.
        source: of both.
        atoms_in_cube: atoms in the conventional cell where it is cubic, for a lattice constant; else 0.
        experiment: measured volume per atom and bulk modulus without the motion of zero point, where they are known.
    """

    name: str
    structure: str
    make: Callable[[], ase.Atoms]
    volume_ang3: float
    bulk_modulus_gpa: float
    source: str
    atoms_in_cube: int = 0
    experiment: tuple[float, float] | None = None

    def lattice_constant(self, volume: float) -> float | None:
        """Å, of a volume per atom; None where the crystal is not cubic."""
        return (volume * self.atoms_in_cube) ** (1 / 3) if self.atoms_in_cube else None


@dataclass(frozen=True)
class CrystalResult:
    """What a potential says of one crystal, beside the reference.

    Attributes:
        lattice: conventional lattice constants, Å and degrees.
        error_a_percent, error_volume_percent, error_bulk_modulus_percent: against the PBE reference.
    """

    name: str
    structure: str
    lattice: dict[str, float]
    a_ang: float | None
    reference_a_ang: float | None
    volume_ang3_per_atom: float
    reference_volume_ang3_per_atom: float
    bulk_modulus_gpa: float
    reference_bulk_modulus_gpa: float
    experiment_volume_ang3_per_atom: float | None
    experiment_bulk_modulus_gpa: float | None
    error_a_percent: float | None
    error_volume_percent: float
    error_bulk_modulus_percent: float
    source: str

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)


def _element(symbol: str, structure: str, atoms_in_cube: int) -> Crystal:
    known = dcdft.data[symbol]
    return Crystal(
        symbol,
        structure,
        lambda: dcdft[symbol],
        known["wien2k_volume"],
        known["wien2k_B"],
        _DELTA,
        atoms_in_cube,
        (known["exp_volume"], known["exp_B"]),
    )


def _compound(
    name: str,
    structure: str,
    volume: float,
    modulus: float,
    identity: str,
    make: Callable[[], ase.Atoms] | None = None,
) -> Crystal:
    cubic = structure in ("zincblende", "rocksalt")
    a = (8 * volume) ** (1 / 3)
    return Crystal(
        name,
        structure,
        make or (lambda: bulk(name, structure, a=a)),
        volume,
        modulus,
        _MP.format(identity),
        8 if cubic else 0,
    )


def _quartz() -> ase.Atoms:
    places = [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 0.2145)]
    return crystal(["Si", "O"], places, spacegroup=152, cellpar=[5.02, 5.02, 5.51, 90, 90, 120])


def _hafnia() -> ase.Atoms:
    places = [(0.276, 0.040, 0.208), (0.074, 0.332, 0.347), (0.449, 0.758, 0.480)]
    return crystal(["Hf", "O", "O"], places, spacegroup=14, cellpar=[5.13, 5.19, 5.30, 90, 99.7, 90])


CRYSTALS: tuple[Crystal, ...] = (
    _element("Si", "diamond", 8),
    _element("Ge", "diamond", 8),
    Crystal("C", "diamond", lambda: bulk("C", "diamond", a=3.573), 3.573**3 / 8, 433.0, _UNTRACED, 8),
    _compound("SiC", "zincblende", 10.50029, 212.682, "mp-8062"),
    _compound("GaAs", "zincblende", 23.76593, 60.742, "mp-2534"),
    _compound(
        "GaN", "wurtzite", 11.73571, 172.144, "mp-804", lambda: bulk("GaN", "wurtzite", a=3.22, c=5.24)
    ),
    _element("Cu", "fcc", 4),
    _element("Al", "fcc", 4),
    _element("W", "bcc", 2),
    _compound("NaCl", "rocksalt", 23.04807, 23.77, "mp-22862"),
    _compound("LiF", "rocksalt", 8.51108, 69.649, "mp-1138"),
    _compound("MgO", "rocksalt", 9.63969, 151.45, "mp-1265"),
    _compound("TiN", "rocksalt", 9.61966, 278.511, "mp-492"),
    _compound("SiO2", "quartz", 13.37063, 29.797, "mp-7000", _quartz),
    _compound("HfO2", "monoclinic", 11.68851, 204.904, "mp-352", _hafnia),
)


def crystal_benchmark(
    calculator: BaseCalculator,
    crystals: Sequence[Crystal] = CRYSTALS,
    *,
    on_crystal: Callable[[Crystal], None] | None = None,
) -> list[CrystalResult]:
    """Relax each crystal with its cell, and fit a Birch-Murnaghan curve to energies around its volume.

    The bulk modulus is that of a cell that keeps its shape while the atoms in it relax (Voigt's, where the crystal is
    not cubic).

    Args:
        calculator: any ASE calculator.
        crystals: which.
        on_crystal: called before each.

    Raises:
        SimulationError: a crystal that does not hold together.
    """
    results = []
    for item in crystals:
        if on_crystal is not None:
            on_crystal(item)
        relaxed = relax(item.make(), calculator, fmax=0.005, smax=0.02).atoms
        fit = equation_of_state(relaxed, calculator, volume_range=0.06, points=7)
        volume = fit.volume_ang3 / len(fit.atoms)
        a, reference = item.lattice_constant(volume), item.lattice_constant(item.volume_ang3)
        results.append(
            CrystalResult(
                name=item.name,
                structure=item.structure,
                lattice=fit.lattice_constants,
                a_ang=a,
                reference_a_ang=reference,
                volume_ang3_per_atom=volume,
                reference_volume_ang3_per_atom=item.volume_ang3,
                bulk_modulus_gpa=fit.bulk_modulus_gpa,
                reference_bulk_modulus_gpa=item.bulk_modulus_gpa,
                experiment_volume_ang3_per_atom=item.experiment[0] if item.experiment else None,
                experiment_bulk_modulus_gpa=item.experiment[1] if item.experiment else None,
                error_a_percent=None if a is None or reference is None else 100 * (a / reference - 1),
                error_volume_percent=100 * (volume / item.volume_ang3 - 1),
                error_bulk_modulus_percent=100 * (fit.bulk_modulus_gpa / item.bulk_modulus_gpa - 1),
                source=item.source,
            )
        )
    return results


def chosen(names: Sequence[str], species: Sequence[str]) -> list[Crystal]:
    """The crystals of these names (all without any) whose elements a potential knows.

    Raises:
        InputError: a name that there is not, or none is left.
    """
    known = [item.name for item in CRYSTALS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"no crystal is called {unknown[0]}; there are {', '.join(known)}")
    left = [
        item
        for item in CRYSTALS
        if (not names or item.name in names) and set(item.make().symbols) <= set(species)
    ]
    if not left:
        raise InputError(f"the potential knows none of these crystals; it knows {', '.join(species)}")
    return left
