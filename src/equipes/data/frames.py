"""One reference calculation: a structure and the labels that belong to it."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np


@dataclass(frozen=True)
class LabelKeys:
    """The names under which labels stand in a file; None searches the usual ones (see `equipes.data.labels`)."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    config_type: str | None = None


SEARCH = LabelKeys()


@dataclass(frozen=True, eq=False)
class Frame:
    """A structure with its labels, in the units of the package; a label that the file does not have is None.

    Attributes:
        atoms: geometry only: numbers, positions, cell, periodicity; no calculator, constraints or label arrays.
        energy: eV, total.
        forces: `[N, 3]`, eV/Å.
        stress: `[3, 3]`, symmetric, eV/Å³, ASE sign (tensile positive).
        config_type: the kind of structure, where the data names one.
        source: the file, as it was given.
        index: the number of the frame in that file, from 0.
        keys: the names under which the labels were found.
    """

    atoms: ase.Atoms
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    config_type: str | None
    source: str
    index: int
    keys: LabelKeys = SEARCH

    @property
    def label(self) -> str:
        """How messages call this frame, such as `train.xyz frame 17`."""
        return f"{self.source} frame {self.index}"

    @property
    def composition(self) -> str:
        """The chemical formula in Hill order, such as `C2H6O`."""
        return str(self.atoms.get_chemical_formula(mode="hill"))
