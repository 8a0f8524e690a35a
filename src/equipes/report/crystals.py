"""Figures of crystals: the elastic tensor, phonons, heat conduction, thermal expansion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, INK, new_figure, styled

if TYPE_CHECKING:
    from equipes.simulate.elastic import ElasticResult


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
