"""How near the engine's routines come to what the machine can do.

    python benchmarks/roofline.py --plot roofline.png

First the limits of one core are measured with a small program that is compiled here: fused multiply-adds in
registers, the engine's own matrix product, and the bandwidth of a triad on arrays from the first-level cache to memory.
Then a training step (model a, aspirin × 5) and an inference through the ASE calculator (silicon, SevenNet-0's sizes,
frozen where this version can freeze) run on one thread with the engine's profile. Operations and compulsory bytes of
each routine come from `counts.py`, or from the profile where it counts. A routine could take no less time than its
operations at the peak of multiply-adds, and no less than its bytes at the bandwidth of a triad on as many bytes as it
touches in one call; the larger of both is its limit, and `reached` is the limit over the time. Times are those of the
processor, not of the clock.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import counts
import inference
import machine
import numpy as np
import systems
import tables
import training_step
from counts import Size, Work
from peers import Worker, frames

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.models import build

HERE = Path(__file__).resolve().parent
FLAGS = {
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx2": ["-march=x86-64-v3"],
    "baseline": ["-march=x86-64"] if os.uname().machine in ("x86_64", "amd64") else [],
}
# Products of the shapes that occur: many rows, and as many columns as a block of features has channels.
PRODUCTS = [(768, 256, 256), (1500, 64, 64), (525, 32, 32)]


def measure_limits(quick: bool) -> dict[str, Any]:
    """GFLOP/s and GB/s of one core; raises `InputError` where there is no compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise InputError(
            "the limits of the machine are measured by a C++ program; install a compiler (apt install g++)"
        )
    seconds = 0.1 if quick else 0.5
    with tempfile.TemporaryDirectory(prefix="equipes-limits-") as folder:
        library = Path(folder) / "limits.so"
        command = [compiler, "-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-ffp-contract=fast"]
        command += [
            "-fno-math-errno",
            "-fno-trapping-math",
            "-fno-signed-zeros",
            *FLAGS[native.instruction_set()],
        ]
        sources = HERE.parent / "src" / "equipes" / "kernels" / "native"
        command += [f"-I{sources}", str(HERE / "native" / "limits.cpp"), "-o", str(library)]
        subprocess.run(command, check=True)
        limits = ctypes.CDLL(str(library))
        for name in ("fma_float", "product_float", "triad_float"):
            getattr(limits, name).restype = ctypes.c_double

        def best(name: str, *numbers: int) -> float:
            """The best of three: nothing makes a core faster than it is."""
            function = getattr(limits, name)
            arguments = [ctypes.c_int64(number) for number in numbers]
            return max(float(function(*arguments, ctypes.c_double(seconds / 3))) for _ in range(3))

        sizes = [int(size) for size in np.geomspace(16e3, 3e8, 8 if quick else 18)]
        return {
            "fused multiply-adds, GFLOP/s": best("fma_float"),
            "products, GFLOP/s": {
                " × ".join(map(str, shape)): best("product_float", *shape) for shape in PRODUCTS
            },
            "triad, GB/s": {size: best("triad_float", size) for size in sizes},
        }


def bandwidth(limits: dict[str, Any], size: float) -> float:
    """Of the triad on arrays of so many bytes together."""
    triad = limits["triad, GB/s"]
    return float(np.interp(np.log(max(size, 1.0)), np.log(list(triad)), list(triad.values())))


