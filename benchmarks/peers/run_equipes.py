"""equipes as `peers.Worker` runs it: a training step, its surroundings, and a calculator."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import lightning.pytorch as pl
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from serve import Call, Job, Measured, serve, single_point, structures

from equipes.calculators import Calculator
from equipes.data import Frame, GraphDataset, LabelledGraph, forces_rms, mean_neighbors
from equipes.kernels import native
from equipes.models import ARCHITECTURES, Potential, build
from equipes.training import trainer
from equipes.training.config import Config
from equipes.training.losses import Loss, label_counts
from equipes.training.module import TrainingModule
from equipes.training.stream import Batch


def training_step(job: Job) -> tuple[Call, dict[str, Any]]:
    """`TrainingModule.training_step` itself: prediction, loss, gradient, norm, optimiser, average."""
    _start(job)
    frames = _frames(job)
    dataset = GraphDataset(frames, job["model"]["r_max"])
    graphs = [dataset[index] for index in range(len(dataset))]
    batch = LabelledGraph.batch(graphs)
    counts = label_counts(batch)
    config = Config.model_validate(_config(job, "unused"))
    module = TrainingModule(
        _potential(job, [graph.graph for graph in graphs]).train(),
        config.train,
        Loss(scale=forces_rms(frames)),
        [frame.label for frame in frames],
    ).train()
    # Optimisation is manual, so the module needs of its trainer no more than that there is one.
    fit = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    fit.strategy.connect(module)
    module.trainer = fit
    module.configure_optimizers()
    ready = Batch(batch, counts, counts)
    facts = {
        "atoms": batch.graph.n_atoms,
        "edges": batch.graph.n_edges,
        "parameters": sum(p.numel() for p in module.potential.parameters() if p.requires_grad),
    }
    if not job.get("profile"):
        return (lambda: module.training_step(ready, 0)), facts
    return _profiled(lambda: module.training_step(ready, 0)), facts


def training_loop(job: Job) -> Call:
    """`equipes train` as a user runs it: seconds from step to step, and of the step itself and of batching alone."""
    _start(job)
    folder = tempfile.TemporaryDirectory(prefix="equipes-training-")
    data = Path(folder.name) / "frames.extxyz"
    ase.io.write(data, structures(job))
    parts: Measured = {"seconds": [], "step": [], "batching": []}
    TrainingModule.training_step = _timed(TrainingModule.training_step, parts["step"])  # type: ignore[method-assign]
    LabelledGraph.batch = staticmethod(_timed(LabelledGraph.batch, parts["batching"]))  # type: ignore[method-assign]
    run = 0

    def call() -> Measured:
        nonlocal run
        run += 1
        ends = _Ends()
        config = Config.model_validate(_config(job, str(data)))
        for times in parts.values():
            times.clear()
        trainer.train(config, Path(folder.name) / f"run{run}", callbacks=[ends])
        parts["seconds"][:] = np.diff(ends.times)
        return {name: times[-20:] for name, times in parts.items()}  # the first steps allocate

    return call


def inference(job: Job) -> tuple[Call, dict[str, Any]]:
    """The ASE calculator, on the exact engine or on the frozen one."""
    _start(job)
    atoms = structures(job)[0]
    calculator = _calculator(job, atoms)
    facts: dict[str, Any] = {"edges": _graph(atoms, job).n_edges}
    call = single_point(atoms, calculator)
    began = time.perf_counter()
    call()
    facts["first"] = time.perf_counter() - began
    return (_profiled(call) if job.get("profile") else call), facts


def ase_overhead(job: Job) -> Call:
    """The same calls to a calculator that computes nothing: what ASE itself takes."""
    _start(job)
    atoms = structures(job)[0]
    zero = {"energy": 0.0, "free_energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}

    class Nothing(Calculator):
        def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
            AseCalculator.calculate(self, atoms, list(properties), list(system_changes))
            self.results = dict(zero)

    return single_point(atoms, Nothing(build("nequip", _species(job), {"num_layers": 1, "num_features": 1})))


class _Ends(pl.Callback):
    """When steps end; validation comes before that, which the median does not see."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def _timed(function: Any, times: list[float]) -> Any:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        began = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - began)
        return result

    return run


def _profiled(call: Call) -> Call:
    """The same, with what the native code counted meanwhile: for each routine its seconds, operations and bytes."""
    extension = native.module()
    if extension is None:
        raise RuntimeError("the native kernels were not built")

    def run() -> Measured:
        extension.profile(True)
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        counted = {f"profile {name}": list(values) for name, values in extension.profiled().items()}
        extension.profile(False)
        return {"seconds": [seconds], **counted}

    return run


def _start(job: Job) -> None:
    torch.set_num_threads(job["threads"])
    if "kernel" in job:
        os.environ["EQUIPES_KERNEL"] = job["kernel"]


def _species(job: Job) -> list[str]:
    return sorted({symbol for atoms in structures(job) for symbol in atoms.get_chemical_symbols()})


def _frames(job: Job) -> list[Frame]:
    return [
        Frame(atoms, atoms.calc.results["energy"], atoms.calc.results["forces"], None, None, "frames", index)
        for index, atoms in enumerate(structures(job))
    ]


def _potential(job: Job, graphs: list[Any]) -> Potential:
    model = {key: value for key, value in job["model"].items() if key != "architecture"}
    architecture = job["model"].get("architecture", "nequip")
    if "avg_num_neighbors" in inspect.signature(ARCHITECTURES[architecture]).parameters:
        model["avg_num_neighbors"] = mean_neighbors(graphs)
    return build(architecture, _species(job), model)


def _graph(atoms: Any, job: Job) -> Any:
    from equipes.graph import AtomGraph

    return AtomGraph.from_atoms(atoms, job["model"]["r_max"])


def _calculator(job: Job, atoms: Any) -> Calculator:
    potential = _potential(job, [_graph(atoms, job)])
    options = {"skin": job["skin"]} if "skin" in job else {}
    frozen = job.get("frozen", False)
    if "exact" in inspect.signature(Calculator.__init__).parameters:
        options["exact"] = not frozen
    elif frozen:
        raise RuntimeError("this version of equipes has no frozen engine")
    return Calculator(potential, **options)


def _config(job: Job, data: str) -> dict[str, Any]:
    size = len(job["frames"])
    model = {key: value for key, value in job["model"].items() if key != "avg_num_neighbors"}
    return {
        "data": {"train": data, "val": data, "n_train": size, "checks": "off"},
        "model": model,
        "train": {
            "batch_size": size,
            "max_steps": 30,
            "validate_every": 1000,
            "learning_rate": 1e-4,
            "stress_weight": 0.0,
        },
    }


if __name__ == "__main__":
    serve(
        {
            "training step": training_step,
            "training loop": training_loop,
            "inference": inference,
            "ASE overhead": ase_overhead,
        }
    )
