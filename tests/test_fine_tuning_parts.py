"""What fine-tuning is made of: parts of models, new elements, adapters, reference energies, crystals to replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch.func import functional_call

from equipes.data import GraphDataset
from equipes.data.crystals import CRYSTALS
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import Potential, add_species, build, keep_species, nearest_element
from equipes.models.parts import PARTS, layer_of, part_of, reference_energies
from equipes.nn.adapters import LowRankAdapters, adaptable
from equipes.training.alignment import check_units, fit_shifts
from equipes.training.fine_tuning import labelled
from equipes.training.replay import apart, held_out, replayed
from equipes.training.start import begin_at_mean_energies
from fine_tuning_samples import ARCHITECTURES, OTHER_SHIFTS, SHIFTS, base, frames, molecules, teacher
from laws import ROUND_OFF, SEED, Model, PhysicalLaws, close
from potentials import MODELS

# Parts


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_model_has_its_parts(model: Model) -> None:
    names = [name for name, _ in model.potential().model.named_parameters()]
    parts = {part: [name for name in names if part_of(name) == part] for part in PARTS}
    assert parts["interactions"], "something mixes features"
    assert any(name.endswith(("shifts", "atomic_energies")) for name in parts["references"])
    if model.architecture != "ani":
        assert parts["embedding"] == ["embedding"]
        assert parts["readout"] and parts["radial"]
        assert all(layer_of(name) is not None for name in parts["interactions"])
    radial = [name for name in names if "radial_network" in name or "filter" in name or "attention" in name]
    assert set(radial) <= set(parts["radial"])


def test_reference_energies_are_those_of_the_chosen_kind() -> None:
    for architecture in ARCHITECTURES:
        assert reference_energies(base(architecture).model).tolist()[:3] == (
            [SHIFTS[symbol] for symbol in "HCO"] if architecture != "schnet" else [-2.0, -1.0, 0.0]
        )
    several = {"modalities": ["low", "high"], "modality": "high"}
    model = build(
        "sevennet",
        ["H", "O"],
        several | {"per_type_energy_shifts": {"low": 1.0, "high": {"H": 2.0, "O": 3.0}}},
    ).model
    assert reference_energies(model).tolist() == [2.0, 3.0]
    heads = {"heads": ["low", "high"], "head": "low", "atomic_energies": {"low": 4.0, "high": 5.0}}
    assert reference_energies(build("mace", ["H"], heads | {"radial_MLP": [4]}).model).tolist() == [4.0]
    reference_energies(model)[0] = 9.0
    assert model.shifts[1].tolist() == [9.0, 3.0], "it is a view"  # type: ignore[union-attr]


# New elements


@pytest.mark.parametrize(
    ("symbol", "known", "nearest"),
    [
        ("Br", ["H", "C", "O", "Cl", "I"], "Cl"),
        ("K", ["H", "Na", "O"], "Na"),
        ("Ge", ["C", "Si", "As"], "Si"),
        ("Nd", ["Y", "Ce", "Lu"], "Ce"),
        ("Hf", ["Zr", "Ta", "Lu"], "Zr"),
        ("Am", ["Eu", "Gd", "U"], "Eu"),
        ("He", ["H", "Ne"], "Ne"),
        ("F", ["H", "O"], "H"),
        ("Ga", ["Zn", "Al"], "Al"),
    ],
)
def test_nearest_element(symbol: str, known: list[str], nearest: str) -> None:
    assert nearest_element(symbol, known) == nearest


GROWING: dict[str, dict[str, Any]] = {
    "sevennet": {},
    "nequip": {
        "avg_num_neighbors": {symbol: 3.0 + k for k, symbol in enumerate(SHIFTS)},
        "per_edge_type_cutoff": {"O": {"H": 2.0, "Si": 3.0}, "Si": 3.1},
    },
    "mace": {"distance_transform": "Agnesi", "num_elements": 6},
    "schnet": {},
    "physnet": {},
}


@pytest.mark.parametrize("architecture", GROWING)
def test_a_model_with_new_elements_says_the_same_of_the_old(architecture: str) -> None:
    whole = base(architecture, **GROWING[architecture])
    grown = add_species(whole, {"Ge": "Si", "S": "O"})
    assert grown.species == (*whole.species, "Ge", "S")
    # A torn oxide: all old elements beside each other.
    atoms = Atoms("SiOHSiMg", positions=[[0, 0, 0], [1.6, 0, 0], [2.0, 1.0, 0], [2.9, -1, 0.3], [0, 2, 1]])
    graph = AtomGraph.from_atoms(atoms, 4.0)
    close(grown(graph).forces, whole(graph).forces, ROUND_OFF, "forces on known elements")
    close(grown(graph).energies, whole(graph).energies, ROUND_OFF, "energies of known elements")
    # A new element begins as the old one: in its place nothing changes, but where its own radius counts.
    other = Atoms("GeSHSiMg", positions=atoms.positions)
    renamed = grown(AtomGraph.from_atoms(other, 4.0)).forces
    if architecture == "mace":
        assert not torch.allclose(renamed, whole(graph).forces, rtol=1e-6), "Agnesi has the radius of Ge"
    else:
        close(renamed, whole(graph).forces, ROUND_OFF, "forces on what the new elements begin as")
    # And back.
    cut = keep_species(grown, whole.species)
    close(cut(graph).energies, whole(graph).energies, ROUND_OFF, "energies after cutting again")


def test_what_cannot_grow_says_so() -> None:
    with pytest.raises(InputError, match=r"ani potential cannot be given further elements \(Ge\)"):
        add_species(base("ani"), {"Ge": "Si"})
    for new in ({"O": "Si"}, {"Ge": "Pb"}):
        with pytest.raises(InputError, match="cannot begin as"):
            add_species(base(), new)


# Adapters


def with_random_adapters(potential: Potential, rank: int = 2) -> LowRankAdapters:
    """All of them, merged, as after some steps."""
    adapters = LowRankAdapters(potential.model, adaptable(potential.model), rank, seed=3)
    generator = torch.Generator().manual_seed(5)
    for _, factor in adapters.factors():
        factor += 0.3 * torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor)
    adapters.merge()
    return adapters


@pytest.mark.parametrize("architecture", ["sevennet", "nequip", "mace", "schnet"])
def test_merged_weights_are_the_adapted_layers(architecture: str) -> None:
    potential = base(architecture)
    untouched = {name: parameter.detach().clone() for name, parameter in potential.model.named_parameters()}
    names = adaptable(potential.model)
    adapters = LowRankAdapters(potential.model, names, 2)
    adapters.merge()
    for name, parameter in potential.model.named_parameters():
        assert torch.equal(parameter, untouched[name]), "adapters begin with nothing"
    adapters = with_random_adapters(potential)
    factors = dict.fromkeys(names, ())
    for name, factor in adapters.factors():
        factors[name] = (*factors[name], factor)
    products = {
        name: untouched[name] + (left @ right / len(right) ** 0.5).view_as(untouched[name])
        for name, (left, right) in factors.items()
    }
    graph = AtomGraph.from_atoms(molecules(2)[1], 4.0)
    types, vectors = potential._types(graph), graph.edge_vectors()
    adapted = functional_call(potential.model, products, (types, vectors, graph))
    close(potential(graph).energies, adapted.detach(), 1e-12, "energies, merged and adapted")
    assert not torch.allclose(adapted, base(architecture)(graph).energies)
    assert {min(2, *product.flatten(0, -2).shape) for product in products.values()} == {
        len(right) for _, right in factors.values()
    }
    # Every change has the rank of its factors.
    for name, (_, right) in factors.items():
        change = (potential.model.get_parameter(name) - untouched[name]).detach().flatten(0, -2)
        assert torch.linalg.matrix_rank(change, rtol=1e-8) == len(right)


@pytest.mark.parametrize("architecture", ["sevennet", "mace"])
def test_factors_have_the_gradient_of_the_loss(architecture: str) -> None:
    """Against autograd through the sum of weight and product."""
    potential = base(architecture).train()
    adapters = with_random_adapters(potential)
    graph = AtomGraph.from_atoms(molecules(2)[1], 4.0)

    def loss(model: Any) -> torch.Tensor:
        prediction = model(graph)
        return prediction.energy.sum() ** 2 + prediction.forces.square().sum()

    loss(potential).backward()
    adapters.pull_back()
    found = [(name, factor.grad.clone()) for name, factor in adapters.factors()]  # type: ignore[union-attr]
    assert all(potential.model.get_parameter(name).grad is None for name, _ in found)
    leaves = {id(factor): factor.clone().requires_grad_() for _, factor in adapters.factors()}
    weights = {}
    for name, weight, left, right, start in adapters._each():
        product = leaves[id(left)] @ leaves[id(right)] / len(right) ** 0.5
        weights[f"model.{name}"] = (start + product).view_as(weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPES_KERNEL", "reference")
        loss(lambda g: functional_call(potential, weights, (g,))).backward()
    for (name, gradient), (_, factor) in zip(found, adapters.factors(), strict=True):
        expected = leaves[id(factor)].grad
        assert expected is not None
        close(gradient, expected, 1e-9, f"gradient of a factor of {name}")


ADAPTED = [
    replace(model, name=f"{model.name}, adapted", broken=lambda p: (with_random_adapters(p), p)[1])
    for model in MODELS
    if model.name in ("nequip l_max 2, 3 layers", "nequip without parity")
]


@pytest.mark.parametrize("model", ADAPTED, ids=str)
class TestLawsOfAdaptedModels(PhysicalLaws):
    """Whatever the factors are, space keeps its symmetries and forces are the gradient of the energy."""


def test_the_laws_are_asked_of_two_adapted_models() -> None:
    assert len(ADAPTED) == 2
    plain, adapted = (model.potential() for model in (ADAPTED[0], ADAPTED[0]))
    ADAPTED[0].broken(adapted)
    graph = AtomGraph.from_atoms(molecules(2)[1], 3.2)
    assert not torch.allclose(plain(graph).forces, adapted(graph).forces, rtol=1e-2)
    assert SEED == 7


# Reference energies and units


def test_reference_energies_absorb_another_method_exactly() -> None:
    """Labels of the same interactions with other reference energies: nothing is left."""
    potential = base()
    other = teacher(potential, amount=0.0)
    dataset = GraphDataset(labelled(other, molecules(8), "data"), 4.0)
    fitted = fit_shifts(potential, dataset)
    assert fitted.determined
    assert fitted.message is None
    assert fitted.values == pytest.approx(OTHER_SHIFTS, abs=1e-8)
    assert fitted.residual_rms_mev_per_atom < 1e-6
    assert reference_energies(potential.model).tolist() == list(SHIFTS.values()), "nothing is changed"


def test_one_composition_corrects_all_atoms_alike() -> None:
    potential = base()
    water = [atoms for atoms in molecules(12) if len(atoms) == 3 and "H" in atoms.symbols]
    dataset = GraphDataset(labelled(teacher(potential, amount=0.0), water, "data"), 4.0)
    fitted = fit_shifts(potential, dataset)
    assert not fitted.determined
    assert fitted.message is not None and "do not determine the reference energies of H, O" in fitted.message
    mean = (2 * (OTHER_SHIFTS["H"] - SHIFTS["H"]) + OTHER_SHIFTS["O"] - SHIFTS["O"]) / 3
    assert fitted.values == pytest.approx({"H": SHIFTS["H"] + mean, "O": SHIFTS["O"] + mean}, abs=1e-8)
    assert fitted.residual_rms_mev_per_atom < 1e-6
    # Isolated atoms decide it.
    alone = labelled(teacher(potential, amount=0.0), [Atoms("H"), Atoms("O")], "atoms")
    fitted = fit_shifts(potential, GraphDataset([*dataset.frames, *alone], 4.0))
    assert fitted.determined
    assert fitted.values == pytest.approx({s: OTHER_SHIFTS[s] for s in "HO"}, abs=1e-8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_isolated_atoms_decide_what_no_network_can_learn(architecture: str) -> None:
    """As when training from scratch; the bonds of the labels are 0.5 eV an atom stronger than the base's."""
    potential = base(architecture)
    bonded = labelled(teacher(potential, amount=0.0), molecules(8), "data")
    bonded = [replace(frame, energy=frame.energy - 0.5 * len(frame.atoms)) for frame in bonded]
    alone = labelled(teacher(potential, amount=0.0), [Atoms("H"), Atoms("O")], "atoms")
    fitted = fit_shifts(potential, GraphDataset([*bonded, *alone], 4.0))
    everything = fit_shifts(potential, GraphDataset(bonded, 4.0))
    assert everything.values == pytest.approx({s: e - 0.5 for s, e in OTHER_SHIFTS.items()}, abs=1e-8)
    if architecture in (
        "nequip",
        "mace",
        "ani",
    ):  # ani with the random weights of here: its biases begin at zero
        expected = {"H": OTHER_SHIFTS["H"], "O": OTHER_SHIFTS["O"]}
        assert {s: fitted.values[s] for s in "HO"} == pytest.approx(expected, abs=1e-8)
        assert fitted.message == "the reference energies of H, O are those of isolated atoms in the data"
        assert 200 < fitted.residual_rms_mev_per_atom < 500, "of the bonds, which the network shall learn"
        # Carbon is fitted to what the others leave.
        assert -3.0 < fitted.values["C"] - OTHER_SHIFTS["C"] < -0.5
    else:
        assert fitted.message is None
        assert all(-0.5 < fitted.values[s] - OTHER_SHIFTS[s] < 0.0 for s in "HO")


