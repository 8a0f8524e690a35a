"""From YAML and `key=value` to a `Config`, and back; mistakes are told in one sentence with the nearest known key."""

from __future__ import annotations

import difflib
import glob
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from equipes.errors import InputError
from equipes.files import atomic_write
from equipes.training.architectures import MODEL_CONFIGS, NequIPConfig
from equipes.training.config import Config

SECTIONS = tuple(Config.model_fields)
OVERRIDES = "command line"


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, model_keys_on_top: bool = False
) -> Config:
    """The config in the YAML file `path` (none: an empty one), changed by `overrides` such as `train.max_minutes=5`.

    Args:
        path: the YAML file. Data files in it may be relative to its directory or to the working directory.
        overrides: `key=value` with YAML values; a key may leave its section out where only one section has it.
        model_keys_on_top: accept keys of the model section at the top level of the file, as NequIP's files have them.

    Raises:
        InputError: a file that is missing or not YAML, an unknown key, or a value that does not fit.
    """
    tree = {} if path is None else _read(Path(path))
    source = OVERRIDES if path is None else str(path)
    _refuse_hydra(tree, source)
    if model_keys_on_top:
        _move_model_keys(tree, source)
    for override in overrides:
        _apply(tree, override)
    config = validated(tree, source)
    return config if path is None else _resolve_paths(config, Path(path))


def validated(tree: Mapping[str, Any], source: str) -> Config:
    """`tree` as a `Config`; what is wrong becomes one `InputError` that names `source`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_mistake(error)}") from None


def dump_config(config: Config, path: Path, *, overwrite: bool = False) -> None:
    """Write `config` with all its defaults as YAML that `load_config` reads."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def schema() -> dict[str, Any]:
    """The JSON schema of a config, for editors."""
    return Config.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a config ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise InputError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}); correct it"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(
            f"{path}: a config has the sections data, model and train; this is {type(tree).__name__}"
        )
    return tree


def _refuse_hydra(tree: Any, source: str) -> None:
    """A config of NequIP 0.6 or later builds Python objects by name; ours cannot, and says what to write instead."""
    if "_target_" in _all_keys(tree):
        raise InputError(
            f"{source}: this is a config of the NequIP package (it has `_target_` keys), which names Python objects to "
            "build; write the three sections instead: `data: {train: FILE, n_train: 950, n_val: 50}`, "
            "`model: {r_max: 5.0, num_layers: 4, l_max: 3, num_features: 32}`, `train: {max_minutes: 30}`"
        )


