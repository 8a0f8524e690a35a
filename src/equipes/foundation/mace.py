"""Checkpoints of the MACE package (mace-torch, `.model` files) as potentials of equipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from equipes.errors import InputError
from equipes.foundation.mace_weights import Module, fill, plain_number
from equipes.foundation.pickles import Record, is_pickled, read_pickled
from equipes.harmonics import MAX_L
from equipes.irreps import Irrep, Irreps
from equipes.models import Potential, build
from equipes.models.mace import INTERACTIONS, MACE
from equipes.nn.gate import EVEN_SCALAR

_MODELS = ("ScaleShiftMACE", "MACE")
_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}
# Switches of the reference that have no counterpart here, and the values with which they do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "apply_cutoff": (True,),
    "use_so3": (False,),
    "use_agnostic_product": (False,),
    "use_last_readout_only": (False,),
    "use_edge_irreps_first": (False,),
    "edge_irreps": (None,),
    "keep_last_layer_irreps": (False,),
    "embedding_specs": (None, {}),
}
# Tensors that follow from others.
_DERIVED = (
    "bias", "output_mask", "conv_tp.weight", "bessel_fn.r_max", "bessel_fn.prefactor", "cutoff_fn.r_max", "r_max",
    "num_interactions", "_zeroed", "pair_repulsion_fn.r_max",
)  # fmt: skip
# How far the file's couplings may be from ours: their own round-off.
_COUPLING_ERROR = {torch.float32: 1e-5, torch.float64: 1e-10}


def recognises(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a checkpoint of the MACE package. Never raises, never runs anything of the file."""
    return is_pickled(path, "mace.modules.models")


def read_checkpoint(
    path: str | os.PathLike[str], *, head: str | None = None, dtype: str | None = None
) -> Potential:
    """The potential in a `.model` file of the MACE package; energies agree to round-off.

    Nothing that the file contains is run, and neither mace nor e3nn is needed.

    Args:
        path: the file.
        head: of a model with several, the one to use; its "Default" one if it has that.
        dtype: "float32" or "float64" in place of the one it was stored in.

    Raises:
        InputError: the file is missing, damaged, of another kind, or a MACE with parts that equipes does not have.
    """
    path = Path(path)
    root = read_pickled(path)
    try:
        return _potential(root, path.name, head, dtype)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _potential(root: Any, name: str, head: str | None, dtype: str | None) -> Potential:
    if (
        not isinstance(root, Record)
        or root.name.name not in _MODELS
        or not root.name.module.startswith("mace.")
    ):
        kind = root.name.name if isinstance(root, Record) else type(root).__name__
        raise InputError(f"holds a {kind}, not one of the models {', '.join(_MODELS)} of the MACE package")
    module = Module(root, "", set())
    for switch, neutral in _NEUTRAL.items():
        value = module.value(switch, neutral[0])
        if not any(type(value) is type(good) and value == good for good in neutral):
            raise InputError(f"the MACE model has {switch} = {value}, which equipes does not have")
    species, stored = _species(module), module.record.attribute("_buffers")["r_max"].dtype
    if stored not in _COUPLING_ERROR:
        raise InputError(f"the MACE model is stored in {stored}; only float32 and float64 are known")
    hyperparameters = _hyperparameters(module, species, head)
    potential = build("mace", species, hyperparameters, dtype=dtype or str(stored).removeprefix("torch."))
    model = potential.model
    assert isinstance(model, MACE)
    with torch.no_grad():
        fill(model, module, _COUPLING_ERROR[stored])
    for place, _ in module.tensors():
        if place not in module.taken and not place.endswith(_DERIVED):
            raise InputError(f"the MACE model has weights '{place}' that equipes does not know")
    potential.provenance = {"converted_from": "mace", "file": name, "class": root.name.name}
    return potential.eval()


# Hyperparameters. What they make us build is bounded by weights that the file has.


