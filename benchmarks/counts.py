"""Operations and bytes that the routines of the engine cannot do without, from the model and the size of the batch.

Operations are those of the kernels' formulas on the real channels (padding is waste, not work); a fused multiply-add is
two. Bytes are compulsory traffic: every array that a routine reads or writes, once, in the number type of the network
(geometry in float64). What is made and used up inside a cache counts nothing: the cotangents of radial weights, and
rows of senders that are read again for every edge.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from equipes.clebsch_gordan import wigner_3j
from equipes.kernels.native.engine import _describe
from equipes.models.nequip import NequIP

REAL, DOUBLE = 4, 8  # bytes of a number: networks are float32 here
SPLINE = 6  # coefficients of a piece of a radial spline: kCoefficients of the frozen engine


@dataclass
class Work:
    """What a routine does in one call of the whole model."""

    operations: float = 0.0
    bytes: float = 0.0
    calls: int = 0

    def add(self, operations: float, numbers: float) -> None:
        self.operations += operations
        self.bytes += REAL * numbers
        self.calls += 1


@dataclass(frozen=True)
class Size:
    """Of a batch: atoms, directed edges, undirected pairs, species that occur."""

    atoms: int
    edges: int
    pairs: int
    species: int


@dataclass
class Layer:
    """One layer of the model in numbers."""

    features: int  # numbers of an atom before it
    messages: int
    gate_in: int
    scalars: int  # even scalars of gate_in
    out: int
    weights: int  # radial weights of an edge
    linear_1: int  # elements of the matrices
    linear_2: int
    linear_1_work: float  # multiply-adds of an atom
    linear_2_work: float
    self_in: int  # numbers of an atom that the self-connection reads
    self_matrices: int
    self_work: float
    radial: list[int] = field(default_factory=list)  # widths: basis, hidden layers
    forward: float = 0.0  # operations of an edge
    tangent: float = 0.0
    reverse: float = 0.0
    dual: float = 0.0
    couple: float = 0.0  # operations of a receiver in reverse
    spline_forward: float = 0.0  # further operations of an edge where weights are splines
    spline_reverse: float = 0.0


def layers_of(model: NequIP) -> list[Layer]:
    """The layers as the engine is told about them."""
    description = _describe(model)
    return [_layer(stated, description) for stated in _needed(description["layers"])]


def harmonics_of(model: NequIP) -> int:
    """(l_max + 1)²."""
    return int((model.l_max + 1) ** 2)


def _needed(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers without what cannot reach the energy, since the last one makes even scalars only.

    Paths become (multiplicity, l1, l2, l3).
    """
    result = []
    wanted = {(l, p) for _, l, p in layers[-1]["scalars"]}
    for stated in reversed(layers):

        def keep(terms: list[list[int]], kinds: set[tuple[int, int]]) -> list[list[int]]:
            return [[mul, l, p] for mul, l, p in terms if (l, p) in kinds]

        scalars, gated = keep(stated["scalars"], wanted), keep(stated["gated"], wanted)
        wanted = wanted | {(0, 1)}  # where the gates are
        gate_in = keep(stated["gate_in"], wanted)
        gates = sum(mul for mul, _, _ in gated) + sum(mul for mul, l, p in scalars if (l, p) == (0, 1))
        gate_in = [[gates if (l, p) == (0, 1) else mul, l, p] for mul, l, p in gate_in]
        paths = [path for path in stated["paths"] if (path[2], path[3]) in wanted]
        sources = [stated["irreps_in"][path[0]] for path in paths]
        used = {(l, p) for _, l, p in sources}
        if stated["self_connection"]:
            used |= {(l, p) for _, l, p in stated["irreps_in"] if (l, p) in wanted}
        result.append(
            {
                **stated,
                "irreps_in": keep(stated["irreps_in"], used),
                "messages": keep(stated["messages"], wanted),
                "gate_in": gate_in,
                "scalars": scalars,
                "gated": gated,
                "paths": [
                    (mul, l1, l2, l3) for (mul, l1, _), (_, l2, l3, _) in zip(sources, paths, strict=True)
                ],
            }
        )
        wanted = used
    return result[::-1]


