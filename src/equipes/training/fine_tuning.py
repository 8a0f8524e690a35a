"""Training that begins with a trained potential: its reference energies, what of it moves, and what it must not forget.

The base is made to fit the data before the first step: new elements begin as the nearest that it knows, and reference
energies are fitted to what its interaction energies leave of the labels, which takes the difference of two reference
methods away. What the base says of other structures, with these reference energies, is what it may be replayed with and
what forgetting is measured against.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase

from equipes.data import (
    Frame,
    GraphDataset,
    read_frames,
)
from equipes.errors import InputError
from equipes.foundation import load, locate, read_checkpoint
from equipes.models import Potential, adapted, add_species, convert, keep_species, nearest_element
from equipes.models.parts import layer_of, part_of, reference_energies
from equipes.nn.adapters import LowRankAdapters, adaptable
from equipes.training.alignment import check_units, fit_shifts
from equipes.training.architectures import FineTunedConfig
from equipes.training.config import Config, FineTuningConfig
from equipes.training.inputs import Prepared
from equipes.training.metrics import error_metrics, predict_frames
from equipes.training.optimizers import Moves
from equipes.training.replay import apart, held_out, replayed
from equipes.training.state import Row
from equipes.training.stream import BatchStream
from equipes.training.validation import METRICS

CRYSTALS = "crystals"


@dataclass(frozen=True)
class Base:
    """The potential that is begun with, as it was found.

    Attributes:
        name: as it was asked for.
        potential: speaks for one kind of reference calculation, in the number type of the training.
        sha256: of the file.
    """

    name: str
    potential: Potential
    sha256: str


@dataclass(frozen=True)
class Tuning:
    """A base made ready for training.

    Attributes:
        potential: what the first step begins with.
        prepared: the data, with reference energies for the base's interaction energies, and nothing left to choose.
        moves: what of the potential the optimiser moves.
        replay: structures that the potential, as it is now, has labelled; None without.
        held_out: others of them, never trained on, to measure forgetting on; may be empty.
        before: errors of the base itself on them, which only round-off makes.
        introduction: lines to print.
        facts: what the model's file and the summary say of its origin, as plain JSON values.
    """

    potential: Potential
    prepared: Prepared
    moves: Moves
    replay: GraphDataset | None
    held_out: list[Frame]
    before: dict[str, float | None]
    introduction: list[str]
    facts: dict[str, Any]

    @property
    def replay_weight(self) -> float:
        """Of the loss of replayed structures."""
        return self._settings.replay_weight

    def replay_stream(self) -> BatchStream | None:
        """Batches of replayed structures; None without any."""
        if self.replay is None:
            return None
        return BatchStream(
            self.replay, self._settings.replay_batch_size or 1, self.prepared.config.train.seed
        )

    @property
    def _settings(self) -> FineTuningConfig:
        assert self.prepared.config.fine_tuning is not None
        return self.prepared.config.fine_tuning

    def conclude(self, model: Path, first: Row) -> dict[str, Any]:
        """What the summary says of the fine-tuning that ended in a model file, which then says it too.

        Args:
            model: the file, whose header is written anew with what was forgotten.
            first: errors on the validation frames before the first step.

        Returns:
            `facts`, with `validation_before` and `forgetting`.
        """
        potential = load(model)
        facts = self.facts | {
            "validation_before": {name: first[name] for name in METRICS},
            "forgetting": self.forgetting(potential),
        }
        potential.provenance["fine_tuning"] = facts
        potential.save(model, overwrite=True)
        return facts

    def forgetting(self, potential: Potential) -> dict[str, Any] | None:
        """Errors of a fine-tuned potential against the base, with the same reference energies, on `held_out`.

        Returns:
            `before` and `after` (`energy_mae_mev_per_atom`, `forces_mae_mev_per_ang`, …), the rms of the base's
            forces and stress as `size`, and what they were measured on; None without structures.
        """
        if not self.held_out:
            return None
        metrics = error_metrics(self.held_out, predict_frames(potential, self.held_out))
        return {
            "structures": f"{self.held_out[0].source}, not replayed",
            "n_structures": len(self.held_out),
            "before": self.before,
            "after": _essential(metrics),
            "size": {name: metrics["baseline"][name] for name in _SIZES},
        }


_SIZES = ("forces_rmse_mev_per_ang", "stress_rmse_mev_per_ang3")


def open_base(config: Config) -> Base | None:
    """The base that a config names; None if it names none.

    Raises:
        InputError: it cannot be read, has not this modality, or has another cutoff than the config asks for.
    """
    settings, model = config.fine_tuning, config.model
    if settings is None:
        return None
    if not isinstance(model, FineTunedConfig):
        raise InputError("fine_tuning.base decides the model; leave model.architecture and its keys out")
    path = locate(settings.base)
    potential = load(path) if path.suffix == ".safetensors" or not path.is_file() else read_checkpoint(path)
    known = potential.hyperparameters.get("modalities") or ()
    if known and settings.modal is None and potential.hyperparameters.get("modality") is None:
        raise InputError(
            f"{settings.base} knows the kinds of reference calculation {', '.join(known)}; choose one with --modal "
            "(fine_tuning.modal)"
        )
    potential = adapted(potential, modal=settings.modal)
    if model.r_max is not None and model.r_max != potential.cutoff:
        raise InputError(
            f"model.r_max is {model.r_max:g} Å, but {settings.base} has a cutoff of {potential.cutoff:g} Å, which its "
            "weights belong to; leave it out"
        )
    if model.dtype is not None:
        potential = convert(potential, model.dtype)
    return Base(settings.base, potential.eval(), hashlib.sha256(path.read_bytes()).hexdigest())


def tune(prepared: Prepared, base: Base) -> Tuning:
    """Make the base ready for the data.

    Raises:
        InputError: labels in other units than the base's, nothing left to train, structures to replay that the base
            does not know.
    """
    settings = prepared.config.fine_tuning
    assert settings is not None
    potential, new = _with_species(base.potential, prepared.species)
    check_units(potential, prepared.splits.train, base.name)
    given = prepared.config.data.reference_energies
    references = fit_shifts(potential, prepared.train, given)
    potential.familiarity = None  # of other data, with features that will change
    shifts = reference_energies(potential.model)
    corrections = {}
    for symbol, value in references.values.items():
        index = potential.species.index(symbol)
        corrections[symbol] = value - float(shifts[index])
        shifts[index] = value

    known = [symbol for symbol in potential.species if symbol not in new]
    seed = prepared.config.train.seed
    to_replay, to_hold_out = _structures(settings, known, seed)
    replay = GraphDataset(labelled(potential, *to_replay), potential.cutoff) if to_replay[0] else None
    kept = labelled(potential, *to_hold_out)
    size = None if replay is None else _replay_batch_size(prepared, replay, settings.replay_batch_size)
    settings = settings.model_copy(update={"replay_batch_size": size})
    config = prepared.config.model_copy(update={"fine_tuning": settings})
    prepared = replace(prepared, config=config, references=references)

    moves = _moves(potential, settings, seed)
    n_trained = sum(tensor.numel() for tensor, _ in moves.tensors(potential.model))
    n_all = sum(parameter.numel() for parameter in potential.model.parameters())
    provenance = base.potential.provenance
    facts = {
        "base": Path(base.name).name,
        "base_sha256": base.sha256,
        "base_provenance": {k: v for k, v in provenance.items() if k not in ("config", "validation")},
        "new_elements": new,
        "reference_energy_corrections_ev": corrections,
        "trained_parameters": n_trained,
        "replayed": 0 if replay is None else len(replay),
    }
    licence = f", licence {provenance['licence']}" if "licence" in provenance else ""
    adapters = f"adapters of rank {settings.adapter_rank}: " if settings.adapter_rank else ""
    introduction = [
        f"base        {base.name} ({potential.architecture}{licence}), sha256 {base.sha256[:16]}",
        f"trained     {adapters}{n_trained:,} of {n_all:,} numbers",
        *(f"new         {symbol} begins as {source}" for symbol, source in new.items()),
    ]
    if replay is not None:
        introduction.append(
            f"replay      {len(replay)} {to_replay[1]}, {size} in a step, weight {settings.replay_weight:g}"
        )
    before = _essential(error_metrics(kept, _shifted(kept, base.potential, corrections))) if kept else {}
    return Tuning(potential.train(), prepared, moves, replay, kept, before, introduction, facts)


def labelled(potential: Potential, structures: Sequence[ase.Atoms], source: str) -> list[Frame]:
    """Structures with a potential's energies, forces and stress as labels."""
    frames = [Frame(atoms, None, None, None, None, source, index) for index, atoms in enumerate(structures)]
    if not frames:
        return []
    return [
        replace(frame, energy=label.energy, forces=label.forces, stress=label.stress)
        for frame, label in zip(frames, predict_frames(potential, frames), strict=True)
    ]


