"""What a person sees while training runs: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from equipes.simulate.results import Progress
from equipes.training.module import TrainingModule
from equipes.training.schedules import Budget
from equipes.training.state import Row

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.25

# column of metrics.csv without `val_`, name, unit
SHOWN = (
    ("energy_mae_mev_per_atom", "energy", "meV/atom"),
    ("forces_mae_mev_per_ang", "forces", "meV/Å"),
    ("stress_mae_mev_per_ang3", "stress", "meV/Å³"),
)


def errors_in_words(row: Row, prefix: str = "val_") -> str:
    """`energy 1.23 meV/atom  forces 20.1 meV/Å`, for what is labelled; `prefix` is of the names in the row."""
    parts = []
    for column, name, unit in SHOWN:
        value = row.get(prefix + column)
        if value is not None:
            parts.append(f"{name} {value:.3g} {unit}" if value < 1000 else f"{name} {value:.0f} {unit}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def sampling_progress(console: Console) -> Iterator[Progress]:
    """Tells how sampling gets on: a bar on a terminal, now and then a plain line elsewhere."""
    last = time.monotonic()
    bar = RichProgress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip

    with bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                console.print(f"{done} of {total} geometries", highlight=False)

        yield show


class ProgressDisplay(pl.Callback):
    """Validation errors (mean absolute, averaged weights), steps and time left."""

    def __init__(self, console: Console, budget: Budget) -> None:
        self.console = console
        self.budget = budget
        self._live: Live | None = None
        self._shown_rows = 0
        self._last = 0.0
        self._began = (0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        self._began = (module.state.step, time.monotonic())
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._show(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        now = time.monotonic()
        wait = _SECONDS_BETWEEN_UPDATES if self._live else _SECONDS_BETWEEN_LINES
        if now - self._last >= wait and (self._live or len(module.state.history) > self._shown_rows):
            self._show(module)

    def on_train_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        self._stop()
        if self._shown_rows < len(module.state.history):
            self._show(module)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _show(self, module: TrainingModule) -> None:
        self._last = time.monotonic()
        self._shown_rows = len(module.state.history)
        if self._live:
            self._live.update(Text(self._line(module)), refresh=True)
        else:
            self.console.print(self._line(module), highlight=False, soft_wrap=True)

    def _line(self, module: TrainingModule) -> str:
        state = module.state
        row = state.history[-1] if state.history else {}
        left = self._seconds_left(module)
        return (
            f"{100 * state.progress:3.0f} %  step {state.step}  {errors_in_words(row)}  "
            f"{duration(state.seconds)} used" + (f", {duration(left)} left" if left is not None else "")
        )

    def _seconds_left(self, module: TrainingModule) -> float | None:
        state = module.state
        left = []
        if self.budget.seconds:
            left.append(max(0.0, self.budget.seconds - state.seconds))
        first, began = self._began
        if self.budget.steps and state.step > first:
            left.append((self.budget.steps - state.step) * (time.monotonic() - began) / (state.step - first))
        return min(left, default=None)
