"""Which of two crystal structures of a substance is the stable one, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ase
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.spacegroup import crystal

from equipes.benchmark.crystals import CRYSTALS
from equipes.simulate import relax

_PBE = "PBE, a usual value of the literature, not traced to one source"
_QUARTZ = (
    "PBE and calorimetry agree on about 0.5 eV for a formula unit; a usual value, not traced to one source"
)


@dataclass(frozen=True)
class Transition:
    """Two structures of one substance.

    Attributes:
        substance: such as "Cu".
        stable, other: the structures; the first has the lower energy.
        make: gives the other near its volume.
        difference_ev: how much higher the other is, eV per atom, without the motion of the nuclei.
        source: of the difference.
        shape: whether the other's cell keeps its shape: a structure that is no minimum would leave its symmetry.
    """

    substance: str
    stable: str
    other: str
    make: Callable[[], ase.Atoms]
    difference_ev: float
    source: str = _PBE
    shape: bool = False

    @property
    def species(self) -> set[str]:
        return set(self.make().symbols)


@dataclass(frozen=True)
class TransitionResult:
    """What a potential says of the difference, beside the reference; eV per atom."""

    substance: str
    stable: str
    other: str
    difference_ev_per_atom: float
    reference_ev_per_atom: float
    source: str

    @property
    def error_mev_per_atom(self) -> float:
        return 1000 * (self.difference_ev_per_atom - self.reference_ev_per_atom)

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {**asdict(self), "error_mev_per_atom": self.error_mev_per_atom}


def _beta_tin() -> ase.Atoms:
    return crystal("Si", [(0, 0, 0)], spacegroup=141, setting=1, cellpar=[4.82, 4.82, 2.64, 90, 90, 90])


def _stishovite() -> ase.Atoms:
    return crystal(
        ["Si", "O"], [(0, 0, 0), (0.306, 0.306, 0)], spacegroup=136, cellpar=[4.23, 4.23, 2.69, 90, 90, 90]
    )


def _tetragonal_hafnia() -> ase.Atoms:
    # Fluorite in its primitive tetragonal cell, columns of oxygen displaced along z.
    places = [(0.75, 0.25, 0.75), (0.25, 0.25, 0.45)]
    return crystal(["Hf", "O"], places, spacegroup=137, setting=2, cellpar=[3.60, 3.60, 5.20, 90, 90, 90])


TRANSITIONS: tuple[Transition, ...] = (
    Transition("Cu", "fcc", "hcp", lambda: bulk("Cu", "hcp", a=2.57, c=4.20), 0.010),
    Transition("Cu", "fcc", "bcc", lambda: bulk("Cu", "bcc", a=2.89), 0.036, shape=True),
    Transition("Al", "fcc", "hcp", lambda: bulk("Al", "hcp", a=2.86, c=4.70), 0.030),
    Transition("Al", "fcc", "bcc", lambda: bulk("Al", "bcc", a=3.24), 0.096, shape=True),
    Transition("W", "bcc", "fcc", lambda: bulk("W", "fcc", a=4.04), 0.475, shape=True),
    Transition("Si", "diamond", "beta-tin", _beta_tin, 0.29),
    Transition("GaN", "wurtzite", "zincblende", lambda: bulk("GaN", "zincblende", a=4.55), 0.006),
    Transition("SiO2", "quartz", "stishovite", _stishovite, 0.18, _QUARTZ),
    Transition("HfO2", "monoclinic", "tetragonal", _tetragonal_hafnia, 0.055),
)


def transition_benchmark(
    calculator: BaseCalculator,
    transitions: Sequence[Transition] = TRANSITIONS,
    *,
    on_transition: Callable[[Transition], None] | None = None,
) -> list[TransitionResult]:
    """Relax both structures with their cells and compare their energies.

    Args:
        calculator: any ASE calculator.
        transitions: which.
        on_transition: called before each.

    Raises:
        SimulationError: a crystal that does not hold together.
    """
    stable: dict[str, float] = {}
    results = []
    for item in transitions:
        if on_transition is not None:
            on_transition(item)
        if item.substance not in stable:
            (known,) = (c for c in CRYSTALS if (c.name, c.structure) == (item.substance, item.stable))
            stable[item.substance] = _energy_per_atom(known.make(), calculator, shape=False)
        results.append(
            TransitionResult(
                substance=item.substance,
                stable=item.stable,
                other=item.other,
                difference_ev_per_atom=_energy_per_atom(item.make(), calculator, shape=item.shape)
                - stable[item.substance],
                reference_ev_per_atom=item.difference_ev,
                source=item.source,
            )
        )
    return results


def _energy_per_atom(atoms: ase.Atoms, calculator: BaseCalculator, *, shape: bool) -> float:
    """eV, of the relaxed crystal, whose cell may keep its shape."""
    freedom: Literal["all", "hydrostatic"] = "hydrostatic" if shape else "all"
    result = relax(atoms, calculator, fmax=0.005, smax=0.02, freedom=freedom)
    return float(result.atoms.get_potential_energy()) / len(result.atoms)


def chosen_transitions(substances: Sequence[str], species: Sequence[str]) -> list[Transition]:
    """Those between structures of these substances (all without any) whose elements a potential knows."""
    return [
        item
        for item in TRANSITIONS
        if (not substances or item.substance in substances) and item.species <= set(species)
    ]
