"""Numbers out of time series: a drift, and a mean with an honest error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# A standard deviation over fewer blocks than this is itself too uncertain to be called an error.
_FEWEST_BLOCKS = 16


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
    """Mean of a correlated series and its standard error, by blocking (Flyvbjerg & Petersen, J. Chem. Phys. 91, 461).

    Neighbouring values are averaged pairwise again and again; the error of the mean, seen as uncorrelated, grows until
    the blocks are longer than the correlation time. The largest one is returned, over levels of at least 16 blocks:
    None for a shorter series. Where the last blocks are still correlated with their neighbours the error is what an
    autoregressive process of first order with that correlation has, so that a series of only five or ten correlation
    times has an honest error, too.
    """
    blocks = series = np.asarray(values, dtype=float)
    if series.size == 0:
        return None, None
    errors = []
    while series.size >= _FEWEST_BLOCKS:
        blocks = series
        errors.append(float(series.std(ddof=1)) / math.sqrt(series.size))
        series = series[series.size % 2 :].reshape(-1, 2).mean(axis=1)
    if errors:
        correlation = _correlation_of_neighbors(blocks)
        errors.append(errors[-1] * math.sqrt((1 + correlation) / (1 - correlation)))
    return float(np.mean(values)), max(errors, default=None)


def _correlation_of_neighbors(series: np.ndarray) -> float:
    """From 0 to 0.9, less the bias of a short series (M. G. Kendall, Biometrika 41, 403, 1954)."""
    deviation = series - series.mean()
    square = float(deviation @ deviation)
    if square == 0.0:
        return 0.0
    found = float(deviation[1:] @ deviation[:-1]) / square
    return min(max(found + (1 + 3 * found) / len(series), 0.0), 0.9)
