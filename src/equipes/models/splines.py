"""Radial functions as quintic splines: where the knots must be for an error that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from equipes.errors import InputError

# Radial functions of reduced distances, `[R]` -> `[R, channels]`.
Function = Callable[[Tensor], Tensor]

MAX_INTERVALS = 5000
# Places in an interval where a Hermite spline and its derivative are farthest off.
_PROBES = (0.2, 0.5, 0.8)
# 0 itself is left out: autograd has no derivative of sin(x)/x there.
_NEAREST = 1e-6
# So near to each other no two atoms are: errors do not count.
_UNSEEN = 0.02
# Derivatives may jump at a kink; what counts is their limit from the left. (From the right they have it there.)
_BEFORE = 1e-12


def derivatives(function: Function, x: Tensor, order: int) -> list[Tensor]:
    """A function and its derivatives up to `order`, `[R, channels]` each, at reduced distances `[R]`."""
    with torch.enable_grad():
        x = x.clamp(min=_NEAREST).requires_grad_()
        results = [function(x)]
        for k in range(order):
            # The derivative of cotangents · row by x, differentiated by the cotangents in turn.
            cotangents = torch.zeros_like(results[-1], requires_grad=True)
            (directional,) = torch.autograd.grad((results[-1] * cotangents).sum(), x, create_graph=True)
            (slopes,) = torch.autograd.grad(directional.sum(), cotangents, create_graph=k + 1 < order)
            results.append(slopes)
    return [result.detach() for result in results]


def polynomials(function: Function, left: Tensor, right: Tensor) -> Tensor:
    """`[intervals, 6, channels]`: c0 + c1 t + .. + c5 t⁵, t = 0..1 between the ends.

    At both ends it has the function's value and first two derivatives.
    """
    width = (right - left).unsqueeze(1)
    f0, d0, s0 = derivatives(function, left, 2)
    f1, d1, s1 = derivatives(function, right - _BEFORE, 2)
    f1, d1 = f1 + _BEFORE * d1, d1 + _BEFORE * s1
    d0, d1, s0, s1 = d0 * width, d1 * width, s0 * width**2, s1 * width**2
    rise = f1 - f0
    return torch.stack(
        [
            f0,
            d0,
            s0 / 2,
            10 * rise - 6 * d0 - 4 * d1 - 1.5 * s0 + 0.5 * s1,
            -15 * rise + 8 * d0 + 7 * d1 + 1.5 * s0 - s1,
            6 * rise - 3 * d0 - 3 * d1 - 0.5 * s0 + 0.5 * s1,
        ],
        dim=1,
    )


def choose_knots(functions: Sequence[Function], kinks: Sequence[float], tolerance: float) -> Tensor:
    """Knots in 0..1, unequal, such that quintic Hermite splines on them are as good as asked for.

    An interval is halved until, at places between its ends, the root mean square over channels of the error of each
    function and of its derivative is below `tolerance` times the largest root mean square of the function and of its
    derivative. Kinks are knots, with what lies on either side of them apart.

    Raises:
        InputError: a tolerance that is out of reach.
    """
    if not tolerance > 0:
        raise InputError(f"the tolerance of the splines must be positive, not {tolerance}")
    ends = sorted({0.0, *kinks, 1.0})
    left = torch.cat([torch.linspace(a, b, 9, dtype=torch.float64)[:-1] for a, b in pairwise(ends)])
    right = torch.cat([left[1:], torch.ones(1, dtype=torch.float64)])
    grid = torch.linspace(0.05, 1.0, 400, dtype=torch.float64)
    scales = []
    for function in functions:
        values, slopes = derivatives(function, grid, 1)
        scales.append((float(_rms(values).max()), float(_rms(slopes).max())))
    done: list[Tensor] = []
    while len(left):
        good = right > 0
        unseen = right <= _UNSEEN
        for function, (value_scale, slope_scale) in zip(functions, scales, strict=True):
            asked = good & ~unseen
            value_error, slope_error = _errors(function, left[asked], right[asked])
            good[asked] = (value_error <= tolerance * value_scale) & (slope_error <= tolerance * slope_scale)
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
    coefficients = polynomials(function, left, right)
    powers = torch.arange(coefficients.shape[1], dtype=left.dtype)
    value_error = left.new_zeros(len(left))
    slope_error = left.new_zeros(len(left))
    for t in _PROBES:
        exact, exact_slope = derivatives(function, left + t * (right - left), 1)
        value = torch.einsum("kcw,c->kw", coefficients, t**powers)
        slope = torch.einsum("kcw,c->kw", coefficients[:, 1:], powers[1:] * t ** powers[:-1]) / width
        value_error = torch.maximum(value_error, _rms(value - exact))
        slope_error = torch.maximum(slope_error, _rms(slope - exact_slope))
    return value_error, slope_error
