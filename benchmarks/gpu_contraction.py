"""The symmetric contractions of MACE on a GPU, for gpu_kernels.py: errors, times, and what compilers make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.irreps import Irreps
from equipes.kernels.contraction import reference_contract, reference_contract_reverse
from equipes.kernels.triton import contraction
from equipes.nn import SymmetricContraction

# A, m, correlation, channels.
SHAPES = {
    "MACE-MP-0 small": ("0e + 1o + 2e + 3o", "0e", 3, 128),
    "MACE-MP-0 medium, first layer": ("0e + 1o + 2e + 3o", "0e + 1o", 3, 128),
    "l 4, to 1o": ("0e + 1o + 2e + 3o + 4e", "0e + 1o", 3, 128),
}
QUICK = {"quick contraction": ("0e + 1o", "0e + 1o", 3, 4)}
KINDS = ("forward", "reverse")
N_SPECIES = 2


class Contraction:
    """Random features and weights of atoms of two species."""

    def __init__(self, name: str, atoms: int, device: str, dtype: torch.dtype) -> None:
        irreps_in, irreps_out, correlation, channels = (SHAPES | QUICK)[name]

        def wide(irreps: str) -> Irreps:
            return Irreps(" + ".join(f"{channels}x{irrep}" for irrep in irreps.split(" + ")))

        torch.manual_seed(0)
        layer = SymmetricContraction(wide(irreps_in), wide(irreps_out), correlation, N_SPECIES).double()
        self.table, self.channels, self.atoms, self.dtype = layer.table, channels, atoms, dtype
        couplings = torch.as_tensor(layer.table.couplings, dtype=torch.float64)
        self.c = (couplings @ layer.weight_rows()).detach().to(device)
        self.A = torch.randn(atoms, layer.irreps_in.dim, dtype=torch.float64).to(device)
        self.g = torch.randn(atoms, layer.irreps_out.dim, dtype=torch.float64).to(device)
        types = torch.arange(atoms, device=device) % N_SPECIES
        self.types = types
        self.groups = tuple(torch.nonzero(types == s).squeeze(1) for s in range(N_SPECIES))
        self.small = tuple(t.to(dtype) for t in (self.A, self.c, self.g))

    def run(self, kind: str) -> Tensor:
        """The kernels of a pass."""
        A, c, g = self.small
        if kind == "forward":
            return contraction.contract(self.table, A, c, self.types, self.groups)
        return contraction.contract_reverse(self.table, A, c, self.types, self.groups, g)

    def expected(self, kind: str) -> Tensor:
        """The same in plain torch and float64."""
        if kind == "forward":
            return reference_contract(self.table, self.A, self.c, self.types)
        return reference_contract_reverse(self.table, self.A, self.c, self.types, self.g)

    def work(self, kind: str) -> tuple[float, float]:
        """Bytes of rows read and written once, and floating-point operations of the texts."""
        table, size = self.table, 8 if self.dtype == torch.float64 else 4
        rows = table.inputs + table.outputs if kind == "forward" else 2 * table.inputs + table.outputs
        shape = contraction.Shape.of(table, self.channels, self.dtype)
        codes = contraction.kernels(table, shape, kind, contraction.MOST_COEFFICIENTS)
        lines = [line for code in codes for line in code.text.splitlines() if "tl." not in line]
        operations = sum(line.count(" + ") + line.count(" * ") for line in lines if " = v" in line)
        return float(size * rows * self.channels * self.atoms), float(operations * self.channels * self.atoms)


def check_and_time(
    options: Any,
    dtype: torch.dtype,
    tolerance: float,
    time_of: Callable[[Callable[[], object]], float],
    reached: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row for each pass; times on a GPU only, whose `reached` are the rates of copies and operations.

    Raises:
        InputError: a result that is too far from the reference.
    """
    rows = []
    for name in QUICK if options.quick else SHAPES:
        small = Contraction(name, 8 if options.quick else 256, options.device, dtype)
        for kind in KINDS:
            expected = small.expected(kind)
            error = float((small.run(kind).double() - expected).abs().max() / expected.abs().max())
            if not error < tolerance:
                raise InputError(
                    f"{name}, {kind}: off by {error:.1e} from plain torch; set EQUIPES_KERNEL=reference on this "
                    "machine, and report it"
                )
            row: dict[str, Any] = {"form": name, "kernel": kind, "error": error}
            if reached:
                large = Contraction(name, options.atoms, options.device, dtype)
                transferred, operations = large.work(kind)
                seconds = time_of(lambda large=large, kind=kind: large.run(kind))  # type: ignore[misc]
                least = max(transferred / reached["copy"], operations / reached[str(dtype)])
                row |= {"MB": transferred / 1e6, "GFLOP": operations / 1e9, "ms": 1e3 * seconds}
                row |= {"limit, ms": 1e3 * least, "reached": least / seconds}
            rows.append(row)
            print(".", end="", flush=True)
    return rows


def resources(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Registers and local memory of every kernel, compiled for an H100."""
    rows = []
    for name in SHAPES:
        given = Contraction(name, 1, "cpu", dtype)
        for kind in KINDS:
            found = contraction.assemble(given.table, given.channels, dtype, kind)
            for part, assembly in enumerate(found, start=1):
                rows.append({"form": name, "kernel": f"{kind} {part}/{len(found)}"})
                rows[-1] |= {"registers": assembly.registers, "local bytes": assembly.local_bytes}
            print(".", end="", flush=True)
    return rows
