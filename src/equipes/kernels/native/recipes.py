"""What the native engine is told of a model: its layers, and where their parameters come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from equipes.irreps import Irreps

if TYPE_CHECKING:
    from equipes.models import nequip, sevennet
    from equipes.nn import Linear, ScalarMLP, SpeciesLinear

Source = Callable[[], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A model for the engine.

    Attributes:
        description: the layers, as the native side wants to know them.
        sources: what gives each parameter of the engine, in its order: a parameter of the model as it is at the time,
            or a function of some; the scales, shifts and roots of the basis last.
    """

    description: dict[str, Any]
    sources: list[Source]


def recipe_for(model: nn.Module) -> Recipe | None:
    """How the engine computes a model (not one of a class derived from those it knows); None if it cannot."""
    from equipes.kernels.native import mace_recipe
    from equipes.models.mace import MACE
    from equipes.models.nequip import NequIP
    from equipes.models.sevennet import SevenNet

    if type(model) is NequIP:
        return _nequip(model)
    if type(model) is SevenNet and not model.modalities and model.normalize_harmonics:
        return _sevennet(model)
    if type(model) is MACE:
        return mace_recipe.recipe(model)
    return None


def _nequip(model: nequip.NequIP) -> Recipe:
    cutoffs = model.cutoffs
    n_species = len(model.embedding)
    if cutoffs is None:
        cutoffs = torch.full((n_species, n_species), model.r_max, dtype=torch.float64)
    zbl = model.zbl
    description = {
        **_common(model),
        "species_aware": True,
        "cutoff_on": 0.0,
        "cutoffs": cutoffs.flatten().tolist(),
        "norms": model.norms.tolist(),
        "readout_widths": _hidden(model.readout),
        "repulsion_power": zbl.p if zbl is not None else 0,
        "repulsion_charges": zbl.charge_product.flatten().tolist() if zbl is not None else [],
        "repulsion_inverse_lengths": zbl.inverse_length.flatten().tolist() if zbl is not None else [],
    }
    sources = [_held(model._parameters, "embedding")]
    for layer in cast("list[nequip.InteractionBlock]", list(model.layers)):
        sources += _linear(layer.linear_1) + _network(layer.radial_network) + _linear(layer.linear_2)
        if layer.self_connection is not None:
            sources += _linear(layer.self_connection)
    sources += _network(model.readout)
    return Recipe(description, sources + _exact(model))


def _sevennet(model: sevennet.SevenNet) -> Recipe:
    """The same layers but for constant factors, which multiply the weights, and a readout of two matrices without
    anything between them, which is their product."""
    n_species = len(model.embedding)
    first, second = cast("list[Linear]", list(model.readout))
    description = {
        **_common(model),
        "species_aware": False,
        "cutoff_on": 0.0 if model.xplor_on is None else model.xplor_on / model.r_max,
        "cutoffs": [model.r_max] * n_species**2,
        "norms": [1.0] * n_species,
        "readout_widths": [],
        "repulsion_power": 0,
        "repulsion_charges": [],
        "repulsion_inverse_lengths": [],
    }
    sources = [_scaled(_held(model._parameters, "embedding"), 1 / math.sqrt(model.embedding_fan_in))]
    for layer in cast("list[sevennet.InteractionBlock]", list(model.layers)):
        sources += _linear(layer.linear_1) + _network(layer.radial_network)
        sources += [_scaled(source, 1 / layer.denominator) for source in _linear(layer.linear_2)]
        sources += _linear(layer.self_connection)
    fan_in = math.sqrt(first.irreps_in.dim)  # the engine divides by it
    sources.append(lambda: first.matrix("0e") @ second.matrix("0e") * fan_in)
    return Recipe(description, sources + _exact(model))


def _common(model: nequip.NequIP | sevennet.SevenNet) -> dict[str, Any]:
    n_species, n_features = model.embedding.shape
    return {
        "n_species": n_species,
        "n_features": n_features,
        "l_max": model.l_max,
        "r_max": model.r_max,
        "cutoff_power": model.polynomial_cutoff_p,
        "n_roots": len(model.basis.roots),
        "layers": [_layer(layer) for layer in model.layers],
    }


def _layer(layer: Any) -> dict[str, Any]:
    form, gate = layer.form, layer.gate
    return {
        "irreps_in": _terms(form.irreps_in),
        "radial_widths": _hidden(layer.radial_network),
        "paths": [[path.block, path.l2, path.out.l, path.out.p] for path in form.paths],
        "messages": _terms(form.irreps_out),
        "gate_in": _terms(gate.irreps_in),
        "scalars": _terms(gate.scalars),
        "gated": _terms(gate.gated),
        "self_connection": layer.self_connection is not None,
    }


def _terms(irreps: Irreps) -> list[list[int]]:
    return [[mul, irrep.l, irrep.p] for mul, irrep in irreps]


def _hidden(network: ScalarMLP) -> list[int]:
    return [weight.shape[0] for weight in network.weights][1:]


def _held(holder: dict[str, Any], name: str) -> Source:
    """What a module holds by that name, whatever tensor it is at the time."""
    return lambda: holder[name]


def _scaled(source: Source, factor: float) -> Source:
    return source if factor == 1.0 else lambda: source() * factor


def _linear(layer: Linear | SpeciesLinear) -> list[Source]:
    """In the order of the output's irreps; a ParameterDict has its own."""
    names = [str(irrep) for irrep in layer.irreps_out.irreps]
    return [_held(layer.weights._parameters, name) for name in names if name in layer.weights]


def _network(network: ScalarMLP) -> list[Source]:
    """The engine's networks have the factor √2 after their activation."""
    factor = network.activation_scale / math.sqrt(2)
    names = list(network.weights._parameters)
    return [
        _scaled(_held(network.weights._parameters, name), 1.0 if k == 0 else factor)
        for k, name in enumerate(names)
    ]


def _exact(model: nequip.NequIP | sevennet.SevenNet) -> list[Source]:
    basis = model.basis
    roots = basis._parameters if "roots" in basis._parameters else basis._buffers
    return [_held(model._parameters, "scales"), _held(model._parameters, "shifts"), _held(roots, "roots")]
