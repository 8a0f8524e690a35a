"""What fine-tuning a universal potential on few frames of a liquid buys, and what of crystals it forgets.

    python benchmarks/fine_tuning.py 20 100 --minutes 1 --out runs/fine_tuning

Frames of EC/EMC electrolyte (160 atoms, `ec_emc_liquid` of the shared data): so many to train on, 8 to validate with,
and the 30 of the test file, which nothing is chosen by. Each case is one command, `equipes train`, with the same budget
of processor minutes: all weights of the base, with and without replay, adapters, the readout alone, and a NequIP from
scratch with the defaults. Beside the errors on the test file stands what was forgotten: on the crystals that
`equipes train` holds out, against the base, and on frames of MPtrj with DFT labels (`mptrj-random-1k.xyz`, cells of at
most 16 atoms without the elements of the data), before and after. A case that is done is not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import tables

CASES: dict[str, list[str] | None] = {
    "all weights": [],
    "all weights, replay": ["fine_tuning.replay=crystals"],
    "adapters of rank 16": ["fine_tuning.adapter_rank=16"],
    "adapters, replay": ["fine_tuning.adapter_rank=16", "fine_tuning.replay=crystals"],
    "readout alone": ["fine_tuning.freeze=[embedding, radial, interactions]"],
    "from scratch": None,
}
SHORT = {"base": "before", **{name: name.replace(",", "").replace(" ", "-") for name in CASES}}


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument("frames", nargs="+", type=int, help="how many to train on: 20, 100")
    parser.add_argument("--base", default="7net-0")
    parser.add_argument("--cases", nargs="*", choices=[*CASES], default=[*CASES])
    parser.add_argument("--minutes", type=float, default=1.0, help="processor minutes of each (%(default)s)")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    options = parser.parse_args()
    tables.check_outputs(options)
    options.out.mkdir(parents=True, exist_ok=True)
    minutes = 0.2 if options.quick else options.minutes
    rows = [before(options)]
    for n in options.frames:
        rows += [run(case, n, minutes, options) for case in options.cases]
    columns = ["", "frames", "energy meV/atom", "forces meV/Å", "stress meV/Å³", "steps"]
    columns += ["forgotten: energy meV/atom", "forces meV/Å", "MPtrj forces meV/Å"]
    show = [
        [
            row["case"],
            row["frames"],
            row["test"]["energy_mae_mev_per_atom"],
            row["test"]["forces_mae_mev_per_ang"],
            row["test"]["stress_mae_mev_per_ang3"],
            row["steps"],
            (row["forgetting"] or {}).get("energy_mae_mev_per_atom"),
            (row["forgetting"] or {}).get("forces_mae_mev_per_ang"),
            row["mptrj_forces_mae_mev_per_ang"],
        ]
        for row in rows
    ]
    tables.show(f"Mean absolute errors, {minutes:g} processor minutes each", columns, show)
    facts = machine.conditions()
    print("\n" + machine.sentence(facts))
    tables.write_json(options, rows, facts)


def before(options: Any) -> dict[str, Any]:
    """The base with reference energies fitted to 20 frames: one step at a rate too small to do anything."""
    settings = ["train.max_steps=1", "train.learning_rate=1e-12", "fine_tuning.forgetting_frames=0"]
    row = _run(options, "before", 20, [f"fine_tuning.base={options.base}", *settings])
    return {"case": f"{options.base}, reference energies fitted", **row, "steps": 0}


def run(case: str, n: int, minutes: float, options: Any) -> dict[str, Any]:
    """Train and evaluate one case; skip what an earlier call finished."""
    changes = CASES[case]
    settings = ["train.clock=processor", f"train.max_minutes={minutes}"]
    if changes is not None:
        settings += [f"fine_tuning.base={options.base}", *changes]
    row = _run(options, f"{SHORT[case]}-{n}-{minutes:g}min", n, settings, scratch=changes is None)
    return {"case": case, **row}


def _run(options: Any, name: str, n: int, settings: list[str], *, scratch: bool = False) -> dict[str, Any]:
    out = options.out / name
    result = out / "RESULT.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    liquid = options.shared / "data" / "ec_emc_liquid"
    data = [f"data.train={liquid / 'ec_emc_train.xyz'}", f"data.n_train={n}", "data.n_val=8"]
    # From scratch the reference energies of one composition say nothing about its elements, nor need they.
    equipes("train", *data, *settings, "--out", str(out), "--resume")
    model, test = str(out / "model.safetensors"), out / "test.json"
    equipes("evaluate", model, str(liquid / "ec_emc_test.xyz"), "--json", str(test), "--overwrite")
    summary = json.loads((out / "summary.json").read_text())
    forgetting = (summary.get("fine_tuning") or {}).get("forgetting") or {}
    row = {
        "frames": n,
        "steps": summary["steps"],
        "minutes": summary["minutes"],
        "validation": summary["validation"],
        "test": {
            key: value for key, value in json.loads(test.read_text()).items() if isinstance(value, float)
        },
        "forgetting": forgetting.get("after"),
        "mptrj_forces_mae_mev_per_ang": None if scratch else _mptrj(out, model, options),
        "conditions": machine.conditions(),
    }
    result.write_text(json.dumps(row, indent=2) + "\n")
    return row


def _mptrj(out: Path, model: str, options: Any) -> float:
    """Mean absolute error of forces on real frames of what the base was trained on."""
    from ase.io import read, write

    frames = read(options.shared / "data" / "mattersim_benchmarks" / "mptrj-random-1k.xyz", ":")
    small = [atoms for atoms in frames if 4 <= len(atoms) <= 16 and not set(atoms.symbols) & {"H", "C"}]
    write(out / "mptrj.extxyz", small[:60])
    report = out / "mptrj.json"
    equipes("evaluate", model, str(out / "mptrj.extxyz"), "--json", str(report), "--overwrite")
    return float(json.loads(report.read_text())["forces_mae_mev_per_ang"])


def equipes(*arguments: str) -> None:
    """Run a command of equipes as a user would."""
    print("$ equipes", " ".join(arguments), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "equipes", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    tables.run(main)
