"""The potentials that the laws are asked of: every architecture and every kind of configuration, small."""

from __future__ import annotations

from dataclasses import replace

from ase import Atoms

from equipes.graph import AtomGraph
from equipes.models import build
from laws import ROUND_OFF, SEED, Model, graph_of
from structures import SPECIES

SHIFTS = {"H": -1.25, "C": 3.0, "O": -2.5}
SCALES = {"H": 0.8, "C": 1.3, "O": 1.1}


def nequip(name: str, **hyperparameters: object) -> Model:
    """A small NequIP; keyword arguments change its hyperparameters."""
    small = {
        "r_max": 3.2,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 4,
        "num_bessels": 4,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 8,
        "avg_num_neighbors": 8.0,
        "per_type_energy_scales": SCALES,
        "per_type_energy_shifts": SHIFTS,
    }
    cutoffs = {small["r_max"]}
    for value in (hyperparameters.get("per_edge_type_cutoff") or {}).values():
        cutoffs |= set(value.values()) if isinstance(value, dict) else {value}
    return Model(f"nequip {name}", "nequip", small | hyperparameters, SHIFTS, tuple(sorted(cutoffs)))


def mace(name: str, **hyperparameters: object) -> Model:
    """A small MACE; keyword arguments change its hyperparameters.

    With a residual first block, isolated atoms have an energy from their self-connection too.
    """
    small = {
        "r_max": 3.2,
        "num_bessel": 4,
        "max_ell": 2,
        "hidden_irreps": "4x0e + 4x1o",
        "radial_MLP": [8],
        "MLP_irreps": "5x0e",
        "avg_num_neighbors": 2.0,
        "atomic_energies": SHIFTS,
        "atomic_inter_scale": 0.9,
    }
    model = Model(f"mace {name}", "mace", small | hyperparameters, SHIFTS, (small["r_max"],))
    if hyperparameters.get("interaction_cls_first") != "RealAgnosticResidualInteractionBlock":
        return model
    return with_own_reference_energies(model)


def invariant(architecture: str, name: str, *cutoffs: float, **hyperparameters: object) -> Model:
    """A small SchNet, PhysNet or ANI, whose networks have something to say on isolated atoms."""
    small = {
        "r_max": 3.2,
        "per_type_energy_scales": SCALES,
        "per_type_energy_shifts": SHIFTS,
    }
    cutoffs = (*cutoffs, small["r_max"])
    # The second derivative of ANI's cosine cutoff jumps, and the third of the others' polynomial: unlike Bessel's,
    # their radial functions do not vanish at the cutoff.
    model = Model(
        f"{architecture} {name}", architecture, small | hyperparameters, SHIFTS, cutoffs, kinks=cutoffs
    )
    return with_own_reference_energies(model)


def with_own_reference_energies(model: Model) -> Model:
    """The model, whose reference energies are what it says of isolated atoms."""
    alone = {symbol: model.float64(graph_of([Atoms(symbol)], max(model.cutoffs))) for symbol in SHIFTS}
    energies = {symbol: prediction.energy.item() for symbol, prediction in alone.items()}
    return replace(model, reference_energies=energies, alone=1e-14)


