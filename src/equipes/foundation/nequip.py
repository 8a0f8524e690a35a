"""Weights trained with the NequIP reference package (release 0.19) as potentials of equipes."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.harmonics import MAX_L
from equipes.irreps import Irrep
from equipes.kernels import MessagePassingForm
from equipes.models import Potential, build
from equipes.models.nequip import InteractionBlock, NequIP

_PREFIX = "model.func."
# Keys of the reference's configuration that are hyperparameters here under the same name.
_SAME = (
    "r_max",
    "num_layers",
    "l_max",
    "num_features",
    "parity",
    "num_bessels",
    "bessel_trainable",
    "polynomial_cutoff_p",
    "radial_mlp_depth",
    "radial_mlp_width",
    "readout_mlp_hidden_layers_depth",
    "readout_mlp_hidden_layers_width",
    "type_embed_num_features",
    "avg_num_neighbors",
    "per_type_energy_scales_trainable",
    "per_type_energy_shifts_trainable",
    "per_edge_type_cutoff",
)  # fmt: skip
# What the reference's builder takes where a key is not given; ours would take other values.
_DEFAULTS: dict[str, Any] = {
    "num_layers": 4,
    "l_max": 1,
    "parity": True,
    "num_features": 32,
    "num_bessels": 8,
    "bessel_trainable": False,
    "polynomial_cutoff_p": 6,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 128,
    "readout_mlp_hidden_layers_depth": 0,
}
# Keys that say nothing about the function, or are read from the weights.
_READ_ELSEWHERE = (
    "seed",
    "type_names",
    "chemical_species",
    "model_dtype",
    "pair_potential",
    "per_type_energy_scales",
    "per_type_energy_shifts",
    "_target_",
    "do_derivatives",
)


def from_nequip(config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Potential:
    """The potential that the reference package's weights describe; energies agree to round-off.

    Args:
        config: arguments of the reference's model builder (`r_max`, `type_names`, `num_layers`, …).
        state_dict: its weights by name, `model.func.…`; a Lightning prefix before that is ignored. Arrays or tensors.

    Raises:
        InputError: a key of the configuration that equipes does not have, or weights that are missing, left over or
            of another shape.
    """
    config = _DEFAULTS | dict(config)
    unknown = sorted(set(config) - set(_SAME) - set(_READ_ELSEWHERE))
    if unknown:
        raise InputError(
            f"config key '{unknown[0]}' of the NequIP model has no counterpart in equipes; cannot convert it"
        )
    if "type_names" not in config:
        raise InputError(
            "the NequIP config has no 'type_names'; give the chemical symbols of the model's types"
        )
    species = list(config.get("chemical_species") or config["type_names"])
    weights = _Weights(state_dict)
    dtype = config.get("model_dtype", "float32")
    _refuse_other_sizes(config, weights)
    hyperparameters = {key: config[key] for key in _SAME if config.get(key) is not None}
    hyperparameters |= _pair_potential(config.get("pair_potential"))
    for name, default in (("scales", 1.0), ("shifts", 0.0)):
        values = weights.optional(f"per_type_energy_scale_shift.{name}", default).double().flatten()
        hyperparameters[f"per_type_energy_{name}"] = dict(
            zip(species, values.expand(len(species)).tolist(), strict=True)
        )

    potential = build("nequip", species, hyperparameters, dtype=dtype)
    potential.provenance = {"converted_from": "nequip", "config": config}
    model = potential.model
    assert isinstance(model, NequIP)
    _assign(model.embedding, weights.take("type_embed.embed_module.weight"), "type_embed.embed_module.weight")
    if "bessel_encode.bessel_weights" in weights:
        model.basis.roots.data = weights.take("bessel_encode.bessel_weights").double().flatten()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, InteractionBlock)
        _fill_layer(layer, weights, f"layer{index}_convnet.conv.")
    _fill_mlp(model.readout.weights, weights, "per_atom_energy_readout.mlp_module.mlp.")
    for name in ("edge_norm._rmax_recip", "pair_potential.atomic_numbers", "pair_potential._qqr2exesquare"):
        weights.drop(name)
    weights.refuse_rest()
    return potential.eval()


def _refuse_other_sizes(config: Mapping[str, Any], weights: _Weights) -> None:
    """Compare the sizes that the config asks for with the weights, before anything of these sizes is made."""
    l_max, given = config["l_max"], config["num_features"]
    if type(l_max) is not int or not 0 <= l_max <= MAX_L:
        raise InputError(
            f"the NequIP config asks for l_max = {l_max}; equipes has whole numbers up to {MAX_L}"
        )
    channels = list(given) if isinstance(given, list | tuple) else [given] * (l_max + 1)
    embedding = weights.shape("type_embed.embed_module.weight")
    radial = weights.shape("layer0_convnet.conv.edge_mlp.mlp.0.weight")
    width = config["radial_mlp_width"] if config["radial_mlp_depth"] else None
    found = {
        "num_layers": (config["num_layers"], weights.count("layer", "_convnet.conv.linear_1.weight")),
        "radial_mlp_depth": (
            config["radial_mlp_depth"],
            weights.count("layer0_convnet.conv.edge_mlp.mlp.", ".weight") - 1,
        ),
        "readout_mlp_hidden_layers_depth": (
            config["readout_mlp_hidden_layers_depth"],
            weights.count("per_atom_energy_readout.mlp_module.mlp.", ".weight") - 1,
        ),
        "num_bessels": (config["num_bessels"], radial[0]),
        "radial_mlp_width": (width, radial[-1] if width is not None else None),
        "type_embed_num_features": (config.get("type_embed_num_features") or channels[0], embedding[-1]),
    }
    for key, (wanted, there) in found.items():
        if wanted != there:
            raise InputError(f"the NequIP config asks for {key} = {wanted}, and the weights have {there}")
    # With one layer nothing but scalars is made.
    if config["num_layers"] > 1:
        name = "layer1_convnet.conv.linear_1.weight"
        sizes = [mul if type(mul) is int and mul > 0 else 0 for mul in channels]
        if sum(mul**2 for mul in sizes) != weights.shape(name)[0] or 0 in sizes:
            raise InputError(
                f"the NequIP config asks for num_features = {given} at l_max = {l_max}, and its weights '{name}' are "
                f"{weights.shape(name)[0]} numbers"
            )
    width = config.get("readout_mlp_hidden_layers_width")
    if width is not None and config["readout_mlp_hidden_layers_depth"]:
        there = weights.shape("per_atom_energy_readout.mlp_module.mlp.0.weight")[-1]
        if width != there:
            raise InputError(
                f"the NequIP config asks for readout_mlp_hidden_layers_width = {width}, and the weights have {there}"
            )


def _pair_potential(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The hyperparameters that stand for the reference's pair potential."""
    if config is None:
        return {}
    if not str(config.get("_target_", "")).endswith(".ZBL") or config.get("units", "metal") != "metal":
        raise InputError(
            f"pair_potential {dict(config)} has no counterpart in equipes; only ZBL in metal units has"
        )
    return {"zbl": True, "zbl_polynomial_cutoff_p": config.get("polynomial_cutoff_p", 6)}


