"""Published data sets with the published figures: train any architecture on them and put the results side by side."""

from __future__ import annotations

from equipes.benchmark.cases import Case, HeldOut, molecule_frames, rmd17_case, temperature_case
from equipes.benchmark.runs import BenchmarkSettings, Row, run
from equipes.benchmark.tables import markdown, published, write_results

__all__ = [
    "BenchmarkSettings",
    "Case",
    "Row",
    "HeldOut",
    "markdown",
    "molecule_frames",
    "published",
    "rmd17_case",
    "run",
    "temperature_case",
    "write_results",
]
