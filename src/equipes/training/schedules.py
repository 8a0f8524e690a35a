"""What changes while training goes on: the budget that is used up, the learning rate, the weights of the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field


def stepwise(weight: float | Mapping[float, float], progress: float) -> float:
    """The weight at `progress` (0 to 1): itself, or the value of the last step `{start: value}` that has begun.

    Before the first start the first value holds.
    """
    if not isinstance(weight, Mapping):
        return weight
    starts = sorted(weight)
    return weight[max((start for start in starts if start <= progress), default=starts[0])]


def learning_rate_factor(schedule: str, progress: float, *, warmup: float, cooldown: float) -> float:
    """The learning rate as a fraction of its peak at `progress` (0 to 1) of the budget.

    All schedules rise linearly through `warmup`. Then `cosine` falls to zero at the end (Loshchilov and Hutter,
    arXiv:1608.03983), `wsd` stays at the peak and falls linearly to zero through the last `cooldown` (Hu et al.,
    arXiv:2404.06395), `constant` and `plateau` stay (the latter is lowered by validations, elsewhere).
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
    if schedule == "wsd":
        return min(1.0, max(0.0, 1 - progress) / cooldown)
    return 1.0


_SECONDS = {"wall": time.monotonic, "processor": time.process_time}


def _now() -> dict[str, float]:
    return {kind: seconds() for kind, seconds in _SECONDS.items()}


@dataclass
class Clock:
    """Seconds of training so far, over all the runs that a training was resumed in.

    Attributes:
        kind: `wall`, or `processor`: seconds that all threads of this process computed, which other work on the
            machine does not use up.
        earlier: seconds of the runs before this one.
    """

    kind: str = "wall"
    earlier: float = 0.0
    started: dict[str, float] = field(default_factory=_now)

    def elapsed(self) -> float:
        return self.earlier + self.now() - self.started[self.kind]

    def now(self) -> float:
        """Seconds since some moment in the past."""
        return _SECONDS[self.kind]()


@dataclass(frozen=True)
class Budget:
    """What a training may use: steps, seconds, or both (whichever is used up first)."""

    steps: int | None
    seconds: float | None

    def progress(self, steps: int, seconds: float, *, before: float = 0.0, after: float = 0.0) -> float:
        """The fraction used by training, 0 to 1.

        Of the time, `before` seconds went by before the first step and `after` seconds are kept for what follows the
        last one, so that schedules begin and end with the steps.
        """
        by_steps = steps / self.steps if self.steps else 0.0
        by_time = 0.0
        if self.seconds:
            by_time = max(seconds - before, 0.0) / max(self.seconds - before - after, 1e-9)
        return min(1.0, max(by_steps, by_time))

    def is_short(self, seconds: float, after: float) -> bool:
        """Whether a break of `after` seconds now would leave too little for the one that is kept for the end."""
        return self.seconds is not None and seconds + 2 * after > self.seconds
