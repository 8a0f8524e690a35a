"""Figures of heat conduction by dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from equipes.report.figures import COLORS, INK, new_figure, styled

if TYPE_CHECKING:
    from equipes.simulate.green_kubo import GreenKuboResult
    from equipes.simulate.hnemd import HNEMDResult


@styled
def green_kubo_plot(result: GreenKuboResult) -> Figure:
    """Correlation of the flux, the conductivity as its integral grows, and the spectrum that ends in it."""
    figure = new_figure(10.2, 3.3)
    first, second, third = figure.subplots(1, 3)
    times = result.times_ps
    first.plot(times[1:], result.correlation[1:], color=COLORS["forces"], lw=0.9)
    first.axhline(0, color=INK, lw=0.7)
    first.set(xlabel="time (ps)", xscale="log", title="correlation of the heat flux")
    first.xaxis.set_minor_formatter(NullFormatter())  # its labels run into each other
    low, high = result.running - result.running_error, result.running + result.running_error
    second.fill_between(times, low, high, color=COLORS["energy"], alpha=0.25, lw=0)
    second.plot(times, result.running, color=COLORS["energy"])
    second.axvline(result.cutoff_ps, color=INK, lw=0.8, ls="--", label=f"cutoff {result.cutoff_ps:.3g} ps")
    second.errorbar(
        [0],
        [result.cepstral],
        [result.cepstral_error],
        fmt="o",
        ms=4,
        capsize=3,
        color=COLORS["stress"],
        label="cepstral analysis",
    )
    second.set(
        xlabel="integrated to (ps)", ylabel="conductivity (W/m/K)", title=f"{result.temperature_k:.0f} K"
    )
    second.legend(fontsize=7.5)
    third.plot(result.frequencies_thz, result.spectrum, color=COLORS["forces"], lw=0.8, alpha=0.6)
    third.plot(result.frequencies_thz, result.smooth_spectrum, color=COLORS["stress"], label="smoothed")
    third.set(xlabel="frequency (THz)", yscale="log", title="spectrum (W/m/K)")
    third.legend(fontsize=7.5)
    return figure


@styled
def hnemd_plot(result: HNEMDResult) -> Figure:
    """The conductivity as the mean of the driven flux goes on, for both fields."""
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    for field, value, error, running, color in zip(
        result.fields,
        result.at_field,
        result.at_field_error,
        result.running,
        (COLORS["energy"], COLORS["stress"]),
        strict=True,
    ):
        axes.plot(
            result.times_ps, running, color=color, label=f"field {field:.3g}/Å: {value:.3g} ± {error:.1g}"
        )
    axes.axhline(result.conductivity, color=INK, lw=0.8, ls="--")
    axes.axhspan(
        result.conductivity - result.error, result.conductivity + result.error, color=INK, alpha=0.12, lw=0
    )
    # What the first moments say is noise that would fill the axes.
    settled = result.running[:, len(result.times_ps) // 10 :]
    room = 0.3 * float(settled.max() - settled.min()) + 1e-9
    axes.set_ylim(float(settled.min()) - room, float(settled.max()) + room)
    axes.set(
        xlabel="time (ps)", ylabel="conductivity (W/m/K)", title=f"driven flux, {result.temperature_k:.0f} K"
    )
    axes.legend(fontsize=8)
    return figure
