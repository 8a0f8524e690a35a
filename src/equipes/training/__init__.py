"""Training: the config, the losses, and the loop that fits a potential to reference data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The config is light; everything else imports torch and Lightning, and only when it is asked for.
_HOMES = {
    "Config": "equipes.training.config",
    "load_config": "equipes.training.loading",
    "schema": "equipes.training.loading",
    "train": "equipes.training.trainer",
    "TrainingResult": "equipes.training.trainer",
}

__all__ = ["Config", "TrainingResult", "load_config", "schema", "train"]

if TYPE_CHECKING:
    from equipes.training.config import Config
    from equipes.training.loading import load_config, schema
    from equipes.training.trainer import TrainingResult, train


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'equipes.training' has no attribute {name!r}")
