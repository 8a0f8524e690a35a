"""Plots and the self-contained HTML report: what a potential gets right and wrong, for people to look at."""

from __future__ import annotations

from equipes.report.curves import learning_curves, md_plot
from equipes.report.page import write_plots, write_report
from equipes.report.plots import error_histogram, group_plot, parity_plot

__all__ = [
    "error_histogram",
    "group_plot",
    "learning_curves",
    "md_plot",
    "parity_plot",
    "write_plots",
    "write_report",
]
