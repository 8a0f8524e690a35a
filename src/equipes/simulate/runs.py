"""Several runs of molecular dynamics that do not depend on each other, one after the other or side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import ase
from ase.calculators.calculator import BaseCalculator

from equipes.simulate import records
from equipes.simulate.md import run_md
from equipes.simulate.processes import Stopped, processes_for_runs, spread
from equipes.simulate.records import Row
from equipes.simulate.settings import MDSettings

_TEMPERATURE = re.compile(r"[0-9.e+]+K")


def run_all(
    structure: ase.Atoms,
    calculator: BaseCalculator,
    settings: Mapping[str, MDSettings],
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    potential: str,
    on_step: Callable[[str, int, Row], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Run each of `settings` in a directory of `folder` with its name, as `run_md` does.

    With `overwrite` runs at other temperatures that are in `folder` are removed (`300K` and such).

    With more threads than one, and a number of runs that keeps them busy, the runs have a process each.

    Returns:
        The summaries of the runs that are done, by name, and whether a signal stopped the others.
    """

    def run(name: str, tell: Callable[[Any], None]) -> dict[str, Any]:
        where = folder / name
        result = run_md(
            structure,
            calculator,
            settings[name],
            where,
            resume=resume and (where / records.CHECKPOINT).is_file(),
            overwrite=overwrite,
            potential=potential,
            on_step=None if on_step is None else lambda step, row: tell((name, step, row)),
        )
        if result.interrupted:
            raise Stopped
        return result.summary

    def note(about: Any) -> None:
        if on_step is not None:
            on_step(*about)

    summaries: dict[str, dict[str, Any]] = {}
    processes = processes_for_runs(calculator, len(settings))
    try:
        with closing(spread(run, list(settings), processes, on_note=note)) as found:
            for name in settings:
                summaries[name] = next(found)
                if overwrite:  # not before something is there in their place
                    there = [path.name for path in folder.iterdir() if _TEMPERATURE.fullmatch(path.name)]
                    records.remove_other_runs(folder, there, settings)
    except Stopped:
        return summaries, True
    return summaries, False
