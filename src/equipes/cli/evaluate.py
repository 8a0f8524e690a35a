"""`equipes evaluate` and `equipes predict`: a model's errors on labelled data, and its word on any structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from equipes.cli.inputs import (
    KeysOption,
    ModalOption,
    ModelPath,
    UnitsOption,
    members,
    naming_options,
    parse_keys,
    parse_units,
)
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, stdout_console, write_json
from equipes.errors import InputError
from equipes.files import refuse_overwrite

if TYPE_CHECKING:
    import ase

    from equipes.data import Frame, LabelKeys, Units
    from equipes.models import Potential
    from equipes.training.metrics import FramePrediction


class DType(StrEnum):
    """Number types of the network."""

    float32 = "float32"
    float64 = "float64"


class PlotFormat(StrEnum):
    """Formats of separate plots."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Frames at once, at most; auto: as many as the memory allows, measured on the way.",
        show_default="by their size",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1 …")]
DTypeOption = Annotated[
    DType | None, typer.Option("--dtype", help="Number type; by default the model's own.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(evaluate)
    app.command()(predict)


def evaluate(
    model: ModelPath,
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Labelled frames: files ASE reads, npz.")
    ],
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PATH.html", help="Write a self-contained HTML report.")
    ] = None,
    json: JsonPath = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Write the plots as separate files too.")
    ] = None,
    plot_format: Annotated[
        PlotFormat, typer.Option("--plot-format", help="Format of the plots.")
    ] = PlotFormat.png,
    units: UnitsOption = None,
    keys: KeysOption = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            "--metrics", metavar="CSV", help="Learning curves to report; default: metrics.csv beside MODEL."
        ),
    ] = None,
    md: Annotated[
        Path | None,
        typer.Option("--md", metavar="DIR", help="A dynamics run (its directory or md.csv) to report."),
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", min=1, help="Worst structures to show in the report.")
    ] = 10,
    batch_size: BatchSize = None,
    modal: ModalOption = None,
    device: Device = "cpu",
    dtype: DTypeOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare a model with labelled data: errors of energy, forces and stress, in all and by kind.

    A committee, MODEL,MODEL,…, and a model that knows what it was trained on also say how sure they are of each atom.
    """
    check_json_path(json, overwrite=overwrite)
    if report is not None:
        _check_target(report, overwrite=overwrite)
    if (
        plots is not None
        and plots.exists()
        and not (plots.is_dir() and (overwrite or not any(plots.iterdir())))
    ):
        raise InputError(
            f"{plots} exists and is not an empty directory; give --overwrite (for a directory) or another name"
        )
    frames_at_once = parse_batch_size(batch_size)
    curves, dynamics = _training_log(model, metrics), _dynamics_log(md)
    label_keys, declared = parse_keys(keys), parse_units(units)

    import equipes
    from equipes.report import write_plots, write_report
    from equipes.training.metrics import check_species, error_metrics
    from equipes.training.suspicions import suspicions
    from equipes.training.uncertainty import uncertainty_metrics

    potentials = [
        equipes.load(path, device=check_device(device), dtype=dtype, modal=modal) for path in members(model)
    ]
    potential = potentials[0]
    frames = _read(data, label_keys, declared, potential)
    for member in potentials:
        check_species(member, frames)
    if all(frame.energy is None and frame.forces is None and frame.stress is None for frame in frames):
        raise InputError(
            f"{', '.join(data)}: no energies, forces or stresses to compare with; name them with --keys, or use "
            "`equipes predict` for structures without labels"
        )
    predictions = predict_with_progress(potentials, frames, frames_at_once)
    errors = error_metrics(frames, predictions)
    errors["uncertainty"] = uncertainty_metrics(frames, predictions)
    warnings = suspicions(frames, predictions)
    numbers = {
        "model": str(model),
        "data": list(data),
        "dtype": str(potential.dtype).removeprefix("torch."),
        **errors,
    }
    write_json({**numbers, "warnings": warnings}, json, overwrite=overwrite)
    if json != STDOUT:
        _print_errors(errors, f"{model} on {', '.join(data)}")
    for sentence in warnings:
        typer.echo(f"Warning: {sentence}", err=True)
    common: dict[str, Any] = {
        "metrics": errors,
        "metrics_csv": curves,
        "md_csv": dynamics,
        "overwrite": overwrite,
    }
    if report is not None:
        write_report(
            report,
            frames,
            predictions,
            model=potential.summary()
            | ({"committee": list(map(str, members(model)))} if potentials[1:] else {}),
            title=_name(model),
            subtitle=f"{errors['n_frames']} frames, {errors['n_atoms']} atoms of {', '.join(data)}",
            warnings=warnings,
            worst=worst,
            **common,
        )
        _say(f"report: {report}", json)
    if plots is not None:
        written = write_plots(plots, frames, predictions, suffix=f".{plot_format}", **common)
        _say(f"plots: {len(written)} files in {plots}", json)


def predict(
    model: ModelPath,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Structures: any file ASE reads; labels are not needed.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="*.xyz or *.extxyz (extended XYZ), *.db, *.traj or *.json.")
    ],
    units: UnitsOption = None,
    batch_size: BatchSize = None,
    modal: ModalOption = None,
    device: Device = "cpu",
    dtype: DTypeOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Write structures with the energy, forces and (where there is a volume) stress that a model predicts.

    Of a committee, MODEL,MODEL,…, and of a model that knows what it was trained on, extended XYZ also has the columns
    forces_std (eV/Å) and feature_distance.
    """
    _check_target(target, overwrite=overwrite)
    frames_at_once = parse_batch_size(batch_size)
    declared = parse_units(units)

    from dataclasses import replace

    import equipes
    from equipes.data import LabelKeys, write_frames
    from equipes.data.writers import BY_ASE, EXTENDED_XYZ

    if target.suffix.lower() not in EXTENDED_XYZ + BY_ASE:
        formats = ", ".join(EXTENDED_XYZ + BY_ASE)
        raise InputError(f"cannot write {target}: unknown format {target.suffix!r}; use one of {formats}")

    potentials = [
        equipes.load(path, device=check_device(device), dtype=dtype, modal=modal) for path in members(model)
    ]
    frames = _read([source], LabelKeys(), declared, potentials[0])
    predictions = predict_with_progress(potentials, frames, frames_at_once)
    labelled = [
        replace(
            frame,
            atoms=_with_uncertainty(frame.atoms, prediction),
            energy=prediction.energy,
            forces=prediction.forces,
            stress=prediction.stress,
        )
        for frame, prediction in zip(frames, predictions, strict=True)
    ]
    write_frames(labelled, target, overwrite=overwrite)
    with_stress = sum(frame.stress is not None for frame in labelled)
    stress = {0: "no stress", len(labelled): "stress"}.get(with_stress, f"stress (of {with_stress})")
    _say(f"{len(labelled)} structures with energy, forces and {stress}: {target}", None)


