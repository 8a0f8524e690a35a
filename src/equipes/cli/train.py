"""`equipes train`, `equipes schema` and `nequip-train`: from data to a model."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, print_table, write_json
from equipes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipes.training import TrainingResult

Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where the model and all else goes.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the training in DIR; begin it if there is none.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(train)
    app.command()(schema)


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A YAML file, and changes to it such as train.max_minutes=5 or model.l_max=1.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Frames to train on; may be given more than once. No config needed.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Fine-tune this potential: a file, or a name that `equipes models list` has.",
        ),
    ] = None,
    modal: Annotated[
        str | None,
        typer.Option(
            "--modal", help="Of a --from with several kinds of reference calculation, the one to fine-tune."
        ),
    ] = None,
    out: Out = None,
    pretrain: Annotated[
        bool,
        typer.Option(
            "--pretrain", help="First learn from cheap labels: geometries around a training frame, by xTB."
        ),
    ] = False,
    pretrain_structure: Annotated[
        list[Path] | None,
        typer.Option("--pretrain-structure", metavar="FILE", help="The same, around this structure."),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: JsonPath = None,
) -> None:
    """Train a potential: from a config file, or from data alone.

    Examples: `equipes train configs/ethanol.yaml --out run`, `equipes train --data frames.xyz --out run`,
    `equipes train --from 7net-0 --data frames.xyz --out run`, `equipes train --out run --resume`.
    """
    if out is None:
        raise InputError("say where the model shall go: --out DIR")
    path, overrides = _config_and_overrides(arguments or [])
    if path is not None and data:
        raise InputError(
            f"both the config {path} and --data are given; set data.train in the config, or leave it out"
        )
    for key, value in (("base", base), ("modal", modal)):
        if value is not None:
            overrides.insert(0, f"fine_tuning.{key}={jsonlib.dumps(value)}")
    if data:
        overrides.insert(0, f"data.train={jsonlib.dumps([str(file) for file in data])}")
    if pretrain or pretrain_structure:
        files = jsonlib.dumps([str(file) for file in pretrain_structure]) if pretrain_structure else "null"
        overrides.insert(0, f"pretraining.structure={files}")
    if path is None and not data and not any(override.startswith("data") for override in overrides):
        if not resume:
            raise InputError("nothing to train on: give a config file or --data FILE")
        path = out / "config.yaml"
        if not path.exists():
            raise InputError(
                f"{out} has no training to resume; give a config file or --data FILE to begin one"
            )
    _train(path, overrides, out, resume=resume, overwrite=overwrite, json=json)


def schema() -> None:
    """Print the JSON schema of config files, for editors that complete and check YAML."""
    from equipes.training import schema as config_schema

    typer.echo(jsonlib.dumps(config_schema(), indent=2, ensure_ascii=False))


def nequip_train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file as for `equipes train`.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: JsonPath = None,
) -> None:
    """Train a potential: `equipes train` under the name that NequIP's introductions use.

    Keys of the model section (r_max, num_layers, l_max, num_features, …) may stand at the top level of CONFIG. Without
    --out the directory is named after CONFIG.
    """
    directory = out or Path(config.stem)
    _train(
        config,
        overrides or [],
        directory,
        resume=resume,
        overwrite=overwrite,
        json=json,
        model_keys_on_top=True,
    )


def _config_and_overrides(arguments: list[str]) -> tuple[Path | None, list[str]]:
    files = [argument for argument in arguments if "=" not in argument or Path(argument).is_file()]
    if len(files) > 1:
        raise InputError(
            f"two config files are given, {files[0]} and {files[1]}; changes are written key=value"
        )
    return Path(files[0]) if files else None, [argument for argument in arguments if argument not in files]


def _train(
    path: Path | None,
    overrides: list[str],
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    json: Path | None,
    model_keys_on_top: bool = False,
) -> None:
    from equipes.training import load_config
    from equipes.training import train as run_training

    check_json_path(json, overwrite=overwrite)
    config = load_config(path, overrides, model_keys_on_top=model_keys_on_top)
    result = run_training(config, out, resume=resume, overwrite=overwrite)
    if result.process == 0 and result.signal:
        resuming = f"equipes train --out {out} --resume"
        typer.echo(f"Stopped at step {result.steps}; continue with: {resuming}", err=True)
    if result.signal:
        raise typer.Exit(128 + result.signal)
    if result.process == 0:  # the first process speaks for all
        _print(result, quiet=json == STDOUT)
        summary = jsonlib.loads((out / "summary.json").read_text(encoding="utf-8"))
        write_json(summary, json, overwrite=overwrite)


def _pretraining(record: Mapping[str, Any]) -> str:
    errors = record["validation"]
    return (
        f"{record['frames']} {record['method']} geometries of {', '.join(record['structures'])}; "
        f"{record['steps']} steps, {record['minutes']:.1f} minutes; validation MAE of their forces "
        f"{errors['val_forces_mae_mev_per_ang']:.3g} meV/Å"
        + (f"; left out {record['discarded']}" if record["discarded"] else "")
    )


def _print(result: TrainingResult, *, quiet: bool) -> None:
    """The final errors as a table: mean absolute and root mean square, validation and test."""
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "validation MAE", "RMSE", *(("test MAE", "RMSE") if result.test else ())):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, key, unit in (
        ("energy", "mev_per_atom", "meV/atom"),
        ("forces", "mev_per_ang", "meV/Å"),
        ("stress", "mev_per_ang3", "meV/Å³"),
    ):
        values = [result.validation.get(f"val_{name}_{kind}_{key}") for kind in ("mae", "rmse")]
        if result.test:
            values += [result.test[f"{name}_{kind}_{key}"] for kind in ("mae", "rmse")]
        if any(value is not None for value in values):
            table.add_row(f"{name}, {unit}", *("-" if value is None else f"{value:.3g}" for value in values))
    console = Console()
    console.print(f"\nErrors of {result.model}", soft_wrap=True, highlight=False)
    console.print(table)
    before = result.pretraining
    print_table(
        [
            *([("pre-training", _pretraining(before))] if before is not None else ()),
            *_of_fine_tuning(result),
            ("ended", f"{result.reason}; {result.steps} steps, {result.minutes:.1f} minutes"),
            ("best", f"step {result.validation.get('step')}, lowest validation loss, averaged weights"),
        ]
    )
    for sentence in result.warnings:
        typer.echo(f"Warning: {sentence}", err=True)


def _of_fine_tuning(result: TrainingResult) -> list[tuple[str, str]]:
    """What a fine-tuning began with, and what it forgot."""
    from equipes.training.display import errors_in_words

    facts = result.fine_tuning
    if facts is None:
        return []
    before = facts["validation_before"]
    rows = [("before", f"{errors_in_words(before)} on the validation frames, by {facts['base']}")]
    forgetting = facts["forgetting"]
    if forgetting is None:
        return [*rows, ("forgotten", "not measured: there is no structure to measure it on")]
    size = forgetting["size"]["forces_rmse_mev_per_ang"]
    what = f"from {facts['base']} on {forgetting['n_structures']} {forgetting['structures']}"
    return [
        *rows,
        ("forgotten", f"{errors_in_words(forgetting['after'], '')} {what} (forces of {size:.0f} meV/Å rms)"),
    ]
