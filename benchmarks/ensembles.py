"""Do the ensembles sample what they claim? Energy drift, temperatures and their spread, pressure and volume.

    python benchmarks/ensembles.py --out ensembles                                   copper and water by EMT
    python benchmarks/ensembles.py --model si_run/model.safetensors --crystal Si --molecule '' --out ensembles
    python benchmarks/ensembles.py --model ethanol.safetensors --crystal '' --molecule CH3CH2OH --out ensembles

For a crystal (a cube of its conventional cells) and a molecule, and every ensemble and thermostat:

- drift: the slope of the conserved energy;
- kinetic temperature, and its variance over that of the canonical distribution, 2 T² / f with f degrees of freedom (in
  nve the kinetic energy may not have it);
- configurational temperature <|F|²> / <∇²U> (H. H. Rugh, Phys. Rev. Lett. 78, 772, 1997; B. D. Butler et al., J. Chem.
  Phys. 109, 6519, 1998), which knows nothing of velocities; the Laplacian by random directions, in every fourth frame;
- npt: the mean pressure, kinetic part included, and the bulk modulus k T V / var(V) beside the slope of the mean volume
  over two pressures.

OUT/ensembles.md is the table and OUT/ensembles.json its numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import machine
import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from equipes.calculators import Calculator
from equipes.simulate import MDSettings, relax, run_md
from equipes.simulate.records import TABLE, TRAJECTORY, read_table
from equipes.simulate.statistics import mean_with_error

KINDS: dict[str, dict[str, Any]] = {
    "nve": {"ensemble": "nve"},
    "nvt, velocity rescaling": {"ensemble": "nvt"},
    "nvt, Nosé-Hoover": {"ensemble": "nvt", "thermostat": "nose-hoover"},
    "nvt, Langevin": {"ensemble": "nvt", "thermostat": "langevin"},
    "npt": {"ensemble": "npt"},
    "npt, lengths": {"ensemble": "npt", "flexible_lengths": True},
    "npt, shape": {"ensemble": "npt", "flexible_cell": True},
}
PRESSURES = (-0.5, 0.5)  # GPa, of the two runs whose volumes give the bulk modulus


def configurational_temperature(frames: list[Atoms], calculator: Any) -> tuple[float, float]:
    """K, and its standard error."""
    rng = np.random.default_rng(0)
    squares, laplacians = [], []
    step = 1e-3
    for frame in frames:
        squares.append(float((frame.get_forces() ** 2).sum()))
        direction = rng.choice([-1.0, 1.0], size=frame.positions.shape)
        ends = []
        for side in (1, -1):
            moved = Atoms(
                frame.numbers, frame.positions + side * step * direction, cell=frame.cell, pbc=frame.pbc
            )
            moved.calc = calculator
            ends.append(moved.get_forces())
        laplacians.append(float(-(direction * (ends[0] - ends[1])).sum() / (2 * step)))
    above, above_error = mean_with_error(squares)
    below, below_error = mean_with_error(laplacians)
    assert above and below
    relative = np.hypot((above_error or 0.0) / above, (below_error or 0.0) / below)
    return above / below / units.kB, float(above / below / units.kB * relative)


def measured(atoms: Atoms, calculator: Any, settings: MDSettings, out: Path) -> dict[str, Any]:
    """What one run has to say."""
    result = run_md(atoms, calculator, settings, out, overwrite=True)
    rows = read_table(out / TABLE)
    rows = rows[len(rows) // 5 :]
    kinetic = np.array([row.temperature_k for row in rows])
    degrees = result.summary["degrees_of_freedom"]
    mean = result.summary["mean_temperature_k"]
    spread, spread_error = mean_with_error(list((kinetic - kinetic.mean()) ** 2))
    canonical = 2 * mean**2 / degrees
    frames = ase.io.read(out / TRAJECTORY, index=":")
    conf, conf_error = configurational_temperature(frames[len(frames) // 5 :: 4], calculator)
    found = {
        "drift": result.summary["energy_drift_mev_per_atom_per_ps"],
        "temperature": [mean, result.summary["mean_temperature_k_error"]],
        "variance": [spread / canonical, (spread_error or 0.0) / canonical],
        "configurational": [conf, conf_error],
    }
    if settings.ensemble == "npt":
        volumes = np.array([row.volume_ang3 for row in rows], dtype=float)
        volume, error = mean_with_error(list(volumes))
        square, square_error = mean_with_error(list((volumes - volumes.mean()) ** 2))
        modulus = units.kB * (settings.temperature or 0.0) * volume / square / units.GPa
        found["pressure"] = [result.summary["mean_pressure_gpa"], result.summary["mean_pressure_gpa_error"]]
        found["volume"] = [volume, error]
        found["modulus"] = [modulus, modulus * (square_error or 0.0) / square]
    return found


def rows_of(done: dict[str, Any], temperature: float) -> Iterator[str]:
    """The table."""
    yield (
        "| system | ensemble | drift, meV/atom/ps | T, K | var(T) / canonical | configurational T, K | pressure, GPa"
        " | bulk modulus, GPa |"
    )
    yield "|---" * 8 + "|"
    for system, runs in done["systems"].items():
        for name, run in runs.items():
            if not isinstance(run, dict):
                continue
            drift = "" if run["drift"] is None else f"{run['drift']:+.4f}"
            cells = [
                f"{value[0]:.4g} ± {value[1] or float('nan'):.2g}" if value else ""
                for value in (
                    run["temperature"],
                    run["variance"],
                    run["configurational"],
                    run.get("pressure"),
                    run.get("modulus"),
                )
            ]
            yield f"| {system} | {name} | {drift} | {' | '.join(cells)} |"
        if "by two pressures" in runs:
            value, error = runs["by two pressures"]
            yield f"| {system} | npt, by two pressures | | | | | | {value:.4g} ± {error:.2g} |"
    yield ""
    yield f"Target: {temperature:g} K, 0 GPa. {machine.sentence(done['conditions'])}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="name or file of a potential; EMT without")
    parser.add_argument("--crystal", default="Cu", help="'' for none")
    parser.add_argument("--cells", type=int, default=2, help="conventional cells along each vector")
    parser.add_argument("--molecule", default="H2O", help="a name ASE knows; '' for none")
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--timestep", type=float, default=4.0, help="fs, of the crystal")
    parser.add_argument("--molecule-timestep", type=float, default=0.5, help="fs, of the molecule")
    parser.add_argument("--out", type=Path, default=Path("ensembles"))
    options = parser.parse_args()
    calculator = Calculator(options.model, dtype="float64", freeze=True) if options.model else EMT()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "ensembles.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"systems": {}}
    systems: dict[str, Atoms] = {}
    if options.crystal:
        systems[options.crystal] = bulk(options.crystal, cubic=True) * ((options.cells,) * 3)
    if options.molecule:
        systems[options.molecule] = molecule(options.molecule)
    for system, atoms in systems.items():
        runs = done["systems"].setdefault(system, {})
        crystal = bool(atoms.pbc.all())
        start = relax(atoms, calculator, fmax=0.005).atoms
        common: dict[str, Any] = {
            "steps": options.steps,
            "timestep": options.timestep if crystal else options.molecule_timestep,
            "interval": 4,
            "thermostat_time": 40.0,
            "seed": 1,
        }
        for name, kind in KINDS.items():
            if name in runs or (kind["ensemble"] == "npt" and not crystal):
                continue
            # From rest half of the energy becomes potential energy.
            kelvin = options.temperature * (2 if kind["ensemble"] == "nve" else 1)
            pressing = {"barostat_time": 200.0} if kind["ensemble"] == "npt" else {}
            settings = MDSettings(**kind, **common, **pressing, temperature=kelvin)
            runs[name] = measured(start, calculator, settings, options.out / "run")
            done["conditions"] = machine.conditions(("equipes", "ase", "torch"))
            path.write_text(json.dumps(done, indent=1) + "\n")
            print(system, name, runs[name], flush=True)
        if crystal and "by two pressures" not in runs:
            ends = []
            for pressure in PRESSURES:
                settings = MDSettings(
                    "npt", **common, barostat_time=200.0, temperature=options.temperature, pressure=pressure
                )
                ends.append(measured(start, calculator, settings, options.out / "run")["volume"])
            (one, e_one), (two, e_two) = ends
            change = np.log(one / two)
            modulus = (PRESSURES[1] - PRESSURES[0]) / change
            runs["by two pressures"] = [modulus, modulus * np.hypot(e_one / one, e_two / two) / change]
            path.write_text(json.dumps(done, indent=1) + "\n")
    text = "\n".join(rows_of(done, options.temperature)) + "\n"
    (options.out / "ensembles.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
