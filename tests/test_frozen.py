"""Frozen potentials against the models they were made from, and the laws that they obey themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from safetensors import safe_open
from safetensors.torch import save as serialize

import equipes
from command_line import run_forked
from equipes import AtomGraph, InputError
from equipes.kernels import native
from equipes.models import Potential, build, convert
from equipes.models.blueprint import blueprint
from equipes.models.deviation import check_structures
from equipes.models.potential import Prediction
from equipes.models.splines import choose_knots, derivatives, polynomials

pytestmark = pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")

SPECIES = ("H", "C", "O")
SMALL: dict[str, Any] = {"r_max": 3.0, "num_layers": 3, "l_max": 2, "num_features": 5, "num_bessels": 5}
NEQUIP: dict[str, dict[str, Any]] = {
    "base": {},
    "scalars only": {"l_max": 0},
    "l_max 3": {"l_max": 3, "num_features": [5, 4, 3, 2]},
    "l_max 4": {"l_max": 4, "num_features": [4, 2, 1, 1, 2], "num_layers": 2},
    "without parity": {"parity": False, "num_features": [7, 4, 2]},
    "several vectors": {"num_features": [80, 33, 17], "num_layers": 2},
    "one layer": {"num_layers": 1},
    "five layers": {"num_layers": 5, "num_features": 3},
    "embedding of its own width": {"type_embed_num_features": 3},
    "energies per species": {
        "per_type_energy_scales": {"H": 0.7, "C": 1.9, "O": -1.2},
        "per_type_energy_shifts": {"H": -3.0, "C": 5.0, "O": 0.5},
    },
    "norms per species": {"avg_num_neighbors": {"H": 2.0, "C": 9.0, "O": 5.0}},
    "cutoffs per pair": {"per_edge_type_cutoff": {"H": {"C": 2.1, "H": 1.4}, "O": 2.6}},
    "trained roots": {"bessel_trainable": True, "radial_mlp_depth": 1, "polynomial_cutoff_p": 4},
    "readout network": {"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 9},
    "zbl": {"zbl": True, "zbl_polynomial_cutoff_p": 5},
}
SEVENNET: dict[str, dict[str, Any]] = {
    "sevennet": {"denominator": 5.0},
    "sevennet l_max 3": {"l_max": 3, "num_features": [5, 3, 2, 2], "num_layers": 2},
    "sevennet xplor": {"xplor_on": 2.5, "denominator": [5.0, 6.0, 7.0]},
    "sevennet harmonics of vectors": {"normalize_harmonics": False, "xplor_on": 2.6},
    "sevennet modalities": {
        "modalities": ["pbe", "scan"],
        "modality": "scan",
        "per_type_energy_shifts": {
            "pbe": {"H": 1.0, "C": 2.0, "O": 3.0},
            "scan": {"H": 4.0, "C": 5.0, "O": 6.0},
        },
    },
}
CASES = {name: ("nequip", options) for name, options in NEQUIP.items()}
CASES |= {name: ("sevennet", options) for name, options in SEVENNET.items()}
# More of them, and what only they have, in test_native_mace.py.
MACE: dict[str, Any] = {"r_max": 3.0, "num_bessel": 5, "max_ell": 2, "hidden_irreps": "5x0e + 5x1o"}
CASES["mace"] = ("mace", {"avg_num_neighbors": 6.0})
CASES["mace with densities and repulsion"] = (
    "mace",
    {
        "interaction_cls_first": "RealAgnosticDensityResidualInteractionBlock",
        "interaction_cls": "RealAgnosticDensityInteractionBlock",
        "pair_repulsion": True,
        "atomic_inter_scale": 1.7,
    },
)
SCHNET: dict[str, Any] = {"r_max": 3.0, "num_features": 6, "num_interactions": 2, "gaussian_spacing": 0.4}
PHYSNET: dict[str, Any] = {"r_max": 3.0, "num_features": 6, "num_basis": 5, "num_modules": 2}
# No pair of the structures below is at the angular cutoff, where the second derivative jumps.
ANI: dict[str, Any] = {"r_max": 3.0, "angular_r_max": 2.7, "num_radial": 5, "num_angles": 3, "hidden": [9, 5]}
ENERGIES: dict[str, Any] = {
    "per_type_energy_scales": {"H": 0.7, "C": 1.9, "O": -1.2},
    "per_type_energy_shifts": {"H": -3.0, "C": 5.0, "O": 0.5},
}
CASES |= {
    "schnet": ("schnet", ENERGIES),
    "schnet of one block": ("schnet", {"num_interactions": 1}),
    "schnet of several vectors": ("schnet", {"num_features": 90, "num_interactions": 3}),
    "physnet": ("physnet", ENERGIES),
    "physnet of several vectors": ("physnet", {"num_features": 33, "num_residual_output": 2}),
    "physnet without residuals": (
        "physnet",
        {"num_residual_interaction": 0, "num_residual_atomic": 0, "num_residual_output": 0},
    ),
    "ani": ("ani", ENERGIES | {"angular_eta": 2.0, "angular_zeta": 4.0}),
    "ani of broken powers": ("ani", {"angular_zeta": 14.1, "num_angles": 9, "num_angular_shells": 9}),
    "ani with a small power": ("ani", {"angular_zeta": 0.7, "num_radial": 17, "angular_r_max": 3.0}),
    "ani without hidden layers": ("ani", {"hidden": [], "angular_eta": 2.0}),
}
SMALLS = {"mace": MACE, "schnet": SCHNET, "physnet": PHYSNET, "ani": ANI}


def make(name: str = "base", dtype: str = "float64", seed: int = 5) -> Potential:
    architecture, options = CASES[name]
    small = SMALLS.get(architecture, SMALL)
    return build(architecture, SPECIES, small | options, dtype=dtype, seed=seed).eval()


def ensemble() -> list[Atoms]:
    """Molecules, a skewed cell smaller than the cutoff, a slab, a lone atom, atoms that nobody sees, dense packings."""
    rng = np.random.default_rng(3)
    cell = Atoms(
        "CO",
        positions=[[0, 0, 0], [1.1, 1.0, 0.9]],
        cell=[[2.1, 0, 0], [0.4, 2.3, 0], [0.2, 0.3, 2.2]],
        pbc=True,
    )
    slab = Atoms("COH2", positions=rng.uniform(0, 2.5, (4, 3)), cell=[2.6, 2.8, 0], pbc=(1, 1, 0))
    return [
        molecule("CH3CH2OH"),
        cell,
        Atoms("O"),
        slab,
        Atoms("HC", positions=[[0, 0, 0], [0, 0, 9.0]]),
        *check_structures(SPECIES, seed=1)[:2],
    ]


def graph_of(structures: list[Atoms], cutoff: float = 3.0) -> AtomGraph:
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])


def differences(found: Prediction, expected: Prediction) -> dict[str, float]:
    """Relative to the largest element, energies without what they have in common."""
    result = {}
    for name in ("energies", "forces", "virial"):
        a, b = getattr(found, name), getattr(expected, name)
        size = (b - b.mean()).abs().max() if name == "energies" else b.abs().max()
        assert size > 1e-6
        result[name] = float((a - b).abs().max() / size)
    return result


@pytest.fixture(scope="module")
def graph() -> AtomGraph:
    return graph_of(ensemble())


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_model_to_the_error_of_the_splines(name: str, graph: AtomGraph) -> None:
    potential = make(name)
    frozen = potential.freeze(tolerance=1e-8)
    found, expected = frozen(graph), potential(graph)
    for what, difference in differences(found, expected).items():
        assert difference < 2e-6, f"{what}: {difference:.1e}"
    assert torch.equal(torch.isnan(found.stress), torch.isnan(expected.stress))
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-6, atol=1e-6)


def test_denser_knots_bring_it_to_the_model(graph: AtomGraph) -> None:
    """What is left is the splines' error alone: it falls with the tolerance, down to round-off."""
    potential = make("sevennet xplor")
    errors = [
        max(differences(potential.freeze(tolerance=t)(graph), potential(graph)).values())
        for t in (1e-6, 1e-8, 1e-10)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-9


@pytest.mark.parametrize(
    "name",
    ["base", "sevennet xplor", "several vectors", "mace", "schnet", "physnet of several vectors", "ani"],
)
def test_in_float32_only_round_off_is_left(name: str, graph: AtomGraph) -> None:
    potential = make(name)
    single = convert(potential, "float32").eval()
    frozen = single.freeze()
    expected = potential(graph)
    own = differences(single(graph), expected)
    for what, difference in differences(frozen(graph), expected).items():
        assert difference < max(5 * own[what], 5e-6), (
            f"{what}: {difference:.1e}, the model itself {own[what]:.1e}"
        )
    assert frozen.deviation["forces"] < 1e-5 * frozen.deviation["largest_force"]


@pytest.mark.parametrize(
    "name",
    [
        "base",
        "sevennet xplor",
        "cutoffs per pair",
        "zbl",
        "mace",
        "mace with densities and repulsion",
        "schnet",
        "physnet",
        "ani",
    ],
)
def test_forces_and_virial_are_derivatives_of_its_own_energy(name: str) -> None:
    """Also where the splines are coarse: dynamics must conserve what the frozen energy says."""
    frozen = make(name).freeze(tolerance=1e-3)
    rng = np.random.default_rng(0)
    stencil = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    step = 1e-4
    for atoms in (ensemble()[0], ensemble()[3], ensemble()[5]):
        direction, strain = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3))
        moved, strained = [], []
        for k in stencil:
            moved.append(atoms.copy())
            moved[-1].positions += k * step * direction
            strained.append(atoms.copy())
            map_ = np.eye(3) + k * step * strain
            strained[-1].set_cell(atoms.cell.array @ map_)
            strained[-1].positions = atoms.positions @ map_
        weights = np.array(list(stencil.values())) / step
        here = frozen(graph_of([atoms]))
        slope = weights @ frozen(graph_of(moved)).energy.numpy()
        forces = here.forces.numpy()
        assert abs(slope + (forces * direction).sum()) < 1e-6 * np.abs(forces).max() * np.linalg.norm(
            direction
        )
        slope = weights @ frozen(graph_of(strained)).energy.numpy()
        virial = here.virial[0].numpy()
        assert abs(slope + (virial * strain).sum()) < 1e-6 * np.abs(virial).max() * np.linalg.norm(strain)
        np.testing.assert_allclose(virial, virial.T, rtol=0, atol=1e-14 * np.abs(virial).max())


