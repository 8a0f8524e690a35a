"""Systems that move together: one evaluation of the potential and one time step for all of them.

The thermostats are those of `equipes.simulate.ensembles`, one for each system with random numbers of its own, so a
system moves as it would alone, to round-off, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
import torch
from ase import units
from torch import Tensor

from equipes.calculators.ase import Calculator
from equipes.calculators.batched import BatchedEvaluator, StructureError, Structures
from equipes.errors import InputError
from equipes.models.potential import Prediction
from equipes.simulate.ensembles import Kind, set_target
from equipes.simulate.held import hold
from equipes.simulate.md import Run
from equipes.simulate.safety import ENERGY_CHANGE

# More atoms at once make a CPU no faster (see `equipes.training.batch_sizes`), and would need more memory.
ATOMS_ON_CPU = 1000


class Batch:
    """Runs at the same step, advanced together.

    Positions, momenta and forces are tensors on the device of the potential; the atoms of the runs, and what their
    calculators hold, follow when `bring_back` is called.

    Args:
        runs: of one ensemble and time step, whose calculators are `Held` and hold the present forces.
        evaluator: of the potential; one for each batch, since it keeps lists of neighbours.
    """

    def __init__(self, runs: Sequence[Run], evaluator: BatchedEvaluator) -> None:
        self.runs = list(runs)
        self.evaluator = evaluator
        self.kind: Kind = runs[0].settings.kind
        self.dt = runs[0].settings.timestep * units.fs
        device = evaluator.device
        atoms = [run.atoms for run in runs]
        self.structures = Structures.from_atoms(atoms, device)
        self.sizes = [len(structure) for structure in atoms]

        def joined(arrays: list[np.ndarray]) -> Tensor:
            return torch.tensor(np.concatenate(arrays), dtype=torch.float64, device=device)

        self.positions = self.structures.positions
        self.momenta = joined([structure.get_momenta() for structure in atoms])
        self.forces = joined([structure.calc.results["forces"] for structure in atoms])
        self.masses = joined([structure.get_masses() for structure in atoms]).unsqueeze(1)
        self.energy = joined([np.array([structure.calc.results["energy"]]) for structure in atoms])
        self.stress: Tensor | None = None
        self.lost: dict[int, str] = {}
        self._damping: tuple[Tensor, Tensor] | None = None
        self._n_atoms = torch.tensor(self.sizes, dtype=torch.float64, device=device)
        self._degrees = joined([np.array([run.degrees]) for run in runs])
        self._hottest = joined([np.array([run.watch.temperature_limit]) for run in runs])

    def advance(self, *, stress: bool) -> dict[int, str]:
        """One time step of all systems.

        Args:
            stress: calculate stresses too, for a row of the tables.

        Returns:
            By index, why the structure of a system cannot be evaluated any more; the others are well.
        """
        for run in self.runs:
            run.step += 1
            if run.settings.ramps:
                set_target(run.dynamics, *run.settings.targets(run.step))
                self._damping = None
        if self.kind == "nvt-langevin":
            self._langevin(stress)
        else:
            if self.kind == "nvt":
                self._rescale()
            self._verlet(stress)
        return self.lost

    def kinetic_energies(self) -> Tensor:
        """`[S]` eV."""
        return self._sum((self.momenta.square() / self.masses).sum(dim=1)) / 2

    def bring_back(self) -> None:
        """Let the atoms of the runs and their calculators know where they are."""
        positions, momenta, forces, energy = (
            tensor.cpu().numpy() for tensor in (self.positions, self.momenta, self.forces, self.energy)
        )
        stress = None if self.stress is None else self.stress.cpu().numpy()
        start = 0
        for index, (run, size) in enumerate(zip(self.runs, self.sizes, strict=True)):
            mine = slice(start, start + size)
            run.atoms.set_positions(positions[mine], apply_constraint=False)
            run.atoms.set_momenta(momenta[mine], apply_constraint=False)
            hold(
                run.atoms.calc,
                float(energy[index]),
                forces[mine].copy(),
                None if stress is None else stress[index],
            )
            start += size

    def suspicious(self) -> list[int]:
        """Indices of systems that may have left what is possible: `Watch` has to look at them."""
        kinetic = self.kinetic_energies()
        total = self.energy + kinetic
        finite = torch.isfinite(total) & torch.isfinite(self._sum(self.forces.sum(dim=1)))
        finite &= torch.isfinite(self._sum(self.positions.sum(dim=1)))
        fine = finite & (2 * kinetic / (self._degrees * units.kB) < self._hottest)
        if self.kind != "nvt-langevin":
            given = [getattr(run.dynamics, "transferred_energy", 0.0) for run in self.runs]
            start = [run.watch.conserved or 0.0 for run in self.runs]
            before = torch.tensor(np.add(given, start), dtype=torch.float64, device=kinetic.device)
            fine &= ((total - before) / self._n_atoms).abs() < ENERGY_CHANGE
        return torch.nonzero(~fine).flatten().tolist()

    def _verlet(self, stress: bool) -> None:
        """p += f dt/2, x += p/m dt, new forces, p += f dt/2."""
        self.momenta = self.momenta + 0.5 * self.dt * self.forces
        self.positions = self.positions + self.dt * self.momenta / self.masses
        self._evaluate(stress)
        self.momenta = self.momenta + 0.5 * self.dt * self.forces

    def _rescale(self) -> None:
        """Stochastic velocity rescaling: ASE's thermostat of each system says by how much."""
        factors = []
        for run, kinetic in zip(self.runs, self.kinetic_energies().tolist(), strict=True):
            factor = run.dynamics.calculate_alpha(kinetic)
            run.dynamics.transferred_energy += (factor**2 - 1) * kinetic
            factors.append(factor)
        scale = torch.tensor(factors, dtype=torch.float64, device=self.momenta.device)
        self.momenta = self.momenta * scale[self.structures.structure].unsqueeze(1)

    def _langevin(self, stress: bool) -> None:
        """BAOAB: half kick, half drift, friction and noise, half drift, new forces, half kick."""
        damping, strength = self._friction()
        noise = np.concatenate([run.rng.normal(size=(len(run.atoms), 3)) for run in self.runs])
        self.momenta = self.momenta + 0.5 * self.dt * self.forces
        self.positions = self.positions + 0.5 * self.dt * self.momenta / self.masses
        self.momenta = damping * self.momenta + strength * torch.tensor(noise, device=self.momenta.device)
        self.positions = self.positions + 0.5 * self.dt * self.momenta / self.masses
        self._evaluate(stress)
        self.momenta = self.momenta + 0.5 * self.dt * self.forces

    def _friction(self) -> tuple[Tensor, Tensor]:
        """What is left of a momentum after a step, `[N, 1]`, and the standard deviation of the noise, `[N, 1]`."""
        if self._damping is None:
            rates = torch.tensor([[run.dynamics.gamma, run.dynamics.BAOAB_prefactor] for run in self.runs])
            rates = rates.to(self.momenta.device, torch.float64)[self.structures.structure]
            self._damping = (
                torch.exp(-rates[:, :1] * self.dt),
                rates[:, 1:] * self.masses.sqrt(),
            )
        return self._damping

    def _evaluate(self, stress: bool) -> None:
        now = Structures(
            self.positions,
            self.structures.numbers,
            self.structures.cell,
            self.structures.pbc,
            self.structures.structure,
        )
        found, well = evaluate(self.evaluator, now, self.lost, stress=stress)
        assert found.forces is not None
        if well is None:
            self.energy, self.forces, self.stress = found.energy, found.forces, found.stress
            return
        atoms = well[now.structure]
        self.energy = torch.full_like(self.energy, torch.nan).masked_scatter(well, found.energy)
        self.forces = torch.full_like(self.forces, torch.nan).masked_scatter(atoms.unsqueeze(1), found.forces)
        self.stress = None
        if found.stress is not None:
            empty = torch.full_like(now.cell, torch.nan)
            self.stress = empty.masked_scatter(well.view(-1, 1, 1), found.stress)

    def _sum(self, of_atoms: Tensor) -> Tensor:
        zeros = of_atoms.new_zeros(len(self.runs))
        return zeros.index_add(0, self.structures.structure, of_atoms)