def _species(module: Module) -> list[str]:
    numbers = module.tensor("atomic_numbers").flatten().tolist()
    if not numbers or len(set(numbers)) != len(numbers) or len(numbers) > len(chemical_symbols):
        raise InputError("the MACE model's atomic_numbers are not different elements")
    if any(type(z) is not int or not 0 < z < len(chemical_symbols) for z in numbers):
        raise InputError("the MACE model's atomic_numbers are not those of elements")
    return [chemical_symbols[z] for z in numbers]


def _hyperparameters(module: Module, species: list[str], head: str | None) -> dict[str, Any]:
    n = len(species)
    layers = module["interactions"].children()
    if not layers or len(layers) != len(module["products"].children()) or len(layers) > 64:
        raise InputError("the MACE model has not one product for each interaction")
    kinds = [layer.kind for layer in layers]
    unknown = [kind for kind in kinds if kind not in INTERACTIONS]
    if unknown or len(set(kinds[1:])) > 1:
        raise InputError(
            f"the MACE model has interactions {', '.join(kinds)}; known: {', '.join(INTERACTIONS)}"
        )
    harmonics = _irreps(layers[0].value("edge_attrs_irreps"), "edge_attrs_irreps")
    max_ell = len(harmonics) - 1
    if max_ell > MAX_L or list(harmonics) != [(1, Irrep(l, (-1) ** l)) for l in range(max_ell + 1)]:
        raise InputError(
            f"the MACE model has harmonics {harmonics}; known: 1x0e + 1x1o + … up to l = {MAX_L}"
        )

    hidden = _irreps(layers[0].value("hidden_irreps"), "hidden_irreps")
    channels = hidden.multiplicity(EVEN_SCALAR)
    if hidden != hidden.merged() or {mul for mul, _ in hidden} != {channels}:
        raise InputError(
            f"the MACE model has hidden irreps {hidden}; known: sorted ones with one multiplicity"
        )
    module.tensor("node_embedding.linear.weight", [n * channels])
    first_skip = layers[0].tensor("skip_tp.weight").numel()
    layers[0].tensor("linear_up.weight", [channels**2])
    if first_skip < n * channels**2:
        raise InputError("the MACE model's skip_tp.weight is too small for its hidden irreps")
    for layer in layers[1:]:
        if _irreps(layer.value("node_feats_irreps"), "node_feats_irreps") != hidden:
            raise InputError("the MACE model has other irreps in other layers, which equipes does not have")
    last = _irreps(layers[-1].value("hidden_irreps"), "hidden_irreps")
    if last.irreps != [EVEN_SCALAR]:
        raise InputError(f"the MACE model's last layer has {last}, not scalars only")

    radial = _widths(layers[0])
    if any(_widths(layer)[:-1] != radial[:-1] for layer in layers):
        raise InputError(
            "the MACE model has other radial networks in other layers, which equipes does not have"
        )
    neighbours = {plain_number(layer.value("avg_num_neighbors"), "avg_num_neighbors") for layer in layers}
    if len(neighbours) != 1:
        raise InputError(
            "the MACE model has another avg_num_neighbors in other layers, which equipes does not have"
        )
    heads = module.value("heads", ["Default"])
    if not (isinstance(heads, list) and heads and all(isinstance(name, str) for name in heads)):
        raise InputError("the MACE model's heads are no list of names")
    scale, shift = _scale_shift(module, len(heads))
    hyperparameters = {
        "r_max": module.number("r_max"),
        "num_bessel": module.tensor("radial_embedding.bessel_fn.bessel_weights").numel(),
        "num_polynomial_cutoff": _power(module, "radial_embedding.cutoff_fn.p"),
        "max_ell": max_ell,
        "hidden_irreps": str(hidden),
        "correlation": [_correlation(product, max_ell) for product in module["products"].children()],
        "num_interactions": len(layers),
        "interaction_cls_first": kinds[0],
        "interaction_cls": kinds[-1],
        "radial_MLP": radial[1:-1],
        "avg_num_neighbors": neighbours.pop(),
        "atomic_energies": _energies(module, species, heads),
        "atomic_inter_scale": scale,
        "atomic_inter_shift": shift,
        "heads": heads,
        "head": head,
        "distance_transform": "None",
    }
    if hyperparameters["num_bessel"] != radial[0]:
        raise InputError("the MACE model's radial networks do not fit its radial basis")
    if len(layers) > 1:
        width = module.tensor(f"readouts.{len(layers) - 1}.linear_2.weight").numel() // len(heads) ** 2
        hyperparameters["MLP_irreps"] = f"{width}x0e"
    if "distance_transform" in module["radial_embedding"]:
        kind = module["radial_embedding.distance_transform"].kind
        if kind not in _TRANSFORMS:
            raise InputError(
                f"the MACE model has the distance transform {kind}; known: {', '.join(_TRANSFORMS)}"
            )
        hyperparameters["distance_transform"] = _TRANSFORMS[kind]
    if module["radial_embedding.bessel_fn"].kind != "BesselBasis":
        raise InputError(
            f"the MACE model has the radial basis {module['radial_embedding.bessel_fn'].kind}, not Bessel"
        )
    if "pair_repulsion_fn" in module:
        hyperparameters |= {
            "pair_repulsion": True,
            "pair_repulsion_cutoff": _power(module, "pair_repulsion_fn.p"),
        }
    return hyperparameters


