"""The directory of a training: whether it may be used, and what is in it before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl

from equipes.errors import InputError
from equipes.files import new_directory
from equipes.training.config import Config
from equipes.training.loading import dump_config, load_config, with_absolute_files
from equipes.training.pretraining import FOLDER
from equipes.training.records import remove_leftovers
from equipes.training.supervisor import CHECKPOINT, MODEL

CONFIG, SUMMARY = "config.yaml", "summary.json"


def rank() -> int:
    """The number of this process among all that train, also before Lightning has connected them."""
    return int(getattr(pl.utilities.rank_zero.rank_zero_only, "rank", 0))


def prepare_directory(out: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """Make `out` ready; returns the checkpoint to resume from, if there is one."""
    if resume and overwrite:
        raise InputError("--resume continues a training and --overwrite replaces it; give one of them")
    checkpoint = out / CHECKPOINT
    if rank() != 0:  # the first process does it
        return checkpoint if resume and checkpoint.exists() else None
    if not resume and not overwrite and checkpoint.exists():
        raise InputError(
            f"{out} has a training; give --resume to continue it, --overwrite to replace it, or another name"
        )
    new_directory(out, overwrite=resume or overwrite)
    remove_leftovers(out)
    return checkpoint if resume and checkpoint.exists() else None


def remove_earlier(out: Path) -> None:
    """What an earlier training left, of which nothing may be taken for the new one's."""
    for name in (CHECKPOINT, MODEL, SUMMARY, "metrics.csv"):
        (out / name).unlink(missing_ok=True)


@contextmanager
def config_of_pretraining(config: Config, out: Path, *, resume: bool) -> Iterator[None]:
    """What a run that is stopped in the pre-training is resumed from; removed if that is refused before it begins."""
    fresh = not (out / CONFIG).exists()
    if not resume:
        remove_earlier(out)
    dump_config(with_absolute_files(config), out / CONFIG, overwrite=True)
    try:
        yield
    except InputError:
        if fresh and not any((out / FOLDER).glob("*")):
            (out / CONFIG).unlink()
        raise


def earlier_config(out: Path) -> Config:
    """What the training in `out` was begun with."""
    path = out / CONFIG
    if not path.exists():
        raise InputError(f"{out} has no {CONFIG} to resume from; give the config file or --data")
    return load_config(path)
