"""Pre-training: many cheap labels before the few expensive ones.

Geometries around one structure, labelled with GFN-xTB, teach a model what bonds, angles and repulsion are; the frames
of the user then only have to correct it (Gardner, Baker & Deringer, Mach. Learn.: Sci. Technol. 5, 015003, 2024). It is
a training of its own in `OUT/pretraining`, of the same architecture, whose weights the training proper begins with. It
never sees a validation or test frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from equipes.data import Frame, elements, fit_reference_energies
from equipes.data.statistics import composition_counts
from equipes.errors import InputError
from equipes.files import atomic_write, new_directory
from equipes.models import Potential, load
from equipes.training.budgets import step_limit
from equipes.training.cheap_labels import cheap_frames
from equipes.training.config import Config, DataConfig
from equipes.training.inputs import Prepared
from equipes.training.loading import load_config
from equipes.training.metrics import predict_frames
from equipes.training.schedules import Clock

FOLDER, RECORD = "pretraining", "pretraining.json"

_LEAST_TRAINING = 0.25  # of the share of time, however long sampling takes
# The parameters and config keys that hold energies of isolated atoms.
_SHIFTS = ("model.shifts", "model.scale_shift.shifts", "model.atomic_energies")
_SHIFT_KEYS = ("per_type_energy_shifts", "atomic_energies")


@dataclass(frozen=True)
class Pretrained:
    """What the training proper begins with.

    Attributes:
        config: of the training proper, with nothing left to choose.
        seconds: that the pre-training took in earlier runs.
        summary: for the record: frames, what was discarded, errors on cheap validation frames, steps and minutes.
        signal: the signal that stopped the pre-training, or 0.
    """

    config: Config
    seconds: float
    summary: dict[str, Any]
    signal: int = 0


def pretrain(
    given: Config,
    prepared: Prepared,
    out: Path,
    train: Callable[..., Any],
    *,
    resume: bool,
    begun: bool,
    clock: Clock,
    console: Console,
) -> Pretrained:
    """Sample, label, and train on it in `out/pretraining`; what is done there already is not done again.

    Args:
        given: the user's config, in which numbers that the data decides are still open.
        prepared: the user's data, and the config that it decided.
        out: directory of the training.
        train: `equipes.training.train`.
        resume: continue what is there.
        begun: the training proper has begun, so the pre-training is finished.
        clock: of the training, started.
        console: where progress goes.

    Raises:
        InputError: several processes, or anything that sampling and training refuse.
    """
    settings, folder = given.pretraining, out / FOLDER
    assert settings is not None
    if given.train.devices * given.train.num_nodes > 1:
        raise InputError("pre-training runs in one process; set train.devices=1, or leave pre-training out")
    if not begun:
        new_directory(folder, overwrite=True)
        console.print(f"Pre-training on {settings.method} labels", style="bold", highlight=False)
        cheap = cheap_frames(settings, prepared.splits.train, folder, seed=given.train.seed, console=console)
        console.print(cheap.sentence(), highlight=False, soft_wrap=True)
        steps = step_limit(prepared.config, len(prepared.train))
        minutes = given.train.max_minutes or prepared.config.train.max_minutes
        share = None if minutes is None else settings.share * minutes
        if share is not None:  # sampling takes of it, but not all
            share = max(share - clock.elapsed() / 60, _LEAST_TRAINING * share)
        config = pretraining_config(
            given,
            prepared.config,
            cheap.path,
            steps=None if steps is None else max(1, round(settings.share * steps)),
            minutes=share,
        )
        before = clock.elapsed()
        result = train(config, folder, resume=resume, overwrite=not resume, console=console)
        earlier = max(0.0, 60 * result.minutes - (clock.elapsed() - before))
        if result.signal:
            return Pretrained(prepared.config, earlier, {}, result.signal)
        record = {
            "structures": list(cheap.formulas),
            "method": settings.method,
            "frames": cheap.count,
            "discarded": cheap.discarded,
            "validation": result.validation,
            "steps": result.steps,
            "minutes": result.minutes,
        }
        with atomic_write(folder / RECORD, overwrite=True) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"\nFine-tuning on {len(prepared.train)} frames", style="bold", highlight=False)
    else:
        earlier = 0.0  # the state of the training proper counts it
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    resolved = load_config(folder / "config.yaml")
    config = refitted(pretrained_model(out), resolved, given, prepared)
    return Pretrained(config, earlier, record)


def pretraining_config(
    given: Config, prepared: Config, frames: Path, *, steps: int | None, minutes: float | None
) -> Config:
    """The config of the pre-training: the user's model, the cheap frames, and its share of the budget.

    Args:
        given: the user's, in which numbers that the data decides are still open.
        prepared: the same with the cutoff and the elements of the user's data.
        frames: the cheap frames.
        steps, minutes: of the pre-training.
    """
    model: dict[str, Any] = {"r_max": prepared.model.r_max, "species": prepared.model.species}
    model |= {key: None for key in _SHIFT_KEYS if key in type(given.model).model_fields}
    budget = {"max_steps": steps, "max_minutes": minutes, "max_epochs": None}
    open_again = {
        "learning_rate": None,
        "validate_every": None,
        "early_stopping": None,
        "stress_weight": None,
    }
    budget["batch_size"] = prepared.train.batch_size
    return Config(
        data=DataConfig(train=str(frames), checks="off"),
        model=given.model.model_copy(update=model),
        train=given.train.model_copy(update={**budget, **open_again}),
    )


def refitted(pretrained: Potential, resolved: Config, given: Config, prepared: Prepared) -> Config:
    """The config of the training proper: the numbers of the pre-trained model, reference energies of the user's data.

    The reference energies are fitted to what the pre-trained model leaves of the energies, so that it begins with the
    right mean. Those that the user gives stay.

    Args:
        pretrained: the model.
        resolved: the config it was trained with.
        given: the user's.
        prepared: the user's data, and the config with nothing left to choose.
    """
    key = next(key for key in _SHIFT_KEYS if key in type(given.model).model_fields)
    shifts: Any = getattr(given.model, key)
    if shifts is None:
        shifts = given.data.reference_energies
    if shifts is None:
        shifts = _references(pretrained, getattr(resolved.model, key), prepared.splits.train)
        shifts = {symbol: shifts.get(symbol, 0.0) for symbol in resolved.model.species or ()}
    model = resolved.model.model_copy(update={key: shifts})
    return prepared.config.model_copy(update={"model": model})


def _references(pretrained: Potential, own: Any, train: Sequence[Frame]) -> dict[str, float]:
    """Energies of isolated atoms, eV, that go with the bonds of the pre-trained model, whose own are `own`."""
    labelled = [frame for frame in train if frame.energy is not None]
    if not labelled:
        return {}
    species = elements(labelled)
    atoms = composition_counts(labelled, species) @ _as_numbers(own, species)
    predictions = predict_frames(pretrained, labelled)
    rest = [
        replace(frame, energy=float(frame.energy or 0.0) - (prediction.energy - reference))
        for frame, prediction, reference in zip(labelled, predictions, atoms, strict=True)
    ]
    return fit_reference_energies(rest).values


def carry_on(potential: Potential, pretrained: Potential) -> None:
    """Give `potential` the weights of the pre-trained one; only its reference energies stay its own."""
    weights = {name: value for name, value in pretrained.state_dict().items() if name not in _SHIFTS}
    missing, unexpected = potential.load_state_dict(weights, strict=False)
    left = [name for name in missing if name not in _SHIFTS]
    if left or unexpected:
        raise InputError(
            f"the pre-trained model does not fit the one to train ({', '.join([*left, *unexpected])}); start "
            "again with --overwrite"
        )


def pretrained_model(out: Path) -> Potential:
    """The model that pre-training left in `out`."""
    return load(out / FOLDER / "model.safetensors")


def _as_numbers(shifts: Any, species: Sequence[str]) -> np.ndarray:
    return np.array(
        [shifts[symbol] if isinstance(shifts, dict) else shifts for symbol in species], dtype=float
    )
