"""equipes: equivariant potential energy surfaces, from quantum-mechanical data to simulations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. They are imported on first use, so that `import equipes` and the command line's
# help do not wait for torch.
_HOMES = {
    "AtomGraph": "equipes.graph",
    "Potential": "equipes.models.potential",
    "Prediction": "equipes.models.potential",
    "FrozenPotential": "equipes.models.frozen",
    "load": "equipes.foundation",
    "load_frozen": "equipes.models",
    "build": "equipes.models",
    "Calculator": "equipes.calculators",
    "Committee": "equipes.calculators",
    "InputError": "equipes.errors",
}
_ROOMS = ("benchmark", "calculators", "data", "foundation", "models", "report", "simulate", "training")


__all__ = [
    "AtomGraph",
    "Calculator",
    "Committee",
    "FrozenPotential",
    "InputError",
    "Potential",
    "Prediction",
    "__version__",
    "build",
    "load",
    "load_frozen",
    *_ROOMS,
]

if TYPE_CHECKING:
    from equipes.calculators import Calculator, Committee
    from equipes.errors import InputError
    from equipes.foundation import load
    from equipes.graph import AtomGraph
    from equipes.models import build, load_frozen
    from equipes.models.frozen import FrozenPotential
    from equipes.models.potential import Potential, Prediction


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"equipes.{name}")
    raise AttributeError(f"module 'equipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
