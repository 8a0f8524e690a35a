"""Checkpoints of the SevenNet package (releases 0.9 and 0.10) as potentials of equipes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from equipes.clebsch_gordan import wigner_3j
from equipes.errors import InputError
from equipes.foundation.pickles import Name, Record, read_pickled
from equipes.harmonics import MAX_L
from equipes.irreps import Irrep, Irreps
from equipes.models import Potential, build
from equipes.models.sevennet import InteractionBlock, SevenNet
from equipes.nn import Linear

# Keys of the configuration that must have this value, which is also meant where a key is missing.
_ONLY: dict[str, Any] = {
    "_model_type": "E3_equivariant_model",
    "is_parity": False,
    "lmax_edge": -1,
    "lmax_node": -1,
    "self_connection_type": "linear",
    "interaction_type": "nequip",
    "act_radial": "silu",
    "use_bias_in_linear": False,
    "readout_as_fcn": False,
    "use_modal_node_embedding": False,
}
_OLD_NAMES = (
    ("EdgeEmbedding", "edge_embedding"),
    ("denumerator", "denominator"),
    ("reducing nn ", "reduce_"),
    (" ", "_"),
)
# What checkpoints name beside tensors: arrays and devices in the configuration, of which nothing is needed.
_HARMLESS = {
    ("torch", "device"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.dtypes", "Float32DType"),
    ("_codecs", "encode"),
}
# Buffers that follow from the configuration.
_DERIVED = (".bias", ".output_mask", ".convolution.weight", ".gate.mul.weight")
_LAYER = "{}_convolution."
_TABLE = "{}_convolution.convolution._compiled_main_left_right._w3j_{}_{}_{}"


def read_checkpoint(path: str | os.PathLike[str]) -> Potential:
    """A potential from a checkpoint of the SevenNet package (`*.pth`). Nothing of the file is run.

    Raises:
        InputError: the file is missing, damaged, no such checkpoint, or of a kind that equipes does not have.
    """
    path = Path(path)
    content = read_pickled(path)
    foreign = _foreign(content)
    if foreign is not None:
        raise InputError(
            f"{path}: asks for {foreign.module[:40]!r}, {foreign.name[:40]!r}, which a checkpoint of weights has no "
            "need of; nothing of it was run. Fetch the file from its publisher"
        )
    if not isinstance(content, dict) or not {"model_state_dict", "config"} <= content.keys():
        raise InputError(f"{path}: no checkpoint of SevenNet (it needs 'model_state_dict' and 'config')")
    try:
        return from_sevennet(content["config"], content["model_state_dict"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _foreign(content: object) -> Name | None:
    """The first function or class in a checkpoint that has no business there; None where all is in order."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Record):
            waiting += [value.name, value.arguments, value.state, value.items]
        elif isinstance(value, Name) and (value.module, value.name) not in _HARMLESS:
            return value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return None


