"""Layers of a frozen NequIP-type potential on a device, with their reverse passes written by hand.

Features are rows of blocks `[2l+1, multiplicity]` (see `equipes.irreps.Irreps`). A linear layer is one matrix product
for each block, on the rows as they lie in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipes.irreps import Irrep, Irreps
from equipes.kernels.form import MessagePassingForm, Path
from equipes.kernels.splines import RadialSplines
from equipes.models.blueprint import EVEN
from equipes.models.device_geometry import DeviceAtoms
from equipes.nn.gate import SILU_SCALE, TANH_SCALE
from equipes.nn.linear import ODD_SCALAR

# The atoms of each species; None: all atoms go together.
Groups = tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Block:
    """Where one irrep lies in rows of features."""

    start: int
    components: int
    multiplicity: int

    def of(self, rows: Tensor) -> Tensor:
        """`[N, dim]` -> `[N, 2l+1, multiplicity]`, the same memory."""
        place = rows.narrow(1, self.start, self.components * self.multiplicity)
        return place.unflatten(1, (self.components, self.multiplicity))


def blocks_of(irreps: Irreps) -> dict[Irrep, Block]:
    """The places of all blocks, each irrep of which occurs once."""
    return {
        irrep: Block(place.start, irrep.dim, mul)
        for (mul, irrep), place in zip(irreps, irreps.slices(), strict=True)
    }


@dataclass(frozen=True, eq=False)
class BlockMap:
    """From one block to another: one matrix, or one for each species, `[1 or n_species, in, out]`."""

    source: Block
    target: Block
    matrices: Tensor

    def add(self, rows: Tensor, result: Tensor, groups: Groups) -> None:
        """Add the product to `result`."""
        _add_product(self.source.of(rows), self.target.of(result), self.matrices, groups)

    def add_reverse(self, cotangents: Tensor, result: Tensor, groups: Groups) -> None:
        """Add the cotangents of the source, from those of the target."""
        _add_product(
            self.target.of(cotangents), self.source.of(result), self.matrices.transpose(1, 2), groups
        )


@dataclass(frozen=True)
class BlockCopy:
    """From one block to another of the same size."""

    source: Block
    target: Block

    def add(self, rows: Tensor, result: Tensor, groups: Groups) -> None:
        """Add the source to `result`."""
        self.target.of(result).add_(self.source.of(rows))

    def add_reverse(self, cotangents: Tensor, result: Tensor, groups: Groups) -> None:
        """Add the cotangents of the source, from those of the target."""
        self.source.of(result).add_(self.target.of(cotangents))


def _add_product(rows: Tensor, result: Tensor, matrices: Tensor, groups: Groups) -> None:
    # One product for each component m, all in one call, of rows that need not lie side by side.
    rows, result = rows.transpose(0, 1), result.transpose(0, 1)  # [2l+1, N, mul]
    if len(matrices) == 1:
        result.baddbmm_(rows, matrices.expand(len(rows), -1, -1))
        return
    assert groups is not None
    for atoms, matrix in zip(groups, matrices, strict=True):
        # Each atom is of one species, so that no two of these additions meet.
        result.index_add_(1, atoms, rows.index_select(1, atoms) @ matrix)


@dataclass(frozen=True, eq=False)
class GateMap:
    """The gate (`equipes.nn.Gate`) from z to x: `(irrep, block of z, block of x, block of its gates in z or None)`."""

    terms: tuple[tuple[Irrep, Block, Block, Block | None], ...]
    width: int

    @classmethod
    def make(cls, scalars: Irreps, gated: Irreps, gate_in: Irreps) -> GateMap:
        """Of a layer; x has the scalars, then what is gated."""
        z, x = blocks_of(gate_in), blocks_of(Irreps([*scalars, *gated]))
        terms: list[tuple[Irrep, Block, Block, Block | None]] = []
        for mul, irrep in scalars:
            terms.append((irrep, Block(z[irrep].start, 1, mul), x[irrep], None))
        start = z[EVEN].start + scalars.multiplicity(EVEN) if EVEN in z else 0
        for mul, irrep in gated:
            terms.append((irrep, z[irrep], x[irrep], Block(start, 1, mul)))
            start += mul
        return cls(tuple(terms), Irreps([*scalars, *gated]).dim)

    def forward(self, z: Tensor) -> Tensor:
        """`[N, dim of z]` -> `[N, dim of x]`."""
        x = z.new_empty(len(z), self.width)
        for irrep, source, target, gates in self.terms:
            if gates is not None:
                factor = SILU_SCALE * torch.nn.functional.silu(gates.of(z))
                torch.mul(source.of(z), factor, out=target.of(x))
            elif irrep == ODD_SCALAR:
                torch.mul(torch.tanh(source.of(z)), TANH_SCALE, out=target.of(x))
            else:
                torch.mul(torch.nn.functional.silu(source.of(z)), SILU_SCALE, out=target.of(x))
        return x

    def reverse(self, z: Tensor, cotangents: Tensor) -> Tensor:
        """From the cotangents of x those of z."""
        # All of z goes through the gate, so that every number is written.
        result = torch.empty_like(z)
        for irrep, source, target, gates in self.terms:
            own, given = source.of(z), target.of(cotangents)
            if gates is not None:
                value, slope = _silu(gates.of(z))
                torch.mul(given, value, out=source.of(result))
                torch.mul((given * own).sum(1, keepdim=True), slope, out=gates.of(result))
            elif irrep == ODD_SCALAR:
                torch.mul(given, TANH_SCALE * (1 - torch.tanh(own) ** 2), out=source.of(result))
            else:
                torch.mul(given, _silu(own)[1], out=source.of(result))
        return result


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """c silu(z) and its derivative."""
    sigmoid = torch.sigmoid(z)
    value = SILU_SCALE * sigmoid * z
    return value, SILU_SCALE * sigmoid + value * (1 - sigmoid)


@dataclass(frozen=True, eq=False)
class DeviceLayer:
    """One layer: x -> linear_1 -> h; messages of h -> linear_2, + self-connection of x -> z -> gate -> x of the next.

    In the first layer all of this up to z is in the splines, one table for each species of the sender.

    Attributes:
        form: the couplings of h, or of the splines alone in the first layer.
        splines: radial weights.
        linear_1: to h; None in the first layer.
        linear_2: from the messages to z; in the first layer messages are part of z.
        self_connection: from x to z.
        constants: `[n_species, even scalars]`, added to z.
        hidden_constants: `[even scalars]`, added to h; None: nothing is.
    """

    form: MessagePassingForm
    splines: RadialSplines
    gate: GateMap
    x_width: int
    z_width: int
    scalars: Block | None
    hidden_scalars: Block | None
    linear_1: tuple[BlockMap, ...] | None
    linear_2: tuple[BlockMap | BlockCopy, ...]
    self_connection: tuple[BlockMap, ...]
    constants: Tensor
    hidden_constants: Tensor | None

    @property
    def hidden_width(self) -> int:
        """Numbers of an atom in h; none in the first layer."""
        return 0 if self.linear_1 is None else self.form.irreps_in.dim

    @property
    def busy_width(self) -> int:
        """Numbers of an atom that are in use at a time beside what is kept, at most."""
        return self.form.irreps_out.dim + self.z_width + self.hidden_width + self.x_width

    @property
    def by_species(self) -> bool:
        """Whether matrices belong to species of which there are several."""
        every = (*(self.linear_1 or ()), *self.linear_2, *self.self_connection)
        return any(isinstance(each, BlockMap) and len(each.matrices) > 1 for each in every)

    @property
    def densities(self) -> None:
        """What messages are divided by is in linear_2."""
        return

    def hidden(self, x: Tensor, groups: Groups) -> Tensor | None:
        """h of x; None in the first layer."""
        if self.linear_1 is None:
            return None
        h = x.new_zeros(len(x), self.form.irreps_in.dim)
        if self.hidden_constants is not None and self.hidden_scalars is not None:
            self.hidden_scalars.of(h).add_(self.hidden_constants)
        for each in self.linear_1:
            each.add(x, h, groups)
        return h

    def mixed(self, x: Tensor | None, messages: Tensor, atoms: DeviceAtoms, density: Tensor | None) -> Tensor:
        """z of x and the messages, which is kept."""
        z = messages.new_zeros(len(messages), self.z_width)
        if self.scalars is not None:
            self.scalars.of(z).add_(self.constants.index_select(0, atoms.types).unsqueeze(1))
        for each in self.linear_2:
            each.add(messages, z, atoms.groups)
        if x is not None:
            for each in self.self_connection:
                each.add(x, z, atoms.groups)
        return z

    def forward(self, x: Tensor | None, z: Tensor, atoms: DeviceAtoms) -> Tensor:
        """x of the next layer."""
        return self.gate.forward(z)

    def add_readout(self, x: Tensor, energies: Tensor) -> None:
        """Nothing: only the last x is read out."""

    def add_readout_reverse(self, cotangents: Tensor, scales: Tensor) -> None:
        """Nothing, either."""

    def reverse(self, z: Tensor, cotangents: Tensor, atoms: DeviceAtoms) -> Tensor:
        """From the cotangents of x of the next layer those of z."""
        return self.gate.reverse(z, cotangents)

    def messages_reverse(self, z_cotangents: Tensor, groups: Groups, density: Tensor | None) -> Tensor:
        """The cotangents of the messages."""
        result = z_cotangents.new_zeros(len(z_cotangents), self.form.irreps_out.dim)
        for each in self.linear_2:
            each.add_reverse(z_cotangents, result, groups)
        return result

    def x_reverse(
        self, z_cotangents: Tensor, next_cotangents: Tensor, h_cotangents: Tensor, groups: Groups
    ) -> Tensor:
        """The cotangents of x."""
        result = z_cotangents.new_zeros(len(z_cotangents), self.x_width)
        for each in self.self_connection:
            each.add_reverse(z_cotangents, result, groups)
        for each in self.linear_1 or ():
            each.add_reverse(h_cotangents, result, groups)
        return result


def make_layers(
    structure: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[DeviceLayer, ...]:
    """The layers that a frozen potential's structure and arrays describe (see `equipes.models.frozen.describe`)."""

    def tensor(name: str) -> Tensor:
        return torch.tensor(arrays[name], dtype=dtype).to(device)

    knots = torch.tensor(arrays["knots"]).to(device)
    layers = []
    for k, facts in enumerate(structure["layers"]):
        name = f"layers.{k}"
        x_irreps, z_irreps = Irreps(facts["irreps_in"]), Irreps(facts["gate_in"])
        x_blocks, z_blocks = blocks_of(x_irreps), blocks_of(z_irreps)
        form = form_of(facts, structure["l_max"], first=k == 0)
        messages = blocks_of(form.irreps_out)
        maps: dict[str, list[BlockMap]] = {"linear_1": [], "linear_2": [], "self_connection": []}
        hidden = blocks_of(form.irreps_in) if k > 0 else {}
        for key in maps:
            for source, target, label in block_maps(arrays, f"{name}.{key}"):
                if key == "linear_1":
                    irrep = x_irreps.irreps[source]
                    ends = x_blocks[irrep], hidden[irrep]
                elif key == "linear_2":
                    irrep = z_irreps.irreps[target]
                    ends = messages[irrep], z_blocks[irrep]
                else:
                    ends = x_blocks[x_irreps.irreps[source]], z_blocks[z_irreps.irreps[target]]
                maps[key].append(BlockMap(*ends, tensor(label)))
        splines = tensor(f"{name}.splines")
        extra = f"{name}.hidden_constants"
        layers.append(
            DeviceLayer(
                form=form,
                splines=RadialSplines(knots, splines if k == 0 else splines.unsqueeze(0)),
                gate=GateMap.make(Irreps(facts["scalars"]), Irreps(facts["gated"]), z_irreps),
                x_width=x_irreps.dim,
                z_width=z_irreps.dim,
                scalars=z_blocks.get(EVEN),
                hidden_scalars=hidden.get(EVEN),
                linear_1=None if k == 0 else tuple(maps["linear_1"]),
                linear_2=tuple(maps["linear_2"])
                if k > 0
                else tuple(BlockCopy(place, z_blocks[irrep]) for irrep, place in messages.items()),
                self_connection=tuple(maps["self_connection"]),
                constants=tensor(f"{name}.constants"),
                hidden_constants=tensor(extra) if k > 0 and extra in arrays else None,
            )
        )
    return tuple(layers)


