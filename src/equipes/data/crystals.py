"""Simple crystals, with what is known of their volumes and bulk moduli."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ase
from ase.build import bulk
from ase.collections import dcdft
from ase.spacegroup import crystal

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
