"""What every workflow says about itself beside its numbers: how it was done, whom to cite, and what was converged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import ase
import numpy as np


class Progress(Protocol):
    """Called as a workflow goes on: what is being done, how many of it are done, and how many there are."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody sees."""


@dataclass(frozen=True)
class Check:
    """One thing that was varied to see whether the answer depends on it.

    Attributes:
        what: what was varied, and what of the answer is compared.
        change: by how much the answer changed.
        limit: the largest change that counts as converged.
        unit: of both; "" is a ratio, shown in per cent.
    """

    what: str
    change: float
    limit: float
    unit: str = ""

    @property
    def converged(self) -> bool:
        """Whether the change stays under the limit; a change that is no number does not."""
        return bool(self.change <= self.limit)

    def sentence(self) -> str:
        """The check in words.

        >>> Check("half the strain: largest elastic constant", 0.02, 0.01).sentence()
        'half the strain: largest elastic constant changes by 2 % (NOT converged: limit 1 %)'
        """
        change, limit = _amount(self.change, self.unit), _amount(self.limit, self.unit)
        verdict = f"limit {limit}" if self.converged else f"NOT converged: limit {limit}"
        return f"{self.what} changes by {change} ({verdict})"


@dataclass(frozen=True)
class Provenance:
    """How a result came about.

    Attributes:
        method: one sentence.
        citations: the papers to cite for it.
        checks: what was varied to see whether it is converged.
        warnings: sentences a reader must not miss.
    """

    method: str
    citations: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether every check passed."""
        return all(check.converged for check in self.checks)


def plain(value: Any) -> Any:
    """Results as plain JSON values: dataclasses and mappings as dictionaries, arrays as lists, structures as cell
    parameters (Å, degrees) with their number of atoms.

    >>> plain(Check("mesh", np.float64(0.5), 1.0, "GPa"))
    {'what': 'mesh', 'change': 0.5, 'limit': 1.0, 'unit': 'GPa', 'converged': True}
    """
    if isinstance(value, ase.Atoms):
        return {
            "formula": value.get_chemical_formula(),
            "n_atoms": len(value),
            "cell": value.cell.cellpar().tolist(),
        }
    if isinstance(value, Check | Provenance):
        own = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {**own, "converged": value.converged}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _amount(value: float, unit: str) -> str:
    return f"{100 * value:.3g} %" if not unit else f"{value:.3g} {unit}"
