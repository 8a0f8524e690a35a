"""`equipes relax-batch`: relaxations of many structures at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from equipes.cli.batch import print_rows, starts
from equipes.cli.groups import spread
from equipes.cli.inputs import members
from equipes.cli.output import STDOUT, JsonPath, Overwrite, check_json_path, write_json
from equipes.cli.running import (
    ModelOptions,
    check_targets,
    fingerprint,
    freeze_ahead,
    progress_bar,
    single_calculator,
    warn_about_dispersion,
    write_structures,
)
from equipes.cli.simulate import RelaxOptions
from equipes.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("relax-batch")(spread(relax_batch))


def relax_batch(
    potential: ModelOptions,
    options: RelaxOptions,
    structures: Annotated[
        list[Path], typer.Argument(metavar="STRUCTURES...", help="Structures to relax: files that ASE reads.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The relaxed structures, in the order of the files.")],
    frame: Annotated[
        str, typer.Option("--frame", metavar="N|all", help="Which structure of each file.")
    ] = "all",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Structures that relax at the same time, at most.")
    ] = 64,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was stopped or had too few steps.")
    ] = False,
    json: JsonPath = None,
    overwrite: Overwrite = False,
) -> None:
    """Relax many structures in one batch, each as `equipes relax` does, to round-off.

    Exit status 1 if one does not converge; the others are written all the same.
    """
    from equipes.simulate import RelaxResult
    from equipes.simulate.batch_relax import relax_together

    overwrite = overwrite or resume
    check_json_path(json, overwrite=overwrite)
    check_targets((out,), overwrite=overwrite)
    kept = out.with_suffix(".steps")
    if kept.exists() and not overwrite:
        raise InputError(
            f"{kept} is of relaxations that did not end; give --resume, or --overwrite to forget it"
        )
    if resume and not kept.is_dir():
        raise InputError(f"{kept}: nothing to continue from; leave out --resume to start anew")
    if len(members(potential.model)) > 1:
        raise InputError(
            f"{potential.model}: a committee relaxes one structure at a time; run `equipes relax`"
        )
    given = list(starts(structures, frame))
    names, atoms = [name for name, _ in given], [structure for _, structure in given]
    warn_about_dispersion(potential)
    calculator = single_calculator(potential)
    freeze_ahead(calculator, {symbol for structure in atoms for symbol in structure.symbols})
    if not resume and kept.is_dir():
        shutil.rmtree(kept)
    done = 0
    try:
        with progress_bar() as progress:
            task = progress.add_task("relaxing", total=len(atoms))

            def follow(index: int, _: object) -> None:
                nonlocal done
                done += 1
                progress.update(task, completed=done, description=f"{names[index]} has ended")

            results = relax_together(
                atoms,
                calculator,
                names=names,
                at_once=batch_size,
                kept=kept,
                facts={"potential": fingerprint(potential)},
                on_end=follow,
                d3=potential.d3,
                cell=options.cell,
                **options.keywords(),
            )
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command with --resume continues.", err=True)
        raise
    except InputError:
        if not resume:
            shutil.rmtree(kept, ignore_errors=True)
        raise
    relaxed, failures, summaries = [], {}, {}
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, RelaxResult):
            failures[name] = str(result)
            continue
        structure = result.atoms
        structure.info.update(name=name, converged=result.converged, steps=result.steps)
        relaxed.append(structure)
        summaries[name] = result.summary()
        if not result.converged:
            failures[name] = f"not converged after {result.steps} steps: largest force"
            failures[name] += f" {result.max_force_ev_per_ang:.3g} eV/Å; give more --steps and --resume"
    if relaxed:
        write_structures(out, relaxed, overwrite=overwrite)
    if not failures:
        shutil.rmtree(kept)
    if json != STDOUT:
        _print_relaxed(summaries)
        typer.echo(f"{len(relaxed)} of {len(atoms)} structures: {out}")
    summary = {"model": str(potential.model), "out": str(out), "failures": failures, "structures": summaries}
    write_json(summary, json, overwrite=overwrite)
    for name, sentence in failures.items():
        typer.echo(f"Error: {name}: {sentence}", err=True)
    if failures:
        raise typer.Exit(1)


def _print_relaxed(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (
            name,
            str(found["steps"]),
            f"{found['energy_ev']:.6f}",
            f"{1000 * (found['energy_ev'] - found['energy_before_ev']) / found['n_atoms']:+.3f}",
            f"{found['max_force_ev_per_ang']:.2g}",
            "" if found["max_stress_deviation_gpa"] is None else f"{found['max_stress_deviation_gpa']:.2g}",
            "yes" if found["converged"] else "no",
        )
        for name, found in summaries.items()
    ]
    names = (
        "structure",
        "steps",
        "energy, eV",
        "change, meV/atom",
        "force, eV/Å",
        "stress off, GPa",
        "converged",
    )
    print_rows(names, rows)
