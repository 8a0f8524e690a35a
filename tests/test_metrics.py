"""Predictions and their errors against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

import equipes
from equipes.data import Frame, Units, read_frames
from equipes.errors import InputError
from equipes.training import metrics as metrics_module
from equipes.training.metrics import FramePrediction, composition_energies, error_metrics, predict_frames

DATA = Path(__file__).parent / "data"


def frame(atoms: Atoms, index: int = 0, **labels: object) -> Frame:
    values = {"energy": None, "forces": None, "stress": None, "config_type": None, **labels}
    return Frame(atoms=atoms, source="set.xyz", index=index, **values)


class Spring(torch.nn.Module):
    """Every atom on a spring at the origin: E = Σ |x|²/2 eV, F = -x; stress is the identity where there is a volume."""

    species = ("H", "C", "O", "Cu")
    cutoff = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[tuple[int, int]] = []

    def forward(self, graph, *, forces=True, stress=True):
        assert not self.training
        self.batches.append((graph.n_structures, graph.n_atoms + graph.n_edges))
        energies = (graph.positions**2).sum(1) / 2
        energy = torch.zeros(graph.n_structures, dtype=torch.float64).index_add(0, graph.structure, energies)
        volume = torch.linalg.det(graph.cell).abs().view(-1, 1, 1)
        eye = torch.eye(3, dtype=torch.float64).expand(graph.n_structures, 3, 3)
        tensor = torch.where(volume > 0, eye, torch.nan) if stress else None
        return SimpleNamespace(energy=energy, forces=-graph.positions, stress=tensor)


@pytest.fixture
def mixed() -> list[Frame]:
    """Molecules, an atom and crystals of different sizes."""
    structures = [
        ase.build.molecule("CH3CH2OH"),
        ase.build.bulk("Cu", cubic=True),
        Atoms("H", positions=[[1.0, 2.0, 2.0]]),
        ase.build.molecule("H2O"),
        ase.build.bulk("Cu"),
    ]
    return [frame(atoms, index) for index, atoms in enumerate(structures)]


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_predictions_keep_the_order_of_the_frames(mixed: list[Frame], batch_size: int | None) -> None:
    model = Spring()
    found = predict_frames(model, mixed, batch_size=batch_size)
    assert len(found) == len(mixed)
    for prediction, one in zip(found, mixed, strict=True):
        x = one.atoms.positions
        assert prediction.energy == pytest.approx((x**2).sum() / 2, rel=1e-14)
        np.testing.assert_array_equal(prediction.forces, -x)
        if one.atoms.cell.rank == 3:
            np.testing.assert_array_equal(prediction.stress, np.eye(3))
        else:
            assert prediction.stress is None
    if batch_size is not None:
        assert max(structures for structures, _ in model.batches) == batch_size


def test_batches_are_bounded_by_their_edges(mixed: list[Frame], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_BATCH_EDGES", 100)
    model = Spring()
    predict_frames(model, mixed * 5)
    assert all(size <= 100 or structures == 1 for structures, size in model.batches)
    assert any(structures > 1 for structures, _ in model.batches)


def test_progress_counts_up_to_all_frames(mixed: list[Frame]) -> None:
    seen: list[tuple[int, int]] = []
    predict_frames(Spring(), mixed, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_potential_is_left_as_it_was(mixed: list[Frame], training: bool) -> None:
    model = Spring().train(training)
    predict_frames(model, mixed)
    assert model.training is training


def test_a_real_model_says_the_same_in_batches_and_one_by_one() -> None:
    frames = read_frames(DATA / "hafnia.xyz") + read_frames(DATA / "silicon.xyz")[:3]
    small = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 4, "avg_num_neighbors": 20.0}
    potential = equipes.build("nequip", ["Hf", "O", "Si"], small, dtype="float64", seed=1)
    together = predict_frames(potential, frames)
    alone = predict_frames(potential, frames, batch_size=1)
    for a, b in zip(together, alone, strict=True):
        assert a.energy == pytest.approx(b.energy, rel=1e-12)
        np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=1e-12 * np.abs(b.forces).max())
        np.testing.assert_allclose(a.stress, b.stress, rtol=0, atol=1e-12 * np.abs(b.stress).max())


def test_an_unknown_element_is_named_with_its_frame(mixed: list[Frame]) -> None:
    mixed.append(frame(Atoms("OU", positions=[[0, 0, 0], [0, 0, 2]]), 17))
    model = Spring()
    with pytest.raises(InputError, match=r"set\.xyz frame 17: the model does not know U, only H, C, O, Cu"):
        predict_frames(model, mixed)
    assert not model.batches  # told before anything is computed


def test_an_impossible_geometry_is_named_with_its_frame(mixed: list[Frame]) -> None:
    mixed.append(frame(Atoms("HH", positions=[[0, 0, 0], [0, 0, 0]]), 9))
    with pytest.raises(
        InputError, match=r"set\.xyz frame 9: atoms 0 \(H\) and 1 \(H\) are at the same place"
    ):
        predict_frames(Spring(), mixed)


def test_a_prediction_that_is_not_finite_is_an_error() -> None:
    frames = [frame(Atoms("H", positions=[[0, 0, x]]), i) for i, x in enumerate([1.0, 1e200])]
    with pytest.raises(InputError, match=r"set\.xyz frame 1: the model predicts a non-finite energy"):
        predict_frames(Spring(), frames)


def test_nothing_to_predict_is_an_error(mixed: list[Frame]) -> None:
    with pytest.raises(InputError, match="no frames to predict"):
        predict_frames(Spring(), [])
    with pytest.raises(InputError, match="batch size must be at least 1, not 0"):
        predict_frames(Spring(), mixed, batch_size=0)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_hand() -> tuple[list[Frame], list[FramePrediction]]:
    """Three frames whose errors are whole numbers of meV."""
    water, carbon, copper = (
        ase.build.molecule("H2O"),
        Atoms("C"),
        ase.build.bulk("Cu"),
    )  # O first in ASE's water
    zero, eye = np.zeros((3, 3)), np.eye(3)
    frames = [
        frame(water, 0, energy=-3.0, forces=zero, config_type="liquid"),
        frame(carbon, 1, energy=1.0, config_type="gas"),
        frame(copper, 2, forces=np.ones((1, 3)), stress=0.1 * eye),
    ]
    predictions = [
        FramePrediction(
            -2.970, 0.001 * np.array([[3.0, -3, 0], [1, 0, 0], [0, 0, -1]]), None
        ),  # +10 meV/atom
        FramePrediction(0.980, np.ones((1, 3)), None),  # -20 meV/atom
        FramePrediction(7.0, np.array([[1.006, 1, 1]]), 0.1 * eye + 0.001 * np.ones((3, 3))),
    ]
    return frames, predictions


def test_errors_by_hand(by_hand: tuple[list[Frame], list[FramePrediction]]) -> None:
    found = error_metrics(*by_hand)
    expected = {
        "n_frames": 3,
        "n_atoms": 5,
        "n_energies": 2,
        "n_forces": 4,
        "n_stresses": 1,
        "energy_mae_mev_per_atom": 15.0,
        "energy_rmse_mev_per_atom": np.sqrt((100 + 400) / 2),
        "energy_max_mev_per_atom": 20.0,
        "energy_bias_mev_per_atom": -5.0,
        "energy_mae_mev": 25.0,
        "energy_rmse_mev": np.sqrt((900 + 400) / 2),
        "energy_max_mev": 30.0,
        "forces_mae_mev_per_ang": (3 + 3 + 1 + 1 + 6) / 12,
        "forces_rmse_mev_per_ang": np.sqrt((9 + 9 + 1 + 1 + 36) / 12),
        "forces_max_mev_per_ang": 6.0,
        "forces_bias_mev_per_ang": (3 - 3 + 1 - 1 + 6) / 12,
        "stress_mae_mev_per_ang3": 1.0,
        "stress_rmse_mev_per_ang3": 1.0,
        "stress_max_mev_per_ang3": 1.0,
        "stress_bias_mev_per_ang3": 1.0,
    }
    groups = {"baseline", "per_element", "per_config_type"}
    assert set(found) == set(expected) | groups
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-10)


def test_errors_by_element(by_hand: tuple[list[Frame], list[FramePrediction]]) -> None:
    found = error_metrics(*by_hand)["per_element"]
    assert list(found) == ["C", "Cu", "H", "O"]
    assert found["O"]["forces_mae_mev_per_ang"] == pytest.approx(2.0)
    assert found["H"]["forces_mae_mev_per_ang"] == pytest.approx(2 / 6)
    assert found["H"]["forces_rmse_mev_per_ang"] == pytest.approx(np.sqrt(2 / 6))
    assert found["Cu"]["forces_max_mev_per_ang"] == pytest.approx(6.0)
    assert (found["H"]["n_atoms"], found["H"]["n_forces"]) == (2, 2)
    # Carbon stands in a frame without forces: counted, but nothing is said about its errors.
    assert (found["C"]["n_atoms"], found["C"]["n_forces"]) == (1, 0)
    assert found["C"]["forces_mae_mev_per_ang"] is None


def test_errors_by_configuration_type(by_hand: tuple[list[Frame], list[FramePrediction]]) -> None:
    frames, predictions = by_hand
    found = error_metrics(frames, predictions)["per_config_type"]
    assert list(found) == ["(none)", "gas", "liquid"]
    assert found["liquid"]["energy_mae_mev_per_atom"] == pytest.approx(10.0)
    assert found["gas"]["energy_bias_mev_per_atom"] == pytest.approx(-20.0)
    assert found["gas"]["forces_mae_mev_per_ang"] is None
    assert found["(none)"]["energy_mae_mev_per_atom"] is None
    assert found["(none)"]["stress_mae_mev_per_ang3"] == pytest.approx(1.0)
    assert sum(group["n_frames"] for group in found.values()) == 3
    unnamed = [replace(one, config_type=None) for one in frames]
    assert error_metrics(unnamed, predictions)["per_config_type"] == {}


def test_metrics_are_strict_json_with_null_where_nothing_is_labelled(
    by_hand: tuple[list[Frame], list[FramePrediction]],
) -> None:
    frames, predictions = by_hand
    bare = [replace(one, energy=None, forces=None, stress=None) for one in frames]
    for some in (frames, bare):
        found = error_metrics(some, predictions)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["forces_rmse_mev_per_ang"] is None
    assert found["baseline"]["energy_mae_mev_per_atom"] is None


def test_a_stress_label_without_a_volume_is_not_compared() -> None:
    one = frame(ase.build.molecule("H2O"), energy=0.0, stress=np.eye(3))
    found = error_metrics([one], [FramePrediction(0.0, np.zeros((3, 3)), None)])
    assert found["n_stresses"] == 0
    assert found["stress_mae_mev_per_ang3"] is None
    assert found["baseline"]["stress_mae_mev_per_ang3"] is None


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress"])
def test_a_label_that_is_not_finite_is_an_error(quantity: str) -> None:
    value = float("nan") if quantity == "energy" else np.full((3, 3), np.inf)
    one = frame(ase.build.molecule("H2O"), 4, **{quantity: value})
    with pytest.raises(InputError, match=rf"set\.xyz frame 4: its {quantity} is not finite"):
        error_metrics([one], [FramePrediction(0.0, np.zeros((3, 3)), None)])


def test_frames_and_predictions_must_be_as_many(by_hand: tuple[list[Frame], list[FramePrediction]]) -> None:
    frames, predictions = by_hand
    with pytest.raises(InputError, match="3 frames but 2 predictions"):
        error_metrics(frames, predictions[:2])


# --- baseline ---------------------------------------------------------------------------------------------------------


def _zero(one: Frame) -> FramePrediction:
    return FramePrediction(0.0, np.zeros((len(one.atoms), 3)), np.zeros((3, 3)))


def test_baseline_of_one_composition_is_the_spread_around_its_mean() -> None:
    energies = [-9.0, -9.3, -9.6]
    frames = [frame(Atoms("OH2"), energy=e, forces=np.full((3, 3), e)) for e in energies]
    found = error_metrics(frames, [_zero(one) for one in frames])["baseline"]
    assert found["energy_mae_mev_per_atom"] == pytest.approx(200.0 / 3)
    assert found["energy_rmse_mev_per_atom"] == pytest.approx(np.std(energies) / 3 * 1000)
    assert found["forces_rmse_mev_per_ang"] == pytest.approx(1000 * np.sqrt(np.mean(np.square(energies))))
    assert found["forces_mae_mev_per_ang"] == pytest.approx(9300.0)


def test_baseline_knows_energies_that_are_linear_in_the_composition() -> None:
    atom = {"H": -13.6, "C": -1030.0, "O": -2040.0}
    formulas = ["H2", "CH4", "CO", "CO2", "H2O", "C2H6O", "CH4O"]
    frames = [frame(a, energy=sum(atom[s] for s in a.symbols)) for a in map(Atoms, formulas)]
    fitted = composition_energies(frames)
    np.testing.assert_allclose(fitted, [f.energy / len(f.atoms) for f in frames], rtol=1e-12)
    found = error_metrics(frames, [_zero(one) for one in frames])["baseline"]
    assert found["energy_rmse_mev_per_atom"] < 1e-6
    # As many parameters as frames fit anything and say nothing.
    assert composition_energies(frames[:2]) is None
    assert composition_energies([]) is None


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), n_frames=st.integers(2, 12))
def test_whole_is_the_weighted_mean_of_its_groups(seed: int, n_frames: int) -> None:
    rng = np.random.default_rng(seed)
    frames, predictions = [], []
    for index in range(n_frames):
        atoms = Atoms(rng.choice(["H", "O"], size=rng.integers(1, 5)), cell=np.eye(3), pbc=True)
        n = len(atoms)
        labels = {
            "energy": rng.normal(),
            "forces": rng.normal(size=(n, 3)),
            "stress": rng.normal(size=(3, 3)),
        }
        kept = {name: value for name, value in labels.items() if rng.random() < 0.7}
        frames.append(frame(atoms, index, config_type=str(rng.integers(3)), **kept))
        predictions.append(FramePrediction(rng.normal(), rng.normal(size=(n, 3)), rng.normal(size=(3, 3))))
    whole = error_metrics(frames, predictions)
    order = rng.permutation(n_frames)
    shuffled = error_metrics([frames[i] for i in order], [predictions[i] for i in order])
    for quantity, unit, count in (
        ("energy", "mev_per_atom", "n_energies"),
        ("forces", "mev_per_ang", "n_forces"),
        ("stress", "mev_per_ang3", "n_stresses"),
    ):
        mae, rmse, worst = (whole[f"{quantity}_{kind}_{unit}"] for kind in ("mae", "rmse", "max"))
        groupings = ["per_config_type"] + ["per_element"] * (quantity == "forces")
        if mae is None:
            assert all(group[count] == 0 for name in groupings for group in whole[name].values())
            continue
        assert mae <= rmse * (1 + 1e-12)
        assert rmse <= worst * (1 + 1e-12)
        assert shuffled[f"{quantity}_rmse_{unit}"] == pytest.approx(rmse, rel=1e-12)
        for name in groupings:
            groups = [group for group in whole[name].values() if group[count]]
            weights = [group[count] for group in groups]
            assert np.average(
                [g[f"{quantity}_mae_{unit}"] for g in groups], weights=weights
            ) == pytest.approx(mae)
            squares = [g[f"{quantity}_rmse_{unit}"] ** 2 for g in groups]
            assert np.average(squares, weights=weights) == pytest.approx(rmse**2)


def test_published_labels_against_themselves_have_no_error() -> None:
    frames = read_frames(DATA / "ethanol.npz", units=Units(energy="kcal/mol"))
    found = error_metrics(frames, [FramePrediction(f.energy, f.forces, None) for f in frames])
    assert found["energy_max_mev"] == 0.0
    assert found["forces_max_mev_per_ang"] == 0.0
    assert found["baseline"]["forces_rmse_mev_per_ang"] > 500.0
