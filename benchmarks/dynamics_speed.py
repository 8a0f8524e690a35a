"""Where the time of a step of molecular dynamics goes, for systems small enough that ASE could be what takes it.

    OMP_NUM_THREADS=1 python benchmarks/dynamics_speed.py 7net-0 si_run/model.safetensors

For crystals of silicon of several sizes and each ensemble: the processor time of a step, and the part of it that is not
the frozen potential's native code: neighbours and ASE's calculator (the evaluation less the native code), and
everything else (integrator, checks, records).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
from ase.build import bulk

from equipes.calculators import Calculator
from equipes.models import FrozenPotential
from equipes.simulate import MDSettings, run_md

ENSEMBLES: dict[str, dict[str, Any]] = {
    "nve": {"ensemble": "nve"},
    "nvt": {"ensemble": "nvt"},
    "npt": {"ensemble": "npt"},
}


class Clock:
    """Adds up the processor time that calls of a function take."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.process_time() - began


def measured(model: str, cells: int, ensemble: dict[str, Any], steps: int) -> tuple[int, float, float, float]:
    """Atoms; processor time of a step, and of the native code and the whole evaluation in it, ms."""
    atoms = bulk("Si", a=5.46, cubic=True) * (cells, cells, cells)
    calculator = Calculator(model)
    assert calculator.freeze_for(["Si"]) is not None
    native = Clock(FrozenPotential.evaluate)
    whole = Clock(calculator.calculate)
    calculator.calculate = whole  # type: ignore[method-assign]
    frozen = calculator.frozen
    frozen.evaluate = lambda *a, **k: native(frozen, *a, **k)  # type: ignore[union-attr, method-assign]
    settings = MDSettings(**ensemble, steps=steps, timestep=1.0, temperature=300.0, trajectory=True)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run_md(atoms, calculator, settings, Path(folder) / "run")
        total = time.process_time() - began
    return len(atoms), 1000 * total / steps, 1000 * native.seconds / steps, 1000 * whole.seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(
        "| model | atoms | ensemble | ms a step | native code | neighbours, calculator | integrator, checks, records |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        for cells in options.cells:
            for name, ensemble in ENSEMBLES.items():
                atoms, total, native, whole = measured(model, cells, ensemble, options.steps)
                shares = (native, whole - native, total - whole)
                cells_text = " | ".join(f"{share:.2f} ({100 * share / total:.0f} %)" for share in shares)
                print(
                    f"| {Path(model).parent.name or model} | {atoms} | {name} | {total:.2f} | {cells_text} |",
                    flush=True,
                )
    print()
    print(
        f"{machine.sentence(machine.conditions(('equipes', 'torch', 'ase')))}; processor time of one thread."
    )


if __name__ == "__main__":
    main()
