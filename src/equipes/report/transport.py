"""Figures of motion: mean-square displacements, radial distributions, Arrhenius lines, paths of reactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, INK, new_figure, styled

if TYPE_CHECKING:
    from equipes.simulate.diffusion import ArrheniusResult, DiffusionResult
    from equipes.simulate.melt_quench import MeltQuenchResult
    from equipes.simulate.neb import NEBResult


@styled
def msd_plot(results: Sequence[DiffusionResult]) -> Figure:
    """Mean-square displacement over the lag, by direction, with the fitted line; a panel for each temperature."""
    figure = new_figure(3.8 * min(len(results), 3), 3.1 * -(-len(results) // 3))
    panels = figure.subplots(-(-len(results) // 3), min(len(results), 3), squeeze=False).ravel()
    for axes, result in zip(panels, results, strict=False):
        total = result.msd_ang2.sum(axis=1)
        for k, color in enumerate(("energy", "forces", "stress")):
            axes.plot(result.lags_ps, result.msd_ang2[:, k], color=COLORS[color], lw=0.9, label="xyz"[k])
        axes.plot(result.lags_ps, total, color=INK, label="all")
        inside = (result.lags_ps >= result.window_ps[0]) & (result.lags_ps <= result.window_ps[1])
        axes.plot(
            result.lags_ps[inside],
            np.poly1d(np.polyfit(result.lags_ps[inside], total[inside], 1))(result.lags_ps[inside]),
            color=COLORS["other"],
            lw=3,
            alpha=0.5,
            label="fit",
        )
        axes.set(xlabel="lag (ps)", ylabel=f"mean-square displacement of {result.mobile} (Å²)")
        axes.set_ylim(bottom=0)
        value, error = result.diffusion_cm2_per_s, result.diffusion_error
        axes.set_title(f"{result.temperature_k:.0f} K · D = {value:.2e} ± {error:.0e} cm²/s", fontsize=9)
        axes.legend(fontsize=7.5, ncols=2)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    return figure


@styled
def arrhenius_plot(results: Sequence[DiffusionResult], line: ArrheniusResult) -> Figure:
    """Diffusion coefficients over the inverse temperature, with the line through them down to 300 K."""
    figure = new_figure(4.8, 3.6)
    axes = figure.subplots()
    temperatures = np.array([result.temperature_k for result in results])
    values = np.array([result.diffusion_cm2_per_s for result in results])
    errors = np.array([result.diffusion_error for result in results])
    # Down to zero there is no logarithm: a bar that reaches it ends at the bottom of the figure.
    lower = np.minimum(errors, 0.95 * values)
    axes.errorbar(
        1000 / temperatures, values, yerr=[lower, errors], fmt="o", ms=5, capsize=3, color=COLORS["forces"]
    )
    inverse = np.linspace(1000 / temperatures.max() * 0.95, 1000 / 300.0, 50)
    curve = line.prefactor_cm2_per_s * np.exp(-line.activation_energy_ev * inverse / (1000 * units.kB))
    axes.plot(inverse, curve, color=INK, lw=1)
    axes.set(xlabel="1000 / temperature (1/K)", ylabel="diffusion coefficient (cm²/s)", yscale="log")
    axes.set_title(f"Ea = {line.activation_energy_ev:.3f} ± {line.activation_energy_error:.3f} eV")
    return figure


@styled
def neb_plot(result: NEBResult) -> Figure:
    """Energy along the path: the images, and the spline through their energies and slopes."""
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.plot(result.curve_distances_ang, result.curve_energies_ev, color=COLORS["energy"])
    axes.plot(result.distances_ang, result.energies_ev, "o", color=COLORS["forces"], ms=5)
    axes.axhline(result.barrier_ev, color=COLORS["quiet"], lw=0.9, ls="--")
    axes.set(xlabel="path (Å)", ylabel="energy (eV)")
    axes.set_title(f"barrier {result.barrier_ev:.3f} eV, back {result.reverse_barrier_ev:.3f} eV")
    return figure


@styled
def rdf_plot(result: MeltQuenchResult) -> Figure:
    """Radial distributions of the melt and of the glass, a panel for each pair of elements."""
    count = len(result.glass)
    figure = new_figure(3.4 * min(count, 3), 2.8 * -(-count // 3))
    panels = figure.subplots(-(-count // 3), min(count, 3), squeeze=False).ravel()
    for axes, melt, glass in zip(panels, result.melt, result.glass, strict=False):
        axes.plot(melt.distances_ang, melt.values, color=COLORS["forces"], lw=0.9, label="melt")
        axes.plot(glass.distances_ang, glass.values, color=COLORS["energy"], label="glass")
        axes.axvline(glass.minimum_ang, color=COLORS["quiet"], lw=0.8, ls="--")
        axes.set_title(f"{'-'.join(glass.pair)} · {glass.coordination:.2f} neighbours", fontsize=9)
        axes.set(xlabel="distance (Å)", ylabel="g(r)")
        axes.legend(fontsize=8)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure


@styled
def observed_plot(summary: Mapping[str, Any]) -> Figure:
    """What a run of dynamics noted on the way, from its md.json: radial distributions, mean-square displacements."""
    distributions = summary["radial_distributions"]
    displacements = summary["mean_square_displacement"]
    figure = new_figure(7.6 if distributions else 4.2, 3.2)
    *left, right = figure.subplots(1, 2 if distributions else 1, squeeze=False)[0]
    if left:
        for found in distributions:
            left[0].plot(found["distances_ang"], found["values"], lw=1.1, label="-".join(found["pair"]))
        left[0].axhline(1, color=INK, lw=0.7, ls="--")
        left[0].set(xlabel="distance (Å)", ylabel="g(r)")
        left[0].set_ylim(bottom=0)
        left[0].legend(fontsize=8)
    for symbol, values in displacements["ang2"].items():
        right.plot(displacements["lags_ps"], values, marker=".", ms=3, lw=1.0, label=symbol)
    right.set(xlabel="lag (ps)", ylabel="mean-square displacement (Å²)")
    if displacements["lags_ps"]:
        right.set(xscale="log", yscale="log")
        right.legend(fontsize=8)
    return figure
