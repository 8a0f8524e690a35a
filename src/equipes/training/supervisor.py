"""What happens between the steps: validation, the best model, metrics.csv, checkpoints, and when to stop.

All of it happens at the end of a step and in one order: validate, write the row, write the model, write the checkpoint.
A run that was killed anywhere repeats what came after its last checkpoint, with the same numbers.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from equipes.data import GraphDataset
from equipes.training.module import TrainingModule
from equipes.training.records import MetricsFile
from equipes.training.schedules import Budget, Clock
from equipes.training.state import Row
from equipes.training.stream import BatchStream
from equipes.training.validation import METRICS, validate, validation_batches

COLUMNS = ("step", "epoch", "minutes", "lr", "train_loss", "val_loss", *METRICS)
MODEL, CHECKPOINT, METRICS_FILE = "model.safetensors", "checkpoints/last.ckpt", "metrics.csv"
_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Supervisor(pl.Callback):
    """Validates, saves, and stops the training.

    Attributes:
        signal: number of the signal that stopped it, or 0.
        reason: why it ended, in words.
    """

    def __init__(
        self,
        out: Path,
        stream: BatchStream,
        val: GraphDataset,
        budget: Budget,
        clock: Clock,
        describe: Callable[[Row], dict[str, Any]],
    ) -> None:
        """`describe` makes the provenance of a model from its row of metrics."""
        self.out = out
        self.stream = stream
        self.val = val
        self.budget = budget
        self.clock = clock
        self.describe = describe
        self.metrics = MetricsFile(out / METRICS_FILE, COLUMNS)
        self.signal = 0
        self.reason = ""
        self._short = False
        self._last_checkpoint = time.monotonic()
        self._previous_handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        # The checkpoint has been loaded and the stream not yet been iterated over.
        self.clock.earlier = module.state.seconds
        self.stream.rank, self.stream.world = trainer.global_rank, trainer.world_size
        self.stream.step = module.state.step

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        size = 4 * self.stream.batch_size
        batches = validation_batches(self.val, size, trainer.global_rank, trainer.world_size)
        self.batches = [
            batch.to(module.device) if module.device.type != "cpu" else batch for batch in batches
        ]
        self._install_handlers()
        if trainer.is_global_zero:
            self.metrics.restore(module.state.history)
        if module.state.step == 0:
            self._validate(trainer, module)
            module.state.seconds_before = self.clock.elapsed()
        self._last_checkpoint = time.monotonic()
        self._agree(trainer, module)
        # However short the time, one step is made.
        trainer.should_stop = module.state.step > 0 and self._finished(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        save = self._agree(trainer, module)
        every = module.settings.validate_every or 1
        # So near the end only the last validation fits into the budget.
        due = module.state.step % every == 0 and not self._short
        if self._finished(module) or due:
            self._validate(trainer, module)
            save = True
        if save or self.signal:
            self._save(trainer, module)
        trainer.should_stop = self._finished(module) or bool(self.signal)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _agree(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        """Note the time and the budget used; whether a checkpoint is due. All processes come to the same answer."""
        state = module.state
        state.seconds = self.clock.elapsed()
        state.progress = self.budget.progress(
            state.step, state.seconds, before=state.seconds_before, after=state.seconds_after
        )
        since = time.monotonic() - self._last_checkpoint
        due = since >= 60 * module.settings.checkpoint_every_minutes
        self._short = self.budget.is_short(state.seconds, state.seconds_after)
        if trainer.world_size > 1:
            facts = torch.tensor(
                [state.progress, float(self.signal), float(due), float(self._short)], dtype=torch.float64
            )
            facts = facts.to(module.device)
            torch.distributed.all_reduce(facts, op=torch.distributed.ReduceOp.MAX)
            state.progress, self.signal = float(facts[0]), int(facts[1])
            due, self._short = bool(facts[2]), bool(facts[3])
        return due

    def _finished(self, module: TrainingModule) -> bool:
        patience = module.settings.early_stopping
        if module.state.progress >= 1:
            self.reason = "the budget was used"
        elif patience is not None and module.state.since_best >= patience:
            self.reason = f"no improvement in {patience} validations"
        return bool(self.reason)

    def _validate(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Measure the averaged weights, write the row, and keep the weights when they are the best so far."""
        began = self.clock.now()
        module.check_finite()
        state, settings = module.state, module.settings
        train_loss = module.collect_loss() / state.loss_steps if state.loss_steps else None
        module.restart_loss()
        metrics = validate(
            module.average,
            self.batches,
            module.loss,
            module.weights(1.0),
            stress=bool(settings.stress_weight),
        )
        row: Row = {
            "step": state.step,
            "epoch": self.stream.passes(state.step),
            "minutes": state.seconds / 60,
            "lr": module.learning_rate if state.step else None,
            "train_loss": train_loss,
            **metrics,
        }
        state.history.append(row)
        if trainer.is_global_zero:
            self.metrics.append(row)
        loss = metrics["val_loss"]
        if loss is not None and math.isfinite(loss) and loss < state.best_loss:
            state.best_loss, state.best_step = loss, state.step
            state.since_best = state.since_plateau = 0
            if trainer.is_global_zero:
                module.average.provenance = self.describe(row)
                module.average.save(self.out / MODEL, overwrite=True)
        else:
            state.since_best += 1
            state.since_plateau += 1
        if settings.schedule == "plateau" and state.since_plateau > settings.plateau_patience:
            state.plateau_factor *= settings.plateau_factor
            state.since_plateau = 0
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if v is not None}, step=state.step)
        # The first validation is slower than the others, so the newest counts.
        state.seconds_after = 1.2 * (self.clock.now() - began) + 0.2

    def _save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        trainer.save_checkpoint(self.out / CHECKPOINT)
        self._last_checkpoint = time.monotonic()

    def _install_handlers(self) -> None:
        """Stop at the end of a step on the first interrupt; let a second one through."""
        if threading.current_thread() is not threading.main_thread():
            return

        def note(number: int, _: FrameType | None) -> None:
            if self.signal:
                self._restore_handlers()
                raise KeyboardInterrupt
            self.signal = number

        self._previous_handlers = {number: signal.signal(number, note) for number in _HANDLED}

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