def form_of(facts: Mapping[str, Any], l_max: int, *, first: bool) -> MessagePassingForm:
    """The couplings of a layer; of the first one those of the splines: features are 1, a block for each degree."""
    paths = [(block, l2, Irrep(l3, parity)) for block, l2, l3, parity in facts["paths"]]
    z_irreps = Irreps(facts["gate_in"])
    if first:
        reached = [(l, z_irreps[block]) for l, block in enumerate(facts["reached"]) if block >= 0]
        return MessagePassingForm(
            Irreps((mul, EVEN) for _, (mul, _) in reached),
            l_max,
            paths=[Path(index, l, irrep) for index, (l, (_, irrep)) in enumerate(reached)],
        )
    # Blocks that only the self-connection reads have no place in h.
    x_irreps = Irreps(facts["irreps_in"])
    used = sorted({block for block, _, _ in paths})
    return MessagePassingForm(
        Irreps(x_irreps[block] for block in used),
        l_max,
        paths=[Path(used.index(block), l2, out) for block, l2, out in paths],
    )


def block_maps(arrays: Mapping[str, np.ndarray], prefix: str) -> Sequence[tuple[int, int, str]]:
    """`(source, target, name)` of the matrices of one kind, by the numbers of their blocks."""
    found = []
    for label in arrays:
        if label.startswith(prefix + "."):
            source, target = label.removeprefix(prefix + ".").split(".")
            found.append((int(source), int(target), label))
    return sorted(found)