class Batches:
    """Divides systems into batches that fit into memory.

    Args:
        calculator: the potential.
        limit: systems in a batch, at most; None: all, on a CPU as many as have `ATOMS_ON_CPU` together.
    """

    def __init__(self, calculator: Calculator, limit: int | None) -> None:
        self.calculator = calculator
        self.limit = limit
        self._most_atoms = ATOMS_ON_CPU if limit is None and calculator.device.type == "cpu" else None

    def _stop(self, sizes: Sequence[int], start: int) -> int:
        """Where the batch ends that begins with system `start`."""
        stop, atoms = start + 1, sizes[start]
        while stop < len(sizes) and (self.limit is None or stop - start < self.limit):
            atoms += sizes[stop]
            if self._most_atoms is not None and atoms > self._most_atoms:
                break
            stop += 1
        return stop

    def first(self, structures: list[ase.Atoms], names: list[str]) -> None:
        """Energies, forces and stresses of the structures that runs begin with, into their `Held` calculators.

        Raises:
            InputError: a structure without sense, or one that alone does not fit into memory.
        """
        start = 0
        while start < len(structures):
            stop = self._stop([len(atoms) for atoms in structures], start)
            some = structures[start:stop]
            now = Structures.from_atoms(some, self.calculator.device)
            stress = any(atoms.pbc.all() and atoms.cell.rank == 3 for atoms in some)
            try:
                found = BatchedEvaluator(self.calculator)(now, stress=stress)
            except StructureError as error:
                raise InputError(f"{names[start + error.index]}: {error}") from error
            except torch.OutOfMemoryError as error:
                if len(some) == 1:
                    raise InputError(
                        f"{names[start]} with its {len(some[0])} atoms does not fit into the memory of"
                        f" {self.calculator.device}; take a larger device or --device cpu"
                    ) from error
                self.limit = (len(some) + 1) // 2
                continue
            assert found.forces is not None
            forces = found.forces.cpu().numpy()
            last = 0
            for index, atoms in enumerate(some):
                mine = forces[last : last + len(atoms)].copy()
                tensor = None if found.stress is None else found.stress[index].cpu().numpy()
                hold(atoms.calc, float(found.energy[index]), mine, tensor)
                last += len(atoms)
            start = stop

    def made(self, runs: Sequence[Run]) -> list[Batch]:
        """The batches that runs at the same step move in."""
        sizes = [len(run.atoms) for run in runs]
        batches, start = [], 0
        while start < len(runs):
            stop = self._stop(sizes, start)
            batches.append(Batch(runs[start:stop], BatchedEvaluator(self.calculator)))
            start = stop
        return batches


