"""Diffusion from the motion of atoms: mean-square displacement, diffusion coefficient, ionic conductivity, Arrhenius.

The mean-square displacement is averaged over all time origins and over the mobile atoms, after the motion of the
others has been taken out. Its slope over a window of lags is 2 D in each direction. The error of D is the larger of
two: the spread over blocks of the run, each analysed by itself (which knows that ions move together), and the
standard error over the mobile atoms (which knows that blocks are few). The spread over blocks is not divided by the
root of their number: a random walk looks the same on every scale, so a line over the same fractions of the lags is as
uncertain, relative to D, for the whole run as it is for one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase import units

from equipes.errors import InputError
from equipes.simulate.results import Check, Provenance, plain

_CITATIONS = (
    "X. He, Y. Zhu, A. Epstein, Y. Mo, npj Comput. Mater. 4, 18 (2018)",
    "H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989)",
)
_SITE_DISTANCE = 2.0  # Å; who has moved less than this has only vibrated
_TO_CM2_PER_S = 1e-4  # of Å²/ps
_FEWEST_FRAMES = 20


@dataclass(frozen=True)
class DiffusionOptions:
    """How a trajectory is analysed.

    Attributes:
        mobile: symbol of the element that diffuses.
        charge: of its ions, in elementary charges, for the conductivity.
        window: the lags that the line is fitted over, as fractions of the longest.
        skip: fraction of the trajectory at its start that is left out.
        blocks: how many parts of the trajectory give the error.
        remove_drift: take out the motion of the centre of mass of the other atoms (of all, if there are no others).
    """

    mobile: str
    charge: float = 1.0
    window: tuple[float, float] = (0.1, 0.5)
    skip: float = 0.0
    blocks: int = 5
    remove_drift: bool = True

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise InputError(
                f"the window must be two fractions, ascending, between 0 and 1, not {self.window}"
            )
        if not 0 <= self.skip < 1:
            raise InputError(f"skip must be a fraction from 0 to below 1, not {self.skip}")
        if self.blocks < 2:
            raise InputError(f"an error needs at least 2 blocks, not {self.blocks}")
        if not np.isfinite(self.charge):
            raise InputError(f"the charge must be a number, not {self.charge}")


@dataclass(frozen=True)
class Motion:
    """How atoms moved: `displacements` `[T, N, 3]` in Å since the first frame, not wrapped; fs between frames."""

    numbers: np.ndarray
    masses: np.ndarray
    displacements: np.ndarray
    interval_fs: float
    volume_ang3: float | None


@dataclass(frozen=True)
class DiffusionResult:
    """Diffusion at one temperature.

    Attributes:
        temperature_k: given.
        mobile, n_mobile: the element and how many of its atoms there are.
        lags_ps, msd_ang2: `[L]` and `[L, 3]`, the mean-square displacement along x, y and z.
        diffusion_cm2_per_s, diffusion_error: the mean over directions, and its standard error.
        components_cm2_per_s, components_error: `[3]`, along x, y and z.
        charge_diffusion_cm2_per_s, charge_diffusion_error: of the sum of all mobile ions' displacements, so with their
            correlations.
        conductivity_ms_per_cm, conductivity_error: by Nernst and Einstein from the diffusion coefficient; None without
            a volume.
        haven_ratio: diffusion over charge diffusion.
        provenance: method, citations, convergence, warnings.
    """

    temperature_k: float
    mobile: str
    n_mobile: int
    time_ps: float
    lags_ps: np.ndarray
    msd_ang2: np.ndarray
    window_ps: tuple[float, float]
    diffusion_cm2_per_s: float
    diffusion_error: float
    components_cm2_per_s: np.ndarray
    components_error: np.ndarray
    charge_diffusion_cm2_per_s: float
    charge_diffusion_error: float
    conductivity_ms_per_cm: float | None
    conductivity_error: float | None
    haven_ratio: float
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


@dataclass(frozen=True)
class ArrheniusResult:
    """D = D0 exp(-Ea / kT) through several temperatures, weighted by their errors.

    Attributes:
        activation_energy_ev, activation_energy_error: Ea.
        prefactor_cm2_per_s: D0.
        diffusion_300k_cm2_per_s, factor_300k: D at 300 K by extrapolation, and the factor to either side within which
            it lies by one standard error.
        conductivity_300k_ms_per_cm: by Nernst and Einstein, with the volume of the lowest temperature.
    """

    activation_energy_ev: float
    activation_energy_error: float
    prefactor_cm2_per_s: float
    diffusion_300k_cm2_per_s: float
    factor_300k: float
    conductivity_300k_ms_per_cm: float | None


def motion_of(frames: Sequence[ase.Atoms], interval_fs: float) -> Motion:
    """The motion in a trajectory, unwrapped: between two frames every atom took the shortest way.

    Raises `InputError` for fewer than two frames, other atoms in one of them, or a step too long to be followed.
    """
    if len(frames) < 2:
        raise InputError(f"a trajectory of {len(frames)} frame(s) has no motion; give more")
    if not (np.isfinite(interval_fs) and interval_fs > 0):
        raise InputError(f"the time between frames must be above 0 fs, not {interval_fs}")
    first = frames[0]
    moved = np.zeros((len(frames), len(first), 3))
    periodic = first.cell.rank == 3
    for t in range(1, len(frames)):
        before, after = frames[t - 1], frames[t]
        if not np.array_equal(after.numbers, first.numbers):
            raise InputError(f"frame {t} has other atoms than the first; give one trajectory")
        step = after.positions - before.positions
        if periodic:
            # In fractions of the cell, so that a cell that breathes moves nobody.
            fraction = after.get_scaled_positions(wrap=False) - before.get_scaled_positions(wrap=False)
            whole = np.where(first.pbc, np.round(fraction), 0.0)
            if np.abs(fraction - whole)[:, first.pbc].max(initial=0.0) > 0.45:
                raise InputError(
                    f"frame {t}: an atom moved by almost half the cell since the frame before, so its way is not known;"
                    " write frames more often"
                )
            step = (fraction - whole) @ after.cell.array
        moved[t] = moved[t - 1] + step
    volume = float(np.mean([atoms.get_volume() for atoms in frames])) if periodic else None
    return Motion(first.numbers.copy(), first.get_masses(), moved, interval_fs, volume)


def mean_square_displacement(displacements: np.ndarray) -> np.ndarray:
    """Over all time origins, `[T, ...]` from displacements `[T, ...]`, by Fourier transforms.

    >>> mean_square_displacement(np.arange(4.0))
    array([0., 1., 4., 9.])
    """
    length = len(displacements)
    x = displacements - displacements.mean(axis=0)  # which cancels, and keeps digits
    spectrum = np.fft.rfft(x, 2 * length, axis=0)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, 2 * length, axis=0)[:length]
    square = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x**2, axis=0)])
    lags = np.arange(length)
    sums = square[length - lags] + square[length] - square[lags]
    counts = (length - lags).reshape(-1, *[1] * (x.ndim - 1))
    return np.round((sums - 2 * correlation) / counts, 12) + 0.0


def analyze_diffusion(motion: Motion, temperature: float, options: DiffusionOptions) -> DiffusionResult:
    """Diffusion in a trajectory at `temperature` (K).

    Raises `InputError` for an element that is not there, too short a trajectory, or options out of range.
    """
    options.check()
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"the temperature must be above 0 K, not {temperature}")
    mobile = np.array([symbol == options.mobile for symbol in ase.Atoms(numbers=motion.numbers).symbols])
    if not mobile.any():
        there = ", ".join(sorted(set(ase.Atoms(numbers=motion.numbers).symbols)))
        raise InputError(f"no {options.mobile} in the structure; it has {there}")
    moved = motion.displacements[int(options.skip * len(motion.displacements)) :]
    if len(moved) < _FEWEST_FRAMES * options.blocks:
        raise InputError(
            f"{len(moved)} frames are too few for {options.blocks} blocks; give at least"
            f" {_FEWEST_FRAMES * options.blocks}, or fewer blocks"
        )
    if options.remove_drift:
        frame = ~mobile if (~mobile).any() else np.ones_like(mobile)
        weights = np.where(frame, motion.masses, 0.0)
        moved = moved - (np.einsum("i,tix->tx", weights, moved) / weights.sum())[:, None]
    ions = moved[:, mobile]
    step = motion.interval_fs / 1000
    msd = mean_square_displacement(ions)  # [T, ions, 3]
    per_atom = _slopes(msd, step, options.window)
    whole = per_atom.mean(axis=0)
    collective = _slopes(_collective(ions), step, options.window)
    length = len(ions) // options.blocks
    parts = [ions[k * length : (k + 1) * length] for k in range(options.blocks)]
    in_blocks = np.array([_slopes(mean_square_displacement(p), step, options.window).mean(0) for p in parts])
    collective_blocks = np.array([_slopes(_collective(part), step, options.window) for part in parts])
    components_error = np.maximum(in_blocks.std(axis=0, ddof=1), _standard_error(per_atom))
    error = max(float(in_blocks.mean(axis=1).std(ddof=1)), float(_standard_error(per_atom.mean(axis=1))))
    diffusion, charge_diffusion = float(whole.mean()), float(collective.mean())
    conductivity = conductivity_error = None
    if motion.volume_ang3 is not None:
        factor = nernst_einstein(1.0, int(mobile.sum()), motion.volume_ang3, temperature, options.charge)
        conductivity, conductivity_error = factor * diffusion, factor * error
    lags = step * np.arange(len(ions))
    low, high = _window(len(ions), options.window)
    change = abs(float(in_blocks.mean()) - diffusion) / max(abs(diffusion), 1e-30)
    check = Check(f"a {_ordinal(options.blocks)} of the time: the diffusion coefficient", change, 0.3)
    return DiffusionResult(
        temperature_k=temperature,
        mobile=options.mobile,
        n_mobile=int(mobile.sum()),
        time_ps=float(lags[-1]),
        lags_ps=lags,
        msd_ang2=msd.mean(axis=1),
        window_ps=(float(lags[low]), float(lags[high - 1])),
        diffusion_cm2_per_s=diffusion,
        diffusion_error=error,
        components_cm2_per_s=whole,
        components_error=components_error,
        charge_diffusion_cm2_per_s=charge_diffusion,
        charge_diffusion_error=float(collective_blocks.mean(axis=1).std(ddof=1)),
        conductivity_ms_per_cm=conductivity,
        conductivity_error=conductivity_error,
        haven_ratio=diffusion / charge_diffusion if charge_diffusion else float("nan"),
        provenance=Provenance(
            f"Mean-square displacement of {int(mobile.sum())} {options.mobile} over all time origins"
            f" ({lags[-1]:.4g} ps{', drift of the others removed' if options.remove_drift else ''}), straight line over"
            f" lags of {lags[low]:.3g} to {lags[high - 1]:.3g} ps; error: the larger of the spread over"
            f" {options.blocks} blocks and that over atoms; conductivity by Nernst and Einstein",
            _CITATIONS,
            (check,),
            tuple(_warnings(msd.mean(axis=1).sum(axis=1), high, diffusion, error, options.mobile)),
        ),
    )


def nernst_einstein(
    diffusion: float, ions: int, volume: float, temperature: float, charge: float = 1.0
) -> float:
    """Conductivity in mS/cm of `ions` in `volume` (Å³) that diffuse with `diffusion` (cm²/s) at `temperature` (K).

    >>> round(nernst_einstein(1.16083658794e-06, 20, 8.729**2 * 12.736, 600.0), 0)
    74.0
    """
    coulomb_squared = (charge * units._e) ** 2 * ions
    siemens_per_meter = (
        coulomb_squared * diffusion * 1e-4 / (volume * 1e-30 * units._k * temperature)
    )  # cm² to m², Å³ to m³
    return 10 * siemens_per_meter


def arrhenius(results: Sequence[DiffusionResult], volume: float | None, charge: float) -> ArrheniusResult:
    """The activation energy from at least two temperatures, by a line through ln D over 1/T weighted with the errors.

    Its own errors follow from those of D, and are widened where the points scatter more about the line. Raises
    `InputError` for fewer than two temperatures, or a diffusion coefficient that is not positive.
    """
    if len({result.temperature_k for result in results}) < 2:
        raise InputError("an activation energy needs at least two temperatures; give another")
    values = np.array([result.diffusion_cm2_per_s for result in results])
    if not (values > 0).all():
        cold = results[int(np.argmin(values))].temperature_k
        raise InputError(f"at {cold:g} K nothing diffuses in the time simulated; leave it out, or run longer")
    x = np.array([1 / (units.kB * result.temperature_k) for result in results])
    relative = np.array([max(result.diffusion_error, 1e-12) for result in results]) / values
    design = np.stack([np.ones_like(x), -x], axis=1) / relative[:, None]
    target = np.log(values) / relative
    covariance = np.linalg.inv(design.T @ design)
    line = covariance @ design.T @ target
    if len(x) > 2:
        scatter = float(((target - design @ line) ** 2).sum() / (len(x) - 2))
        covariance = covariance * max(1.0, scatter)
    at_300 = np.array([1.0, -1 / (units.kB * 300.0)])
    cold = float(np.exp(at_300 @ line))
    conductivity = None
    if volume is not None:
        conductivity = nernst_einstein(cold, results[0].n_mobile, volume, 300.0, charge)
    return ArrheniusResult(
        activation_energy_ev=float(line[1]),
        activation_energy_error=float(np.sqrt(covariance[1, 1])),
        prefactor_cm2_per_s=float(np.exp(line[0])),
        diffusion_300k_cm2_per_s=cold,
        factor_300k=float(np.exp(np.sqrt(at_300 @ covariance @ at_300))),
        conductivity_300k_ms_per_cm=conductivity,
    )


def _collective(ions: np.ndarray) -> np.ndarray:
    """The mean-square displacement of the sum over ions, per ion, `[T, 3]`."""
    return mean_square_displacement(ions.sum(axis=1)) / ions.shape[1]


def _slopes(msd: np.ndarray, step: float, window: tuple[float, float]) -> np.ndarray:
    """Half the slope by time of each component, in cm²/s; `[T, ...]` to `[...]`."""
    low, high = _window(len(msd), window)
    time = step * np.arange(low, high)
    centred = time - time.mean()
    slope = np.tensordot(centred, msd[low:high], axes=1) / (centred @ centred)
    return 0.5 * _TO_CM2_PER_S * slope


def _window(length: int, window: tuple[float, float]) -> tuple[int, int]:
    low = int(window[0] * length)
    return low, max(low + 2, int(window[1] * length))


def _standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0 * values[0]


def _ordinal(n: int) -> str:
    return {2: "half", 3: "third", 4: "quarter", 5: "fifth", 10: "tenth"}.get(n, f"{n}th")


def _warnings(msd: np.ndarray, high: int, diffusion: float, error: float, mobile: str) -> list[str]:
    found = []
    reached = float(np.sqrt(max(msd[high - 1], 0.0)))
    if reached < _SITE_DISTANCE:
        found.append(
            f"{mobile} moved by {reached:.2f} Å only (root mean square, at the end of the window), less than the"
            " distance between sites: few hops, or none; run longer or hotter"
        )
    if not diffusion > 2 * error:
        found.append(
            f"the diffusion coefficient of {mobile} is not distinguishable from zero within its error"
        )
    return found
