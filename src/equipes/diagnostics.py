"""What `equipes doctor` reports: the machine, the versions, the kernel that runs, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import equipes
from equipes.errors import InputError

REQUIRED = (
    "torch", "lightning", "ase", "vesin", "numpy", "scipy", "pydantic", "safetensors", "matplotlib"
)  # fmt: skip
# Optional package and what it is for.
OPTIONAL = {
    "phonopy": "equipes phonons, expansion",
    "phono3py": "equipes conductivity",
    "seekpath": "equipes phonons",
    "spglib": "equipes relax --symmetry, elastic",
    "tblite": "equipes train --pretrain",
    "tensorboard": "train.loggers=[tensorboard]",
    "triton": "message passing on an NVIDIA GPU",
    "wandb": "train.loggers=[wandb]",
}
# The instruction sets that numerical code is compiled for, as Linux calls them.
INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
_NOT_BUILT = (
    "the native code was not built, so the slow reference kernel runs: training on the CPU takes seven to "
    "nine times as long; install a C++ compiler (g++ or clang) and then equipes again"
)
_GIB = 2**30


def examine() -> dict[str, Any]:
    """Facts about this installation and machine, JSON-able; its `warnings` and `problems` name their remedies."""
    import torch

    from equipes import kernels
    from equipes.kernels import native, peers, triton

    problems: list[str] = []
    versions = {name: _version(name) for name in REQUIRED}
    problems += [
        f"{name} is missing; install equipes again" for name, found in versions.items() if found is None
    ]
    if versions["lightning"] in ("2.6.2", "2.6.3"):
        problems.append(
            "lightning 2.6.2 and 2.6.3 carry malicious code; install another version and change your passwords"
        )
    warnings: list[str] = []
    instruction_set = None
    try:
        kernel = kernels.kernel_name()
        if kernel == "native":
            instruction_set = native.instruction_set()
        elif kernel == "triton":
            warnings.append(
                "EQUIPES_KERNEL=triton: on the CPU its interpreter runs, very slowly; it is there to "
                "test the kernels, and a GPU takes them without the variable"
            )
        elif kernel in peers.PEERS:
            warnings.append(
                f"EQUIPES_KERNEL={kernel}: it is there to be compared with on a GPU; the CPU is faster without it"
            )
        elif not native.built_instruction_sets():
            warnings.append(_NOT_BUILT)
        else:
            warnings.append(
                f"EQUIPES_KERNEL={kernel}: training on the CPU is seven to nine times faster without it"
            )
        kernel_on_gpu = kernels.kernel_name("cuda")
    except InputError as error:
        kernel = kernel_on_gpu = "none"
        problems.append(str(error))
    if torch.cuda.is_available() and not triton.installed():
        warnings.append(
            "Triton is not installed, so the slow reference kernel runs on the GPU; install it with "
            "`pip install 'equipes[gpu]'`"
        )
    total, available = _memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads > cores:
        problems.append(f"torch uses {threads} threads on {cores} cores; set OMP_NUM_THREADS={cores}")
    return {
        "equipes": equipes.__version__,
        "location": str(Path(equipes.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cpu": _cpu_model(),
        "cores": cores,
        "instruction_sets": _instruction_sets(),
        "memory_gib": total,
        "memory_available_gib": available,
        "torch_threads": threads,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "kernel": kernel,
        "kernel_on_gpu": kernel_on_gpu,
        "kernel_instruction_set": instruction_set,
        "kernels_built": list(kernels.KERNELS),
        "instruction_sets_built": list(native.built_instruction_sets()),
        "optional": {name: _version(name) for name in OPTIONAL if util.find_spec(name)},
        "optional_missing": {name: use for name, use in OPTIONAL.items() if not util.find_spec(name)},
        "warnings": warnings,
        "problems": problems,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _cpu_model() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    info = _cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _memory() -> tuple[float | None, float | None]:
    """Total and available memory in GiB; None where the system does not tell."""
    if sys.platform == "win32":
        return None, None
    names = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")

    def gib(name: str) -> float | None:
        return round(os.sysconf(name) * page / _GIB, 1) if name in names else None

    return gib("SC_PHYS_PAGES"), gib("SC_AVPHYS_PAGES")
