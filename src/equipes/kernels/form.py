"""The multilinear form behind equivariant message passing: which couplings it has and where its numbers lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from equipes.clebsch_gordan import wigner_3j
from equipes.irreps import Irrep, Irreps


@dataclass(frozen=True)
class Path:
    """One coupling: input block `block`, harmonics of degree `l2`, result `out`, channel by channel ("uvu")."""

    block: int
    l2: int
    out: Irrep


@dataclass(frozen=True)
class BlockPaths:
    """The paths that start at one input block, grouped by the degree of their result.

    Attributes:
        l1, multiplicity: of the input block.
        start: first element of the block in a feature row.
        first_weight: first element of its paths in a row of weights.
        groups: `(l3, number of paths)` in ascending l3; paths follow each other in this order.
        coupling: `[(l_max+1)², rows · (2l1+1)]`, so that `harmonics @ coupling` is the matrix `[rows, 2l1+1]` of each
            edge; rows run over (path, m3). It contains the factor sqrt(2·l3+1).
    """

    l1: int
    multiplicity: int
    start: int
    first_weight: int
    groups: tuple[tuple[int, int], ...]
    coupling: np.ndarray

    @property
    def n_paths(self) -> int:
        return sum(count for _, count in self.groups)


class MessagePassingForm:
    """F(x, Y, w, g) = Σ_edges Σ_paths Σ_u  w[e,p,u] g[receiver,m3,u] √(2l3+1) C[m1,m2,m3] x[sender,m1,u] Y[e,m2].

    A path couples one block of the input with the harmonics of one degree l2 (parity p^l2, p = -1) to one irrep of
    `wanted`. C is the Wigner 3j tensor. The derivative by g is the sum of messages at each receiver.

    Weights are ordered by input block, then l3 and its parity, then l2, `multiplicity` each. The result has the
    paths to equal irreps united in the same order, its irreps sorted.

    Args:
        irreps_in: of the sender's features.
        l_max: highest degree of the harmonics.
        wanted: irreps to produce.
        parity: p above; 1 calls all harmonics even, for models that know rotations but no reflections.
        paths: the couplings themselves, in the order of the weights, in place of all that lead to `wanted`.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        l_max: int,
        wanted: Collection[Irrep] = (),
        *,
        parity: int = -1,
        paths: Iterable[Path] | None = None,
    ) -> None:
        self.irreps_in = irreps_in
        self.l_max = l_max
        self.paths: tuple[Path, ...] = (
            tuple(paths)
            if paths is not None
            else tuple(
                Path(block, l2, out)
                for block, (_, irrep) in enumerate(irreps_in)
                for out in sorted(set(wanted))
                for l2 in range(l_max + 1)
                if out in irrep * Irrep(l2, parity**l2)
            )
        )
        if list(self.paths) != sorted(self.paths, key=lambda path: (path.block, path.out, path.l2)):
            raise ValueError("paths must be sorted by input block, result and degree of the harmonics")
        self.irreps_out = Irreps((irreps_in[path.block][0], path.out) for path in self.paths).merged()
        self.n_weights = sum(irreps_in[path.block][0] for path in self.paths)

    @cached_property
    def blocks(self) -> tuple[BlockPaths, ...]:
        """The paths of each input block that has any."""
        result = []
        first_weight = 0
        for block, ((mul, irrep), place) in enumerate(
            zip(self.irreps_in, self.irreps_in.slices(), strict=True)
        ):
            paths = [path for path in self.paths if path.block == block]
            if not paths:
                continue
            degrees = sorted({path.out.l for path in paths})
            result.append(
                BlockPaths(
                    l1=irrep.l,
                    multiplicity=mul,
                    start=place.start,
                    first_weight=first_weight,
                    groups=tuple((l, sum(path.out.l == l for path in paths)) for l in degrees),
                    coupling=np.concatenate(
                        [self._coupling(irrep.l, path) for path in paths], axis=1
                    ).reshape((self.l_max + 1) ** 2, -1),
                )
            )
            first_weight += mul * len(paths)
        return tuple(result)

    def _coupling(self, l1: int, path: Path) -> np.ndarray:
        """`[(l_max+1)², 2l3+1, 2l1+1]`."""
        l2, l3 = path.l2, path.out.l
        coupling = np.zeros(((self.l_max + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
        coupling[l2**2 : (l2 + 1) ** 2] = np.sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3).transpose(1, 2, 0)
        return coupling

    @cached_property
    def output_order(self) -> tuple[int, np.ndarray]:
        """How the results of the blocks, one after the other as (path, m3, channel), become rows of `irreps_out`.

        Returns `(width, order)`: seen as rows of `width` channels, the result is `blocks[order]`.
        """
        width = int(np.gcd.reduce([mul for mul, _ in self.irreps_in])) if len(self.irreps_in) else 1
        places: dict[Irrep, list[np.ndarray]] = {irrep: [] for irrep in self.irreps_out.irreps}
        start = 0
        for path in self.paths:
            rows, columns = path.out.dim, self.irreps_in[path.block][0] // width
            places[path.out].append(start + np.arange(rows * columns).reshape(rows, columns))
            start += rows * columns
        order = [np.concatenate(parts, axis=1).ravel() for parts in places.values()]
        return width, np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