def _all_keys(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        yield from tree
    for value in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from _all_keys(value)


def _move_model_keys(tree: dict[str, Any], source: str) -> None:
    for key in [key for key in tree if key in NequIPConfig.model_fields]:
        model = tree.setdefault("model", {})
        if not isinstance(model, dict) or key in model:
            raise InputError(
                f"{source}: {key} stands at the top level and in the model section; keep one of them"
            )
        model[key] = tree.pop(key)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `key=value` in the tree."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{OVERRIDES}: {override!r} is not key=value; write for example train.max_minutes=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{OVERRIDES}: the value of {key} is not valid YAML: {text!r}; quote it") from None
    parents = _full_key(key.strip()).split(".")
    node: Any = tree
    for part in parents[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise InputError(
                f"{OVERRIDES}: {key} cannot be set, because {part} is {node!r} and has no keys inside"
            )
    node[parents[-1]] = value


def _full_key(key: str) -> str:
    """`key` with its section, which may be left out where it is clear."""
    first = key.split(".")[0]
    if first in SECTIONS:
        return key
    homes = [
        section
        for section in SECTIONS
        if any(first in model.model_fields for model in _models_in(Config, section))
    ]
    if len(homes) == 1:
        return f"{homes[0]}.{key}"
    raise InputError(f"{OVERRIDES}: {key} is not a known key{_nearest(first, ())}")


def _first_mistake(error: ValidationError) -> str:
    mistakes = error.errors()
    # An unknown key is the likeliest cause of the others (a missing one, say); else the first, and of the branches of a
    # union that all failed there, the one that came furthest.
    first = [m for m in mistakes if m["loc"][:2] == mistakes[0]["loc"][:2]]
    mistake = next(
        (m for m in mistakes if m["type"] == "extra_forbidden"), max(first, key=lambda m: len(m["loc"]))
    )
    place = tuple(str(part) for part in mistake["loc"] if not _is_union_branch(part))
    key = ".".join(place)
    if mistake["type"] == "extra_forbidden":
        return f"{key} is not a known key{_nearest(place[-1], place[:-1])}"
    if mistake["type"] == "union_tag_invalid":
        return (
            f"{key}.architecture: {mistake['ctx']['tag']!r} is not known; known: {', '.join(MODEL_CONFIGS)}"
        )
    if mistake["type"] == "missing":
        return f"{key} is missing; set it, for example {_EXAMPLES.get(key, key + ': …')}"
    if mistake["type"] == "value_error":
        return ": ".join(filter(None, (key, str(mistake["ctx"]["error"]))))
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    given = mistake["input"]
    shown = "" if isinstance(given, dict | list) else f", not {given!r}"
    return f"{key}: {message}{shown}"


# What other programs call some of our keys.
_CHANNELS = "model.hidden_irreps (64x0e + 64x1o has 64 channels up to L = 1)"
_OTHER_NAMES = {
    "lr": "train.learning_rate",
    "epochs": "train.max_epochs",
    "steps": "train.max_steps",
    "minutes": "train.max_minutes",
    "cutoff": "model.r_max",
    "dataset_file_name": "data.train",
    "clip_grad": "train.gradient_clip",
    "ema": "train.ema_decay",
    # MACE's
    "train_file": "data.train",
    "valid_file": "data.val",
    "test_file": "data.test",
    "valid_fraction": "data.n_val",
    "energy_key": "data.keys.energy",
    "forces_key": "data.keys.forces",
    "stress_key": "data.keys.stress",
    "virials_key": "data.keys.stress",
    "e0s": "data.reference_energies",
    "num_channels": _CHANNELS,
    "max_l": _CHANNELS,
    "num_radial_basis": "model.num_bessel",
    "num_cutoff_basis": "model.num_polynomial_cutoff",
    "max_num_epochs": "train.max_epochs",
    "patience": "train.early_stopping",
    "eval_interval": "train.validate_every",
    "scheduler_patience": "train.plateau_patience",
    "lr_factor": "train.plateau_factor",
    "virials_weight": "train.stress_weight",
    "swa_energy_weight": "train.energy_weight ({0: 1, 0.75: 10} raises it for the last quarter)",
    "swa_forces_weight": "train.forces_weight ({0: 10, 0.75: 1} lowers it for the last quarter)",
    "start_swa": "train.energy_weight ({0: 1, 0.75: 10} raises it for the last quarter)",
    "foundation_model": "fine_tuning.base",
    "device": "train.accelerator",
    "default_dtype": "model.dtype",
    # NequIP's
    "chemical_symbols": "model.species",
    "type_names": "model.species",
    "model_type_names": "model.species",
    "num_basis": "model.num_bessels",
    "invariant_layers": "model.radial_mlp_depth",
    "invariant_neurons": "model.radial_mlp_width",
    "dataset_seed": "data.split_seed",
    # SevenNet's
    "channel": "model.num_features",
    "lmax": "model.l_max",
    "num_convolution_layer": "model.num_layers",
    "is_parity": "model.parity",
    "conv_denominator": "model.denominator",
    "epoch": "train.max_epochs",
    "random_seed": "train.seed",
    "load_dataset_path": "data.train",
    "load_trainset_path": "data.train",
    "load_validset_path": "data.val",
    "force_loss_weight": "train.forces_weight",
    "stress_loss_weight": "train.stress_weight",
}
_EXAMPLES = {"data": "data: {train: frames.xyz}", "data.train": "data: {train: frames.xyz}"}


def _is_union_branch(part: object) -> bool:
    """Pydantic puts the name of the union member it tried into the location: `constrained-float`, `dict[…]`, `int`."""
    text = str(part)
    return text in {"int", "float", "str", "bool", *MODEL_CONFIGS} or "[" in text or "-" in text


def _nearest(word: str, section: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest key of this section or, better matched, of another."""
    if word.lower() in _OTHER_NAMES:
        return f"; did you mean {_OTHER_NAMES[word.lower()]}?"
    known = dict.fromkeys(_keys(Config))
    last = {key: key.rsplit(".", 1)[-1] for key in known}

    def likeness(key: str) -> tuple[float, bool]:
        here = key.startswith(".".join(section) + ".") if section else "." not in key
        return round(difflib.SequenceMatcher(None, word.lower(), last[key]).ratio(), 1), here

    best = max(known, key=likeness)
    if likeness(best)[0] < 0.6:
        parent = ".".join(section)
        siblings = [last[key] for key in known if key.rpartition(".")[0] == parent]
        return f"; known here: {', '.join(siblings)}"
    return f"; did you mean {best}?"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        yield prefix + name
        for inner in _models_in(model, name):
            yield from _keys(inner, f"{prefix}{name}.")


def _models_in(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The sections that a field may hold: none, one, or one for each architecture."""
    annotation = model.model_fields[name].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    plain = [get_args(option)[0] if get_origin(option) is Annotated else option for option in options]
    return [option for option in plain if isinstance(option, type) and issubclass(option, BaseModel)]


def _resolve_paths(config: Config, path: Path) -> Config:
    """Data files that are not in the working directory are looked for beside the config file."""

    def found(name: str) -> str:
        places = (Path(name).expanduser(), path.parent / name)
        for place in places:
            if place.exists() or (glob.has_magic(name) and glob.glob(str(place), recursive=True)):
                return str(place)
        looked = " and in ".join(dict.fromkeys(str(place.absolute().parent) for place in places))
        raise InputError(f"{path}: {name} does not exist (looked in {looked}); correct the path")

    return with_files(config, found)


def with_absolute_files(config: Config) -> Config:
    """The config as it means the same from any directory."""
    return with_files(config, lambda name: str(Path(name).expanduser().absolute()))


def with_files(config: Config, change: Callable[[str], str]) -> Config:
    """The config with each file name in it changed."""

    def each(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [change(item) if isinstance(item, str) else item for item in value]
        return value

    names = ("train", "val", "test", "n_train", "n_val", "n_test")
    changes = {name: each(getattr(config.data, name)) for name in names}
    whole: dict[str, Any] = {"data": config.data.model_copy(update=changes)}
    if config.pretraining is not None:
        structure = each(config.pretraining.structure)
        whole["pretraining"] = config.pretraining.model_copy(update={"structure": structure})
    tuning = config.fine_tuning
    if tuning is not None:
        # Names of published potentials and "crystals" are no files.
        base = (
            change(tuning.base)
            if Path(tuning.base).name != tuning.base or Path(tuning.base).suffix
            else tuning.base
        )
        replay = tuning.replay if tuning.replay == "crystals" else each(tuning.replay)
        whole["fine_tuning"] = tuning.model_copy(update={"base": base, "replay": replay})
    return config.model_copy(update=whole)
