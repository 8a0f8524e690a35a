"""A frozen model on native code: energies, forces and virial straight from neighbour arrays, without autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from equipes.irreps import Irreps
from equipes.kernels import native
from equipes.kernels.native import invariant


@dataclass(frozen=True)
class Neighbours:
    """Atoms and the edges between them, as NumPy arrays; edges beyond the cutoff are left out by the native code.

    Attributes:
        types: `[N]` int64, index of each atom's species.
        positions: `[N, 3]` float64, Å.
        cell: `[S, 3, 3]` float64, Å.
        row_pointer: `[N + 1]` int64; the edges of receiver i are `row_pointer[i]:row_pointer[i + 1]`.
        sender: `[E]` int64.
        shift: `[E, 3]` float64, whole lattice vectors; None if no edge crosses a boundary.
        structure: `[N]` int64; None for one structure.
    """

    types: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    row_pointer: np.ndarray
    sender: np.ndarray
    shift: np.ndarray | None = None
    structure: np.ndarray | None = None


class FrozenEngine:
    """Runs a description of folded layers and splines.

    Args:
        structure: what the layers are, plain JSON values (`FrozenPotential.structure`).
        arrays: the numbers, float64, by name.
        dtype: number type of the network.

    Raises:
        ValueError: arrays that do not fit the structure.
    """

    def __init__(
        self, structure: Mapping[str, Any], arrays: Mapping[str, np.ndarray], dtype: torch.dtype
    ) -> None:
        extension = native.module()
        if extension is None:
            raise RuntimeError("the native code was not built")
        single = dtype == torch.float32
        kind = structure.get("kind", "equivariant")
        if kind not in ("equivariant", "invariant"):
            raise ValueError(f"unknown kind of layers '{kind}'")
        if kind == "invariant":
            make = extension.InvariantFloat if single else extension.InvariantDouble
            self._native = make(invariant.specification(structure, arrays))
        else:
            make = extension.FrozenFloat if single else extension.FrozenDouble
            self._native = make(_specification(structure, arrays))

    @property
    def table_bytes(self) -> int:
        """Memory of matrices and splines."""
        return int(self._native.table_bytes)

    def __call__(
        self, atoms: Neighbours, *, differentiate: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Energies of the atoms `[N]`, forces `[N, 3]` and virials `[S, 3, 3]`, float64; only energies without
        `differentiate`."""
        n, s = len(atoms.types), len(atoms.cell)
        energies = np.empty(n)
        forces = np.empty((n, 3)) if differentiate else None
        virial = np.empty((s, 3, 3)) if differentiate else None
        given = (
            (atoms.types, np.int64),
            (atoms.structure, np.int64),
            (atoms.positions, np.float64),
            (atoms.cell, np.float64),
            (atoms.row_pointer, np.int64),
            (atoms.sender, np.int64),
            (atoms.shift, np.float64),
        )
        arrays = [None if array is None else np.ascontiguousarray(array, dtype) for array, dtype in given]
        self._native.evaluate(
            torch.get_num_threads(),
            n,
            s,
            [0 if array is None else array.ctypes.data for array in arrays],
            [0 if array is None else array.ctypes.data for array in (energies, forces, virial)],
        )
        return energies, forces, virial


def _specification(structure: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested description that the native side reads."""
    tables = {name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()}

    def matrices(prefix: str) -> list[tuple[int, int, np.ndarray]]:
        found = []
        for name, array in tables.items():
            if name.startswith(prefix + "."):
                source, target = name.removeprefix(prefix + ".").split(".")
                found.append((int(source), int(target), array))
        return sorted(found, key=lambda item: item[:2])

    layers = []
    for k, layer in enumerate(structure["layers"]):
        name = f"layers.{k}"
        layers.append(
            _product(layer, name, tables, matrices)
            | {
                "irreps_in": _terms(layer["irreps_in"]),
                "paths": layer["paths"],
                "reached": layer["reached"],
                **{key: _terms(layer[key]) for key in ("gate_in", "scalars", "gated")},
                **{key: matrices(f"{name}.{key}") for key in ("linear_1", "linear_2", "self_connection")},
                **{key: tables[f"{name}.{key}"] for key in ("splines", "constants")},
                "hidden_constants": tables.get(f"{name}.hidden_constants", np.zeros(0)),
            }
        )
    return {
        "n_species": len(tables["scales"]),
        "l_max": structure["l_max"],
        "repulsion_power": structure["repulsion_power"],
        "by_pair": structure.get("by_pair", False),
        "layers": layers,
        "readout": matrices("readout"),
        **{name: array for name, array in tables.items() if "." not in name},
    }


def _product(
    layer: Mapping[str, Any], name: str, tables: Mapping[str, np.ndarray], matrices: Callable[[str], Any]
) -> dict[str, Any]:
    """What MACE's layers have in the place of a gate."""
    if "out" not in layer:
        return {}
    table = layer["contraction"]
    return {
        "out": _terms(layer["out"]),
        "contraction": (table["inputs"], table["outputs"], table["degrees"], table["output"], [], [], []),
        "mixing": matrices(f"{name}.mixing"),
        "linear_3": matrices(f"{name}.linear_3"),
        "coefficients": tables[f"{name}.coefficients"],
        **{key: tables.get(f"{name}.{key}", np.zeros(0)) for key in ("readout", "density")},
    }


def _terms(irreps: str) -> list[list[int]]:
    return [[mul, irrep.l, irrep.p] for mul, irrep in Irreps(irreps)]
