"""A reduced case of every workflow, our number beside the reference value and its source, on one page.

    python benchmarks/applications.py --model 7net-0 --out applications
    python benchmarks/applications.py --only dft --out applications

`dft` cases need no model: they analyse forces and displacements of ab initio calculations, so that what differs from
the reference there is the workflow's own. The others take any potential that knows silicon, copper, lithium and the
rest. The data are looked for in `--shared` (../shared by default). Each case is stored as it is done, and the script
goes on where it was stopped. OUT/applications.md is the page and OUT/applications.json its numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import application_crystals as crystals
import application_motion as motion
import application_parts as parts
import heat_cases
import machine
from application_parts import References, Row, Setting

CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "dft phonons": parts.phonon_dft_case,
    "dft conductivity": parts.conductivity_dft_case,
    "dft diffusion": parts.diffusion_dft_case,
    "dft expansion": parts.expansion_dft_case,
    "eos": crystals.eos_case,
    "relax": crystals.relax_case,
    "elastic": crystals.elastic_case,
    "phonons": crystals.phonon_case,
    "md": motion.md_case,
    "phonons salt": crystals.salt_case,
    "neb": motion.neb_case,
    "neb lithium": motion.lithium_case,
    "expansion": crystals.expansion_case,
    "expansion npt": crystals.npt_case,
    "conductivity": crystals.conductivity_case,
    "diffusion": motion.diffusion_case,
    "diffusion copper": motion.copper_diffusion_case,
    "melt-quench": motion.glass_case,
    "green-kubo": lambda at: (Row(*numbers) for numbers in heat_cases.glass(at)),
    "film": lambda at: (Row(*numbers) for numbers in heat_cases.film(at)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="7net-0", help="name or file of a potential")
    parser.add_argument("--only", nargs="*", default=list(CASES), help=f"of: dft, {', '.join(CASES)}")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("applications"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.shared / "data"
    setting = Setting(_calculators(options.model), data, References(data / "reference"), options.out)
    wanted = [
        name for name in CASES if any(name == word or name.startswith(f"{word} ") for word in options.only)
    ]
    path = options.out / "applications.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in wanted:
        if name in done:
            continue
        began = time.monotonic()
        rows = [asdict(row) for row in CASES[name](setting)]
        done[name] = {
            "model": None if name.startswith("dft") else options.model,
            "seconds": round(time.monotonic() - began, 1),
            "rows": rows,
            "conditions": machine.conditions(("equipes", "torch", "ase", "phonopy", "phono3py")),
        }
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {done[name]['seconds']} s")
    page = "\n".join(_page(done)) + "\n"
    (options.out / "applications.md").write_text(page)
    print(page)


def _page(done: dict[str, Any]) -> Iterator[str]:
    yield "| case | quantity | ours | reference | unit | source of the reference | s |"
    yield "|---|---|---|---|---|---|---|"
    for name in (case for case in CASES if case in done):
        entry = done[name]
        label = name if entry["model"] is None else f"{name}, {Path(entry['model']).stem}"
        for number, row in enumerate(entry["rows"]):
            ours = f"{row['ours']:.4g}" + ("" if row["error"] is None else f" ± {row['error']:.2g}")
            reference = row["reference"]
            if isinstance(reference, float | int):
                reference = f"{reference:.4g}"
            seconds = f"{entry['seconds']:.0f}" if number == 0 else ""
            yield (
                f"| {label if number == 0 else ''} | {row['quantity']} | {ours} | {reference} | {row['unit']} |"
                f" {row['source']} | {seconds} |"
            )
    last = next(reversed(done.values()))
    total = sum(entry["seconds"] for entry in done.values())
    yield ""
    yield f"{total / 60:.0f} minutes in all; {machine.sentence(last['conditions'])}."


def _calculators(model: str) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def calculator(dtype: str) -> Any:
        from equipes.calculators import Calculator

        if dtype not in loaded:
            loaded[dtype] = Calculator(model, dtype=dtype, freeze=True)
        return loaded[dtype]

    return calculator


if __name__ == "__main__":
    main()
