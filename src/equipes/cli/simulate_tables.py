"""What the simulation commands print when they are done: lines of name and value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def relax_lines(summary: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """A relaxation, from `RelaxResult.summary`."""
    yield "converged", f"{'yes' if summary['converged'] else 'no'}, after {summary['steps']} steps"
    before, after = summary["energy_before_ev"], summary["energy_ev"]
    change = 1000 * (after - before) / summary["n_atoms"]
    yield "energy", f"{after:.6f} eV (changed by {change:+.3f} meV/atom)"
    yield "largest force", f"{summary['max_force_ev_per_ang']:.4g} eV/Å"
    if summary["cell_relaxed"]:
        yield "stress off by", f"{summary['max_stress_deviation_gpa']:.3g} GPa, at most"
        ratio = summary["volume_ang3"] / summary["volume_before_ang3"] - 1
        yield "volume", f"{summary['volume_ang3']:.4f} Å³ ({100 * ratio:+.3f} %)"
        yield "cell", " ".join(f"{value:.4f}" for value in summary["cell"]) + " (Å, °)"
    if summary["spacegroup"] is not None:
        yield "space group", f"{summary['spacegroup_before']} → {summary['spacegroup']}"


def md_lines(summary: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Molecular dynamics, from `MDResult.summary`."""
    yield "steps", f"{summary['steps']} ({summary['time_fs'] / 1000:.4g} ps)"
    if summary["steps_per_second"] is not None:
        nanoseconds = summary["steps_per_second"] * summary["settings"]["timestep"] * 86400e-6
        yield "speed", f"{summary['steps_per_second']:.4g} steps/s, {nanoseconds:.3g} ns/day"
    start = f"from {summary['means_from_fs'] / 1000:.4g} ps on"
    for name, label, unit in (
        ("temperature_k", "mean temperature", "K"),
        ("pressure_gpa", "mean pressure", "GPa"),
        ("volume_ang3", "mean volume", "Å³"),
    ):
        mean, error = summary.get(f"mean_{name}"), summary.get(f"mean_{name}_error")
        if mean is not None:
            yield label, f"{mean:.6g}{'' if error is None else f' ± {error:.2g}'} {unit}, {start}"
    if summary["energy_drift_mev_per_atom_per_ps"] is not None:
        yield "energy drift", f"{summary['energy_drift_mev_per_atom_per_ps']:+.4g} meV/atom/ps"
    for found in summary["radial_distributions"]:
        yield (
            f"g(r) of {'-'.join(found['pair'])}",
            f"peak at {found['peak_ang']:.3f} Å, {found['coordination']:.2f} neighbours within"
            f" {found['minimum_ang']:.3f} Å",
        )
    lags = summary["mean_square_displacement"]["lags_ps"]
    for symbol, values in summary["mean_square_displacement"]["ang2"].items():
        if lags:
            yield f"moved, {symbol}", f"{values[-1] ** 0.5:.3f} Å in {lags[-1]:.4g} ps, root mean square"
