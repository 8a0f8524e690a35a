"""The physical laws that every potential obeys, whatever its architecture and its weights.

List a model in `tests/test_laws.py` and it is asked all of them. Each law states what must hold for random structures
(molecules, crystals, slabs, wires, skewed cells smaller than the cutoff) in float64; differences are measured relative
to the largest element of what is compared, energies after the reference energies are taken off, so that nothing small
hides behind something large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from hypothesis import given

from equipes.graph import AtomGraph
from equipes.models import build
from equipes.models.potential import Prediction
from structures import SPECIES, ensembles, random_structure, rotations, seeds

ROUND_OFF = 1e-10
FINITE_DIFFERENCE = 1e-6
SINGLE = 1e-4
STEP = 1e-3
SEED = 7
# Fourth-order central difference: sum of weight * f(x + k STEP) / STEP.
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}

Evaluator = Callable[..., Prediction]


@dataclass(frozen=True, repr=False)
class Model:
    """A potential with random weights; `broken` wraps it, to show that a law can fail."""

    name: str
    architecture: str
    hyperparameters: dict[str, Any]
    reference_energies: dict[str, float]
    cutoffs: tuple[float, ...]  # every radius at which some pair of atoms loses sight of each other
    knows_reflections: bool = True  # without, a mirror image may have another energy
    kinks: tuple[float, ...] = ()  # radii at which the second or third derivative of the energy jumps
    alone: float = 0.0  # tolerance of an isolated atom's energy; 0 where no layer touches it
    broken: Callable[[Any], Evaluator] = lambda potential: potential

    def potential(self, dtype: str = "float64") -> Any:
        """The model as it is, in eval mode; the same weights in every dtype."""
        made = build(self.architecture, SPECIES, self.hyperparameters, dtype="float64", seed=SEED)
        made = made if dtype == "float64" else made.to(getattr(torch, dtype))
        return made.eval()

    def smooth_at(self, atoms: Atoms) -> bool:
        """Whether a finite difference of this structure does not carry any pair over a kink: a strain of random numbers
        changes a length by some hundredths of an Å."""
        if not self.kinks:
            return True
        lengths = AtomGraph.from_atoms(atoms, max(self.kinks) + 0.1).edge_vectors().norm(dim=1)
        return all(bool(((lengths - kink).abs() > 0.06).all()) for kink in self.kinks)

    def finite_difference(self, atoms: Atoms) -> float:
        """The tolerance of derivatives of the energy, which are less exact where a low derivative jumps."""
        return FINITE_DIFFERENCE if self.smooth_at(atoms) else 1e-3

    @cached_property
    def float64(self) -> Evaluator:
        return self.broken(self.potential())

    @cached_property
    def float32(self) -> Evaluator:
        return self.broken(self.potential("float32"))

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)  # in what hypothesis says of a failing example


@dataclass(frozen=True)
class Result:
    """The prediction for one structure, energies without the reference energies of its atoms."""

    kind: str
    energy: float
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    virial: np.ndarray


def graph_of(structures: Sequence[Atoms], cutoff: float) -> AtomGraph:
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])


def split(model: Model, structures: Sequence[Atoms], prediction: Prediction) -> list[Result]:
    results, first = [], 0
    for index, atoms in enumerate(structures):
        rows = slice(first, first := first + len(atoms))
        reference = np.array([model.reference_energies[symbol] for symbol in atoms.symbols])
        results.append(
            Result(
                atoms.info.get("kind", str(atoms.symbols)),
                prediction.energy[index].item() - reference.sum(),
                prediction.energies[rows].detach().numpy() - reference,
                prediction.forces[rows].detach().numpy(),
                prediction.stress[index].detach().numpy(),
                prediction.virial[index].detach().numpy(),
            )
        )
    return results


def evaluate(model: Model, structures: Sequence[Atoms]) -> list[Result]:
    """All structures in one batch."""
    return split(model, structures, model.float64(graph_of(structures, max(model.cutoffs))))


def close(actual: Any, expected: Any, tolerance: float, what: str, *, scale: float | None = None) -> None:
    """Equal within `tolerance` times the largest element of `expected` (or `scale`, the size of what is summed)."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape, what
    scale = float(np.abs(expected).max()) if scale is None else scale
    assert np.isfinite(scale) and scale > 1e-6, f"{what}: nothing to compare, its size is {scale}"
    error = float(np.abs(actual - expected).max())
    assert error <= tolerance * scale, f"{what}: relative error {error / scale:.2e} > {tolerance:.0e}"