def read_nequip_npz(path: str | os.PathLike[str]) -> Potential:
    """A potential from an `.npz` with the reference's configuration as JSON (`config`) and its weights (`w/<name>`).

    Raises:
        InputError: the file is missing or has another content.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            config = json.loads(str(arrays["config"]))
            state = {name[2:]: arrays[name] for name in arrays.files if name.startswith("w/")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not an .npz with 'config' (JSON) and weights 'w/<name>' of a NequIP model; give such a file"
        ) from error
    try:
        return from_nequip(config, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _Weights:
    """A state dict that knows what has been taken from it."""

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        self._left: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            _, found, short = name.rpartition(_PREFIX)
            self._left[short if found else name] = torch.as_tensor(value).detach()

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        """Of weights that are there, of one dimension at least."""
        if name not in self._left or self._left[name].dim() == 0:
            raise InputError(f"the NequIP weights have no '{_PREFIX}{name}', which the config asks for")
        return tuple(self._left[name].shape)

    def count(self, start: str, end: str) -> int:
        """How many weights have a name of this start, a number, and this end."""
        middles = (
            n[len(start) : len(n) - len(end)] for n in self._left if n.startswith(start) and n.endswith(end)
        )
        return sum(middle.isdecimal() for middle in middles)

    def take(self, name: str) -> Tensor:
        if name not in self._left:
            raise InputError(f"the NequIP weights have no '{_PREFIX}{name}', which the config asks for")
        return self._left.pop(name)

    def optional(self, name: str, default: float) -> Tensor:
        return self._left.pop(name, torch.tensor(default, dtype=torch.float64))

    def drop(self, name: str) -> None:
        self._left.pop(name, None)

    def refuse_rest(self) -> None:
        if self._left:
            raise InputError(
                f"the NequIP weights have '{sorted(self._left)[0]}', which the config does not ask for"
            )


def _assign(parameter: Tensor, value: Tensor, name: str) -> None:
    if value.shape != parameter.shape:
        raise InputError(
            f"the NequIP weights '{name}' have shape {list(value.shape)}; the config asks for {list(parameter.shape)}"
        )
    parameter.data = value.to(parameter.dtype).clone()


def _fill_layer(layer: InteractionBlock, weights: _Weights, prefix: str) -> None:
    order = torch.as_tensor(_reference_columns(layer.form))
    _fill_mlp(layer.radial_network.weights, weights, f"{prefix}edge_mlp.mlp.", columns=order)
    _fill_flat(layer.linear_1.weights, layer.linear_1.irreps_in.irreps, weights, f"{prefix}linear_1.weight")
    _fill_flat(layer.linear_2.weights, layer.linear_2.irreps_in.irreps, weights, f"{prefix}linear_2.weight")
    if layer.self_connection is not None:
        own = layer.self_connection
        _fill_flat(own.weights, own.irreps_in.irreps, weights, f"{prefix}sc.weight")


def _fill_flat(parameters: Any, irreps: list[Irrep], weights: _Weights, name: str) -> None:
    """The reference keeps one flat array: the blocks' matrices one after the other in the order of the input."""
    blocks = [parameters[str(irrep)] for irrep in irreps if str(irrep) in parameters]
    flat = weights.take(name)
    if flat.shape != (sum(block.numel() for block in blocks),):
        raise InputError(
            f"the NequIP weights '{name}' have shape {list(flat.shape)}; the config asks for "
            f"[{sum(block.numel() for block in blocks)}]"
        )
    for block, part in zip(blocks, flat.split([block.numel() for block in blocks]), strict=True):
        block.data = part.view(block.shape).to(block.dtype).clone()


def _fill_mlp(parameters: Any, weights: _Weights, prefix: str, columns: Tensor | None = None) -> None:
    for index, parameter in enumerate(parameters):
        name = f"{prefix}{2 * index}.weight"
        value = weights.take(name)
        if columns is not None and index == len(parameters) - 1 and value.shape[-1] == len(columns):
            value = value[:, columns]
        _assign(parameter, value, name)


def _reference_columns(form: MessagePassingForm) -> np.ndarray:
    """For each weight here, its column in the reference, whose paths run over block, l2, l3 (here block, l3, l2)."""
    reference = sorted(form.paths, key=lambda path: (path.block, path.l2, path.out.l))
    columns, start = {}, 0
    for path in reference:
        mul = form.irreps_in[path.block][0]
        columns[path] = np.arange(start, start + mul)
        start += mul
    return (
        np.concatenate([columns[path] for path in form.paths]) if form.paths else np.zeros(0, dtype=np.int64)
    )
