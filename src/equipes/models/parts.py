"""Which part of a model a parameter belongs to, by its name: for learning rates and freezing, in every architecture."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from torch import Tensor

from equipes.models.mace import MACE
from equipes.models.potential import Architecture
from equipes.models.sevennet import SevenNet

# The first pattern that fits decides.
_PATTERNS = (
    ("*scales", "references"),
    ("*shifts", "references"),
    ("atomic_energies", "references"),
    ("scale", "references"),
    ("shift", "references"),
    ("embedding", "embedding"),
    ("basis.*", "radial"),
    ("*.radial_network.*", "radial"),
    ("*.density", "radial"),
    ("*.filter_?.*", "radial"),
    ("*.attention.*", "radial"),
    ("readout*", "readout"),
    ("*.output.*", "readout"),
    ("*.output_residuals.*", "readout"),
    ("*", "interactions"),
)
PARTS = ("embedding", "radial", "interactions", "readout", "references")
"""Species embedding; radial basis and networks; all that mixes features; what reads energies; scales and shifts."""


def part_of(name: str) -> str:
    """The part, one of `PARTS`, of the parameter `name` of an architecture.

    >>> part_of("layers.2.radial_network.weights.0"), part_of("products.0.linear.weights.0e")
    ('radial', 'interactions')
    """
    return next(part for pattern, part in _PATTERNS if fnmatchcase(name, pattern))


def layer_of(name: str) -> int | None:
    """The layer, from 0, of the parameter `name`; None for what belongs to no layer.

    >>> layer_of("layers.2.linear_1.weights.0e"), layer_of("embedding")
    (2, None)
    """
    found = re.match(r"(?:layers|interactions|products|readouts|blocks)\.(\d+)\.", name)
    return None if found is None else int(found.group(1))


def reference_energies(model: Architecture) -> Tensor:
    """What each species adds to the energy of its atoms, whatever is around them: a view `[n_species]` float64, eV.

    Of a model for several kinds of reference calculation those of the chosen one.
    """
    name = next(
        name for name, _ in model.named_parameters() if re.search(r"(^|\.)(shifts|atomic_energies)$", name)
    )
    table = model.get_parameter(name).data
    if table.dim() == 1:
        return table
    row = model.chosen_modality() if isinstance(model, SevenNet) else None
    if isinstance(model, MACE):
        row = model.head
    return table[0 if row is None else row]
