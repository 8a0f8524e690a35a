"""Numbers out of time series: a drift, and a mean with an honest error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# A standard deviation over fewer blocks than this is itself too uncertain to be called an error.
_FEWEST_BLOCKS = 16
_BLOCKS_TO_CORRELATE = 32


def drift(times: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of the straight line through `values` over `times` by least squares; None for fewer than three points.

    >>> drift([0.0, 1.0, 2.0], [5.0, 7.0, 9.0])
    2.0
    """
    if len(times) < 3:
        return None
    x = np.asarray(times, dtype=float) - np.mean(times)
    y = np.asarray(values, dtype=float)
    return float(x @ (y - y.mean()) / (x @ x))


def mean_with_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of a correlated series and its standard error.

    The error is that of blocking (`blocking_error`), or, where it is larger, what the correlation that is left between
    32 blocks makes of theirs, as in an autoregressive process of first order: so a series of only five or ten
    correlation times has an honest error, too. None for a series of fewer than 16.
    """
    series = np.asarray(values, dtype=float)
    if series.size == 0:
        return None, None
    error = blocking_error(series)
    if error is None:
        return float(series.mean()), None
    blocks = series
    while blocks.size >= 2 * _BLOCKS_TO_CORRELATE:
        blocks = _pairs(blocks)
    correlation = _correlation_of_neighbors(blocks)
    alone = float(blocks.std(ddof=1)) / math.sqrt(blocks.size)
    return float(series.mean()), max(error, alone * math.sqrt((1 + correlation) / (1 - correlation)))


def blocking_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Standard error of a mean by blocking (Flyvbjerg & Petersen, J. Chem. Phys. 91, 461).

    Neighbouring values are averaged pairwise again and again; the error of the mean, seen as uncorrelated, grows until
    the blocks are longer than the correlation time. The largest one is returned, over levels of at least 16 blocks:
    None for a shorter series.
    """
    series = np.asarray(values, dtype=float)
    errors = []
    while series.size >= _FEWEST_BLOCKS:
        errors.append(float(series.std(ddof=1)) / math.sqrt(series.size))
        series = _pairs(series)
    return max(errors, default=None)


def _pairs(series: np.ndarray) -> np.ndarray:
    means: np.ndarray = series[series.size % 2 :].reshape(-1, 2).mean(axis=1)
    return means


def _correlation_of_neighbors(series: np.ndarray) -> float:
    """From 0 to 0.9, less the bias of a short series (M. G. Kendall, Biometrika 41, 403, 1954)."""
    deviation = series - series.mean()
    square = float(deviation @ deviation)
    if square == 0.0:
        return 0.0
    found = float(deviation[1:] @ deviation[:-1]) / square
    return min(max(found + (1 + 3 * found) / len(series), 0.0), 0.9)
