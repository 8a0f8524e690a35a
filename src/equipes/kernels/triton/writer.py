"""Names, numbers and lines of the kernels that `source` writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from equipes.kernels.form import MessagePassingForm, Path

NUMBER_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Variant:
    """Which kernel of a form.

    Attributes:
        kind: "messages", "senders" or "edges".
        double: float64 in place of float32.
        tangents: operands (of "xywg") that are pairs.
        results: parts of the results to write, of "value" and "tangent".
        wanted: what the kernel of edges writes, of "y" and "w" ("t" with splines).
        splines: the weights are splines.
        unit: all x are 1.
        kinds: there is a table of splines for each kind of edge, not one for all.
    """

    kind: str
    double: bool
    tangents: str = ""
    results: tuple[str, ...] = ("value",)
    wanted: str = "yw"
    splines: bool = False
    unit: bool = False
    kinds: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the names of the results' arguments."""
        return tuple("" if part == "value" else "_t" for part in self.results)


@dataclass(frozen=True)
class Kernel:
    """A kernel to be compiled: its text, the name of the function in it, and its programs for each atom.

    `sections` is the second extent of the grid; 0 where the caller chooses it.
    """

    name: str
    text: str
    sections: int


class Number(NamedTuple):
    """A variable of the kernel and the one of its tangent, if it has one."""

    value: str
    tangent: str | None = None

    def part(self, name: str) -> str | None:
        return self.value if name == "value" else self.tangent


ONE = Number("1.0")


@dataclass(frozen=True)
class PlacedPath:
    """A path with the places of its numbers: in a row of weights, and in a row of results (stride from m3 to m3)."""

    path: Path
    l1: int
    weight: int
    out: int
    out_stride: int

    @property
    def l3(self) -> int:
        return self.path.out.l


@dataclass(frozen=True)
class PlacedBlock:
    """An input block with its paths."""

    l1: int
    multiplicity: int
    start: int
    paths: tuple[PlacedPath, ...]


def placed_blocks(form: MessagePassingForm) -> tuple[PlacedBlock, ...]:
    """The input blocks that have paths, and where everything lies."""
    starts = dict(zip(form.irreps_out.irreps, form.irreps_out.slices(), strict=True))
    columns = dict.fromkeys(starts, 0)
    weight = 0
    paths: dict[int, list[PlacedPath]] = {}
    for path in form.paths:
        mul, irrep = form.irreps_in[path.block]
        out = starts[path.out].start + columns[path.out]
        placed = PlacedPath(path, irrep.l, weight, out, form.irreps_out.multiplicity(path.out))
        paths.setdefault(path.block, []).append(placed)
        columns[path.out] += mul
        weight += mul
    return tuple(
        PlacedBlock(irrep.l, mul, place.start, tuple(paths[block]))
        for block, ((mul, irrep), place) in enumerate(
            zip(form.irreps_in, form.irreps_in.slices(), strict=True)
        )
        if block in paths and mul > 0
    )


class Writer:
    """Lines of a kernel; every variable gets a name of its own."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.lines: list[str] = []
        self.indent = 1
        self.count = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def let(self, expression: str) -> str:
        self.count += 1
        self.line(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def load(self, operand: str, offset: str, mask: str = "") -> Number:
        """An operand's value, and its tangent if it is a pair."""
        tangent = None
        value = self.let(f"tl.load({operand} + {offset}{mask})")
        if operand in self.variant.tangents:
            tangent = self.let(f"tl.load({operand}_t + {offset}{mask})")
        return Number(value, tangent)

    def scaled_sum(self, terms: Iterable[tuple[float, Number]]) -> Number:
        """Σ c a."""
        terms = list(terms)
        if len(terms) == 1 and terms[0][0] == 1.0:
            return terms[0][1]
        value = self.let(" + ".join(_scaled(c, a.value) for c, a in terms))
        tangents = [_scaled(c, a.tangent) for c, a in terms if a.tangent is not None]
        return Number(value, self.let(" + ".join(tangents)) if tangents else None)

    def product_sum(self, terms: Iterable[tuple[Number, Number]]) -> Number:
        """Σ a b."""
        terms = list(terms)
        if len(terms) == 1 and ONE in terms[0]:
            return terms[0][1] if terms[0][0] is ONE else terms[0][0]
        tangents = _products(terms, "tangent")
        value = self.let(" + ".join(_products(terms, "value")))
        return Number(value, self.let(" + ".join(tangents)) if tangents else None)

    def add(self, target: Number, terms: Iterable[tuple[Number, Number]]) -> None:
        """target += Σ a b, in the parts that are results."""
        terms = list(terms)
        for part in self.variant.results:
            products = _products(terms, part)
            if products:
                self.line(f"{target.part(part)} += {' + '.join(products)}")

    def zeros(self, tile: int) -> Number:
        """Sums to begin with, in the parts that are results."""
        names = {
            part: self.let(f"tl.full([{tile}], 0.0, number)") if part in self.variant.results else ""
            for part in ("value", "tangent")
        }
        return Number(names["value"], names["tangent"])

    def store(self, argument: str, offset: str, number: Number, mask: str = "") -> None:
        for part, suffix in zip(self.variant.results, self.variant.suffixes, strict=True):
            self.line(f"tl.store({argument}{suffix} + {offset}, {number.part(part) or '0.0'}{mask})")


def _scaled(factor: float, name: str | None) -> str:
    return f"{name}" if factor == 1.0 else f"{factor!r} * {name}"


def _products(terms: Sequence[tuple[Number, Number]], part: str) -> list[str]:
    """The product rule; factors of 1 are left out."""

    def of(a: str | None, b: str | None) -> list[str]:
        if a is None or b is None:
            return []
        if a == ONE.value:
            return [b]
        return [a] if b == ONE.value else [f"{a} * {b}"]

    if part == "value":
        return [text for a, b in terms for text in of(a.value, b.value)]
    return [text for a, b in terms for text in (*of(a.tangent, b.value), *of(a.value, b.tangent))]


def arguments(variant: Variant) -> list[str]:
    """Names of a kernel's arguments: results, operands, geometry. Names in _t are tangents."""
    results = {"messages": ["out"], "senders": ["dx"], "edges": [f"d{name}" for name in variant.wanted]}
    operands = {"messages": "xyw", "senders": "ywg", "edges": "xywg"}[variant.kind]
    names = [result + suffix for result in results[variant.kind] for suffix in variant.suffixes]
    for operand in operands:
        if operand == "x" and variant.unit:
            continue
        if operand == "w" and variant.splines:
            names += ["table", "interval", "place"]
            names += ["table_kind", "n_intervals"] if variant.kinds else []
            continue
        names += [operand] + ([f"{operand}_t"] if operand in variant.tangents else [])
    by_sender = variant.kind == "senders"
    return names + (
        ["sender_pointer", "sender_order", "receiver"] if by_sender else ["row_pointer", "sender"]
    )


def pointer_types(variant: Variant) -> dict[str, str]:
    """Triton's names for the types of a kernel's arguments."""
    real = "*fp64" if variant.double else "*fp32"
    indices = dict.fromkeys(("row_pointer", "sender", "sender_pointer", "sender_order", "receiver"), "*i64")
    places = {"interval": "*i32", "table_kind": "*i32", "n_intervals": "i32"}
    known = indices | places
    return {name: known.get(name, real) for name in arguments(variant)}
