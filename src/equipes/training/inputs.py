"""From the data section of a config to the frames of each split, checked, and what the data decides of the config."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from equipes.data import (
    Frame,
    GraphDataset,
    LabelKeys,
    ReferenceEnergies,
    Units,
    check_frames,
    elements,
    fit_reference_energies,
    forces_rms,
    is_isolated,
    mean_neighbors,
    read_frames,
    split_indices,
)
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import Potential
from equipes.training.config import Config, DataConfig, Size
from equipes.training.optimizers import (
    AFTER_PRETRAINING,
    FINE_TUNING,
    default_learning_rate,
    default_optimizer,
)

_MAX_DEFAULT_VALIDATION = 200
_SAMPLE = 50
_EDGES_IN_BATCH = 4000


@dataclass(frozen=True)
class Splits:
    """The frames of each split; `test` may be empty."""

    train: list[Frame]
    val: list[Frame]
    test: list[Frame]

    def fingerprint(self) -> str:
        """A hash of every structure and label to train and validate on, in order."""
        digest = hashlib.sha256()
        for name, frames in (("train", self.train), ("val", self.val)):
            digest.update(f"{name} {len(frames)}".encode())
            for frame in frames:
                atoms = frame.atoms
                for array in (
                    atoms.numbers,
                    atoms.positions,
                    atoms.cell.array,
                    atoms.pbc,
                    frame.forces,
                    frame.stress,
                ):
                    digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
                digest.update(repr(frame.energy).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs of the data, and the config with nothing left to choose."""

    config: Config
    splits: Splits
    train: GraphDataset
    val: GraphDataset
    species: tuple[str, ...]
    references: ReferenceEnergies
    scale: float
    """rms of the training forces, eV/Å: the unit of the losses."""


def read_splits(data: DataConfig, seed: int) -> Splits:
    """Read and split the frames as the data section says.

    Raises:
        InputError: files that cannot be read, or frames that do not suffice.
    """
    seed = seed if data.split_seed is None else data.split_seed
    frames = _read(data.train, data)
    n_val: Size | None = data.n_val if data.val is None else None
    alone = [index for index, frame in enumerate(frames) if is_isolated(frame)]
    if data.val is None and data.n_val is None:
        n_val = max(1, min(_MAX_DEFAULT_VALIDATION, round((len(frames) - len(alone)) / 10)))
    n_test = data.n_test if data.test is None else None
    # Isolated atoms decide the reference energies: none is left to chance, nor does it make errors look small.
    parts = split_indices(len(frames), data.n_train, n_val, n_test, seed=seed, keep=alone)
    splits = {name: [frames[i] for i in indices] for name, indices in parts.items()}
    for name, path, size in (("val", data.val, data.n_val), ("test", data.test, data.n_test)):
        if path is not None:
            own = _read(path, data)
            # Of a file of its own a split may still take a part.
            chosen = (
                split_indices(len(own), size, None, None, seed=seed)["train"]
                if size is not None
                else range(len(own))
            )
            splits[name] = [own[i] for i in chosen]
    return Splits(train=splits["train"], val=splits["val"], test=splits.get("test", []))


def without_isolated_atoms(splits: Splits) -> tuple[Splits, str | None]:
    """The splits without isolated atoms among the training frames, and what to say of it.

    Pre-trained bonds go with reference energies that are fitted to them, so that isolated atoms have another energy.
    """
    rest = [frame for frame in splits.train if not is_isolated(frame)]
    left = len(splits.train) - len(rest)
    if left == 0 or not rest:
        return splits, None
    return replace(splits, train=rest), (
        f"{left} isolated atoms among the training frames are left out: with pre-training reference energies are fitted"
    )


def check(splits: Splits, mode: str) -> list[str]:
    """Sentences on what is suspicious in the data; with "error" a fault is an `InputError`, with "off" none is told."""
    if mode == "off":
        return []
    named = {name: frames for name, frames in vars(splits).items() if frames}
    findings = check_frames(named)
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors and mode == "error":
        more = f" (and {len(errors) - 1} more; see `equipes data check`)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}; to train all the same set data.checks: warn")
    return [finding.message for finding in findings]