def profile(job: dict[str, Any], calls: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Medians of each routine's seconds, its operations, and the median of the whole call's seconds."""
    with Worker("equipes", {**job, "profile": True}) as worker:
        worker.ask(2)
        answer = worker.ask(calls)
    routines = {}
    for name, values in answer.items():
        if name.startswith("profile "):
            numbers = np.array(values).reshape(calls, -1)
            routines[name.removeprefix("profile ")] = (float(np.median(numbers[:, 0])), float(numbers[0, 1]))
    return routines, statistics.median(answer["seconds"])


def rows_of(
    routines: dict[str, tuple[float, float]], works: dict[str, Work], limits: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row for each routine that took time, the longest first."""
    rows = []
    peak = limits["fused multiply-adds, GFLOP/s"]
    total = sum(seconds for seconds, _ in routines.values())
    for name, (seconds, counted) in sorted(routines.items(), key=lambda item: -item[1][0]):
        if seconds <= 0:
            continue
        work = works.get(name, Work())
        # Where the profile counts, it knows the padding too, which is no work; the formulas say what is needed.
        operations = work.operations or counted
        row: dict[str, Any] = {"routine": name, "ms": 1e3 * seconds, "share": 100 * seconds / total}
        if operations or work.bytes:
            row |= {"mflop": 1e-6 * operations, "mb": 1e-6 * work.bytes}
            row |= {"gflops": 1e-9 * operations / seconds, "gbs": 1e-9 * work.bytes / seconds}
            reach = bandwidth(limits, work.bytes / max(work.calls, 1))
            times = {"arithmetic": 1e-9 * operations / peak, "bandwidth": 1e-9 * work.bytes / reach}
            row["limit"] = max(times, key=lambda kind: times[kind])
            row["reached"] = 100 * times[row["limit"]] / seconds
        rows.append(row)
    return rows


def size_of(graph: AtomGraph) -> Size:
    return Size(graph.n_atoms, graph.n_edges, counts.pairs_of(graph), len(graph.numbers.unique()))


def training(limits: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Model a, aspirin × 5."""
    structures = systems.molecules("aspirin", 5)
    hyperparameters = training_step.MODELS["a"]
    job = {"task": "training step", "frames": frames(structures), "model": hyperparameters}
    routines, seconds = profile(job, 5 if options.quick else 50)
    model = build("nequip", sorted({s for atoms in structures for s in atoms.symbols}), hyperparameters).model
    graph = AtomGraph.batch([AtomGraph.from_atoms(atoms, 5.0) for atoms in structures])
    rows = rows_of(routines, counts.training_step(model, size_of(graph)), limits)
    return {"title": "Training step, model a, aspirin × 5", "rows": rows, "ms": 1e3 * seconds}


def calculation(limits: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """SevenNet-0's sizes, 512 atoms of silicon, frozen if possible."""
    crystal = systems.silicon(64 if options.quick else 512)[0]
    frozen = inference.has_frozen_engine()
    job = {"task": "inference", "frames": frames([crystal]), "model": inference.MODEL, "frozen": frozen}
    routines, seconds = profile(job, 3 if options.quick else 15)
    potential = build("nequip", ["Si"], inference.MODEL)
    size = size_of(AtomGraph.from_atoms(crystal, 5.0))
    if frozen:
        works = counts.frozen_inference(potential.model, size, potential.freeze().n_intervals)
    else:
        works = counts.exact_inference(potential.model, size)
    what = "frozen" if frozen else "exact (this version cannot freeze)"
    title = f"Energy, forces and stress, {what}, silicon {len(crystal)} atoms, SevenNet-0's sizes"
    return {"title": title, "rows": rows_of(routines, works, limits), "ms": 1e3 * seconds}


def show_limits(limits: dict[str, Any]) -> None:
    peak = limits["fused multiply-adds, GFLOP/s"]
    cells: list[list[Any]] = [["fused multiply-adds in registers", peak, 100.0]]
    for shape, rate in limits["products, GFLOP/s"].items():
        cells.append([f"our product, {shape}", rate, 100 * rate / peak])
    tables.show("Arithmetic of one core, float32", ["", "GFLOP/s", "of the peak, %"], cells)
    cells = [[f"{size / 1e6:.3g} MB", rate] for size, rate in limits["triad, GB/s"].items()]
    tables.show("Bandwidth of one core: triad on three arrays", ["all three", "GB/s"], cells)


def show(found: dict[str, Any]) -> None:
    keys = ("routine", "ms", "share", "mflop", "mb", "gflops", "gbs", "limit", "reached")
    columns = ["routine", "ms", "%", "Mflop", "MB", "GFLOP/s", "GB/s", "limited by", "reached, %"]
    rows = [[row.get(key) for key in keys] for row in found["rows"]]
    total = sum(row["ms"] for row in found["rows"])
    known = [row for row in found["rows"] if "reached" in row]
    limit = sum(row["reached"] * row["ms"] for row in known) / sum(row["ms"] for row in known)
    mflop, mb = (sum(row.get(key, 0) for row in found["rows"]) for key in ("mflop", "mb"))
    rows.append(["all routines", total, 100.0, mflop, mb, mflop / total, mb / total, "", limit])
    tables.show(f"{found['title']}: {found['ms']:.3g} ms, of which in the engine", columns, rows)


def plot(path: Path, limits: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Rates against operations per byte, under the roofs of memory and caches; areas are shares of the time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peak = limits["fused multiply-adds, GFLOP/s"]
    roofs = {"first-level cache": 2e4, "second-level cache": 4e5, "memory": 3e8}
    figure, panels = plt.subplots(
        1, len(found), figsize=(6 * len(found), 5), layout="constrained", sharey=True
    )
    for axes, calls in zip(panels, found, strict=True):
        rows = [row for row in calls["rows"] if row.get("mb") and row.get("mflop")]
        intensity = np.geomspace(0.1, 300, 200)
        for label, size in roofs.items():
            axes.plot(intensity, np.minimum(peak, bandwidth(limits, size) * intensity), lw=1, label=label)
        for number, row in enumerate(rows, start=1):
            x, y = row["mflop"] / row["mb"], row["gflops"]
            axes.plot(x, y, "o", ms=5 + 2 * row["share"] ** 0.5, color="k", alpha=0.25, mew=0)
            axes.annotate(str(number), (x, y), fontsize=7, ha="center", va="center")
        names = [
            f"{number}  {row['routine']}, {row['share']:.0f} %" for number, row in enumerate(rows, start=1)
        ]
        axes.text(0.98, 0.02, "\n".join(names), transform=axes.transAxes, fontsize=7, ha="right", va="bottom")
        axes.set(xscale="log", yscale="log", xlabel="operations per byte")
        axes.set_title(calls["title"], fontsize=8)
    panels[0].set_ylabel("GFLOP/s")
    panels[0].legend(fontsize=8, title="bandwidth of the", loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument("--plot", type=Path, help="write a drawing there (.png)")
    options = parser.parse_args()
    tables.check_outputs(options, options.plot)
    if native.module() is None:
        raise InputError("the native kernels were not built here; see docs/install.md")
    limits = measure_limits(options.quick)
    show_limits(limits)
    found = [training(limits, options), calculation(limits, options)]
    for calls in found:
        show(calls)
    if options.plot is not None:
        plot(options.plot, limits, found)
    facts = {**machine.conditions(), "threads": 1}
    print(f"\n{machine.sentence(facts)}")
    tables.write_json(options, [{"limits": limits}, *found], facts)


if __name__ == "__main__":
    tables.run(main)
