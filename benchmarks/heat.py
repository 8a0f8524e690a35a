"""Heat: what a flux costs, Green-Kubo, driven atoms and phonons in one and the same cell, a strained film, a glass.

    python benchmarks/heat.py cost --model si.safetensors
    python benchmarks/heat.py silicon --model si.safetensors --cells 2 --picoseconds 100 --out heat
    python benchmarks/heat.py modes --model si.safetensors --cells 2 --picoseconds 40 --runs 4 --out heat
    python benchmarks/heat.py driven --model si.safetensors --cells 2 --picoseconds 5 --runs 1 --out heat
    python benchmarks/heat.py film --model 7net-0 --out heat
    python benchmarks/heat.py glass --model silica.safetensors --structure glass.extxyz --picoseconds 50 --out heat

Each prints its numbers with the conditions they were measured under, and keeps them in OUT/CASE.json. `silicon`,
`driven` and `glass` continue where they were stopped, and a second call with more `--runs` adds to what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import machine
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from heat_modes import CLASSICAL, lifetimes, three_phonons

from equipes.calculators import Calculator
from equipes.simulate import Store, relax
from equipes.simulate.conductivity import ConductivityOptions, conductivity
from equipes.simulate.ensembles import thermal_momenta
from equipes.simulate.green_kubo import GreenKuboOptions, GreenKuboResult, green_kubo
from equipes.simulate.heat_flux import FluxOf
from equipes.simulate.hnemd import HNEMDOptions, hnemd


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of processor time of a step of dynamics and of a flux, by atoms and by frames in a batch."""
    return {"processor milliseconds": [_costs(options.model, cells) for cells in (2, 3)]}


