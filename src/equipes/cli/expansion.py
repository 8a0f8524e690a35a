"""`equipes expansion`: a crystal that warms up, from its phonons or by molecular dynamics."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import spread
from equipes.cli.lattice import RelaxFirst, Supercell
from equipes.cli.running import PreciseModelOptions, StructureOptions
from equipes.cli.workflow import OutputOptions, Workflow, workflow
from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.simulate.expansion import ExpansionOptions, ExpansionResult
    from equipes.simulate.expansion_npt import NPTExpansionOptions
    from equipes.simulate.records import Row


class MethodName(StrEnum):
    """Ways to thermal expansion."""

    qha = "qha"
    npt = "npt"


class ShapeName(StrEnum):
    """What of the cell changes in dynamics at constant pressure."""

    isotropic = "isotropic"
    lengths = "lengths"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(spread(expansion))


def expansion(
    potential: PreciseModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    method: Annotated[
        MethodName, typer.Option(help="Quasi-harmonic phonons, or dynamics at constant pressure.")
    ] = MethodName.qha,
    supercell: Supercell = None,
    length: Annotated[
        float | None,
        typer.Option(help="Å between faces of the supercell, at least.", show_default="qha 8, npt 10"),
    ] = None,
    relax: RelaxFirst = True,
    displacement: Annotated[float | None, typer.Option(help="qha: Å.", show_default="0.01")] = None,
    volumes: Annotated[int | None, typer.Option(help="qha: how many.", show_default="9")] = None,
    smallest: Annotated[
        float | None, typer.Option(help="qha: volume, over that of lowest energy.", show_default="0.97")
    ] = None,
    largest: Annotated[
        float | None, typer.Option(help="qha: volume, over that of lowest energy.", show_default="1.07")
    ] = None,
    max_temperature: Annotated[float | None, typer.Option(help="qha: K.", show_default="800")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="npt: K; repeat.", show_default="200, 300, 400, 500")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="npt: length of each run.", show_default="20000")] = None,
    timestep: Annotated[float | None, typer.Option(help="npt: fs.", show_default="2")] = None,
    pressure: Annotated[float | None, typer.Option(help="npt: GPa.", show_default="0")] = None,
    shape: Annotated[
        ShapeName | None,
        typer.Option(help="npt: what of the cell changes.", show_default="isotropic, its volume"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="npt: of velocities and random forces.", show_default="0")
    ] = None,
) -> None:
    """Thermal expansion and bulk modulus of a crystal against temperature."""
    from equipes.simulate.expansion import ExpansionOptions
    from equipes.simulate.expansion_npt import NPTExpansionOptions

    both = {"supercell": supercell, "length": length, "relax": relax}
    harmonic = {
        "displacement": displacement,
        "volumes": volumes,
        "smallest": smallest,
        "largest": largest,
        "highest": max_temperature,
    }
    dynamic = {
        "temperatures": tuple(sorted(temperature)) if temperature else None,
        "steps": steps,
        "timestep": timestep,
        "pressure": pressure,
        "shape": None if shape is None else shape.value,
        "seed": seed,
    }
    own, other = (harmonic, dynamic) if method is MethodName.qha else (dynamic, harmonic)
    strange = [name for name, value in other.items() if value is not None]
    if strange:
        option = {"highest": "max-temperature", "temperatures": "temperature"}.get(strange[0], strange[0])
        raise InputError(
            f"--{option} does not belong to --method {method.value}; leave it out, or the method"
        )
    given: dict[str, Any] = {name: value for name, value in {**both, **own}.items() if value is not None}
    options: ExpansionOptions | NPTExpansionOptions = (
        ExpansionOptions(**given) if method is MethodName.qha else NPTExpansionOptions(**given)
    )
    with workflow(
        "expansion",
        options,
        potential,
        system,
        output,
        key={"method": method.value},
    ) as run:
        result = _calculated(run, options)
        from equipes.report.crystals import expansion_plot

        figures = {"expansion.png": ("properties over temperature", lambda: expansion_plot(result))}
        run.finish(result, expansion_rows(result), figures=figures, structures=[result.atoms])


def _calculated(run: Workflow, options: ExpansionOptions | NPTExpansionOptions) -> ExpansionResult:
    from equipes.simulate.expansion import ExpansionOptions
    from equipes.simulate.expansion import expansion as quasi_harmonic
    from equipes.simulate.expansion_npt import expansion_npt

    if isinstance(options, ExpansionOptions):
        return quasi_harmonic(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
    done: dict[float, int] = {}

    def follow(kelvin: float, step: int, _: Row) -> None:
        done[kelvin] = step
        total = options.steps * len(options.temperatures)
        run.progress(f"{len(options.temperatures)} temperatures", sum(done.values()), total)

    where = run.out / "npt"
    result = expansion_npt(
        run.atoms,
        run.calculator,
        options,
        where,
        resume=run.resume and where.exists(),
        overwrite=run.overwrite,
        potential=run.store.facts["potential"],
        on_step=follow,
    )
    if result is None:
        typer.echo("Stopped; the same command with --resume continues.", err=True)
        raise typer.Exit(130)
    return result


def expansion_rows(result: ExpansionResult) -> Iterator[tuple[str, object]]:
    """The numbers of thermal expansion, for people."""
    sampled = result.volume_error_ang3 is not None
    for temperature in result.temperatures_k if sampled else (0.0, 100.0, 300.0, 500.0, 1000.0):
        at = result.at(temperature)
        if abs(result.temperatures_k[at] - temperature) > 5:
            continue
        volume, volume_error = result.volume_ang3[at], _error(result.volume_error_ang3, at, 1.0, ".2g")
        slope = 1e6 * result.expansion_per_k[at] / 3
        slope_error = _error(result.expansion_error_per_k, at, 1e6 / 3, ".2g")
        modulus = result.bulk_modulus_gpa[at]
        modulus_error = _error(result.bulk_modulus_error_gpa, at, 1.0, ".2g")
        yield (
            f"at {result.temperatures_k[at]:.0f} K",
            f"volume {volume:.4f}{volume_error} Å³, linear expansion {slope:.3f}{slope_error} 10⁻⁶/K,"
            f" bulk modulus {modulus:.2f}{modulus_error} GPa,"
            f" heat capacity {result.heat_capacity_j_per_k_per_mol[at]:.3f} J/K/mol",
        )


def _error(errors: Any, at: int, factor: float, form: str) -> str:
    return "" if errors is None else f" ± {factor * float(errors[at]):{form}}"