SMALLEST = nequip("l_max 1")
MODELS = [
    SMALLEST,
    nequip("l_max 2, 3 layers", l_max=2, num_layers=3, num_features=3),
    nequip("l_max 3", l_max=3, num_features=2),
    nequip("l_max 4, unequal multiplicities", l_max=4, num_features=[4, 2, 1, 1, 1], polynomial_cutoff_p=5),
    nequip("scalars only", l_max=0, num_layers=3),
    nequip("one layer", num_layers=1),
    nequip(
        "without parity",
        parity=False,
        l_max=2,
        num_layers=3,
        num_features=[5, 4, 3],
        type_embed_num_features=7,
    ),
    nequip(
        "readout network", parity=False, readout_mlp_hidden_layers_depth=1, readout_mlp_hidden_layers_width=6
    ),
    nequip("norms per species", avg_num_neighbors={"H": 3.0, "C": 8.0, "O": 20.0}, radial_mlp_depth=2),
    nequip("cutoffs per pair", per_edge_type_cutoff={"H": 2.2, "C": {"O": 2.6}}, bessel_trainable=True),
    nequip("zbl", zbl=True, l_max=2, num_features=[3, 2, 2]),
    nequip(
        "everything trainable",
        num_layers=3,
        bessel_trainable=True,
        per_type_energy_scales_trainable=True,
        per_type_energy_shifts_trainable=True,
        zbl=True,
    ),
    mace("two layers"),
    mace("one layer, five bodies", num_interactions=1, correlation=4, max_ell=1),
    mace(
        "residual, Agnesi, scalars between three layers",
        interaction_cls_first="RealAgnosticResidualInteractionBlock",
        num_interactions=3,
        hidden_irreps="3x0e",
        correlation=[1, 2, 1],
        num_bessel=2,
        distance_transform="Agnesi",
    ),
    mace(
        "density, Soft, repulsion, two heads, hidden to l = 2",
        max_ell=3,
        correlation=2,
        hidden_irreps="2x0e + 2x1o + 2x2e",
        interaction_cls_first="RealAgnosticDensityInteractionBlock",
        interaction_cls="RealAgnosticDensityResidualInteractionBlock",
        distance_transform="Soft",
        pair_repulsion=True,
        heads=["other", "Default"],
        atomic_energies={"other": 7.0, "Default": SHIFTS},
        atomic_inter_scale=[3.0, 0.9],
    ),
    mace("pseudovectors", hidden_irreps="2x0e + 2x1o + 2x1e", avg_num_neighbors=1.5),
    invariant("schnet", "two blocks", num_features=6, num_interactions=2, gaussian_spacing=0.5),
    invariant("schnet", "three blocks, broad", num_features=8, num_interactions=3, gaussian_gamma=4.0),
    invariant(
        "physnet",
        "two modules",
        num_features=6,
        num_basis=5,
        num_modules=2,
        num_residual_interaction=1,
        num_residual_atomic=1,
    ),
    invariant(
        "physnet",
        "without residuals",
        num_features=6,
        num_modules=1,
        num_basis=8,
        num_residual_interaction=0,
        num_residual_atomic=0,
        num_residual_output=0,
    ),
    invariant(
        "ani",
        "smooth",
        2.9,
        angular_r_max=2.9,
        hidden=[8, 5],
        radial_eta=4.0,
        num_radial=5,
        angular_eta=2.0,
        angular_zeta=4.0,
        num_angular_shells=2,
        num_angles=3,
    ),
]


def sevennet(name: str, **hyperparameters: object) -> Model:
    """A small SevenNet. An atom alone goes through its self-connections, so its energy is what the model says it is."""
    small = {
        "r_max": 3.2,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 4,
        "num_bessels": 4,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 8,
        "denominator": 4.0,
        "per_type_energy_scales": SCALES,
        "per_type_energy_shifts": SHIFTS,
    } | hyperparameters
    potential = build("sevennet", SPECIES, small, dtype="float64", seed=SEED).eval()
    alone = {s: potential(AtomGraph.from_atoms(Atoms(s), 3.2)).energy.item() for s in SPECIES}
    # It takes three layers to make a cross product and then a scalar of it.
    flat = small["l_max"] == 0 or small["num_layers"] < 3
    return Model(
        f"sevennet {name}",
        "sevennet",
        small,
        alone,
        (small["r_max"],),
        knows_reflections=flat,
        kinks=(small["xplor_on"], small["r_max"]) if "xplor_on" in small else (),
        alone=ROUND_OFF,
    )


MODALITIES = {"modalities": ["low", "high"], "modality": "high"}
MODELS += [
    sevennet("l_max 2, XPLOR, 3 layers", l_max=2, num_layers=3, num_features=[4, 3, 2], xplor_on=2.9),
    sevennet("l_max 3, unequal multiplicities", l_max=3, num_features=[4, 2, 1, 1], polynomial_cutoff_p=5),
    sevennet("scalars only", l_max=0, num_layers=3),
    sevennet("harmonics that grow", l_max=2, num_features=3, normalize_harmonics=False, xplor_on=2.5),
    sevennet(
        "everything trainable",
        num_layers=3,
        denominator=[3.0, 4.0, 5.0],
        readout_width=3,
        embedding_fan_in=89,
        per_type_energy_scales_trainable=True,
        per_type_energy_shifts_trainable=True,
        per_type_energy_shifts={"low": {"H": 0.1, "C": 0.2, "O": 0.3}, "high": SHIFTS},
        **MODALITIES,
    ),
]

# Of each architecture one whose frozen form is asked, too.
FROZEN = [
    replace(model, name=f"{model.name}, frozen", broken=lambda potential: potential.freeze())
    for model in MODELS
    if model.name
    in (
        "nequip zbl",
        "sevennet l_max 2, XPLOR, 3 layers",
        "mace two layers",
        "schnet two blocks",
        "physnet two modules",
        "ani smooth",
    )
]
