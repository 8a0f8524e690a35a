"""The barrier of a hop or reaction, by a nudged elastic band with a climbing image; all images in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.mep import NEB
from ase.mep.neb import idpp_interpolate
from ase.utils.forcecurve import fit_images

from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.evaluations import evaluate
from equipes.simulate.fire import FireState, fire_step
from equipes.simulate.relax import relax
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.safety import Distances
from equipes.simulate.store import Store

_CITATIONS = (
    "G. Henkelman, B. P. Uberuaga, H. Jónsson, J. Chem. Phys. 113, 9901 (2000)",
    "G. Henkelman, H. Jónsson, J. Chem. Phys. 113, 9978 (2000)",
    "S. Smidstrup, A. Pedersen, K. Stokbro, H. Jónsson, J. Chem. Phys. 140, 214106 (2014)",
)
_DISTINCT = 0.2  # Å; ends nearer than this, atom by atom, are the same minimum
_CLIMB_FROM = 0.5  # eV/Å; from here on the highest image climbs
_DIP = 0.02  # eV; an image this far below both neighbours is another minimum


@dataclass(frozen=True)
class NEBOptions:
    """What `neb` does.

    Attributes:
        images: between the two ends.
        fmax: the force across the band on every atom of every image shall be smaller, eV/Å.
        relax_ends: relax the ends first.
        end_fmax: to this, eV/Å.
        spring: between images, eV/Å².
        steps: at most so many.
        idpp: start from the path that changes distances between atoms evenly, not from a straight line.
    """

    images: int = 7
    fmax: float = 0.03
    relax_ends: bool = True
    end_fmax: float = 0.01
    spring: float = 0.1
    steps: int = 500
    idpp: bool = True

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        if self.images < 1:
            raise InputError(f"a path needs at least 1 image between its ends, not {self.images}")
        if not (self.fmax > 0 and self.end_fmax > 0 and self.spring > 0):
            raise InputError("fmax, end_fmax and spring must be above 0")
        if self.steps < 0:
            raise InputError(f"the number of steps must be 0 or more, not {self.steps}")


@dataclass(frozen=True)
class NEBResult:
    """A minimum-energy path.

    Attributes:
        images: the path, ends included, each with energy and forces.
        converged: whether the force across the band came under its limit.
        steps: taken.
        barrier_ev, reverse_barrier_ev: of the highest image, which has climbed to the saddle, over either end.
        reaction_energy_ev: of the last end over the first.
        spline_barrier_ev: by the spline through energies and slopes.
        distances_ang, energies_ev: `[M]`, along the path and over the first end.
        curve_distances_ang, curve_energies_ev: the spline.
        max_force_ev_per_ang: the largest force across the band.
        saddle: index of the highest image.
        provenance: method, citations, convergence, warnings.
    """

    images: list[ase.Atoms]
    converged: bool
    steps: int
    barrier_ev: float
    reverse_barrier_ev: float
    reaction_energy_ev: float
    spline_barrier_ev: float
    distances_ang: np.ndarray
    energies_ev: np.ndarray
    curve_distances_ang: np.ndarray
    curve_energies_ev: np.ndarray
    max_force_ev_per_ang: float
    saddle: int
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values, but for the images."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "images"}
        return plain({**own, "n_images": len(self.images), "structure": self.images[0]})


class _Band(NEB):
    """ASE's band, whose images are evaluated together."""

    def __init__(
        self, images: Sequence[ase.Atoms], calculator: BaseCalculator, *, climb: bool, spring: float
    ):
        super().__init__(list(images), k=spring, climb=climb, method="improvedtangent")
        self.calculator = calculator

    def get_forces(self) -> np.ndarray:
        _calculate(self.images[1:-1], self.calculator)
        return np.array(super().get_forces())


