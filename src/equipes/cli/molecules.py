"""`equipes benchmark rmd17`, `acac` and `3bpa`: train on published molecules, and compare with published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipes.benchmark import BenchmarkSettings, Case

ARCHITECTURES = ("nequip", "mace", "sevennet", "schnet", "physnet", "ani")
DEFAULT_ARCHITECTURES = ("nequip", "mace", "schnet", "physnet", "ani")
DEFAULT_MOLECULES = ("ethanol", "benzene", "malonaldehyde", "uracil", "aspirin")

Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data set.", show_default=False)
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Where trainings and results go; what is done stays."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help=f"Of {', '.join(ARCHITECTURES)}; more than once; all but sevennet by default.",
    ),
]
IsolatedAtoms = Annotated[
    bool, typer.Option("--isolated-atoms", help="Reference energies from isolated_atoms.xyz, not fitted.")
]
Minutes = Annotated[float, typer.Option("--minutes", min=0.001, help="Wall-clock budget of each training.")]
Seed = Annotated[int, typer.Option("--seed", help="Of weights and batches.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="[NAME:]KEY=VALUE",
        help="A setting of all trainings, or of one architecture: mace:max_ell=2.",
    ),
]


def rmd17(
    data: Data = None,
    out: Out = Path("benchmark-rmd17"),
    model: Models = None,
    molecule: Annotated[
        list[str] | None,
        typer.Option(
            "--molecule", metavar="NAME", help=f"More than once; {', '.join(DEFAULT_MOLECULES)} by default."
        ),
    ] = None,
    frames: Annotated[
        list[int] | None,
        typer.Option(
            "--frames", metavar="N", help="Frames to train on; more than once; 950 and 50 by default."
        ),
    ] = None,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="10, 25, 50, 100, 300 and 950 frames, and a plot.")
    ] = False,
    minutes: Minutes = 30.0,
    seed: Seed = 0,
    set_: Set = None,
    split: Annotated[int, typer.Option("--split", min=1, max=5, help="Official split.")] = 1,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set (1 GB) into --data if it is not there.")
    ] = False,
    pretrain: Annotated[
        bool,
        typer.Option(
            "--pretrain", help="Train each again, pre-trained on xTB labels around its first training frame."
        ),
    ] = False,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Small molecules: energies and forces of rMD17's official test split, with 950 and with 50 training frames.

    The folder has `rmd17_<molecule>_train_01.npz` and `..._test_01.npz`, or the official archive unpacked.
    """
    from equipes.benchmark.cases import LEARNING_CURVE, rmd17_case
    from equipes.benchmark.download import download_rmd17
    from equipes.benchmark.runs import PRETRAINED, SCRATCH

    folder = data or Path("rmd17")
    if download:
        download_rmd17(folder)
    sizes = list(LEARNING_CURVE) if learning_curve and not frames else frames or [950, 50]
    cases = [rmd17_case(folder, name, n, split) for name in molecule or DEFAULT_MOLECULES for n in sizes]
    _run(
        cases,
        model,
        _settings(minutes, seed, set_),
        out,
        json,
        overwrite=overwrite,
        learning_curve=learning_curve,
        starts=(SCRATCH, PRETRAINED) if pretrain else (SCRATCH,),
    )


def acac(
    data: Data = None,
    out: Out = Path("benchmark-acac"),
    model: Models = None,
    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames to train on.")] = 450,
    isolated_atoms: IsolatedAtoms = False,
    minutes: Minutes = 30.0,
    seed: Seed = 0,
    set_: Set = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Acetylacetone: trained at 300 K, tested at 300 K, at 600 K and along a dihedral (every test_*.xyz there is)."""
    from equipes.benchmark import temperature_case

    case = temperature_case(data or Path("acac"), "acac", frames, isolated_atoms=isolated_atoms)
    _run([case], model, _settings(minutes, seed, set_), out, json, overwrite=overwrite)


def three_bpa(
    data: Data = None,
    out: Out = Path("benchmark-3bpa"),
    model: Models = None,
    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames to train on.")] = 450,
    isolated_atoms: IsolatedAtoms = False,
    minutes: Minutes = 30.0,
    seed: Seed = 0,
    set_: Set = None,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """3BPA: trained at 300 K, tested at 300, 600 and 1200 K and along dihedrals (every test_*.xyz there is)."""
    from equipes.benchmark import temperature_case

    case = temperature_case(data or Path("3bpa"), "3bpa", frames, isolated_atoms=isolated_atoms)
    _run([case], model, _settings(minutes, seed, set_), out, json, overwrite=overwrite)


def _settings(minutes: float, seed: int, assignments: list[str] | None) -> BenchmarkSettings:
    from equipes.benchmark import BenchmarkSettings

    overrides: dict[str, tuple[str, ...]] = {}
    for assignment in assignments or []:
        name, colon, rest = assignment.partition(":")
        if colon and "=" not in name:
            _refuse_unknown([name])
            overrides[name] = (*overrides.get(name, ()), rest)
        else:
            overrides[""] = (*overrides.get("", ()), assignment)
    return BenchmarkSettings(minutes, seed, overrides)


def _refuse_unknown(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise InputError(f"unknown architecture '{unknown[0]}'; give some of {', '.join(ARCHITECTURES)}")


def _run(
    cases: list[Case],
    models: list[str] | None,
    settings: BenchmarkSettings,
    out: Path,
    json: Path | None,
    *,
    overwrite: bool,
    learning_curve: bool = False,
    starts: Sequence[str] = ("from scratch",),
) -> None:
    """Train everything, writing the table anew after each training."""
    from rich.console import Console

    from equipes.benchmark import Row, markdown, run, write_results
    from equipes.benchmark.runs import Interrupted
    from equipes.files import new_directory

    names = list(dict.fromkeys(models or DEFAULT_ARCHITECTURES))
    _refuse_unknown(names)
    check_json_path(json, overwrite=overwrite)
    new_directory(out, overwrite=True)
    console = Console(stderr=True)
    rows: list[Row] = []
    trainings = [(case, name, start) for case in cases for name in names for start in starts]
    for number, (case, name, start) in enumerate(trainings, start=1):
        title = f"{case.system}, {case.n_train} frames, {name}, {start} ({number} of {len(trainings)})"
        console.print(f"\n{title}", style="bold", highlight=False)
        try:
            rows += run(case, name, settings, out, start=start)
        except Interrupted as interruption:
            console.print("Stopped; repeat the command to go on.", highlight=False)
            raise typer.Exit(128 + interruption.signal) from None
        write_results(rows, out, learning_curve=learning_curve)
    if json != STDOUT:
        typer.echo(markdown(rows))
    write_json({"rows": [vars(row) for row in rows]}, json, overwrite=overwrite)