@pytest.mark.parametrize("name", ["sevennet xplor", "schnet", "physnet"])
def test_energy_and_forces_are_smooth_at_knots_and_kinks(name: str) -> None:
    """Across every knot a dimer's force changes no more than its slope times the step."""
    frozen = make(name).freeze(tolerance=1e-4)
    knots = 3.0 * frozen.arrays["knots"][1:]
    knots = knots[knots > 0.5]
    assert "xplor" not in name or np.abs(knots - 2.5).min() < 1e-9
    step = 1e-7
    pairs = [Atoms("CO", positions=[[0, 0, 0], [r + k * step, 0, 0]]) for r in knots for k in (-1.0, 1.0)]
    result = frozen(graph_of(pairs))
    energy, force = result.energy.numpy().reshape(-1, 2), result.forces.numpy()[::2, 0].reshape(-1, 2)
    assert np.abs(np.diff(energy, axis=1)).max() < 4 * step * np.abs(force).max() + 1e-12
    slopes = np.abs(np.gradient(force[:, 0], knots)).max()
    assert np.abs(np.diff(force, axis=1)).max() < 20 * step * slopes + 1e-9
    assert energy[-1, 1] == frozen(graph_of([Atoms("C"), Atoms("O")])).energy.sum()


@pytest.mark.parametrize(
    "name", ["base", "sevennet", "mace with densities and repulsion", "schnet", "physnet", "ani"]
)
def test_turned_renumbered_and_repeated_structures(name: str) -> None:
    frozen = make(name).freeze(tolerance=1e-5)
    atoms = ensemble()[5]
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    order = rng.permutation(len(atoms))
    turned = atoms[order]
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions[order] @ rotation.T + [5.0, -3.0, 2.0]
    here, there, large = (frozen(graph_of([a])) for a in (atoms, turned, atoms * (2, 1, 1)))
    size = float(here.forces.abs().max())
    np.testing.assert_allclose(
        there.forces, here.forces[order].numpy() @ rotation.T, rtol=0, atol=1e-11 * size
    )
    np.testing.assert_allclose(there.energies, here.energies[order], rtol=1e-11)
    np.testing.assert_allclose(large.forces[: len(atoms)], here.forces, rtol=0, atol=1e-11 * size)
    np.testing.assert_allclose(
        large.stress[0], here.stress[0], rtol=0, atol=1e-11 * float(here.stress.abs().max())
    )