def _irreps(value: Any, what: str) -> Irreps:
    """Irreps of e3nn as the file has them: text, or nested tuples."""
    if isinstance(value, str):
        return Irreps(value)
    try:
        terms = []
        for term in value.arguments[0]:
            mul, irrep = term.arguments[0]
            l, p = irrep.arguments[0]
            terms.append((mul, Irrep(l, p)))
    except (AttributeError, TypeError, ValueError, IndexError):
        raise InputError(f"the MACE model's {what} cannot be read") from None
    if not all(type(number) is int and number >= 0 for mul, irrep in terms for number in (mul, irrep.l)):
        raise InputError(f"the MACE model's {what} cannot be read")
    return Irreps(terms)


def _widths(layer: Module) -> list[int]:
    """Widths of the radial network from the basis to the weights of the paths."""
    weights: list[Tensor] = []
    while (weight := layer.optional(f"conv_tp_weights.layer{len(weights)}.weight")) is not None:
        weights.append(weight)
    if not weights or any(weight.ndim != 2 for weight in weights):
        raise InputError(f"the MACE model has no radial network '{layer.place}conv_tp_weights'")
    return [weights[0].shape[0], *(weight.shape[1] for weight in weights)]


def _power(module: Module, name: str) -> int:
    power = module.number(name)
    if power != int(power) or not 2 <= power <= 100:
        raise InputError(f"the MACE model's {name} is {power}, not a power of a cutoff function")
    return int(power)


def _correlation(product: Module, max_ell: int) -> int:
    """How many powers the stored couplings have, once their shapes are known to be right."""
    contraction = product["symmetric_contractions.contractions.0"]
    degree, n = 0, (max_ell + 1) ** 2
    while (couplings := contraction.optional(f"U_matrix_{degree + 1}")) is not None:
        degree += 1
        if couplings.shape[-degree - 1 : -1] != (couplings.shape[-2],) * degree or couplings.shape[-2] % n:
            raise InputError(
                f"the MACE couplings '{contraction.place}U_matrix_{degree}' have a strange shape"
            )
    return degree


def _scale_shift(module: Module, n_heads: int) -> tuple[list[float], list[float]]:
    if module.kind == "MACE":
        return [1.0] * n_heads, [0.0] * n_heads
    values = []
    for name in ("scale", "shift"):
        found = module.tensor(f"scale_shift.{name}").flatten()
        values.append(found.expand(n_heads).tolist() if found.numel() == 1 else found.tolist())
    return values[0], values[1]


def _energies(module: Module, species: list[str], heads: list[str]) -> dict[str, Any]:
    """Energies of the isolated atoms, for each head."""
    found = module.tensor("atomic_energies_fn.atomic_energies")
    if found.shape not in ((len(species),), (len(heads), len(species))):
        raise InputError(f"the MACE model's atomic energies have shape {list(found.shape)}")
    rows = found.expand(len(heads), len(species)).tolist()
    return {head: dict(zip(species, row, strict=True)) for head, row in zip(heads, rows, strict=True)}
