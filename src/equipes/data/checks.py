"""Checks of reference data that speak before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from equipes.data.consistency import consistency_findings
from equipes.data.duplicates import duplicate_findings
from equipes.data.findings import Finding, labels, some_frames, sources
from equipes.data.frames import Frame
from equipes.data.labels import FALLBACK_KEYS, USUAL_KEYS
from equipes.data.statistics import composition_counts, elements, forces_rms, least_squares_references
from equipes.errors import InputError
from equipes.graph import AtomGraph

TOO_CLOSE = 0.5
"""Å; no two atoms of a molecule or crystal come this near (H2 is 0.74 Å long)."""

# Of frames with a cell and without periodicity so many are looked at for bonds, up to so many sums of covalent radii.
_LOOKED_AT = 100
_BOND = 1.25

# Net force over rms force times sqrt(atoms): 1e-6 and less where a code removes it or has none.
_NET_FORCE = 1e-3
# Median over frames; forces at 3000 K and stresses at planetary pressures stay well below.
_LARGE_FORCES = 12.0
_LARGE_STRESS = 1.5
# Robust standard deviations from the composition fit, and eV/atom.
_OUTLIER = 20.0
_OUTLIER_EV = 0.05
# Chemistry does not move an energy by as much: other units or another level of theory.
_IMPOSSIBLE_EV = 10.0
_OUTLIER_SHARE = 0.1


def check_frames(splits: Mapping[str, Sequence[Frame]]) -> list[Finding]:
    """Everything that is wrong or suspicious, errors first.

    Errors: no labels, labels or positions that are not finite, atoms closer than 0.5 Å (periodic images included) or a
    structure of which no graph can be made, geometries shared by two splits, elements that `train` does not have.
    Warnings: frames with a cell that are not periodic though bonds cross its faces, labels on a part of the frames
    only, energies taken from `free_energy`, net forces, geometries repeated within a split, energies far from the
    composition fit, and forces or stress of a suspicious unit or sign (`equipes.data.consistency`).

    Args:
        splits: frames by the name of their split, such as `train`, `val`, `test`.
    """
    frames = [frame for members in splits.values() for frame in members]
    findings = [
        *_no_labels(splits),
        *_not_finite(frames),
        *_geometry(frames),
        *duplicate_findings(splits),
        *_not_periodic(frames),
        *_new_elements(splits),
        *_partly_labelled(frames),
        *_fallbacks(frames),
        *_net_forces(frames),
        *_energy_outliers(frames),
        *_magnitudes(frames),
        *consistency_findings(frames),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _no_labels(splits: Mapping[str, Sequence[Frame]]) -> list[Finding]:
    findings = []
    for name, frames in splits.items():
        if frames and all(f.energy is None and f.forces is None and f.stress is None for f in frames):
            looked = ", ".join(
                repr(key) for quantity in ("energy", "forces") for key in USUAL_KEYS[quantity][:3]
            )
            findings.append(
                Finding(
                    "error",
                    "no-labels",
                    f"{name}: no frame of {sources(frames)} has energy, forces or stress (looked for {looked}, …); "
                    "set data.keys",
                    labels(frames),
                )
            )
    return findings


def _not_finite(frames: Sequence[Frame]) -> list[Finding]:
    findings = []
    for quantity in ("energy", "forces", "stress", "positions"):
        bad = [frame for frame in frames if not np.isfinite(_values(frame, quantity)).all()]
        if bad:
            where = _first_bad_atom(bad[0], quantity)
            others = f" (and {len(bad) - 1} more frames)" if len(bad) > 1 else ""
            findings.append(
                Finding(
                    "error",
                    "not-finite",
                    f"{bad[0].label}: {quantity}{where} not finite{others}; correct or remove the frame",
                    labels(bad),
                )
            )
    return findings


def _values(frame: Frame, quantity: str) -> np.ndarray:
    value = frame.atoms.positions if quantity == "positions" else getattr(frame, quantity)
    return np.zeros(0) if value is None else np.asarray(value)


def _first_bad_atom(frame: Frame, quantity: str) -> str:
    if quantity in ("energy", "stress"):
        return " is"
    atom = int(np.argmin(np.isfinite(_values(frame, quantity)).all(axis=1)))
    return f" of atom {atom} ({frame.atoms.symbols[atom]}) are"


def _geometry(frames: Sequence[Frame]) -> list[Finding]:
    findings = []
    close: list[Frame] = []
    nearest = TOO_CLOSE
    for frame in frames:
        if not np.isfinite(frame.atoms.positions).all():
            continue  # said above
        try:
            graph = AtomGraph.from_atoms(frame.atoms, TOO_CLOSE)
        except InputError as error:
            findings.append(Finding("error", "geometry", f"{frame.label}: {error}", (frame.label,)))
            continue
        if graph.n_edges:
            close.append(frame)
            nearest = min(nearest, float(graph.edge_vectors().norm(dim=1).min()))
    if close:
        findings.append(
            Finding(
                "error",
                "close-atoms",
                f"{some_frames(close)}: atoms closer than {TOO_CLOSE} Å (down to {nearest:.2g} Å); "
                "check the unit of length and the cell, or remove the frames",
                labels(close),
            )
        )
    return findings


def _not_periodic(frames: Sequence[Frame]) -> list[Finding]:
    """Crystals or liquids that a file declares to be molecules: the cell is there, `pbc` is not."""
    bad = []
    declared = [frame for frame in frames if not frame.atoms.pbc.any() and frame.atoms.cell.rank == 3]
    for frame in declared[:: max(1, len(declared) // _LOOKED_AT)]:
        if not np.isfinite(frame.atoms.positions).all() or not np.isfinite(frame.atoms.cell.array).all():
            continue
        radii = covalent_radii[frame.atoms.numbers]
        atoms = Atoms(frame.atoms.numbers, frame.atoms.positions, cell=frame.atoms.cell, pbc=True)
        try:
            graph = AtomGraph.from_atoms(atoms, _BOND * 2 * float(radii.max()))
        except InputError:
            continue
        across = graph.shift.numpy()  # [E, 3]
        sender, receiver = graph.sender.numpy(), graph.receiver.numpy()
        bonds = graph.edge_vectors().norm(dim=1).numpy() < _BOND * (radii[sender] + radii[receiver])
        if (np.abs(across[bonds]) > 0).any(axis=0).all():
            bad.append(frame)
    if not bad:
        return []
    return [
        Finding(
            "warning",
            "not-periodic",
            f"{some_frames(bad)}: a cell, but not periodic (pbc FFF), though atoms would be bonded through all of its "
            "faces; set pbc to T T T if these are crystals or liquids",
            labels(bad),
        )
    ]


def _new_elements(splits: Mapping[str, Sequence[Frame]]) -> list[Finding]:
    if "train" not in splits:
        return []
    known = set(elements(splits["train"]))
    findings = []
    for name, frames in splits.items():
        new = [symbol for symbol in elements(frames) if symbol not in known]
        if new:
            having = [frame for frame in frames if set(new) & set(frame.atoms.symbols)]
            findings.append(
                Finding(
                    "error",
                    "new-elements",
                    f"{name} has {', '.join(new)} (in {some_frames(having)}), which train does not have; "
                    "add such frames to train or remove these",
                    labels(having),
                )
            )
    return findings


def _partly_labelled(frames: Sequence[Frame]) -> list[Finding]:
    findings = []
    for quantity in ("energy", "forces", "stress"):
        # An isolated atom has no force and a molecule no stress: nothing is missing there.
        due = [
            frame
            for frame in frames
            if quantity == "energy"
            or (quantity == "forces" and len(frame.atoms) > 1)
            or (quantity == "stress" and frame.atoms.pbc.any())
        ]
        without = [frame for frame in due if getattr(frame, quantity) is None]
        if without and len(without) < len(due):
            findings.append(
                Finding(
                    "warning",
                    "partial-labels",
                    f"{len(without)} of {len(due)} frames have no {quantity}: {some_frames(without)}; "
                    "they do not count where it is needed",
                    labels(without),
                )
            )
    return findings


def _fallbacks(frames: Sequence[Frame]) -> list[Finding]:
    taken = [frame for frame in frames if frame.keys.energy in FALLBACK_KEYS["energy"]]
    if not taken:
        return []
    message = f"{sources(taken)}: the energy of {len(taken)} frames is their 'free_energy'"
    return [Finding("warning", "free-energy", message, labels(taken))]


def _net_forces(frames: Sequence[Frame]) -> list[Finding]:
    labelled = [
        f for f in frames if f.forces is not None and len(f.atoms) > 1 and np.isfinite(f.forces).all()
    ]
    if not labelled:
        return []
    scale = forces_rms(labelled)
    net = np.array([np.linalg.norm(f.forces.sum(axis=0)) for f in labelled])  # type: ignore[union-attr]
    large = net > _NET_FORCE * scale * np.sqrt([len(frame.atoms) for frame in labelled])
    if not large.any():
        return []
    bad = [labelled[i] for i in np.argsort(-net) if large[i]]
    message = (
        f"the forces do not sum to zero in {len(bad)} of {len(labelled)} frames (up to {net.max():.2g} eV/Å in "
        f"{bad[0].label}; rms force {scale:.2g} eV/Å): constraints, external fields or loose convergence"
    )
    return [Finding("warning", "net-force", message, labels(bad))]


def _energy_outliers(frames: Sequence[Frame]) -> list[Finding]:
    # A single atom is no outlier among molecules, however far it is from their energy per atom.
    labelled = [f for f in frames if f.energy is not None and np.isfinite(f.energy) and len(f.atoms) > 1]
    if len(labelled) < 5:
        return []
    counts = composition_counts(labelled, elements(labelled))
    atoms = counts.sum(axis=1)
    residual = _robust_residual(counts / atoms[:, None], np.array([f.energy for f in labelled]) / atoms)
    deviation = np.abs(residual - np.median(residual))
    spread = 1.4826 * np.median(deviation)
    outlier = (deviation > _OUTLIER * spread) & (deviation > _OUTLIER_EV)
    if outlier.mean() > _OUTLIER_SHARE:  # a wide distribution, not outliers
        outlier = np.zeros_like(outlier)
    outlier |= deviation > max(_IMPOSSIBLE_EV, _OUTLIER * spread)
    if not outlier.any():
        return []
    bad = [labelled[i] for i in np.argsort(-deviation) if outlier[i]]
    message = (
        f"the energies of {len(bad)} frames are far from a linear fit to the composition: {some_frames(bad)} "
        f"(up to {deviation.max():.3g} eV/atom away, typically {spread:.2g}); check units, level of theory, convergence"
    )
    return [Finding("warning", "energy-outliers", message, labels(bad))]


def _robust_residual(fractions: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Residual of the fit with the least sum of absolute residuals, by iteratively reweighted least squares."""
    weights = np.ones(len(energies))
    residual = energies
    for _ in range(15):
        reference, _ = least_squares_references(fractions * weights[:, None], energies * weights)
        residual = energies - fractions @ reference
        floor = max(1e-6, 1e-3 * float(np.median(np.abs(residual))))
        weights = 1 / np.sqrt(np.maximum(np.abs(residual), floor))
    return residual


def _magnitudes(frames: Sequence[Frame]) -> list[Finding]:
    findings = []
    forces = {f.label: np.sqrt(np.mean(f.forces**2)) for f in frames if f.forces is not None}
    stress = {f.label: np.abs(f.stress).max() for f in frames if f.stress is not None}
    for quantity, values, limit, unit, perhaps in (
        ("forces", forces, _LARGE_FORCES, "eV/Å", "kcal/mol/Å"),
        ("stress", stress, _LARGE_STRESS, "eV/Å³", "GPa or kbar"),
    ):
        median = float(np.median(list(values.values()))) if values else 0.0
        if median > limit:
            labelled = [frame for frame in frames if frame.label in values]
            findings.append(
                Finding(
                    "warning",
                    f"{quantity}-magnitude",
                    f"{sources(labelled)}: {quantity} above {median:.3g} {unit} in half of the frames; "
                    f"if the unit is {perhaps}, declare data.units",
                    tuple(label for label, value in values.items() if value > limit),
                )
            )
    return findings
