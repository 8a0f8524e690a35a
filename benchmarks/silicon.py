"""Silicon by several potentials side by side with its reference: where is each of them soft?

    equipes train configs/si.yaml data.train=../shared/data/mlearn/Si_train.xyz … --out si_run
    python benchmarks/silicon.py 7net-0 si_run/model.safetensors --names "7net-0" "trained here" --out silicon

Lattice constant, elastic constants, phonons at Γ and X, thermal expansion, thermal conductivity in the relaxation-time
approximation on the mesh of the reference, and the energy half way of a vacancy hop. Everything is calculated at the
lattice constant of the potential itself. Each potential's quantity is stored as it is done, and the script goes on
where it was stopped. OUT/silicon.md is the page and OUT/silicon.json its numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
from application_parts import SILICON, References
from ase.build import bulk

from equipes.calculators import Calculator
from equipes.simulate.conductivity import ConductivityOptions, conductivity
from equipes.simulate.elastic import ElasticOptions, elastic
from equipes.simulate.expansion import ExpansionOptions, expansion
from equipes.simulate.neb import NEBOptions, neb, vacancy_hop
from equipes.simulate.phonons import PhononOptions, phonons

SOFT = 0.1  # a frequency, stiffness or barrier lower than the reference by more than this fraction is called soft


def mechanics(calculator: Any) -> Iterator[tuple[str, float]]:
    """Lattice and elastic constants."""
    found = elastic(bulk("Si", a=SILICON), calculator, ElasticOptions())
    yield "lattice constant", float((8 * found.atoms.get_volume() / len(found.atoms)) ** (1 / 3))
    for name, (i, j) in {"C11": (0, 0), "C12": (0, 1), "C44": (3, 3)}.items():
        yield name, float(found.tensor_gpa[i, j])


def vibrations(calculator: Any) -> Iterator[tuple[str, float]]:
    """Frequencies in the supercell of the reference, 64 atoms."""
    options = PhononOptions(length=10.0, check_supercell=False)
    at = phonons(bulk("Si", a=SILICON), calculator, options).points_thz
    yield "optical at Γ", float(at["Γ"][5])
    for mode, index in {"TA": 0, "LA/LO": 2, "TO": 4}.items():
        yield f"{mode} at X", float(at["X"][index])


def warming(calculator: Any) -> Iterator[tuple[str, float]]:
    """Thermal expansion, quasi-harmonic."""
    options = ExpansionOptions(length=10.0, volumes=7, highest=500.0, mesh=40.0)
    found = expansion(bulk("Si", a=SILICON), calculator, options)
    yield "linear expansion at 300 K", 1e6 * found.linear_per_k(300.0)


def heat(calculator: Any) -> Iterator[tuple[str, float]]:
    """Conductivity as the reference has it."""
    options = ConductivityOptions(meshes=(35.0,), temperatures=(300.0,), isotopes=False, full=False)
    found = conductivity(bulk("Si", a=SILICON), calculator, options)
    yield "conductivity at 300 K", found.isotropic(300.0)


def hop(calculator: Any) -> Iterator[tuple[str, float]]:
    """A vacancy among 64 sites hops to the next; half way it is split between them, which is the saddle in DFT.

    Below zero the potential has the split vacancy for a minimum, and there is no such hop in it.
    """
    crystal = bulk("Si", a=SILICON, cubic=True) * (2, 2, 2)
    options = NEBOptions(images=5, fmax=0.05, end_fmax=0.02, steps=200)
    found = neb(*vacancy_hop(crystal, 0), calculator, options)
    yield "vacancy hop, half way", float(found.energies_ev[len(found.energies_ev) // 2])


PARTS: dict[str, Callable[[Any], Iterator[tuple[str, float]]]] = {
    "mechanics": mechanics,
    "vibrations": vibrations,
    "warming": warming,
    "hop": hop,
    "heat": heat,
}


def reference(known: References) -> dict[str, tuple[str, float, str]]:
    """Unit, value and source of every quantity."""
    frequencies = known("phonons", "Si_PBE_computed_here", "frequencies_THz")
    forces = "PBE forces through phonopy (published, computed here)"
    constants = known("lattice_elastic", "Si", "C_PBE")
    path = known("defects_surfaces", "Si_PW91_CASTEP", "vacancy_migration_path_eV")
    return {
        "lattice constant": ("Å", known("lattice_elastic", "Si", "a_PBE"), "PBE, from memory"),
        **{name: ("GPa", constants[name], "PBE, from memory") for name in ("C11", "C12", "C44")},
        "optical at Γ": ("THz", frequencies["Gamma"][5], forces),
        "TA at X": ("THz", frequencies["X"][0], forces),
        "LA/LO at X": ("THz", frequencies["X"][2], forces),
        "TO at X": ("THz", frequencies["X"][4], forces),
        "linear expansion at 300 K": ("10⁻⁶/K", 2.6, "experiment, from memory"),
        "conductivity at 300 K": (
            "W/m/K",
            known("thermal_conductivity_300K", "Si_phono3py_examples", "PBE", "mesh_11"),
            "PBE, phono3py example, 11×11×11, relaxation time",
        ),
        "vacancy hop, half way": ("eV", round(max(path) - path[0], 3), "PW91, silicon-testing-framework"),
    }


def page(done: dict[str, Any], names: list[str], wanted: dict[str, tuple[str, float, str]]) -> Iterator[str]:
    """The table, and what it says."""
    yield f"| silicon | {' | '.join(names)} | reference | unit | source of the reference |"
    yield "|---|" + "---|" * (len(names) + 3)
    for quantity, (unit, value, source) in wanted.items():
        cells = [done[name]["values"].get(quantity) for name in names]
        ours = " | ".join(
            "" if cell is None else f"{cell:.4g} ({100 * (cell / value - 1):+.0f} %)" for cell in cells
        )
        yield f"| {quantity} | {ours} | {value:.4g} | {unit} | {source} |"
    yield ""
    stiffness = [q for q in wanted if wanted[q][0] in ("GPa", "THz", "eV")]
    for name in names:
        values = done[name]["values"]
        ratios = {q: values[q] / wanted[q][1] - 1 for q in stiffness if q in values}
        soft = ", ".join(f"{q} ({100 * r:+.0f} %)" for q, r in ratios.items() if r < -SOFT)
        stiff = ", ".join(f"{q} ({100 * r:+.0f} %)" for q, r in ratios.items() if r > SOFT)
        yield f"- {name}: soft in {soft or 'nothing'}; stiff in {stiff or 'nothing'} (more than {100 * SOFT:g} %)."
    last = done[names[-1]]
    seconds = ", ".join(f"{name} {sum(done[name]['seconds'].values()):.0f} s" for name in names)
    yield ""
    yield f"{seconds}; {machine.sentence(last['conditions'])}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names or files of potentials")
    parser.add_argument("--names", nargs="+", help="what to call them")
    parser.add_argument("--only", nargs="*", default=list(PARTS), help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("silicon"))
    options = parser.parse_args()
    names = options.names or [Path(model).stem for model in options.models]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "silicon.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for model, name in zip(options.models, names, strict=True):
        entry = done.setdefault(name, {"model": model, "values": {}, "seconds": {}})
        calculator = Calculator(model, dtype="float64", freeze=True)
        for part, calculate in PARTS.items():
            if part in entry["seconds"] or part not in options.only:
                continue
            began = time.monotonic()
            entry["values"].update(calculate(calculator))
            entry["seconds"][part] = round(time.monotonic() - began, 1)
            entry["conditions"] = machine.conditions(("equipes", "torch", "ase", "phonopy", "phono3py"))
            path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
            print(f"{name}, {part}: {entry['seconds'][part]} s", flush=True)
    text = "\n".join(page(done, names, reference(References(options.shared / "data" / "reference")))) + "\n"
    (options.out / "silicon.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
