"""What the workflow commands share: one directory with numbers, figures, a page, and the calculations to go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import Group
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, print_table, write_json
from equipes.cli.running import (
    ModelOptions,
    StructureOptions,
    fingerprint,
    progress_bar,
    start,
    stopping,
)
from equipes.errors import InputError

if TYPE_CHECKING:
    import ase
    from matplotlib.figure import Figure

    from equipes.simulate.md import MDResult
    from equipes.simulate.results import Progress, Provenance
    from equipes.simulate.store import Store

OutDirectory = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Directory for numbers, plots, report.html.", show_default="STRUCTURE_COMMAND"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")]
Rows = Iterable[tuple[str, object]]


@dataclass(frozen=True)
class OutputOptions(Group):
    """Where results go, and what becomes of those that are there."""

    out: OutDirectory = None
    json: JsonPath = None
    resume: Resume = False
    overwrite: Overwrite = False


CALCULATIONS = "calculations.npz"
PAGE = "report.html"


@dataclass
class Workflow:
    """A command at work: structure, calculator, where results are kept, and how progress is shown."""

    name: str
    facts: dict[str, Any]
    atoms: ase.Atoms
    calculator: Any
    out: Path
    store: Store
    progress: Progress
    json: Path | None
    overwrite: bool
    resume: bool = False

    def finish(
        self,
        result: Any,
        rows: Rows,
        *,
        figures: Mapping[str, tuple[str, Callable[[], Figure]]],
        structures: Sequence[ase.Atoms],
    ) -> None:
        """See `write_result`."""
        write_result(
            self.name,
            self.facts,
            result,
            rows,
            out=self.out,
            figures=figures,
            structures=structures,
            json=self.json,
            overwrite=self.overwrite,
        )


def write_result(
    name: str,
    facts: Mapping[str, Any],
    result: Any,
    rows: Rows,
    *,
    out: Path,
    figures: Mapping[str, tuple[str, Callable[[], Figure]]],
    structures: Sequence[ase.Atoms],
    json: Path | None,
    overwrite: bool,
) -> None:
    """Write numbers, figures, structures and the page into `out`, and print the rows.

    `figures` are, by the name of their file, what they show and how they are drawn.
    """
    from ase.io import write

    from equipes.files import atomic_write
    from equipes.report.figures import save
    from equipes.report.workflow import write_workflow_page

    provenance: Provenance = result.provenance
    summary = {"command": name, **facts, **result.summary()}
    write_json(summary, out / f"{name}.json", overwrite=True)
    drawn = {file: (about, draw()) for file, (about, draw) in figures.items()}
    for file, (_, figure) in drawn.items():
        save(figure, out / file, overwrite=True)
    with atomic_write(out / "structure.extxyz", overwrite=True) as temporary:
        write(temporary, list(structures), format="extxyz")
    lines = list(rows)
    write_workflow_page(
        out / PAGE,
        title=f"{name}: {structures[0].get_chemical_formula()}",
        subtitle=", ".join(f"{key} {value}" for key, value in facts.items() if key != "options"),
        rows=lines,
        figures=dict(drawn.values()),
        structures=structures,
        provenance=provenance,
        overwrite=True,
    )
    written = f"{out}: {name}.json {' '.join(drawn)} {PAGE} structure.extxyz"
    print_result(lines, provenance, written, quiet=json == STDOUT)
    write_json(summary, json, overwrite=overwrite)


def print_result(rows: Rows, provenance: Provenance, written: str, *, quiet: bool) -> None:
    """The numbers, how converged they are, method, what to cite, where it all is; and warnings, on stderr."""
    told = [
        *rows,
        *(("convergence", check.sentence()) for check in provenance.checks),
        ("method", provenance.method),
        *(("cite", citation) for citation in provenance.citations),
        ("written", written),
    ]
    print_table(told, quiet=quiet)
    for sentence in provenance.warnings:
        typer.echo(f"Warning: {sentence}", err=True)


def facts_of(potential: ModelOptions, system: StructureOptions) -> dict[str, Any]:
    """What was calculated with what, for the numbers and the page."""
    return {
        "model": str(potential.model),
        "modal": potential.modal,
        **({} if potential.d3 is None else {"dispersion": f"D3(BJ) {potential.d3}"}),
        "structure": str(system.structure),
        "frame": system.frame,
        "dtype": potential.dtype.value,
    }


@contextmanager
def workflow(
    name: str,
    options: Any,
    potential: ModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    *,
    key: Mapping[str, Any] | None = None,
    changeable: Sequence[str] = (),
) -> Iterator[Workflow]:
    """Read what is needed, prepare the directory, show progress; a simulation that cannot go on becomes status 1.

    `key` is what else a continued calculation must have in common with the one before; options named in `changeable`
    need not be the same.
    """
    from equipes.simulate.store import structure_key

    check_json_path(output.json, overwrite=output.overwrite)
    options.check()
    atoms, calculator = start(potential, system)
    facts = facts_of(potential, system)
    where = output.out or Path(f"{system.structure.stem}_{name}")
    same = {option: value for option, value in asdict(options).items() if option not in changeable}
    made_with = {
        "command": name,
        "potential": fingerprint(potential),
        "structure": structure_key(atoms),
        **(key or {}),
        "options": same,
    }
    store = _opened(where, made_with, resume=output.resume, overwrite=output.overwrite)
    try:
        with store, stopping(), progress_of(name) as follow:
            yield Workflow(
                name=name,
                facts={**facts, "options": asdict(options)},
                atoms=atoms,
                calculator=calculator,
                out=where,
                store=store,
                progress=follow,
                json=output.json,
                overwrite=output.overwrite,
                resume=output.resume,
            )
    except KeyboardInterrupt:
        typer.echo("What is done is kept; the same command with --resume continues.", err=True)
        raise


def _opened(where: Path, made_with: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Store:
    from equipes.files import new_directory
    from equipes.simulate.store import Store

    if resume and overwrite:
        raise InputError(
            "a calculation is either continued or replaced; give --resume or --overwrite, not both"
        )
    if not resume:
        new_directory(where, overwrite=overwrite)
    store = Store(where / CALCULATIONS, made_with, resume=resume)
    store.write()
    return store


@contextmanager
def progress_of(name: str) -> Iterator[Progress]:
    """A line that moves: what is being done, how much of it, time left."""
    with progress_bar() as line:
        task = line.add_task(name, total=None)
        current = ""

        def follow(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                line.reset(task, total=total)
                current = what
            line.update(task, completed=done, total=total, description=what)

        yield follow


def write_dynamics_page(result: MDResult, lines: Rows, structures: Sequence[ase.Atoms], subtitle: str) -> str:
    """Figures and page of a run of dynamics, into its directory; returns the names of all that is there."""
    from equipes.report import md_plot
    from equipes.report.figures import save
    from equipes.report.transport import observed_plot
    from equipes.report.workflow import write_workflow_page
    from equipes.simulate import records

    figures = {
        records.PLOT: ("energies and temperature", md_plot(result.out / records.TABLE)),
        records.OBSERVED_PLOT: ("radial distributions and displacements", observed_plot(result.summary)),
    }
    for file, (_, figure) in figures.items():
        save(figure, result.out / file, overwrite=True)
    shown = []
    for atoms, label in zip(structures, ("start", "end"), strict=True):
        shown.append(atoms.copy())
        shown[-1].info = {"label": label}
        if atoms.cell.rank == 3:
            shown[-1].wrap()
    write_workflow_page(
        result.out / PAGE,
        title=f"md: {shown[0].get_chemical_formula()}",
        subtitle=subtitle,
        rows=lines,
        figures=dict(figures.values()),
        structures=shown,
        provenance=result.provenance,
        overwrite=True,
    )
    kept = (records.TRAJECTORY,) if result.summary["settings"]["trajectory"] else ()
    return " ".join((*kept, records.TABLE, records.SUMMARY, *figures, records.FINAL, PAGE))
