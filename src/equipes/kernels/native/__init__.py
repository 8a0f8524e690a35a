"""The compiled kernels: which of them runs here, and whether they were built at all."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

# Loaded first: its OpenMP runtime is then shared by the native code, so that there is one set of threads.
import torch  # noqa: F401

from equipes.errors import InputError

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")  # the best first


@cache
def module() -> ModuleType | None:
    """The extension for the best instruction set that this processor runs; None where none was built.

    `EQUIPES_INSTRUCTION_SET` chooses another.

    Raises:
        InputError: the variable names an instruction set that was not built or that this processor does not run.
    """
    built = {name: found for name in INSTRUCTION_SETS if (found := _import(name)) is not None}
    if not built:
        return None
    any_module = next(reversed(built.values()))
    usable = {name: found for name, found in built.items() if any_module.supports(name)}
    wanted = os.environ.get("EQUIPES_INSTRUCTION_SET")
    if wanted:
        if wanted not in usable:
            raise InputError(
                f"EQUIPES_INSTRUCTION_SET={wanted} does not run here; choose from {', '.join(usable) or 'none'}"
            )
        return usable[wanted]
    return next(iter(usable.values()), None)


def _import(name: str) -> ModuleType | None:
    try:
        return import_module(f"{__name__}._{name}")
    except ImportError:
        return None
