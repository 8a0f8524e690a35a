"""The one schema of a training: three flat sections, `data`, `model` and `train`.

Fields that are `None` are chosen from the data when training starts (`equipes.training.defaults`); what was chosen is
written to `OUT/config.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from equipes.training.architectures import FINE_TUNED, AnyModelConfig, NequIPConfig, Section

Fraction = Annotated[float, Field(gt=0, lt=1)]
Size = int | float | list[int] | str
"""Frames of a split: their number, their fraction, their numbers (from 0), or a file that lists them."""

Start = Annotated[float, Field(ge=0, lt=1)]
Weight = NonNegativeFloat | Annotated[dict[Start, NonNegativeFloat], Field(min_length=1)]
"""A constant, or steps: `{0: 1, 0.75: 10}` means 1 at first, and 10 after three quarters of the budget."""


class KeysConfig(Section):
    """Names under which the labels stand in the files; `None` looks for the usual ones."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    config_type: str | None = None


class UnitsConfig(Section):
    """Units of positions and labels: for `.npz` files, which carry none, and others that are not in eV and Å."""

    energy: str = Field(default="eV", description="eV, meV, kcal/mol, kJ/mol, Ha or Ry")
    length: str = Field(default="Ang", description="Ang, Bohr or nm")
    forces: str | None = Field(
        default=None, description="where not energy/length: such as Ha/Bohr; a leading minus for gradients"
    )
    stress: str | None = Field(
        default=None,
        description="where not energy/length^3: GPa, kbar, …; a leading minus where compression is positive",
    )


class DataConfig(Section):
    """Where the frames come from and how they are split."""

    train: str | list[str] = Field(
        description="file or files; what n_val and n_test take comes out of them too"
    )
    val: str | list[str] | None = Field(default=None, description="validation file(s), in place of n_val")
    test: str | list[str] | None = Field(default=None, description="test file(s), evaluated once at the end")
    n_train: Size | None = Field(
        default=None, description="how many or which frames to train on; null: all the rest"
    )
    n_val: Size | None = Field(
        default=None, description="to validate on; null: a tenth, at most 200, unless `val` is given"
    )
    n_test: Size | None = Field(default=None, description="to test on at the end; null: none")
    split_seed: int | None = Field(default=None, description="seed of the split; null: train.seed")
    keys: KeysConfig = KeysConfig()
    units: UnitsConfig | None = Field(default=None, description="must be given for npz files")
    reference_energies: dict[str, float] | None = Field(
        default=None,
        description="energy of each isolated atom, eV; null: of those among the frames, else a least-squares fit",
    )
    checks: Literal["error", "warn", "off"] = Field(
        default="error",
        description="what a fault found in the data does: stop, be printed, or not be looked for",
    )

    @field_validator("checks", mode="before")
    @classmethod
    def _accept_booleans(cls, value: object) -> object:
        # YAML reads a bare `off` or `on` as a boolean.
        return {False: "off", True: "error"}[value] if isinstance(value, bool) else value


class TrainConfig(Section):
    """How the model is fitted."""

    max_minutes: PositiveFloat | None = Field(
        default=None, description="budget in minutes, validation included"
    )
    clock: Literal["wall", "processor"] = Field(
        default="wall", description="what max_minutes counts; processor: only what this process computed"
    )
    max_epochs: PositiveFloat | None = Field(
        default=None, description="budget in passes over the training frames"
    )
    max_steps: PositiveInt | None = Field(default=None, description="budget in optimiser steps")
    batch_size: PositiveInt | None = Field(
        default=None, description="frames in a step, over all processes together"
    )
    seed: int = 0
    optimizer: Literal["adamw", "soap"] | None = Field(
        default=None,
        description="null: soap for equivariant models from scratch; adamw for others and for fine-tuning",
    )
    learning_rate: PositiveFloat | None = Field(
        default=None, description="peak; null: a good one for the architecture"
    )
    weight_decay: NonNegativeFloat = Field(default=0.0, description="decoupled, on matrices only")
    schedule: Literal["cosine", "wsd", "plateau", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.01, description="fraction of the budget")
    cooldown: Fraction = Field(
        default=0.2, description="last fraction of the budget in which `wsd` falls to zero"
    )
    plateau_factor: Fraction = 0.8
    plateau_patience: PositiveInt = Field(
        default=25, description="validations without improvement before `plateau` acts"
    )
    loss: Literal["mse", "mae", "huber"] = "mae"
    huber_delta: PositiveFloat = Field(
        default=0.1, description="where Huber turns linear, in units of the training forces rms"
    )
    energy_weight: Weight = 1.0
    forces_weight: Weight = 1.0
    stress_weight: Weight | None = Field(default=None, description="null: 1 where stress is labelled")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="0: no average of the weights"
    )
    gradient_clip: PositiveFloat | None = Field(
        default=None, description="largest norm of the gradient; null: not clipped"
    )
    validate_every: PositiveInt | None = Field(default=None, description="steps between validations")
    early_stopping: PositiveInt | None = Field(
        default=None, description="stop after so many validations without improvement"
    )
    checkpoint_every_minutes: NonNegativeFloat = Field(default=2.0, description="0: after every step")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    record_steps: bool = Field(
        default=True, description="on a GPU, record the steps of small batches and play them again"
    )
    devices: PositiveInt = Field(default=1, description="processes on each node")
    num_nodes: PositiveInt = 1
    loggers: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="beside metrics.csv, which is always written"
    )
    log_every: PositiveInt = Field(default=50, description="steps between two entries of the loggers")


