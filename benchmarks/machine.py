"""What a figure must carry to mean something: machine, threads, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def conditions(packages: tuple[str, ...] = ("equipes", "torch", "lightning", "ase")) -> dict[str, Any]:
    """Processor, threads of torch, instruction set of the native kernels, versions, date, and who else computes."""
    import torch

    from equipes.kernels import native

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "kernels": native.instruction_set() or "reference",
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
        "load average": round(os.getloadavg()[0], 2),
    }


def sentence(facts: dict[str, Any]) -> str:
    """The conditions on one line, for under a table."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        flags = next(line for line in lines if line.startswith("flags"))
        return f"{names[0]} ({len(names)} cores{', AVX-512' if 'avx512f' in flags else ''})"
    except (OSError, IndexError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree on the path
        return str(getattr(sys.modules.get(name), "__version__", "not installed"))
