"""How well potentials do on what others have measured or calculated, beside what others have published.

Some are trained on first, under a budget; others are asked of a potential that is there.
"""

from __future__ import annotations

from equipes.benchmark.cases import Case, HeldOut, mlearn_case, molecule_frames, rmd17_case, temperature_case
from equipes.benchmark.crystals import CRYSTALS, Crystal, CrystalResult, crystal_benchmark
from equipes.benchmark.polymorphs import TRANSITIONS, Transition, TransitionResult, transition_benchmark
from equipes.benchmark.runs import BenchmarkSettings, Row, run
from equipes.benchmark.tables import markdown, published, write_results

__all__ = [
    "CRYSTALS",
    "TRANSITIONS",
    "BenchmarkSettings",
    "Case",
    "Crystal",
    "CrystalResult",
    "HeldOut",
    "Row",
    "Transition",
    "TransitionResult",
    "crystal_benchmark",
    "markdown",
    "mlearn_case",
    "molecule_frames",
    "published",
    "rmd17_case",
    "run",
    "temperature_case",
    "transition_benchmark",
    "write_results",
]
