"""Training and testing one case; what was done before is not done again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import equipes
from equipes.benchmark.cases import Case, molecule_frames
from equipes.errors import InputError
from equipes.files import atomic_write
from equipes.kernels import kernel_name
from equipes.models import load
from equipes.training.config import Config
from equipes.training.loading import load_config, validated
from equipes.training.metrics import error_metrics, predict_frames
from equipes.training.trainer import train

RESULT = "result.json"
SCRATCH, PRETRAINED = "from scratch", "pre-trained"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What all trainings of a benchmark have in common.

    Attributes:
        minutes: budget of each training, validation included.
        seed: of weights and batches.
        overrides: settings `key=value` as for `equipes train`, by architecture; "" is for all.
    """

    minutes: float
    seed: int = 0
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        benchmark, system, n_train, architecture, test: what was trained and where it was tested.
        errors: mean absolute and root mean square errors: `energy_mae_mev`, `energy_mae_mev_per_atom`,
            `forces_mae_mev_per_ang`, and the same with `rmse`; None where the test has no such label.
        hours: time of the training, by the clock of its budget.
        steps, parameters: optimiser steps made, numbers learnt.
        conditions: versions, threads, processor, and the clock of the budget.
        start: "from scratch", or "pre-trained" on cheap labels within the same budget.
    """

    benchmark: str
    system: str
    n_train: int
    architecture: str
    test: str
    errors: dict[str, float | None]
    hours: float
    steps: int
    parameters: int
    conditions: dict[str, Any]
    start: str = SCRATCH

    @property
    def model(self) -> str:
        """The architecture, and how it began where that is not from random weights."""
        return self.architecture if self.start == SCRATCH else f"{self.architecture}, {self.start}"


_ERRORS = tuple(
    f"{quantity}_{kind}_{unit}"
    for quantity, unit in (("energy", "mev"), ("energy", "mev_per_atom"), ("forces", "mev_per_ang"))
    for kind in ("mae", "rmse")
)


class Interrupted(Exception):  # noqa: N818 - as KeyboardInterrupt, it is no error
    """A signal stopped a training before its end; the same command goes on with it."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def run(
    case: Case, architecture: str, settings: BenchmarkSettings, out: Path, *, start: str = SCRATCH
) -> list[Row]:
    """Train, continue or skip one case, and test it; one row for each test set.

    Everything goes to `out/<system>-<frames>-<architecture>`, with `-pretrained` behind it where it starts so; a
    `result.json` there means that it is done.

    Raises:
        InputError: the directory has a training with other settings, or anything that `train` refuses.
        Interrupted: a signal ended the training.
    """
    suffix = "-pretrained" if start == PRETRAINED else ""
    folder = out / f"{case.system}-{case.n_train}-{architecture}{suffix}"
    config = _config(case, architecture, settings, pretrain=start == PRETRAINED)
    asked = config.model_dump(mode="json")
    if (folder / RESULT).exists():
        return _finished(folder / RESULT, asked)
    result = train(config, folder, resume=folder.exists())
    if result.signal:
        raise Interrupted(result.signal)
    potential = load(result.model)
    common: dict[str, Any] = {
        "benchmark": case.benchmark,
        "system": case.system,
        "n_train": case.n_train,
        "architecture": architecture,
        "start": start,
        "hours": result.minutes / 60,
        "steps": result.steps,
        "parameters": sum(p.numel() for p in potential.parameters() if p.requires_grad),
        "conditions": {**_conditions(), "clock": config.train.clock},
    }
    rows = []
    for test in case.tests:
        frames = molecule_frames(test, case.units)
        metrics = error_metrics(frames, predict_frames(potential, frames))
        rows.append(Row(**common, test=test.name, errors={name: metrics[name] for name in _ERRORS}))
    content = {"asked": asked, "rows": [asdict(row) for row in rows]}
    with atomic_write(folder / RESULT, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return rows


def _config(case: Case, architecture: str, settings: BenchmarkSettings, *, pretrain: bool) -> Config:
    """The config of `equipes train`, defaults but for the data, the budget and what the user sets."""
    overrides = [*settings.overrides.get("", ()), *settings.overrides.get(architecture, ())]
    if pretrain:
        overrides.insert(0, "pretraining={}")
    else:
        overrides = [override for override in overrides if not override.startswith("pretraining.")]
    # The overrides may name any key of the architecture; only the data is not theirs to change.
    base = [
        "data.train=unused",
        f"model.architecture={architecture}",
        f"train.seed={settings.seed}",
        f"train.max_minutes={settings.minutes}",
    ]
    tree = load_config(None, [*base, *overrides]).model_dump(mode="json")
    tree["data"] |= case.data
    return validated(tree, f"benchmark {case.benchmark}")


def _finished(path: Path, asked: dict[str, Any]) -> list[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, rows = content["asked"], [Row(**row) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a result of this benchmark ({error}); remove it, or give another --out"
        ) from error
    changed = [
        f"{section}.{key}"
        for section in ("data", "model", "train", "pretraining")
        for key in asked[section] or {}
        if key != "train" and (before.get(section) or {}).get(key) != asked[section][key]
    ]
    if changed:
        raise InputError(
            f"{path} is of a training with another {', '.join(changed)}; give another --out, or remove {path.parent}"
        )
    return rows


def _conditions() -> dict[str, Any]:
    return {
        "equipes": equipes.__version__,
        "torch": torch.__version__,
        "kernel": kernel_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": f"{platform.system()} {platform.machine()}",
    }
