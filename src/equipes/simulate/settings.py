"""What a run of molecular dynamics is."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np

from equipes.errors import InputError
from equipes.simulate.ensembles import Ensemble, Kind, Thermostat
from equipes.simulate.safety import CLOSEST_FRACTION


@dataclass(frozen=True)
class MDSettings:
    """What a run of molecular dynamics is.

    Attributes:
        ensemble: nve, nvt or npt.
        steps: the length of the whole run, including what was done before it was continued.
        timestep: fs.
        temperature: K; the target in nvt and npt, the temperature of the first velocities in nve.
        temperature_end: K; the target goes there from `temperature` in a straight line over the run.
        pressure: GPa, in npt.
        pressure_end: GPa; likewise.
        seed: of the first velocities and of the thermostat.
        interval: steps between two rows of the table, two frames of the trajectory, and two samples of radial
            distributions and displacements.
        keep_velocities: start with the velocities of the structure instead of random ones.
        thermostat: in nvt: bussi (velocity rescaling), nose-hoover (a chain of three) or langevin.
        thermostat_time: relaxation time of the temperature in fs.
        barostat_time: relaxation time of the volume in fs.
        flexible_cell: in npt, let the shape of the cell change too, not only its volume.
        flexible_lengths: in npt, let the three lengths of an orthorhombic cell change, each by itself, and keep its
            angles.
        closest_fraction: stop when two atoms come closer than this fraction of the sum of their covalent radii.
        max_forces_std: eV/Å; stop when the forces of a committee on an atom scatter by more.
        max_feature_distance: stop when an atom is farther than this from what the potential was trained on.
        uncertainty_interval: steps between two looks at feature distances.
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
    thermostat: Thermostat = "bussi"
    temperature_end: float | None = None
    pressure_end: float | None = None
    flexible_lengths: bool = False
    trajectory: bool = True
    reach: float = 6.0
    max_forces_std: float | None = None
    max_feature_distance: float | None = None
    uncertainty_interval: int = 10

    @property
    def kind(self) -> Kind:
        """The ensemble with its integrator."""
        if self.ensemble != "nvt" or self.thermostat == "bussi":
            return self.ensemble
        return "nvt-nose-hoover" if self.thermostat == "nose-hoover" else "nvt-langevin"

    @property
    def ramps(self) -> bool:
        """Whether a target changes on the way."""
        return self.temperature_end is not None or self.pressure_end is not None

    def targets(self, step: int) -> tuple[float, float]:
        """Temperature (K) and pressure (GPa) aimed at in a step.

        >>> MDSettings("npt", steps=100, temperature=300.0, temperature_end=500.0, pressure=1.0).targets(50)
        (400.0, 1.0)
        """
        done = step / max(self.steps, 1)
        first = self.temperature or 0.0
        last = first if self.temperature_end is None else self.temperature_end
        pressure_last = self.pressure if self.pressure_end is None else self.pressure_end
        return first + (last - first) * done, self.pressure + (pressure_last - self.pressure) * done

    def check(self, atoms: ase.Atoms) -> None:
        """Raises `InputError` for settings that make no sense, alone or for `atoms`."""
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise InputError(f"unknown ensemble {self.ensemble!r}; choose nve, nvt or npt")
        if self.thermostat not in ("bussi", "nose-hoover", "langevin"):
            raise InputError(f"unknown thermostat {self.thermostat!r}; choose bussi, nose-hoover or langevin")
        if self.thermostat != "bussi" and self.ensemble != "nvt":
            raise InputError(f"the thermostat {self.thermostat} belongs to nvt, not to {self.ensemble}")
        if self.temperature_end is not None:
            if self.ensemble == "nve":
                raise InputError("nve has no temperature to change on the way; take nvt or npt")
            if not (np.isfinite(self.temperature_end) and self.temperature_end > 0):
                raise InputError(f"temperature_end must be above 0 K, not {self.temperature_end}")
        if self.pressure_end is not None and self.ensemble != "npt":
            raise InputError(f"{self.ensemble} has no pressure to change on the way; take npt")
        for name in ("timestep", "thermostat_time", "barostat_time"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be a positive time in fs, not {getattr(self, name)}")
        if self.steps < 0 or self.interval < 1:
            raise InputError(
                f"steps must be 0 or more and interval 1 or more, not {self.steps} and {self.interval}"
            )
        if not 0 <= self.reach < 30:
            raise InputError(
                f"the reach of radial distributions must lie between 0 and 30 Å, not {self.reach}"
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
            self._check_shape(atoms)
        elif self.pressure != 0.0 or self.flexible_cell or self.flexible_lengths:
            raise InputError(
                f"{self.ensemble} keeps the cell as it is: pressure, flexible_cell and flexible_lengths belong to npt"
            )

    def _check_shape(self, atoms: ase.Atoms) -> None:
        if self.flexible_cell and self.flexible_lengths:
            raise InputError(
                "either the whole shape of the cell changes or its lengths alone; give flexible_cell or"
                " flexible_lengths"
            )
        cell = atoms.cell.array
        if self.flexible_lengths and np.abs(cell - np.diag(np.diag(cell))).max() > 1e-6 * np.abs(cell).max():
            raise InputError(
                "flexible_lengths needs an orthorhombic cell with its vectors along x, y and z; make one, or give"
                " flexible_cell"
            )