def parse_batch_size(text: str | None) -> int | Literal["auto"] | None:
    """A number of frames or "auto"; None stays None."""
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch-size {text}: give a number of frames, 1 or more, or auto")
    return int(text)


def check_device(name: str) -> str:
    """`name`, if there is such a device; raises `InputError` otherwise."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {name}: there is no such device here; use cpu, or cuda where there is one"
        ) from error
    return name


def _check_target(path: Path, *, overwrite: bool) -> None:
    """Complain about a place that cannot be written before the work is done, not after."""
    refuse_overwrite(path, overwrite=overwrite)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")


def _read(data: Sequence[str], keys: LabelKeys, units: Units | None, potential: Potential) -> list[Frame]:
    """The frames; npz files, which do not say their units, are taken to have those that were declared in training."""
    from equipes.data import read_frames

    if units is None and all(name.lower().endswith(".npz") for name in data):
        trained = _units_of_training(potential.provenance)
        if trained is not None:
            units = parse_units(trained)
            typer.echo(
                f"Units: {trained}, as declared for the model's training; --units says otherwise", err=True
            )
    with naming_options():
        return read_frames(data, keys=keys, units=units)


def _units_of_training(provenance: Mapping[str, Any]) -> str | None:
    value: Any = provenance
    for key in ("config", "data", "units"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        return None
    return ",".join(f"{name}={unit}" for name, unit in value.items() if unit is not None) or None


def _with_uncertainty(atoms: ase.Atoms, prediction: FramePrediction) -> ase.Atoms:
    """The structure with what is known of the prediction's uncertainty as columns and facts."""
    atoms = atoms.copy()
    for name in ("forces_std", "feature_distance"):
        if getattr(prediction, name) is not None:
            atoms.set_array(name, getattr(prediction, name))
    if prediction.energy_std is not None:
        atoms.info["energy_std"] = prediction.energy_std
    return atoms


