"""The heat flux: virials of atoms against their definition in the unfolded crystal, and conservation of energy."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from scipy.integrate import simpson
from scipy.spatial.transform import Rotation

from equipes import InputError
from equipes.calculators import Calculator
from equipes.graph import AtomGraph
from equipes.models import Potential
from equipes.models.atomic_virials import AtomicVirials, atomic_virials
from equipes.simulate.heat_flux import Carried, FluxOf, heat_flux
from laws import STENCIL, Model
from potentials import MODELS
from structures import KINDS, random_structure

ROUND_OFF = 1e-10
LAYERS = {
    "nequip": "num_layers",
    "sevennet": "num_layers",
    "mace": "num_interactions",
    "schnet": "num_interactions",
}
# One of each architecture, of each kernel feature that carries information along edges.
CHOSEN = (
    "nequip l_max 2, 3 layers",
    "nequip zbl",
    "nequip norms per species",
    "mace two layers",
    "mace density, Soft, repulsion, two heads, hidden to l = 2",
    "sevennet l_max 2, XPLOR, 3 layers",
    "schnet three blocks, broad",
    "physnet two modules",
    "ani smooth",
)


def reach(model: Model) -> float:
    """How far an atom's energy sees, Å."""
    layers = {"physnet": 2, "ani": 1}.get(model.architecture)
    if layers is None:
        layers = model.hyperparameters.get(LAYERS[model.architecture], 2)
    return layers * float(model.hyperparameters["r_max"])


def unfolded(atoms: Atoms, distance: float) -> tuple[Atoms, np.ndarray]:
    """The atoms of the cell, then all images within a distance of any of them, without periodicity; whose image each
    is.
    """
    cell, size = atoms.cell.array, np.ptp(atoms.positions, axis=0).max() if len(atoms) > 1 else 0.0
    heights = [1.0 if not p else abs(np.linalg.det(atoms.cell.complete())) for p in atoms.pbc]
    box = atoms.cell.complete().array
    for axis in range(3):
        if atoms.pbc[axis]:
            heights[axis] /= np.linalg.norm(np.cross(box[axis - 2], box[axis - 1]))
    counts = [
        int(np.ceil((distance + 2 * size) / h)) + 1 if p else 0
        for h, p in zip(heights, atoms.pbc, strict=True)
    ]
    positions, owners = [atoms.positions], [np.arange(len(atoms))]
    for shift in product(*(range(-n, n + 1) for n in counts)):
        if any(shift):
            moved = atoms.positions + np.array(shift) @ cell
            away = np.linalg.norm(moved[:, None] - atoms.positions, axis=2).min(axis=1)
            positions.append(moved[away < distance])
            owners.append(np.flatnonzero(away < distance))
    owner = np.concatenate(owners)
    return Atoms(atoms.numbers[owner], positions=np.concatenate(positions)), owner


def by_definition(potential: Potential, atoms: Atoms, distance: float) -> np.ndarray:
    """W_j = Σ_i (r_i - r_j) ⊗ ∂U_i/∂r_j, `[N, 3, 3]`, i in the cell and j any of the images of j."""
    cluster, owner = unfolded(atoms, distance)
    graph = AtomGraph.from_atoms(cluster, potential.cutoff)
    positions = graph.positions.clone().requires_grad_()
    energies = potential.model(potential.type_of_number[graph.numbers], graph.edge_vectors(positions), graph)
    virials = np.zeros((len(atoms), 3, 3))
    for i in range(len(atoms)):
        (slope,) = torch.autograd.grad(energies[i], positions, retain_graph=True)
        arms = cluster.positions[i] - cluster.positions
        np.add.at(virials, owner, arms[:, :, None] * slope.numpy()[:, None, :])
    return virials


def virials_of(potential: Potential, atoms: Atoms) -> AtomicVirials:
    return atomic_virials(potential, AtomGraph.from_atoms(atoms, potential.cutoff))


