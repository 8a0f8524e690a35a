"""Which optimiser learns ethanol best in equal time: rMD17 split 01, 950 and 50 training frames, judged on validation.

    python benchmarks/optimizers.py --minutes 10
    python benchmarks/optimizers.py adamw "adamw learning_rate=0.003" "soap energy_weight=10" --minutes 10 --frames 50

A variant is an optimiser and changes to the train section. Every variant trains for the same wall-clock time on 50
validation frames that are the same for all; the test frames are never read. Runs follow each other, so keep the machine
quiet. Prints one table a setting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "rmd17" / "rmd17_ethanol_train_01.npz"


def run(variant: str, n_train: int, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The summary of one training."""
    optimizer, *changes = variant.split()
    command = [
        sys.executable, "-m", "equipes", "train", f"data.train={options.data}", f"data.n_train={n_train}",
        "data.n_val=50", "data.units={energy: kcal/mol, length: Ang}", "data.split_seed=1",
        f"train.optimizer={optimizer}", f"train.max_minutes={options.minutes}", f"train.seed={options.seed}",
        "train.batch_size=5", *changes, "--out", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=["adamw", "soap"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--frames", type=int, nargs="+", default=[950, 50])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="optimizers-"))
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    results: dict[str, Any] = {
        "conditions": machine.conditions(),
        "minutes": options.minutes,
        "validation": {},
    }
    for n_train in options.frames:
        table = Table(
            title=f"ethanol, {n_train} frames, {options.minutes:g} minutes: validation", title_justify="left"
        )
        for heading in (
            "variant",
            "steps",
            "ms/step",
            "energy MAE, meV",
            "forces MAE, meV/Å",
            "forces RMSE, meV/Å",
            "best step",
        ):
            table.add_column(heading, justify="left" if heading == "variant" else "right")
        for number, variant in enumerate(options.variants):
            summary = run(variant, n_train, options, out / f"{n_train}-{number}")
            row = summary["validation"]
            results["validation"][f"{n_train} {variant}"] = {**row, "steps": summary["steps"]}
            table.add_row(
                variant,
                str(summary["steps"]),
                f"{60e3 * summary['minutes'] / summary['steps']:.1f}",
                f"{9 * row['val_energy_mae_mev_per_atom']:.2f}",
                f"{row['val_forces_mae_mev_per_ang']:.2f}",
                f"{row['val_forces_rmse_mev_per_ang']:.2f}",
                str(row["step"]),
            )
        console.print(table)
    (out / "optimizers.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(machine.sentence(results["conditions"]), f"\n{out / 'optimizers.json'}")


if __name__ == "__main__":
    main()
