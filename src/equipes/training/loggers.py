"""TensorBoard and Weights & Biases, for those who ask for them (metrics.csv is always written)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from equipes.errors import InputError
from equipes.training.module import TrainingModule


def build_loggers(names: Sequence[str], out: Path) -> list[Logger]:
    """The loggers of these names, writing below `out`.

    Raises:
        InputError: the package of a logger is not installed.
    """
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if find_spec(name) is None:
            raise InputError(
                f"train.loggers: the package {name} is not installed; run `pip install {name}`, or leave it out"
            )
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
        else:
            from lightning.pytorch.loggers import WandbLogger

            loggers.append(WandbLogger(name=out.name, project="equipes", save_dir=out))
    return loggers


class StepLogger(pl.Callback):
    """Loss and learning rate of every n-th step to the loggers."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        step = module.state.step
        if step % self.every == 0:
            values = {"step_loss": float(module.last_loss), "lr": module.learning_rate}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices and loaders, which are not about anything the user did."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*dataloader.*|.*GPU available but not used.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