def _with_species(potential: Potential, species: Sequence[str]) -> tuple[Potential, dict[str, str]]:
    """A copy that knows these elements, in this order, and what each new one begins as."""
    new = {s: nearest_element(s, potential.species) for s in species if s not in potential.species}
    made = add_species(potential, new) if new else potential
    if tuple(species) != made.species:
        made = keep_species(made, species)
    return copy.deepcopy(made) if made is potential else made, new


def _structures(
    settings: FineTuningConfig, species: Sequence[str], seed: int
) -> tuple[tuple[list[ase.Atoms], str], tuple[list[ase.Atoms], str]]:
    """What to replay and what to hold out, each with what it is called."""
    number = settings.forgetting_frames
    aside = held_out(species, number, seed), "crystals of `equipes benchmark crystals`, disturbed"
    if settings.replay is None:
        return ([], ""), aside
    if settings.replay == CRYSTALS:
        found = replayed(species, settings.replay_frames, seed)
        if not found:
            raise InputError(
                f"fine_tuning.replay: no crystals can be made of {', '.join(species)}; give a file of structures, or "
                "leave it out"
            )
        return (found, "crystals, labelled by the base"), aside
    frames = read_frames(settings.replay)
    _refuse_unknown(frames, species)
    if len(frames) < 2:
        raise InputError(f"{frames[0].label}: the only structure to replay; give more, since one is held out")
    chosen, others = apart([frame.atoms for frame in frames], seed)
    name = Path(frames[0].source).name
    return (chosen, f"structures of {name}, labelled by the base"), (others[:number], f"structures of {name}")


