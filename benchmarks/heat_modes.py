"""What phonons carry: by their lifetimes in dynamics, and by three-phonon scattering on the same grid.

In a supercell of a crystal only the modes of some wave vectors fit. Their velocities v(q) come from harmonic force
constants; their lifetimes, of all orders of anharmonicity, from the correlation of their energies in dynamics at
constant energy (A. J. C. Ladd, B. Moran, W. G. Hoover, Phys. Rev. B 34, 5058, 1986; A. J. H. McGaughey, M. Kaviany,
Phys. Rev. B 69, 094303, 2004), and κ = Σ k_B |v|² τ / 3V is classical, as that of Green and Kubo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from phono3py import Phono3py
from phonopy import Phonopy

from equipes.calculators import Calculator
from equipes.simulate.ensembles import thermal_momenta
from equipes.simulate.evaluations import evaluate
from equipes.simulate.harmonic import ase_atoms, phonopy_atoms

# So hot that every mode holds k_B T; the conductivity from three-phonon scattering is then c / T, with the classical c.
CLASSICAL = 1e5  # K
# The vectors of the conventional cell of fcc in primitive ones.
_CONVENTIONAL = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
_SAME = 1e-3  # modes whose frequencies differ by less than this part of the highest are one
_PS = 1000 * units.fs
_WATTS = 1.602176634e-19 / 1e-12 / 1e-10  # 1 eV/(K ps Å) in W/(m K)
_UNCORRELATED = 0.05


@dataclass(frozen=True)
class Mode:
    """The modes of one wave vector.

    Attributes:
        wave_vector: `[3]`, 1/Å.
        squares: `[M]`, squared angular frequencies, in units of ASE.
        vectors: `[M, M]`, eigenvectors as columns, with the phases of the atoms' places.
        velocities: `[3, M, M]`, between the modes, Å in units of ASE.
    """

    wave_vector: np.ndarray
    squares: np.ndarray
    vectors: np.ndarray
    velocities: np.ndarray


def lifetimes(
    unit: Atoms,
    exact: Calculator,
    fast: Calculator,
    cells: int,
    *,
    temperature: float,
    picoseconds: float,
    timestep: float,
    runs: int,
) -> dict[str, Any]:
    """Conductivity, W/(m K), with its standard error over the runs, and mean lifetimes, ps, by frequency, THz.

    Args:
        unit: the conventional cell of an fcc crystal.
        exact, fast: for the force constants, and for the dynamics.
        cells: conventional cells along each vector.
        temperature, picoseconds, timestep, runs: K, ps of each run, fs.
    """
    phonons = Phonopy(
        phonopy_atoms(unit), supercell_matrix=np.eye(3, dtype=int) * cells, primitive_matrix="F"
    )
    phonons.generate_displacements(distance=0.01)
    displaced = [ase_atoms(cell) for cell in phonons.supercells_with_displacements]
    phonons.forces = [found.forces for found in evaluate(displaced, exact)]
    phonons.produce_force_constants()
    modes = _modes(phonons, cells)
    crystal = ase_atoms(phonons.supercell)
    places = {atom: k for k, atom in enumerate(phonons.primitive.p2s_map)}
    kinds = np.array([places[atom] for atom in phonons.primitive.s2p_map])
    interval = max(1, round(10 / timestep))
    correlations = []
    for run in range(runs):
        displacements, velocities = _dynamics(
            crystal, fast, temperature, picoseconds, timestep, interval, run
        )
        energies = [_energies(mode, crystal, kinds, displacements, velocities) for mode in modes]
        correlations.append(np.array([_correlation(energy) for energy in energies]))  # [Q, M, L]
    step = interval * timestep / 1000
    found = _conductivity(modes, np.mean(correlations, axis=0), step, crystal.get_volume())
    # The jackknife, because a lifetime is no mean over runs.
    left_out = [
        _conductivity(
            modes, np.mean(np.delete(correlations, run, axis=0), axis=0), step, crystal.get_volume()
        )[0]
        for run in range(runs)
    ]
    error = float(np.sqrt((runs - 1) * np.var(left_out))) if runs > 1 else None
    return {"conductivity": found[0], "error": error, "lifetimes, ps, by THz": found[1]}


def three_phonons(
    unit: Atoms,
    calculator: Calculator,
    cells: int,
    *,
    temperature: float,
    widths: tuple[float, ...] = (0.4, 0.8),
) -> dict[str, Any]:
    """The same by classical three-phonon scattering of the modes that fit into the supercell, by smearing.

    The grid is that of the primitive cell, commensurate with the supercell: in the conventional cell modes of different
    wave vectors fall together, and phono3py's velocities of modes that fall together lack what is between them.
    """
    interaction = Phono3py(
        phonopy_atoms(unit), supercell_matrix=np.eye(3, dtype=int) * 2, primitive_matrix="F", use_grg=True
    )
    interaction.generate_displacements(distance=0.03)
    displaced = [ase_atoms(cell) for cell in interaction.supercells_with_displacements]
    rest, *found = evaluate([ase_atoms(interaction.supercell), *displaced], calculator)
    interaction.forces = np.array([result.forces - rest.forces for result in found])
    interaction.produce_fc3()
    interaction.produce_fc2()
    results = {}
    for width in widths:
        interaction.sigmas = [width]
        interaction.mesh_numbers = cells * _CONVENTIONAL
        interaction.init_phph_interaction()
        interaction.run_thermal_conductivity(is_LBTE=False, temperatures=[CLASSICAL], log_level=0)
        found = interaction.thermal_conductivity
        scale = CLASSICAL / temperature
        weights = np.repeat(np.array(found.grid_weights)[:, None], found.frequencies.shape[1], axis=1)
        rates = 4 * np.pi * np.maximum(np.array(found.gamma)[0, 0], 1e-12) / scale
        results[f"smearing {width:g} THz"] = {
            "conductivity": float(np.array(found.kappa).reshape(-1, 6)[0, :3].mean()) * scale,
            "lifetimes, ps, by THz": _bands(np.array(found.frequencies), 1 / rates, weights),
        }
    return results


def _modes(phonons: Phonopy, cells: int) -> list[Mode]:
    primitive = phonons.primitive.cell
    reciprocal = 2 * np.pi * np.linalg.inv(phonons.supercell.cell)  # columns
    vectors: dict[tuple[float, ...], np.ndarray] = {}
    for numbers in np.ndindex(2 * cells, 2 * cells, 2 * cells):
        wave_vector = reciprocal @ np.array(numbers)
        fraction = np.round(primitive @ wave_vector / (2 * np.pi), 6) % 1.0
        vectors.setdefault(tuple(fraction), wave_vector)
    assert len(vectors) == len(phonons.supercell) // len(phonons.primitive)

    def matrix(wave_vector: np.ndarray) -> np.ndarray:
        phonons.dynamical_matrix.run(primitive @ wave_vector / (2 * np.pi))
        found = phonons.dynamical_matrix.dynamical_matrix
        return (found + found.conj().T) / 2

    modes = []
    for wave_vector in vectors.values():
        squares, eigenvectors = np.linalg.eigh(matrix(wave_vector))
        slopes = [
            (matrix(wave_vector + step) - matrix(wave_vector - step)) / (2 * np.abs(step).max())
            for step in 1e-4 * np.eye(3)
        ]
        between = np.array([eigenvectors.conj().T @ slope @ eigenvectors for slope in slopes])
        frequencies = np.sqrt(np.maximum(squares, 1e-12))
        modes.append(Mode(wave_vector, squares, eigenvectors, between / (2 * frequencies[:, None])))
    return modes


def _dynamics(
    crystal: Atoms, calculator: Calculator, temperature: float, picoseconds: float, timestep: float, interval: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Displacements and velocities `[L, N, 3]` at constant energy, after 6 ps in which heat spreads over the modes."""
    atoms = crystal.copy()
    atoms.calc = calculator
    thermal_momenta(atoms, 2 * temperature, "nve", np.random.default_rng(seed))
    warming = VelocityVerlet(atoms, timestep * units.fs)
    warming.run(round(4000 / timestep))
    degrees = 3 * (len(atoms) - 1)
    kelvin = 2 * atoms.get_kinetic_energy() / (degrees * units.kB)
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / kelvin))
    warming.run(round(2000 / timestep))
    positions, velocities = [], []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)

    def keep() -> None:
        positions.append(atoms.positions.copy())
        velocities.append(atoms.get_velocities())

    dynamics.attach(keep, interval=interval)
    dynamics.run(round(1000 * picoseconds / timestep))
    displacements = np.array(positions) - crystal.positions
    return displacements - displacements.mean(axis=1, keepdims=True), np.array(velocities)


