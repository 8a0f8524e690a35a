"""Writes the Triton kernels of a form: products unrolled, coupling coefficients that are not zero as constants.

Three kernels do everything, because the form is linear in each of x, Y, w and g (see `MessagePassingForm`):

    messages   ∂F/∂g   a program adds up the edges of one receiver
    senders    ∂F/∂x   a program adds up the edges of one sender, in the transposed order: no atomics
    edges      ∂F/∂Y, ∂F/∂w   a program goes through edges of one receiver

Each comes with tangents as well: operands become pairs (value, tangent), results pairs or the tangent alone, which is
what a second derivative needs. And each comes with weights that are splines of the distance, evaluated where they are
used.

A program is one warp on a tile of channels, which are contiguous, so that rows of senders are read in whole lines. The
numbers of an edge are scalars, and sums stay in registers: where those of an input block would not fit, its paths
are dealt out to several sections, which are other programs of the same launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from equipes.clebsch_gordan import wigner_3j
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.triton.writer import (
    ONE,
    Kernel,
    Number,
    PlacedBlock,
    PlacedPath,
    Variant,
    Writer,
    arguments,
    placed_blocks,
)

# 32-bit registers of a thread (of 255) that sums may take.
SUM_REGISTERS = 64
LANES = 32


@lru_cache(maxsize=256)
def _terms(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    """`(m1, m2, m3, √(2l3+1) C)` of the coefficients that are not zero; what is 1 to round-off is 1 and left out."""
    tensor = np.sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3)
    tensor = np.where(abs(tensor - 1) < 1e-15, 1.0, tensor)
    return tuple((m1, m2, m3, float(tensor[m1, m2, m3])) for m1, m2, m3 in np.argwhere(tensor).tolist())


def tile_of(multiplicity: int, variant: Variant) -> int:
    """Channels of a program. Two for each lane, where there are as many, share the scalars of an edge."""
    wide = multiplicity >= 2 * LANES and not variant.double and not variant.tangents
    most = 2 * LANES if wide else LANES
    return min(most, max(4, 1 << (multiplicity - 1).bit_length()))


def _sections(block: PlacedBlock, variant: Variant) -> list[tuple[PlacedPath, ...]]:
    """Paths dealt out so that the sums of each section fit the registers."""
    per_sum = max(1, tile_of(block.multiplicity, variant) // LANES) * (2 if variant.double else 1)
    room = SUM_REGISTERS // (per_sum * len(variant.results))
    sections: list[list[PlacedPath]] = []
    taken = room + 1
    for path in block.paths:
        taken += 2 * path.l3 + 1
        if taken > room:
            sections.append([])
            taken = 2 * path.l3 + 1
        sections[-1].append(path)
    return [tuple(section) for section in sections]


@lru_cache(maxsize=1024)
def kernel(form: MessagePassingForm, variant: Variant) -> Kernel:
    """The text of a kernel."""
    return {"messages": _messages, "senders": _senders, "edges": _edges}[variant.kind](form, variant)


def _finish(form: MessagePassingForm, writer: Writer, sections: int) -> Kernel:
    names = arguments(writer.variant)
    name = f"equipes_{writer.variant.kind}"
    head = [
        f"# {form.irreps_in} with harmonics to l = {form.l_max} -> {form.irreps_out}",
        f"# {writer.variant}",
        f"def {name}({', '.join(names)}):",
        f"    number = {names[0]}.dtype.element_ty",
    ]
    return Kernel(name, "\n".join(head + writer.lines) + "\n", sections)


def _edge_numbers(form: MessagePassingForm, writer: Writer, paths: Iterable[PlacedPath]) -> dict[int, Number]:
    """Loads the harmonics of edge `e` that the paths need, by place."""
    degrees = sorted({path.path.l2 for path in paths})
    width = (form.l_max + 1) ** 2
    return {k: writer.load("y", f"e * {width} + {k}") for l2 in degrees for k in range(l2**2, (l2 + 1) ** 2)}


def _open_edge(form: MessagePassingForm, writer: Writer) -> None:
    """Splines: where edge `e` lies on them. Edges that do not count are passed over."""
    if not writer.variant.splines:
        return
    writer.line("at = tl.load(interval + e).to(tl.int64)")
    writer.line("if at >= 0:")
    writer.indent += 1
    writer.line("t = tl.load(place + e)")
    if writer.variant.kinds:
        writer.line("at += tl.load(table_kind + e).to(tl.int64) * n_intervals")
    writer.line(f"row = at * {6 * form.n_weights}")


def _find_sender(writer: Writer) -> None:
    if not writer.variant.unit:
        writer.line("s = tl.load(sender + e).to(tl.int64)")


def _weights(
    form: MessagePassingForm, writer: Writer, path: PlacedPath, channels: _Tile, *, slope: bool = False
) -> tuple[Number, Number]:
    """Weights of a path at edge `e`, and their derivative along the spline if asked for (else the same again)."""
    if not writer.variant.splines:
        weights = writer.load("w", f"e * {form.n_weights} + {path.weight} + {channels.u}", channels.load_mask)
        return weights, weights
    c = [
        writer.let(
            f"tl.load(table + row + {k * form.n_weights + path.weight} + {channels.u}{channels.load_mask})"
        )
        for k in range(6)
    ]
    value = writer.let(f"((((({c[5]} * t + {c[4]}) * t + {c[3]}) * t + {c[2]}) * t + {c[1]}) * t + {c[0]})")
    if not slope:
        return Number(value), Number(value)
    rise = writer.let(
        f"((((5.0 * {c[5]} * t + 4.0 * {c[4]}) * t + 3.0 * {c[3]}) * t + 2.0 * {c[2]}) * t + {c[1]})"
    )
    return Number(value), Number(rise)


def _matrix(
    writer: Writer,
    known: dict[tuple[int, int, int], dict[tuple[int, int], Number]],
    path: PlacedPath,
    y: dict[int, Number],
) -> dict[tuple[int, int], Number]:
    """A[m1, m3] = Σ_m2 C Y[m2] where it is not zero: scalars, shared by all channels and paths of the same degrees."""
    degrees = (path.l1, path.path.l2, path.l3)
    if degrees not in known:
        grouped: dict[tuple[int, int], list[tuple[float, Number]]] = {}
        for m1, m2, m3, c in _terms(*degrees):
            grouped.setdefault((m1, m3), []).append((c, y[degrees[1] ** 2 + m2]))
        known[degrees] = {m: writer.scaled_sum(terms) for m, terms in grouped.items()}
    return known[degrees]


class _Tile(NamedTuple):
    """The channels of a program: their variable, and what loads and stores of them are masked with."""

    u: str
    load_mask: str
    store_mask: str


def _open_tile(writer: Writer, block: PlacedBlock, tile: int, number: str = "") -> _Tile:
    """Channels `number * tile` and on; no mask where tiles fill the block."""
    u = writer.let(f"{number} * {tile} + tl.arange(0, {tile})" if number else f"tl.arange(0, {tile})")
    if block.multiplicity % tile == 0:
        return _Tile(u, "", "")
    inside = writer.let(f"{u} < {block.multiplicity}")
    return _Tile(u, f", mask={inside}, other=0.0", f", mask={inside}")


def _messages(form: MessagePassingForm, variant: Variant) -> Kernel:
    writer = Writer(variant)
    writer.line("i = tl.program_id(0).to(tl.int64)")
    writer.line("section = tl.program_id(1)")
    writer.line("begin = tl.load(row_pointer + i).to(tl.int64)")
    writer.line("end = tl.load(row_pointer + i + 1).to(tl.int64)")
    first = 0
    for block in placed_blocks(form):
        tile = tile_of(block.multiplicity, variant)
        tiles = -(-block.multiplicity // tile)
        for paths in _sections(block, variant):
            writer.line(f"if (section >= {first}) & (section < {first + tiles}):")
            writer.indent += 1
            channels = _open_tile(writer, block, tile, f"(section - {first})")
            sums = [[writer.zeros(tile) for _ in range(2 * path.l3 + 1)] for path in paths]
            writer.line("for e in range(begin, end):")
            writer.indent += 1
            depth = writer.indent
            _open_edge(form, writer)
            y = _edge_numbers(form, writer, paths)
            _find_sender(writer)
            x = _features(form, writer, block, channels)
            known: dict[tuple[int, int, int], dict[tuple[int, int], Number]] = {}
            for path, own in zip(paths, sums, strict=True):
                w, _ = _weights(form, writer, path, channels)
                _couple(writer, _matrix(writer, known, path, y), w, x, own)
            writer.indent = depth - 1
            for path, own in zip(paths, sums, strict=True):
                for m3, total in enumerate(own):
                    offset = f"i * {form.irreps_out.dim} + {path.out + m3 * path.out_stride} + {channels.u}"
                    writer.store("out", offset, total, channels.store_mask)
            writer.indent -= 1
            first += tiles
    return _finish(form, writer, first)


def _features(form: MessagePassingForm, writer: Writer, block: PlacedBlock, channels: _Tile) -> list[Number]:
    """A block of the features of the sender of edge `e`."""
    if writer.variant.unit:
        return [ONE]
    return [
        writer.load(
            "x",
            f"s * {form.irreps_in.dim} + {block.start + m1 * block.multiplicity} + {channels.u}",
            channels.load_mask,
        )
        for m1 in range(2 * block.l1 + 1)
    ]


def _couple(
    writer: Writer,
    matrix: dict[tuple[int, int], Number],
    w: Number,
    source: Sequence[Number],
    target: Sequence[Number],
    *,
    transposed: bool = False,
) -> None:
    """target[b] += w Σ_a A[a, b] source[a]; w goes to the side with fewer components."""
    rows: dict[int, list[tuple[int, Number]]] = {}
    for (m1, m3), element in matrix.items():
        a, b = (m3, m1) if transposed else (m1, m3)
        rows.setdefault(b, []).append((a, element))
    if len(source) < len(target):
        weighted = [writer.product_sum([(w, element)]) for element in source]
        for b, row in rows.items():
            writer.add(target[b], [(weighted[a], element) for a, element in row])
        return
    for b, row in rows.items():
        writer.add(target[b], [(w, writer.product_sum((source[a], element) for a, element in row))])


def _senders(form: MessagePassingForm, variant: Variant) -> Kernel:
    writer = Writer(variant)
    writer.line("j = tl.program_id(0).to(tl.int64)")
    writer.line("section = tl.program_id(1)")
    writer.line("begin = tl.load(sender_pointer + j).to(tl.int64)")
    writer.line("end = tl.load(sender_pointer + j + 1).to(tl.int64)")
    first = 0
    for block in placed_blocks(form):
        tile = tile_of(block.multiplicity, variant)
        tiles = -(-block.multiplicity // tile)
        writer.line(f"if (section >= {first}) & (section < {first + tiles}):")
        writer.indent += 1
        channels = _open_tile(writer, block, tile, f"(section - {first})")
        sums = [writer.zeros(tile) for _ in range(2 * block.l1 + 1)]
        writer.line("for k in range(begin, end):")
        writer.indent += 1
        depth = writer.indent
        writer.line("e = tl.load(sender_order + k).to(tl.int64)")
        _open_edge(form, writer)
        writer.line("i = tl.load(receiver + e).to(tl.int64)")
        y = _edge_numbers(form, writer, block.paths)
        known: dict[tuple[int, int, int], dict[tuple[int, int], Number]] = {}
        for path in block.paths:
            w, _ = _weights(form, writer, path, channels)
            g = _cotangents(form, writer, path, channels)
            _couple(writer, _matrix(writer, known, path, y), w, g, sums, transposed=True)
        writer.indent = depth - 1
        for m1, total in enumerate(sums):
            offset = f"j * {form.irreps_in.dim} + {block.start + m1 * block.multiplicity} + {channels.u}"
            writer.store("dx", offset, total, channels.store_mask)
        writer.indent -= 1
        first += tiles
    return _finish(form, writer, first)


def _cotangents(form: MessagePassingForm, writer: Writer, path: PlacedPath, channels: _Tile) -> list[Number]:
    """Cotangents of the messages of a path at receiver `i`."""
    return [
        writer.load(
            "g",
            f"i * {form.irreps_out.dim} + {path.out + m3 * path.out_stride} + {channels.u}",
            channels.load_mask,
        )
        for m3 in range(2 * path.l3 + 1)
    ]


def _edges(form: MessagePassingForm, variant: Variant) -> Kernel:
    """The sums over channels that ∂F/∂Y needs are made once for an edge, after all blocks: a program has all channels
    of its edges, and the cotangents of a receiver, which its edges share, come from the cache.

    The other way, programs of one tile and block as in the other kernels, would keep the cotangents in registers, but
    add up lanes for every block and tile (five shuffles for each of (l_max+1)² numbers, about as much work as the
    products of a block) and write partial sums for a second launch to add: that pays only where there are too few
    edges to fill a GPU."""
    writer = Writer(variant)
    blocks = placed_blocks(form)
    # One tile for all blocks, so that their sums add up lane by lane.
    tile = min(tile_of(block.multiplicity, variant) for block in blocks)
    tile = max(tile, min(LANES, max(tile_of(block.multiplicity, variant) for block in blocks)))
    width = (form.l_max + 1) ** 2
    writer.line("i = tl.program_id(0).to(tl.int64)")
    writer.line("begin = tl.load(row_pointer + i).to(tl.int64)")
    writer.line("end = tl.load(row_pointer + i + 1).to(tl.int64)")
    writer.line("for e in range(begin + tl.program_id(1), end, tl.num_programs(1)):")
    writer.indent += 1
    depth = writer.indent
    _open_edge(form, writer)
    y = _edge_numbers(form, writer, [path for block in blocks for path in block.paths])
    _find_sender(writer)
    sums = {k: writer.zeros(tile) for k in y} if "y" in variant.wanted else {}
    along = writer.zeros(tile) if "t" in variant.wanted else None
    for block in blocks:
        tiles = -(-block.multiplicity // tile)
        if tiles > 1:
            writer.line(f"for c in range({tiles}):")
            writer.indent += 1
        channels = _open_tile(writer, block, tile, "c" if tiles > 1 else "")
        x = _features(form, writer, block, channels)
        for path in block.paths:
            g = _cotangents(form, writer, path, channels)
            needs_w = "y" in variant.wanted or "t" in variant.wanted
            w, slope = _weights(form, writer, path, channels, slope=True) if needs_w else (ONE, ONE)
            products: dict[tuple[int, int], Number] = {}
            grouped: dict[int, list[tuple[float, Number]]] = {}
            for m1, m2, m3, c in _terms(path.l1, path.path.l2, path.l3):
                if (m1, m3) not in products:
                    products[m1, m3] = writer.product_sum([(x[m1], g[m3])])
                grouped.setdefault(m2, []).append((c, products[m1, m3]))
            start = path.path.l2**2
            coupled = {m2: writer.scaled_sum(terms) for m2, terms in grouped.items()}
            if "y" in variant.wanted:
                for m2, b in coupled.items():
                    writer.add(sums[start + m2], [(w, b)])
            if variant.wanted in ("y",):
                continue
            dw = writer.product_sum((b, y[start + m2]) for m2, b in coupled.items())
            if along is not None:
                writer.add(along, [(slope, dw)])
            else:
                writer.store(
                    "dw", f"e * {form.n_weights} + {path.weight} + {channels.u}", dw, channels.store_mask
                )
        if tiles > 1:
            writer.indent -= 1
    if "y" in variant.wanted:
        for k in range(width):
            writer.store("dy", f"e * {width} + {k}", _total(sums.get(k)))
    if along is not None:
        writer.store("dt", "e", _total(along))
    writer.indent = depth - 1
    return _finish(form, writer, 0)


def _total(number: Number | None) -> Number:
    """Sum over channels."""
    if number is None:
        return Number("0.0", "0.0")
    # `tl.sum` is compiled code of Triton's own, which the interpreter runs only where it was chosen at import.
    parts = [part and f"tl.reduce({part}, 0, tl.standard._sum_combine)" for part in number]
    return Number(parts[0] or "", parts[1])
