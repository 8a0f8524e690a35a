"""Models packaged by the NequIP package (`nequip-package`, `*.nequip.zip`) as potentials of equipes.

A package carries the source code of a model, a pickle of it, and the configuration that it was made with. The code is
left alone; of the pickle only the weights are read (`equipes.foundation.pickles`), and the configuration says what they
are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from equipes.errors import InputError
from equipes.foundation.nequip import from_nequip
from equipes.foundation.pickles import Record, packages, read_packaged
from equipes.models import Potential

PROGRAM = "model/eager_model.pkl"
CONFIG, METADATA = "model/config.yaml", "model/package_metadata.txt"
# A model as it is trained; others wrap or change one.
_BUILDERS = (
    "nequip.model.NequIPGNNModel",
    "nequip.model.NequIPGNNEnergyModel",
    "nequip.model.nequip_models.NequIPGNNModel",
    "nequip.model.nequip_models.NequIPGNNEnergyModel",
)
# The published sizes by name, of nequip 0.19.
_PRESET_BUILDERS = ("nequip.model.PresetNequIPGNNModel", "nequip.model.nequip_models.PresetNequIPGNNModel")
_PRESETS: dict[str, dict[str, Any]] = {
    "S": {"num_layers": 2, "l_max": 1, "num_features": [128, 64]},
    "M": {"num_layers": 4, "l_max": 2, "num_features": [128, 64, 32]},
    "L": {"num_layers": 6, "l_max": 3, "num_features": [128, 64, 32, 32]},
    "XL": {"num_layers": 6, "l_max": 4, "num_features": [320, 96, 64, 32, 32]},
}
_OF_PRESETS = {"parity": False, "type_embed_num_features": 32, "radial_mlp_depth": 1, "radial_mlp_width": 128}
# Tensors that follow from others, or hold nothing.
_DERIVED = (".output_mask", ".alpha", ".norm_const", "_empty", "_rmax_recip")
_COMPILED = (".nequip.pt2", ".nequip.pth", ".nequip.so")
# A model that holds one module twice at every level would otherwise be walked through for ever.
_MOST_DEPTH, _MOST_MODULES = 60, 20_000


def recognises(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a package of NequIP. Never raises, never runs anything of the file."""
    return packages(path, PROGRAM)


def refuse_compiled(path: Path) -> None:
    """Raises `InputError` for what `nequip-compile` makes: machine code, whose weights only running it would give."""
    if path.name.lower().endswith(_COMPILED):
        raise InputError(
            f"{path}: a model compiled by nequip-compile is a program that would have to be run; convert the "
            "package that it was compiled from (*.nequip.zip)"
        )


def read_package(path: str | os.PathLike[str]) -> Potential:
    """The potential in a package of NequIP; energies agree to round-off. Nothing of the file is run.

    Raises:
        InputError: the file is missing, damaged, of another kind, or a model with parts that equipes does not have.
    """
    path = Path(path)
    refuse_compiled(path)
    root, texts = read_packaged(path, PROGRAM, (CONFIG, METADATA))
    try:
        config = _model_config(_yaml(texts[CONFIG], CONFIG))
        metadata = _yaml(texts[METADATA], METADATA)
        state = dict(_tensors(root, "", 0, []))
        _check_norms(config, state)
        kept = {
            name: tensor for name, tensor in state.items() if tensor.numel() and not name.endswith(_DERIVED)
        }
        potential = from_nequip(config, kept)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    versions = metadata.get("versions")
    potential.provenance |= {"file": path.name, "versions": versions if isinstance(versions, dict) else {}}
    return potential


def _yaml(text: str, name: str) -> dict[str, Any]:
    """A plain YAML mapping, without references inside it: a few lines of them can stand for more than any memory."""
    try:
        if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in yaml.scan(text)):
            raise InputError(
                f"its {name} refers to parts of itself, which nequip-package never writes; not read"
            )
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"its {name} is no YAML ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(value, dict):
        raise InputError(f"its {name} is no mapping; the file is damaged, fetch it again")
    return value


def _model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's builder."""
    module = config.get("training_module")
    model = module.get("model") if isinstance(module, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"its {CONFIG} describes no model (training_module.model)")
    builder = model.get("_target_")
    preset = str(model.get("preset")).upper()
    if builder in _PRESET_BUILDERS and preset in _PRESETS:
        given = {key: value for key, value in model.items() if key != "preset"}
        model = _OF_PRESETS | _PRESETS[preset] | given
    elif builder not in _BUILDERS:
        raise InputError(
            f"its model is made by '{str(builder)[:80]}', of which only the package's own code knows what it is; "
            "equipes reads models made by nequip.model.NequIPGNNModel"
        )
    if any("${" in str(value) for value in model.values()):
        raise InputError(f"its {CONFIG} has values that are not resolved (${{…}}); package the model anew")
    return {key: value for key, value in model.items() if key != "compile_mode"}


def _tensors(record: Any, prefix: str, depth: int, seen: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a pickled module and those inside it, by their names in its state dict."""
    if not isinstance(record, Record) or not isinstance(record.state, dict) or depth > _MOST_DEPTH:
        raise InputError(
            f"its model has '{prefix or 'a root'}' that is no module; it is damaged, or of an unknown kind"
        )
    seen.append(prefix)
    if len(seen) > _MOST_MODULES:
        raise InputError(f"its model has more than {_MOST_MODULES} modules; not read")
    for group in ("_parameters", "_buffers"):
        entries = record.attribute(group)
        for name, tensor in entries.items() if isinstance(entries, dict) else ():
            if isinstance(tensor, Tensor):
                yield f"{prefix}{name}", tensor
    inside = record.attribute("_modules")
    for name, module in inside.items() if isinstance(inside, dict) else ():
        if module is not None:
            yield from _tensors(module, f"{prefix}{name}.", depth + 1, seen)


def _check_norms(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """The model divides by the numbers of neighbours that the configuration says.

    They are in the model only, and the configuration might be of another one.
    """
    given = config.get("avg_num_neighbors")
    species = list(config.get("type_names") or ())
    try:
        numbers = [float(given[s]) for s in species] if isinstance(given, dict) else [float(given or 1.0)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"its {CONFIG} has no sensible avg_num_neighbors ({error})") from error
    expected = torch.tensor(numbers, dtype=torch.float64).rsqrt()
    for name, tensor in state.items():
        if name.endswith(".norm_const"):
            sizes = {tensor.numel(), len(expected)} - {1}
            wanted = expected.expand(max(sizes, default=1)) if len(sizes) < 2 else None
            if wanted is None or not torch.allclose(tensor.double().flatten(), wanted, rtol=1e-5):
                raise InputError(f"its model and its {CONFIG} disagree about avg_num_neighbors")
