"""The energy of a crystal over its volume."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, new_figure, save, styled

if TYPE_CHECKING:
    from equipes.simulate import EquationOfStateResult


@styled
def equation_of_state_plot(
    result: EquationOfStateResult,
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Figure:
    """The calculated points and the Birch-Murnaghan curve, per atom; written to `path` (.png, .svg, .pdf) if given."""
    n_atoms = len(result.atoms)
    volumes = np.linspace(result.volumes_ang3.min(), result.volumes_ang3.max(), 200)
    figure = new_figure(4.8, 3.4)
    axes = figure.subplots()
    for x, y, style in (
        (volumes, result.energies_at(volumes), {"color": COLORS["energy"], "lw": 1.5}),
        (result.volumes_ang3, result.energies_ev, {"color": COLORS["forces"], "marker": "o", "ls": ""}),
    ):
        axes.plot(x / n_atoms, 1000 * (y - result.energy_ev) / n_atoms, **style)
    axes.axvline(result.volume_ang3 / n_atoms, color=COLORS["quiet"], lw=0.9, ls="--")
    constants = ", ".join(
        f"{name} = {value:.4f} Å" for name, value in result.lattice_constants.items() if name in "abc"
    )
    axes.set_title(f"{result.lattice} {constants} · B = {result.bulk_modulus_gpa:.1f} GPa")
    axes.set_xlabel("volume per atom (Å³)")
    axes.set_ylabel("energy above the minimum (meV/atom)")
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure
