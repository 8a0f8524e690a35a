"""Files that a training keeps: metrics.csv and checkpoints."""

from __future__ import annotations

import csv
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from equipes.errors import InputError
from equipes.files import atomic_write, writing_to
from equipes.training.state import Row


class MetricsFile:
    """One row of numbers at a time in a CSV file that is complete after each."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns

    def restore(self, rows: Sequence[Row]) -> None:
        """Begin the file anew with these rows: what a killed run wrote after its last checkpoint will come again."""
        with atomic_write(self.path, overwrite=True) as temporary, open(temporary, "w", newline="") as file:
            self._write(file, [dict(zip(self.columns, self.columns, strict=True)), *rows])

    def append(self, row: Row) -> None:
        with writing_to(self.path), open(self.path, "a", newline="") as file:
            self._write(file, [row])

    def _write(self, file: Any, rows: Sequence[Any]) -> None:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow(["" if row[name] is None else row[name] for name in self.columns])


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, moved into place when complete, and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, overwrite=True) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path}: not a readable checkpoint ({reason}); it is damaged or not one of equipes, start again with "
                "--overwrite"
            ) from None
        if not isinstance(checkpoint, dict):
            raise InputError(f"{path}: not a checkpoint of equipes; start again with --overwrite")
        return checkpoint


def remove_leftovers(out: Path) -> None:
    """Delete the temporary files of a run that was killed while it wrote."""
    for pattern in (".model-*", ".metrics-*", ".config-*", ".summary-*", "checkpoints/.last-*"):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)
