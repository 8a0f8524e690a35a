"""A transport coefficient out of a fluctuating flux: the integral of its correlation, and the zero of its spectrum.

For a flux J sampled at equilibrium, both estimate ∫_0^∞ <J(0) J(t)> dt:

* directly, up to a time at which the integral stops to grow by more than its error. The error comes from independent
  parts of the data, and is never taken below that of a Gaussian process, 2 sqrt(t/T) of the integral for T of data and
  an integral to t (R. E. Jones, K. K. Mandadapu, J. Chem. Phys. 136, 154102, 2012);
* by cepstral analysis (L. Ercole, A. Marcolongo, S. Baroni, Sci. Rep. 7, 15835, 2017): half the power spectrum at
  frequency zero, where the logarithm of the spectrum is smoothed by half as many Fourier coefficients again as Akaike's
  criterion wants. Its error is known in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import digamma, polygamma

# The pairs of directions in Voigt's order.
PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# Sums over fewer parts than this have no spread worth the name.
_FEWEST_PARTS = 4
# Akaike's number of coefficients cuts the tip off a sharp peak, which is what a spectrum of long-lived phonons has.
_MORE = 1.5
_STEPS_IN_OCTAVE = 8
_SHORTEST = 10


@dataclass(frozen=True)
class Integral:
    """The integral of the correlation of a flux, in units of flux² times time; L lags.

    Attributes:
        times: `[L]`.
        correlation: `[L, 6]`, of the pairs of directions xx yy zz yz xz xy.
        running: `[L, 6]`, the integral up to each time.
        mean: `[L]`, over the three directions.
        mean_error: `[L]`, its standard error.
        running_error: `[L, 6]`.
        cutoff: index of the time up to which the integral counts.
        settled: whether the integral stopped to grow within the lags.
    """

    times: np.ndarray
    correlation: np.ndarray
    running: np.ndarray
    mean: np.ndarray
    mean_error: np.ndarray
    running_error: np.ndarray
    cutoff: int
    settled: bool

    @property
    def certain(self) -> int:
        """Index of the time whose errors count: where the integral was still compared, and found not to have grown."""
        return min(4 * self.cutoff // 3, len(self.times) - 1)


@dataclass(frozen=True)
class Cepstrum:
    """Half the spectrum at frequency zero, with its error.

    Attributes:
        value, error: the integral of the correlation, and its standard error.
        frequencies: `[K]`, 1 / time.
        spectrum: `[K]`, half the power spectrum, mean over series and directions.
        smooth: `[K]`, what the coefficients kept make of it.
        coefficients: how many were kept.
    """

    value: float
    error: float
    frequencies: np.ndarray
    spectrum: np.ndarray
    smooth: np.ndarray
    coefficients: int


def autocorrelation(flux: np.ndarray, lags: int) -> np.ndarray:
    """`<J_a(0) J_b(t)>`, symmetric in a and b, of a flux `[n, 3]` whose mean is known to be zero; `[lags, 6]`.

    >>> autocorrelation(np.ones((5, 3)), 2)[:, 0].round(12).tolist()
    [1.0, 1.0]
    """
    n = len(flux)
    size = next_fast_len(n + lags, real=True)
    transformed = rfft(flux, size, axis=0)
    pairs = [irfft((transformed[:, a].conj() * transformed[:, b]).real, size)[:lags] for a, b in PAIRS]
    return np.stack(pairs, axis=1) / (n - np.arange(lags))[:, None]


def integrate(fluxes: Sequence[np.ndarray], interval: float, longest: float) -> Integral:
    """The integral of the correlation over the lag, by the trapezoidal rule.

    Args:
        fluxes: `[n, 3]` each, independent series of the same length and interval.
        interval: time between samples.
        longest: the longest lag, at most a quarter of a series.
    """
    lags = max(min(int(longest / interval), len(fluxes[0]) // 4), 2) + 1
    parts = [
        part for flux in fluxes for part in np.array_split(flux, max(1, len(flux) // (4 * lags)))
    ]  # each at least four times as long as the longest lag
    correlations = np.array([autocorrelation(part, lags) for part in parts])  # [P, L, 6]
    # Whole series have more pairs of samples than their parts have together.
    correlation = np.mean([autocorrelation(flux, lags) for flux in fluxes], axis=0)
    running = _cumulative(correlation, interval)
    of_parts = np.array([_cumulative(entry, interval) for entry in correlations])
    times = interval * np.arange(lags)
    total = interval * sum(map(len, fluxes))
    mean = running[:, :3].mean(axis=1)
    # The integral with a triangular window, which unlike the plain one is not small or negative by chance.
    windowed = np.abs(_cumulative(running, interval)[1:, :3] / times[1:, None])
    size = np.maximum(np.abs(running[:, :3]), np.concatenate([windowed[:1], windowed]))
    size = np.maximum.accumulate(size)  # an integral that falls again is not known any better
    relative = 2 * np.sqrt(times / total)
    mean_error = relative * np.sqrt((size**2).sum(axis=1)) / 3
    # Two directions that know nothing of each other: half the variance that one direction has.
    mixed = [np.sqrt(size[:, a] * size[:, b] / 2) for a, b in PAIRS[3:]]
    running_error = relative[:, None] * np.column_stack([size, *mixed])
    if len(parts) >= _FEWEST_PARTS:
        mean_error = np.maximum(mean_error, _standard_error(of_parts[:, :, :3].mean(axis=2)))
        running_error = np.maximum(running_error, _standard_error(of_parts))
    cutoff, settled = _plateau(mean, mean_error)
    return Integral(times, correlation, running, mean, mean_error, running_error, cutoff, settled)


def cepstrum(fluxes: Sequence[np.ndarray], interval: float, highest: float) -> Cepstrum:
    """Cepstral analysis of the spectrum up to a frequency, with directions and series as equals.

    Args:
        fluxes: `[n, 3]` each, independent series of the same length and interval.
        interval: time between samples.
        highest: the frequency up to which the spectrum takes part, 1 / time; what happens beyond does not matter.
    """
    n = len(fluxes[0])
    frequencies = np.fft.rfftfreq(n, interval)
    keep = max(int(np.searchsorted(frequencies, highest)), _SHORTEST)
    periodogram = np.mean([np.abs(rfft(flux, axis=0)) ** 2 for flux in fluxes], axis=(0, 2)) * interval / n
    periodogram, frequencies = periodogram[: keep + 1] / 2, frequencies[: keep + 1]
    periodogram[0] = periodogram[1]  # it has half the degrees of freedom of the others
    equals = 3 * len(fluxes)
    logarithm = np.log(periodogram) - (digamma(equals) - np.log(equals))
    variance = float(polygamma(1, equals))
    length = 2 * (len(logarithm) - 1)
    coefficients = irfft(logarithm, length)[: len(logarithm)]
    squares = coefficients**2
    remaining = squares.sum() - np.cumsum(squares) + squares  # from the n-th on
    criterion = length / variance * remaining + 2 * np.arange(len(squares))
    kept = min(int(np.ceil(_MORE * (int(criterion[1:].argmin()) + 1))), len(squares) - 1)
    window = np.zeros(length)
    window[:kept] = coefficients[:kept]
    window[length - kept + 1 :] = coefficients[1:kept][::-1]
    smooth = np.exp(rfft(window).real)
    error = np.sqrt(variance * (4 * kept - 2) / length)
    return Cepstrum(float(smooth[0]), float(smooth[0] * error), frequencies, periodogram, smooth, kept)


def _plateau(mean: np.ndarray, error: np.ndarray) -> tuple[int, bool]:
    """The first lag after which the integral grows, over as long again, by less than the error there; and again so at
    the next two lags of the grid, an eighth of an octave apart each, lest it be a chance."""
    last = len(mean) - 1
    grid = np.unique((_SHORTEST * 2 ** (np.arange(200) / _STEPS_IN_OCTAVE)).astype(int))
    grid = grid[2 * grid <= last]
    flat = [abs(mean[2 * k] - mean[k]) < error[2 * k] for k in grid]
    for place, k in enumerate(grid[:-2]):
        if all(flat[place : place + 3]):
            return 3 * int(k) // 2, True
    return last // 2, False


def _cumulative(values: np.ndarray, interval: float) -> np.ndarray:
    steps = (values[1:] + values[:-1]) * interval / 2
    return np.concatenate([np.zeros_like(values[:1]), np.cumsum(steps, axis=0)])


def _standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))
