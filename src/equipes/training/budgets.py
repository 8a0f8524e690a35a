"""What a training may use, and how much of it is for which stage."""

from __future__ import annotations

import math

from equipes.errors import InputError
from equipes.training.config import Config
from equipes.training.schedules import Budget


def step_limit(config: Config, n_train: int) -> int | None:
    """Steps of the whole training, pre-training included."""
    settings = config.train
    limits = []
    if settings.max_steps:
        limits.append(settings.max_steps)
    if settings.max_epochs:
        limits.append(math.ceil(settings.max_epochs * n_train / joint_batch_size(config)))
    return min(limits, default=None)


def budget_of(config: Config, n_train: int) -> Budget:
    steps, minutes = step_limit(config, n_train), config.train.max_minutes
    if steps is not None and config.pretraining is not None:
        steps = max(1, steps - round(config.pretraining.share * steps))
    return Budget(steps, 60 * minutes if minutes else None)


def joint_batch_size(config: Config) -> int:
    settings = config.train
    processes = settings.devices * settings.num_nodes
    batch_size = settings.batch_size or 1
    if batch_size < processes:
        raise InputError(
            f"train.batch_size is {batch_size}, but {processes} processes share each batch; raise it "
            f"to {processes} at least"
        )
    return batch_size