def _energies(
    mode: Mode, crystal: Atoms, kinds: np.ndarray, displacements: np.ndarray, velocities: np.ndarray
) -> np.ndarray:
    """Of each mode in the course of time, `[M, L]`."""
    phases = np.exp(-1j * crystal.positions @ mode.wave_vector) * np.sqrt(crystal.get_masses())

    def amplitudes(values: np.ndarray) -> np.ndarray:
        total = 0
        for kind in range(kinds.max() + 1):
            chosen = kinds == kind
            waves = np.einsum("tac,a->tc", values[:, chosen], phases[chosen])
            total = total + waves @ mode.vectors[3 * kind : 3 * kind + 3].conj()
        return np.abs(total) ** 2 / (kinds == 0).sum()

    return (amplitudes(velocities) + np.abs(mode.squares) * amplitudes(displacements)).T / 2


def _correlation(energies: np.ndarray) -> np.ndarray:
    """Of the fluctuations, not divided by their square, up to a quarter of the run, `[M, L / 4]`."""
    deviations = energies - energies.mean(axis=1, keepdims=True)
    n = deviations.shape[1]
    spectrum = np.abs(np.fft.fft(deviations, 2 * n, axis=1)) ** 2
    return np.fft.ifft(spectrum, axis=1).real[:, : n // 4] / np.arange(n, n - n // 4, -1)


def _conductivity(
    modes: list[Mode], correlations: np.ndarray, step: float, volume: float
) -> tuple[float, dict[str, float]]:
    squares = np.array([mode.squares for mode in modes])
    frequencies = np.sqrt(np.abs(squares))
    moving = frequencies > 0.02 * frequencies.max()  # all but the three translations
    groups = np.where(moving, np.round(frequencies / (_SAME * frequencies.max())), -1)
    taus = np.zeros_like(frequencies)
    for group in np.unique(groups[moving]):
        mean = correlations[groups == group].mean(axis=0)  # of the modes that symmetry makes the same
        end = int(np.argmax(mean < _UNCORRELATED * mean[0])) or len(mean)
        taus[groups == group] = step * (mean[:end].sum() / mean[0] - 0.5)
    total = 0.0
    for k, mode in enumerate(modes):
        near = np.abs(frequencies[k][:, None] - frequencies[k]) < _SAME * frequencies.max()
        pairs = near & moving[k] & moving[k][:, None]
        speeds = (np.abs(mode.velocities * _PS) ** 2).sum(axis=0)
        total += float((pairs * speeds * (taus[k] + taus[k][:, None]) / 2).sum()) / 3
    bands = _bands(frequencies * _PS / (2 * np.pi), taus, moving)
    return units.kB * total / volume * _WATTS, bands


def _bands(terahertz: np.ndarray, taus: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Mean lifetimes of bands of 4 THz; translations are in none."""
    found = {}
    for low in range(0, 16, 4):
        chosen = (terahertz >= max(low, 0.3)) & (terahertz < low + 4) & (weights > 0)
        if chosen.any():
            found[f"{low}-{low + 4}"] = round(float(np.average(taus[chosen], weights=weights[chosen])), 3)
    return found
