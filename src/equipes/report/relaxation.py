"""The way of a relaxation: energy, largest force and stress by step, and the structures it went through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ase
import numpy as np
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, new_figure, save, styled
from equipes.report.workflow import write_workflow_page

if TYPE_CHECKING:
    from equipes.simulate.results import Provenance

_SHOWN = 30  # structures that the slider has, at most


@styled
def relaxation_plot(energies: Sequence[float], limits: Sequence[tuple[float, float | None]]) -> Figure:
    """Energy (eV) over the last, largest force (eV/Å) and stress deviation (GPa) by step."""
    figure = new_figure(6.4, 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = np.arange(len(energies))
    upper.plot(steps, np.asarray(energies) - energies[-1], color=COLORS["energy"], marker=".")
    upper.set_title("energy above the last (eV)", fontsize=9)
    lower.semilogy(
        steps,
        [max(force, 1e-12) for force, _ in limits],
        color=COLORS["forces"],
        label="largest force (eV/Å)",
    )
    stresses = [stress for _, stress in limits if stress is not None]
    if len(stresses) == len(limits):
        lower.semilogy(
            steps, np.maximum(stresses, 1e-12), color=COLORS["stress"], label="stress + pressure (GPa)"
        )
    lower.legend(fontsize=8)
    lower.set_xlabel("step")
    return figure


def write_relaxation_page(
    path: Path,
    rows: Iterable[tuple[str, object]],
    images: Sequence[ase.Atoms],
    limits: Sequence[tuple[float, float | None]],
    provenance: Provenance,
    *,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML file, and the plot beside it as PNG."""
    energies = [float(image.get_potential_energy()) for image in images]
    figure = relaxation_plot(energies, limits)
    save(figure, path.with_suffix(".png"), overwrite=overwrite)
    chosen = sorted({int(k) for k in np.linspace(0, len(images) - 1, min(len(images), _SHOWN)).round()})
    shown = []
    for k in chosen:
        shown.append(images[k].copy())
        shown[-1].info = {"label": f"step {k}, {energies[k]:.4f} eV"}
    write_workflow_page(
        path,
        title=f"relax: {images[-1].get_chemical_formula()}",
        subtitle=str(path.stem),
        rows=rows,
        figures={"the way of the relaxation": figure},
        structures=shown,
        provenance=provenance,
        overwrite=overwrite,
    )
