"""Radial functions as cubic splines: where the knots must be for an error that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equipes.errors import InputError

# Radial functions of reduced distances, `[R]` -> `[R, channels]`.
Function = Callable[[Tensor], Tensor]

MAX_INTERVALS = 20_000
# Places in an interval where a cubic Hermite spline and its derivative are farthest off.
_PROBES = (0.2, 0.5, 0.8)
# 0 itself is left out: autograd has no derivative of sin(x)/x there.
_NEAREST = 1e-6
# So near to each other no two atoms are: errors do not count.
_UNSEEN = 0.02


def values_and_slopes(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """A function and its derivative, `[R, channels]` each, at reduced distances `[R]`."""
    with torch.enable_grad():
        x = x.clamp(min=_NEAREST).requires_grad_()
        values = function(x)
        # The derivative of one row is that of cotangents · row by x, differentiated by the cotangents in turn.
        cotangents = torch.zeros_like(values, requires_grad=True)
        (directional,) = torch.autograd.grad((values * cotangents).sum(), x, create_graph=True)
        (slopes,) = torch.autograd.grad(directional.sum(), cotangents)
    return values.detach(), slopes


def choose_knots(functions: Sequence[Function], kinks: Sequence[float], tolerance: float) -> Tensor:
    """Knots in 0..1, unequal, such that cubic Hermite splines on them are as good as asked for.

    An interval is halved until, at places between its ends, the root mean square over channels of the error of each
    function and of its derivative is below `tolerance` times the largest root mean square of the function and of its
    derivative. Kinks are knots, with what lies on either side of them apart.

    Raises:
        InputError: a tolerance that is out of reach.
    """
    if not tolerance > 0:
        raise InputError(f"the tolerance of the splines must be positive, not {tolerance}")
    ends = sorted({0.0, *kinks, 1.0})
    left = torch.cat(
        [torch.linspace(a, b, 9, dtype=torch.float64)[:-1] for a, b in zip(ends, ends[1:], strict=False)]
    )
    right = torch.cat([left[1:], torch.ones(1, dtype=torch.float64)])
    grid = torch.linspace(0.05, 1.0, 400, dtype=torch.float64)
    scales = []
    for function in functions:
        values, slopes = values_and_slopes(function, grid)
        scales.append((float(_rms(values).max()), float(_rms(slopes).max())))
    done: list[Tensor] = []
    while len(left):
        good = torch.ones(len(left), dtype=torch.bool)
        for function, (value_scale, slope_scale) in zip(functions, scales, strict=True):
            value_error, slope_error = _errors(function, left, right)
            good &= (value_error <= tolerance * value_scale) & (slope_error <= tolerance * slope_scale)
        good |= right <= _UNSEEN
        done.append(left[good])
        middle = (left[~good] + right[~good]) / 2
        left, right = torch.cat([left[~good], middle]), torch.cat([middle, right[~good]])
        if sum(map(len, done)) + len(left) > MAX_INTERVALS:
            raise InputError(
                f"splines of a tolerance of {tolerance:g} would need more than {MAX_INTERVALS} knots; "
                "ask for a larger tolerance"
            )
    return torch.cat([torch.cat(done).sort().values, torch.ones(1, dtype=torch.float64)])


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=1).sqrt()


def _errors(function: Function, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Largest root mean square errors of value and derivative in each interval, `[R]` each."""
    width = (right - left).unsqueeze(1)
    f0, d0 = values_and_slopes(function, left)
    # A derivative may jump at the right end; what counts is its limit from the left.
    f1, d1 = values_and_slopes(function, right - 1e-12)
    d0, d1 = d0 * width, d1 * width
    c2, c3 = 3 * (f1 - f0) - 2 * d0 - d1, 2 * (f0 - f1) + d0 + d1
    value_error = left.new_zeros(len(left))
    slope_error = left.new_zeros(len(left))
    for t in _PROBES:
        exact, exact_slope = values_and_slopes(function, left + t * (right - left))
        value_error = torch.maximum(value_error, _rms(((c3 * t + c2) * t + d0) * t + f0 - exact))
        slope = ((3 * c3 * t + 2 * c2) * t + d0) / width
        slope_error = torch.maximum(slope_error, _rms(slope - exact_slope))
    return value_error, slope_error
