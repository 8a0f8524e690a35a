"""Molecular dynamics that records the heat flux: what thermalises, what is kept on the disk, how it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.md.md import MolecularDynamics

from equipes.errors import InputError
from equipes.simulate.crystals import checked_supercell
from equipes.simulate.ensembles import (
    Kind,
    conserved_energy,
    degrees_of_freedom,
    integrator,
    integrator_state,
    restore_integrator,
    thermal_momenta,
)
from equipes.simulate.errors import SimulationError
from equipes.simulate.heat_flux import Carried, FluxOf
from equipes.simulate.results import Progress
from equipes.simulate.safety import CLOSEST_FRACTION, Watch
from equipes.simulate.store import Store

_CHECKPOINT_SECONDS = 15.0
# Small structures share the cost of a call; beyond this many atoms there is little left to share.
_ATOMS_IN_BATCH = 256
# Frames of the thermalisation whose mean says what an atom carries at rest.
_REST_FRAMES = 20
THERMOSTAT_TIME = 100.0  # fs
# A thermostat that only takes away the heat of a field, slow enough to leave phonons alone.
_GENTLE_TIME = 1000.0


@dataclass(frozen=True)
class FluxOptions:
    """What methods that record the heat flux have in common.

    Attributes:
        temperature: K.
        supercell: how often the structure is repeated.
        steps: recorded, of each run.
        equilibration: steps at `temperature` before them.
        runs: independent runs.
        timestep: fs.
        interval: steps between two fluxes.
        seed: of the velocities.
    """

    # What it takes at least to say anything of correlations, or of a mean with an error.
    fewest_fluxes: ClassVar[int]

    temperature: float
    supercell: tuple[int, int, int] = (1, 1, 1)
    steps: int = 100_000
    equilibration: int = 5_000
    runs: int = 1
    timestep: float = 1.0
    interval: int = 10
    seed: int = 0

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        checked_supercell(self.supercell)
        require_positive(self, "temperature", "timestep")
        for name in ("runs", "interval"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.equilibration < 0:
            raise InputError(f"equilibration must be 0 steps or more, not {self.equilibration}")
        fluxes = max(self.steps, 0) // self.interval
        if fluxes < self.fewest_fluxes:
            raise InputError(
                f"{self.steps} steps with a flux every {self.interval} leave {fluxes} fluxes, too few for a "
                f"conductivity with an error; take at least {self.fewest_fluxes}"
            )


def require_positive(options: FluxOptions, *names: str) -> None:
    """Raises `InputError` where one of them is not a number above 0."""
    for name in names:
        value = getattr(options, name)
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be above 0, not {value}")


@dataclass(frozen=True)
class FluxSettings:
    """One run.

    Attributes:
        temperature: K.
        equilibration: steps at this temperature, with velocity rescaling, before anything is recorded.
        steps: steps that are recorded, at constant energy; under a field at `temperature`.
        timestep: fs.
        interval: steps between two fluxes.
        field: 1/Å; drives heat along it (see `equipes.simulate.hnemd`). None leaves the atoms alone.
    """

    temperature: float
    equilibration: int
    steps: int
    timestep: float
    interval: int
    field: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class FluxRun:
    """What a run recorded, n times.

    Attributes:
        flux: `[n, 3]` eV Å/fs, without what the atoms carry at rest; under a field, the part along it.
        temperature_k: `[n]`.
        energy_ev: `[n]`, the total energy.
        moved_ang: the largest distance of an atom from its place at the start of the record, at its end.
    """

    flux: np.ndarray
    temperature_k: np.ndarray
    energy_ev: np.ndarray
    moved_ang: float


def flux_run(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    settings: FluxSettings,
    seed: tuple[int, int],
    *,
    name: str,
    store: Store,
    progress: Progress,
) -> FluxRun:
    """Thermalise a structure, let it go on at constant energy, or driven, and record the heat flux.

    What is done stays in the store under `name`; a stopped run goes on from there, bit for bit as if it had not been
    stopped.

    Raises:
        InputError: a calculator that has no heat flux.
        SimulationError: a run that left what is physically possible.
    """
    run = _Run(atoms, calculator, settings, seed, name, store)
    total = settings.equilibration + settings.steps
    saved = time.monotonic()
    while run.step < total:
        run.advance()
        progress(name, run.step, total)
        # Only between two batches, so that batches, and with them the last digits, are those of an undisturbed run.
        if not run.waiting and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            run.save()
            saved = time.monotonic()
    run.flush()
    run.save()
    return run.result()


class Driven(Calculator):
    """Forces of a potential and of a field that drives heat, F_i = U_i F_e + F_e · W_i (eV/Å; both less what is
    carried at rest), without the net force, which goes as the masses, so that the power is that of the flux of the
    rest: Σ F_i · v_i = J · F_e.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, flux_of: FluxOf, field: np.ndarray, rest: Carried) -> None:
        super().__init__()
        self.flux_of = flux_of
        self.strength = float(np.linalg.norm(field))
        self.direction = field / self.strength
        self.rest = Carried(rest.energies, np.einsum("a,nab->nb", self.direction, rest.virials)[:, None])
        self.carried = self.rest

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """As ASE calls it."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.get_atoms() if atoms is None else atoms
        (self.carried,) = self.flux_of([structure], self.direction)
        energies = self.carried.energies - self.rest.energies
        pull = energies[:, None] * self.direction + (self.carried.virials - self.rest.virials)[:, 0]
        masses = structure.get_masses()
        pull -= masses[:, None] / masses.sum() * pull.sum(axis=0)
        assert self.carried.forces is not None
        self.results = {
            "energy": float(self.carried.energies.sum()),
            "forces": self.carried.forces + self.strength * pull,
        }

    def flux(self, atoms: ase.Atoms) -> np.ndarray:
        """The flux along the field, `[3]`, eV Å/fs, of the structure that was calculated last, with its velocities of
        now.
        """
        v = atoms.get_velocities() * units.fs
        energies = 0.5 * atoms.get_masses() * np.einsum("na,na->n", v, v) / units.fs**2
        energies += self.carried.energies - self.rest.energies
        virials = (self.carried.virials - self.rest.virials)[:, 0]
        along = energies @ v @ self.direction + np.einsum("nb,nb->", virials, v)
        return float(along) * self.direction


class _Run:
    def __init__(
        self,
        atoms: ase.Atoms,
        calculator: BaseCalculator,
        settings: FluxSettings,
        seed: tuple[int, int],
        name: str,
        store: Store,
    ) -> None:
        self.atoms = atoms.copy()
        self.atoms.calc = calculator
        self.settings, self.name, self.store = settings, name, store
        self.flux_of = FluxOf(calculator)
        self.degrees = degrees_of_freedom(atoms, "nvt")
        self.rng = np.random.default_rng(seed)
        self.waiting: list[tuple[ase.Atoms, tuple[float, float]]] = []
        # Sums over the frames of the thermalisation that say what an atom carries at rest, and their number.
        self.rest = Carried(np.zeros(len(atoms)), np.zeros((len(atoms), 3, 3)))
        self.rest_frames = 0
        self.rows: list[tuple[float, ...]] = []  # flux, temperature, energy
        self.step = 0
        self.start = np.array(atoms.positions)
        self.kind: Kind = "nvt"
        known = store.get(name)
        state: dict[str, Any] = {}
        if known is None:
            thermal_momenta(self.atoms, settings.temperature, "nvt", self.rng)
        else:
            state = self._restore(known)
        self.dynamics: Any = self._integrator()
        if state:
            restore_integrator(self.dynamics, self.kind, state)
        self.batch = max(1, _ATOMS_IN_BATCH // len(atoms))
        self.watch = Watch(
            self.atoms,
            degrees=self.degrees,
            temperature=settings.temperature,
            conserved=self._conserved(),
            closest_fraction=CLOSEST_FRACTION,
        )

    def advance(self) -> None:
        """One step, and its flux where one is due."""
        settings = self.settings
        try:
            self.dynamics.step()
            self.step += 1
            self.watch.check(self.step, self.atoms, self._conserved())
        except (InputError, SimulationError) as error:
            raise SimulationError(f"{self.name}: {error}") from error
        recorded = self.step - settings.equilibration
        if recorded < 0:
            spacing = max(settings.equilibration // (2 * _REST_FRAMES), 1)
            if recorded >= -spacing * _REST_FRAMES and recorded % spacing == 0:
                self._wait()
        elif recorded == 0:
            self._wait()
            self.flush()
            self.dynamics = self._integrator()
            self.start = np.array(self.atoms.positions)
            self.watch.conserved = self._conserved()
        elif recorded % settings.interval == 0 and isinstance(self.atoms.calc, Driven):
            flux = self.atoms.calc.flux(self.atoms)
            self.rows.append((*flux, self._temperature(), float(self.atoms.get_total_energy())))
        elif recorded % settings.interval == 0:
            self._wait()

    def flush(self) -> None:
        """Calculate what the frames that wait carry."""
        if not self.waiting:
            return
        carried = self.flux_of([frame for frame, _ in self.waiting])
        if self.step <= self.settings.equilibration:
            for each in carried:
                self.rest = Carried(self.rest.energies + each.energies, self.rest.virials + each.virials)
            self.rest_frames += len(carried)
        else:
            rest = self._at_rest()
            for (frame, row), each in zip(self.waiting, carried, strict=True):
                self.rows.append((*each.flux(frame, rest), *row))
        self.waiting = []

    def save(self) -> None:
        """Keep this moment to go on from."""
        integration = integrator_state(self.dynamics, self.kind)
        self.store.put(
            self.name,
            step=self.step,
            positions=self.atoms.positions.copy(),  # the atoms go on before it is on the disk
            momenta=self.atoms.get_momenta(),
            start=self.start,
            rows=np.array(self.rows).reshape(-1, 5),
            random=np.array(json.dumps(self.rng.bit_generator.state)),
            rest_frames=self.rest_frames,
            rest_energies=self.rest.energies,
            rest_virials=self.rest.virials,
            **{f"integrator {key}": value for key, value in integration.items()},
        )

    def result(self) -> FluxRun:
        """What was recorded."""
        # A run that goes on under fewer steps than it has done gives what it would have given.
        rows = np.array(self.rows).reshape(-1, 5)[: self.settings.steps // self.settings.interval]
        moved = self.atoms.positions - self.start
        moved -= moved.mean(axis=0)
        farthest = float(np.linalg.norm(moved, axis=1).max())
        return FluxRun(rows[:, :3], rows[:, 3], rows[:, 4], farthest)

    def _wait(self) -> None:
        energy = float(self.atoms.get_total_energy())
        self.waiting.append((self.atoms.copy(), (self._temperature(), energy)))
        if len(self.waiting) >= self.batch:
            self.flush()

    def _temperature(self) -> float:
        return float(2 * self.atoms.get_kinetic_energy() / (self.degrees * units.kB))

    def _at_rest(self) -> Carried:
        n = max(self.rest_frames, 1)
        return Carried(self.rest.energies / n, self.rest.virials / n)

    def _conserved(self) -> float | None:
        if isinstance(self.atoms.calc, Driven):
            return None  # the field does work
        return conserved_energy(self.dynamics, self.kind, float(self.atoms.get_total_energy()))

    def _integrator(self) -> MolecularDynamics:
        recording = self.step >= self.settings.equilibration
        field = self.settings.field
        if recording and field is not None:
            self.atoms.calc = Driven(self.flux_of, np.array(field), self._at_rest())
        self.kind = "nve" if recording and field is None else "nvt"
        return integrator(
            self.atoms,
            self.kind,
            timestep=self.settings.timestep,
            temperature=self.settings.temperature,
            pressure=0.0,
            thermostat_time=_GENTLE_TIME if recording else THERMOSTAT_TIME,
            barostat_time=1000.0,
            flexible_cell=False,
            rng=self.rng,
        )

    def _restore(self, known: dict[str, np.ndarray]) -> dict[str, Any]:
        """Takes up what `save` kept; returns the state of the integrator."""
        self.step = int(known["step"])
        self.atoms.set_positions(known["positions"])
        self.atoms.set_momenta(known["momenta"])
        self.start = known["start"]
        self.rows = [tuple(row) for row in known["rows"]]
        self.rng.bit_generator.state = json.loads(str(known["random"]))
        self.rest = Carried(known["rest_energies"], known["rest_virials"])
        self.rest_frames = int(known["rest_frames"])
        return {
            key.removeprefix("integrator "): value
            for key, value in known.items()
            if key.startswith("integrator ")
        }
