"""How long energy, forces and stress take through the ASE calculator, and how much memory.

    python benchmarks/inference.py                        against nequip and sevenn, one thread and all cores
    python benchmarks/inference.py --model mace           a MACE model, against mace-torch and symmetrix-xl
    python benchmarks/inference.py --model schnet         or physnet, or ani: frozen against exact
    python benchmarks/inference.py --crystals SiO2 Cu --atoms 512 --peers sevenn
    python benchmarks/inference.py --atoms 20000 --peers  equipes alone, a larger crystal

The model has the sizes of SevenNet-0: 5 layers, 128x0e+64x1o+32x2e, 5 Å, radial network 2×64, float32. nequip runs
it with the same hyperparameters, sevenn runs SevenNet-0 itself. The MACE model has the sizes of MACE-MP-0 small
(128x0e, 6 Å), and all three run the same. The structures are cubes of silicon (28 neighbours an atom within 5 Å) and
aspirin. Atoms move by up to 0.02 Å before each call, as they do in a simulation; the others collect neighbours anew
then, and equipes when an atom has moved half of its skin (`--skin 0`: every time). `ASE alone` is the same calls to a
calculator that computes nothing. `first result` is how long the calculator took for its first one: equipes freezes the
model, symmetrix-xl writes and compiles code, which it keeps for the structures that follow in the same run. Memory is
the peak of a process of its own that made two calls on one thread with the usual allocator settings.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import tempfile
from contextlib import ExitStack
from typing import Any

import machine
import systems
import tables
from peers import Worker, frames, python_of, take_turns

from equipes.calculators import Calculator

MODEL = {
    "r_max": 5.0,
    "num_layers": 5,
    "l_max": 2,
    "num_features": [128, 64, 32],
    "parity": False,
    "radial_mlp_depth": 2,
    "radial_mlp_width": 64,
}
MODELS = {
    "sevennet-0": MODEL,
    "mace": {**systems.MACE_SMALL, "r_max": 6.0},
    "schnet": {"architecture": "schnet", "r_max": 5.0},
    "physnet": {"architecture": "physnet", "r_max": 5.0},
    "ani": {"architecture": "ani", "r_max": 5.2},
}
PEERS_OF = {"sevennet-0": ["nequip", "sevenn"], "mace": ["mace", "symmetrix"]}
ATOMS = [64, 512, 4096]
FROZEN, EXACT = "equipes, frozen", "equipes, exact"


def programs(options: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the name in the table: which environment, and what more its job says."""
    own = {"skin": options.skin} if options.skin is not None else {}
    engines = {FROZEN: ("equipes", {**own, "frozen": True}), EXACT: ("equipes", {**own, "frozen": False})}
    if not has_frozen_engine():
        print("This version of equipes has no frozen engine: its column is left out.", flush=True)
        del engines[FROZEN]
    more = {"symmetrix": {"jit_cache": options.jit_cache}}
    return {**engines, **{peer: (peer, more.get(peer, {})) for peer in options.peers}}