def evaluate(
    evaluator: BatchedEvaluator, now: Structures, lost: dict[int, str], *, stress: bool
) -> tuple[Prediction, Tensor | None]:
    """Energies and forces of all structures that can be evaluated.

    Args:
        lost: by index, why a structure cannot; those found here are added.

    Returns:
        The prediction for the others, and which those are, `[S]`; None if all.

    Raises:
        InputError: not enough memory.
    """
    while True:
        well = None
        chosen = now
        if lost:
            well = torch.ones(now.n_structures, dtype=torch.bool, device=now.cell.device)
            well[list(lost)] = False
            chosen = subset(now, well)
        try:
            return evaluator(chosen, forces=True, stress=stress), well
        except StructureError as error:
            indices = torch.arange(now.n_structures) if well is None else torch.nonzero(well.cpu()).flatten()
            lost[int(indices[error.index])] = str(error)
            if len(lost) == now.n_structures:
                nothing = now.positions.new_zeros
                return Prediction(nothing(0), nothing(0), nothing(0, 3), nothing(0, 3, 3)), torch.zeros(
                    now.n_structures, dtype=torch.bool, device=now.cell.device
                )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{now.n_structures} systems with {len(now.numbers)} atoms do not fit into the memory of"
                f" {evaluator.device} together; give a smaller --batch-size"
            ) from error


def subset(now: Structures, chosen: Tensor) -> Structures:
    """The structures of a mask `[S]`."""
    atoms = chosen[now.structure]
    renumbered = torch.cumsum(chosen, 0) - 1
    return Structures(
        positions=now.positions[atoms],
        numbers=now.numbers[atoms],
        cell=now.cell[chosen],
        pbc=now.pbc[chosen],
        structure=renumbered[now.structure[atoms]],
    )
