"""The numbers of a training in progress: all that a checkpoint holds beside weights and optimiser."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

Row = dict[str, float | None]


@dataclass
class TrainingState:
    """Plain numbers only, so that a checkpoint can be read without running code."""

    step: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    """Fraction of the budget, as all processes agreed on it after the last step."""
    seconds_before: float = 0.0
    """Of `seconds`, those before the first step: reading the data and the first validation."""
    seconds_after: float = 0.0
    """Seconds that the last validation is expected to take."""
    loss_sum: float = 0.0
    loss_steps: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    since_best: int = 0
    since_plateau: int = 0
    plateau_factor: float = 1.0
    history: list[Row] = field(default_factory=list)
    """The rows of metrics.csv so far: the file is written anew from here when training resumes."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingState:
        return cls(**{f.name: values[f.name] for f in fields(cls)})
