"""`equipes eos`, `elastic` and `phonons`: properties of crystals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.cli.groups import spread
from equipes.cli.running import PreciseModelOptions, StructureOptions
from equipes.cli.workflow import OutputOptions, workflow

if TYPE_CHECKING:
    from equipes.simulate.elastic import ElasticResult
    from equipes.simulate.eos import EquationOfStateResult
    from equipes.simulate.phonons import PhononResult

RelaxFirst = Annotated[
    bool, typer.Option("--relax/--no-relax", help="Relax atoms and cell first, keeping the symmetry.")
]

Supercell = Annotated[
    tuple[int, int, int] | None,
    typer.Option(
        "--supercell",
        metavar="A B C",
        help="Repeat the cell so often.",
        show_default="conventional cell, to --length",
    ),
]
Born = Annotated[
    Path | None,
    typer.Option("--born", help="Born charges (phonopy's BORN file), for the LO-TO splitting."),
]
Length = Annotated[float, typer.Option("--length", help="Å between faces of the supercell, at least.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(spread(eos))
    app.command()(spread(elastic))
    app.command()(spread(phonons))


def eos(
    potential: PreciseModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    volume_range: Annotated[
        float, typer.Option("--range", help="Fraction of the volume to either side.")
    ] = 0.08,
    points: Annotated[int, typer.Option(help="Number of volumes.")] = 11,
    relax_positions: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax the atoms at every volume.")
    ] = True,
) -> None:
    """Lattice constant and bulk modulus of a crystal, from its energy over the volume (Birch-Murnaghan)."""
    from equipes.simulate.eos import EquationOfStateOptions, equation_of_state

    options = EquationOfStateOptions(volume_range, points, relax_positions)
    with workflow(
        "eos",
        options,
        potential,
        system,
        output,
    ) as run:
        result = equation_of_state(
            run.atoms,
            run.calculator,
            volume_range=volume_range,
            points=points,
            relax_positions=relax_positions,
            store=run.store,
            progress=run.progress,
        )
        from equipes.report.equation_of_state import equation_of_state_plot

        figures = {"eos.png": ("energy over the volume", lambda: equation_of_state_plot(result))}
        run.finish(result, eos_rows(result), figures=figures, structures=[result.atoms])


def elastic(
    potential: PreciseModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    strain: Annotated[float, typer.Option(help="Largest strain, to both sides.")] = 0.01,
    relax: RelaxFirst = True,
    clamped: Annotated[bool, typer.Option("--clamped", help="Hold the atoms in the strained cells.")] = False,
    fmax: Annotated[float, typer.Option(help="Forces that the atoms are relaxed to, eV/Å.")] = 0.001,
) -> None:
    """Elastic tensor of a crystal, its stability, and the moduli of a polycrystal."""
    from equipes.simulate.elastic import ElasticOptions
    from equipes.simulate.elastic import elastic as calculate

    options = ElasticOptions(strain=strain, relax_cell=relax, relax_positions=not clamped, fmax=fmax)
    with workflow(
        "elastic",
        options,
        potential,
        system,
        output,
    ) as run:
        result = calculate(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.report.crystals import elastic_plot

        figures = {"elastic.png": ("Young's modulus by direction", lambda: elastic_plot(result))}
        run.finish(
            result, elastic_rows(result), figures=figures if result.stable else {}, structures=[result.atoms]
        )


def phonons(
    potential: PreciseModelOptions,
    system: StructureOptions,
    output: OutputOptions,
    supercell: Supercell = None,
    length: Length = 10.0,
    displacement: Annotated[float, typer.Option(help="Å.")] = 0.01,
    relax: RelaxFirst = True,
    mesh: Annotated[
        float, typer.Option(help="Size, Å, of the supercell whose q-points the mesh has.")
    ] = 100.0,
    max_temperature: Annotated[float, typer.Option(help="K.")] = 1000.0,
    born: Born = None,
    check_supercell: Annotated[
        bool, typer.Option("--check/--no-check", help="Calculate a smaller supercell too, to compare.")
    ] = True,
) -> None:
    """Phonons of a crystal: bands, density of states, heat capacity and free energy, instabilities."""
    from equipes.simulate.phonons import PhononOptions
    from equipes.simulate.phonons import phonons as calculate

    options = PhononOptions(
        supercell=supercell,
        length=length,
        displacement=displacement,
        relax=relax,
        mesh=mesh,
        temperatures=(max_temperature, 10.0),
        born=None if born is None else str(born),
        check_supercell=check_supercell,
    )
    with workflow(
        "phonons",
        options,
        potential,
        system,
        output,
    ) as run:
        result = calculate(run.atoms, run.calculator, options, store=run.store, progress=run.progress)
        from equipes.files import atomic_write
        from equipes.report.crystals import phonon_plot, thermal_plot

        with atomic_write(run.out / "phonopy.yaml", overwrite=True) as temporary:
            result.phonopy.save(temporary, settings={"force_constants": True})
        figures = {
            "phonons.png": ("bands and density of states", lambda: phonon_plot(result)),
            "thermal.png": ("thermal properties", lambda: thermal_plot(result)),
        }
        run.finish(result, phonon_rows(result), figures=figures, structures=[result.atoms])


def eos_rows(result: EquationOfStateResult) -> Iterator[tuple[str, object]]:
    """The numbers of an equation of state, for people."""
    constants = (
        f"{name} = {value:.4f} Å" if len(name) == 1 else f"{name} = {value:.2f}°"
        for name, value in result.lattice_constants.items()
    )
    atoms = len(result.atoms)
    yield "lattice", f"{result.lattice} {', '.join(constants)}"
    yield "volume", f"{result.volume_ang3 / atoms:.4f} Å³/atom"
    yield "energy", f"{result.energy_ev / atoms:.6f} eV/atom"
    yield "bulk modulus", f"{result.bulk_modulus_gpa:.2f} GPa"
    yield "its derivative B'", f"{result.bulk_modulus_derivative:.2f}"
    yield "fit", f"{result.fit_rms_mev_per_atom:.3g} meV/atom off, root mean square"


def elastic_rows(result: ElasticResult) -> Iterator[tuple[str, object]]:
    """The numbers of an elastic tensor, for people."""
    yield "space group", f"{result.spacegroup}, {result.independent} independent constants"
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    yield "C (GPa)", " ".join(f"{name:>8}" for name in names)
    for name, row in zip(names, result.tensor_gpa, strict=True):
        yield name, " ".join(f"{value + 0.0:8.2f}" for value in row.round(2))
    yield "largest error", f"{result.errors_gpa.max():.2g} GPa, by halving the strain"
    lowest = f"lowest eigenvalue {result.eigenvalues_gpa[0]:.2f} GPa"
    yield "stable (Born)", f"{'yes' if result.stable else 'NO'}, {lowest}"
    if result.moduli is not None:
        m = result.moduli
        for name, modulus in (("bulk", m.bulk_hill_gpa), ("shear", m.shear_hill_gpa)):
            low, high = getattr(m, f"{name}_reuss_gpa"), getattr(m, f"{name}_voigt_gpa")
            yield f"{name} modulus", f"{modulus:.2f} GPa (Hill; Reuss {low:.2f}, Voigt {high:.2f})"
        yield "Young's modulus", f"{m.young_gpa:.2f} GPa, Poisson's ratio {m.poisson_ratio:.3f}"
        yield "anisotropy", f"{m.universal_anisotropy:.3f} (universal; 0 is isotropic)"
        yield "Debye temperature", f"{result.debye_temperature_k:.0f} K, from the sound velocities"


def phonon_rows(result: PhononResult) -> Iterator[tuple[str, object]]:
    """The numbers of a calculation of phonons, for people."""
    verdict = "yes" if result.stable else f"NO, {len(result.imaginary)} q-points with imaginary modes"
    yield "stable", f"{verdict} (lowest frequency {round(result.lowest_thz, 3) + 0.0:.3f} THz)"
    for label, frequencies in result.points_thz.items():
        yield f"at {label}", " ".join(f"{value + 0.0:.3f}" for value in frequencies.round(3)) + " THz"
    thermal = result.thermal
    formula = result.atoms.get_chemical_formula()
    yield "zero-point energy", f"{thermal.zero_point_energy_kj_per_mol:.4f} kJ per mole of {formula}"
    at_300 = int(abs(thermal.temperatures_k - 300.0).argmin())
    for at in dict.fromkeys((at_300, len(thermal.temperatures_k) - 1)):
        yield (
            f"at {thermal.temperatures_k[at]:.0f} K",
            f"heat capacity {thermal.heat_capacity_j_per_k_per_mol[at]:.3f} J/K,"
            f" entropy {thermal.entropy_j_per_k_per_mol[at]:.3f} J/K,"
            f" free energy {thermal.free_energy_kj_per_mol[at]:.3f} kJ per mole of {formula}",
        )
