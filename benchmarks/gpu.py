"""What a GPU makes of it: ASE calls, dynamics on the device, the largest system that fits, training steps.

    python benchmarks/gpu.py                          on the first GPU, SevenNet-0 if its weights can be had
    python benchmarks/gpu.py --model random           random weights in SevenNet-0's shapes
    python benchmarks/gpu.py --model mace-small       random weights in MACE-MP-0's shapes, 128x0e (mace-medium:
                                                      128x0e + 128x1o)
    python benchmarks/gpu.py --device cpu --quick     the same script on the CPU, to see that it runs

Diamond silicon, float32. `ASE call` is energy, forces and stress through the calculator after atoms moved by up to
0.02 Å: `list anew` collects the neighbours each time (skin 0), `skin` as often as a simulation does. `dynamics` are
steps of `DeviceDynamics` (constant energy, 300 K, 1 fs), which stay on the device. The largest system is found by
doubling until memory runs out, one energy and force evaluation each; bytes an atom are the peak of torch's allocator on
a GPU, and in any case what the sweeps count for themselves. Training steps are `TrainingModule.training_step` as in
training_step.py, with the batch's way to the GPU, a step begun before the one before it has ended; `recorded` ones are
those of small batches by default, `plain` ones those of `train.record_steps: false`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import machine
import numpy as np
import systems
import tables
import torch
from ase import Atoms, units
from ase.build import bulk
from training_step import MODELS as TRAINED

from equipes.calculators import Calculator
from equipes.data import Frame, GraphDataset, LabelledGraph, forces_rms, mean_neighbors
from equipes.errors import InputError
from equipes.foundation import load
from equipes.graph import AtomGraph
from equipes.kernels import kernel_name
from equipes.models import Potential, build
from equipes.models.device_frozen import DevicePotential, freeze_on_device
from equipes.models.device_geometry import DeviceAtoms
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.training.config import Config
from equipes.training.losses import Loss, label_counts
from equipes.training.module import TrainingModule
from equipes.training.stream import Batch

SHAPES = {
    "r_max": 5.0,
    "num_layers": 5,
    "l_max": 2,
    "num_features": [128, 64, 32],
    "radial_mlp_depth": 2,
    "radial_mlp_width": 64,
    "xplor_on": 4.5,
    "denominator": 35.989574,
}
MACE = {
    "mace-small": {**systems.MACE_SMALL, "r_max": 6.0, "avg_num_neighbors": 46.0},
    "mace-medium": {
        **systems.MACE_SMALL,
        "hidden_irreps": "128x0e + 128x1o",
        "r_max": 6.0,
        "avg_num_neighbors": 46.0,
    },
}
SMALL_MACE = {"hidden_irreps": "8x0e + 8x1o", "max_ell": 1, "correlation": 2, "r_max": 5.0}
SMALL = {**SHAPES, "num_layers": 2, "num_features": [16, 8, 4]}
CELLS = [2, 5, 10, 20, 30]
PARTS = ["ase", "dynamics", "memory", "largest", "training"]
STEPS = [("aspirin × 5", 5), ("aspirin × 64", 64), ("Si 64 × 16", 16)]


def silicon(cells: int) -> Atoms:
    """A cube of `8 cells³` atoms."""
    atoms = bulk("Si", a=5.43, cubic=True) * (cells, cells, cells)
    atoms.rattle(0.02, seed=0)
    return atoms


def model(options: argparse.Namespace) -> tuple[Potential, str]:
    """What is timed, and what to call it."""
    if options.model in MACE:
        shapes = {key: value for key, value in MACE[options.model].items() if key != "architecture"}
        shapes |= SMALL_MACE if options.quick else {}
        potential = build("mace", ["Si"], shapes, dtype="float32", seed=1)
        return potential.eval(), "a small MACE" if options.quick else f"{options.model}, random weights"
    if options.model != "random" and not options.quick:
        try:
            return load(options.model, dtype="float32"), options.model
        except InputError as error:
            print(
                f"{options.model} is not to be had ({error}); random weights in its shapes instead",
                flush=True,
            )
    shapes = SMALL if options.quick else SHAPES
    potential = build("sevennet", ["Si"], shapes, dtype="float32", seed=1)
    return (
        potential.eval(),
        "SevenNet-0's shapes, random weights" if not options.quick else "a small SevenNet",
    )


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, options: argparse.Namespace) -> list[float]:
    """Of single calls, after a few that are not counted."""
    for _ in range(1 if options.quick else 3):
        call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < options.seconds and len(times) < 200):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - began)
        if options.quick and len(times) >= 2:
            break
    return times


def ase_calls(frozen: Potential, cells: int, options: argparse.Namespace) -> dict[str, Any]:
    """The median call, with a list each time and with the skin of a simulation."""
    device = torch.device(options.device)
    row: dict[str, Any] = {"atoms": 8 * cells**3}
    for name, skin in (("list anew", 0.0), ("skin", 0.5)):
        atoms = silicon(cells)
        start = atoms.positions.copy()
        calculator = _calculator(frozen, skin, options)
        rng = np.random.default_rng(0)

        def call(
            atoms: Atoms = atoms, start: np.ndarray = start, rng: Any = rng, calculator: Any = calculator
        ) -> None:
            atoms.positions = start + rng.uniform(-0.02, 0.02, start.shape)
            calculator.calculate(atoms, ["energy", "forces", "stress"])

        times = seconds(call, device, options)
        row[name] = tables.milliseconds(times)
        row[f"calls, {name}"] = len(times)
    return row


def _calculator(potential: Potential, skin: float, options: argparse.Namespace) -> Calculator:
    calculator = Calculator(potential, device=options.device, skin=skin)
    if torch.device(options.device).type == "cpu":
        # The device's path through the same code, without its kernels.
        calculator.frozen = freeze_on_device(potential, "cpu", ["Si"], tolerance=options.tolerance)
        calculator._may_freeze = False
    return calculator


def dynamics(frozen: DevicePotential, cells: int, options: argparse.Namespace) -> dict[str, Any]:
    """Thousand atom-steps a second, and how often lists were collected."""
    atoms = silicon(cells)
    spread = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
    atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    run = DeviceDynamics(atoms, frozen)
    block = 4 if options.quick else 40
    run.run(block)
    before = run.potential_energy + run.kinetic_energy
    times = []
    while len(times) < 3 or (sum(times) < options.seconds and len(times) < 50):
        wait(frozen.device)
        began = time.perf_counter()
        run.run(block)
        wait(frozen.device)
        times.append(time.perf_counter() - began)
        if options.quick and len(times) >= 2:
            break
    step = statistics.median(times) / block
    drift = (run.potential_energy + run.kinetic_energy - before) / len(atoms)
    return {
        "atoms": len(atoms),
        "ms a step": 1e3 * step,
        "thousand atom-steps/s": len(atoms) / step / 1e3,
        "lists": run.neighbor_list_builds,
        "blocks repeated": run.blocks_repeated,
        "steps": run.steps,
        "energy change, meV/atom": 1e3 * drift,
    }


def counted(frozen: DevicePotential, atoms: int) -> dict[str, Any]:
    """What so many atoms with silicon's neighbours need: those within the cutoff, and those within a list with a
    skin of 0.5 Å."""
    near, far = (
        AtomGraph.from_atoms(bulk("Si", a=5.43), frozen.cutoff + skin).n_edges // 2 for skin in (0.0, 0.5)
    )
    needed = [frozen.workspace_bytes(atoms, edges * atoms) for edges in (near, far)]
    row = {"atoms": atoms, "edges": near, "kB an atom": needed[0] / atoms / 1e3, "with skin": far}
    return row | {"kB an atom with them": needed[1] / atoms / 1e3, "GB with them": needed[1] / 1e9}


def largest(frozen: DevicePotential, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One evaluation of ever larger cubes, each of about twice as many atoms, until memory runs out."""
    rows: list[dict[str, Any]] = []
    device, cells = frozen.device, 4 if options.quick else 20
    limit = 5 if options.quick else 10_000
    while cells <= limit:
        atoms = silicon(cells)
        row: dict[str, Any] = {"atoms": len(atoms)}
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            graph = AtomGraph.from_atoms(atoms, frozen.cutoff, device)
            types = frozen.types(atoms.numbers)
            given = DeviceAtoms.of(graph, torch.tensor(types, device=device), frozen.groups(types))
            wait(device)
            began = time.perf_counter()
            energy = float(frozen.evaluate(given).energies.sum())
            row["ms"] = 1e3 * (time.perf_counter() - began)
            row["counted bytes an atom"] = frozen.workspace_bytes(given.n_atoms, given.n_edges) / len(atoms)
            if device.type == "cuda":
                row["peak bytes an atom"] = torch.cuda.max_memory_allocated(device) / len(atoms)
            row["energy, eV/atom"] = energy / len(atoms)
        except torch.OutOfMemoryError:
            row["memory"] = "ran out"
            rows.append(row)
            break
        rows.append(row)
        cells = max(cells + 1, round(cells * 2 ** (1 / 3)))
    return rows


