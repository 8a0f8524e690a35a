"""The other end of `peers.Worker`: reads a job, prepares it, and times it as often as it is asked to.

Runs in every peer's environment, so it needs nothing but Python, NumPy and ASE.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

Job = dict[str, Any]
# What is timed. A call that is many returns their "seconds", and may return other measurements beside them.
Measured = dict[str, list[float]]
Call = Callable[[], "Measured | None"]


def serve(tasks: dict[str, Callable[[Job], Call | tuple[Call, dict[str, Any]]]]) -> None:
    """Answer the parent: each task takes the job and returns what is to be timed, and facts worth stating."""
    # Libraries print what they like: the answers have a channel of their own.
    answers = os.fdopen(int(sys.argv[2]), "w")

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    prepared = tasks[job["task"]](job)
    call, facts = prepared if isinstance(prepared, tuple) else (prepared, {})
    answer(ready=True, versions={name: _version(name) for name in job["packages"]}, **facts)
    for line in sys.stdin:
        request = json.loads(line)
        measured: Measured = {}
        for _ in range(request["repeats"]):
            began = time.perf_counter()
            found = call() or {"seconds": [time.perf_counter() - began]}
            for name, values in found.items():
                measured.setdefault(name, []).extend(values)
        answer(**measured, peak_mb=peak_memory())


def peak_memory() -> float:
    """The most memory that this process held so far, MB; unlike `ru_maxrss` without that of whoever started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def structures(job: Job) -> list[Atoms]:
    """The frames of a job, with their labels."""
    frames = []
    for frame in job["frames"]:
        atoms = Atoms(frame["numbers"], positions=frame["positions"], cell=frame["cell"], pbc=frame["pbc"])
        if frame.get("forces") is not None:
            atoms.calc = SinglePointCalculator(
                atoms, energy=frame["energy"], forces=np.array(frame["forces"])
            )
        frames.append(atoms)
    return frames


def moves(atoms: Atoms, distance: float = 0.02) -> Callable[[], None]:
    """Moves the atoms a little, every time, so that a calculator finds nothing known."""
    random, start = np.random.default_rng(1), atoms.positions.copy()

    def move() -> None:
        atoms.positions = start + random.uniform(-distance, distance, start.shape)

    return move


def single_point(atoms: Atoms, calculator: Any) -> Call:
    """Energy, forces and, of a crystal, stress as a user asks for them, after the atoms have moved."""
    atoms = atoms.copy()
    atoms.calc = calculator
    move, periodic = moves(atoms), bool(atoms.pbc.any())

    def call() -> None:
        move()
        atoms.get_potential_energy()
        atoms.get_forces()
        if periodic:
            atoms.get_stress()

    return call


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree on the path
        return str(getattr(sys.modules.get(name), "__version__", "not installed"))
