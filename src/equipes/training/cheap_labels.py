"""Cheap frames to pre-train on: geometries around structures of the user, labelled with GFN-xTB and kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase
import numpy as np
import platformdirs
from ase.calculators.calculator import BaseCalculator, CalculatorError
from rich.console import Console

from equipes.data import Frame, elements, write_frames
from equipes.errors import InputError
from equipes.files import writing_to
from equipes.sampling import (
    DynamicsOptions,
    NormalModeOptions,
    Part,
    Sample,
    collect,
    describe,
    dynamics,
    normal_modes,
    one_thread,
    xtb_calculator,
)
from equipes.simulate.errors import SimulationError
from equipes.simulate.store import structure_key
from equipes.simulate.structures import read_structure
from equipes.training.config import PretrainingConfig
from equipes.training.display import sampling_progress

FRAMES = "frames.extxyz"

# Of the sampling, so that what an earlier version kept is not taken for what this one would make.
_VERSION = 2
_STRUCTURES = 8  # at most, of those that the training frames offer
_FRAMES_OF_WALK = 50
# Steps of 1 fs from frame to frame. Frames farther apart differ more, but each costs as many labels that are thrown
# away: where a label takes 10 ms, that is time which the network would rather train in.
_INTERVAL = 5
_CALLS_OF_RELAXATION = 30


@dataclass(frozen=True)
class Cheap:
    """Frames to pre-train on.

    Attributes:
        path: where they are.
        count, discarded: frames, and geometries that were left out, in words.
        formulas: of the structures that were sampled around.
    """

    path: Path
    count: int
    discarded: str
    formulas: tuple[str, ...]

    def sentence(self) -> str:
        """Frames, around what, and what was left out."""
        left_out = f"; left out {self.discarded}" if self.discarded else ""
        return f"sampled     {self.count} geometries around {', '.join(self.formulas)}{left_out}"


def cheap_frames(
    settings: PretrainingConfig, train: Sequence[Frame], out: Path, *, seed: int, console: Console
) -> Cheap:
    """Sample and label geometries, or take them from the cache, and write them to `out/frames.extxyz`.

    Args:
        settings: how many, around what.
        train: training frames: where no structure is given, the first of each composition.
        out: directory of the pre-training.
        seed: of everything random.
        console: where progress goes.

    Raises:
        InputError: tblite is missing, a structure that cannot be read or lacks an element of the frames, a cache that
            cannot be written, or a method that fails on nearly every geometry.
    """
    structures = _structures(settings, train)
    parts = _parts(settings, structures)
    facts = {
        "version": _VERSION,
        "tblite": version("tblite") if find_spec("tblite") else "",
        **settings.model_dump(mode="json", exclude={"structure", "share"}),
        "structures": [structure_key(atoms) for atoms in structures],
    }
    key = hashlib.sha256(json.dumps([facts, seed], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_directory()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    calculator = partial(
        xtb_calculator, settings.method, charge=settings.charge, multiplicity=settings.multiplicity
    )
    calculator()  # a missing package is told before anything is done
    path = folder / f"{key}.npz"
    try:
        with one_thread(), sampling_progress(console) as progress:
            if not path.exists():
                console.print(_estimate(structures, parts, calculator()), highlight=False)
            sample = collect(parts, calculator, seed=seed, path=path, facts=facts, progress=progress)
    except InputError as error:
        if str(path) not in str(error):
            raise
        raise InputError(
            f"{path}: labelled geometries of an earlier pre-training that cannot be read; remove the file"
        ) from error
    except (SimulationError, CalculatorError) as error:
        raise InputError(
            f"pre-training: {settings.method} cannot label geometries of {structures[0].get_chemical_formula()}: "
            f"{error}; give another pretraining.structure, or leave pre-training out"
        ) from error
    write_frames(sample.frames, out / FRAMES, overwrite=True)
    formulas = tuple(dict.fromkeys(str(atoms.symbols.formula.format("hill")) for atoms in structures))
    return Cheap(out / FRAMES, len(sample), describe(sample.discarded), formulas)


def cache_directory() -> Path:
    """Where labelled geometries are kept: `EQUIPES_CACHE`, or the user's directory for caches."""
    chosen = os.environ.get("EQUIPES_CACHE")
    return (Path(chosen) if chosen else platformdirs.user_cache_path("equipes")) / "samples"


def _estimate(structures: Sequence[ase.Atoms], parts: Sequence[Part], calculator: BaseCalculator) -> str:
    """How long labelling will take, from one label of the largest structure."""
    atoms = max(structures, key=len).copy()
    atoms.calc = calculator
    try:
        atoms.get_forces()  # the first call reads parameters
        atoms.positions += 0.01
        atoms.positions[0] += 0.01
        began = time.monotonic()
        atoms.get_forces()
    except CalculatorError:
        return "labelling   the structure itself cannot be labelled; others are tried"
    seconds = time.monotonic() - began
    minutes = sum(part.calls for part in parts) * seconds / 60
    return f"labelling   {1e3 * seconds:.3g} ms a structure, about {max(1, round(minutes))} minutes in all"


def _structures(settings: PretrainingConfig, train: Sequence[Frame]) -> list[ase.Atoms]:
    if settings.structure is not None:
        names = [settings.structure] if isinstance(settings.structure, str) else settings.structure
        structures = [read_structure(Path(name).expanduser()) for name in names]
    else:
        first: dict[str, ase.Atoms] = {}
        for frame in train:
            first.setdefault(frame.composition, frame.atoms)
        structures = list(first.values())[:_STRUCTURES]
    known = {symbol for atoms in structures for symbol in atoms.symbols}
    missing = [symbol for symbol in elements(train) if symbol not in known]
    if missing:
        raise InputError(
            f"pre-training: no structure to sample around has {', '.join(missing)}, which training frames have; give "
            "one that does in pretraining.structure"
        )
    return structures


def _parts(settings: PretrainingConfig, structures: Sequence[ase.Atoms]) -> list[Part]:
    """For each structure its share of the frames: normal modes in one piece, walks of fifty frames."""
    parts = []
    for number, own in enumerate(_shares(settings.frames, len(structures))):
        atoms = structures[number]
        by_modes = round(settings.normal_modes * own)
        if by_modes:
            modes = NormalModeOptions(count=by_modes, temperatures=tuple(settings.temperatures))
            calls = by_modes + 6 * len(atoms) + _CALLS_OF_RELAXATION
            parts.append(Part(f"normal modes of {number}", by_modes, partial(_modes, atoms, modes), calls))
        walks = _shares(own - by_modes, max(1, -(-(own - by_modes) // _FRAMES_OF_WALK)))
        for walk, count in enumerate(walks):
            if count:
                temperature = settings.temperatures[walk % len(settings.temperatures)]
                options = DynamicsOptions(count=count, temperature=temperature, interval=_INTERVAL)
                calls = options.settle + count * options.interval
                parts.append(Part(f"walk {walk} of {number}", count, partial(_walk, atoms, options), calls))
    return parts


def _modes(atoms: ase.Atoms, options: NormalModeOptions, calculator: Any, rng: np.random.Generator) -> Sample:
    return normal_modes(atoms, calculator, options, rng)


def _walk(atoms: ase.Atoms, options: DynamicsOptions, calculator: Any, rng: np.random.Generator) -> Sample:
    return dynamics(atoms, calculator, options, rng)


def _shares(total: int, parts: int) -> list[int]:
    return [len(share) for share in np.array_split(np.arange(total), parts)]
