"""Figures of crystals: the elastic tensor, phonons, heat conduction, thermal expansion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, INK, new_figure, styled

if TYPE_CHECKING:
    from equipes.simulate.conductivity import ConductivityResult
    from equipes.simulate.elastic import ElasticResult
    from equipes.simulate.expansion import ExpansionResult
    from equipes.simulate.phonons import PhononResult


@styled
def elastic_plot(result: ElasticResult) -> Figure:
    """Young's modulus by direction in the three coordinate planes, with the polycrystal's as a circle."""
    compliance = np.linalg.inv(result.tensor_gpa)
    angles = np.linspace(0, 2 * np.pi, 361)
    figure = new_figure(8.4, 3.1)
    planes = (("xy", (0, 1)), ("xz", (0, 2)), ("yz", (1, 2)))
    panels = figure.subplots(1, 3, subplot_kw={"projection": "polar"})
    for axes, (name, (i, j)) in zip(panels, planes, strict=True):
        directions = np.zeros((len(angles), 3))
        directions[:, i], directions[:, j] = np.cos(angles), np.sin(angles)
        x, y, z = directions.T
        voigt = np.stack([x * x, y * y, z * z, y * z, x * z, x * y])  # stress of a pull along the direction
        axes.plot(angles, 1 / np.einsum("an,ab,bn->n", voigt, compliance, voigt), color=COLORS["stress"])
        if result.moduli is not None:
            axes.plot(angles, np.full_like(angles, result.moduli.young_gpa), color=INK, lw=0.8, ls="--")
        axes.set_title(f"{name} plane", loc="center")
        axes.set_ylim(bottom=0)
    figure.suptitle("Young's modulus by direction (GPa); dashed: polycrystal", fontsize=10)
    return figure


@styled
def phonon_plot(result: PhononResult) -> Figure:
    """Bands along the path, with the density of states beside them; imaginary frequencies are below zero."""
    figure = new_figure(7.6, 4.2)
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    ticks: dict[float, str] = {}
    previous = ""
    for band in result.bands:
        axes.plot(band.distances, band.frequencies_thz, color=COLORS["energy"], lw=1.1)
        first, last = float(band.distances[0]), float(band.distances[-1])
        jump = previous and previous != band.labels[0]
        ticks[first] = f"{previous}|{band.labels[0]}" if jump else band.labels[0]
        ticks[last] = previous = band.labels[1]
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, float(result.bands[-1].distances[-1]))
    for panel in (axes, side):
        panel.axhline(0, color=INK, lw=0.7)
    side.fill_betweenx(result.dos_thz, result.dos, color=COLORS["energy"], alpha=0.3, lw=0)
    side.plot(result.dos, result.dos_thz, color=COLORS["energy"], lw=1.0)
    side.set_xlim(left=0)
    side.set_xlabel("states (1/THz)")
    axes.set_ylabel("frequency (THz)")
    stable = "stable" if result.stable else f"imaginary down to {result.lowest_thz:.2f} THz"
    axes.set_title(f"phonons of {result.atoms.get_chemical_formula()} · {stable}")
    return figure


@styled
def thermal_plot(result: PhononResult) -> Figure:
    """Free energy, entropy and heat capacity over temperature, in the harmonic approximation."""
    thermal = result.thermal
    figure = new_figure(5.4, 3.4)
    axes = figure.subplots()
    axes.plot(thermal.temperatures_k, thermal.free_energy_kj_per_mol, label="free energy (kJ/mol)", color=INK)
    axes.plot(
        thermal.temperatures_k,
        thermal.entropy_j_per_k_per_mol,
        label="entropy (J/K/mol)",
        color=COLORS["stress"],
    )
    axes.plot(
        thermal.temperatures_k,
        thermal.heat_capacity_j_per_k_per_mol,
        label="heat capacity (J/K/mol)",
        color=COLORS["forces"],
    )
    axes.set_xlabel("temperature (K)")
    axes.set_title(f"per mole of {result.atoms.get_chemical_formula()}")
    axes.legend(fontsize=8.5)
    return figure


@styled
def conductivity_plot(result: ConductivityResult) -> Figure:
    """Conductivity over temperature by direction, and at the temperature nearest to 300 K over the mesh."""
    figure = new_figure(7.6, 3.4)
    left, right = figure.subplots(1, 2)
    solutions = [("relaxation time", result.relaxation_time, "--")]
    if result.full is not None:
        solutions.append(("full solution", result.full, "-"))
    at = int(np.abs(result.temperatures_k - 300).argmin())
    inverse = [float(np.prod(mesh)) ** (-1 / 3) for mesh in result.meshes]
    for name, values, style in solutions:
        for k, (axis, color) in enumerate(zip("xyz", ("energy", "forces", "stress"), strict=True)):
            label = f"{axis}{axis}, {name}"
            left.plot(result.temperatures_k, values[-1][:, k], style, color=COLORS[color], label=label)
        right.plot(inverse, values[:, at, :3].mean(axis=1), style, marker="o", ms=4, color=INK, label=name)
    left.set(xlabel="temperature (K)", ylabel="conductivity (W/m/K)", xscale="log", yscale="log")
    left.legend(fontsize=7.5)
    right.set(xlabel="1 / q-points along a vector", ylabel="conductivity (W/m/K)")
    right.set_xlim(left=0)
    right.set_title(f"convergence at {result.temperatures_k[at]:g} K")
    right.legend(fontsize=8)
    left.set_title("lattice conductivity")
    return figure


@styled
def expansion_plot(result: ExpansionResult) -> Figure:
    """Volume, linear expansion coefficient, bulk modulus and heat capacity over temperature."""
    figure = new_figure(7.6, 5.2)
    t = result.temperatures_k
    errors = result.volume_error_ang3, result.expansion_error_per_k, result.bulk_modulus_error_gpa, None
    panels = (
        ("volume (Å³ per primitive cell)", result.volume_ang3, 1.0, "energy"),
        ("linear expansion (10⁻⁶/K)", result.expansion_per_k, 1e6 / 3, "forces"),
        ("bulk modulus (GPa)", result.bulk_modulus_gpa, 1.0, "stress"),
        ("heat capacity at constant pressure (J/K/mol)", result.heat_capacity_j_per_k_per_mol, 1.0, "other"),
    )
    for axes, (title, values, factor, color), error in zip(
        figure.subplots(2, 2).ravel(), panels, errors, strict=True
    ):
        if error is None:
            axes.plot(t, factor * values, color=COLORS[color], marker="o" if len(t) < 12 else "", ms=4)
        else:
            axes.errorbar(
                t, factor * values, factor * error, color=COLORS[color], marker="o", ms=4, capsize=3
            )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("temperature (K)")
        axes.ticklabel_format(axis="y", useOffset=False)
    return figure
