"""Whether a training that resumes is the one that was begun: what decides its weights, as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipes.errors import InputError
from equipes.training.config import Config
from equipes.training.loading import load_config, with_files
from equipes.training.module import STATE_KEY
from equipes.training.records import SafeCheckpointIO

# What may change when a training resumes without it becoming another training.
_FREE = {
    "max_minutes", "max_epochs", "max_steps", "clock", "early_stopping", "checkpoint_every_minutes", "accelerator",
    "record_steps", "devices", "num_nodes", "loggers", "log_every",
}  # fmt: skip


def refuse_other_training(
    checkpoint: Path, begun: Path, config: Config, fingerprints: dict[str, str]
) -> None:
    """A checkpoint continues only with the config and the data that it was made with.

    Args:
        checkpoint: of the training to resume.
        begun: the config file that it was begun with.
        config: the one to resume it with.
        fingerprints: of config and data, and of the file of a base.

    Raises:
        InputError: they are others.
    """
    out = begun.parent
    stored = SafeCheckpointIO().load_checkpoint(checkpoint).get(STATE_KEY)
    if not isinstance(stored, dict) or "fingerprints" not in stored:
        raise InputError(f"{checkpoint}: not a checkpoint of equipes; start again with --overwrite")
    if stored["fingerprints"]["data"] != fingerprints["data"]:
        raise InputError(
            f"{out} was trained on other frames; give the same data, or start again with --overwrite"
        )
    if stored["fingerprints"].get("base") != fingerprints.get("base"):
        raise InputError(
            f"{out} was begun with another fine_tuning.base; give the same file, or start again with --overwrite"
        )
    if stored["fingerprints"]["config"] != fingerprints["config"]:
        changed = ", ".join(_differences(load_config(begun), config)) or "the config"
        raise InputError(
            f"{out} was begun with another value of {changed}; a resumed training may only change its budget, devices "
            "and loggers: give the same values, or start again with --overwrite"
        )


def _differences(old: Config, new: Config) -> Iterator[str]:
    before, after = _identity(old), _identity(new)
    for section in dict.fromkeys((*before, *after)):
        earlier = before.get(section, {})
        for key, value in after.get(section, earlier).items():
            if section not in after or earlier.get(key) != value:
                yield f"{section}.{key}"


def _identity(config: Config) -> dict[str, Any]:
    """The part of a config that decides the weights: neither where files lie nor how long and where it runs."""
    tree = with_files(config, lambda name: Path(name).name).model_dump(mode="json")
    tree["train"] = {key: value for key, value in tree["train"].items() if key not in _FREE}
    del tree["data"]["checks"]
    return {name: section for name, section in tree.items() if section is not None}


def config_hash(config: Config) -> str:
    """Of all that decides the weights."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()
