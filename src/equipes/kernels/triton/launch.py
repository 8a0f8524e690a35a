"""Compiles the generated kernels and starts them: on a GPU, or for tensors on the CPU through Triton's interpreter."""

from __future__ import annotations

import linecache
import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from equipes.errors import InputError
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.triton.source import kernel
from equipes.kernels.triton.writer import Kernel, Variant, arguments, pointer_types

# One warp: programs share nothing, and a receiver has few channels for more.
OPTIONS: dict[str, Any] = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
# So many programs keep a large GPU busy; edges of receivers are dealt out to as many where atoms are few.
_ENOUGH_PROGRAMS = 8192


@cache
def _triton() -> ModuleType:
    """Triton, imported when it is first needed.

    Raises:
        InputError: it is not installed, or does not load.
    """
    try:
        import triton
        import triton.language
    except ImportError as error:
        raise InputError(
            f"EQUIPES_KERNEL=triton: Triton cannot be used here ({error}); install it with "
            "`pip install 'equipes[gpu]'` (Linux on x86-64), or unset EQUIPES_KERNEL"
        ) from error
    return triton


@lru_cache(maxsize=1024)
def _function(code: Kernel) -> Any:
    """The text as a Python function. Triton asks for its source: `linecache` has it, and no file is written."""
    import hashlib

    filename = f"<{code.name} {hashlib.sha256(code.text.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(code.text), None, code.text.splitlines(keepends=True), filename)
    namespace = {"tl": _triton().language, "__name__": __name__}
    exec(compile(code.text, filename, "exec"), namespace)
    return namespace[code.name]


@lru_cache(maxsize=1024)
def compiled(code: Kernel) -> Any:
    """What Triton compiles for a GPU when it is first called."""
    _triton()
    from triton.runtime.jit import JITFunction

    # Else the number of intervals would be compiled in where it is 1 or a multiple of 16.
    return JITFunction(
        _function(code), do_not_specialize=["n_intervals"] if "n_intervals" in code.text else None
    )


@lru_cache(maxsize=1024)
def _interpreted(code: Kernel) -> Any:
    _triton()
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError as error:
        raise InputError(
            f"EQUIPES_KERNEL=triton: this Triton cannot interpret kernels, which tensors on the CPU need ({error}); "
            "install `equipes[gpu]` anew, or unset EQUIPES_KERNEL"
        ) from error
    return InterpretedFunction(_function(code))


def launch(form: MessagePassingForm, variant: Variant, n_atoms: int, given: dict[str, Any]) -> None:
    """Runs a kernel for every atom.

    Args:
        given: its arguments by name (see `source.arguments`); tensors are contiguous and on one device.
    """
    code = kernel(form, variant)
    operands = [given[name] for name in arguments(variant)]
    second = code.sections or max(1, min(32, _ENOUGH_PROGRAMS // max(n_atoms, 1)))
    if n_atoms == 0:
        return
    if operands[0].device.type == "cpu" and code.sections == 0:
        second = min(second, 2)
    start(code, (n_atoms, second), operands)


def start(code: Kernel, grid: tuple[int, int], operands: Sequence[Any], **options: Any) -> None:
    """Runs a kernel where its first operand is.

    Args:
        grid: programs in both directions.
        operands: its arguments; tensors are contiguous and on one device.
        options: of Triton, in place of those of `OPTIONS`.
    """
    device = operands[0].device
    if device.type == "cpu":
        _interpreted(code)[grid](*operands)
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            compiled(code)[grid](*operands, **OPTIONS | options)
        except RuntimeError as error:
            if "compiler" not in str(error):
                raise
            raise InputError(
                f"Triton needs a C compiler to start kernels ({error}); install gcc, or set EQUIPES_KERNEL=reference"
            ) from error


@dataclass(frozen=True)
class Assembly:
    """What became of a kernel: registers of a thread, bytes of local memory of a thread (spills), and the PTX."""

    registers: int
    local_bytes: int
    ptx: str


def assemble(form: MessagePassingForm, variant: Variant, capability: int = 90) -> Assembly:
    """Compiles a kernel for a CUDA GPU, which need not be there.

    Args:
        capability: 90 for 9.0 (H100).
    """
    return assemble_kernel(kernel(form, variant), pointer_types(variant), capability)


def assemble_kernel(
    code: Kernel, signature: dict[str, str], capability: int = 90, **options: Any
) -> Assembly:
    """Compiles a kernel for a CUDA GPU, which need not be there.

    Args:
        signature: Triton's names for the types of its arguments.
        capability: 90 for 9.0 (H100).
        options: of Triton, in place of those of `OPTIONS`.
    """
    triton = _triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=compiled(code),
        signature=signature,
        # Tensors of torch begin at multiples of 16 bytes.
        attrs={
            (k,): [["tt.divisibility", 16]]
            for k, kind in enumerate(signature.values())
            if kind.startswith("*")
        },
    )
    asm = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS | options).asm
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(asm["cubin"])
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return Assembly(used["REG"], used["STACK"] + used["LOCAL"], asm["ptx"])