def from_sevennet(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Potential:
    """The potential that the package's configuration and weights describe; energies agree to round-off.

    Several conventions differ. The package's radial weights stand in the order (block, l2, l3), here (block, l3, l2).
    Its Wigner 3j tables come from e3nn, which once changed the sign of some; they are in the file, and where a table
    has the other sign, so has the column of the last radial layer here.

    Args:
        config: the configuration in the checkpoint.
        state_dict: its weights by name.

    Raises:
        InputError: a kind of model that equipes does not have, or weights that are missing or of another shape.
    """
    settings = _Settings(config)
    weights = _Weights(state_dict)
    for key, only in _ONLY.items():
        value = settings.get(key, only)
        if type(value) is not type(only) or value != only:
            raise settings.wrong(key, f"equipes has only {only!r}")
    species = settings.species()
    hyperparameters = _hyperparameters(settings, weights, len(species))
    modalities = hyperparameters["modalities"]
    for name in ("scale", "shift"):
        values = weights.take(f"rescale_atomic_energy.{name}").double()
        expected = [[len(species)], [len(modalities), len(species)]] if modalities else [[len(species)]]
        if list(values.shape) not in expected:
            raise InputError(
                f"the weights 'rescale_atomic_energy.{name}' have shape {list(values.shape)}; {len(species)} species "
                f"need {expected[-1]}"
            )
        hyperparameters[f"per_type_energy_{name}s"] = (
            _by_name(species, values)
            if values.dim() == 1
            else {modality: _by_name(species, row) for modality, row in zip(modalities, values, strict=True)}
        )

    potential = build("sevennet", species, hyperparameters)
    potential.provenance = {
        "converted_from": "sevennet",
        "version": str(settings.get("version", "")),
        "epoch": settings.get("epoch", None),
    }
    model = potential.model
    assert isinstance(model, SevenNet)
    roots = weights.take("edge_embedding.basis_function.coeffs").double() * (model.r_max / math.pi)
    model.basis.roots.data = roots
    embedding = weights.take("onehot_to_feature_x.linear.weight")
    model.embedding.data = embedding.view(model.embedding.shape).float().clone()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, InteractionBlock)
        _fill_linear(layer.self_connection, weights, f"{index}_self_connection_intro.linear.weight")
        _fill_linear(layer.linear_1, weights, f"{index}_self_interaction_1.linear.weight")
        _fill_linear(layer.linear_2, weights, f"{index}_self_interaction_2.linear.weight")
        _fill_radial(layer, weights, index)
    for linear, name in zip(
        model.readout, ("reduce_input_to_hidden", "reduce_hidden_to_energy"), strict=True
    ):
        assert isinstance(linear, Linear)
        _fill_linear(linear, weights, f"{name}.linear.weight")
    weights.refuse_rest()
    return potential.eval()


def _hyperparameters(settings: _Settings, weights: _Weights, n_species: int) -> dict[str, Any]:
    """Sizes are compared with the weights before anything of these sizes is made."""
    l_max = settings.integer("lmax", 0, MAX_L)
    n_layers = settings.integer("num_convolution_layer", 1, 100)
    n_bessels = settings.integer("bessel_basis_num", 1, 10_000, section="radial_basis")
    weights.expect("edge_embedding.basis_function.coeffs", [n_bessels])
    irreps = settings.irreps("irreps_manual", n_layers + 1)
    channels = [mul for mul, _ in irreps[0]]
    hidden = irreps[1] if n_layers > 1 else Irreps(f"{channels[0]}x0e")
    wanted = [Irreps(f"{channels[0]}x0e"), *[hidden] * (n_layers - 1), Irreps(f"{channels[0]}x0e")]
    every_degree = hidden.irreps == [Irrep(l, 1) for l in range(l_max + 1)]
    if irreps != wanted or not (every_degree or n_layers == 1):
        raise settings.wrong(
            "irreps_manual", "equipes needs the same even irreps, l = 0 … lmax, in all layers between"
        )
    features = [mul for mul, _ in hidden] if n_layers > 1 else [channels[0]] * (l_max + 1)
    modalities = settings.modalities()
    weights.expect("onehot_to_feature_x.linear.weight", [n_species * channels[0]])
    for layer in range(n_layers):
        own = channels if layer == 0 else features
        size = sum(mul**2 for mul in own) + len(modalities) * own[0]
        weights.expect(f"{layer}_self_interaction_1.linear.weight", [size])
    widths = settings.widths("weight_nn_hidden_neurons")
    if len(set(widths)) > 1:
        raise settings.wrong("weight_nn_hidden_neurons", "equipes needs equal widths")
    for layer in range(n_layers):
        for depth, shape in enumerate(zip([n_bessels, *widths], widths, strict=False)):
            weights.expect(f"{layer}_convolution.weight_nn.layer{depth}.weight", list(shape))
    readout = channels[0] // 2
    weights.expect("reduce_hidden_to_energy.linear.weight", [readout])
    denominators = [_number(weights.take(f"{layer}_convolution.denominator")) for layer in range(n_layers)]
    same = len(set(denominators)) == 1
    return {
        "r_max": settings.number("cutoff"),
        "num_layers": n_layers,
        "l_max": l_max,
        "num_features": features,
        "num_bessels": n_bessels,
        "bessel_trainable": True,
        **settings.cutoff_function(),
        "normalize_harmonics": bool(settings.get("_normalize_sph", False)),
        "radial_mlp_depth": len(widths),
        "radial_mlp_width": widths[0] if widths else 64,
        "readout_width": readout,
        "denominator": denominators[0] if same else denominators,
        "embedding_fan_in": n_species,
        "modalities": modalities,
    }


