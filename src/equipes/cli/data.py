"""`equipes data`: check, convert and split reference data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.inputs import KeysOption, UnitsOption, naming_options, parse_keys, parse_units
from equipes.cli.output import (
    STDOUT,
    JsonPath,
    Overwrite,
    check_json_path,
    print_table,
    stdout_console,
    write_json,
)
from equipes.errors import InputError
from equipes.files import refuse_overwrite

if TYPE_CHECKING:
    from equipes.data import Finding, Frame, LabelKeys, Units
    from equipes.data.splits import Size

_FAULTY = 2

Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Files ASE reads, npz, directories, patterns.")
]
_SIZE = "A number of frames, a fraction, or a file of frame numbers"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    data = typer.Typer(name="data", help="Check, convert and split reference data.", no_args_is_help=True)
    data.command()(check)
    data.command()(convert)
    data.command()(split)
    app.add_typer(data)


def check(
    files: Files,
    val: Annotated[
        list[str] | None,
        typer.Option("--val", metavar="FILE", help="Validation data, compared with FILE...."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option("--test", metavar="FILE", help="Test data, compared with FILE....")
    ] = None,
    units: UnitsOption = None,
    keys: KeysOption = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what is in the data and what is wrong with it; the exit status is 2 if anything makes it useless."""
    check_json_path(json, overwrite=overwrite)
    label_keys, declared = parse_keys(keys), parse_units(units)

    from equipes.data import check_frames, describe

    given = {"train" if val or test else "data": files, "val": val, "test": test}
    splits = {name: _read(paths, label_keys, declared) for name, paths in given.items() if paths}
    contents = {name: describe(frames) for name, frames in splits.items()}
    findings = check_frames(splits)
    write_json(
        {"splits": contents, "findings": [vars(finding) for finding in findings]}, json, overwrite=overwrite
    )
    if json != STDOUT:
        for name, content in contents.items():
            print_table(_rows(content), title=f"{name}: {', '.join(content['files'][:3])}")
        _print_findings(findings)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(_FAULTY)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file ASE reads, npz, a directory or a pattern.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="*.xyz or *.extxyz (extended XYZ), *.db, *.traj or *.json.")
    ],
    units: UnitsOption = None,
    keys: KeysOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Write data in another format, in eV and Å, with labels under the usual names."""
    refuse_overwrite(target, overwrite=overwrite)
    label_keys, declared = parse_keys(keys), parse_units(units)

    from equipes.data import write_frames

    frames = _read([source], label_keys, declared)
    write_frames(frames, target, overwrite=overwrite)
    typer.echo(f"{_labelled(frames)}: {target}")


def split(
    files: Files,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Gets train.xyz, val.xyz, test.xyz and split.json."),
    ],
    n_train: Annotated[
        str | None, typer.Option("--n-train", metavar="SIZE", help=f"{_SIZE}; default: all the rest.")
    ] = None,
    n_val: Annotated[
        str | None, typer.Option("--n-val", metavar="SIZE", help=f"{_SIZE}; default: none.")
    ] = None,
    n_test: Annotated[
        str | None, typer.Option("--n-test", metavar="SIZE", help=f"{_SIZE}; default: none.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal splits.")] = 0,
    units: UnitsOption = None,
    keys: KeysOption = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Split data at random into files for training, validation and test, without overlap."""
    check_json_path(json, overwrite=overwrite)
    label_keys, declared = parse_keys(keys), parse_units(units)
    sizes = [parse_size(text) for text in (n_train, n_val, n_test)]

    from equipes.data import is_isolated, split_indices, write_frames
    from equipes.files import new_directory

    frames = _read(files, label_keys, declared)
    alone = [index for index, frame in enumerate(frames) if is_isolated(frame)]
    parts = split_indices(len(frames), *sizes, seed=seed, keep=alone)
    new_directory(out, overwrite=overwrite)
    for name in {"train", "val", "test"} - set(parts):
        if (out / f"{name}.xyz").exists():
            raise InputError(
                f"{out / name}.xyz is of another split and may overlap with this one; remove it first"
            )
    for name, indices in parts.items():
        write_frames([frames[i] for i in indices], out / f"{name}.xyz", overwrite=overwrite)
    chosen = {name: indices.tolist() for name, indices in parts.items()}
    write_json(chosen, out / "split.json", overwrite=overwrite)
    numbers = {
        "files": files,
        "seed": seed,
        "n_frames": len(frames),
        **{f"n_{k}": len(v) for k, v in chosen.items()},
    }
    write_json(numbers, json, overwrite=overwrite)
    rows = [(name, f"{len(indices)} frames: {out / name}.xyz") for name, indices in parts.items()]
    print_table(rows, quiet=json == STDOUT)


