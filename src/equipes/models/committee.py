"""How much the members of a committee differ."""

from __future__ import annotations

import numpy as np


def deviation_of_energies(energies: np.ndarray) -> np.ndarray:
    """Standard deviation over the M members, `[M, …]` -> `[…]`; of the sample, so divided by M - 1."""
    return np.std(energies, axis=0, ddof=1)


def deviation_of_forces(forces: np.ndarray) -> np.ndarray:
    """√(Σ_m |F_m - F|² / (M - 1)) of each atom, `[M, N, 3]` -> `[N]`: the length by which its force scatters.

    >>> deviation_of_forces(np.array([[[0.0, 0.0, 1.0]], [[0.0, 0.0, 3.0]]]))
    array([1.41421356])
    """
    return np.sqrt(np.var(forces, axis=0, ddof=1).sum(axis=-1))
