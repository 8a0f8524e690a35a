"""What makes many small evaluations in float64 fast: freezing, and processes instead of threads.

    OMP_NUM_THREADS=2 python benchmarks/parallel.py 7net-0 si_run/model.safetensors

Forces of supercells of 64 silicon atoms with one displaced, as phonons and conductivities need them: by the model
itself, by the frozen potential on one thread, on all threads, and over as many processes of one thread each. Wall
time, so nothing else should be running; results of the processes must be those of one thread, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import machine
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from equipes.calculators import Calculator
from equipes.simulate.evaluations import evaluate


def timed(structures: list[Atoms], calculator: Calculator, threads: int) -> tuple[float, np.ndarray]:
    """Seconds per structure, and all forces."""
    torch.set_num_threads(threads)
    evaluate(structures[:1], calculator)
    began = time.perf_counter()
    forces = [found.forces for found in evaluate(structures, calculator)]
    return (time.perf_counter() - began) / len(structures), np.array(forces)


def on_threads(structures: list[Atoms], calculator: Calculator, threads: int) -> float:
    """Seconds per structure, one after the other, each on all threads."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for atoms in structures:
        evaluate([atoms], calculator)
    return (time.perf_counter() - began) / len(structures)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--structures", type=int, default=40)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    perfect = bulk("Si", a=5.46, cubic=True) * (2, 2, 2)
    structures = []
    for k in range(options.structures):
        structures.append(perfect.copy())
        structures[-1].positions[k % 64] += [0.01, 0.0, 0.02]
    print(
        f"| model | the model itself, ms | frozen, ms | off by, eV/Å | {threads} threads, ms |"
        f" {threads} processes, ms | same bits |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        exact = Calculator(model, dtype="float64")
        frozen = Calculator(model, dtype="float64", freeze=True)
        assert frozen.freeze_for(["Si"]) is not None
        few = structures[:2]
        slow, reference = timed(few, exact, 1)
        alone, forces = timed(structures, frozen, 1)
        together = on_threads(structures, frozen, threads)
        spread, spread_forces = timed(structures, frozen, threads)
        off = float(np.abs(forces[:2] - reference).max())
        same = "yes" if np.array_equal(forces, spread_forces) else "NO"
        name = Path(model).parent.name or model
        print(
            f"| {name} | {1000 * slow:.0f} | {1000 * alone:.1f} | {off:.0e} | {1000 * together:.1f} |"
            f" {1000 * spread:.1f} | {same} |",
            flush=True,
        )
    print()
    print(f"{machine.sentence(machine.conditions(('equipes', 'torch', 'ase')))}; wall time.")


if __name__ == "__main__":
    main()
