"""Committees and feature distances: what they are, in calculators, files, evaluations and dynamics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import equipes
from equipes.data import read_frames
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import convert
from equipes.models.familiarity import Familiarity, fit
from equipes.simulate import MDSettings, run_md
from equipes.training.familiarity import familiarity_of
from equipes.training.uncertainty import (
    against_errors,
    predict_with_uncertainty,
    rank_correlation,
    uncertainty_metrics,
)
from potentials import MODELS
from structures import SPECIES, random_structure

SILICON = Path(__file__).parent / "data" / "silicon.xyz"
SMALL = {"r_max": 4.0, "num_layers": 2, "l_max": 1, "num_features": 6, "avg_num_neighbors": 20.0}


def silicon(seed: int, species: tuple[str, ...] = ("Si",)) -> equipes.Potential:
    return equipes.build("nequip", list(species), SMALL, seed=seed).eval()


@pytest.fixture(scope="module")
def familiar() -> equipes.Potential:
    """A potential of silicon and oxygen that was shown crystalline silicon."""
    potential = silicon(1, ("O", "Si"))
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in crystals(range(30))]
    potential.familiarity = fit(potential, graphs[:20], graphs[20:])
    return potential


def crystals(seeds: range, stdev: float = 0.05) -> list[Atoms]:
    found = []
    for seed in seeds:
        atoms = bulk("Si", cubic=True) * (2, 1, 1)
        atoms.rattle(stdev, seed=seed)
        found.append(atoms)
    return found


def distances(potential: equipes.Potential, structures: list[Atoms]) -> np.ndarray:
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in structures]
    return np.concatenate([potential.feature_distances(graph).numpy() for graph in graphs])


# Features


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_features_are_invariant_and_give_the_distances(model: object, rng: np.random.Generator) -> None:
    potential = equipes.build(model.architecture, SPECIES, model.hyperparameters, dtype="float64").eval()
    atoms = random_structure("molecule", 5, rng)
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3))
    order = rng.permutation(len(atoms))
    graphs = [AtomGraph.from_atoms(a, potential.cutoff) for a in (atoms, turned, atoms[order])]
    here, there, permuted = (potential.features(graph) for graph in graphs)
    assert here.shape[0] == 5 and here.shape[1] > 1
    scale = float(here.abs().max())
    assert torch.allclose(here, there, atol=1e-9 * scale) and torch.allclose(
        here[order], permuted, atol=1e-9 * scale
    )
    atoms.positions[0] += 0.1
    assert not torch.allclose(
        potential.features(AtomGraph.from_atoms(atoms, potential.cutoff)), here, atol=1e-6 * scale
    )
    known = fit(potential, graphs)
    assert known.distances(here, potential._types(graphs[0])).max() < 1e-3


# Distances


def test_a_distance_of_one_is_the_99th_percentile_of_the_held_out_atoms(familiar: equipes.Potential) -> None:
    found = np.sort(distances(familiar, crystals(range(20, 30))))
    assert len(found) == 160
    assert found[158] == pytest.approx(1.0, abs=1e-9)  # the 159th of 160


def test_far_structures_are_far(familiar: equipes.Potential) -> None:
    like, hot = (np.median(distances(familiar, crystals(range(40, 44), stdev))) for stdev in (0.05, 0.3))
    assert like < 1 < 3 < hot


def test_seen_atoms_are_near_and_elements_never_seen_are_infinitely_far(familiar: equipes.Potential) -> None:
    assert np.median(distances(familiar, crystals(range(20)))) < 1e-3
    oxide = crystals(range(1))[0]
    oxide.symbols[3] = "O"
    found = distances(familiar, [oxide])
    assert np.isinf(found[3]) and np.isfinite(np.delete(found, 3)).all()


def test_distances_do_not_depend_on_the_units_of_the_features(familiar: equipes.Potential) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    types = torch.zeros(200, dtype=torch.int64)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64) + 3 * torch.eye(5)

    class Given:
        species = ("Si",)
        device = torch.device("cpu")
        type_of_number = torch.zeros(120, dtype=torch.int64)

        def __init__(self, values: torch.Tensor) -> None:
            self.features = lambda _: values

    from equipes.models import familiarity as module

    plain, mixed = (module._fitted(f, types, 1) for f in (features, features @ mixing + 7))
    new = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    a, b = plain.distances(new, types[:50]), mixed.distances(new @ mixing + 7, types[:50])
    assert rank_correlation(a.numpy(), b.numpy()) > 0.99


def test_the_file_keeps_what_it_knows(familiar: equipes.Potential, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    familiar.save(path)
    graph = AtomGraph.from_atoms(crystals(range(50, 51))[0], familiar.cutoff)
    expected = familiar.feature_distances(graph)
    again = equipes.load(path)
    assert torch.equal(again.feature_distances(graph), expected)
    assert again.summary()["familiarity"]["atoms"] == {"Si": 320}
    alone = equipes.load(path, species=["Si"])
    assert torch.allclose(alone.feature_distances(graph), expected, rtol=1e-4)
    assert torch.allclose(convert(again, "float64").feature_distances(graph), expected, rtol=1e-2, atol=1e-3)
    assert equipes.load(path, species=["O"]).familiarity.points.shape[0] == 0


def test_a_model_without_it_has_the_old_format(familiar: equipes.Potential, tmp_path: Path) -> None:
    for name, potential, version in (("new", familiar, 2), ("old", silicon(1), 1)):
        potential.save(tmp_path / f"{name}.safetensors")
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["equipes"])["format_version"] == version


DAMAGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "missing": lambda arrays: arrays.pop("familiarity.points"),
    "shape": lambda arrays: arrays.update(
        {"familiarity.whitening": torch.zeros(1, 2, 2, dtype=torch.float64)}
    ),
    "no dimension": lambda arrays: arrays.update(
        {"familiarity.means": torch.tensor(1.0, dtype=torch.float64)}
    ),
    "species": lambda arrays: arrays["familiarity.species"].fill_(7),
    "points of no species": lambda arrays: arrays["familiarity.species"].fill_(0),
    "type": lambda arrays: arrays.update({"familiarity.limits": torch.ones(2)}),
    "extra": lambda arrays: arrays.update({"familiarity.more": torch.ones(2)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_references_are_refused(damage: str, familiar: equipes.Potential, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    familiar.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    DAMAGES[damage](arrays)
    save_file(arrays, path, metadata)
    with pytest.raises(InputError, match="damaged, fetch it again"):
        equipes.load(path)


def test_without_a_reference_there_are_no_distances() -> None:
    potential = silicon(1)
    with pytest.raises(InputError, match="equipes familiarize"):
        distances(potential, crystals(range(1)))
    with pytest.raises(InputError, match="equipes familiarize"):
        equipes.Calculator(potential, feature_distance=True)
    with pytest.raises(InputError, match="at least one structure"):
        fit(potential, [])


def test_one_structure_is_enough_for_a_fit() -> None:
    potential = silicon(1)
    known = fit(potential, [AtomGraph.from_atoms(bulk("Si"), potential.cutoff)])
    assert isinstance(known, Familiarity) and np.isfinite(known.limits.numpy()).all()


# Committees


def test_a_committee_is_the_mean_and_its_spread() -> None:
    potentials = [silicon(seed) for seed in (1, 2, 3)]
    atoms = crystals(range(1), 0.2)[0]
    said = []
    for potential in potentials:
        atoms.calc = equipes.Calculator(potential)
        said.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    energies, forces, stresses = (np.array(part) for part in zip(*said, strict=True))
    atoms.calc = equipes.Committee(potentials)
    assert atoms.get_potential_energy() == pytest.approx(energies.mean(), rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), stresses.mean(axis=0), atol=1e-14)
    results = atoms.calc.results
    assert results["energy_std"] == pytest.approx(energies.std(ddof=1))
    difference = forces - forces.mean(axis=0)
    expected = np.sqrt((difference**2).sum(axis=(0, 2)) / 2)
    np.testing.assert_allclose(results["forces_std"], expected, rtol=1e-9)
    np.testing.assert_allclose(results["stress_std"], stresses.std(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(results["forces_comm"], forces)
    assert all(member.frozen is not None for member in atoms.calc.members) or not forces.dtype
    # One list of neighbours serves all.
    assert len({id(member._neighbors) for member in atoms.calc.members}) == 1


def test_copies_of_one_potential_agree(familiar: equipes.Potential) -> None:
    atoms = crystals(range(1))[0]
    atoms.calc = equipes.Committee([familiar, familiar], feature_distance=True)
    assert atoms.get_potential_energy() and atoms.calc.results["energy_std"] == 0
    assert not atoms.calc.results["forces_std"].any()
    np.testing.assert_allclose(
        atoms.calc.results["feature_distance"], distances(familiar, [atoms]), atol=1e-9
    )


def test_members_of_other_cutoffs_keep_their_neighbours() -> None:
    near = equipes.build("nequip", ["Si"], SMALL | {"r_max": 3.0}, seed=4).eval()
    far = silicon(5)
    atoms = crystals(range(1), 0.1)[0]
    expected = []
    for potential in (near, far):
        atoms.calc = equipes.Calculator(potential, exact=True)
        expected.append(atoms.get_forces())
    atoms.calc = equipes.Committee([near, far], exact=True)
    np.testing.assert_allclose(atoms.get_forces(), np.mean(expected, axis=0), atol=1e-12)


@pytest.mark.parametrize("models", [[], ["a.safetensors"], "a.safetensors"])
def test_one_is_no_committee(models: object) -> None:
    with pytest.raises(InputError, match="two models"):
        equipes.Committee(models)


def test_a_calculator_sends_lists_to_the_committee() -> None:
    with pytest.raises(InputError, match=r"equipes\.Committee"):
        equipes.Calculator([silicon(1), silicon(2)])


# Against errors


def test_metrics_say_how_well_uncertainty_follows_error(rng: np.random.Generator) -> None:
    frames = read_frames(str(SILICON))
    potentials = [silicon(seed) for seed in (1, 2)]
    for potential in potentials:
        potential.familiarity = familiarity_of(potential, frames[:3])
    predictions = predict_with_uncertainty(potentials, frames)
    assert "unseen" in uncertainty_metrics(frames, predictions)["feature_distance"]
    # Labels made so that the error of every force is twice its deviation, in a random direction.
    labelled, expected = [], []
    for frame, prediction in zip(frames, predictions, strict=True):
        direction = rng.normal(size=(len(frame.atoms), 3))
        direction *= 2 * (prediction.forces_std / np.linalg.norm(direction, axis=1))[:, None]
        labelled.append(type(frame)(**{**vars(frame), "forces": prediction.forces + direction}))
        expected.append(2 * prediction.forces_std)
    metrics = uncertainty_metrics(labelled, predictions)["forces_std"]
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["factor"] == pytest.approx(2.0, rel=1e-6)
    assert metrics["n_atoms"] == sum(b["n_atoms"] for b in metrics["bins"])
    assert metrics["bins"][-1]["error_rms_mev_per_ang"] == pytest.approx(
        2 * metrics["bins"][-1]["mean"], rel=0.2
    )
    values, errors = against_errors(labelled, predictions, "forces_std")
    np.testing.assert_allclose(errors, np.concatenate(expected), rtol=1e-6)
    assert rank_correlation(values, -errors) == pytest.approx(-1.0)
    assert rank_correlation(values[:2], errors[:2]) is None and rank_correlation(values, 0 * errors) is None


# Dynamics


def run(calculator: object, out: Path, **settings: object) -> object:
    options = {"steps": 40, "timestep": 2.0, "temperature": 900.0, "interval": 10, **settings}
    resume = bool(options.pop("resume", False))
    return run_md(bulk("Si", cubic=True), calculator, MDSettings("nvt", **options), out, resume=resume)


def test_dynamics_stops_where_the_surroundings_are_unknown(
    familiar: equipes.Potential, tmp_path: Path
) -> None:
    result = run(
        equipes.Calculator(familiar), tmp_path / "run", max_feature_distance=1.5, uncertainty_interval=5
    )
    assert result.uncertain and not result.interrupted
    summary = json.loads((tmp_path / "run" / "md.json").read_text())
    assert summary["stopped"] == result.uncertain and not summary["completed"]
    assert 0 < summary["steps"] < 40 and summary["steps"] % 5 == 0
    assert summary["settings"]["max_feature_distance"] == 1.5
    frame = read(tmp_path / "run" / "uncertain.extxyz")
    worst = int(frame.arrays["feature_distance"].argmax())
    assert frame.arrays["feature_distance"][worst] > 1.5
    assert f"step {summary['steps']}: atom {worst} (Si)" in result.uncertain
    # The limit raised, it goes on as if it had never stopped.
    whole = run(equipes.Calculator(familiar), tmp_path / "whole")
    gone_on = run(equipes.Calculator(familiar), tmp_path / "run", max_feature_distance=1e9, resume=True)
    assert gone_on.uncertain is None and gone_on.summary["completed"]
    np.testing.assert_array_equal(gone_on.atoms.positions, whole.atoms.positions)
    rows = [(tmp_path / name / "md.csv").read_text() for name in ("run", "whole")]
    assert rows[0] == rows[1]


def test_dynamics_stops_where_a_committee_disagrees(tmp_path: Path) -> None:
    committee = equipes.Committee([silicon(1), silicon(2)], exact=True)
    start = run(committee, tmp_path / "free", steps=0)
    spread = start.atoms.calc.results["forces_std"].max()
    later = run(committee, tmp_path / "run", max_forces_std=float(spread) + 1e-3)
    assert later.uncertain and "the committee's forces on atom" in later.uncertain
    at_once = run(committee, tmp_path / "tight", max_forces_std=1e-9)
    assert at_once.summary["steps"] <= 1 and at_once.uncertain  # in the perfect crystal all forces are zero
    assert "forces_std" in read(tmp_path / "free" / "trajectory.extxyz").arrays


def test_limits_that_cannot_be_watched_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options, sentence in (
        ({"max_forces_std": 0.1}, "needs a committee"),
        ({"max_feature_distance": 1.0}, "equipes familiarize"),
        ({"max_forces_std": -1.0}, "must be positive"),
        ({"max_feature_distance": float("nan")}, "must be positive"),
        ({"max_feature_distance": 1.0, "uncertainty_interval": 0}, "1 or more"),
    ):
        with pytest.raises(InputError, match=sentence):
            run(equipes.Calculator(silicon(1), exact=True), tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_frozen_potentials_have_no_distances(familiar: equipes.Potential) -> None:
    frozen = pytest.importorskip("equipes.kernels.native").module()
    if frozen is None:
        pytest.skip("no native code")
    with pytest.raises(InputError, match="the model that it was made from"):
        equipes.Calculator(familiar.freeze(["Si"]), feature_distance=True)
