"""London dispersion, D3 with the damping of Becke and Johnson, added to another calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator, all_changes
from ase.calculators.calculator import Calculator as AseCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from equipes.errors import InputError
from equipes.foundation.registry import Published

# Bohr. Pairs end smoothly, so that energy is conserved: in silicon 0.6 meV/atom short of the sum without an end. The
# numbers of neighbours end sharply, but where a neighbour counts for 1e-7.
_PAIRS, _PAIRS_WIDTH = 50.0, 5.0
_COORDINATION = 40.0
# The library asks for it; nothing of three bodies is calculated.
_TRIPLES = 40.0
# Words in the name of a functional that has dispersion in it.
_INCLUDED = ("d3", "d4", "vdw", "vv10", "rvv", "-v", "mbd", "+ts", "optb8")


class WithDispersion(AseCalculator):
    """A calculator, and the D3(BJ) dispersion energy of S. Grimme et al. on top: energy, forces and stress.

    S. Grimme, J. Antony, S. Ehrlich and H. Krieg, J. Chem. Phys. 132, 154104 (2010), doi:10.1063/1.3382344; S. Grimme,
    S. Ehrlich and L. Goerigk, J. Comput. Chem. 32, 1456 (2011), doi:10.1002/jcc.21759. Two bodies, calculated by
    simple-dftd3 (extra `dispersion`, LGPL), with pairs up to 26 Å.

    `results` holds what the other calculator says, the sums in place of its energy, forces and stress, and
    `dispersion_energy` (eV). Energies of single atoms are left out: the dispersion is not shared out among them.

    Args:
        calculator: any ASE calculator of energy and forces.
        functional: whose parameters of the damping to take, such as "PBE", "r2SCAN", "B3LYP": the one that the
            calculator's potential was trained on.

    Raises:
        InputError: the library is not installed, or has no parameters of the functional; when calculating, a structure
            periodic in some directions whose cell has no volume, or an element beyond the library's.
    """

    def __init__(self, calculator: BaseCalculator, functional: str) -> None:
        super().__init__()
        self.calculator = calculator
        self.functional = functional
        self._damping = _damping(functional)
        self._model: tuple[np.ndarray, np.ndarray, Any] | None = None
        own = [name for name in calculator.implemented_properties if name != "energies"]
        self.implemented_properties = own

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; ASE calls it when something is asked that is not known yet."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.get_atoms() if atoms is None else atoms
        self.calculator.calculate(structure, list({*properties, "energy", "forces"}), list(system_changes))
        results = dict(self.calculator.results)
        results.pop("energies", None)
        energy, forces, virial = self._dispersion(structure)
        for name in ("energy", "free_energy"):
            if name in results:
                results[name] += energy
        results["forces"] = results["forces"] + forces
        if "stress" in results:
            volume = abs(np.linalg.det(structure.cell.array))
            results["stress"] = results["stress"] + full_3x3_to_voigt_6_stress(virial / volume)
        results["dispersion_energy"] = energy
        self.results = results

    def feature_distances(self, structure: ase.Atoms) -> np.ndarray:
        """Those of the calculator; see `equipes.Calculator.feature_distances`."""
        if not hasattr(self.calculator, "feature_distances"):
            raise InputError("the calculator under the dispersion tells no feature distances")
        return np.asarray(self.calculator.feature_distances(structure))

    def _dispersion(self, atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy (eV), forces (eV/Å) and dE/dstrain (eV) of the dispersion alone."""
        from dftd3.interface import DispersionModel

        positions, cell = atoms.positions / units.Bohr, atoms.cell.array / units.Bohr
        known = self._model
        try:
            if known is None or not (
                np.array_equal(known[0], atoms.numbers) and np.array_equal(known[1], atoms.pbc)
            ):
                model = DispersionModel(atoms.numbers, positions, cell, atoms.pbc)
                model.set_realspace_cutoff(_PAIRS, _TRIPLES, _COORDINATION, _PAIRS_WIDTH, 0.0)
                self._model = (atoms.numbers.copy(), atoms.pbc.copy(), model)
            else:
                model = known[2]
                model.update(positions, cell)
            found = model.get_dispersion(self._damping, grad=True)
        except (RuntimeError, ValueError) as error:
            self._model = None
            raise InputError(f"D3 dispersion cannot be calculated for this structure ({error})") from error
        forces = -found["gradient"] * units.Hartree / units.Bohr
        return float(found["energy"]) * units.Hartree, forces, found["virial"] * units.Hartree

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What the calculator is, for ASE's databases and trajectories."""
        inner = self.calculator.todict() if hasattr(self.calculator, "todict") else {}
        return {**inner, "dispersion": f"D3(BJ) {self.functional}"}


def warning_about(functional: str, model: Published | None) -> str | None:
    """A sentence where the parameters are not those of the potential's functional; None where they are, or unknown.

    Raises:
        InputError: the functional that the potential learned has dispersion in it, which would count twice.
    """
    if model is None:
        return None
    for name in model.functional.split(","):
        if any(word in name.lower() for word in _INCLUDED):
            raise InputError(
                f"{model.name} was trained on {model.functional}, which has dispersion in it; leave out --d3"
            )
    learned = [_plain(name.partition("(")[0]) for name in model.functional.split(",")]
    if _plain(functional) in learned:
        return None
    return f"{model.name} was trained on {model.functional}, and the D3 parameters are those of {functional}"


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().replace("²", "2") if c.isalnum())


def _damping(functional: str) -> Any:
    try:
        from dftd3.interface import RationalDampingParam
    except ImportError as error:
        raise InputError(
            "D3 dispersion needs the package dftd3; pip install 'equipes[dispersion]'"
        ) from error
    try:
        return RationalDampingParam(method=functional.replace("²", "2").lower(), atm=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"D3(BJ) has no parameters for '{functional}'; it has them for PBE, PBEsol, revPBE, RPBE, r2SCAN, BLYP, "
            "B3LYP, PBE0, HSE06 and many more, by these names"
        ) from error
