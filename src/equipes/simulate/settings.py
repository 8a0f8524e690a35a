"""What a run of molecular dynamics is."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np

from equipes.errors import InputError
from equipes.simulate.ensembles import Ensemble
from equipes.simulate.safety import CLOSEST_FRACTION


@dataclass(frozen=True)
class MDSettings:
    """What a run of molecular dynamics is.

    Attributes:
        ensemble: nve, nvt or npt.
        steps: the length of the whole run, including what was done before it was continued.
        timestep: fs.
        temperature: K; the target in nvt and npt, the temperature of the first velocities in nve.
        pressure: GPa, in npt.
        seed: of the first velocities and of the thermostat.
        interval: steps between two rows of the table, and two frames of the trajectory.
        keep_velocities: start with the velocities of the structure instead of random ones.
        thermostat_time: relaxation time of the temperature in fs.
        barostat_time: relaxation time of the volume in fs.
        flexible_cell: in npt, let the shape of the cell change too, not only its volume.
        closest_fraction: stop when two atoms come closer than this fraction of the sum of their covalent radii.
    """

    ensemble: Ensemble
    steps: int
    timestep: float = 0.5
    temperature: float | None = None
    pressure: float = 0.0
    seed: int = 0
    interval: int = 10
    keep_velocities: bool = False
    thermostat_time: float = 100.0
    barostat_time: float = 1000.0
    flexible_cell: bool = False
    closest_fraction: float = CLOSEST_FRACTION

    def check(self, atoms: ase.Atoms) -> None:
        """Raises `InputError` for settings that make no sense, alone or for `atoms`."""
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise InputError(f"unknown ensemble {self.ensemble!r}; choose nve, nvt or npt")
        for name in ("timestep", "thermostat_time", "barostat_time"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be a positive time in fs, not {getattr(self, name)}")
        if self.steps < 0 or self.interval < 1:
            raise InputError(
                f"steps must be 0 or more and interval 1 or more, not {self.steps} and {self.interval}"
            )
        if self.temperature is not None and not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"the temperature must be 0 K or more, not {self.temperature}")
        if self.ensemble != "nve" and not self.temperature:
            raise InputError(f"{self.ensemble} needs a temperature above 0 K")
        if self.temperature is None and not self.keep_velocities:
            raise InputError(
                "nve needs a temperature for its first velocities, or keep_velocities for the structure's"
            )
        if self.keep_velocities and not (atoms.has("momenta") and atoms.get_momenta().any()):
            raise InputError(
                "the structure has no velocities to keep; give a temperature and draw them instead"
            )
        if self.ensemble == "npt":
            if not (atoms.pbc.all() and atoms.cell.rank == 3):
                raise InputError("npt needs a structure that is periodic in all three directions; use nvt")
            if atoms.constraints:
                raise InputError("npt cannot hold atoms fixed; remove the constraints or use nvt")
        elif self.pressure != 0.0 or self.flexible_cell:
            raise InputError(
                f"{self.ensemble} keeps the cell as it is: pressure and flexible_cell belong to npt"
            )
