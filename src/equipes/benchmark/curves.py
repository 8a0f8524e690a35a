"""Learning curves: errors against the number of frames, both on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from equipes.benchmark.runs import Row
from equipes.benchmark.tables import published
from equipes.report.figures import COLORS, new_figure, plain_log_axis, save, styled


@styled
def learning_curves(rows: Sequence[Row], path: Path) -> Figure:
    """Force errors, a panel for each molecule, a line for each architecture; published NequIP and MACE as crosses."""
    systems = list(dict.fromkeys(row.system for row in rows))
    architectures = list(dict.fromkeys(row.model for row in rows))
    columns = min(3, len(systems))
    height = math.ceil(len(systems) / columns)
    figure = new_figure(3.4 * columns, 3.0 * height)
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for panel in panels[len(systems) :]:
        panel.set_visible(False)
    for panel, system in zip(panels, systems, strict=False):
        for architecture, color in zip(architectures, _colors(len(architectures)), strict=True):
            points = sorted(
                (row.n_train, row.errors["forces_mae_mev_per_ang"])
                for row in rows
                if row.system == system and row.model == architecture
            )
            panel.plot(*zip(*points, strict=True), "o-", color=color, lw=1.4, ms=4, label=architecture)
        for model, color in (("NequIP", "0.3"), ("MACE", "0.6")):
            known = published()["rmd17"]["frames"]
            crosses = [
                (int(n), known[n][system][model][1]) for n in known if model in known[n].get(system, {})
            ]
            if crosses:
                panel.plot(*zip(*crosses, strict=True), "x", color=color, ms=7, label=f"{model}, published")
        panel.set(xscale="log", title=system, xlabel="training frames", ylabel="force MAE, meV/Å")
        plain_log_axis(panel)
        ticks = sorted({row.n_train for row in rows if row.system == system})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
    panels[0].legend()
    save(figure, path, overwrite=True)
    return figure


def _colors(count: int) -> list[str]:
    palette = list(COLORS.values())
    return [palette[index % len(palette)] for index in range(count)]
