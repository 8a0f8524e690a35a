"""Configs: what is accepted, what is chosen, and what a mistake is told."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from equipes.errors import InputError
from equipes.models import ARCHITECTURES
from equipes.training import Config, load_config, schema
from equipes.training.architectures import MODEL_CONFIGS
from equipes.training.config import DataConfig, PretrainingConfig, TrainConfig
from equipes.training.loading import dump_config

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))
ISSUE = """\
data:  {train: frames.npz, n_train: 950, n_val: 50, units: {energy: kcal/mol, length: Ang}}   # units for npz only
model: {architecture: nequip, r_max: 5.0, num_layers: 4, l_max: 2, num_features: 32}
train: {max_minutes: 30, batch_size: 5, seed: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "frames.npz").touch()
    path = tmp_path / "config.yaml"
    path.write_text(ISSUE)
    return path


def test_three_lines_are_a_config(file: Path) -> None:
    config = load_config(file)
    assert config.data.train == str(file.parent / "frames.npz")
    assert (config.data.n_train, config.data.n_val) == (950, 50)
    assert config.data.units is not None
    assert config.data.units.energy == "kcal/mol"
    assert (config.model.r_max, config.model.num_layers, config.model.num_features) == (5.0, 4, 32)
    assert (config.train.max_minutes, config.train.batch_size, config.train.seed) == (30, 5, 1)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.max_minutes=5", 5),
        ("max_minutes=5", 5),
        ("train.max_minutes=null", None),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.energy_weight={0: 1, 0.75: 10}", {0: 1, 0.75: 10}),
        ("model.num_features=[32, 16, 8]", [32, 16, 8]),
        ("data.keys.forces=REF_forces", "REF_forces"),
        ("keys.forces=REF_forces", "REF_forces"),
        ("data.n_val=0.1", 0.1),
        ("data.n_train=[0, 1, 2]", [0, 1, 2]),
        ("data.checks=off", "off"),
    ],
)
def test_every_field_can_be_overridden(file: Path, override: str, value: object) -> None:
    config = load_config(file, [override])
    name = override.partition("=")[0].split(".")[-1]
    assert value in (
        getattr(section, name, "absent")
        for section in (config.data, config.data.keys, config.model, config.train)
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_minuts=5", "did you mean train.max_minutes?"),
        ("train.lr=5", "did you mean train.learning_rate?"),
        ("max_minuts=5", "did you mean train.max_minutes?"),
        ("data.keys.force=x", "did you mean data.keys.forces?"),
        ("model.r_mx=4", "did you mean model.r_max?"),
        ("data.r_max=4", "did you mean model.r_max?"),
        ("trian.seed=4", "did you mean train?"),
        ("xyzzy=4", "known here: data, model, train"),
        ("model.xyzzy=4", "known here: architecture"),
        ("max_minutes", "not key=value"),
        ("train.batch_size=0", "train.batch_size: input should be greater than 0, not 0"),
        ("train.optimizer=sgd", "'adamw'"),
        ("train.energy_weight={0: 1, 1.5: 3}", "less than 1"),
        ("train.energy_weight=-1", "greater than or equal to 0"),
        ("train.max_steps=1.5", "train.max_steps"),
        ("model.r_max=.inf", "finite"),
        ("model.r_max=0", "greater than 0"),
        ("data.train.keys=4", "has no keys inside"),
        ("train.seed={a", "not valid YAML"),
        ("data.train=absent.xyz", "absent.xyz does not exist (looked in"),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, override: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(file, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {train: frames.npz}\ntrian: {}\n", "trian is not a known key; did you mean train?"),
        ("data: [", "not valid YAML"),
        ("- 1\n", "sections data, model and train"),
        ("train: {seed: 1}\n", "data is missing"),
        ("data: {n_val: 1}\n", "data.train is missing"),
        ("r_max: 4\ndata: {train: frames.npz}\n", "r_max is not a known key; did you mean model.r_max?"),
        ("trainer: {_target_: lightning.Trainer}\n", "config of the NequIP package"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "frames.npz").touch()
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path / "absent.yaml")


def test_nequip_files_have_model_keys_on_top(tmp_path: Path) -> None:
    (tmp_path / "frames.npz").touch()
    path = tmp_path / "nequip.yaml"
    path.write_text("r_max: 4.5\nnum_layers: 3\nl_max: 1\nnum_features: 16\ndata: {train: frames.npz}\n")
    model = load_config(path, model_keys_on_top=True).model
    assert (model.r_max, model.num_layers, model.l_max, model.num_features) == (4.5, 3, 1, 16)
    path.write_text("r_max: 4.5\nmodel: {r_max: 4}\ndata: {train: frames.npz}\n")
    with pytest.raises(InputError, match="r_max stands at the top level and in the model section"):
        load_config(path, model_keys_on_top=True)


def test_data_is_looked_for_in_both_places(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.xyz").touch()
    monkeypatch.chdir(elsewhere)
    config = load_config(file, ["data.val=own.xyz", "data.test=[own.xyz, frames.npz]"])
    assert config.data.val == "own.xyz"
    assert config.data.test == ["own.xyz", str(tmp_path / "frames.npz")]


def test_what_was_dumped_loads_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(
        file, ["train.energy_weight={0: 1, 0.75: 10}", "model.avg_num_neighbors=8.123456789012345"]
    )
    dump_config(config, tmp_path / "dumped.yaml")
    assert load_config(tmp_path / "dumped.yaml") == config
    fields = yaml.safe_load((tmp_path / "dumped.yaml").read_text())
    assert set(fields["train"]) == set(type(config.train).model_fields)


# Of every section and, in `model`, of every architecture.
SECTIONS = (DataConfig, TrainConfig, PretrainingConfig, *MODEL_CONFIGS.values())


def test_there_is_a_section_for_every_architecture() -> None:
    assert set(MODEL_CONFIGS) <= set(ARCHITECTURES)
    for name, section in MODEL_CONFIGS.items():
        known = set(inspect.signature(ARCHITECTURES[name]).parameters) | {"architecture", "dtype"}
        assert set(section.model_fields) <= known, name


def test_schema_lists_every_field() -> None:
    text = json.dumps(schema())
    for section in SECTIONS:
        for name in section.model_fields:
            assert f'"{name}"' in text
    assert schema()["additionalProperties"] is False


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"minimal", "ethanol", "si", "cu"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_configs_of_at_most_fifteen_lines(path: Path) -> None:
    text = path.read_text()
    Config.model_validate(yaml.safe_load(text))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15


def test_the_documentation_lists_every_key() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    for section in SECTIONS:
        for name in section.model_fields:
            assert f"`{name}`" in text, name


def test_keys_of_other_architectures(file: Path) -> None:
    file.write_text("data: {train: frames.npz}\nmodel: {architecture: mace, max_ell: 2}\n")
    config = load_config(file, ["hidden_irreps=8x0e"])
    assert config.model.max_ell == 2
    assert config.model.hidden_irreps == "8x0e"
    for override, message in (
        ("model.num_bessels=4", "model.num_bessels is not a known key; did you mean model.num_bessel"),
        ("model.max_ell=9", r"model\.max_ell: input should be less than or equal to 6"),
        (
            "model.architecture=gemnet",
            "model.architecture: 'gemnet' is not known; known: nequip, mace, sevennet",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_config(file, [override])


def test_names_of_other_programs_lead_to_keys_that_exist(file: Path) -> None:
    from equipes.training.loading import _OTHER_NAMES, _keys

    known = set(_keys(Config))
    assert {target.split(" ")[0] for target in _OTHER_NAMES.values()} <= known
    for given, said in (
        ("model.num_channels=32", "did you mean model.hidden_irreps (64x0e + 64x1o has 64 channels"),
        ("max_num_epochs=200", "did you mean train.max_epochs?"),
        ("E0s=average", "did you mean data.reference_energies?"),
        ("model.num_basis=8", "did you mean model.num_bessels?"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            load_config(file, [given])