def _refuse_unknown(frames: Sequence[Frame], species: Collection[str]) -> None:
    for frame in frames:
        unknown = sorted(set(frame.atoms.symbols) - set(species))
        if unknown:
            raise InputError(
                f"{frame.label}: {', '.join(unknown)} cannot be replayed, since base or result do not know it; "
                "leave such structures out"
            )


def _replay_batch_size(prepared: Prepared, replay: GraphDataset, wanted: int | None) -> int:
    """What is wanted, or as many structures as have half of the edges of a batch; one for each process at least."""
    batch = (prepared.config.train.batch_size or 1) * _mean_edges(prepared.train)
    processes = prepared.config.train.devices * prepared.config.train.num_nodes
    return max(processes, wanted or min(len(replay), round(batch / (2 * _mean_edges(replay)))))


def _mean_edges(dataset: GraphDataset) -> float:
    return max(1.0, sum(graph.n_edges for graph in dataset.graphs) / len(dataset))


def _moves(potential: Potential, settings: FineTuningConfig, seed: int) -> Moves:
    """Set which parameters have gradients, and how fast each moves."""
    model = potential.model
    rank = settings.adapter_rank
    # Adapters stand for the weights of what mixes features; a readout is small enough to move whole.
    rates = {"embedding": 1.0, "radial": 1.0, "interactions": 1.0, "readout": 1.0, "references": 0.0}
    if rank:
        rates |= {"embedding": 0.0, "radial": 0.0}
    rates |= {str(part): rate for part, rate in settings.rates.items()}
    rates |= dict.fromkeys(settings.freeze, 0.0)
    names = [name for name, _ in model.named_parameters()]
    n_layers = 1 + max((layer for layer in map(layer_of, names) if layer is not None), default=-1)
    with_adapters = [name for name in adaptable(model) if rates[part_of(name)] > 0] if rank else []
    if rank and not with_adapters:
        raise InputError(
            f"fine_tuning.adapter_rank: this {potential.architecture} potential has no linear layers to adapt that are "
            "not frozen; leave it out"
        )
    by_name = {}
    for name, parameter in model.named_parameters():
        part, layer = part_of(name), layer_of(name)
        rate = rates[part]
        if rank and part == "interactions" and name not in with_adapters:
            rate = 0.0
        if part == "embedding":
            layer = -1
        if layer is not None and part != "readout":
            rate *= settings.layer_decay ** (n_layers - layer - 1)
        parameter.requires_grad_(rate > 0)
        by_name[name] = rate
    adapters = LowRankAdapters(model, with_adapters, rank, seed=seed) if rank else None
    moves = Moves(by_name, adapters)
    if not moves.tensors(model):
        raise InputError(
            "fine_tuning: every part is frozen, so there is nothing to train; give one a rate above 0"
        )
    return moves


def _shifted(frames: Sequence[Frame], base: Potential, corrections: Mapping[str, float]) -> list[Any]:
    """What the base says of the frames, with corrected reference energies."""
    return [
        replace(p, energy=p.energy + sum(corrections.get(symbol, 0.0) for symbol in frame.atoms.symbols))
        for frame, p in zip(frames, predict_frames(base, frames), strict=True)
    ]


def _essential(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    names = [
        f"{name}_{kind}_{unit}"
        for name, unit in (("energy", "mev_per_atom"), ("forces", "mev_per_ang"), ("stress", "mev_per_ang3"))
        for kind in ("mae", "rmse")
    ]
    return {name: metrics[name] for name in names}
