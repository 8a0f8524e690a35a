"""What dynamics of many systems in one batch saves beside the same systems one after the other.

    OMP_NUM_THREADS=1 python benchmarks/batched.py si_run/model.safetensors 7net-0

Silicon at constant energy, as often as `--systems` says, once by `run_md_together` and once by `run_md` for each: the
processor time of a step of one system, least of `--repeats` of each in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import machine
from ase.build import bulk

from equipes.calculators import Calculator
from equipes.simulate import MDSettings, run_md
from equipes.simulate.batch_md import System, run_md_together


def measured(calculator: Calculator, cells: int, count: int, steps: int) -> tuple[int, float, float]:
    """Atoms of a system; processor time of a step of one, ms, alone and together."""
    atoms = bulk("Si", a=5.46, cubic=True) * (cells, cells, cells)
    systems = [
        System(f"s{i}", atoms, MDSettings("nve", steps=steps, timestep=1.0, temperature=600.0, seed=i))
        for i in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        for system in systems:
            run_md(system.atoms, calculator, system.settings, Path(folder) / "alone" / system.name)
        alone = time.process_time() - began
        began = time.process_time()
        run_md_together(systems, calculator, Path(folder) / "together")
        together = time.process_time() - began
    each = 1000 / (steps * count)
    return len(atoms), each * alone, each * together


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--systems", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("| model | atoms | one after the other, ms a step | together, ms a step | gain |")
    print("|---|---|---|---|---|")
    for model in options.models:
        calculator = Calculator(model, device=options.device)
        for cells in options.cells:
            found = [
                measured(calculator, cells, options.systems, options.steps) for _ in range(options.repeats)
            ]
            atoms, alone, together = (min(values) for values in zip(*found, strict=True))
            name = Path(model).parent.name or model
            print(f"| {name} | {atoms} | {alone:.2f} | {together:.2f} | {alone / together:.2f} |", flush=True)
    facts = machine.conditions(("equipes", "torch", "ase"))
    print(
        f"\n{machine.sentence(facts)}, device {options.device}; {options.systems} systems, processor time of a step of"
        " one system."
    )


if __name__ == "__main__":
    main()
