"""Telling a potential which frames it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from equipes.graph import AtomGraph
from equipes.models import load
from equipes.models.familiarity import Familiarity, fit
from equipes.training.metrics import batches_of, check_species

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.models import Potential

# More atoms change nothing in means and covariances of some hundred features; the frames are thinned out evenly.
MOST_ATOMS = 100_000


def familiarity_of(
    potential: Potential, frames: Sequence[Frame], held_out: Sequence[Frame] = (), *, source: str = ""
) -> Familiarity:
    """What the potential makes of frames; see `equipes.models.familiarity.fit`.

    Args:
        potential: whose features.
        frames: that it was trained on, or shall be trusted on. Of more than 100 000 atoms every k-th frame is taken.
        held_out: frames like them that it was not trained on, for the limit; likewise.
        source: where the frames are from, for the record.

    Raises:
        InputError: no frames, or one with an element that the potential does not know or an impossible geometry.
    """
    check_species(potential, frames)
    if held_out:
        check_species(potential, held_out)
    return fit(
        potential,
        _graphs(potential, frames),
        _graphs(potential, held_out),
        facts={"source": source} if source else {},
    )


def remember_training(
    path: Path, frames: Sequence[Frame], held_out: Sequence[Frame], device: torch.device
) -> None:
    """Put into a model file what its potential was trained on."""
    potential = load(path)
    known = familiarity_of(
        potential.to(device), frames, held_out, source="training frames; calibrated with validation frames"
    )
    potential = potential.to("cpu")
    potential.familiarity = known
    potential.save(path, overwrite=True)


def _graphs(potential: Potential, frames: Sequence[Frame]) -> Iterator[AtomGraph]:
    atoms = sum(len(frame.atoms) for frame in frames)
    thinned = frames[:: -(-atoms // MOST_ATOMS) or 1]
    for batch in batches_of(thinned, potential.cutoff):
        yield AtomGraph.batch(batch)