class PretrainingConfig(Section):
    """Cheap labels to learn from before the frames of `data`: geometries around a structure, labelled by xTB."""

    structure: str | list[str] | None = Field(
        default=None,
        description="file(s), the first structure of each; null: the first training frame of each composition",
    )
    frames: Annotated[int, Field(ge=10)] = Field(default=1000, description="geometries to label")
    method: Literal["GFN2-xTB", "GFN1-xTB"] = "GFN2-xTB"
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        default=[300.0, 600.0, 1000.0], description="K; taken in turns"
    )
    normal_modes: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.3, description="fraction of the geometries made by normal modes, the others by dynamics"
    )
    charge: int = 0
    multiplicity: PositiveInt | None = Field(default=None, description="2 S + 1; null: the lowest possible")
    share: Fraction = Field(default=0.6, description="of the budget, sampling included")


Part = Literal["embedding", "radial", "interactions", "readout", "references"]


class FineTuningConfig(Section):
    """What is begun with, what of it may move, and how it remembers what it knew."""

    base: str = Field(description="a model file, or the name of a published potential")
    modal: str | None = Field(
        default=None, description="of a base for several kinds of reference calculation, the one to fine-tune"
    )
    keep_species: Literal["all", "data"] = Field(
        default="all", description="elements of the result: the base's and the data's, or only the data's"
    )
    rates: dict[Part, NonNegativeFloat] = Field(
        default={}, description="multiples of train.learning_rate by part; 0 freezes it"
    )
    freeze: list[Part] = Field(default=[], description="parts that stay as they are: rates of 0")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="factor of the rate from each layer to the one before it"
    )
    adapter_rank: PositiveInt | None = Field(
        default=None, description="train low-rank adapters of the linear layers; null: the weights themselves"
    )
    replay: str | list[str] | None = Field(
        default=None,
        description="structures of the base's domain, labelled by it and trained on too: crystals, or file(s)",
    )
    replay_frames: PositiveInt = Field(default=200, description="how many crystals to replay")
    replay_weight: PositiveFloat = Field(default=1.0, description="of their loss beside that of the data")
    replay_batch_size: PositiveInt | None = Field(
        default=None, description="of them in a step; null: as many as take a third of its time"
    )
    forgetting_frames: NonNegativeInt = Field(
        default=30, description="crystals, never replayed, to measure forgetting on; 0: not measured"
    )


class Config(Section):
    """A whole training."""

    data: DataConfig
    model: AnyModelConfig = NequIPConfig()
    train: TrainConfig = TrainConfig()
    pretraining: PretrainingConfig | None = Field(default=None, description="null: none")
    fine_tuning: FineTuningConfig | None = Field(
        default=None, description="begin with a trained potential; null: with random weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _base_is_the_model(cls, tree: Any) -> Any:
        """With a base there is no architecture to choose, nor NequIP's defaults."""
        if not isinstance(tree, dict):
            return tree
        model = tree.get("model")
        if tree.get("fine_tuning") is not None and tree.get("pretraining") is not None:
            raise ValueError(
                "both fine_tuning and pretraining are there, but a potential that is trained already needs no "
                "pre-training; leave one of them out"
            )
        if tree.get("fine_tuning") is None:
            if isinstance(model, dict) and model.get("architecture") == FINE_TUNED:
                raise ValueError("model.architecture is fine-tuned, but there is no fine_tuning.base; set it")
            return tree
        if model is None or isinstance(model, dict):
            named = (model or {}).get("architecture", FINE_TUNED)
            if named != FINE_TUNED:
                raise ValueError(
                    f"model.architecture is {named}, but fine_tuning.base decides it; leave one of them out"
                )
            tree = tree | {"model": {**(model or {}), "architecture": FINE_TUNED}}
        return tree
