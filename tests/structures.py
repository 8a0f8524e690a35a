"""Random structures for property-based tests: every kind of periodicity, skewed cells, collinear atoms."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from equipes.harmonics import MAX_L, spherical_harmonics

SPECIES = ("H", "C", "O")
NEAREST = 1.2  # Å; below it repulsion would drown everything else
KINDS: dict[str, tuple[bool, bool, bool]] = {
    "molecule": (False, False, False),
    "collinear": (False, False, False),
    "crystal": (True, True, True),
    "slab": (True, True, False),
    "wire": (False, True, False),
}


def _distances(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Shortest distances to images: `[n]` of an atom to its own, `[n, n]` to others (infinite to itself)."""
    counts = [np.arange(-2, 3) if periodic else np.zeros(1) for periodic in pbc]
    shifts = np.stack(np.meshgrid(*counts), -1).reshape(-1, 3)
    vectors = positions[None, :, None] - positions[None, None] + (shifts @ cell)[:, None, None]
    lengths = np.linalg.norm(vectors, axis=-1)
    lengths[lengths < 1e-9] = np.inf
    shortest = lengths.min(axis=0)
    own = shortest.diagonal().copy()
    np.fill_diagonal(shortest, np.inf)
    return own, shortest


def random_structure(kind: str, n: int, rng: np.random.Generator) -> Atoms:
    """`n` atoms at ordinary distances, in contact with each other, with every other symmetry broken."""
    symbols = list(SPECIES[:n]) + list(rng.choice(SPECIES, max(n - len(SPECIES), 0)))
    rng.shuffle(symbols)
    pbc = KINDS[kind]
    cell = np.zeros((3, 3))
    if kind == "collinear":
        # Exactly along an axis, where spherical coordinates would have their poles.
        positions = np.zeros((n, 3))
        positions[:, rng.integers(3)] = np.cumsum(rng.uniform(NEAREST, 1.8, n)) * rng.choice([-1, 1])
        return Atoms(symbols, positions=positions, info={"kind": kind})
    while True:
        if any(pbc):
            # A strongly skewed cell of about 9 Å^3 per atom, shorter than the cutoff in some direction.
            cell = np.eye(3) + rng.uniform(-0.45, 0.45, (3, 3))
            cell *= (9.0 * n / abs(np.linalg.det(cell))) ** (1 / 3)
            for axis in range(3):
                if not pbc[axis]:
                    cell[axis] *= 1.5
        size = (8.0 * n) ** (1 / 3)
        for _ in range(50):
            positions = rng.uniform(0, 1, (n, 3)) @ cell if any(pbc) else rng.uniform(0, size, (n, 3))
            own, others = _distances(positions, cell, pbc)
            # Every atom has a neighbour other than its own images, which pull it nowhere.
            if min(own.min(), others.min()) > NEAREST and others.min(axis=1).max() < 2.0:
                if kind == "wire":  # no lattice vectors where there is no period; the slab keeps all three
                    cell[~np.array(pbc)] = 0
                return Atoms(symbols, positions=positions, cell=cell, pbc=pbc, info={"kind": kind})


seeds = st.integers(0, 2**32 - 1)


@st.composite
def ensembles(
    draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS), min_atoms: int = 2, max_atoms: int = 5
) -> list[Atoms]:
    """One random structure of every kind."""
    rng = np.random.default_rng(draw(seeds))
    return [random_structure(kind, draw(st.integers(min_atoms, max_atoms)), rng) for kind in kinds]


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """A random proper rotation matrix."""
    return Rotation.random(random_state=np.random.default_rng(draw(seeds))).as_matrix()


def wigner_d(rotation: np.ndarray) -> list[np.ndarray]:
    """The matrices by which a rotation acts on harmonics of degree 0..6, as seen at other points than any test's.

    (e3nn goes through Euler angles, which costs it half of the digits.)
    """
    points = np.random.default_rng(0).normal(size=(60, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    values = spherical_harmonics(MAX_L, torch.tensor(points)).numpy()
    turned = spherical_harmonics(MAX_L, torch.tensor(points @ rotation.T)).numpy()
    rows = [slice(degree**2, (degree + 1) ** 2) for degree in range(MAX_L + 1)]
    return [np.linalg.lstsq(values[:, r], turned[:, r], rcond=None)[0].T for r in rows]