def test_a_lone_atom_has_exactly_its_reference_energy() -> None:
    frozen = make("energies per species").freeze(tolerance=1e-3)
    assert float(frozen(graph_of([Atoms("C")])).energy) == 5.0


@pytest.mark.parametrize(
    "name",
    [
        "several vectors",
        "mace with densities and repulsion",
        "schnet of several vectors",
        "physnet of several vectors",
        "ani",
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_change_nothing_but_round_off(threads: int, name: str, graph: AtomGraph) -> None:
    frozen = make(name).freeze(tolerance=1e-5)
    expected = frozen(graph)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, again = frozen(graph), frozen(graph)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.forces, again.forces) and torch.equal(found.virial, again.virial)
    assert max(differences(found, expected).values()) < 1e-13


def test_what_cannot_reach_the_energy_is_left_out() -> None:
    """Before the last layer of a NequIP with parity, features of parity -(-1)^l reach nothing."""
    whole = make("base").model
    pruned = blueprint(whole, [0, 1, 2])
    assert {str(irrep) for irrep in whole.layers[-1].form.irreps_in.irreps} == {"0e", "1e", "1o", "2e", "2o"}
    assert {str(irrep) for irrep in pruned.layers[-1].irreps_in.irreps} == {"0e", "1o", "2e"}
    assert sum(len(layer.paths) for layer in pruned.layers) < sum(
        len(layer.form.paths) for layer in whole.layers
    )


def test_knots_are_where_they_are_needed() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sin(3 * x) + torch.exp(-(((x - 0.6) / 0.02) ** 2)), x], dim=1)

    knots = choose_knots([function], [0.33], 1e-6)
    assert knots[0] == 0.0 and knots[-1] == 1.0 and bool((knots == 0.33).any())
    widths = knots.diff()
    assert float(widths[(knots[:-1] > 0.55) & (knots[1:] < 0.65)].max()) < 0.2 * float(widths.max())
    x = torch.rand(500, dtype=torch.float64) * 0.97 + 0.02
    interval = torch.searchsorted(knots, x, right=True) - 1
    coefficients = polynomials(function, knots[:-1], knots[1:])[interval]
    t = (x - knots[interval]) / widths[interval]
    value = sum(coefficients[:, k] * t[:, None] ** k for k in range(6))
    slope = sum(k * coefficients[:, k] * t[:, None] ** (k - 1) for k in range(1, 6)) / widths[interval, None]
    exact, exact_slope = derivatives(function, x, 1)
    assert float((value - exact).abs().max()) < 3e-6
    assert float((slope - exact_slope).abs().max()) < 3e-6 * float(exact_slope.abs().max())
    with pytest.raises(InputError, match="larger tolerance"):
        choose_knots([lambda x: torch.sin(1e5 * x).unsqueeze(1)], [], 1e-12)
    with pytest.raises(InputError, match="positive"):
        choose_knots([function], [], 0.0)