def test_a_shift_that_only_bonds_have_is_there_from_the_first_step() -> None:
    potential = base("nequip")
    bonded = labelled(teacher(potential, amount=0.0), molecules(12), "data")
    bonded = [replace(frame, energy=frame.energy - 4.0 * len(frame.atoms)) for frame in bonded]
    alone = labelled(teacher(potential, amount=0.0), [Atoms(s) for s in "HCO"], "atoms")
    dataset = GraphDataset([*bonded, *alone], 4.0)
    fitted = fit_shifts(potential, dataset)
    assert fitted.values == pytest.approx(OTHER_SHIFTS, abs=1e-8)
    assert fitted.residual_rms_mev_per_atom > 3000
    for symbol, value in fitted.values.items():
        reference_energies(potential.model)[potential.species.index(symbol)] = value
    readout = potential.train().get_parameter("model.readout.weights.0")
    readout.requires_grad_(False)
    assert not begin_at_mean_energies(potential, dataset, scale=1.0), "frozen"
    readout.requires_grad_(True)
    assert begin_at_mean_energies(potential, dataset, scale=1.0)
    left = [
        abs(float(potential(item.graph).energy.detach()) - frame.energy) / len(frame.atoms)
        for item, frame in zip([dataset[i] for i in range(len(dataset))], dataset.frames, strict=True)
    ]
    assert max(left[-3:]) < 1e-9
    assert sum(left) / len(left) < 1.0


