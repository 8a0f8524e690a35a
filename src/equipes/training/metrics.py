"""How good a potential is: predictions for frames, and their errors against the labels that the frames have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.training.batch_sizes import BatchSize, halved, is_out_of_memory, packed, weight

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.models.potential import Potential

# A batch is closed before its atoms and edges together pass this number. Memory goes with the edges: some hundred bytes
# to some kilobytes for each, layer and channel, so a batch of this size stays below a few gigabytes for usual models.
_BATCH_EDGES = 20_000

_PER_ATOM, _PER_ANG, _PER_ANG3 = "mev_per_atom", "mev_per_ang", "mev_per_ang3"
# The name under which frames without a configuration type appear beside those that have one.
UNNAMED = "(none)"


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """What a potential says of one frame.

    Attributes:
        energy: eV, total.
        forces: `[N, 3]`, eV/Å.
        stress: `[3, 3]`, eV/Å³, tensile positive; None for a structure without a volume.
        energy_std, forces_std, stress_std: standard deviations in a committee: eV; `[N]`, eV/Å; `[3, 3]`, eV/Å³.
        feature_distance: `[N]`, from what the potential was trained on; 1 is the limit.
    """

    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    energy_std: float | None = None
    forces_std: np.ndarray | None = None
    stress_std: np.ndarray | None = None
    feature_distance: np.ndarray | None = None


def predict_frames(
    potential: Potential,
    frames: Sequence[Frame],
    *,
    batch_size: int | Literal["auto"] | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[FramePrediction]:
    """Energy, forces and, where there is a volume, stress of every frame, in the order of the frames.

    Frames are computed in batches of bounded memory, whatever their sizes; graphs live only as long as their batch. How
    frames are divided into batches changes the numbers by round-off at most.

    Args:
        potential: is evaluated in `eval()` mode and left in the mode it had.
        frames: labels in them are not looked at.
        batch_size: at most so many frames at once; "auto": as many as the memory allows, measured with the first
            batches (see `equipes.training.batch_sizes`); None leaves it to the number of edges. Except with a number,
            batches that do not fit into memory are halved.
        device: where to compute (the potential moves there); None: where the potential is.
        progress: called with the number of frames done and of all frames, after each batch.

    Raises:
        InputError: no frames; a frame with an element that the potential does not know or with an impossible
            geometry; a prediction that is not finite; not enough memory. The frame is named.
    """
    if isinstance(batch_size, int) and batch_size < 1:
        raise InputError(f"the batch size must be at least 1, not {batch_size}")
    check_species(potential, frames)
    if device is not None:
        potential.to(device)
    place = next((p.device for p in potential.parameters()), torch.device(device or "cpu"))
    was_training = potential.training
    potential.eval()
    try:
        return _predict_all(potential, frames, batch_size, place, progress)
    finally:
        potential.train(was_training)


def _predict_all(
    potential: Potential,
    frames: Sequence[Frame],
    batch_size: int | Literal["auto"] | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> list[FramePrediction]:
    size = BatchSize.on(device) if batch_size == "auto" else None
    batches: Iterator[list[tuple[int, AtomGraph]]]
    if size is not None:
        batches = packed(frames, lambda frame: graph_of(frame, potential.cutoff), size)
    else:
        number = count()
        limit = batch_size if isinstance(batch_size, int) else None
        batches = (
            [(next(number), graph) for graph in batch]
            for batch in batches_of(frames, potential.cutoff, limit)
        )
    found: dict[int, FramePrediction] = {}
    for batch in batches:
        parts = [batch]
        while parts:
            part = parts.pop(0)
            graphs, members = [graph for _, graph in part], [frames[index] for index, _ in part]
            heavy = sum(map(weight, graphs))

            def calculate(
                graphs: list[AtomGraph] = graphs, members: list[Frame] = members
            ) -> list[FramePrediction]:
                return list(_predict_batch(potential, graphs, members, device))

            try:
                predictions = calculate() if size is None else size.measured(heavy, calculate)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1 or isinstance(batch_size, int):
                    first, last = members[0].label, members[-1].label
                    remedy = (
                        "give a smaller --batch-size"
                        if len(part) > 1
                        else "take a larger device or --device cpu"
                    )
                    raise InputError(
                        f"{first} to {last} do not fit into the memory of {device}; {remedy}"
                    ) from error
                predictions = None
            # Outside of the handler: the exception holds on to what did not fit.
            if predictions is None:
                if size is not None:
                    size.too_large(heavy)
                parts[:0] = halved(part)
                continue
            found.update(zip((index for index, _ in part), predictions, strict=True))
            if progress is not None:
                progress(len(found), len(frames))
    return [found[index] for index in range(len(frames))]


def check_species(potential: Potential, frames: Sequence[Frame]) -> None:
    """Raises `InputError` without frames, and for the first frame with an element unknown to the potential."""
    if not frames:
        raise InputError("there are no frames to predict; give at least one structure")
    known = set(potential.species)
    for frame in frames:
        unknown = sorted(set(frame.atoms.symbols) - known)
        if unknown:
            raise InputError(
                f"{frame.label}: the model does not know {', '.join(unknown)}, only {', '.join(potential.species)}; "
                "leave such frames out or take a model trained with it"
            )


def batches_of(
    frames: Sequence[Frame], cutoff: float, batch_size: int | None = None
) -> Iterator[list[AtomGraph]]:
    """Graphs of the frames, in batches of bounded memory; raises `InputError` naming a frame without sense."""
    batch: list[AtomGraph] = []
    size = 0
    for frame in frames:
        graph = graph_of(frame, cutoff)
        if batch and (size + weight(graph) > _BATCH_EDGES or len(batch) == batch_size):
            yield batch
            batch, size = [], 0
        batch.append(graph)
        size += weight(graph)
    if batch:
        yield batch


def graph_of(frame: Frame, cutoff: float) -> AtomGraph:
    """The graph of a frame; raises `InputError` naming the frame where its structure makes no sense."""
    try:
        return AtomGraph.from_atoms(frame.atoms, cutoff)
    except InputError as error:
        raise InputError(f"{frame.label}: {error}") from error


def _predict_batch(
    potential: Potential, graphs: list[AtomGraph], frames: Sequence[Frame], device: torch.device
) -> Iterator[FramePrediction]:
    stress_wanted = any(frame.atoms.cell.rank == 3 for frame in frames)
    result = potential(AtomGraph.batch(graphs).to(device), forces=True, stress=stress_wanted)
    energies, forces = (tensor.detach().cpu().double().numpy() for tensor in (result.energy, result.forces))
    stresses = None if result.stress is None else result.stress.detach().cpu().double().numpy()
    start = 0
    for i, frame in enumerate(frames):
        stop = start + len(frame.atoms)
        # The stress of a structure without a volume is NaN.
        stress = stresses[i] if stresses is not None and np.isfinite(stresses[i]).all() else None
        prediction = FramePrediction(float(energies[i]), forces[start:stop].copy(), stress)
        for quantity in ("energy", "forces"):
            if not np.isfinite(getattr(prediction, quantity)).all():
                raise InputError(
                    f"{frame.label}: the model predicts a non-finite {quantity}; look at the structure for atoms that "
                    "are too close, and at the model for a training that diverged"
                )
        yield prediction
        start = stop


def error_metrics(frames: Sequence[Frame], predictions: Sequence[FramePrediction]) -> dict[str, Any]:
    """Errors of the predictions against the labels; JSON-able, with None (null) where there is no such label.

    Energies are compared per atom (`…_mev_per_atom`, one value a frame) and in total (`…_mev`), forces by every
    component of every atom, stress by the nine components of the symmetric 3 × 3 tensor. For each there are `mae`,
    `rmse`, `max` (largest absolute error) and `bias` (mean of predicted minus reference; for energy per atom only),
    in keys such as `forces_mae_mev_per_ang`. Beside them:

    - `n_frames`, `n_atoms`; `n_energies`, `n_forces` (atoms) and `n_stresses`, the numbers of labels compared;
    - `baseline`: the same errors of knowing nothing but averages: the energy linear in the composition, fitted to
      these very labels (for one composition their mean; None where it has as many parameters as frames), forces and
      stress zero, so that their `rmse` is the root mean square of the labels;
    - `per_element`: for each element the errors of the forces on its atoms, `n_atoms` and `n_forces`;
    - `per_config_type`: for each configuration type the errors as above; empty when no frame has one, else frames
      without are gathered under "(none)".

    Raises:
        InputError: a label that is not finite (its frame is named), or as many frames as predictions are not there.
    """
    if len(frames) != len(predictions):
        raise InputError(f"{len(frames)} frames but {len(predictions)} predictions; give one for each")
    for frame in frames:
        for quantity in ("energy", "forces", "stress"):
            value = getattr(frame, quantity)
            if value is not None and not np.isfinite(value).all():
                raise InputError(
                    f"{frame.label}: its {quantity} is not finite; correct the label or remove the frame"
                )
    pairs = list(zip(frames, predictions, strict=True))
    metrics = _errors(pairs)
    metrics["baseline"] = _baseline(pairs)
    metrics["per_element"] = _per_element(pairs)
    metrics["per_config_type"] = {}
    if any(frame.config_type is not None for frame in frames):
        groups: dict[str, list[tuple[Frame, FramePrediction]]] = {}
        for pair in pairs:
            groups.setdefault(pair[0].config_type or UNNAMED, []).append(pair)
        metrics["per_config_type"] = {name: _errors(groups[name]) for name in sorted(groups)}
    return metrics


def _errors(pairs: Sequence[tuple[Frame, FramePrediction]]) -> dict[str, Any]:
    energy, per_atom, forces, stress = [], [], [], []
    n_forces = 0
    for frame, prediction in pairs:
        if frame.energy is not None:
            energy.append(prediction.energy - frame.energy)
            per_atom.append(energy[-1] / len(frame.atoms))
        if frame.forces is not None and prediction.forces is not None:
            forces.append((prediction.forces - frame.forces).ravel())
            n_forces += len(frame.atoms)
        if frame.stress is not None and prediction.stress is not None:
            stress.append((prediction.stress - frame.stress).ravel())
    total = _statistics("energy", "mev", np.array(energy))
    del total["energy_bias_mev"]
    return {
        "n_frames": len(pairs),
        "n_atoms": sum(len(frame.atoms) for frame, _ in pairs),
        "n_energies": len(energy),
        "n_forces": n_forces,
        "n_stresses": len(stress),
        **_statistics("energy", _PER_ATOM, np.array(per_atom)),
        **total,
        **_statistics("forces", _PER_ANG, _joined(forces)),
        **_statistics("stress", _PER_ANG3, _joined(stress)),
    }


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0)


def _statistics(quantity: str, unit: str, errors: np.ndarray) -> dict[str, float | None]:
    """`errors` in eV, results in meV."""
    names = [f"{quantity}_{name}_{unit}" for name in ("mae", "rmse", "max", "bias")]
    if errors.size == 0:
        return dict.fromkeys(names)
    size = np.abs(errors)
    values = (size.mean(), np.sqrt(np.mean(errors**2)), size.max(), errors.mean())
    return {name: 1000.0 * float(value) for name, value in zip(names, values, strict=True)}


def _baseline(pairs: Sequence[tuple[Frame, FramePrediction]]) -> dict[str, float | None]:
    forces = _joined(f.forces.ravel() for f, p in pairs if f.forces is not None and p.forces is not None)
    stress = _joined(f.stress.ravel() for f, p in pairs if f.stress is not None and p.stress is not None)
    labelled = [frame for frame, _ in pairs if frame.energy is not None]
    fitted = composition_energies(labelled)
    beyond = np.empty(0) if fitted is None else _energies_per_atom(labelled) - fitted
    statistics = {
        **_statistics("energy", _PER_ATOM, beyond),
        **_statistics("forces", _PER_ANG, forces),
        **_statistics("stress", _PER_ANG3, stress),
    }
    return {name: value for name, value in statistics.items() if "_mae_" in name or "_rmse_" in name}


def _energies_per_atom(frames: Sequence[Frame]) -> np.ndarray:
    return np.array([frame.energy for frame in frames], dtype=float) / [len(frame.atoms) for frame in frames]


def composition_energies(frames: Sequence[Frame]) -> np.ndarray | None:
    """What the composition alone says of the energy per atom, eV, of each of the frames (all with energies).

    The least-squares fit, linear in the fractions of the elements; None where it has as many parameters as there are
    frames, and so would say nothing.
    """
    if not frames:
        return None
    elements = sorted({number for frame in frames for number in frame.atoms.numbers})
    fractions = np.array([[np.mean(frame.atoms.numbers == z) for z in elements] for frame in frames])
    energies = _energies_per_atom(frames)
    # Fractions sum to one, so a common shift is among the fits; taking the mean off first keeps the digits.
    mean = energies.mean()
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies - mean, rcond=1e-10)
    return None if rank >= len(frames) else mean + fractions @ solution


def _per_element(pairs: Sequence[tuple[Frame, FramePrediction]]) -> dict[str, dict[str, Any]]:
    errors: dict[str, list[np.ndarray]] = {}
    counts: dict[str, int] = {}
    for frame, prediction in pairs:
        symbols = np.array(frame.atoms.get_chemical_symbols())
        for symbol in map(str, np.unique(symbols)):
            mine = symbols == symbol
            counts[symbol] = counts.get(symbol, 0) + int(mine.sum())
            parts = errors.setdefault(symbol, [])
            if frame.forces is not None and prediction.forces is not None:
                parts.append((prediction.forces - frame.forces)[mine].ravel())
    return {
        symbol: {
            "n_atoms": counts[symbol],
            "n_forces": sum(part.size for part in errors[symbol]) // 3,
            **_statistics("forces", _PER_ANG, _joined(errors[symbol])),
        }
        for symbol in sorted(counts)
    }
