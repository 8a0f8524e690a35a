"""Training from a config to a model file."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from rich.console import Console

import equipes
from equipes.data import mean_neighbors
from equipes.errors import InputError
from equipes.files import atomic_write, empty_directories_removed
from equipes.models import Potential, build, load
from equipes.training.budgets import budget_of, joint_batch_size
from equipes.training.config import Config
from equipes.training.directory import (
    CONFIG,
    SUMMARY,
    config_of_pretraining,
    earlier_config,
    prepare_directory,
    rank,
    remove_earlier,
)
from equipes.training.display import ProgressDisplay
from equipes.training.familiarity import remember_training
from equipes.training.fine_tuning import Tuning, open_base, tune
from equipes.training.identity import config_hash, refuse_other_training
from equipes.training.inputs import Prepared, check, prepare, read_splits, without_isolated_atoms
from equipes.training.loading import dump_config, with_absolute_files, with_files
from equipes.training.loggers import StepLogger, build_loggers, quiet_lightning
from equipes.training.losses import Loss
from equipes.training.metrics import error_metrics, predict_frames
from equipes.training.module import TrainingModule
from equipes.training.pretraining import carry_on, pretrain, pretrained_model
from equipes.training.records import SafeCheckpointIO
from equipes.training.schedules import Clock
from equipes.training.start import begin_at_mean_energies
from equipes.training.state import Row
from equipes.training.stream import BatchStream
from equipes.training.supervisor import MODEL, Supervisor
from equipes.training.suspicions import suspicions


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with; the same as `OUT/summary.json`.

    Attributes:
        out: the directory.
        validation: the row of metrics.csv of the saved model.
        test: `error_metrics` on the test frames, or None without such.
        steps: optimiser steps made.
        minutes: time used by `train.clock`, over all runs.
        reason: why it ended.
        signal: the signal that stopped it before its end, or 0; `resume=True` then continues.
        process: number of this process; only the first, 0, evaluates on test frames and writes the summary.
        pretraining: what was done before on cheap labels, with its own validation errors; None without.
        fine_tuning: of a training that began with a potential: what that was, its errors on the validation frames, and
            what was forgotten (`Tuning.conclude`).
        warnings: signs that the labels contradict each other, seen on the validation frames (`suspicions`).
    """

    out: Path
    validation: Row
    test: dict[str, Any] | None
    steps: int
    minutes: float
    reason: str
    signal: int = 0
    process: int = 0
    pretraining: dict[str, Any] | None = None
    fine_tuning: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def model(self) -> Path:
        return self.out / MODEL


