"""How well a potential does on what others have measured or calculated."""

from __future__ import annotations

from equipes.benchmark.crystals import CRYSTALS, Crystal, CrystalResult, crystal_benchmark

__all__ = ["CRYSTALS", "Crystal", "CrystalResult", "crystal_benchmark"]
