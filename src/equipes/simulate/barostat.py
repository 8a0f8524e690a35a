"""Langevin dynamics of atoms and of a cell whose shape may change, or its three lengths alone.

D. Quigley, M. I. J. Probert, J. Chem. Phys. 120, 11432 (2004), in the BAOAB splitting. With the cell h and its strain
rate p / W (a matrix), Eq. 5 of the paper is

    dr/dt = v + (p / W) r         dv/dt = F / m - γ v - (p / W) v - tr(p) / (W f) v + noise
    dh/dt = (p / W) h             dp/dt = V (X - P) + 2 K / f - γ_h p + noise

with f degrees of freedom, kinetic energy K and the internal pressure tensor X. A matrix p that is kept diagonal lets
the lengths of an orthorhombic cell change and its angles stand; dL1 dL2 dL3 is then what is sampled evenly (the flow of
these equations has no divergence).
"""

from __future__ import annotations

from typing import Any

import ase
import numpy as np
from ase.md.langevinbaoab import LangevinBAOAB


class ShapeBarostat(LangevinBAOAB):
    """ASE's integrator with two changes.

    The share tr(p) / f of the drag acts on every velocity along itself; ASE adds it to all nine elements of the
    matrix, which also shears and turns the velocities. And elements of p can be held at zero.

    Args:
        atoms: with velocities.
        timestep: ASE's unit.
        lengths_only: the cell keeps its angles; it must be orthorhombic, along x, y and z.
        **options: as of `LangevinBAOAB`.
    """

    def __init__(self, atoms: ase.Atoms, timestep: float, *, lengths_only: bool, **options: Any) -> None:
        self.p_eps: Any = 0.0
        self.free = np.eye(3) if lengths_only else np.ones((3, 3))
        super().__init__(atoms, timestep, hydrostatic=False, **options)

    def _update_force_eps(self) -> None:
        super()._update_force_eps()
        self.force_eps = self.force_eps * self.free

    def _barostat_BAOAB_OU(self) -> None:  # noqa: N802 - as in ASE
        super()._barostat_BAOAB_OU()
        self.p_eps = self.p_eps * self.free

    def _barostat_BAOAB_OU_gamma_mod(self) -> np.ndarray:  # noqa: N802 - as in ASE
        share = np.trace(self.p_eps) / self.Ndof
        return np.asarray((self.p_eps + share * np.eye(3)) / self.barostat_mass)