@pytest.mark.parametrize("name", ["energies per species", "schnet", "physnet", "ani"])
def test_only_some_species(name: str, graph: AtomGraph) -> None:
    potential = make(name)
    frozen = potential.freeze(["O", "H"], tolerance=1e-7)
    assert frozen.species == ("H", "O")
    assert frozen.table_bytes < potential.freeze(tolerance=1e-7).table_bytes
    water = graph_of([molecule("H2O")])
    assert max(differences(frozen(water), potential(water)).values()) < 1e-6
    with pytest.raises(InputError, match="does not know C; it was frozen for H, O"):
        frozen(graph)
    with pytest.raises(InputError, match="knows H, C, O"):
        potential.freeze(["Xe"])


def test_edges_of_a_smaller_cutoff_are_refused() -> None:
    with pytest.raises(InputError, match="reaches 3 Å"):
        make().freeze(tolerance=1e-3)(graph_of([molecule("H2O")], 2.0))


@pytest.mark.parametrize("name", ["sevennet modalities", "schnet", "physnet", "ani"])
def test_a_file_brings_it_back(name: str, tmp_path: Path, graph: AtomGraph) -> None:
    frozen = make(name, dtype="float32").freeze(["C", "O"])
    path = tmp_path / "frozen.safetensors"
    frozen.save(path)
    with pytest.raises(InputError, match="--overwrite"):
        frozen.save(path)
    back = equipes.load_frozen(path)
    assert back.summary() == frozen.summary()
    assert back.deviation == frozen.deviation and set(back.deviation) >= {"energy", "forces", "stress"}
    some = graph_of([ensemble()[1]])
    assert torch.equal(back(some).forces, frozen(some).forces)
    assert back.with_dtype(torch.float64).dtype == torch.float64
    with pytest.raises(InputError, match="frozen potential, which serves simulations only"):
        equipes.load(path)
    model = tmp_path / "model.safetensors"
    make().save(model)
    with pytest.raises(InputError, match="not a frozen potential"):
        equipes.load_frozen(model)