def _layer(stated: dict[str, Any], description: dict[str, Any]) -> Layer:
    def dim(terms: list[list[int]]) -> int:
        return sum(mul * (2 * l + 1) for mul, l, _ in terms)

    def multiplicities(terms: list[list[int]]) -> dict[tuple[int, int], int]:
        return {(l, p): mul for mul, l, p in terms}

    inputs, outputs = multiplicities(stated["irreps_in"]), multiplicities(stated["gate_in"])
    messages = multiplicities(stated["messages"])
    shared = [kind for kind in outputs if kind in messages]
    kept = [kind for kind in outputs if kind in inputs] if stated["self_connection"] else []
    matrices = sum(inputs[kind] * outputs[kind] for kind in kept)
    layer = Layer(
        features=dim(stated["irreps_in"]),
        messages=dim(stated["messages"]),
        gate_in=dim(stated["gate_in"]),
        scalars=outputs.get((0, 1), 0),
        out=dim(stated["scalars"]) + dim(stated["gated"]),
        weights=sum(mul for mul, *_ in stated["paths"]),
        linear_1=sum(mul**2 for mul in inputs.values()),
        linear_2=sum(messages[kind] * outputs[kind] for kind in shared),
        linear_1_work=sum((2 * l + 1) * mul**2 for (l, _), mul in inputs.items()),
        linear_2_work=sum((2 * l + 1) * messages[l, p] * outputs[l, p] for l, p in shared),
        self_in=sum((2 * l + 1) * inputs[l, p] for l, p in kept),
        self_matrices=matrices,
        self_work=sum((2 * l + 1) * inputs[l, p] * outputs[l, p] for l, p in kept),
        radial=[description["n_roots"], *stated["radial_widths"]],
    )
    for mul, l1, l2, l3 in stated["paths"]:
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        terms, by_m3, by_m2 = _nonzero(l1, l2, l3)
        moving = 2 if l2 > 0 else 1  # Y_0 does not change
        # A = C Y once for all channels of an edge; then sum over m1, and times w.
        layer.forward += 2 * terms + mul * (2 * by_m3 + 2 * d3)
        layer.tangent += moving * 2 * terms + mul * (1 + 4 * d1 + 2 * moving * by_m3)
        # H = C g once for all edges of a receiver; then products with x, and cotangents of x, Y and w.
        layer.couple += 2 * terms * mul
        layer.reverse += mul * (4 * by_m2 + 5 * d2 + 2)
        layer.dual += mul * (10 * by_m2 + 10 * d2 + 3)
        # By Horner's rule, the value alone and with its derivative.
        layer.spline_forward += mul * 2 * (SPLINE - 1)
        layer.spline_reverse += mul * 2 * (2 * SPLINE - 3)
    return layer


@cache
def _nonzero(l1: int, l2: int, l3: int) -> tuple[int, int, int]:
    """Terms of a coupling, and elements of A[m1, m3] and H[m1, m2] that are not zero."""
    found = wigner_3j(l1, l2, l3) != 0
    return int(found.sum()), int(found.any(1).sum()), int(found.any(2).sum())