def parse_size(text: str | None) -> Size | None:
    """`950`, `0.9` or a file name as a size of a split; None stays None."""
    if text is None:
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    if not Path(text).exists():
        raise InputError(f"{text}: neither a number of frames, nor a fraction, nor a file of frame numbers")
    return text


def _read(paths: Sequence[str], keys: LabelKeys, units: Units | None) -> list[Frame]:
    from equipes.data import read_frames

    with naming_options():
        return read_frames(paths, keys=keys, units=units)


def _labelled(frames: Sequence[Frame]) -> str:
    counts = {
        name: sum(getattr(f, name) is not None for f in frames) for name in ("energy", "forces", "stress")
    }
    told = ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
    return f"{len(frames)} frames ({told or 'no labels'})"


def _rows(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sizes = _between(content["atoms_per_frame"], "d")
    yield "frames", f"{content['n_frames']} ({content['n_atoms']} atoms, {sizes} each)"
    yield "elements", ", ".join(f"{symbol} {count}" for symbol, count in content["elements"].items())
    more = content["n_compositions"] - len(content["compositions"])
    shown = ", ".join(f"{name} ×{count}" for name, count in content["compositions"].items())
    yield "compositions", shown + (f" and {more} more" if more else "")
    if content["config_types"]:
        yield "configuration types", ", ".join(f"{name} ×{n}" for name, n in content["config_types"].items())
    yield "periodic (abc)", ", ".join(f"{pbc} ×{count}" for pbc, count in content["periodic"].items())
    if content["volume_per_atom"]:
        yield "volume", f"{_between(content['volume_per_atom'], '.2f')} Å³/atom"
    energy, forces, stress = content["energy"], content["forces"], content["stress"]
    if energy["per_atom"]:
        yield "energy", f"{_label(energy)}, {_between(energy['per_atom'], '.4f')} eV/atom"
        values = ", ".join(f"{symbol} {value:.4f}" for symbol, value in energy["reference_energies"].items())
        spread = "" if energy["reference_energies_determined"] else "; not determined by the compositions"
        yield "reference energies", f"{values} eV{spread}"
        yield "energy without them", f"rms {energy['rms_without_references_mev_per_atom']:.1f} meV/atom"
    if forces["rms"] is not None:
        yield "forces", f"{_label(forces)}, rms {forces['rms']:.3g}, largest {forces['largest']:.3g} eV/Å"
    if stress["pressure_gpa"]:
        yield "stress", f"{_label(stress)}, pressure {_between(stress['pressure_gpa'], '.3g')} GPa"
    for quantity, label in (("forces", forces), ("stress", stress)):
        if label["work_ratio"] is not None:
            yield f"energy / work of {quantity}", f"{label['work_ratio']:.2f} (1 where they belong together)"


def _label(label: Mapping[str, Any]) -> str:
    return f"in {label['n_frames']} frames as {', '.join(label['keys'])}"


def _between(limits: Sequence[float], spec: str) -> str:
    low, high = (format(limit, spec) for limit in limits)
    return low if low == high else f"{low} to {high}"


def _print_findings(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    console = stdout_console()
    console.print()
    if not findings:
        console.print("nothing suspicious found")
    for finding in findings:
        style = "bold red" if finding.severity == "error" else "bold yellow"
        console.print(
            Text.assemble((finding.severity, style), f" [{finding.code}] {finding.message}"), soft_wrap=True
        )