def measure(
    name: str,
    atoms: Any,
    threads: int,
    table: dict[str, tuple[str, dict[str, Any]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All programs on one structure."""
    job = {"task": "inference", "frames": frames([atoms]), "model": MODELS[options.model]}
    with ExitStack() as stack:
        workers = {
            program: stack.enter_context(
                Worker(peer, {**job, **more}, threads=threads, environments=options.environments)
            )
            for program, (peer, more) in table.items()
        }
        workers["ASE alone"] = stack.enter_context(Worker("equipes", {**job, "task": "ASE overhead"}))
        rounds = 2 if options.quick else options.rounds
        times = take_turns(workers, rounds, seconds=0.3 if options.quick else 2.0)
        facts = {program: worker.facts for program, worker in workers.items()}
    row: dict[str, Any] = {
        "structure": name,
        "atoms": len(atoms),
        "edges": facts[EXACT]["edges"],
        "threads": threads,
        "ms": {program: tables.milliseconds(seconds) for program, seconds in times.items()},
        "least ms": {program: 1e3 * min(seconds) for program, seconds in times.items()},
        "calls": {program: len(seconds) for program, seconds in times.items()},
        "first": {program: fact["first"] for program, fact in facts.items() if "first" in fact},
        "versions": {program: fact["versions"] for program, fact in facts.items()},
    }
    if threads == 1 and not options.no_memory:
        row["memory"] = {
            program: _memory(peer, {**job, **more}, options) for program, (peer, more) in table.items()
        }
    return row


def _memory(peer: str, job: dict[str, Any], options: argparse.Namespace) -> float:
    """MB, the peak of a fresh process."""
    with Worker(peer, job, environments=options.environments, tuned_allocator=False) as worker:
        return float(worker.ask(2)["peak_mb"])


def has_frozen_engine() -> bool:
    """Whether this version of equipes can freeze a potential."""
    return "exact" in inspect.signature(Calculator.__init__).parameters


def main() -> None:
    parser = tables.parser(__doc__)
    tables.add_peer_options(parser, [], ["nequip", "sevenn", "mace", "symmetrix"])
    parser.set_defaults(peers=None)
    parser.add_argument("--model", choices=MODELS, default="sevennet-0", help="default: %(default)s")
    parser.add_argument("--atoms", nargs="*", type=int, default=None, help=f"of crystals, default: {ATOMS}")
    parser.add_argument(
        "--crystals", nargs="*", choices=["Si", "SiO2", "Cu"], default=["Si"], help="default: %(default)s"
    )
    parser.add_argument(
        "--skin", type=float, help="Å, of equipes's neighbour list; default: the calculator's"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that each program has (%(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the measurement of memory")
    options = parser.parse_args()
    tables.check_outputs(options)
    options.peers = PEERS_OF.get(options.model, []) if options.peers is None else options.peers
    for peer in [*options.peers, *(["mace"] if "symmetrix" in options.peers else [])]:
        python_of(peer, options.environments)
    with tempfile.TemporaryDirectory(prefix="equipes-symmetrix-") as folder:
        options.jit_cache = folder
        _run(options)


def _run(options: argparse.Namespace) -> None:
    table = programs(options)
    sizes = options.atoms if options.atoms is not None else ([64] if options.quick else ATOMS)
    cases = {"aspirin": systems.molecules("aspirin", 1)[0]}
    for name in options.crystals:
        for size in sizes:
            crystal = systems.silicon(size)[0] if name == "Si" else systems.crystal(name, size)
            cases[f"{name} {len(crystal)}"] = crystal
    rows = []
    for threads in [1] if options.quick and options.threads is None else tables.threads_of(options):
        for name, atoms in cases.items():
            rows.append(measure(name, atoms, threads, table, options))
            print(".", end="", flush=True)
    show(rows, list(table))
    facts = machine.conditions()
    del facts["threads"]
    facts["programs"] = rows[0]["versions"]
    print(f"\n{tables.ALLOCATOR_NOTE}\n\n{machine.sentence(facts)}")
    tables.write_json(options, rows, facts)


def show(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Times, ratios to the fastest of our engines, and memory."""
    ours = names[0]
    peers = [name for name in names if name not in (FROZEN, EXACT)]
    columns = [
        "structure",
        "threads",
        *(f"{name}, ms" for name in names),
        "ASE alone, ms",
        f"{ours}, µs an atom",
    ]
    columns += [f"{peer} / {ours}" for peer in peers]
    cells = []
    for row in rows:
        ms = row["ms"]
        line = [row["structure"], row["threads"], *(ms[name] for name in names), ms["ASE alone"]]
        cells.append([*line, 1e3 * ms[ours] / row["atoms"], *(ms[peer] / ms[ours] for peer in peers)])
    tables.show("Energy, forces and stress through the ASE calculator, float32, medians", columns, cells)
    firsts = [
        [row["structure"], row["threads"], *(row["first"].get(name) for name in names)]
        for row in rows
        if row["first"]
    ]
    tables.show("First result, s", ["structure", "threads", *names], firsts)
    _show_memory([row for row in rows if "memory" in row], names)


def _show_memory(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Peaks, and how much of them each further atom takes, from one crystal to the next larger one."""
    if not rows:
        return
    tables.show(
        "Peak memory of a process, MB",
        ["structure", *names],
        [[row["structure"], *(row["memory"][name] for name in names)] for row in rows],
    )
    crystals = [row for row in rows if row["structure"].startswith("Si")]
    cells = []
    for small, large in itertools.pairwise(crystals):
        more = large["atoms"] - small["atoms"]
        cells.append(
            [
                f"{small['structure']} to {large['structure']}",
                *(1e3 * (large["memory"][name] - small["memory"][name]) / more for name in names),
            ]
        )
    if cells:
        tables.show("Memory for each further atom, kB", ["structures", *names], cells)


if __name__ == "__main__":
    tables.run(main)
