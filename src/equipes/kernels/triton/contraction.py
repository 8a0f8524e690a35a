"""Writes and starts the Triton kernels of symmetric contractions: sparse polynomials, unrolled by Horner's rule.

    forward   m_M = V(root_M),   V(node) = c[node] + Σ_children A[child] V(child)
    reverse   cotangents go down the same tree in the same walk: those of A, and nothing is kept

A node stands for the product of the factors on the way to it, as in the native code (`native/contraction.hpp`). A
program has a tile of channels of one atom; the atoms of one species follow each other, so that their coefficients are
in the cache. Programs share nothing: no atomics, the same bits every time. Polynomials of many terms are dealt out to
several kernels that add to the result one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, pairwise

import torch
from torch import Tensor

from equipes.kernels.polynomials import PolynomialTable
from equipes.kernels.triton.launch import Assembly, assemble_kernel, start
from equipes.kernels.triton.writer import Kernel

# Coefficients of a kernel: of more, Triton's compile times grow with the square, and its text gets too long for a GPU's
# cache of instructions.
MOST_COEFFICIENTS = 150
# Channels of a program.
_WIDEST = 128
# 32-bit registers of a thread that features and their cotangents may take.
_REGISTERS = 80


@dataclass
class Node:
    """A monomial: the place of its coefficient, if it has one, and what follows it, by the next factor."""

    coefficient: int | None = None
    children: dict[int, Node] = field(default_factory=dict)

    def size(self) -> int:
        """Coefficients from here on."""
        return (self.coefficient is not None) + sum(child.size() for child in self.children.values())


# Of each component of m the root of its monomials.
Trees = dict[int, Node]


def parts(table: PolynomialTable, most: int) -> list[Trees]:
    """The monomials of each component of m as trees of their ascending factors, dealt out to parts with about equal
    numbers of coefficients, `most` of them at most."""
    monomials = [
        (int(table.output[e]), tuple(sorted(monomial)), e)
        for factors, begin in table.degrees
        for t, monomial in enumerate(factors.tolist())
        for e in range(int(begin[t]), int(begin[t + 1]))
    ]
    # What begins with the same factors lies side by side.
    monomials.sort()
    n_parts = -(-len(monomials) // most)
    bounds = [len(monomials) * k // n_parts for k in range(n_parts + 1)]
    result: list[Trees] = []
    for first, last in pairwise(bounds):
        roots: Trees = {}
        for component, monomial, e in monomials[first:last]:
            node = roots.setdefault(component, Node())
            for factor in monomial:
                node = node.children.setdefault(factor, Node())
            if node.coefficient is not None:
                raise ValueError("a monomial of the symmetric contraction occurs twice")
            node.coefficient = e
        result.append(roots)
    return result


@dataclass(frozen=True)
class Shape:
    """How a contraction is cut into programs: channels, a tile of them, warps of a program, and the number type."""

    channels: int
    tile: int
    warps: int
    double: bool

    @classmethod
    def of(cls, table: PolynomialTable, channels: int, dtype: torch.dtype) -> Shape:
        """Whole tiles where the number of channels allows it; two channels for each lane where registers do."""
        tile = 32 if channels > 32 else max(4, 1 << (channels - 1).bit_length())
        while 32 <= tile < _WIDEST and channels % (2 * tile) == 0:
            tile *= 2
        double = dtype == torch.float64
        numbers = 2 * table.inputs * (2 if double else 1)
        lanes = 64 if 2 * numbers <= _REGISTERS else 32
        return cls(channels, tile, max(1, tile // lanes), double)

    @property
    def tiles(self) -> int:
        return -(-self.channels // self.tile)


class _Text:
    """Lines of a kernel."""

    def __init__(self, kind: str, table: PolynomialTable, shape: Shape, *, add: bool) -> None:
        self.kind, self.table, self.shape, self.add = kind, table, shape, add
        self.names = count()
        self.lines: list[str] = []
        whole = shape.channels % shape.tile == 0
        self.load_mask = "" if whole else ", mask=inside, other=0.0"
        self.store_mask = "" if whole else ", mask=inside"

    def let(self, expression: str) -> str:
        name = f"v{next(self.names)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def open(self, operands: dict[str, int]) -> None:
        """Channels, the atom, and where the rows of the operands, of so many components, lie."""
        shape = self.shape
        self.lines.append(f"number = {next(iter(operands))}.dtype.element_ty")
        self.lines.append(f"u = tl.program_id(1) * {shape.tile} + tl.arange(0, {shape.tile})")
        if self.load_mask:
            self.lines.append(f"inside = u < {shape.channels}")
        self.lines.append("i = tl.load(order + tl.program_id(0)).to(tl.int64)")
        stride = self.table.n_coefficients * shape.channels
        self.lines.append(f"c += tl.load(types + i).to(tl.int64) * {stride} + u")
        for name, components in operands.items():
            self.lines.append(f"{name} += i * {components * shape.channels} + u")

    def load(self, operand: str, component: int) -> str:
        return self.let(f"tl.load({operand} + {component * self.shape.channels}{self.load_mask})")

    def store(self, operand: str, component: int, value: str | None) -> None:
        """None: zeros. A part of the whole adds to what is there."""
        if self.add and value is None:
            return
        place = f"{operand} + {component * self.shape.channels}"
        value = value or f"tl.full([{self.shape.tile}], 0.0, number)"
        if self.add:
            value = f"tl.load({place}{self.load_mask}) + {value}"
        self.lines.append(f"tl.store({place}, {value}{self.store_mask})")

    def add_product(self, total: str | None, a: str, b: str) -> str:
        """total + a b"""
        return self.let(f"{a} * {b}" if total is None else f"{total} + {a} * {b}")

    def finish(self) -> Kernel:
        name = f"equipes_contraction_{self.kind}"
        head = [
            f"# {self.table.inputs} components to {self.table.outputs}, {self.shape}",
            f"def {name}({', '.join(_ARGUMENTS[self.kind])}):",
        ]
        return Kernel(name, "\n".join(head + [f"    {line}" for line in self.lines]) + "\n", 0)


_ARGUMENTS = {
    "forward": ("m", "a", "c", "types", "order"),
    "reverse": ("da", "a", "g", "c", "types", "order"),
}


def _factors(tree: Trees) -> list[int]:
    """The components of A that occur."""

    def of(node: Node) -> Iterator[int]:
        for factor, child in node.children.items():
            yield factor
            yield from of(child)

    return sorted({factor for root in tree.values() for factor in of(root)})


def _forward(table: PolynomialTable, tree: Trees, shape: Shape, *, add: bool) -> Kernel:
    text = _Text("forward", table, shape, add=add)
    text.open({"m": table.outputs, "a": table.inputs})
    a = {k: text.load("a", k) for k in _factors(tree)}

    def value(node: Node) -> str | None:
        """V of a node."""
        total = None if node.coefficient is None else text.load("c", node.coefficient)
        for factor, child in node.children.items():
            below = value(child)
            assert below is not None
            total = text.add_product(total, a[factor], below)
        return total

    for component in range(table.outputs):
        text.store("m", component, value(tree.get(component, Node())))
    return text.finish()


def _reverse(table: PolynomialTable, tree: Trees, shape: Shape, *, add: bool) -> Kernel:
    text = _Text("reverse", table, shape, add=add)
    text.open({"da": table.inputs, "a": table.inputs, "g": table.outputs})
    a = {k: text.load("a", k) for k in _factors(tree)}
    da: dict[int, str] = {}

    def walk(node: Node, above: str) -> str | None:
        """V of a node, whose cotangent is `above`: g times the factors on the way to it."""
        total = None if node.coefficient is None else text.load("c", node.coefficient)
        for factor, child in node.children.items():
            below = walk(child, text.let(f"{above} * {a[factor]}") if child.children else above)
            assert below is not None
            da[factor] = text.add_product(da.get(factor), above, below)
            total = text.add_product(total, a[factor], below)
        return total

    for component, root in tree.items():
        walk(root, text.load("g", component))
    for component in range(table.inputs):
        text.store("da", component, da.get(component))
    return text.finish()


@lru_cache(maxsize=128)
def kernels(table: PolynomialTable, shape: Shape, kind: str, most: int) -> list[Kernel]:
    """The kernels that together are the "forward" or "reverse" pass; several of them add to zeros."""
    dealt = parts(table, most)
    write = {"forward": _forward, "reverse": _reverse}[kind]
    return [write(table, part, shape, add=len(dealt) > 1) for part in dealt]


def contract(
    table: PolynomialTable, A: Tensor, coefficients: Tensor, types: Tensor, groups: Sequence[Tensor] | None
) -> Tensor:
    """See `equipes.kernels.contraction.contract`."""
    m = A.new_zeros(len(A), table.outputs * coefficients.shape[2])
    _run("forward", table, {"m": m, "a": A}, coefficients, types, groups)
    return m


def contract_reverse(
    table: PolynomialTable,
    A: Tensor,
    coefficients: Tensor,
    types: Tensor,
    groups: Sequence[Tensor] | None,
    cotangents: Tensor,
) -> Tensor:
    """See `equipes.kernels.contraction.contract_reverse`."""
    result = torch.zeros_like(A, memory_format=torch.contiguous_format)
    _run("reverse", table, {"da": result, "a": A, "g": cotangents}, coefficients, types, groups)
    return result


def _run(
    kind: str,
    table: PolynomialTable,
    rows: dict[str, Tensor],
    coefficients: Tensor,
    types: Tensor,
    groups: Sequence[Tensor] | None,
) -> None:
    """One launch of each kernel."""
    order = torch.arange(len(types), device=types.device) if groups is None else torch.cat(list(groups))
    if len(order) == 0:
        return
    shape = Shape.of(table, coefficients.shape[2], coefficients.dtype)
    given = rows | {"c": coefficients, "types": types, "order": order}
    given = {name: tensor.detach().contiguous() for name, tensor in given.items()}
    operands = [given[name] for name in _ARGUMENTS[kind]]
    for code in kernels(table, shape, kind, MOST_COEFFICIENTS):
        start(code, (len(order), shape.tiles), operands, num_warps=shape.warps)


def assemble(table: PolynomialTable, channels: int, dtype: torch.dtype, kind: str) -> list[Assembly]:
    """Compiles the kernels of a pass for an H100, which need not be there."""
    shape = Shape.of(table, channels, dtype)
    real = "*fp64" if shape.double else "*fp32"
    signature = {name: "*i64" if name in ("types", "order") else real for name in _ARGUMENTS[kind]}
    codes = kernels(table, shape, kind, MOST_COEFFICIENTS)
    return [assemble_kernel(code, signature, num_warps=shape.warps) for code in codes]
