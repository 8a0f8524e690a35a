"""A small foundation model, and data of a teacher that differs from it a little, with other reference energies."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from equipes.data import Frame, write_frames
from equipes.models import Potential, build
from equipes.training import Config
from equipes.training.fine_tuning import labelled

SPECIES = ("H", "C", "O", "Si", "Mg", "Na")
SHIFTS = {symbol: index - 2.0 for index, symbol in enumerate(SPECIES)}
OTHER_SHIFTS = {"H": -10.0, "C": -150.0, "O": -430.0}
SMALL = {"r_max": 4.0, "per_type_energy_shifts": SHIFTS}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sevennet": {"num_layers": 2, "l_max": 1, "num_features": 6, "num_bessels": 4, "radial_mlp_width": 8},
    "nequip": {"num_layers": 2, "l_max": 1, "num_features": 6, "num_bessels": 4, "radial_mlp_width": 8},
    "mace": {
        "max_ell": 1,
        "hidden_irreps": "4x0e + 4x1o",
        "radial_MLP": [8],
        "MLP_irreps": "4x0e",
        "num_bessel": 4,
        "avg_num_neighbors": 4.0,
        "atomic_energies": SHIFTS,
    },
    "schnet": {"num_features": 8, "num_interactions": 2, "gaussian_spacing": 0.5},
    "physnet": {"num_features": 8, "num_basis": 6, "num_modules": 2, "num_residual_interaction": 1},
    "ani": {
        "num_radial": 4,
        "num_angular_shells": 2,
        "num_angles": 2,
        "hidden": [8, 5],
        "angular_r_max": 3.0,
    },
}


def base(architecture: str = "sevennet", dtype: str = "float64", **hyperparameters: Any) -> Potential:
    """With random weights, which are as good as any to find again."""
    own = SMALL | ARCHITECTURES[architecture] | hyperparameters
    if architecture == "mace":
        del own["per_type_energy_shifts"]
    return build(architecture, SPECIES, own, dtype=dtype, seed=1).eval()


def teacher(start: Potential, amount: float = 0.1) -> Potential:
    """`start` with every weight changed by `amount`, for H, C and O only, whose reference energies are its own."""
    from equipes.models import keep_species
    from equipes.models.parts import part_of, reference_energies

    made = keep_species(start, list(OTHER_SHIFTS)) if start.model.PER_SPECIES else copy.deepcopy(start)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if part_of(name) != "references" and not name.startswith("basis"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += (amount * parameter.square().mean().sqrt() * noise).to(parameter)
        for index, value in enumerate(OTHER_SHIFTS.values()):
            reference_energies(made.model)[index] = value
    return made.eval()


def molecules(number: int = 24) -> list[Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for k in range(number):
        atoms = molecule(("H2O", "CH3OH", "CH4", "CO2")[k % 4])
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        made.append(atoms)
    return made


def frames(number: int = 24, architecture: str = "sevennet") -> list[Frame]:
    return labelled(teacher(base(architecture)), molecules(number), "teacher")


def write(folder: Path, architecture: str = "sevennet", **hyperparameters: Any) -> None:
    """`base.safetensors` in float32 and `data.xyz`."""
    base(architecture, "float32", **hyperparameters).save(folder / "base.safetensors")
    write_frames(frames(architecture=architecture), folder / "data.xyz")


def config(folder: Path, train: dict[str, Any] | None = None, **fine_tuning: Any) -> Config:
    """A short fine-tuning of what `write` wrote."""
    usual = {"batch_size": 4, "max_steps": 30, "validate_every": 10, "learning_rate": 0.003}
    return Config.model_validate(
        {
            "data": {"train": str(folder / "data.xyz"), "n_train": 20, "n_val": 4},
            "train": usual | (train or {}),
            "fine_tuning": {
                "base": str(folder / "base.safetensors"),
                "forgetting_frames": 8,
                "replay_frames": 12,
                **fine_tuning,
            },
        }
    )