def training_step(model: NequIP, size: Size) -> dict[str, Work]:
    """Of energies, forces and the gradient of a loss, by the names that the profile has for the routines."""
    works: dict[str, Work] = defaultdict(Work)
    n, e, pairs, species = size.atoms, size.edges, size.pairs, size.species
    y = harmonics_of(model)
    attributes = model.embedding.shape[1]
    for k, layer in enumerate(layers_of(model)):
        x, m, z, w = n * layer.features, n * layer.messages, n * layer.gate_in, pairs * layer.weights
        works["messages, forward"].add(e * layer.forward, w + x + e * y + m)
        works["messages, tangent"].add(e * layer.tangent, 2 * w + 2 * x + e * (2 * y + 1) + m)
        works["messages, reverse"].add(
            e * layer.reverse + n * layer.couple, 2 * w + 3 * x + m + e * (3 * y + 2)
        )
        works["messages, dual reverse"].add(
            e * layer.dual + 2 * n * layer.couple, 2 * w + 4 * x + 2 * m + e * (2 * y + 1)
        )
        _radial(works, layer, pairs)
        first = k == 0  # its features neither depend on positions nor change with them
        for _ in range(2 if first else 4):
            works["linear"].add(2 * n * layer.linear_1_work, 2 * x + layer.linear_1)
        for _ in range(4):
            works["linear"].add(2 * n * layer.linear_2_work, m + z + layer.linear_2)
        times = 1 if first else 2
        works["linear, gradient"].add(times * 2 * n * layer.linear_1_work, 2 * times * x + layer.linear_1)
        works["linear, gradient"].add(4 * n * layer.linear_2_work, 2 * (m + z) + layer.linear_2)
        if layer.self_matrices:
            matrices, cubes = species * layer.self_matrices, attributes * layer.self_matrices
            for _ in range(3 if first else 4):
                works["self-connection"].add(2 * n * layer.self_work, n * layer.self_in + 2 * z + matrices)
            works["self-connection, gradient"].add(
                4 * n * layer.self_work, 2 * n * layer.self_in + 2 * z + matrices
            )
            works["species matrices"].add(2 * attributes * matrices, cubes + matrices)
            works["species matrices"].add(4 * attributes * matrices, 2 * cubes + matrices)
        scalars, out = n * layer.scalars, n * layer.out
        works["gate"].add(0, z + 3 * scalars + out)
        works["gate"].add(0, 2 * z + 2 * scalars + out)
        works["gate"].add(0, 2 * z + 2 * scalars + out)
        works["gate"].add(0, 3 * z + 3 * scalars + 2 * out)
    works["geometry"].bytes += e * (6 * DOUBLE + 3 * y * DOUBLE + y * REAL)
    works["geometry"].calls += 1
    return dict(works)


def _radial(works: dict[str, Work], layer: Layer, pairs: int) -> None:
    """Rows come in pairs (a value and its derivative by the length); of weights read forward and written backward."""
    widths = [*layer.radial, layer.weights]
    products = sum(a * b for a, b in pairwise(widths))
    hidden = sum(layer.radial[1:])
    rows = 2 * pairs
    works["radial network, forward"].add(
        2 * rows * products, rows * (widths[0] + 2 * hidden) + rows * layer.weights + products
    )
    works["radial network, backward"].add(4 * rows * products, rows * (widths[0] + 3 * hidden) + 2 * products)


def exact_inference(model: NequIP, size: Size) -> dict[str, Work]:
    """Of energies, forces and stress on the exact engine: the forward and reverse sweeps of a training step."""
    step, works = training_step(model, size), {}
    for name in ("messages, forward", "messages, reverse", "radial network, forward", "geometry"):
        works[name] = step[name]
    works["species matrices"] = Work()
    for layer in layers_of(model):
        if layer.self_matrices:
            matrices = size.species * layer.self_matrices
            cubes = model.embedding.shape[1] * layer.self_matrices
            works["species matrices"].add(2 * model.embedding.shape[1] * matrices, cubes + matrices)
    for name in ("linear", "self-connection", "gate"):
        whole = step[name]
        works[name] = Work(whole.operations / 2, whole.bytes / 2, whole.calls // 2)
    return works


def frozen_inference(model: NequIP, size: Size, intervals: int = 0) -> dict[str, Work]:
    """Of the message passing with splines for radial weights; other routines count their operations themselves.

    The first layer is a table and is not counted, and messages never leave the cache. `intervals` of the splines, whose
    coefficients are read once.
    """
    works: dict[str, Work] = defaultdict(Work)
    n, e, y = size.atoms, size.edges, harmonics_of(model)
    for layer in layers_of(model)[1:]:
        x, table = n * layer.features, SPLINE * intervals * layer.weights
        works["messages, forward"].add(e * (layer.forward + layer.spline_forward), x + e * (y + 1) + table)
        works["messages, reverse"].add(
            e * (layer.reverse + layer.spline_reverse) + n * layer.couple,
            3 * x + e * (3 * y + 3) + table,
        )
    return dict(works)


def pairs_of(graph: Any) -> int:
    """Undirected pairs among the edges of a graph."""
    return int(np.ceil(graph.n_edges / 2))
