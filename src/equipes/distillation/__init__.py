"""Distillation: a small fast potential that says, around one structure, what a large one says.

The large one labels geometries of that structure (`equipes.sampling`), the small one is trained on them, and both are
compared where neither training nor its sampling has been.
"""

from __future__ import annotations

from equipes.distillation.comparison import Comparison, Speed, compare_speed
from equipes.distillation.run import Distillation, distill
from equipes.distillation.settings import DistillationOptions

__all__ = ["Comparison", "Distillation", "DistillationOptions", "Speed", "compare_speed", "distill"]
