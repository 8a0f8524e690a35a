"""How long one training step takes, from a batch to updated parameters, and what surrounds it in a training.

    python benchmarks/training_step.py                   against nequip and mace, one thread and all cores
    python benchmarks/training_step.py --models mace     the MACE model only
    python benchmarks/training_step.py --peers           equipes alone
    python benchmarks/training_step.py --reference       also with the reference kernel, plain PyTorch

Models a and b are NequIPs, which nequip runs; the model mace has the sizes of MACE-MP-0 small, and mace-torch runs it.
The step is `TrainingModule.training_step`: energies, forces, loss, gradient, its norm, AdamW, average of the weights.
That of a peer is its eager model with the same hyperparameters, squared errors, backward pass and Adam, without what
its own module adds. Programs take turns on the same structures, and medians are printed. `in training` is the time from
step to step of `equipes train`, of which batching is the joining of graphs, and the rest Lightning and the supervision.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

import machine
import systems
import tables
from peers import Worker, frames, python_of, take_turns

_COMMON = {"r_max": 5.0, "parity": True, "radial_mlp_depth": 2, "radial_mlp_width": 64}
MODELS = {
    "a": {"num_layers": 4, "l_max": 2, "num_features": 32, **_COMMON},
    "b": {"num_layers": 5, "l_max": 3, "num_features": 64, **_COMMON},
    "mace": {**systems.MACE_SMALL, "r_max": 5.0},
}
# Which other package runs a model.
PEER_OF = {"a": "nequip", "b": "nequip", "mace": "mace"}
CASES = {
    "aspirin × 5": lambda: systems.molecules("aspirin", 5),
    "aspirin × 1": lambda: systems.molecules("aspirin", 1),
    "ethanol × 5": lambda: systems.molecules("ethanol", 5),
    "Si 64 × 4": lambda: systems.silicon(64, 4),
    "Si 64 × 1": lambda: systems.silicon(64, 1),
}
RUNS = [("a", case) for case in CASES if case != "Si 64 × 1"] + [("b", "aspirin × 5")]
RUNS += [("mace", "aspirin × 5"), ("mace", "ethanol × 5"), ("mace", "Si 64 × 1")]


def measure(model: str, case: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """All programs on one batch."""
    job = {"task": "training step", "frames": frames(CASES[case]()), "model": MODELS[model]}
    programs = {"equipes": ("equipes", job)}
    programs |= {peer: (peer, job) for peer in options.peers if peer == PEER_OF[model]}
    if options.reference:
        programs["reference"] = ("equipes", {**job, "kernel": "reference"})
    rounds = 2 if options.quick else options.rounds
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(program, job, threads=threads, environments=options.environments)
            )
            for name, (program, job) in programs.items()
        }
        facts = {name: worker.facts for name, worker in workers.items()}
        _check_same_model(facts)
        times = take_turns(workers, rounds, seconds=0.3 if options.quick else 1.0)
    row: dict[str, Any] = {
        "model": model,
        "batch": case,
        "threads": threads,
        **{name: facts["equipes"][name] for name in ("atoms", "edges", "parameters")},
        "versions": {name: fact["versions"] for name, fact in facts.items()},
        "ms": {name: tables.milliseconds(seconds) for name, seconds in times.items()},
        "least ms": {name: 1e3 * min(seconds) for name, seconds in times.items()},
        "calls": {name: len(seconds) for name, seconds in times.items()},
    }
    if not options.step_only:
        row["surroundings"] = _surroundings(job, threads, options)
    return row


def _check_same_model(facts: dict[str, dict[str, Any]]) -> None:
    """Who claims to run the same model on the same batch has as many parameters and edges.

    mace-torch counts parameters of coupling paths that repeat each other; here there are fewer.
    """
    ours = facts["equipes"]
    for name, theirs in facts.items():
        keys = ("atoms", "edges") if name == "mace" else ("atoms", "edges", "parameters")
        if any(theirs[key] != ours[key] for key in keys):
            raise RuntimeError(f"{name} has another model or another batch: {theirs}, and equipes {ours}")


def _surroundings(job: dict[str, Any], threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Step to step in a training, and what of it the step itself and batching take; ms."""
    times: dict[str, list[float]] = {"seconds": [], "step": [], "batching": []}
    with Worker("equipes", {**job, "task": "training loop"}, threads=threads) as worker:
        for _ in range(1 if options.quick else 3):
            answer = worker.ask()
            for name in times:
                times[name] += answer[name]
    return {name: tables.milliseconds(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = tables.parser(__doc__)
    tables.add_peer_options(parser, ["nequip", "mace"])
    parser.add_argument("--reference", action="store_true", help="also the reference kernel")
    parser.add_argument("--step-only", action="store_true", help="leave out what surrounds a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each program has (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    tables.check_outputs(options)
    runs = [run for run in RUNS if run[0] in options.models]
    if options.quick:
        runs = [(model, "ethanol × 5") for model in options.models if model != "b"]
    options.peers = [peer for peer in options.peers if peer in {PEER_OF[model] for model, _ in runs}]
    for peer in options.peers:
        python_of(peer, options.environments)
    rows = []
    for threads in [1] if options.quick and options.threads is None else tables.threads_of(options):
        for model, case in runs:
            rows.append(measure(model, case, threads, options))
            print(".", end="", flush=True)
    for peer in dict.fromkeys(PEER_OF[model] for model, _ in runs):
        own = [row for row in rows if PEER_OF[row["model"]] == peer]
        _show(own, peer if peer in options.peers else None, options)
    if not options.step_only:
        _show_surroundings(rows)
    facts = machine.conditions()
    del facts["threads"]
    versions = {name: found for row in rows for name, found in row["versions"].items()}
    facts["programs"] = versions
    print(f"\n{tables.ALLOCATOR_NOTE}\n\n{machine.sentence(facts)}")
    tables.write_json(options, rows, facts)


def _show(rows: list[dict[str, Any]], peer: str | None, options: argparse.Namespace) -> None:
    """The models that one peer runs, beside it."""
    others = [*([peer] if peer else []), *(["reference"] if options.reference else [])]
    columns = ["model, batch", "threads", "atoms", "edges", "equipes, ms"]
    for name in others:
        columns += [f"{name}, ms", f"{name} / equipes"]
    cells = []
    for row in rows:
        line = [
            f"{row['model']}, {row['batch']}",
            row["threads"],
            row["atoms"],
            row["edges"],
            row["ms"]["equipes"],
        ]
        for name in others:
            line += [row["ms"][name], row["ms"][name] / row["ms"]["equipes"]]
        cells.append(line)
    tables.show("Training step, float32, medians", columns, cells)


def _show_surroundings(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        loop, step, batching = (row["surroundings"][part] for part in ("seconds", "step", "batching"))
        rest = loop - step - batching
        cells.append(
            [f"{row['model']}, {row['batch']}", row["threads"], loop, step, batching, rest, 100 * rest / loop]
        )
    columns = [
        "model, batch",
        "threads",
        "in training, ms",
        "step, ms",
        "batching, ms",
        "Lightning and the rest, ms",
    ]
    tables.show("A step as part of `equipes train`", [*columns, "its share, %"], cells)


if __name__ == "__main__":
    tables.run(main)