def neb(
    initial: ase.Atoms,
    final: ase.Atoms,
    calculator: BaseCalculator,
    options: NEBOptions | None = None,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> NEBResult:
    """The minimum-energy path between two minima, and its barrier.

    Args:
        initial, final: the ends, atom by atom; not changed. Constraints of the first hold for all images.
        calculator: any ASE calculator.
        options: see `NEBOptions`.
        store: keeps the band and the state of the optimiser, so that a stopped calculation goes on exactly.
        progress: called after every step.

    Raises:
        InputError: ends with other atoms or cells, or options out of range.
        SimulationError: ends that do not relax or relax to the same minimum; forces that are no numbers; atoms inside
            each other.
    """
    options = NEBOptions() if options is None else options
    options.check()
    store = Store() if store is None else store
    ends = matched_ends(initial, final)
    relaxed = [
        _relaxed_end(atoms, calculator, options, store, name, progress)
        for atoms, name in zip(ends, ("first", "last"), strict=True)
    ]
    images = first_path(relaxed[0], relaxed[1], options.images, idpp=options.idpp)
    _calculate([images[0], images[-1]], calculator)
    steps, largest = _optimized(images, calculator, options, store, progress)
    _calculate(images[1:-1], calculator)
    for number, image in enumerate(images):
        Distances(image).check(image, f"image {number}")
    return _result(images, steps, largest, options)


def matched_ends(initial: ase.Atoms, final: ase.Atoms) -> tuple[ase.Atoms, ase.Atoms]:
    """Copies of both ends, in which every atom takes the shortest way.

    Raises `InputError` if they do not belong together.
    """
    if not np.array_equal(initial.numbers, final.numbers):
        raise InputError(
            f"the ends have other atoms ({initial.get_chemical_formula()} and {final.get_chemical_formula()}), or in"
            " another order; number them alike"
        )
    if not np.allclose(initial.cell, final.cell, atol=1e-4) or not np.array_equal(initial.pbc, final.pbc):
        raise InputError("the ends have different cells; put both into the same")
    first, last = initial.copy(), initial.copy()
    given = final.positions - initial.positions
    way, lengths = find_mic(given, initial.cell, initial.pbc)
    # Where the way given is one of the shortest, as of a hop by half a cell, it is the one meant.
    as_short = np.linalg.norm(given, axis=1) < lengths + 1e-6
    way[as_short] = given[as_short]
    if lengths.max() < _DISTINCT:
        raise InputError(
            f"no atom moves by more than {lengths.max():.2g} Å between the ends: they are the same"
        )
    last.set_positions(first.positions + way, apply_constraint=False)
    return first, last


def vacancy_hop(crystal: ase.Atoms, vacancy: int, neighbor: int | None = None) -> tuple[ase.Atoms, ase.Atoms]:
    """Both ends of a hop into a vacancy.

    Atom `vacancy` is taken out, and `neighbor` (by default the nearest atom of the same element) moves into its place.
    Raises `InputError` if there is no such atom.
    """
    same = range(len(crystal)) if 0 <= vacancy < len(crystal) else range(0)
    others = [i for i in same if i != vacancy and crystal.numbers[i] == crystal.numbers[vacancy]]
    if not others:
        raise InputError(f"no atom {vacancy} with another of its kind among {len(crystal)}; give another")
    if neighbor is None:
        neighbor = min(others, key=lambda i: crystal.get_distance(vacancy, i, mic=True))
    elif neighbor not in others:
        raise InputError(f"atom {neighbor} cannot hop into the place of atom {vacancy}; give one of its kind")
    first, last = crystal.copy(), crystal.copy()
    last.positions[neighbor] += crystal.get_distance(neighbor, vacancy, mic=True, vector=True)
    for end in (first, last):
        del end[vacancy]
    return first, last


def first_path(first: ase.Atoms, last: ase.Atoms, between: int, *, idpp: bool = True) -> list[ase.Atoms]:
    """Images from one end to the other."""
    images = [first, *(first.copy() for _ in range(between)), last]
    # The ends lie in one piece already. Looking for shortest ways again could turn a hop by half a cell around.
    way = last.positions - first.positions
    for number, image in enumerate(images[1:-1], start=1):
        image.set_positions(first.positions + way * number / (between + 1), apply_constraint=False)
    if idpp:
        band = NEB(images, method="improvedtangent")
        idpp_interpolate(band, traj=None, log=None, mic=bool(first.pbc.any()))
    return images


def _relaxed_end(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: NEBOptions,
    store: Store,
    name: str,
    progress: Progress,
) -> ase.Atoms:
    if not options.relax_ends:
        return atoms
    known = store.get(f"{name} end")
    if known is None:
        progress(f"relaxing the {name} end", 0, 1)
        result = relax(atoms, calculator, cell=False, fmax=options.end_fmax, steps=1000)
        if not result.converged:
            raise SimulationError(
                f"the {name} end did not relax to {options.end_fmax:g} eV/Å (reached"
                f" {result.max_force_ev_per_ang:.3g}); relax it first, or raise the limit"
            )
        known = {"positions": result.atoms.positions}
        store.put(f"{name} end", **known)
    relaxed = atoms.copy()
    relaxed.set_positions(known["positions"], apply_constraint=False)
    return relaxed


def _optimized(
    images: list[ase.Atoms],
    calculator: BaseCalculator,
    options: NEBOptions,
    store: Store,
    progress: Progress,
) -> tuple[int, float]:
    """Relax the band, first without and then with a climbing image; returns steps and largest force."""
    moved = np.linalg.norm(find_mic(images[-1].positions - images[0].positions, images[0].cell)[0], axis=1)
    if moved.max() < _DISTINCT:
        raise SimulationError(
            "both ends relaxed to the same minimum; there is no barrier between them in this model"
        )
    between = images[1:-1]
    step, climb = 0, False
    state = FireState(np.zeros((len(between) * len(images[0]), 3)))
    known = store.get("band")
    if known is not None:
        step, climb = int(known["step"]), bool(known["climb"])
        state = FireState(
            known["velocity"], float(known["timestep"]), float(known["mixing"]), int(known["downhill"])
        )
        _move(between, known["positions"])
    while True:
        band = _Band(images, calculator, climb=climb, spring=options.spring)
        forces = band.get_forces()
        largest = float(np.linalg.norm(forces, axis=1).max())
        climbing = ", climbing" if climb else ""
        progress(f"band{climbing}, largest force {largest:.3g} eV/Å", step, options.steps)
        if not climb and largest < max(_CLIMB_FROM, options.fmax):
            climb = True
            continue
        if largest < options.fmax or step >= options.steps:
            return step, largest
        move, state = fire_step(state, forces)
        positions = np.array([image.positions for image in between]) + move.reshape(len(between), -1, 3)
        _move(between, positions)
        step += 1
        store.put("band", positions=positions, step=step, climb=climb, **vars(state))


def _move(images: Sequence[ase.Atoms], positions: np.ndarray) -> None:
    for image, place in zip(images, positions, strict=True):
        image.set_positions(place, apply_constraint=False)


def _calculate(images: Sequence[ase.Atoms], calculator: BaseCalculator) -> None:
    """Give every image its energy and forces, all in one batch."""
    for image, found in zip(images, evaluate(images, calculator, name="image"), strict=True):
        image.calc = SinglePointCalculator(image, energy=found.energy, forces=found.forces)


def _result(images: list[ase.Atoms], steps: int, largest: float, options: NEBOptions) -> NEBResult:
    fit = fit_images(images)
    spline = float(max(fit.fit_energies))
    energies = np.array([image.get_potential_energy() for image in images])
    energies = energies - energies[0]
    saddle = int(energies.argmax())
    converged = largest < options.fmax
    warnings = []
    if not converged:
        warnings.append(
            f"not converged after {steps} steps: the force across the band is {largest:.3g} eV/Å (limit"
            f" {options.fmax:g}); give more --steps"
        )
    if saddle in (0, len(images) - 1):
        warnings.append(
            "the highest image is an end: there is no barrier between them, or the path is too coarse"
        )
    dips = [
        k for k in range(1, len(images) - 1) if energies[k] < min(energies[k - 1], energies[k + 1]) - _DIP
    ]
    if dips:
        warnings.append(
            f"image {dips[0]} lies in another minimum on the way; calculate both parts of the path by themselves"
        )
    for number, image in enumerate(images):
        image.info = {"label": f"image {number}, {energies[number]:.3f} eV"}
    height = float(energies[saddle])
    checks = (
        Check(
            "the spline through all images instead of the climbing one: the barrier",
            abs(spline - height),
            0.02,
            "eV",
        ),
    )
    method = (
        f"Nudged elastic band of {options.images} images between"
        f" {'relaxed ends' if options.relax_ends else 'ends as given'}, improved tangents, climbing image,"
        f" {'image-dependent pair potential' if options.idpp else 'straight line'} to start with, FIRE"
    )
    return NEBResult(
        images=images,
        converged=converged,
        steps=steps,
        barrier_ev=height,
        reverse_barrier_ev=height - float(energies[-1]),
        reaction_energy_ev=float(energies[-1]),
        spline_barrier_ev=spline,
        distances_ang=np.array(fit.path),
        energies_ev=energies,
        curve_distances_ang=np.array(fit.fit_path),
        curve_energies_ev=np.array(fit.fit_energies),
        max_force_ev_per_ang=largest,
        saddle=saddle,
        provenance=Provenance(method, _CITATIONS, checks, tuple(warnings)),
    )
