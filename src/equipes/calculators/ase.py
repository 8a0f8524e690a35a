"""A potential as an ASE calculator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equipes.calculators.neighbors import SkinnedNeighbors
from equipes.errors import InputError
from equipes.foundation import load
from equipes.models import Potential, adapted, convert


class Calculator(AseCalculator):
    """Energy, forces and stress of a potential for ASE.

    Properties: `energy` and `free_energy` (eV, the same number), `energies` `[N]` (eV), `forces` `[N, 3]` (eV/Å) and
    `stress` `[6]` (eV/Å³, xx yy zz yz xz xy, tensile positive). The same structure gives the same numbers, bit for bit,
    whatever was calculated before.

    Args:
        model: path of a model file, name of a published potential (`equipes models list`), or a `Potential`; it is
            copied, so what happens to it later changes nothing here.
        device: where the network runs.
        dtype: "float32" or "float64", the number type of the network; None keeps the model's own. Geometry is float64.
        modal: of a potential that knows several kinds of reference calculation, the one to speak for.
        species: keep only these elements of those that it knows.
        skin: Å added to the cutoff when neighbours are collected; the list serves until an atom has moved half of it.

    Raises:
        InputError: a file that is no model, an unknown dtype or device, a negative skin; when calculating, an element
            that the potential does not know, or a structure without sense (see `AtomGraph.from_atoms`).
        PropertyNotImplementedError: the stress of a structure whose cell has no volume.

    >>> from ase.build import bulk
    >>> import equipes
    >>> potential = equipes.build("nequip", ["Cu"], {"num_layers": 1, "num_features": 4})
    >>> copper = bulk("Cu")
    >>> copper.calc = Calculator(potential)
    >>> copper.get_forces().shape
    (1, 3)
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(
        self,
        model: Potential | str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: str | None = "float32",
        skin: float = 0.5,
        *,
        modal: str | None = None,
        species: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError(f"the skin must be a length of 0 Å or more, not {skin}")
        self.device = _device(device)
        if isinstance(model, Potential):
            self.potential = convert(model, dtype or str(model.dtype).removeprefix("torch.")).to(self.device)
            self.potential = adapted(self.potential, species=species, modal=modal)
        else:
            self.potential = load(model, device=self.device, dtype=dtype, species=species, modal=modal)
        self.potential.eval().requires_grad_(False)
        self._neighbors = SkinnedNeighbors(self.potential.cutoff, skin)

    @property
    def neighbor_list_builds(self) -> int:
        """How often neighbours were collected anew."""
        return self._neighbors.builds

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation, of what the potential sees.

        Compared exactly; ASE's own comparison takes as long as finding the neighbours of a small molecule.
        """
        last = self.atoms
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        changed = [
            name
            for name in ("positions", "numbers")
            if not np.array_equal(getattr(last, name), getattr(atoms, name))
        ]
        if not np.array_equal(last.cell.array, atoms.cell.array):
            changed.append("cell")
        if not np.array_equal(last.pbc, atoms.pbc):
            changed.append("pbc")
        return changed

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; ASE calls it when something is asked that is not known yet."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.get_atoms() if atoms is None else atoms
        # Forces cost as much again as the energy, and whoever wants the one soon wants the other; after them the stress
        # costs next to nothing, so it is only left out where it has no meaning.
        periodic = bool(structure.pbc.any())
        has_volume = structure.cell.rank == 3
        if "stress" in properties and not has_volume:
            raise PropertyNotImplementedError(
                "the structure has no stress, because its cell has no volume; set three lattice vectors"
            )
        stress = has_volume and (periodic or "stress" in properties)
        graph = self._neighbors.graph(structure)
        if self.device.type != "cpu":
            graph = graph.to(self.device)
        prediction = self.potential(graph, forces=True, stress=stress)
        energy = float(prediction.energy)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": prediction.energies.cpu().numpy(),
            "forces": prediction.forces.cpu().numpy(),
        }
        if stress:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].cpu().numpy())

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What the calculator is, for ASE's databases and trajectories."""
        return {"architecture": self.potential.architecture, "species": list(self.potential.species)}


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {str(name)!r} cannot be used here; use 'cpu', or one that torch finds"
        ) from error
    return device
