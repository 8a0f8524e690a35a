"""The compiled kernels: which of them runs here, and whether they were built at all."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Loaded first: its OpenMP runtime is then shared by the native code, so that there is one set of threads.
import torch  # noqa: F401

from equipes.errors import InputError

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")  # the best first


def _exists(name: str) -> bool:
    return find_spec(f"{__name__}.{name}") is not None


@cache
def built_instruction_sets() -> tuple[str, ...]:
    """What the native code was compiled for, the best first; empty where there is none."""
    return tuple(name for name in INSTRUCTION_SETS if _exists("_processor") and _exists(f"_{name}"))


@cache
def usable_instruction_sets() -> tuple[str, ...]:
    """What was built and runs on this processor, the best first."""
    if not built_instruction_sets():
        return ()
    # Asked of a module that runs anywhere: importing one of the others may already be too much for an older processor.
    supports = import_module(f"{__name__}._processor").supports
    return tuple(name for name in built_instruction_sets() if supports(name))


def instruction_set() -> str | None:
    """The instruction set whose code runs: `EQUIPES_INSTRUCTION_SET`, or the best one; None where none was built.

    Raises:
        InputError: the variable names an instruction set that was not built or that this processor does not run.
    """
    usable = usable_instruction_sets()
    wanted = os.environ.get("EQUIPES_INSTRUCTION_SET")
    if wanted and wanted not in usable:
        raise InputError(
            f"EQUIPES_INSTRUCTION_SET={wanted} does not run here; set it to one of: {', '.join(usable) or 'none'}"
        )
    return wanted or next(iter(usable), None)


@cache
def module() -> ModuleType | None:
    """The extension that runs; see `instruction_set`. Chosen once: what follows keeps objects of it."""
    chosen = instruction_set()
    return None if chosen is None else import_module(f"{__name__}._{chosen}")
