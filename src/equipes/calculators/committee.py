"""Several potentials as one ASE calculator: their mean, and how much they differ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

from equipes.calculators.ase import Calculator
from equipes.errors import InputError
from equipes.models import FrozenPotential, Potential
from equipes.models.committee import deviation_of_energies, deviation_of_forces
from equipes.models.device_frozen import DevicePotential


class Committee(AseCalculator):
    """The mean of several potentials for ASE, with their standard deviations.

    Properties are those of `equipes.Calculator`, means over the members. Besides, `results` has

    - `energy_std` (eV): standard deviation of the total energy,
    - `forces_std` `[N]` (eV/Å): for each atom √(Σ_m |F_m - F|² / (M - 1)) over the M members, the length that its force
      scatters by (H. S. Seung, M. Opper and H. Sompolinsky, COLT 1992; in dynamics L. Zhang et al., Phys. Rev.
      Materials 3, 023804 (2019), who divide by M),
    - `stress_std` `[6]` (eV/Å³), where there is a stress,
    - `energy_comm` `[M]` and `forces_comm` `[M, N, 3]`, what the members say.

    Members are frozen where `equipes.Calculator` would freeze them, and share one neighbour list where their cutoffs
    are equal.

    Args:
        models: two or more of what `equipes.Calculator` takes.
        feature_distance: put `feature_distance` `[N]` into the results too, the mean over the members.
        device, dtype, skin, exact, modal, species, freeze: see `equipes.Calculator`.

    Attributes:
        members: the calculators.

    Raises:
        InputError: fewer than two models, or what `equipes.Calculator` refuses.

    >>> from ase.build import bulk
    >>> import equipes
    >>> members = [equipes.build("nequip", ["Cu"], {"num_layers": 1, "num_features": 4}, seed=s) for s in (1, 2)]
    >>> copper = bulk("Cu")
    >>> copper.calc = Committee(members)
    >>> bool(copper.get_potential_energy() == np.mean(copper.calc.results["energy_comm"]))
    True
    """

    implemented_properties = list(Calculator.implemented_properties)  # noqa: RUF012 - as in ASE

    def __init__(
        self,
        models: Sequence[Potential | FrozenPotential | str | os.PathLike[str]],
        device: str | torch.device = "cpu",
        dtype: str | None = "float32",
        skin: float = 0.5,
        exact: bool = False,
        *,
        modal: str | None = None,
        species: Sequence[str] | None = None,
        freeze: bool = False,
        feature_distance: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(models, str | os.PathLike) or len(models) < 2:
            raise InputError("a committee needs two models at least; give a list of them")
        self.members = [
            Calculator(
                model,
                device,
                dtype,
                skin,
                exact,
                modal=modal,
                species=species,
                freeze=freeze,
                feature_distance=feature_distance,
            )
            for model in models
        ]
        self._tells_distance = feature_distance
        first = self.members[0]._neighbors
        for member in self.members[1:]:
            if member._neighbors.cutoff == first.cutoff:
                member._neighbors = first

    def freeze_for(self, symbols: Iterable[str]) -> list[FrozenPotential | DevicePotential | None]:
        """Freeze every member for some elements ahead of time; see `equipes.Calculator.freeze_for`."""
        wanted = set(symbols)
        return [member.freeze_for(wanted) for member in self.members]

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """See `equipes.Calculator.check_state`."""
        return self.members[0].check_state(atoms, tol)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; ASE calls it when something is asked that is not known yet."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.get_atoms() if atoms is None else atoms
        for member in self.members:
            member.calculate(structure, properties, system_changes)
        said = [member.results for member in self.members]
        self.results = {name: np.mean([results[name] for results in said], axis=0) for name in said[0]}
        for name in ("energy", "free_energy"):
            self.results[name] = float(self.results[name])
        energies = np.array([results["energy"] for results in said])
        forces = np.array([results["forces"] for results in said])
        self.results |= {
            "energy_std": float(deviation_of_energies(energies)),
            "forces_std": deviation_of_forces(forces),
            "energy_comm": energies,
            "forces_comm": forces,
        }
        if "stress" in self.results:
            self.results["stress_std"] = np.std([results["stress"] for results in said], axis=0, ddof=1)

    def feature_distances(self, structure: ase.Atoms) -> np.ndarray:
        """The mean over the members of how far each atom is from what they were trained on, `[N]`."""
        return np.mean([member.feature_distances(structure) for member in self.members], axis=0)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What the calculator is, for ASE's databases and trajectories."""
        return {"committee": [member.todict() for member in self.members]}
