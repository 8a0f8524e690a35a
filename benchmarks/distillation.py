"""Student against teacher: an oxide distilled from 7net-l3i5, its errors at 300 to 1000 K, stability and speed.

    python benchmarks/distillation.py --out distillation
    python benchmarks/distillation.py --out distillation --teacher 7net-0 --picoseconds 5

Does what `equipes distill` does, with a training that is limited by the time that it computes, so that other work on
the machine does not change the student. Prints a table for each student; `--resume` goes on where it was stopped. With
the defaults it computes for about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ase
import machine
from ase.build import bulk
from rich.console import Console

from equipes import Calculator
from equipes.benchmark import CRYSTALS
from equipes.distillation import Distillation, DistillationOptions, distill
from equipes.distillation.run import Interrupted

STUDENTS = {
    "2 layers, l_max 2, 32 features": (),
    "2 layers, l_max 1, 16 features": ("model.l_max=1", "model.num_features=16"),
}


def oxide(name: str) -> ase.Atoms:
    """Near its PBE volume; the distillation relaxes it."""
    if name == "MgO":
        return bulk("MgO", "rocksalt", a=4.25, cubic=True)
    return next(crystal for crystal in CRYSTALS if crystal.name == name).make()


def table(result: Distillation) -> str:
    """Held-out trajectories, one row each, and the speed."""
    lines = [
        "| dynamics of | K | ps | forces MAE, meV/Å | RMSE | rms of the forces, meV/Å | energy MAE, meV/atom "
        "| stress MAE, meV/Å³ | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result.comparisons:
        stress = row.stress_mae_mev_per_ang3
        verdict = "" if row.stable is None else "stable" if row.stable else "unstable"
        lines.append(
            f"| the {row.driver} | {row.temperature_k:g} | {row.picoseconds:.3g} | {row.forces_mae_mev_per_ang:.1f} "
            f"| {row.forces_rmse_mev_per_ang:.1f} | {1000 * row.forces_rms_ev_per_ang:.0f} "
            f"| {row.energy_mae_mev_per_atom:.2f} | {'' if stress is None else f'{stress:.2f}'} | {verdict} |"
        )
    speed = result.speed
    student = f"{result.parameters:,} parameters, cutoff {result.cutoff:g} Å"
    lines.append(
        f"\n{speed.n_atoms} atoms: teacher {speed.teacher_ms:.1f} ms, student {speed.student_ms:.2f} ms a call, "
        f"{speed.gain:.0f} times as fast. {student}; {result.frames} frames of "
        f"{result.n_atoms} atoms; {result.steps} steps in {result.minutes:.1f} processor minutes."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="7net-l3i5")
    parser.add_argument("--oxide", choices=("MgO", "SiO2"), default="MgO")
    parser.add_argument("--student", choices=list(STUDENTS), nargs="+", default=list(STUDENTS)[:1])
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=3.0, help="processor minutes of each training")
    parser.add_argument("--picoseconds", type=float, default=50.0, help="of each run of the student")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    teacher = Calculator(options.teacher)
    results = {}
    for number, name in enumerate(options.student):
        settings = DistillationOptions(
            frames=options.frames,
            minutes=options.minutes,
            test_picoseconds=options.picoseconds,
            student=(*STUDENTS[name], "train.clock=processor"),
        )
        try:
            result = distill(
                oxide(options.oxide),
                teacher,
                options.out / f"{options.oxide}-{number}.safetensors",
                settings,
                teacher_name=options.teacher,
                resume=options.resume,
            )
        except Interrupted:
            raise SystemExit("stopped; --resume goes on") from None
        results[name] = result.summary()
        print(f"\n{options.oxide}, student of {options.teacher}: {name}\n\n{table(result)}", flush=True)
    facts = machine.conditions()
    console.print(f"\n{machine.sentence(facts)}", highlight=False)
    (options.out / "distillation.json").write_text(
        json.dumps({"conditions": facts, "students": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
