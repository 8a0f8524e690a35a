"""MACE's layers of a frozen potential on a device, with their reverse passes written by hand.

z -> / density -> species' linear map -> A -> symmetric contraction -> m -> linear_3, + self-connection of x -> x of
the next layer; each x is read out
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipes.irreps import Irreps
from equipes.kernels.contraction import contract, contract_reverse
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.polynomials import PolynomialTable
from equipes.kernels.splines import N_COEFFICIENTS, Places, RadialSplines
from equipes.models.blueprint import EVEN
from equipes.models.device_geometry import DeviceAtoms, segment_sums
from equipes.models.device_layers import Block, BlockCopy, BlockMap, Groups, block_maps, blocks_of, form_of


@dataclass(frozen=True, eq=False)
class Densities:
    """1 + Σ_e ρ(r_e) of the edges of a receiver, what its messages are divided by; ρ is a spline, in float64.

    Attributes:
        coefficients: `[kinds · intervals, 6]` float64.
        n_intervals: between the knots.
    """

    coefficients: Tensor
    n_intervals: int

    def __call__(self, atoms: DeviceAtoms, places: Places) -> Tensor:
        """`[N]` float64."""
        rows, t, counts = self._rows(places)
        value = self._column(rows, N_COEFFICIENTS - 1)
        for k in reversed(range(N_COEFFICIENTS - 1)):
            value = value * t + self._column(rows, k)
        return 1 + segment_sums(torch.where(counts, value, 0.0), atoms.row_pointer)

    def reverse(
        self, z: Tensor, cotangents: Tensor, sums: Tensor, atoms: DeviceAtoms, places: Places
    ) -> Tensor:
        """What the places' t get of the energy's derivatives through the sums `[N]`, `[E]` float64.

        Args:
            z, cotangents: `[N, ...]`, anything that is linear in the quotient, as A is, with its cotangents.
        """
        of_sums = -(z * cotangents).sum(1).double() / sums
        return of_sums.index_select(0, atoms.receiver) * self._slopes(places)

    def _slopes(self, places: Places) -> Tensor:
        """dρ/dt of the edges, `[E]` float64."""
        rows, t, counts = self._rows(places)
        slope = (N_COEFFICIENTS - 1) * self._column(rows, N_COEFFICIENTS - 1)
        for k in reversed(range(1, N_COEFFICIENTS - 1)):
            slope = slope * t + k * self._column(rows, k)
        return torch.where(counts, slope, 0.0)

    def _rows(self, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        counts = places.interval >= 0
        rows = places.interval
        if places.kind is not None:
            rows = rows + places.kind * self.n_intervals
        return torch.where(counts, rows, 0).long(), torch.where(counts, places.t, 0.0).double(), counts

    def _column(self, rows: Tensor, k: int) -> Tensor:
        return self.coefficients.select(1, k).index_select(0, rows)


@dataclass(frozen=True, eq=False)
class ProductLayer:
    """One layer: x -> linear_1 -> h; messages of h -> linear_2 -> z -> A -> m -> linear_3, + self-connection of x -> x
    of the next. What is kept of it is A.

    In the first layer all of this up to z is in the splines.

    Attributes:
        form: the couplings of h, or of the splines alone in the first layer.
        splines: radial weights.
        table, coefficients: of the contraction, `[n_species, coefficients, C]`.
        linear_1: to h; None in the first layer.
        linear_2: from the messages to z.
        mixing: from z to A; None where that is z.
        linear_3: from m to x of the next layer.
        self_connection: from x to x of the next layer.
        constants: `[n_species, even scalars]`, added to x of the next layer.
        scalars: the even scalars of x of the next layer.
        readout: `[even scalars]`, what is read out of them here; None in the last layer.
        densities: what z is divided by; None where that is in linear_2.
    """

    form: MessagePassingForm
    splines: RadialSplines
    table: PolynomialTable
    coefficients: Tensor
    x_width: int
    z_width: int
    m_width: int
    linear_1: tuple[BlockMap, ...] | None
    linear_2: tuple[BlockMap | BlockCopy, ...]
    mixing: tuple[BlockMap, ...] | None
    linear_3: tuple[BlockMap, ...]
    self_connection: tuple[BlockMap, ...]
    constants: Tensor
    scalars: Block
    readout: Tensor | None
    densities: Densities | None

    @property
    def hidden_width(self) -> int:
        """Numbers of an atom in h; none in the first layer."""
        return 0 if self.linear_1 is None else self.form.irreps_in.dim

    @property
    def busy_width(self) -> int:
        """Numbers of an atom that are in use at a time beside what is kept, at most."""
        # The reverse sweep has the cotangents of x of the next layer, A, z and the messages together, then h in the
        # place of z; the forward sweep has x in the place of the next.
        another = self.mixing is not None or self.densities is not None
        between = max(self.z_width if another else 0, self.hidden_width)
        return self.form.irreps_out.dim + self.z_width + between + max(self.m_width, self.x_width)

    @property
    def by_species(self) -> bool:
        """Whether matrices or coefficients belong to species of which there are several."""
        return len(self.coefficients) > 1

    def hidden(self, x: Tensor, groups: Groups) -> Tensor | None:
        """h of x; None in the first layer."""
        if self.linear_1 is None:
            return None
        return _mapped(self.linear_1, x, self.form.irreps_in.dim, groups)

    def mixed(self, x: Tensor | None, messages: Tensor, atoms: DeviceAtoms, density: Tensor | None) -> Tensor:
        """A of the messages, which is kept."""
        z = _mapped(self.linear_2, messages, self.z_width, atoms.groups)
        if density is not None:
            z /= density.to(z.dtype).unsqueeze(1)
        return z if self.mixing is None else _mapped(self.mixing, z, self.z_width, atoms.groups)

    def forward(self, x: Tensor | None, A: Tensor, atoms: DeviceAtoms) -> Tensor:
        """x of the next layer."""
        m = contract(self.table, A, self.coefficients, atoms.types, atoms.groups)
        result = _mapped(self.linear_3, m, self.m_width, atoms.groups)
        self.scalars.of(result).add_(self.constants.index_select(0, atoms.types).unsqueeze(1))
        if x is not None:
            for each in self.self_connection:
                each.add(x, result, atoms.groups)
        return result

    def reverse(self, A: Tensor, cotangents: Tensor, atoms: DeviceAtoms) -> Tensor:
        """From the cotangents of x of the next layer those of A."""
        of_m = _reversed(self.linear_3, cotangents, self.m_width, atoms.groups)
        return contract_reverse(self.table, A, self.coefficients, atoms.types, atoms.groups, of_m)

    def messages_reverse(self, cotangents: Tensor, groups: Groups, density: Tensor | None) -> Tensor:
        """The cotangents of the messages from those of A."""
        if self.mixing is not None:
            cotangents = _reversed(self.mixing, cotangents, self.z_width, groups)
        if density is not None:
            cotangents = cotangents / density.to(cotangents.dtype).unsqueeze(1)
        return _reversed(self.linear_2, cotangents, self.form.irreps_out.dim, groups)

    def x_reverse(
        self, A_cotangents: Tensor, next_cotangents: Tensor, h_cotangents: Tensor, groups: Groups
    ) -> Tensor:
        """The cotangents of x."""
        result = next_cotangents.new_zeros(len(next_cotangents), self.x_width)
        for each in self.self_connection:
            each.add_reverse(next_cotangents, result, groups)
        for each in self.linear_1 or ():
            each.add_reverse(h_cotangents, result, groups)
        return result

    def add_readout(self, x: Tensor, energies: Tensor) -> None:
        """Add what is read out of x of the next layer to the energies, `[N]` float64."""
        if self.readout is not None:
            energies += (self.scalars.of(x).squeeze(1) @ self.readout).double()

    def add_readout_reverse(self, cotangents: Tensor, scales: Tensor) -> None:
        """Add to the cotangents of x of the next layer those of what is read out of it; those of the energies `[N]`."""
        if self.readout is not None:
            self.scalars.of(cotangents).squeeze(1).addcmul_(scales.unsqueeze(1), self.readout)


def _mapped(maps: tuple[BlockMap | BlockCopy, ...], rows: Tensor, width: int, groups: Groups) -> Tensor:
    result = rows.new_zeros(len(rows), width)
    for each in maps:
        each.add(rows, result, groups)
    return result


def _reversed(maps: tuple[BlockMap | BlockCopy, ...], rows: Tensor, width: int, groups: Groups) -> Tensor:
    result = rows.new_zeros(len(rows), width)
    for each in maps:
        each.add_reverse(rows, result, groups)
    return result


def make_product_layers(
    structure: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[ProductLayer, ...]:
    """The layers that a frozen MACE's structure and arrays describe (see `equipes.models.mace_blueprint.describe`)."""

    def tensor(name: str, dtype: torch.dtype = dtype) -> Tensor:
        return torch.tensor(arrays[name], dtype=dtype).to(device)

    knots = torch.tensor(arrays["knots"]).to(device)
    intervals = len(arrays["knots"]) - 1
    layers = []
    for k, facts in enumerate(structure["layers"]):
        name = f"layers.{k}"
        x_irreps, z_irreps, out_irreps = (Irreps(facts[key]) for key in ("irreps_in", "gate_in", "out"))
        x, z, out = blocks_of(x_irreps), blocks_of(z_irreps), blocks_of(out_irreps)
        form = form_of(facts, structure["l_max"], first=k == 0)
        messages, hidden = blocks_of(form.irreps_out), blocks_of(form.irreps_in) if k > 0 else {}

        def maps(
            key: str,
            sources: Mapping[int, Block] | None,
            targets: Mapping[int, Block],
            name: str = name,
            z_irreps: Irreps = z_irreps,
            messages: Mapping[Any, Block] = messages,
        ) -> tuple[BlockMap, ...]:
            """Messages have no numbers: their block is that of the target's irrep."""
            return tuple(
                BlockMap(
                    messages[z_irreps.irreps[target]] if sources is None else sources[source],
                    targets[target],
                    tensor(label),
                )
                for source, target, label in block_maps(arrays, f"{name}.{key}")
                if target in targets
            )

        x_list, z_list, out_list = (dict(enumerate(each.values())) for each in (x, z, out))
        # By the numbers of x, whose blocks without paths have no place in h.
        hidden_list = {index: hidden[irrep] for index, irrep in enumerate(x_irreps.irreps) if irrep in hidden}
        mixing = maps("mixing", z_list, z_list)
        table = facts["contraction"]
        layers.append(
            ProductLayer(
                form=form,
                splines=RadialSplines(
                    knots, tensor(f"{name}.splines").unflatten(0, (-1, intervals)).contiguous()
                ),
                table=PolynomialTable(
                    table["inputs"],
                    table["outputs"],
                    tuple(
                        (np.array(factors, dtype=np.int64).reshape(-1, degree), np.array(begin))
                        for degree, (factors, begin) in enumerate(table["degrees"], start=1)
                    ),
                    np.array(table["output"], dtype=np.int64),
                    np.zeros((len(table["output"]), 0)),
                ),
                coefficients=tensor(f"{name}.coefficients"),
                x_width=x_irreps.dim,
                z_width=z_irreps.dim,
                m_width=out_irreps.dim,
                linear_1=None if k == 0 else maps("linear_1", x_list, hidden_list),
                linear_2=tuple(BlockCopy(place, z[irrep]) for irrep, place in messages.items())
                if k == 0
                else maps("linear_2", None, z_list),
                mixing=mixing or None,
                linear_3=maps("linear_3", out_list, out_list),
                self_connection=maps("self_connection", x_list, out_list),
                constants=tensor(f"{name}.constants"),
                scalars=out[EVEN],
                readout=tensor(f"{name}.readout") if f"{name}.readout" in arrays else None,
                densities=Densities(tensor(f"{name}.density", torch.float64), intervals)
                if f"{name}.density" in arrays
                else None,
            )
        )
    return tuple(layers)
