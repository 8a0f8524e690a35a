"""Tiny data and configs that train in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from equipes.data import Frame, write_frames
from equipes.training import Config

DATA = Path(__file__).parent / "data"
TINY = {"num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_width": 8, "num_bessels": 4, "r_max": 4.0}


def ethanol(**train: Any) -> Config:
    """Real frames of one molecule."""
    return Config.model_validate(
        {
            "data": {
                "train": str(DATA / "ethanol.npz"),
                "n_train": 7,
                "n_val": 3,
                "units": {"energy": "kcal/mol"},
            },
            "model": TINY,
            "train": {"batch_size": 3, "max_steps": 12, "validate_every": 4, "learning_rate": 0.01, **train},
        }
    )


def uneven_frames() -> list[Frame]:
    """Structures of 1 to 8 atoms with a different set of labels each, smooth functions of the geometry."""
    rng = np.random.default_rng(5)
    structures: list[Atoms] = [
        molecule("H2O"), molecule("CO2"), molecule("CH3OH"), molecule("H2"), molecule("C2H6"), molecule("CH4"),
        bulk("C", "diamond", a=3.6), bulk("O", "sc", a=2.0),
        bulk("C", "diamond", a=3.4),
    ]  # fmt: skip
    frames = []
    for index, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=index)
        n = len(atoms)
        frames.append(
            Frame(
                atoms=atoms,
                energy=None if index in (1, 6) else float(-3.0 * n + rng.normal()),
                forces=None if index in (3, 4) else rng.normal(size=(n, 3)),
                stress=_symmetric(rng) if atoms.pbc.any() and index != 7 else None,
                config_type=None,
                source="uneven.xyz",
                index=index,
            )
        )
    return frames


def write_uneven(folder: Path) -> Path:
    path = folder / "uneven.xyz"
    write_frames(uneven_frames(), path)
    return path


def _symmetric(rng: np.random.Generator) -> np.ndarray:
    half = 0.01 * rng.normal(size=(3, 3))
    return half + half.T