def prepare(config: Config, splits: Splits, base: Potential | None = None) -> Prepared:
    """Build the graphs and fill in every `None` of the config that the data, or the base of a fine-tuning, decides.

    Raises:
        InputError: no labels, an element that only validation has, or a structure of which no graph can be made.
    """
    species = _species(config, splits, base)
    if all(frame.energy is None and frame.forces is None for frame in splits.train):
        raise InputError(
            f"{splits.train[0].source}: no training frame has an energy or forces; "
            "set data.keys.energy and data.keys.forces to the names that the file uses"
        )
    r_max = base.cutoff if base is not None else config.model.r_max or _cutoff(splits.train)
    train, val = GraphDataset(splits.train, r_max), GraphDataset(splits.val, r_max)
    given = config.data.reference_energies
    references = fit_reference_energies(splits.train, given)
    scale = _scale(splits.train, references)
    model: dict[str, Any] = {
        "r_max": r_max,
        "species": list(species),
        "avg_num_neighbors": max(mean_neighbors(train.graphs), 1.0),
        "per_type_energy_scales": scale,
        # An element that the model shall know but no frame has: nothing is known of it but a number is needed.
        "per_type_energy_shifts": {symbol: references.values.get(symbol, 0.0) for symbol in species},
    }
    if base is not None:
        model["dtype"] = str(base.dtype).removeprefix("torch.")
    # SevenNet's and MACE's names for the same.
    model["denominator"] = model["avg_num_neighbors"]
    model["atomic_inter_scale"] = model["per_type_energy_scales"]
    model["atomic_energies"] = model["per_type_energy_shifts"]
    batch_size = config.train.batch_size or _batch_size(train)
    has_stress = any(frame.stress is not None for frame in splits.train)
    steps_per_pass = math.ceil(len(train) / batch_size)
    val_batches = math.ceil(len(val) / batch_size)
    architecture = config.model.architecture if base is None else base.architecture
    optimizer = config.train.optimizer or default_optimizer(config.model.architecture)
    chosen: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": default_learning_rate(architecture) * _part_of_rate(config),
        # Seldom enough that validation takes a small part of the time, often enough to see what happens.
        "validate_every": max(min(steps_per_pass, 500), 4 * val_batches),
        "stress_weight": 1.0 if has_stress else 0.0,
    }
    if not (config.train.max_minutes or config.train.max_epochs or config.train.max_steps):
        chosen["max_minutes"] = _minutes(train) * (1 if config.pretraining is None else 2)
    data = {
        "split_seed": config.train.seed,
        "n_train": len(splits.train),
        "n_val": None if config.data.val is not None else len(splits.val),
    }
    complete = config.model_copy(
        update={
            "data": _filled(config.data, data),
            "model": _filled(config.model, model),
            "train": _filled(config.train, chosen),
        }
    )
    return Prepared(complete, splits, train, val, species, references, scale)


def _part_of_rate(config: Config) -> float:
    """Weights that know something already move more slowly."""
    if config.fine_tuning is not None:
        return FINE_TUNING
    return 1.0 if config.pretraining is None else AFTER_PRETRAINING


def _filled(section: Any, values: dict[str, Any]) -> Any:
    """The section with `values` where it has `None`; what it does not have stays out."""
    return section.model_copy(update={k: v for k, v in values.items() if getattr(section, k, v) is None})


def _read(paths: str | list[str], data: DataConfig) -> list[Frame]:
    keys = LabelKeys(**data.keys.model_dump())
    units = None if data.units is None else Units(**data.units.model_dump())
    return read_frames(paths, keys=keys, units=units)


def _species(config: Config, splits: Splits, base: Potential | None) -> tuple[str, ...]:
    """Elements of the model: those of the data, and by default those of a base before them."""
    present = elements([*splits.train, *splits.val, *splits.test])
    if config.model.species is not None:
        missing = [symbol for symbol in present if symbol not in config.model.species]
        if missing:
            raise InputError(
                f"model.species does not name {', '.join(missing)}, which the data has; add it, or leave it out"
            )
        return tuple(config.model.species)
    trained = elements(splits.train)
    for name, frames in (("validation", splits.val), ("test", splits.test)):
        for frame in frames:
            unknown = sorted(set(frame.atoms.symbols) - set(trained))
            if unknown:
                raise InputError(
                    f"{frame.label}: {', '.join(unknown)} is in this {name} frame but in no training frame; add one"
                )
    tuning = config.fine_tuning
    if base is None or tuning is None or tuning.keep_species == "data":
        return trained
    return (*base.species, *(symbol for symbol in trained if symbol not in base.species))


def _scale(frames: Sequence[Frame], references: ReferenceEnergies) -> float:
    """rms of the forces; without any, of the energies per atom around the reference energies; 1 if that is zero too."""
    if any(frame.forces is not None for frame in frames):
        scale = forces_rms(frames)
    else:
        scale = references.residual_rms_mev_per_atom / 1e3
    return scale if scale > 1e-6 else 1.0


def _cutoff(frames: Sequence[Frame]) -> float:
    """5 Å, or as much more (to 7 Å) as gives the atoms of a periodic structure a dozen neighbours."""
    sample = [frame.atoms for frame in frames[:: max(1, len(frames) // _SAMPLE)] if frame.atoms.pbc.any()]
    for cutoff in (5.0, 6.0, 7.0):
        if not sample or mean_neighbors(AtomGraph.from_atoms(atoms, cutoff) for atoms in sample) >= 12:
            return cutoff
    return 7.0


def _batch_size(dataset: GraphDataset) -> int:
    """Small sets learn best from small batches, and a large structure is a batch in itself."""
    edges = max(1.0, sum(graph.n_edges for graph in dataset.graphs) / len(dataset))
    by_frames = min(32, max(5, round(len(dataset) / 400)))
    return max(1, min(by_frames, len(dataset), round(_EDGES_IN_BATCH / edges)))


def _minutes(dataset: GraphDataset) -> float:
    """A budget that grows with the root of the work in one pass: about half an hour for 950 frames of ethanol."""
    edges = sum(graph.n_edges for graph in dataset.graphs)
    return float(min(240, max(10, 5 * round(2 * math.sqrt(edges / 1e4)))))
