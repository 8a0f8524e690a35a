"""What a run of molecular dynamics says about itself: means and drift, order and motion, method and convergence."""

from __future__ import annotations

from typing import Any

import numpy as np

from equipes.simulate.observables import Observables
from equipes.simulate.records import Row
from equipes.simulate.results import Check, Provenance, plain
from equipes.simulate.settings import MDSettings
from equipes.simulate.statistics import blocking_error, drift, mean_with_error

# The part at the start of a run that means leave out, while potential and kinetic energy come to terms.
SETTLING = 0.2
_DRIFT_LIMIT = 1.0  # meV per atom in a picosecond
_STANDARD_ERRORS = 3.0  # that chance does not exceed once in three hundred times

_VERLET = "L. Verlet, Phys. Rev. 159, 98 (1967)"
_BAOAB = "B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102 (2013)"
_METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nve": ("velocity Verlet at constant energy", (_VERLET,)),
    "nvt": (
        "velocity Verlet with stochastic velocity rescaling",
        ("G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007)",),
    ),
    "nvt-nose-hoover": (
        "velocity Verlet with a chain of three Nosé-Hoover thermostats",
        ("G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992)",),
    ),
    "nvt-langevin": ("Langevin dynamics (BAOAB)", (_BAOAB,)),
    "npt": (
        "Langevin dynamics of atoms and cell (BAOAB)",
        ("D. Quigley, M. I. J. Probert, J. Chem. Phys. 120, 11432 (2004)", _BAOAB),
    ),
}
_BLOCKING = "H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989)"


def summarize(rows: list[Row], n_atoms: int) -> dict[str, Any]:
    """The physics of a run from its table.

    Means and their errors (by blocking) leave out the first fifth of the rows; the drift is the slope of the conserved
    energy over all of them, by least squares.
    """
    kept = _kept(rows)
    temperature, temperature_error = mean_with_error([row.temperature_k for row in kept])
    conserved = [row.conserved_energy_ev for row in rows if row.conserved_energy_ev is not None]
    slope = drift([row.time_fs / 1000 for row in rows], conserved) if len(conserved) == len(rows) else None
    summary = {
        "mean_temperature_k": temperature,
        "mean_temperature_k_error": temperature_error,
        "mean_potential_energy_ev": mean_with_error([row.potential_energy_ev for row in kept])[0],
        "means_from_fs": kept[0].time_fs if kept else None,
        "energy_drift_mev_per_atom_per_ps": None if slope is None else 1000 * slope / n_atoms,
    }
    for name in ("volume_ang3", "pressure_gpa"):
        values = [getattr(row, name) for row in kept]
        if values and None not in values:
            summary[f"mean_{name}"], summary[f"mean_{name}_error"] = mean_with_error(values)
    return summary


def observed(observables: Observables, interval_fs: float) -> dict[str, Any]:
    """Radial distributions and mean-square displacements taken on the way, as plain JSON values."""
    lags, displacements = observables.displacements.result()
    return {
        "radial_distributions": [
            {**plain(found), "coordination": found.coordination}
            for found in observables.radial_distributions()
        ],
        "mean_square_displacement": {
            "lags_ps": (lags * interval_fs / 1000).tolist(),
            "ang2": {symbol: values.tolist() for symbol, values in displacements.items()},
        },
    }


def provenance(settings: MDSettings, rows: list[Row], n_atoms: int) -> Provenance:
    """How the run was done, whom to cite, and whether step and length were short and long enough."""
    how, citations = _METHODS[settings.kind]
    checks, warnings = [], []
    slope = summarize(rows, n_atoms)["energy_drift_mev_per_atom_per_ps"]
    if slope is not None:
        checks.append(Check("1 ps more: the conserved energy per atom", abs(slope), _DRIFT_LIMIT, "meV"))
    elif settings.kind in ("nvt-langevin", "npt"):
        warnings.append(
            "Langevin dynamics conserves no energy that would tell whether the time step is short enough; run the"
            " same step in nve to see"
        )
    if settings.ramps:
        warnings.append(
            "the target changes on the way: means and distributions are over all that was passed through"
        )
    else:
        checks += _stationary(rows, n_atoms)
        if len(checks) < 1 + (slope is not None):
            warnings.append("the run is too short to tell whether it is in equilibrium; give more --steps")
    kept = rows[-1].time_fs - _kept(rows)[0].time_fs if rows else 0.0
    method = (
        f"Molecular dynamics of {n_atoms} atoms, {how}, {settings.timestep:g} fs a step; means over the last"
        f" {kept / 1000:.4g} ps, their errors by blocking"
    )
    return Provenance(method, (*citations, _BLOCKING), tuple(checks), tuple(warnings))


def _stationary(rows: list[Row], n_atoms: int) -> list[Check]:
    """Whether the halves of what is kept agree within their errors; nothing for too short a run."""
    kept = _kept(rows)
    found = []
    for name, per, what, unit in (
        ("potential_energy_ev", n_atoms / 1000, "the mean potential energy per atom", "meV"),
        ("volume_ang3", n_atoms, "the mean volume per atom", "Å³"),
    ):
        values = [getattr(row, name) for row in kept]
        if None in values or (name == "volume_ang3" and np.ptp(values or [0.0]) == 0):
            continue
        half = len(values) // 2
        one, two = np.array(values[:half]), np.array(values[half:])
        # A drift within the halves shall not pass for their correlation.
        errors = [blocking_error(part) for part in (one, two)]
        if None in errors:
            continue
        limit = _STANDARD_ERRORS * float(np.linalg.norm(np.array(errors, dtype=float))) / per
        found.append(
            Check(
                f"the second half of the run instead of the first: {what}",
                float(abs(two.mean() - one.mean())) / per,
                limit,
                unit,
            )
        )
    return found


def _kept(rows: list[Row]) -> list[Row]:
    return rows[int(np.ceil(SETTLING * len(rows))) if len(rows) > 1 else 0 :]