def _costs(model: str, cells: int) -> dict[str, float]:
    calculator, exact = Calculator(model), Calculator(model, exact=True)
    atoms = bulk("Si", a=5.46, cubic=True) * (cells, cells, cells)
    atoms.calc = calculator
    thermal_momenta(atoms, 1000.0, "nve", np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    frames = []
    for _ in range(4):
        dynamics.step()
        frames.append(atoms.copy())
    flux_of = FluxOf(calculator)
    return {
        "atoms": len(atoms),
        "step": _best(dynamics.step, 20),
        "forces, not frozen": _best(lambda: exact.calculate(atoms, ["forces"]), 3),
        "flux": _best(lambda: flux_of(frames[:1]), 3),
        "flux, one of four in a batch": _best(lambda: flux_of(frames), 3) / 4,
        "flux along one direction": _best(lambda: flux_of(frames[:1], np.eye(3)[:1]), 3),
    }


def silicon(options: argparse.Namespace) -> dict[str, Any]:
    """Green-Kubo and phonons in the same cell, classical both."""
    calculator = Calculator(options.model)
    exact = Calculator(options.model, dtype="float64")
    unit = relax(bulk("Si", a=5.45, cubic=True), exact, cell=True, fmax=0.001).atoms
    cells, temperature = options.cells, options.temperature
    green_kubo_found = _green_kubo(unit, calculator, options, f"silicon {cells}")
    same_cell = three_phonons(unit, exact, cells, temperature=temperature)
    dense = conductivity(
        unit,
        exact,
        ConductivityOptions(
            supercell=(2, 2, 2),
            meshes=(28.0, 36.0),
            temperatures=(temperature, CLASSICAL),
            isotopes=False,
            relax=False,
        ),
    )
    return {
        "atoms": 8 * cells**3,
        "temperature": temperature,
        "green-kubo": _numbers(green_kubo_found),
        "phonons in the same cell, classical": same_cell,
        "phonons, dense mesh, classical": float(dense.isotropic(CLASSICAL)) * CLASSICAL / temperature,
        "phonons, dense mesh, quantum": float(dense.isotropic(temperature)),
        "phonons, dense mesh, relaxation time, quantum": float(dense.relaxation_time[-1, 0, :3].mean()),
    }


def modes(options: argparse.Namespace) -> dict[str, Any]:
    """Silicon's phonons in one cell, with their lifetimes in dynamics and by three-phonon scattering."""
    exact = Calculator(options.model, dtype="float64", freeze=True)
    unit = relax(bulk("Si", a=5.45, cubic=True), exact, cell=True, fmax=0.001).atoms
    thirds = three_phonons(unit, exact, options.cells, temperature=options.temperature)
    found = lifetimes(
        unit,
        exact,
        Calculator(options.model),
        options.cells,
        temperature=options.temperature,
        picoseconds=options.picoseconds,
        timestep=options.timestep,
        runs=options.runs,
    )
    return {
        "atoms": 8 * options.cells**3,
        "temperature": options.temperature,
        "lifetimes in dynamics": found,
        "three-phonon scattering, classical": thirds,
    }


def driven(options: argparse.Namespace) -> dict[str, Any]:
    """The same by driving heat through."""
    calculator = Calculator(options.model)
    exact = Calculator(options.model, dtype="float64")
    unit = relax(bulk("Si", a=5.45, cubic=True), exact, cell=True, fmax=0.001).atoms
    cells = options.cells
    chosen = HNEMDOptions(
        options.temperature,
        supercell=(cells, cells, cells),
        field=options.field,
        steps=round(1000 * options.picoseconds / options.timestep),
        equilibration=round(1000 * options.equilibration / options.timestep),
        timestep=options.timestep,
        interval=2,
        runs=options.runs,
    )
    path = options.out / f"driven {cells}.npz"
    with Store(path, {"model": str(options.model), "options": str(chosen)}, resume=path.exists()) as store:
        found = hnemd(unit, calculator, chosen, store=store)
    return {
        "atoms": 8 * cells**3,
        "conductivity": found.conductivity,
        "error": found.error,
        "fields": dict(
            zip(found.fields.tolist(), zip(found.at_field, found.at_field_error, strict=True), strict=True)
        ),
        "temperature": found.temperature_k,
        "picoseconds": found.picoseconds,
        "checks": [check.sentence() for check in found.provenance.checks],
    }


def film(options: argparse.Namespace) -> dict[str, Any]:
    """Silicon under biaxial strain in the plane, as on a substrate of another lattice constant, free to relax across
    it.
    """
    exact = Calculator(options.model, dtype="float64")
    unit = relax(bulk("Si", a=5.45, cubic=True), exact, cell=True, fmax=0.001).atoms
    chosen = ConductivityOptions(
        supercell=(2, 2, 2),
        meshes=(28.0, 36.0),
        temperatures=(300.0,),
        relax=False,
        cutoff_pair=4.0,
        full=False,
    )
    rows = {}
    for strain in options.strains:
        strained, height = biaxial(unit, strain, exact)
        found = conductivity(strained, exact, chosen)
        rows[f"{100 * strain:+.1f} %"] = {
            "in plane": float(found.best[0, :2].mean()),
            "across": float(found.best[0, 2]),
            "height": height,
            "lowest THz": found.lowest_thz,
        }
    return {"atoms in the supercell": 64, "conductivity at 300 K": rows}


def glass(options: argparse.Namespace) -> dict[str, Any]:
    """Amorphous silica at constant volume."""
    atoms = ase.io.read(options.structure, index=-1)
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    calculator = Calculator(options.model)
    found = _green_kubo(atoms, calculator, options, "glass")
    density = atoms.get_masses().sum() / atoms.get_volume() * 1.66053907
    return {"atoms": len(atoms), "density g/cm3": density, "green-kubo": _numbers(found)}


def _green_kubo(
    atoms: Atoms, calculator: Calculator, options: argparse.Namespace, name: str
) -> GreenKuboResult:
    cells = options.cells
    chosen = GreenKuboOptions(
        options.temperature,
        supercell=(cells, cells, cells),
        steps=round(1000 * options.picoseconds / options.timestep),
        equilibration=round(1000 * options.equilibration / options.timestep),
        runs=options.runs,
        timestep=options.timestep,
        interval=options.interval,
        correlation=options.correlation,
    )
    path = options.out / f"{name}.npz"
    with Store(
        path, {"model": str(options.model), "temperature": options.temperature}, resume=path.exists()
    ) as store:
        return green_kubo(atoms, calculator, chosen, store=store)


def biaxial(unit: Atoms, strain: float, calculator: Calculator) -> tuple[Atoms, float]:
    """A cell strained in the xy plane with no stress across it, and its height over that at rest.

    Symmetry leaves the atoms of silicon where they are.
    """
    strained = unit.copy()
    strained.set_cell(unit.cell.array @ np.diag([1 + strain, 1 + strain, 1.0]), scale_atoms=True)
    low, high, height = 1 - abs(strain) - 1e-3, 1 + abs(strain) + 1e-3, 1.0
    at_low, at_high = (_stress_across(strained, height, calculator) for height in (low, high))
    for _ in range(4):  # the secant, for a stress that is nearly linear
        height = low - at_low * (high - low) / (at_high - at_low)
        low, at_low, high, at_high = high, at_high, height, _stress_across(strained, height, calculator)
        if abs(high - low) < 1e-7:
            break
    strained.set_cell(strained.cell.array @ np.diag([1, 1, height]), scale_atoms=True)
    return strained, height


def _stress_across(atoms: Atoms, height: float, calculator: Calculator) -> float:
    stretched = atoms.copy()
    stretched.set_cell(atoms.cell.array @ np.diag([1, 1, height]), scale_atoms=True)
    stretched.calc = calculator
    return float(stretched.get_stress()[2])


def _numbers(found: GreenKuboResult) -> dict[str, Any]:
    return {
        "conductivity": found.conductivity,
        "error": found.error,
        "cepstral": found.cepstral,
        "cepstral error": found.cepstral_error,
        "temperature": found.temperature_k,
        "cutoff ps": found.cutoff_ps,
        "picoseconds": found.picoseconds,
        "drift meV/atom/ps": found.drift_mev,
        "tensor": found.tensor.tolist(),
        "tensor error": found.tensor_error.tolist(),
        "checks": [check.sentence() for check in found.provenance.checks],
        "warnings": list(found.provenance.warnings),
    }


def _best(call: Callable[[], Any], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return round(1000 * min(taken), 3)


CASES = {"cost": cost, "silicon": silicon, "modes": modes, "driven": driven, "film": film, "glass": glass}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--model", required=True, help="name or file of a potential")
    parser.add_argument("--structure", type=Path, help="the glass")
    parser.add_argument(
        "--cells", type=int, default=1, help="repeat the conventional cell, or the glass, so often"
    )
    parser.add_argument("--temperature", type=float, default=1000.0)
    parser.add_argument("--picoseconds", type=float, default=50.0, help="of each run")
    parser.add_argument("--equilibration", type=float, default=4.0, help="ps")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--timestep", type=float, default=2.0)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--correlation", type=float, default=12.0)
    parser.add_argument("--field", type=float, default=0.005, help="of driven, 1/Å")
    parser.add_argument("--strains", type=float, nargs="*", default=[-0.01, 0.0, 0.01])
    parser.add_argument("--out", type=Path, default=Path("heat"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    numbers = CASES[options.case](options)
    facts = machine.conditions(("equipes", "torch", "ase", "phono3py"))
    result = {
        "model": str(options.model),
        **numbers,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "conditions": facts,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (options.out / f"{options.case}.json").write_text(text + "\n")
    print(text)
    print(machine.sentence(facts))


if __name__ == "__main__":
    main()