class _Settings:
    """The configuration in a checkpoint: values of unknown origin, asked for by key and type."""

    def __init__(self, config: object) -> None:
        if not isinstance(config, Mapping):
            raise InputError("the configuration of the SevenNet checkpoint is no dict")
        self._config = config

    def get(self, key: str, default: Any) -> Any:
        value = self._config.get(key, default)
        return default if value is None else value

    def wrong(self, key: str, wanted: str) -> InputError:
        value = self._config.get(key)
        shown = repr(value)[:80] if isinstance(value, str | int | float | bool) else type(value).__name__
        return InputError(f"config key '{key}' of the SevenNet model is {shown}; {wanted}")

    def integer(self, key: str, least: int, most: int, *, section: str | None = None) -> int:
        values = self.get(section, {}) if section else self._config
        value = values.get(key) if isinstance(values, Mapping) else None
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(section or key, f"an integer '{key}' from {least} to {most} was expected")
        return value

    def number(self, key: str) -> float:
        value = self.get(key, None)
        if type(value) not in (int, float) or not (math.isfinite(value) and 0 < value < 1000):
            raise self.wrong(key, "a positive number was expected")
        return float(value)

    def species(self) -> list[str]:
        """Chemical symbols in the order of the tables."""
        types = self.get("_type_map", None)
        if (
            not isinstance(types, Mapping)
            or not types
            or not all(type(z) is int and 0 < z < len(chemical_symbols) for z in types)
            or sorted(types.values(), key=str) != sorted(range(len(types)), key=str)
        ):
            raise self.wrong("_type_map", "a table from atomic numbers to 0, 1, 2, … was expected")
        return [chemical_symbols[z] for z in sorted(types, key=types.__getitem__)]

    def irreps(self, key: str, count: int) -> list[Irreps]:
        texts = self.get(key, None)
        if not isinstance(texts, list) or len(texts) != count or not all(isinstance(t, str) for t in texts):
            raise self.wrong(key, f"a list of {count} irreps was expected")
        irreps = [Irreps(text[:200]) for text in texts]
        if not all(irreps) or any(mul < 1 for terms in irreps for mul, _ in terms):
            raise self.wrong(key, "irreps with multiplicities were expected")
        return irreps

    def widths(self, key: str) -> list[int]:
        values = self.get(key, None)
        if not isinstance(values, list) or not all(type(v) is int and 0 < v <= 10_000 for v in values):
            raise self.wrong(key, "a list of widths was expected")
        return values

    def modalities(self) -> list[str]:
        """Names of the modalities in the order of their rows; none where the model has but one."""
        if not self.get("use_modality", False):
            return []
        names = self.get("_modal_map", None)
        if (
            not isinstance(names, Mapping)
            or not all(isinstance(name, str) for name in names)
            or sorted(names.values(), key=str) != sorted(range(len(names)), key=str)
        ):
            raise self.wrong("_modal_map", "a table from names to 0, 1, 2, … was expected")
        for key in ("self_inter_intro", "self_inter_outro", "output_block"):
            if self.get(f"use_modal_{key}", False) is not True:
                raise self.wrong(f"use_modal_{key}", "equipes needs the modality in all of these places")
        return sorted(names, key=names.__getitem__)

    def cutoff_function(self) -> dict[str, Any]:
        function = self.get("cutoff_function", None)
        name = function.get("cutoff_function_name") if isinstance(function, Mapping) else None
        if name == "XPLOR" and type(function["cutoff_on"]) in (int, float):
            return {"xplor_on": float(function["cutoff_on"])}
        if name == "poly_cut" and type(power := function.get("poly_cut_p_value", 6)) is int:
            return {"polynomial_cutoff_p": power}
        raise self.wrong("cutoff_function", "equipes has XPLOR and poly_cut")