def same(
    actual: Result, expected: Result, *, rotation: np.ndarray | None = None, tolerance: float = ROUND_OFF
) -> None:
    """Two results that differ at most by a rotation (or reflection) of space."""
    turn = np.eye(3) if rotation is None else rotation
    kind = expected.kind
    # The atoms' shares may cancel in the sum.
    close(actual.energy, expected.energy, tolerance, f"{kind} energy", scale=np.abs(expected.energies).max())
    close(actual.energies, expected.energies, tolerance, f"{kind} energies per atom")
    close(actual.forces, expected.forces @ turn.T, tolerance, f"{kind} forces")
    close(actual.virial, turn @ expected.virial @ turn.T, tolerance, f"{kind} virial")
    assert np.isnan(actual.stress).all() == np.isnan(expected.stress).all(), (
        f"{kind}: has a stress or has none"
    )
    if not np.isnan(expected.stress).any():
        close(actual.stress, turn @ expected.stress @ turn.T, tolerance, f"{kind} stress")


def moved(atoms: Atoms, positions: np.ndarray, cell: np.ndarray | None = None) -> Atoms:
    return Atoms(
        atoms.symbols,
        positions=positions,
        cell=atoms.cell if cell is None else cell,
        pbc=atoms.pbc,
        info=atoms.info,
    )


def energy_slopes(model: Model, paths: Sequence[Sequence[Atoms]]) -> list[float]:
    """Finite differences of the energy at the middle of each path of structures, all evaluated in one batch."""
    energies = np.array(
        [result.energy for result in evaluate(model, [atoms for path in paths for atoms in path])]
    )
    return list(energies.reshape(len(paths), -1) @ np.array(list(STENCIL.values())) / STEP)