def test_reference_energies_given_or_impossible() -> None:
    given = {"H": 1.0, "C": 2.0, "O": 3.0}
    dataset = GraphDataset(frames(4), 4.0)
    assert fit_shifts(base(), dataset, given).values == given
    unlabelled = GraphDataset([replace(frame, energy=None) for frame in dataset.frames], 4.0)
    fitted = fit_shifts(base(), unlabelled)
    assert fitted.values == {symbol: SHIFTS[symbol] for symbol in "HCO"}
    assert fitted.message is not None and "stay as they are" in fitted.message


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (
            23.06,
            r"data frame 0: its forces are 2[34].* times those of 7net, as in kcal/mol; .* set data.units",
        ),
        (1 / 51.42, r"as in Ha and Bohr"),
        (7.0, r"7.* times those of 7net; energies"),
        (-1.0, "opposite to those of 7net; these are gradients"),
    ],
)
def test_other_units_are_noticed(factor: float, message: str) -> None:
    potential = base()
    data = labelled(potential, molecules(4), "data")
    rng = np.random.default_rng(1)
    changed = []
    for frame in data:
        assert frame.forces is not None
        noise = 0.3 * np.abs(frame.forces).max() * rng.normal(size=frame.forces.shape)
        changed.append(replace(frame, forces=factor * (frame.forces + noise)))
    with pytest.raises(InputError, match=message):
        check_units(potential, changed, "7net")


