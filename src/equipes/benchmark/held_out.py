"""Errors of a potential on labelled frames whose reference is known, and what of them means something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from equipes.errors import InputError
from equipes.training.metrics import FramePrediction

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.foundation import Published

# Energies of two references differ by constants of the elements where a fit of such constants takes away this share of
# the squared errors, and the constants are larger than errors of potentials are.
_EXPLAINED = 0.75
_LARGE_OFFSET = 0.05  # eV/atom


@dataclass(frozen=True)
class HeldOutSet:
    """A published set of labelled frames.

    Attributes:
        name: of its file, without the suffix.
        about: a sentence on what it is.
        functional: of its labels.
        within: the training sets, as `equipes models info` names them, that its frames are of.
        source: whom to cite.
    """

    name: str
    about: str
    functional: str
    within: tuple[str, ...]
    source: str


_MATTERSIM = "H. Yang et al., arXiv:2405.04967 (benchmark frames of MatterSim, MIT licence)"
SETS = {
    known.name: known
    for known in (
        HeldOutSet(
            "mptrj-random-1k",
            "frames of relaxations in the Materials Project, energies as calculated, without the project's corrections",
            "PBE(+U)",
            ("MPtrj",),
            "B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3",
        ),
        HeldOutSet(
            "alexandria-random-1k",
            "crystals of the Alexandria database near equilibrium",
            "PBE(+U)",
            (),
            "J. Schmidt et al., Adv. Mater. 35, 2210788 (2023), doi:10.1002/adma.202210788",
        ),
        HeldOutSet(
            "mpf-TP",
            "crystals of the Materials Project at high temperature and pressure, far from equilibrium",
            "PBE(+U)",
            (),
            _MATTERSIM,
        ),
        HeldOutSet(
            "mpf-alkali-TP",
            "crystals with alkali metals at high temperature and pressure, far from equilibrium",
            "PBE(+U)",
            (),
            _MATTERSIM,
        ),
        HeldOutSet(
            "random-TP",
            "crystals of random composition at high temperature and pressure, far from equilibrium",
            "PBE(+U)",
            (),
            _MATTERSIM,
        ),
    )
}
SOFTENING = (
    "B. Deng et al., npj Comput. Mater. 11, 9 (2025), arXiv:2405.07105 (softening of universal potentials)"
)


@dataclass(frozen=True)
class HeldOutResult:
    """Errors on one set; None where there are no such labels, or where a number would mean nothing.

    Attributes:
        name: of the set or file.
        n_frames, n_atoms: that were compared.
        left_out: frames with elements that the potential does not know.
        energy_mae_mev_per_atom: None where the energies are not of one reference.
        energy_mae_after_fit_mev_per_atom: after constants of the elements, fitted to these very errors, were taken off.
        energy_offset_mev_per_atom: root mean square of what those constants amount to.
        force_mae_mev_per_ang, force_rms_mev_per_ang: over components; the latter of the labels.
        force_median_mev_per_ang: median of the absolute errors of components, which a few failures leave alone.
        stress_mae_gpa, stress_rms_gpa: likewise.
        softening: slope of predicted over reference force components through the origin; below 1 is too soft.
        softening_robust: the same by least absolute deviations, which a few failures leave alone.
        per_element: for each element `n_atoms`, `force_mae_mev_per_ang`, `force_rms_mev_per_ang` of the labels,
            `softening` and `softening_robust`.
        warnings: what a reader must not miss.
        source: whom to cite.
    """

    name: str
    about: str
    n_frames: int
    n_atoms: int
    left_out: int
    energy_mae_mev_per_atom: float | None
    energy_mae_after_fit_mev_per_atom: float | None
    energy_offset_mev_per_atom: float | None
    force_mae_mev_per_ang: float | None
    force_median_mev_per_ang: float | None
    force_rms_mev_per_ang: float | None
    stress_mae_gpa: float | None
    stress_rms_gpa: float | None
    softening: float | None
    softening_robust: float | None
    per_element: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]
    source: str

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)


def known_elements(frames: Sequence[Frame], species: Sequence[str]) -> list[Frame]:
    """The frames of elements that a potential knows.

    Raises:
        InputError: none is left.
    """
    kept = [frame for frame in frames if set(frame.atoms.symbols) <= set(species)]
    if not kept:
        raise InputError(
            f"{frames[0].source if frames else 'no file'}: no frame of elements that the potential knows"
        )
    return kept


def held_out_errors(
    path: str | Path,
    frames: Sequence[Frame],
    predictions: Sequence[FramePrediction],
    *,
    left_out: int = 0,
    functional: str | None = None,
    model: Published | None = None,
    modal: str | None = None,
) -> HeldOutResult:
    """Compare predictions with the labels of a set.

    Energies are compared only where both are of one reference. They are not where the functionals that are stated
    differ, nor where the errors are mostly constants of the elements (a least-squares fit of such constants takes away
    three quarters of their squares), as other pseudopotentials, corrections or reference energies make them.

    Args:
        path: of the file; a name in `SETS` tells what the labels are.
        frames, predictions: one by one.
        left_out: frames that were not predicted.
        functional: of the labels, where the file is not in `SETS`.
        model: the published potential, if it is one.
        modal: the kind of reference calculation that it speaks for, if it has several.

    Raises:
        InputError: no frames.
    """
    if not frames:
        raise InputError(f"{path}: no frames to compare with")
    known = SETS.get(Path(path).stem)
    functional = known.functional if known is not None else functional
    warnings = list(_about_training(known, model))
    energy, fitted, offset = _energy_errors(frames, predictions)
    problem = _other_reference(functional, model, modal)
    if energy is not None and problem is None and offset is not None and fitted is not None:
        squares = [float(np.mean(errors**2)) for errors in (energy, fitted)]
        if offset > _LARGE_OFFSET and squares[1] < (1 - _EXPLAINED) * squares[0]:
            problem = (
                f"constants of the elements of {1000 * offset:.0f} meV/atom (RMS) are most of the difference of the "
                "energies: other pseudopotentials, corrections or reference energies"
            )
    if energy is not None and problem is not None:
        warnings.append(f"energies are not compared: {problem}")
    forces = _pairs(frames, predictions, "forces")
    stress = _pairs(frames, predictions, "stress")
    slopes = _slopes(*forces) if forces is not None else (None, None)
    if forces is not None and slopes[1] is None:
        warnings.append("the forces of the labels are smaller than the errors, and have no slope")
    return HeldOutResult(
        name=Path(path).stem,
        about=known.about if known is not None else "",
        n_frames=len(frames),
        n_atoms=sum(len(frame.atoms) for frame in frames),
        left_out=left_out,
        energy_mae_mev_per_atom=None if energy is None or problem else 1000 * float(np.abs(energy).mean()),
        energy_mae_after_fit_mev_per_atom=None if fitted is None else 1000 * float(np.abs(fitted).mean()),
        energy_offset_mev_per_atom=None if offset is None else 1000 * offset,
        force_mae_mev_per_ang=_mae(forces, 1000.0),
        force_median_mev_per_ang=None
        if forces is None
        else 1000 * float(np.median(np.abs(forces[1] - forces[0]))),
        force_rms_mev_per_ang=_rms(forces, 1000.0),
        stress_mae_gpa=_mae(stress, 1 / units.GPa),
        stress_rms_gpa=_rms(stress, 1 / units.GPa),
        softening=slopes[0],
        softening_robust=slopes[1],
        per_element=_by_element(frames, predictions),
        warnings=tuple(warnings),
        source=known.source if known is not None else str(path),
    )


def softening(reference: np.ndarray, predicted: np.ndarray) -> float | None:
    """Slope of predicted over reference values through the origin, Σ f f' / Σ f²; None where all references are zero.

    >>> softening(np.array([1.0, -2.0]), np.array([0.8, -1.6]))
    0.8
    """
    size = float(np.sum(reference**2))
    return float(np.sum(reference * predicted)) / size if size > 0 else None


def robust_softening(reference: np.ndarray, predicted: np.ndarray) -> float | None:
    """The slope s of least Σ |f' - s f|: the median of the ratios f' / f, weighted by |f|.

    >>> robust_softening(np.array([1.0, -2.0, 3.0, 0.1]), np.array([0.8, -1.6, 2.4, 1000.0]))
    0.8
    """
    there = reference != 0
    weights, ratios = np.abs(reference[there]), predicted[there] / reference[there]
    if not len(ratios):
        return None
    order = np.argsort(ratios)
    half = np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())
    return float(ratios[order][half])


def _slopes(reference: np.ndarray, predicted: np.ndarray) -> tuple[float | None, float | None]:
    """Both slopes; None where they would be of noise: labels smaller than the errors, by their 90th percentiles."""
    labels, errors = (np.quantile(np.abs(values), 0.9) for values in (reference, predicted - reference))
    if labels < errors:
        return None, None
    return softening(reference, predicted), robust_softening(reference, predicted)


def _about_training(known: HeldOutSet | None, model: Published | None) -> list[str]:
    if known is None or model is None:
        return []
    inside = [name for name in known.within if name in model.data]
    if not inside:
        return []
    return [
        f"these frames are of {', '.join(inside)}, which {model.name} was trained on: most are not held out for it"
    ]


def _other_reference(functional: str | None, model: Published | None, modal: str | None) -> str | None:
    """Why energies are of two references, as far as it is stated; None if it is not."""
    if functional is None or model is None:
        return None
    own = [name.strip() for name in model.functional.split(",")]
    if modal is not None:  # such as PBE and R2SCAN
        own = [name for name in own if _letters(name).startswith(_letters(modal)[:3])]
    if functional in own:
        return None
    return f"they are of {functional}, and {model.name} speaks of {', '.join(own) or modal}"


def _letters(name: str) -> str:
    return "".join(c for c in name.lower().replace("²", "2") if c.isalnum())


def _energy_errors(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction]
) -> tuple[np.ndarray | None, np.ndarray | None, float | None]:
    """Errors per atom in eV, what is left of them after a fit of constants of the elements, and the RMS of the latter.

    No fit where there are not more than three frames for each element.
    """
    labelled = [(f, p) for f, p in zip(frames, predictions, strict=True) if f.energy is not None]
    if not labelled:
        return None, None, None
    errors = np.array([(p.energy - (f.energy or 0.0)) / len(f.atoms) for f, p in labelled])
    elements = sorted({z for f, _ in labelled for z in f.atoms.numbers})
    if len(errors) <= 3 * len(elements):
        return errors, None, None
    fractions = np.array([[np.mean(f.atoms.numbers == z) for z in elements] for f, _ in labelled])
    constants = fractions @ np.linalg.lstsq(fractions, errors, rcond=1e-10)[0]
    return errors, errors - constants, float(np.sqrt(np.mean(constants**2)))


def _pairs(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], quantity: str
) -> tuple[np.ndarray, np.ndarray] | None:
    found = [
        (np.ravel(getattr(f, quantity)), np.ravel(getattr(p, quantity)))
        for f, p in zip(frames, predictions, strict=True)
        if getattr(f, quantity) is not None and getattr(p, quantity) is not None
    ]
    if not found:
        return None
    reference, predicted = (np.concatenate(part) for part in zip(*found, strict=True))
    return reference, predicted


def _mae(pair: tuple[np.ndarray, np.ndarray] | None, unit: float) -> float | None:
    return None if pair is None else unit * float(np.abs(pair[1] - pair[0]).mean())


def _rms(pair: tuple[np.ndarray, np.ndarray] | None, unit: float) -> float | None:
    return None if pair is None else unit * float(np.sqrt(np.mean(pair[0] ** 2)))


def _by_element(frames: Sequence[Frame], predictions: Sequence[FramePrediction]) -> dict[str, dict[str, Any]]:
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for frame, prediction in zip(frames, predictions, strict=True):
        if frame.forces is None or prediction.forces is None:
            continue
        symbols = np.array(frame.atoms.get_chemical_symbols())
        for symbol in map(str, np.unique(symbols)):
            mine = symbols == symbol
            parts.setdefault(symbol, []).append((frame.forces[mine].ravel(), prediction.forces[mine].ravel()))
    found = {}
    for symbol in sorted(parts):
        reference, predicted = (np.concatenate(part) for part in zip(*parts[symbol], strict=True))
        slopes = _slopes(reference, predicted)
        found[symbol] = {
            "n_atoms": len(reference) // 3,
            "force_mae_mev_per_ang": _mae((reference, predicted), 1000.0),
            "force_rms_mev_per_ang": _rms((reference, predicted), 1000.0),
            "softening": slopes[0],
            "softening_robust": slopes[1],
        }
    return found