class PhysicalLaws:
    """One test per law; a subclass (or a module) gives the fixture `model`."""

    # Symmetries of space and of names

    @given(ensemble=ensembles(), seed=seeds)
    def test_translation(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        shift = np.random.default_rng(seed).uniform(-30, 30, 3)
        translated = [moved(atoms, atoms.positions + shift) for atoms in ensemble]
        for actual, expected in zip(evaluate(model, translated), evaluate(model, ensemble), strict=True):
            same(actual, expected)

    @given(ensemble=ensembles(), rotation=rotations())
    def test_rotation(self, model: Model, ensemble: list[Atoms], rotation: np.ndarray) -> None:
        turned = [
            moved(atoms, atoms.positions @ rotation.T, atoms.cell.array @ rotation.T) for atoms in ensemble
        ]
        for actual, expected in zip(evaluate(model, turned), evaluate(model, ensemble), strict=True):
            same(actual, expected, rotation=rotation)

    @given(ensemble=ensembles(), rotation=rotations())
    def test_reflection(self, model: Model, ensemble: list[Atoms], rotation: np.ndarray) -> None:
        mirror = rotation @ np.diag([1.0, 1.0, -1.0])
        if not model.knows_reflections:
            # Then it must not look as if it did.
            crystal = random_structure("crystal", 5, np.random.default_rng(0))
            image = moved(crystal, crystal.positions @ mirror.T, crystal.cell.array @ mirror.T)
            one, other = evaluate(model, [crystal, image])
            assert abs(one.energy - other.energy) > 1e-4 * np.abs(one.energies).max()
            return
        turned = [moved(atoms, atoms.positions @ mirror.T, atoms.cell.array @ mirror.T) for atoms in ensemble]
        for actual, expected in zip(evaluate(model, turned), evaluate(model, ensemble), strict=True):
            same(actual, expected, rotation=mirror)

    @given(ensemble=ensembles(), seed=seeds)
    def test_permutation(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(atoms)) for atoms in ensemble]
        shuffled = [atoms[order] for atoms, order in zip(ensemble, orders, strict=True)]
        results = zip(evaluate(model, shuffled), evaluate(model, ensemble), orders, strict=True)
        for actual, expected, order in results:
            same(actual, replace(expected, energies=expected.energies[order], forces=expected.forces[order]))

    @given(ensemble=ensembles(("crystal", "slab", "wire")), seed=seeds)
    def test_choice_of_cell(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        """Which image of an atom is listed, and which of the equivalent cells, is a matter of bookkeeping."""
        rng = np.random.default_rng(seed)
        changed = []
        for atoms in ensemble:
            periodic = np.flatnonzero(atoms.pbc)
            images = np.zeros((len(atoms), 3))
            images[:, periodic] = rng.integers(-3, 4, (len(atoms), len(periodic)))
            cell = atoms.cell.array.copy()
            if len(periodic) > 1:
                first, second = rng.permutation(periodic)[:2]
                cell[first] += rng.choice([-1, 1]) * cell[second]
            changed.append(moved(atoms, atoms.positions + images @ atoms.cell.array, cell))
        for actual, expected in zip(evaluate(model, changed), evaluate(model, ensemble), strict=True):
            same(actual, expected)

    # Derivatives of the energy

    @given(ensemble=ensembles(), seed=seeds)
    def test_forces_are_the_energy_gradient(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        """Along one random direction of all atoms, and along the three coordinates of one atom."""
        rng = np.random.default_rng(seed)
        sets = [
            [rng.normal(size=(len(atoms), 3)), *np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3)[:3]]
            for atoms in ensemble
        ]
        paths = [
            [moved(atoms, atoms.positions + k * STEP * direction) for k in STENCIL]
            for atoms, directions in zip(ensemble, sets, strict=True)
            for direction in directions
        ]
        slopes = iter(energy_slopes(model, paths))
        for atoms, directions, result in zip(ensemble, sets, evaluate(model, ensemble), strict=True):
            tolerance = model.finite_difference(atoms)
            for direction in directions:
                scale = np.abs(result.forces).max() * np.linalg.norm(direction)
                predicted = -(result.forces * direction).sum()
                close(predicted, next(slopes), tolerance, f"{result.kind} forces", scale=scale)

    @given(ensemble=ensembles(), seed=seeds)
    def test_stress_is_the_strain_derivative(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        # The strain is not symmetric: its antisymmetric part is a rotation, which costs nothing.
        strain = np.random.default_rng(seed).normal(size=(3, 3))
        maps = [np.eye(3) + k * STEP * strain for k in STENCIL]
        paths = [
            [moved(atoms, atoms.positions @ m, atoms.cell.array @ m) for m in maps] for atoms in ensemble
        ]
        slopes = energy_slopes(model, paths)
        for atoms, result, slope in zip(ensemble, evaluate(model, ensemble), slopes, strict=True):
            close(result.virial, result.virial.T, ROUND_OFF, f"{result.kind} virial transposed")
            scale = np.abs(result.virial).max() * np.linalg.norm(strain)
            close(
                -(result.virial * strain).sum(),
                slope,
                model.finite_difference(atoms),
                f"{result.kind} virial",
                scale=scale,
            )
            volume = abs(np.linalg.det(atoms.cell.array))
            if volume > 0:
                close(result.stress * volume, -result.virial, ROUND_OFF, f"{result.kind} stress times volume")
            else:
                assert np.isnan(result.stress).all(), f"{result.kind}: a stress without a volume"

    @given(ensemble=ensembles(max_atoms=3))
    def test_hessian_is_symmetric(self, model: Model, ensemble: list[Atoms]) -> None:
        weights = np.array(list(STENCIL.values()))
        for atoms in filter(model.smooth_at, ensemble):
            directions = np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3)
            path = [moved(atoms, atoms.positions + k * STEP * d) for d in directions for k in STENCIL]
            forces = np.array([result.forces.ravel() for result in evaluate(model, path)])
            hessian = (
                -np.einsum("k,ikj->ij", weights, forces.reshape(len(directions), len(STENCIL), -1)) / STEP
            )
            close(hessian, hessian.T, FINITE_DIFFERENCE, f"{atoms.info['kind']} Hessian transposed")

    def test_continuous_through_the_cutoff(self, model: Model) -> None:
        """What is left of a change when the path is halved twice over is a jump."""
        step = 1e-5
        for cutoff in model.cutoffs:
            for first in SPECIES:
                for second in SPECIES:
                    # A bent chain: only the pair of interest is near a cutoff.
                    def chain(r: float, symbols: str = first + second + "C") -> Atoms:
                        return Atoms(symbols, positions=[[0, 0, 0], [r, 0, 0], [-1.3, 0.4, 0.3]])

                    points = [cutoff + k * step for k in (-1.0, -0.5, 0.5, 1.0)]
                    near, *results = evaluate(model, [chain(0.6 * cutoff), *map(chain, points)])
                    outer, inner = results[3], results[2]
                    energy = 2 * (inner.energy - results[1].energy) - (outer.energy - results[0].energy)
                    forces = 2 * (inner.forces - results[1].forces) - (outer.forces - results[0].forces)
                    what = f"{first}-{second} at {cutoff} Å"
                    close(
                        energy,
                        0.0,
                        1e-9,
                        f"jump of the energy, {what}",
                        scale=abs(near.energy - outer.energy),
                    )
                    close(
                        forces,
                        0 * forces,
                        1e-7,
                        f"jump of the forces, {what}",
                        scale=np.abs(near.forces).max(),
                    )

    # What is summed over

    def test_isolated_atom_has_its_reference_energy(self, model: Model) -> None:
        """Exactly: alone in vacuum, in a large cell, and beside other structures in a batch."""
        alone = [Atoms(symbol) for symbol in SPECIES]
        boxed = [Atoms(symbol, cell=[30.0, 30.0, 30.0], pbc=True) for symbol in SPECIES]
        pair = Atoms("CO", positions=[[0, 0, 0], [1.2, 0, 0]])
        for structures in (alone, boxed, [*alone, pair, *boxed]):
            prediction = model.float64(graph_of(structures, max(model.cutoffs)))
            for index, atoms in enumerate(structures):
                if len(atoms) > 1:
                    continue
                atom = sum(map(len, structures[:index]))
                reference = model.reference_energies[atoms.get_chemical_formula()]
                for energy in (prediction.energy[index].item(), prediction.energies[atom].item()):
                    assert abs(energy - reference) <= model.alone * abs(reference)
                assert not prediction.forces[atom].any()
                assert not prediction.virial[index].any()

    @given(ensemble=ensembles(("molecule", "collinear")), seed=seeds)
    def test_far_fragments_add_up(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        first, second = ensemble
        direction = np.random.default_rng(seed).normal(size=3)
        away = moved(second, second.positions + 100 * direction / np.linalg.norm(direction))
        both, one, other = evaluate(model, [first + away, first, second])
        scale = np.abs(both.energies).max()
        close(both.energy, one.energy + other.energy, ROUND_OFF, "energy of both", scale=scale)
        close(both.energies, np.concatenate([one.energies, other.energies]), ROUND_OFF, "energies of both")
        close(both.forces, np.concatenate([one.forces, other.forces]), ROUND_OFF, "forces of both")
        close(both.virial, one.virial + other.virial, ROUND_OFF, "virial of both")

    @given(ensemble=ensembles())
    def test_batch_is_one_by_one(self, model: Model, ensemble: list[Atoms]) -> None:
        ensemble = [ensemble[0], Atoms("H", info={"kind": "isolated atom"}), *ensemble[1:]]
        for atoms, actual in zip(ensemble, evaluate(model, ensemble), strict=True):
            if len(atoms) > 1:
                same(actual, evaluate(model, [atoms])[0])

    @given(ensemble=ensembles(("crystal", "slab", "wire"), max_atoms=3), seed=seeds)
    def test_small_cell_is_its_supercell(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        rng = np.random.default_rng(seed)
        for atoms in ensemble:
            repeats = np.where(atoms.pbc, rng.permutation([1, 2, 3]), 1)
            repeats[np.flatnonzero(atoms.pbc)[0]] = max(2, repeats[np.flatnonzero(atoms.pbc)[0]])
            copies = int(repeats.prod())
            cell, supercell = evaluate(model, [atoms, atoms.repeat(repeats)])
            tiled = replace(
                cell,
                energy=copies * cell.energy,
                energies=np.tile(cell.energies, copies),
                forces=np.tile(cell.forces, (copies, 1)),
                virial=copies * cell.virial,
            )
            same(supercell, tiled)

    @given(ensemble=ensembles())
    def test_sums(self, model: Model, ensemble: list[Atoms]) -> None:
        for result in evaluate(model, ensemble):
            scale = np.abs(result.energies).max()
            close(
                result.energies.sum(),
                result.energy,
                ROUND_OFF,
                f"{result.kind} sum of the energies",
                scale=scale,
            )
            scale = np.abs(result.forces).max()
            close(
                result.forces.sum(0), np.zeros(3), ROUND_OFF, f"{result.kind} sum of the forces", scale=scale
            )

    @given(ensemble=ensembles())
    def test_torque_on_a_molecule_vanishes(self, model: Model, ensemble: list[Atoms]) -> None:
        for atoms, result in zip(ensemble, evaluate(model, ensemble), strict=True):
            if not atoms.pbc.any():
                arms = atoms.positions - atoms.positions.mean(0)
                scale = np.abs(result.forces).max() * np.abs(arms).max()
                torque = np.cross(arms, result.forces).sum(0)
                close(torque, np.zeros(3), ROUND_OFF, f"{result.kind} torque", scale=scale)

    # Messages and neighbours

    def test_messages_go_to_the_receiver(self, model: Model) -> None:
        """In the directed chain 0 <- 1 <- 2 nothing flows up the stream, and everything flows down it."""
        positions = np.array([[0.0, 0.0, 0.0], [1.1, 0.3, -0.2], [1.6, 1.2, 0.5]])
        full = AtomGraph.from_atoms(Atoms("HCO", positions=positions), max(model.cutoffs))
        wanted = ((full.receiver == 0) & (full.sender == 1)) | ((full.receiver == 1) & (full.sender == 2))
        receiver, sender = full.receiver[wanted], full.sender[wanted]
        assert receiver.tolist() == [0, 1] and sender.tolist() == [1, 2]

        def energies(symbols: str) -> np.ndarray:
            graph = replace(
                full,
                numbers=torch.tensor([atomic_numbers[symbol] for symbol in symbols]),
                receiver=receiver,
                sender=sender,
                shift=full.shift[wanted],
                row_pointer=torch.tensor([0, 1, 2, 2]),
                sender_order=torch.tensor([0, 1]),
            )
            reference = np.array([model.reference_energies[symbol] for symbol in symbols])
            return model.float64(graph).energies.detach().numpy() - reference

        chain, first, middle, last = map(energies, ("HCO", "OCO", "HHO", "HCC"))
        # As exact as an isolated atom's energy is: other kernels may have computed the reference energies.
        assert abs(chain[2]) <= model.alone * abs(model.reference_energies["O"]), "atom 2 hears nobody"
        close(first[1], chain[1], ROUND_OFF, "atom 1 does not hear atom 0")
        for changed, hears in (
            (middle[0] - chain[0], "0 hears atom 1"),
            (last[1] - chain[1], "1 hears atom 2"),
        ):
            assert abs(changed) > 1e-3 * np.abs(chain).max(), f"atom {hears}"

    @given(ensemble=ensembles())
    def test_edges_beyond_the_cutoff_do_not_matter(self, model: Model, ensemble: list[Atoms]) -> None:
        """A neighbour list with a skin gives the same answer as one without."""
        wide = split(model, ensemble, model.float64(graph_of(ensemble, max(model.cutoffs) + 0.7)))
        for actual, expected in zip(wide, evaluate(model, ensemble), strict=True):
            same(actual, expected)

    # Number types, modes, parameters

    @given(ensemble=ensembles())
    def test_float32_is_near_float64(self, model: Model, ensemble: list[Atoms]) -> None:
        """To 32-bit round-off, some of whose digits are lost where large terms cancel in a small sum."""
        prediction = model.float32(graph_of(ensemble, max(model.cutoffs)))
        fields = (
            prediction.energy,
            prediction.energies,
            prediction.forces,
            prediction.stress,
            prediction.virial,
        )
        assert {field.dtype for field in fields} == {torch.float64}
        for actual, expected in zip(
            split(model, ensemble, prediction), evaluate(model, ensemble), strict=True
        ):
            kind = expected.kind
            close(actual.energies, expected.energies, SINGLE, f"{kind} energies")
            close(actual.forces, expected.forces, SINGLE, f"{kind} forces")
            # Edges of 2 Å, whose pull cancels near equilibrium.
            scale = max(np.abs(expected.virial).max(), 2 * np.abs(expected.forces).max())
            close(actual.virial, expected.virial, SINGLE, f"{kind} virial", scale=scale)

    @given(ensemble=ensembles(("molecule", "crystal"), max_atoms=3))
    def test_what_is_asked_for(self, model: Model, ensemble: list[Atoms]) -> None:
        """Leaving out forces or stress changes nothing else; results are detached outside training."""
        graph = graph_of(ensemble, max(model.cutoffs))
        both = model.float64(graph)
        for tensor in (both.energy, both.energies, both.forces, both.stress, both.virial):
            assert not tensor.requires_grad
        only_energy = model.float64(graph, forces=False, stress=False)
        only_forces = model.float64(graph, forces=True, stress=False)
        assert only_energy.forces is None and only_energy.stress is None and only_energy.virial is None
        assert only_forces.forces is not None and only_forces.stress is None and only_forces.virial is None
        close(only_energy.energies, both.energies, ROUND_OFF, "energies without forces")
        close(only_forces.forces, both.forces, ROUND_OFF, "forces without stress")

    # Four atoms at least: pseudovectors vanish in smaller structures, and with them the gradients of their weights.
    @given(ensemble=ensembles(("molecule", "crystal"), min_atoms=4, max_atoms=5), seed=seeds)
    def test_loss_gradient_of_every_parameter(self, model: Model, ensemble: list[Atoms], seed: int) -> None:
        """A loss of energy, forces and stress, and a molecule without a stress beside a crystal."""
        graph = graph_of(ensemble, max(model.cutoffs))
        rng = torch.Generator().manual_seed(seed)
        targets = [
            torch.randn(s, generator=rng, dtype=torch.float64) for s in ((2,), (graph.n_atoms, 3), (3, 3))
        ]

        def loss(potential: Evaluator) -> torch.Tensor:
            prediction = potential(graph)
            assert prediction.stress[0].isnan().all() and not prediction.stress[1].isnan().any()
            terms = (prediction.energy, prediction.forces, 10 * prediction.stress[1])
            return sum(((term - target) ** 2).mean() for term, target in zip(terms, targets, strict=True))

        potential = model.potential()
        evaluator = model.broken(potential)
        parameters = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        assert parameters
        potential.train()
        gradients = torch.autograd.grad(loss(evaluator), list(parameters.values()))
        potential.eval()
        step = 1e-2
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            start = parameter.detach().clone()
            direction = torch.randn(start.shape, generator=rng, dtype=start.dtype)
            direction /= direction.norm()
            losses = []
            for k in STENCIL:
                parameter.data = start + k * step * direction
                losses.append(loss(evaluator).item())
            parameter.data = start
            if not gradient.any():
                assert len(set(losses)) == 1, f"{name} has no gradient, yet the loss depends on it"
                continue
            slope = np.dot(losses, list(STENCIL.values())) / step
            scale = gradient.norm().item()
            close(
                (gradient * direction).sum().item(),
                slope,
                FINITE_DIFFERENCE,
                f"gradient of {name}",
                scale=scale,
            )
