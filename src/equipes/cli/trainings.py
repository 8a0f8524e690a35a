"""`equipes benchmark rmd17`, `acac`, `3bpa`, `mlearn`: train on published data, compare with published figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.groups import Group, spread
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipes.benchmark import BenchmarkSettings, Case

ARCHITECTURES = ("nequip", "mace", "sevennet", "schnet", "physnet", "ani")
DEFAULT_ARCHITECTURES = ("nequip", "mace", "schnet", "physnet", "ani")
DEFAULT_MOLECULES = ("ethanol", "benzene", "malonaldehyde", "uracil", "aspirin")

Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Where trainings and results go; what is done stays."),
]
Frames = Annotated[int, typer.Option("--frames", metavar="N", help="Frames to train on.")]
IsolatedAtoms = Annotated[
    bool, typer.Option("--isolated-atoms", help="Reference energies from isolated_atoms.xyz, not fitted.")
]


@dataclass(frozen=True)
class TrainingOptions(Group):
    """What is trained on what, and for how long."""

    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data set.", show_default=False)
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help=f"Of {', '.join(ARCHITECTURES)}; more than once; all but sevennet by default.",
        ),
    ] = None
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.001, help="Wall-clock budget of each training.")
    ] = 30.0
    seed: Annotated[int, typer.Option("--seed", help="Of weights and batches.")] = 0
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[NAME:]KEY=VALUE",
            help="A setting of all trainings, or of one architecture: mace:max_ell=2.",
        ),
    ] = None
    json: JsonPath = None
    overwrite: Overwrite = False

    def settings(self) -> BenchmarkSettings:
        """Those of all trainings."""
        from equipes.benchmark import BenchmarkSettings

        overrides: dict[str, tuple[str, ...]] = {}
        for assignment in self.set_ or []:
            name, colon, rest = assignment.partition(":")
            if colon and "=" not in name:
                _refuse_unknown([name])
                overrides[name] = (*overrides.get(name, ()), rest)
            else:
                overrides[""] = (*overrides.get("", ()), assignment)
        return BenchmarkSettings(self.minutes, self.seed, overrides)


def register(benchmark: typer.Typer) -> None:
    """Add the commands of this module."""
    benchmark.command()(spread(rmd17))
    benchmark.command()(spread(acac))
    benchmark.command("3bpa")(spread(three_bpa))
    benchmark.command()(spread(mlearn))


def rmd17(
    options: TrainingOptions,
    out: Out = Path("benchmark-rmd17"),
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
) -> None:
    """Small molecules: energies and forces of rMD17's official test split, with 950 and with 50 training frames.

    The folder has `rmd17_<molecule>_train_01.npz` and `..._test_01.npz`, or the official archive unpacked.
    """
    from equipes.benchmark.cases import LEARNING_CURVE, rmd17_case
    from equipes.benchmark.download import download_rmd17
    from equipes.benchmark.runs import PRETRAINED, SCRATCH

    folder = options.data or Path("rmd17")
    if download:
        download_rmd17(folder)
    sizes = list(LEARNING_CURVE) if learning_curve and not frames else frames or [950, 50]
    cases = [rmd17_case(folder, name, n, split) for name in molecule or DEFAULT_MOLECULES for n in sizes]
    starts = (SCRATCH, PRETRAINED) if pretrain else (SCRATCH,)
    _run(cases, options, out, learning_curve=learning_curve, starts=starts)


def acac(
    options: TrainingOptions,
    out: Out = Path("benchmark-acac"),
    frames: Frames = 450,
    isolated_atoms: IsolatedAtoms = False,
) -> None:
    """Acetylacetone: trained at 300 K, tested at 300 K, at 600 K and along a dihedral (every test_*.xyz there is)."""
    _run_heated("acac", options, out, frames, isolated_atoms=isolated_atoms)


def three_bpa(
    options: TrainingOptions,
    out: Out = Path("benchmark-3bpa"),
    frames: Frames = 450,
    isolated_atoms: IsolatedAtoms = False,
) -> None:
    """3BPA: trained at 300 K, tested at 300, 600 and 1200 K and along dihedrals (every test_*.xyz there is)."""
    _run_heated("3bpa", options, out, frames, isolated_atoms=isolated_atoms)


def mlearn(
    options: TrainingOptions,
    out: Out = Path("benchmark-mlearn"),
    element: Annotated[
        list[str] | None,
        typer.Option(
            "--element", metavar="SYMBOL", help="More than once; Ni, Cu, Li, Mo, Si, Ge by default."
        ),
    ] = None,
) -> None:
    """Crystals, surfaces, vacancies and melts of elements: the test sets of mlearn.

    The folder has `<element>_train.xyz` and `<element>_test.xyz`.
    """
    from equipes.benchmark.cases import ELEMENTS, mlearn_case

    folder = options.data or Path("mlearn")
    _run([mlearn_case(folder, name) for name in element or ELEMENTS], options, out)


def _run_heated(name: str, options: TrainingOptions, out: Path, frames: int, *, isolated_atoms: bool) -> None:
    from equipes.benchmark import temperature_case

    case = temperature_case(options.data or Path(name), name, frames, isolated_atoms=isolated_atoms)
    _run([case], options, out)


def _refuse_unknown(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise InputError(f"unknown architecture '{unknown[0]}'; give some of {', '.join(ARCHITECTURES)}")


def _run(
    cases: list[Case],
    options: TrainingOptions,
    out: Path,
    *,
    learning_curve: bool = False,
    starts: Sequence[str] = ("from scratch",),
) -> None:
    """Train everything, writing the table anew after each training."""
    from rich.console import Console

    from equipes.benchmark import Row, markdown, run, write_results
    from equipes.benchmark.runs import Interrupted
    from equipes.files import writing_to

    names = list(dict.fromkeys(options.model or DEFAULT_ARCHITECTURES))
    _refuse_unknown(names)
    settings = options.settings()
    check_json_path(options.json, overwrite=options.overwrite)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
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
    if options.json != STDOUT:
        typer.echo(markdown(rows))
    write_json({"rows": [vars(row) for row in rows]}, options.json, overwrite=options.overwrite)