def predict_with_progress(
    potentials: Sequence[Potential],
    frames: Sequence[Frame],
    batch_size: int | Literal["auto"] | None,
) -> list[FramePrediction]:
    """What the potentials say of the frames, with a line that moves on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from equipes.training.uncertainty import predict_with_uncertainty

    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("frames", total=len(frames) * len(potentials))
        return predict_with_uncertainty(
            potentials,
            frames,
            batch_size=batch_size,
            progress=lambda done, _: bar.update(task, completed=done),
        )


def _training_log(model: Path, given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_file():
            raise InputError(f"--metrics {given}: no such file; give the metrics.csv of a training")
        return given
    beside = members(model)[0].parent / "metrics.csv"
    return beside if members(model)[0].is_file() and beside.is_file() else None


def _dynamics_log(given: Path | None) -> Path | None:
    if given is None:
        return None
    log = given / "md.csv" if given.is_dir() else given
    if not log.is_file():
        raise InputError(f"--md {given}: no md.csv there; give the directory that `equipes md` wrote")
    return log


def _name(model: Path) -> str:
    # Every training calls its model model.safetensors; the directory tells them apart.
    names = [f"{path.parent.name}/{path.name}" if path.parent.name else path.name for path in members(model)]
    return names[0] if len(names) == 1 else f"committee of {', '.join(names)}"


def _say(line: str, json: Path | None) -> None:
    typer.echo(line, err=json == STDOUT)


def _print_errors(errors: Mapping[str, Any], title: str) -> None:
    from rich.text import Text

    from equipes.report.tables import group_rows, labelled, summary_rows

    console = stdout_console()
    counts = f"{errors['n_frames']} frames, {errors['n_atoms']} atoms"
    console.print(Text(f"{title}: {counts}", style="bold"), soft_wrap=True)
    _print_table(console, *summary_rows(errors), first="")
    console.print(
        "baseline: energy by composition alone, zero forces and stress", style="dim", highlight=False
    )
    if errors["n_forces"]:
        _print_table(console, *group_rows(errors["per_element"], ("forces",)), first="element")
    if errors["per_config_type"]:
        rows = group_rows(errors["per_config_type"], labelled(errors))
        _print_table(console, *rows, first="configuration type")
    if errors["uncertainty"]:
        from equipes.report.uncertainty import uncertainty_rows

        _print_table(console, *uncertainty_rows(errors["uncertainty"]), first="uncertainty")
        console.print(
            "rank: Spearman's correlation with the length of the force's error on each atom (energy: of each frame); "
            "error below and above a distance of 1: RMS, meV/Å",
            style="dim",
            highlight=False,
            soft_wrap=True,
        )


def _print_table(
    console: Any, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, first: str
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows:
        table.add_row(Text(name), *cells)
    console.print()
    console.print(table)
