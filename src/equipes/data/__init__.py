"""Reference data: reading, units, checks, statistics, splits, and datasets of graphs."""

from equipes.data.checks import check_frames
from equipes.data.consistency import WorkRatio, work_ratios
from equipes.data.dataset import GraphDataset, LabelledGraph
from equipes.data.findings import Finding
from equipes.data.frames import Frame, LabelKeys
from equipes.data.readers import read_frames
from equipes.data.splits import read_indices, split_indices
from equipes.data.statistics import (
    ReferenceEnergies,
    elements,
    fit_reference_energies,
    forces_rms,
    is_isolated,
    isolated_energies,
    mean_neighbors,
)
from equipes.data.summary import describe
from equipes.data.units import Units
from equipes.data.writers import labelled_atoms, write_frames

__all__ = [
    "Finding",
    "Frame",
    "GraphDataset",
    "LabelKeys",
    "LabelledGraph",
    "ReferenceEnergies",
    "Units",
    "WorkRatio",
    "check_frames",
    "describe",
    "elements",
    "fit_reference_energies",
    "forces_rms",
    "is_isolated",
    "isolated_energies",
    "labelled_atoms",
    "mean_neighbors",
    "read_frames",
    "read_indices",
    "split_indices",
    "work_ratios",
    "write_frames",
]
