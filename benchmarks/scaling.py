"""How the cost of a training step and of an inference grows with atoms, channels, l_max and threads.

    python benchmarks/scaling.py --plot scaling.png

A training step is `TrainingModule.training_step` on one silicon crystal, an inference is energy, forces and stress
through the ASE calculator (frozen where this version can freeze). One quantity changes at a time; the others stay at
216 atoms, 32 channels, l_max 2 and one thread (4 layers, both parities, 5 Å, float32). The exponent is that of the
power law between a value and the one before it; that of l_max counts its components, (l_max + 1)².
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import inference
import machine
import systems
import tables
from peers import Worker, frames, take_turns

USUAL = {"atoms": 216, "channels": 32, "l_max": 2, "threads": 1}
QUICK = {"atoms": [64, 216], "channels": [16, 32], "l_max": [1, 2]}
VALUES = {
    "atoms": [8, 64, 216, 512, 1000, 4096],
    "channels": [8, 16, 32, 64, 128],
    "l_max": [0, 1, 2, 3, 4],
}
# A training step keeps what its backward pass needs of every edge.
MOST_ATOMS_IN_TRAINING = 1000


def measure(task: str, point: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """The median of one task, ms, and the peak memory of its process, MB."""
    model = {
        "r_max": 5.0,
        "num_layers": 4,
        "l_max": point["l_max"],
        "num_features": point["channels"],
        "parity": True,
        "radial_mlp_depth": 2,
        "radial_mlp_width": 64,
    }
    job: dict[str, Any] = {"task": task, "frames": frames(systems.silicon(point["atoms"])), "model": model}
    if task == "inference":
        job["frozen"] = inference.has_frozen_engine()
    with Worker("equipes", job, threads=point["threads"]) as worker:
        times = take_turns({task: worker}, 1 if options.quick else 3, seconds=0.3 if options.quick else 1.0)[
            task
        ]
        memory = worker.ask()["peak_mb"]
    return {
        "ms": tables.milliseconds(times),
        "least ms": 1e3 * min(times),
        "calls": len(times),
        "peak_mb": memory,
    }


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument("--plot", type=Path, help="write a drawing there (.png)")
    parser.add_argument("--threads", nargs="+", type=int, help="default: powers of two up to all cores")
    options = parser.parse_args()
    tables.check_outputs(options, options.plot)
    values = dict(QUICK if options.quick else VALUES)
    powers = [2**k for k in range(int(math.log2(machine.cores())) + 1)]
    values["threads"] = options.threads or sorted({*powers, machine.cores()})
    rows: list[dict[str, Any]] = []
    known: dict[Any, dict[str, Any]] = {}
    for task in ("training step", "inference"):
        for quantity, points in values.items():
            for value in points:
                if task == "training step" and quantity == "atoms" and value > MOST_ATOMS_IN_TRAINING:
                    continue
                point = {**USUAL, quantity: value}
                key = (task, *point.values())
                if key not in known:
                    known[key] = measure(task, point, options)
                    print(".", end="", flush=True)
                rows.append({"task": task, "quantity": quantity, "value": value, **known[key]})
    show(rows)
    if options.plot is not None:
        plot(options.plot, rows)
    facts = machine.conditions()
    del facts["threads"]
    facts["inference"] = "frozen" if inference.has_frozen_engine() else "exact (this version cannot freeze)"
    print(f"\n{machine.sentence(facts)}")
    tables.write_json(options, rows, facts)


def show(rows: list[dict[str, Any]]) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        cells, before = [], None
        for row in rows:
            if row["task"] != task:
                continue
            exponent = None
            if before is not None and before["quantity"] == row["quantity"]:
                exponent = math.log(row["ms"] / before["ms"]) / math.log(_extent(row) / _extent(before))
            cells.append([row["quantity"], row["value"], row["ms"], exponent, row["peak_mb"]])
            before = row
        tables.show(f"Growth of the {task}", ["", "value", "ms", "exponent", "peak, MB"], cells)


def _extent(row: dict[str, Any]) -> int:
    """The value on a logarithmic axis: l_max begins at 0, its number of components at 1."""
    return int((row["value"] + 1) ** 2 if row["quantity"] == "l_max" else row["value"])


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel for each quantity, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    size = (3.2 * len(quantities), 3.4)
    figure, panels = plt.subplots(1, len(quantities), figsize=size, layout="constrained", sharey=True)
    for axes, quantity in zip(panels, quantities, strict=True):
        ticks = set()
        for task, marker in (("training step", "o-"), ("inference", "s--")):
            points = [
                (_extent(row), row["ms"])
                for row in rows
                if row["task"] == task and row["quantity"] == quantity
            ]
            ticks |= {x for x, _ in points}
            axes.plot(*zip(*points, strict=True), marker, ms=4, lw=1, label=task)
        axes.set(xscale="log", yscale="log", xlabel="(l_max + 1)²" if quantity == "l_max" else quantity)
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    tables.run(main)
