"""`equipes conductivity`: from phonons, from fluctuations of the heat flux, or by driving heat through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipes.cli.groups import spread
from equipes.cli.lattice import Born, Supercell
from equipes.cli.running import ModelOptions, Precision, StructureOptions
from equipes.cli.workflow import OutputOptions, Workflow, workflow
from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.simulate.conductivity import ConductivityResult
    from equipes.simulate.green_kubo import GreenKuboResult
    from equipes.simulate.hnemd import HNEMDResult


class Method(StrEnum):
    """How a thermal conductivity is calculated."""

    phonons = "phonons"
    green_kubo = "green-kubo"
    hnemd = "hnemd"


# In the help, and for which option belongs to which method.
_CRYSTAL, _DYNAMICS, _FLUCTUATION, _DRIVEN = (
    "phonons",
    "green-kubo and hnemd",
    "green-kubo",
    "hnemd",
)
_KNOWS = {
    Method.phonons: (_CRYSTAL,),
    Method.green_kubo: (_DYNAMICS, _FLUCTUATION),
    Method.hnemd: (_DYNAMICS, _DRIVEN),
}


@dataclass(frozen=True)
class ConductivityModelOptions(ModelOptions):
    """A model whose number type is, unless it is given, what suits the method."""

    dtype: Annotated[
        Precision | None,
        typer.Option(
            "--dtype", help="Number type of the network.", show_default="float64 for phonons, else float32"
        ),
    ] = None  # type: ignore[assignment]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(spread(conductivity))


def conductivity(
    potential: ConductivityModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="phonons: a crystal's, by third-order force constants; green-kubo, hnemd: any solid's, by dynamics.",
        ),
    ] = Method.phonons,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", help="K; with phonons repeat.", show_default="phonons: 100 … 1000"),
    ] = None,
    supercell: Supercell = None,
    length: Annotated[
        float | None,
        typer.Option(
            help="Å between faces of the supercell, at least.", show_default="10.0", rich_help_panel=_CRYSTAL
        ),
    ] = None,
    displacement: Annotated[
        float | None, typer.Option(help="Å.", show_default="0.03", rich_help_panel=_CRYSTAL)
    ] = None,
    cutoff_pair: Annotated[
        float | None,
        typer.Option(
            "--cutoff-pair",
            help="Leave out pairs of displaced atoms farther apart, Å.",
            rich_help_panel=_CRYSTAL,
        ),
    ] = None,
    mesh: Annotated[
        list[float] | None,
        typer.Option(
            "--mesh",
            help="Sizes, Å, of the q-point meshes; repeat.",
            show_default="28, 36, 44",
            rich_help_panel=_CRYSTAL,
        ),
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--rta-only",
            help="Solve the Boltzmann equation in full too.",
            show_default="full",
            rich_help_panel=_CRYSTAL,
        ),
    ] = None,
    isotopes: Annotated[
        bool | None,
        typer.Option(
            "--isotopes/--no-isotopes",
            help="Scattering by natural isotopes.",
            show_default="isotopes",
            rich_help_panel=_CRYSTAL,
        ),
    ] = None,
    relax: Annotated[
        bool | None,
        typer.Option(
            "--relax/--no-relax",
            help="Relax atoms and cell first, keeping the symmetry.",
            show_default="relax",
            rich_help_panel=_CRYSTAL,
        ),
    ] = None,
    born: Born = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Recorded, of each run.", show_default="100000", rich_help_panel=_DYNAMICS),
    ] = None,
    equilibration: Annotated[
        int | None,
        typer.Option(
            help="Steps at the temperature before them.", show_default="5000", rich_help_panel=_DYNAMICS
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Independent runs, of each field.", show_default="4, hnemd 1", rich_help_panel=_DYNAMICS
        ),
    ] = None,
    timestep: Annotated[
        float | None, typer.Option(help="fs.", show_default="1.0", rich_help_panel=_DYNAMICS)
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(help="Steps between two fluxes.", show_default="10", rich_help_panel=_DYNAMICS),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the velocities.", show_default="0", rich_help_panel=_DYNAMICS)
    ] = None,
    correlation: Annotated[
        float | None,
        typer.Option(
            help="Longest correlation looked at, ps; at most a quarter of a run.",
            show_default="25.0",
            rich_help_panel=_FLUCTUATION,
        ),
    ] = None,
    field: Annotated[
        float | None,
        typer.Option(
            help="Driving force, 1/Å; half of it too.", show_default="0.0001", rich_help_panel=_DRIVEN
        ),
    ] = None,
    direction: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            help="Of field and flux.", metavar="X Y Z", show_default="1 0 0", rich_help_panel=_DRIVEN
        ),
    ] = None,
    settling: Annotated[
        float | None,
        typer.Option(
            help="Fraction of each run that is left out.", show_default="0.1", rich_help_panel=_DRIVEN
        ),
    ] = None,
) -> None:
    """Lattice thermal conductivity: of a crystal against temperature, or of any solid by dynamics at one
    temperature.
    """
    given: dict[str, dict[str, Any]] = {
        _CRYSTAL: {
            "length": length,
            "displacement": displacement,
            "cutoff_pair": cutoff_pair,
            "meshes": tuple(mesh) if mesh else None,
            "full": full,
            "isotopes": isotopes,
            "relax": relax,
            "born": None if born is None else str(born),
        },
        _DYNAMICS: {
            "steps": steps,
            "equilibration": equilibration,
            "runs": runs,
            "timestep": timestep,
            "interval": interval,
            "seed": seed,
        },
        _FLUCTUATION: {"correlation": correlation},
        _DRIVEN: {"field": field, "direction": direction, "settling": settling},
    }
    chosen = _chosen(method, given)
    if supercell is not None:
        chosen["supercell"] = supercell
    if potential.dtype is None:
        usual = Precision.float64 if method is Method.phonons else Precision.float32
        potential = replace(potential, dtype=usual)

    def start(options: Any, changeable: Sequence[str] = ()) -> AbstractContextManager[Workflow]:
        return workflow(
            "conductivity",
            options,
            potential,
            system,
            output,
            key={} if method is Method.phonons else {"method": method.value},
            changeable=changeable,
        )

    if method is Method.phonons:
        _by_phonons(start, {**chosen, **({"temperatures": tuple(temperature)} if temperature else {})})
    elif method is Method.green_kubo:
        _by_fluctuations(start, {**chosen, "temperature": _only(temperature, method)})
    else:
        _by_driving(start, {**chosen, "temperature": _only(temperature, method)})


def _chosen(method: Method, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for group, options in given.items():
        found = {name: value for name, value in options.items() if value is not None}
        if found and group not in _KNOWS[method]:
            name = {"meshes": "mesh"}.get(next(iter(found)), next(iter(found)))
            raise InputError(
                f"--{name.replace('_', '-')} belongs to --method {group}, not to {method.value}; leave it out"
            )
        chosen |= found
    return chosen


def _only(temperature: list[float] | None, method: Method) -> float:
    if temperature is None or len(temperature) != 1:
        raise InputError(
            f"--method {method.value} runs at one temperature; give one, as in --temperature 300"
        )
    return temperature[0]


def _by_phonons(start: Any, chosen: dict[str, Any]) -> None:
    from equipes.simulate.conductivity import ConductivityOptions
    from equipes.simulate.conductivity import conductivity as calculate

    options = ConductivityOptions(**chosen)
    with start(options) as run:
        result = calculate(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.report.crystals import conductivity_plot

        figures = {
            "conductivity.png": ("conductivity over temperature and mesh", lambda: conductivity_plot(result))
        }
        run.finish(result, conductivity_rows(result), figures=figures, structures=[result.atoms])


def _by_fluctuations(start: Any, chosen: dict[str, Any]) -> None:
    from equipes.simulate.green_kubo import GreenKuboOptions, green_kubo

    options = GreenKuboOptions(**chosen)
    with start(options, ("steps", "runs", "correlation")) as run:
        result = green_kubo(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.report.heat import green_kubo_plot

        figures = {
            "green-kubo.png": (
                "correlation of the heat flux, its integral and its spectrum",
                lambda: green_kubo_plot(result),
            )
        }
        run.finish(result, green_kubo_rows(result), figures=figures, structures=[result.atoms])


def _by_driving(start: Any, chosen: dict[str, Any]) -> None:
    from equipes.simulate.hnemd import HNEMDOptions, hnemd

    options = HNEMDOptions(**chosen)
    with start(options, ("steps", "runs", "settling")) as run:
        result = hnemd(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.report.heat import hnemd_plot

        figures = {"hnemd.png": ("conductivity as the driven flux goes on", lambda: hnemd_plot(result))}
        run.finish(result, hnemd_rows(result), figures=figures, structures=[result.atoms])


def conductivity_rows(result: ConductivityResult) -> Iterator[tuple[str, object]]:
    """The numbers of a conductivity from phonons, for people."""
    solutions = [("relaxation time", result.relaxation_time[-1])]
    if result.full is not None:
        solutions.append(("full solution", result.full[-1]))
    for name, values in solutions:
        for temperature, value in zip(result.temperatures_k, values, strict=True):
            tensor = " ".join(f"{component:.3f}" for component in value[:3])
            yield f"{name}, {temperature:g} K", f"{value[:3].mean():.3f} W/(m K) (xx yy zz: {tensor})"


def green_kubo_rows(result: GreenKuboResult) -> Iterator[tuple[str, object]]:
    """The numbers of a conductivity from fluctuations, for people."""
    yield (
        f"conductivity, {result.temperature_k:.0f} K",
        f"{result.conductivity:.4g} ± {result.error:.2g} W/(m K)",
    )
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    for name, value, error in zip(names, result.tensor, result.tensor_error, strict=True):
        yield name, f"{value:.4g} ± {error:.2g} W/(m K)"
    yield "by cepstral analysis", f"{result.cepstral:.4g} ± {result.cepstral_error:.2g} W/(m K)"
    yield "correlation integrated to", f"{result.cutoff_ps:.3g} ps"
    yield "recorded", f"{result.picoseconds:.4g} ps in all, {len(result.atoms)} atoms"
    yield "energy drift", f"{result.drift_mev:.2g} meV/atom/ps"


def hnemd_rows(result: HNEMDResult) -> Iterator[tuple[str, object]]:
    """The numbers of a conductivity from a driven flux, for people."""
    along = " ".join(f"{component:g}" for component in result.direction.round(4))
    yield (
        f"conductivity along {along}, {result.temperature_k:.0f} K",
        f"{result.conductivity:.4g} ± {result.error:.2g} W/(m K)",
    )
    for field, value, error in zip(result.fields, result.at_field, result.at_field_error, strict=True):
        yield f"with the field {field:.3g}/Å", f"{value:.4g} ± {error:.2g} W/(m K)"
    yield "recorded", f"{result.picoseconds:.4g} ps in all, {len(result.atoms)} atoms"