@empty_directories_removed()
def train(
    config: Config | None,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> TrainingResult:
    """Fit a potential to reference data.

    Writes into `out`: `model.safetensors` (averaged weights at the lowest validation loss), `config.yaml` (with all
    that was chosen), `metrics.csv`, `checkpoints/last.ckpt` and `summary.json`.

    Args:
        config: what to train; None takes `out/config.yaml` of the training to resume.
        out: a directory that is new or empty.
        resume: continue what was begun in `out`; begins where nothing was.
        overwrite: replace what an earlier training left in `out`.
        console: where progress goes; stderr by default.
        callbacks: further Lightning callbacks, run after our own.

    What is refused leaves `out` as it was: an earlier training there is replaced only when the new one begins.

    Raises:
        InputError: anything wrong with config, data or `out`; a loss that is not finite.
    """
    clock = Clock()
    out = Path(out)
    console = console or Console(stderr=True, quiet=rank() != 0)
    checkpoint = prepare_directory(out, resume=resume, overwrite=overwrite)
    if config is None:
        config = earlier_config(out)
    base = open_base(config)
    splits = read_splits(config.data, config.train.seed)
    left_out = None
    if config.pretraining is not None:
        splits, left_out = without_isolated_atoms(splits)
    for sentence in [*check(splits, config.data.checks), *([left_out] if left_out else [])]:
        console.print(f"Warning: {sentence}", style="yellow", highlight=False, soft_wrap=True)
    prepared = prepare(config, splits, None if base is None else base.potential)
    tuning = None if base is None else tune(prepared, base)
    prepared = prepared if tuning is None else tuning.prepared
    clock.kind = config.train.clock
    pretrained = None
    if config.pretraining is not None:
        begun = checkpoint is not None
        with nullcontext() if begun else config_of_pretraining(config, out, resume=resume):
            pretrained = pretrain(
                config, prepared, out, train, resume=resume, begun=begun, clock=clock, console=console
            )
        if pretrained.signal:
            minutes = clock.elapsed() / 60
            return TrainingResult(out, {}, None, 0, minutes, "interrupted", signal=pretrained.signal)
        prepared = replace(prepared, config=pretrained.config)
    config = prepared.config
    fingerprints = {"config": config_hash(config), "data": splits.fingerprint()}
    if base is not None:
        fingerprints["base"] = base.sha256
    if checkpoint is not None:
        refuse_other_training(checkpoint, out / CONFIG, config, fingerprints)
    potential = _build(prepared) if tuning is None else tuning.potential
    if pretrained is not None:
        carry_on(potential, pretrained_model(out))
    elif checkpoint is None and prepared.references.residual_rms_mev_per_atom > 1e3 * prepared.scale:
        begin_at_mean_energies(potential, prepared.train, prepared.scale)
    console.print(_introduction(prepared, potential, tuning), highlight=False, soft_wrap=True)

    settings = config.train
    budget = budget_of(config, len(prepared.train))
    replay = None if tuning is None else tuning.replay_stream()
    stream = BatchStream(prepared.train, joint_batch_size(config), settings.seed, replay)
    loss = Loss(settings.loss, prepared.scale, settings.huber_delta)
    labels = [frame.label for frame in splits.train]
    module = TrainingModule(
        potential,
        settings,
        loss,
        labels,
        fingerprints,
        moves=None if tuning is None else tuning.moves,
        replay_weight=1.0 if tuning is None else tuning.replay_weight,
    )

    if pretrained is not None:
        module.state.seconds = pretrained.seconds

    def describe(row: Row) -> dict[str, Any]:
        return _provenance(prepared, fingerprints, row, tuning)

    supervisor = Supervisor(out, stream, prepared.val, budget, clock, describe)
    with quiet_lightning():
        trainer = _lightning_trainer(config, out, [supervisor, ProgressDisplay(console, budget), *callbacks])
        if rank() == 0:
            if not resume:
                remove_earlier(out)
            dump_config(with_absolute_files(config), out / CONFIG, overwrite=True)
        trainer.fit(
            module, train_dataloaders=stream, ckpt_path=None if checkpoint is None else str(checkpoint)
        )

    state = module.state
    best = next((row for row in state.history if row["step"] == state.best_step), {})
    stopped = bool(supervisor.signal) and not supervisor.reason
    result = TrainingResult(
        out=out,
        validation=best,
        test=None,
        steps=state.step,
        minutes=state.seconds / 60,
        reason="interrupted" if stopped else supervisor.reason,
        signal=supervisor.signal if stopped else 0,
        process=trainer.global_rank,
        pretraining=None if pretrained is None else pretrained.summary,
    )
    if stopped or result.process != 0:
        return result
    return _finish(result, prepared, fingerprints, module, tuning)


def _build(prepared: Prepared) -> Potential:
    model = prepared.config.model
    hyperparameters = model.model_dump(exclude={"architecture", "species", "dtype"})
    return build(
        model.architecture,
        prepared.species,
        hyperparameters,
        dtype=model.dtype or "float32",
        seed=prepared.config.train.seed,
    )


def _lightning_trainer(config: Config, out: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    settings = config.train
    has_gpu = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not has_gpu:
        raise InputError("train.accelerator is gpu, but torch finds no CUDA device; set it to cpu")
    loggers = build_loggers(settings.loggers, out) if rank() == 0 else []
    if loggers:
        callbacks.append(StepLogger(settings.log_every))
    processes = settings.devices * settings.num_nodes
    return pl.Trainer(
        accelerator="gpu" if has_gpu and settings.accelerator != "cpu" else "cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=pl.strategies.DDPStrategy(broadcast_buffers=False) if processes > 1 else "auto",
        plugins=[SafeCheckpointIO()],
        callbacks=callbacks,
        logger=loggers or False,
        max_epochs=1,  # of an endless stream: the supervisor stops it
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        default_root_dir=out,
    )


def _introduction(prepared: Prepared, potential: Potential, tuning: Tuning | None) -> str:
    """The essentials, before anything is computed."""
    config, references = prepared.config, prepared.references
    settings, model = config.train, config.model
    splits = prepared.splits
    counts = f"{len(splits.train)} training, {len(splits.val)} validation"
    if splits.test:
        counts += f", {len(splits.test)} test"
    shifts = getattr(model, "per_type_energy_shifts", None) or getattr(model, "atomic_energies", None)
    if tuning is not None:
        shifts = references.values
    energies = (
        ", ".join(f"{s} {e:.3f}" for s, e in shifts.items())
        if isinstance(shifts, dict)
        else f"{shifts} for all"
    )
    budget = [
        f"{value:g} {unit}"
        for value, unit in (
            (settings.max_minutes, "minutes" if settings.clock == "wall" else "processor minutes"),
            (settings.max_epochs, "epochs"),
            (settings.max_steps, "steps"),
        )
        if value
    ]
    neighbours = getattr(model, "avg_num_neighbors", mean_neighbors(prepared.train.graphs))
    mean = (
        f"{neighbours:.1f} neighbours within"
        if isinstance(neighbours, float)
        else "neighbours as given within"
    )
    lines = [
        f"frames      {counts}",
        f"elements    {_shortened(prepared.species)}; reference energies {energies} eV",
        f"            {references.message}" if references.message else "",
        f"forces      {prepared.scale:.3f} eV/Å rms; {mean} {model.r_max:g} Å",
        *([] if tuning is None else tuning.introduction),
        f"model       {potential.architecture}, {potential.summary()['parameters']:,} parameters, {model.dtype}",
        f"training    {' or '.join(budget)}, batches of {settings.batch_size}, {settings.optimizer}, "
        f"{settings.schedule} schedule",
    ]
    return "\n".join(line for line in lines if line)


def _shortened(species: Sequence[str]) -> str:
    return ", ".join(species) if len(species) <= 20 else f"{len(species)}"


def _provenance(
    prepared: Prepared, fingerprints: dict[str, str], row: Row, tuning: Tuning | None
) -> dict[str, Any]:
    """What a model file says of its origin. No times and no directories, so that equal trainings give equal files."""
    config = with_files(prepared.config, lambda name: Path(name).name)
    return {
        "equipes": equipes.__version__,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
        "config_hash": fingerprints["config"],
        "data": {
            "fingerprint": fingerprints["data"],
            "n_train": len(prepared.splits.train),
            "n_val": len(prepared.splits.val),
            "reference_energies_determined": prepared.references.determined,
        },
        "validation": {key: value for key, value in row.items() if key != "minutes"},
        **({} if tuning is None else {"fine_tuning": tuning.facts}),
    }


def _finish(
    result: TrainingResult,
    prepared: Prepared,
    fingerprints: dict[str, str],
    module: TrainingModule,
    tuning: Tuning | None,
) -> TrainingResult:
    """Evaluate on the test frames, measure what was forgotten, and write the summary."""
    if not result.model.exists():
        raise InputError(
            f"{result.out}: the validation loss was never finite, so there is no model; look at the data "
            "(`equipes data check`) and try a lower train.learning_rate"
        )
    remember_training(result.model, prepared.splits.train, prepared.splits.val, module.device)
    potential = load(result.model)
    # Energies that contradict the forces show here, where no two frames are alike enough for the checks of the data.
    val = [frame for frame in prepared.splits.val if frame.forces is not None]
    warnings = suspicions(val, predict_frames(potential, val, device=module.device), offsets=False)
    test = None
    if prepared.splits.test:
        test = error_metrics(
            prepared.splits.test, predict_frames(potential, prepared.splits.test, device=module.device)
        )
    fine_tuning = None
    if tuning is not None:
        fine_tuning = tuning.conclude(result.model, module.state.history[0])
    result = replace(result, test=test, fine_tuning=fine_tuning, warnings=tuple(warnings))
    summary = {
        "model": MODEL,
        "validation": result.validation,
        "test": test,
        **({} if result.pretraining is None else {"pretraining": result.pretraining}),
        **({} if fine_tuning is None else {"fine_tuning": fine_tuning}),
        "steps": result.steps,
        "minutes": result.minutes,
        "reason": result.reason,
        "warnings": warnings,
        "config_hash": fingerprints["config"],
        "data_fingerprint": fingerprints["data"],
        "versions": {
            "equipes": equipes.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
    }
    with atomic_write(result.out / SUMMARY, overwrite=True) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result
