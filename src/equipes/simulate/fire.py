"""FIRE, the fast inertial relaxation engine, as a function from state to state, so that it can be kept and continued.

E. Bitzek, P. Koskinen, F. Gähler, M. Moseler, P. Gumbsch, Phys. Rev. Lett. 97, 170201 (2006).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_TIMESTEP, _LONGEST_TIMESTEP = 0.1, 1.0  # in units of (Å² u / eV)^(1/2), with masses of 1 u
_MIXING, _LESS_MIXING = 0.1, 0.99
_PATIENCE, _FASTER, _SLOWER = 5, 1.1, 0.5
_FARTHEST = 0.1  # Å, that an atom moves in a step


@dataclass(frozen=True)
class FireState:
    """What FIRE carries from one step to the next: velocities `[..., 3]`, time step, mixing, steps downhill."""

    velocity: np.ndarray
    timestep: float = _TIMESTEP
    mixing: float = _MIXING
    downhill: int = 0


def fire_step(state: FireState, forces: np.ndarray) -> tuple[np.ndarray, FireState]:
    """The displacement (Å, of the shape of `forces` in eV/Å) of one step, and the state after it.

    >>> position, state = np.array([[1.0, 0.0, 0.0]]), FireState(np.zeros((1, 3)))
    >>> for _ in range(200):
    ...     move, state = fire_step(state, -3.0 * position)
    ...     position = position + move
    >>> bool(abs(position).max() < 1e-6)
    True
    """
    velocity = state.velocity
    power = float(np.vdot(forces, velocity))
    if power > 0:
        direction = forces / np.linalg.norm(forces)
        velocity = (1 - state.mixing) * velocity + state.mixing * np.linalg.norm(velocity) * direction
        if state.downhill > _PATIENCE:
            longer = min(state.timestep * _FASTER, _LONGEST_TIMESTEP)
            state = replace(state, timestep=longer, mixing=state.mixing * _LESS_MIXING)
        state = replace(state, downhill=state.downhill + 1)
    elif velocity.any():
        velocity = np.zeros_like(velocity)
        state = replace(state, timestep=state.timestep * _SLOWER, mixing=_MIXING, downhill=0)
    velocity = velocity + state.timestep * forces
    move = state.timestep * velocity
    farthest = float(np.linalg.norm(move, axis=-1).max())
    if farthest > _FARTHEST:
        move = move * (_FARTHEST / farthest)
    return move, replace(state, velocity=velocity)