@pytest.mark.parametrize(
    "damage", ["array gone", "array too short", "knots", "paths", "irreps", "species", "deviation"]
)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    make().freeze(tolerance=1e-3).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["equipes"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if damage == "array gone":
        del arrays["layers.1.splines"]
    elif damage == "array too short":
        arrays["layers.1.splines"] = arrays["layers.1.splines"][:-1].contiguous()
    elif damage == "knots":
        arrays["knots"] = arrays["knots"].flip(0).contiguous()
    elif damage == "paths":
        header["frozen"]["layers"][1]["paths"][0] = [7, 0, 0, 1]
    elif damage == "irreps":
        header["frozen"]["layers"][0]["gated"] = "9x1o"
    elif damage == "species":
        header["species"] = ["H", "O"]
    else:
        del header["deviation"]
    path.write_bytes(serialize(arrays, metadata={"equipes": json.dumps(header)}))
    with pytest.raises(InputError, match=r"frozen\.safetensors: .* damaged"):
        equipes.load_frozen(path)


INVARIANT_DAMAGE = {
    "no matrix": lambda header, arrays: arrays.pop("stages.0.links.0.matrix"),
    "no constants": lambda header, arrays: arrays.pop("stages.0.links.0.constants"),
    "a matrix of its own size": lambda header, arrays: arrays.update(
        {"stages.0.links.0.matrix": arrays["stages.0.links.0.matrix"][:, :-1].contiguous()}
    ),
    "short splines": lambda header, arrays: arrays.update(
        {"stages.0.splines": arrays["stages.0.splines"][:-1].contiguous()}
    ),
    "no knots": lambda header, arrays: arrays.update({"knots": arrays["knots"][:0]}),
    "knots": lambda header, arrays: arrays.update({"knots": arrays["knots"].flip(0).contiguous()}),
    "widths": lambda header, arrays: header["widths"].append(-3),
    "an unused node": lambda header, arrays: header["stages"][-1]["links"][-1].update(to=2),
    "a node that is not there": lambda header, arrays: header["stages"][0]["links"][0].update(to=99),
    "a circle": lambda header, arrays: header["stages"][0]["links"][0].update({"from": 2}),
    "an unknown activation": lambda header, arrays: header["stages"][0]["links"][0].update(activation="?"),
    "a sender that is not there": lambda header, arrays: header["stages"][0].update(sent=99),
    "no stages": lambda header, arrays: header["stages"].clear(),
    "another kind": lambda header, arrays: header.update(kind="unheard of"),
    "a cutoff": lambda header, arrays: header.update(r_max=-1.0),
}


@pytest.mark.parametrize("damage", INVARIANT_DAMAGE)
def test_a_damaged_file_of_an_invariant_model_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    make("schnet").freeze(tolerance=1e-2).save(path)
    _damage(path, INVARIANT_DAMAGE[damage])
    with pytest.raises(InputError, match=r"frozen\.safetensors: .* damaged"):
        equipes.load_frozen(path)


@pytest.mark.parametrize(
    "constants",
    [{"zeta": -1.0}, {"shrink": 1.0}, {"r_max": 9.0}, {"angular_r_max": 0.0}, {"angular_eta": "much"}],
    ids=str,
)
def test_symmetry_functions_out_of_range_are_refused(constants: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    make("ani").freeze().save(path)
    _damage(path, lambda header, arrays: header["symmetry_functions"].update(constants))
    with pytest.raises(InputError, match=r"frozen\.safetensors: .* damaged"):
        equipes.load_frozen(path)
    make("ani").freeze().save(path, overwrite=True)
    _damage(path, lambda header, arrays: arrays.update(angles=arrays["angles"][:-1].contiguous()))
    with pytest.raises(InputError, match="symmetry functions do not fit"):
        equipes.load_frozen(path)


def _damage(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """`change` gets the structure and the arrays of a frozen file."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["equipes"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header["frozen"], arrays)
    path.write_bytes(serialize(arrays, metadata={"equipes": json.dumps(header)}))


@pytest.mark.parametrize("name", ["energies per species", "schnet", "physnet", "ani"])
def test_the_calculator_freezes_what_it_meets(name: str) -> None:
    potential = make(name, dtype="float32")
    calculator = equipes.Calculator(potential)
    assert calculator.frozen is None
    for atoms, species in (
        (molecule("H2O"), {"H", "O"}),
        (molecule("CH3CH2OH"), {"H", "C", "O"}),
        (molecule("H2O"), {"H", "C", "O"}),
    ):
        atoms.calc = calculator
        forces = atoms.get_forces()
        assert set(calculator.frozen.species) == species
        atoms.calc = equipes.Calculator(potential, exact=True)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=2e-5 * np.abs(forces).max())
        assert atoms.calc.frozen is None
    assert equipes.Calculator(potential, dtype="float64").freeze_for("H") is None
    xenon = Atoms("Xe", calculator=calculator)
    with pytest.raises(InputError, match="does not know Xe"):
        xenon.get_potential_energy()


def test_the_skin_changes_nothing_of_a_frozen_potential() -> None:
    """Bit for bit, at every step and whatever came before."""
    potential = make("without parity", dtype="float32")
    rng = np.random.default_rng(0)
    atoms = bulk("C", cubic=True) * (2, 1, 1)
    atoms.symbols[::3] = "O"
    with_skin = equipes.Calculator(potential, skin=0.6)
    fresh = equipes.Calculator(potential, skin=0.0)
    for _ in range(8):
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        for name in ("energy", "energies", "forces", "stress"):
            fresh.reset()
            np.testing.assert_array_equal(
                with_skin.get_property(name, atoms), fresh.get_property(name, atoms)
            )
    assert with_skin.neighbor_list_builds < 8


def test_a_frozen_potential_in_the_calculator(tmp_path: Path) -> None:
    frozen = make().freeze(["C"], tolerance=1e-6)
    path = tmp_path / "frozen.safetensors"
    frozen.save(path)
    diamond = bulk("C")
    diamond.rattle(0.1, seed=1)
    energies = [
        equipes.Calculator(model, dtype=None).get_property("energy", diamond) for model in (frozen, path)
    ]
    assert energies[0] == energies[1]
    assert equipes.Calculator(path).frozen.dtype == torch.float32
    for options in ({"exact": True}, {"species": ["C"]}):
        with pytest.raises(InputError, match="give the model that it was made from"):
            equipes.Calculator(path, **options)


def test_a_frozen_form_that_is_far_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calculator = equipes.Calculator(make(dtype="float32"))
    monkeypatch.setattr("equipes.models.frozen.TOLERANCES", {torch.float32: 0.1})
    with pytest.warns(UserWarning, match="the exact model runs instead"):
        assert calculator.freeze_for("CO") is None
    assert np.isfinite(calculator.get_property("energy", molecule("CO")))


@pytest.mark.parametrize("name", ["sevennet", "physnet"])
def test_energy_is_conserved_as_by_the_model(name: str) -> None:
    """The total energy of a frozen diamond in NVE wanders no more than the exact model's."""
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    potential = make(name, dtype="float32")
    wander = {}
    for exact in (False, True):
        atoms = bulk("C", cubic=True)
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(2))
        atoms.calc = equipes.Calculator(potential, exact=exact)
        energies = []
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        for _ in range(40):
            dynamics.run(1)
            energies.append(atoms.get_total_energy())
        wander[exact] = np.ptp(energies)
    assert wander[False] < 1.05 * wander[True] + 1e-5


def test_the_command_line(tmp_path: Path) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "frozen.safetensors"
    make(dtype="float32").save(model)
    done = run_forked(
        "freeze", model, "-o", out, "--species", "C,O", "--json", tmp_path / "summary.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "deviation.forces" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["frozen"] is True and summary["species"] == ["C", "O"]
    assert summary["deviation"]["forces"] < 1e-4 * summary["deviation"]["largest_force"]
    shown = run_forked("info", out, cwd=tmp_path)
    assert shown.returncode == 0 and "frozen" in shown.stdout and "deviation.forces" in shown.stdout
    again = run_forked("freeze", out, "-o", "again.safetensors", cwd=tmp_path)
    assert again.returncode == 2 and "frozen potential" in again.stderr


@pytest.mark.parametrize(
    ("architecture", "hyperparameters"),
    [
        ("nequip", {"num_layers": 2, "num_features": 2, "l_max": 1}),
        ("physnet", {"num_features": 3, "num_basis": 4, "num_modules": 2}),
        ("ani", {"angular_r_max": 1.9, "num_radial": 2, "num_angles": 2, "hidden": [3]}),
    ],
)
def test_many_atoms_in_any_order(architecture: str, hyperparameters: dict[str, Any]) -> None:
    """Large structures are put into an order of their own: it must be undone, and distances must not matter to it."""
    potential = build(architecture, ["C", "O"], {"r_max": 2.0, **hyperparameters}, dtype="float64")
    frozen = potential.freeze(tolerance=1e-9)
    atoms = bulk("C", cubic=True) * (5, 5, 6)
    atoms.symbols[::3] = "O"
    atoms.rattle(0.1, seed=1)
    rng = np.random.default_rng(0)
    atoms = atoms[rng.permutation(len(atoms))]
    atoms.positions[::7] += atoms.cell[0] * 1e3
    atoms.positions[::5] -= atoms.cell[1]
    assert len(atoms) > 1000
    graph = graph_of([atoms], 2.0)
    found = frozen(graph)
    assert max(differences(found, potential.eval()(graph)).values()) < 1e-6
    assert torch.equal(found.forces, frozen(graph).forces)