def chosen() -> list[Model]:
    by_name = {model.name: model for model in MODELS}
    return [by_name[name] for name in CHOSEN]


@pytest.mark.parametrize("model", chosen(), ids=lambda model: model.name)
def test_virials_are_those_of_the_unfolded_crystal(model: Model, rng: np.random.Generator) -> None:
    potential = model.potential()
    for kind in KINDS:
        atoms = random_structure(kind, 3, rng)
        ours = virials_of(potential, atoms)
        definition = by_definition(potential, atoms, reach(model))
        scale = np.abs(definition).max()
        np.testing.assert_allclose(ours.virials.numpy(), definition, rtol=0, atol=ROUND_OFF * scale)
        graph = AtomGraph.from_atoms(atoms, potential.cutoff)
        plain = potential(graph)
        np.testing.assert_allclose(ours.forces, plain.forces, rtol=0, atol=ROUND_OFF * scale)
        np.testing.assert_allclose(ours.virials.sum(0), plain.virial[0], rtol=0, atol=ROUND_OFF * scale)


SMALL = MODELS[0]
DEEP = next(model for model in MODELS if model.name == "nequip l_max 2, 3 layers")


def moving(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The structure with momenta that sum to zero."""
    momenta = rng.normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return atoms


def calculator_of(model: Model) -> Calculator:
    return Calculator(model.potential(), dtype="float64")


def barycentre(atoms: Atoms, calculator: Calculator, time: float = 0.0) -> np.ndarray:
    """Σ r_i E_i (eV Å) of a molecule, a time (fs) along the parabola that it sets out on."""
    start = atoms.copy()
    start.calc = calculator
    masses, t = atoms.get_masses()[:, None], time * units.fs
    pull = start.get_forces()
    later = atoms.copy()
    later.positions += t * atoms.get_velocities() + t**2 / 2 * pull / masses
    later.set_momenta(atoms.get_momenta() + t * pull)
    later.calc = calculator
    kinetic = (later.get_momenta() ** 2 / (2 * masses)).sum(axis=1)
    return (later.get_potential_energies() + kinetic) @ later.positions


@pytest.mark.parametrize("model", chosen(), ids=lambda model: model.name)
def test_the_flux_is_how_the_energy_moves_in_a_molecule(model: Model, rng: np.random.Generator) -> None:
    calculator = calculator_of(model)
    atoms = moving(random_structure("molecule", 5, rng), rng)
    ours = heat_flux(atoms, calculator)
    step = 0.02  # fs
    moved = sum(weight / step * barycentre(atoms, calculator, k * step) for k, weight in STENCIL.items())
    np.testing.assert_allclose(ours, moved, rtol=0, atol=1e-7 * np.abs(ours).max())


@pytest.mark.parametrize(
    "model",
    [DEEP, *(m for m in chosen() if m.architecture in ("mace", "sevennet"))],
    ids=lambda model: model.name,
)
def test_energy_goes_nowhere_but_with_the_flux(model: Model, rng: np.random.Generator) -> None:
    """Continuity, d/dt Σ r_i E_i = J, with exact derivatives, where nothing is periodic."""
    calculator = calculator_of(model)
    atoms = moving(random_structure("molecule", 5, rng), rng)
    potential = calculator.potential
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    x, v = graph.positions, torch.tensor(atoms.get_velocities())
    energies, power = torch.autograd.functional.jvp(
        lambda x: potential.model(potential.type_of_number[graph.numbers], graph.edge_vectors(x), graph), x, v
    )
    pull = potential(graph).forces
    kinetic = torch.tensor(atoms.get_masses()) * (v**2).sum(1) / 2
    change = (power + (pull * v).sum(1)) @ x + (energies + kinetic) @ v  # dE_i/dt r_i + E_i v_i
    assert abs(float((power + (pull * v).sum(1)).sum())) < ROUND_OFF * float(power.abs().max())
    ours = heat_flux(atoms, calculator)
    np.testing.assert_allclose(ours, change.numpy() * units.fs, rtol=0, atol=ROUND_OFF * np.abs(ours).max())


def test_energy_is_carried_by_the_flux_along_a_run(rng: np.random.Generator) -> None:
    calculator = calculator_of(DEEP)
    atoms = moving(random_structure("molecule", 5, rng), rng)
    atoms.calc = calculator
    step = 0.05  # fs
    fluxes, places, energies = [], [], []
    dynamics = VelocityVerlet(atoms, step * units.fs)
    for _ in range(21):
        fluxes.append(heat_flux(atoms, calculator))
        places.append(barycentre(atoms, calculator))
        energies.append(atoms.get_total_energy())
        dynamics.step()
    carried = simpson(np.array(fluxes), dx=step, axis=0)
    change = places[-1] - places[0]
    np.testing.assert_allclose(carried, change, rtol=0, atol=1e-4 * np.abs(change).max())
    assert np.ptp(energies) < 1e-4 * np.ptp(atoms.get_potential_energies())


def test_the_flux_knows_neither_wrapping_nor_cell(rng: np.random.Generator) -> None:
    calculator = calculator_of(DEEP)
    atoms = moving(random_structure("crystal", 4, rng), rng)
    flux = heat_flux(atoms, calculator)
    scale = np.abs(flux).max()
    wrapped = atoms.copy()
    wrapped.positions += rng.integers(-2, 3, (4, 3)) @ atoms.cell.array
    np.testing.assert_allclose(heat_flux(wrapped, calculator), flux, rtol=0, atol=ROUND_OFF * scale)
    np.testing.assert_allclose(
        heat_flux(atoms * (2, 1, 1), calculator), 2 * flux, rtol=0, atol=ROUND_OFF * scale
    )
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    turned.set_momenta(atoms.get_momenta() @ turn.T)
    np.testing.assert_allclose(heat_flux(turned, calculator), turn @ flux, rtol=0, atol=ROUND_OFF * scale)


def test_single_directions_and_precision(rng: np.random.Generator) -> None:
    potential = DEEP.potential()
    atoms = random_structure("crystal", 4, rng)
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    whole = atomic_virials(potential, graph).virials
    along = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    part = atomic_virials(potential, graph, along).virials
    torch.testing.assert_close(part[:, 0], 0.6 * whole[:, 0] + 0.8 * whole[:, 2], rtol=0, atol=1e-10)
    single = atomic_virials(DEEP.potential("float32"), graph).virials
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    for trainable in (True, False):  # what of the parameters is differentiated makes no difference
        other = atomic_virials(potential.requires_grad_(trainable), graph).virials
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(virials_of(potential, atoms).virials, whole, rtol=0, atol=1e-12)


def test_several_frames_at_once(rng: np.random.Generator) -> None:
    calculator = calculator_of(SMALL)
    flux_of = FluxOf(calculator)
    frames = [moving(random_structure("crystal", n, rng), rng) for n in (3, 5)]
    for atoms, carried in zip(frames, flux_of(frames), strict=True):
        flux = heat_flux(atoms, calculator)
        np.testing.assert_allclose(carried.flux(atoms), flux, rtol=0, atol=ROUND_OFF * np.abs(flux).max())
        at_rest = Carried(carried.energies, carried.virials)
        v = atoms.get_velocities() * units.fs
        kinetic = (0.5 * atoms.get_masses() / units.fs**2 * (v**2).sum(1)) @ v
        np.testing.assert_allclose(carried.flux(atoms, at_rest), kinetic, rtol=1e-9)


def test_who_has_no_flux(water: Atoms, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only a potential of this package"):
        heat_flux(water, EMT())
    SMALL.potential("float32").freeze(["H", "O"]).save(tmp_path / "frozen.safetensors")
    with pytest.raises(InputError, match="give the model that it was made from"):
        heat_flux(water, Calculator(tmp_path / "frozen.safetensors"))
    with pytest.raises(InputError, match="does not know N"):
        heat_flux(Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]), calculator_of(SMALL))
