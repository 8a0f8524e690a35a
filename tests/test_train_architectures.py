"""Every architecture trains, saves, loads and predicts; what the data decides is filled in under its own names."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipes.models import ARCHITECTURES, load
from equipes.training import Config, load_config, train
from equipes.training.architectures import MODEL_CONFIGS
from training_samples import DATA, TINY

MODELS = {
    "nequip": TINY,
    "mace": {"r_max": 4.0, "max_ell": 2, "hidden_irreps": "4x0e + 4x1o", "radial_MLP": [8], "num_bessel": 4},
    "sevennet": {"r_max": 4.0, "num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_width": 8},
    "schnet": {"r_max": 4.0, "num_features": 8, "gaussian_spacing": 0.4},
    "physnet": {"r_max": 4.0, "num_features": 8, "num_basis": 8, "num_modules": 2},
    "ani": {"r_max": 4.0, "angular_r_max": 3.0, "hidden": [16]},
}


@pytest.mark.parametrize("architecture", MODEL_CONFIGS)
def test_trains(architecture: str, tmp_path: Path) -> None:
    data = {
        "train": str(DATA / "ethanol.npz"),
        "n_train": 8,
        "n_val": 2,
        "n_test": 2,
        "units": {"energy": "kcal/mol"},
    }
    settings = {"batch_size": 4, "max_steps": 60, "validate_every": 20, "learning_rate": 0.01}
    config = Config.model_validate(
        {"data": data, "model": {"architecture": architecture, **MODELS[architecture]}, "train": settings}
    )
    result = train(config, tmp_path / "run")
    assert result.steps == 60
    assert result.test is not None
    potential = load(result.model)
    assert potential.architecture == architecture
    assert isinstance(potential.model, ARCHITECTURES[architecture])
    written = load_config(tmp_path / "run" / "config.yaml")
    chosen = {key: value for key, value in written.model if value is None}
    assert set(chosen) <= {
        "readout_mlp_hidden_layers_width",
        "type_embed_num_features",
        "per_edge_type_cutoff",
        "pair_repulsion_cutoff",
        "xplor_on",
        "readout_width",
    }
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    first, last = (float(rows[index].split(",")[column]) for index in (2, -1))
    assert last < first


def test_statistics_of_mace(tmp_path: Path) -> None:
    data = {"train": str(DATA / "ethanol.npz"), "n_train": 8, "n_val": 2, "units": {"energy": "kcal/mol"}}
    config = Config.model_validate(
        {"data": data, "model": {"architecture": "mace", **MODELS["mace"]}, "train": {"max_steps": 1}}
    )
    train(config, tmp_path / "run")
    model = load(tmp_path / "run" / "model.safetensors").model
    assert 5 < model.interactions[0].avg_num_neighbors < 9  # of nine atoms, nearly all within 4 Å
    assert model.scale.item() > 0.1
    assert model.atomic_energies.shape == (1, 3)
    assert model.atomic_energies.max().item() < -100
