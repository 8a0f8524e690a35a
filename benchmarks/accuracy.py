"""Accuracy that a budget of wall-clock minutes buys, through the command line, from files to errors on the test set.

    python benchmarks/accuracy.py ethanol-950 ethanol-50 cu si --minutes 30 --out runs

Each case trains with the defaults of `equipes train`, evaluates on frames that training never saw and, for the
crystals, relaxes the cell: lattice constant and bulk modulus stand beside the reference values of the data. The data
are looked for in `--shared` (../shared by default). Prints a table; writes RESULT.json into each run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine

KCAL = "data.units={energy: kcal/mol, length: Ang}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="+", help="MOLECULE-950, MOLECULE-50 (rMD17), or cu, si, ge, li, mo, ni"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training")
    options = parser.parse_args()
    rows = [run(case, options) for case in options.cases]
    print_table(rows)


def run(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate and, for a crystal, relax; skip what an earlier call finished."""
    out = options.out / f"{case}-{options.minutes:g}min"
    result = out / "RESULT.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    settings, test, element = _case(case, options.shared / "data")
    command = ["train", *settings, f"train.max_minutes={options.minutes}", *options.set, "--out", str(out)]
    if (out / "checkpoints").exists():
        command.append("--resume")
    equipes(*command)
    model = out / "model.safetensors"
    units = ["--units", "kcal/mol,Ang"] if test.suffix == ".npz" else []
    equipes("evaluate", str(model), str(test), *units, "--json", str(out / "test.json"), "--overwrite")
    row = {"case": case, "minutes": options.minutes, **_numbers(out / "test.json")}
    if element is not None:
        row |= _crystal(element, model, out, options.shared / "data")
    row["conditions"] = machine.conditions()
    result.write_text(json.dumps(row, indent=2) + "\n")
    return row


def equipes(*arguments: str) -> None:
    """Run a command of equipes as a user would."""
    command = [sys.executable, "-m", "equipes", *arguments]
    print("$ equipes", " ".join(arguments), flush=True)
    subprocess.run(command, check=True)


def _case(case: str, data: Path) -> tuple[list[str], Path, str | None]:
    name, _, frames = case.partition("-")
    if frames:
        n_val = 50
        train = data / "rmd17" / f"rmd17_{name}_train_01.npz"
        settings = [f"data.train={train}", f"data.n_train={frames}", f"data.n_val={n_val}", KCAL]
        return settings, data / "rmd17" / f"rmd17_{name}_test_01.npz", None
    element = name.capitalize()
    settings = [f"data.train={data / 'mlearn' / f'{element}_train.xyz'}"]
    return settings, data / "mlearn" / f"{element}_test.xyz", element


def _numbers(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    return {key: value for key, value in report.items() if isinstance(value, int | float)}


def _crystal(element: str, model: Path, out: Path, data: Path) -> dict[str, Any]:
    """Lattice constant (Å) and bulk modulus (GPa) of the conventional cubic cell, and the reference's."""
    from ase.build import bulk
    from ase.io import write

    start = out / f"{element}.extxyz"
    write(start, bulk(element, cubic=True))
    equipes(
        "eos",
        str(model),
        str(start),
        "--plot",
        str(out / "eos.png"),
        "--overwrite",
        "--json",
        str(out / "eos.json"),
    )
    eos = json.loads((out / "eos.json").read_text())
    reference = json.loads((data / "reference" / "lattice_elastic.json").read_text()).get(element, {})
    return {
        "lattice_constant_ang": eos["volume_ang3"] ** (1 / 3),
        "bulk_modulus_gpa": eos["bulk_modulus_gpa"],
        "reference": {key: value.get("value") for key, value in reference.items() if isinstance(value, dict)},
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Errors as Markdown."""
    print(
        "\n| case | minutes | energy MAE meV | meV/atom | forces MAE meV/Å | stress MAE meV/Å³ | a Å | B GPa |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["case"], f"{row['minutes']:g}"]
        for key, digits in (
            ("energy_mae_mev", 2),
            ("energy_mae_mev_per_atom", 3),
            ("forces_mae_mev_per_ang", 2),
            ("stress_mae_mev_per_ang3", 3),
            ("lattice_constant_ang", 3),
            ("bulk_modulus_gpa", 1),
        ):
            value = row.get(key)
            cells.append("" if value is None else f"{value:.{digits}f}")
        print("| " + " | ".join(cells) + " |")
    for row in rows:
        if row.get("reference"):
            print(f"\n{row['case']} reference: {row['reference']}")
    print("\n" + machine.sentence(rows[-1]["conditions"]))


if __name__ == "__main__":
    main()