class _Weights:
    """A state dict under the package's present names, that knows what has been taken from it."""

    def __init__(self, state_dict: object) -> None:
        if not isinstance(state_dict, Mapping):
            raise InputError("the weights of the SevenNet checkpoint are no dict")
        self._left: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise InputError("the weights of the SevenNet checkpoint are not tensors by name")
            for old, new in _OLD_NAMES:
                name = name.replace(old, new)
            self._left[name] = value.detach()

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def expect(self, name: str, shape: Sequence[int]) -> None:
        """Refuse other shapes."""
        if name not in self._left:
            raise InputError(f"the SevenNet weights have no '{name}', which the config asks for")
        given = list(self._left[name].shape)
        if given != list(shape):
            raise InputError(
                f"the SevenNet weights '{name}' have shape {given}; the config asks for {list(shape)}"
            )

    def take(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        if shape is not None or name not in self._left:
            self.expect(name, shape or ())
        value = self._left.pop(name)
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InputError(f"the SevenNet weights '{name}' are not all finite numbers")
        return value

    def refuse_rest(self) -> None:
        left = [name for name in self._left if not name.endswith(_DERIVED) and "._w3j_" not in name]
        if left:
            raise InputError(f"the SevenNet weights have '{min(left)}', which the config does not ask for")


def _number(value: Tensor) -> float:
    if value.numel() != 1 or value.item() <= 0:
        raise InputError("the denominator of a convolution of the SevenNet model is not one positive number")
    return float(value.item())


def _by_name(species: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(species, values.tolist(), strict=True))


def _fill_linear(linear: Linear, weights: _Weights, name: str) -> None:
    """The package keeps one flat array: the blocks' matrices in the order of the input, the rows of modalities last."""
    parameters = [linear.weights[str(i)] for i in linear.irreps_in.irreps if str(i) in linear.weights]
    if linear.n_modalities:
        parameters.append(linear.modal)
    sizes = [parameter.numel() for parameter in parameters]
    flat = weights.take(name, [sum(sizes)])
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape).to(parameter.dtype).clone()


def _fill_radial(layer: InteractionBlock, weights: _Weights, index: int) -> None:
    columns, signs = _columns(layer, weights, index)
    for depth, parameter in enumerate(layer.radial_network.weights):
        value = weights.take(f"{index}_convolution.weight_nn.layer{depth}.weight", parameter.shape)
        if depth == len(layer.radial_network.weights) - 1:
            value = value[:, columns] * signs
        parameter.data = value.to(parameter.dtype).clone()


def _columns(layer: InteractionBlock, weights: _Weights, index: int) -> tuple[Tensor, Tensor]:
    """For each radial weight here its column in the package, and the sign of the package's Wigner 3j table."""
    form = layer.form
    start: dict[Any, int] = {}
    n_columns = 0
    for path in sorted(form.paths, key=lambda path: (path.block, path.l2, path.out.l)):
        start[path] = n_columns
        n_columns += form.irreps_in[path.block][0]
    columns, signs = [], []
    for path in form.paths:
        mul, irrep = form.irreps_in[path.block]
        columns.append(start[path] + torch.arange(mul))
        signs.append(torch.full((mul,), _sign(weights, index, irrep.l, path.l2, path.out.l)))
    return torch.cat(columns), torch.cat(signs)


def _sign(weights: _Weights, index: int, l1: int, l2: int, l3: int) -> float:
    """Of the file's Wigner 3j table relative to ours. The package has tables only where no degree is 0."""
    if 0 in (l1, l2, l3):
        return 1.0
    name = _TABLE.format(index, l1, l2, l3)
    ours = torch.tensor(wigner_3j(l1, l2, l3))
    weights.expect(name, ours.shape)
    theirs = weights.take(name).double()
    for sign in (1.0, -1.0):
        if torch.allclose(theirs, sign * ours, rtol=0, atol=1e-6):
            return sign
    raise InputError(f"the table '{name}' of the SevenNet model is no Wigner 3j symbol up to its sign")
