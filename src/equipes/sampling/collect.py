"""Several ways of sampling as one set of frames, kept on the disk part by part."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.data import Frame
from equipes.sampling.sample import Sample
from equipes.simulate.results import Progress, silent
from equipes.simulate.store import Store

Sampler = Callable[[BaseCalculator, np.random.Generator], Sample]


@dataclass(frozen=True)
class Part:
    """One independent piece of sampling.

    Attributes:
        name: unique among the parts; with the seed it decides the random numbers.
        count: frames expected, for the progress.
        sampler: makes them.
        calls: of the calculator, about, for who wants to say how long it will take.
    """

    name: str
    count: int
    sampler: Sampler
    calls: int = 0


def collect(
    parts: Sequence[Part],
    calculator: Callable[[], BaseCalculator],
    *,
    seed: int,
    path: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Sample:
    """The frames of all parts, in order.

    Each part has a calculator and random numbers of its own, so its frames do not depend on what was done before, and
    those of a run that was stopped are those of one that was not.

    Args:
        parts: what to do.
        calculator: makes the calculator of a part.
        seed: of all random numbers.
        path: where finished parts are kept, and looked for first; None keeps nothing.
        facts: what the labels depend on, plain JSON values.
        progress: called after each part.

    Raises:
        InputError: a file at `path` that is damaged or was made with other facts.
        SimulationError: a part that finds nothing but failures.
    """
    facts = {**(facts or {}), "seed": seed}
    total, done = sum(part.count for part in parts), 0
    sample = Sample()
    with Store(path, facts, resume=path is not None and path.exists()) as store:
        progress("sampling", 0, total)
        for part in parts:
            kept = store.get(part.name)
            if kept is None:
                rng = np.random.default_rng([seed % 2**64, zlib.crc32(part.name.encode())])
                found = part.sampler(calculator(), rng)
                store.put(part.name, **_arrays(found))
            else:
                found = _sample(kept)
            sample.add(found)
            done += part.count
            progress(part.name, done, total)
    return sample


def _arrays(sample: Sample) -> dict[str, np.ndarray]:
    """Frames as arrays: those of all atoms one after the other, `sizes` says where each frame ends."""
    frames = sample.frames
    stress = [np.full((3, 3), np.nan) if frame.stress is None else frame.stress for frame in frames]
    about = {"discarded": dict(sample.discarded), "kinds": [frame.config_type for frame in frames]}
    return {
        "sizes": np.array([len(frame.atoms) for frame in frames], dtype=np.int64),
        "numbers": np.concatenate([frame.atoms.numbers for frame in frames]),
        "positions": np.concatenate([frame.atoms.positions for frame in frames]),
        "cell": np.array([frame.atoms.cell.array for frame in frames]),
        "pbc": np.array([frame.atoms.pbc for frame in frames]),
        "energy": np.array([frame.energy for frame in frames], dtype=float),
        "forces": np.concatenate([frame.forces for frame in frames if frame.forces is not None]),
        "stress": np.array(stress),
        "about": np.array(json.dumps(about)),
    }


def _sample(arrays: Mapping[str, np.ndarray]) -> Sample:
    about = json.loads(str(arrays["about"]))
    ends = np.cumsum(arrays["sizes"])[:-1]
    per_atom = zip(
        *(np.split(arrays[name], ends) for name in ("numbers", "positions", "forces")), strict=True
    )
    frames = []
    for index, (numbers, positions, forces) in enumerate(per_atom):
        kind = about["kinds"][index]
        stress = arrays["stress"][index]
        atoms = ase.Atoms(
            numbers=numbers, positions=positions, cell=arrays["cell"][index], pbc=arrays["pbc"][index]
        )
        frames.append(
            Frame(
                atoms,
                float(arrays["energy"][index]),
                forces,
                None if np.isnan(stress).any() else stress,
                kind,
                kind,
                index,
            )
        )
    return Sample(frames, Counter(about["discarded"]))
