"""What a figure must carry to mean something: machine, threads, versions, date."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def conditions(packages: tuple[str, ...] = ("equipes", "torch", "lightning", "ase")) -> dict[str, Any]:
    """Processor, cores, threads of torch, versions and date."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }


def sentence(facts: dict[str, Any]) -> str:
    """The conditions on one line, for under a table."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


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
    except PackageNotFoundError:
        return "not installed"