def training(
    case: str, batch_size: int, name: str, options: argparse.Namespace, *, record: bool
) -> dict[str, Any]:
    """The median of blocks of training steps of a model of training_step.py, for one step."""
    device = torch.device(options.device)
    shapes: dict[str, Any] = dict(TRAINED[name])
    if options.quick:
        shapes |= {"num_layers": 2, "num_features": 8}
        batch_size = 2
    source = systems.molecules("aspirin", 5) if "aspirin" in case else systems.silicon(64, 4)
    structures = [source[index % len(source)] for index in range(batch_size)]
    frames = [
        Frame(atoms, atoms.calc.results["energy"], atoms.calc.results["forces"], None, None, "frames", index)
        for index, atoms in enumerate(structures)
    ]
    dataset = GraphDataset(frames, shapes["r_max"])
    graphs = [dataset[index] for index in range(len(dataset))]
    species = sorted({symbol for atoms in structures for symbol in atoms.get_chemical_symbols()})
    given = {key: value for key, value in shapes.items() if key != "architecture"}
    given["avg_num_neighbors"] = mean_neighbors([each.graph for each in graphs])
    potential = build(shapes.get("architecture", "nequip"), species, given)
    module = TrainingModule(
        potential.train(),
        Config.model_validate(
            {
                "data": {"train": "unused", "val": "unused", "n_train": batch_size, "checks": "off"},
                "model": shapes,
                "train": {
                    "batch_size": batch_size,
                    "max_steps": 30,
                    "validate_every": 1000,
                    "stress_weight": 0.0,
                    "record_steps": record,
                },
            }
        ).train,
        Loss(scale=forces_rms(frames)),
        [frame.label for frame in frames],
    ).train()
    fit = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    fit.strategy.connect(module)
    module.trainer = fit
    module.to(device)
    module.configure_optimizers()
    batch = LabelledGraph.batch(graphs)
    counts = label_counts(batch)
    block = 2 if options.quick else 20

    def steps() -> None:
        for _ in range(block):
            ready = module.transfer_batch_to_device(Batch(batch, counts, counts), device, 0)
            module.training_step(ready, 0)

    times = [duration / block for duration in seconds(steps, device, options)]
    return {
        "model, batch": f"{name}, {case}",
        "steps are": "recorded" if module.records_steps else "plain",
        "atoms": batch.graph.n_atoms,
        "edges": batch.graph.n_edges,
        "ms": tables.milliseconds(times),
        "steps": block * len(times),
    }


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to see that it runs")
    parser.add_argument(
        "--model",
        default="7net-0",
        help="a published potential or a file, random, mace-small or mace-medium (%(default)s)",
    )
    parser.add_argument("--cells", nargs="+", type=int, default=None, help=f"of silicon, default: {CELLS}")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of timed calls for each figure (%(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=None,
        help="default: all",
    )
    options = parser.parse_args()
    tables.check_outputs(options)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; --device cpu --quick shows that the script runs")
    options.tolerance = 1e-3 if options.quick else None
    parts = options.parts or PARTS
    cells = options.cells or ([1] if options.quick else CELLS)
    rows: list[dict[str, Any]] = []

    def table(title: str, found: list[dict[str, Any]], part: str) -> None:
        columns = list(dict.fromkeys(name for row in found for name in row))
        tables.show(title, columns, [[row.get(name) for name in columns] for row in found])
        rows.extend({"part": part, **row} for row in found)

    potential, name = model(options)
    kernel = kernel_name(device.type) if device.type == "cuda" else "plain torch"
    print(f"{name} on {_device_name(device)}, messages by {kernel}", flush=True)
    if "ase" in parts:
        table("ASE call, ms", [ase_calls(potential, n, options) for n in cells], "ase")
    if {"dynamics", "memory", "largest"} & set(parts):
        frozen = freeze_on_device(potential, device, ["Si"], tolerance=options.tolerance)
        if "dynamics" in parts:
            table("Dynamics on the device", [dynamics(frozen, n, options) for n in cells], "dynamics")
        if "memory" in parts:
            table("Memory of an evaluation, counted", [counted(frozen, 10**n) for n in (3, 6)], "memory")
        if "largest" in parts:
            table("The largest system", largest(frozen, options), "largest")
    if "training" in parts:
        cases = STEPS[:1] if options.quick else STEPS
        models = ["a"] if options.quick else ["a", "mace"]
        ways = (True, False) if device.type == "cuda" else (False,)
        found = [
            training(case, size, each, options, record=record)
            for each in models
            for case, size in cases
            for record in ways
        ]
        table("Training step, float32, medians", found, "training")
    facts = machine.conditions(("equipes", "torch", "triton", "lightning", "ase", "vesin"))
    facts |= {"device": _device_name(device), "model": name, "cuda": torch.version.cuda}
    print(f"\n{machine.sentence(facts)}")
    tables.write_json(options, rows, facts)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


if __name__ == "__main__":
    tables.run(main)