def test_a_bad_base_is_no_other_unit() -> None:
    potential = base()
    data = labelled(potential, molecules(4), "data")
    check_units(potential, data, "7net")
    check_units(potential, [replace(frame, forces=0.4 * frame.forces) for frame in data], "7net")  # type: ignore[operator]
    rng = np.random.default_rng(1)
    unlike = [replace(frame, forces=50 * rng.normal(size=(len(frame.atoms), 3))) for frame in data]
    check_units(potential, unlike, "7net")
    check_units(potential, [replace(frame, forces=None) for frame in data], "7net")


# Crystals


def test_crystals_to_replay_are_not_those_held_out() -> None:
    species = (*OTHER_SHIFTS, "Si", "Mg", "Na", "Cl", "Cu", "Al", "Ga", "N", "Ti", "Ca", "S", "K", "Zn")
    known = {frozenset(item.make().symbols) for item in CRYSTALS}
    to_replay, aside = replayed(species, 60, 1), held_out(species, 20, 1)
    assert (len(to_replay), len(aside)) == (60, 20)
    assert len({str(atoms.symbols) for atoms in to_replay}) > 15
    assert {"CaSCaS", "KClKCl", "Mg4"} & {str(atoms.symbols) for atoms in to_replay}
    assert len({str(atoms.symbols) for atoms in aside}) > 5
    assert not {frozenset(atoms.symbols) for atoms in to_replay} & known
    assert {frozenset(atoms.symbols) for atoms in aside} <= known
    for atoms in (*to_replay, *aside):
        assert set(atoms.symbols) <= set(species)
        assert 4 <= len(atoms) <= 12 or len(atoms) == 3
        assert atoms.pbc.all() and atoms.calc is None
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
        assert distances.min() > 0.7, atoms
    again = replayed(species, 60, 1)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(to_replay, again, strict=True))
    assert any(len(a) != len(b) for a, b in zip(to_replay, replayed(species, 60, 2), strict=True))
    assert replayed(["Si"], 5, 0) == [] and held_out(["He"], 5, 0) == []


def test_disturbed_crystals_have_forces_and_stress() -> None:
    potential = base()
    for frame in labelled(potential, [*replayed(SHIFTS, 6, 0), *held_out(SHIFTS, 6, 0)], "crystals"):
        assert frame.energy is not None and frame.forces is not None and frame.stress is not None
        assert np.abs(frame.forces).max() > 1e-5
        assert np.abs(frame.stress).max() > 1e-6


def test_a_fifth_of_own_structures_is_held_out() -> None:
    structures = molecules(11)
    chosen, aside = apart(structures, 0)
    assert (len(chosen), len(aside)) == (9, 2)
    assert {id(atoms) for atoms in chosen} | {id(atoms) for atoms in aside} == {id(a) for a in structures}
