"""Equivariant polynomials of an atom's features: MACE's many-body messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor, nn

from equipes.clebsch_gordan import wigner_3j
from equipes.irreps import Irrep, Irreps
from equipes.kernels import kernel_name
from equipes.kernels.native import contraction
from equipes.kernels.polynomials import PolynomialTable, polynomial_table

# What is left of a coupling when those before it are projected out is zero or of order one.
_INDEPENDENT = 1e-6
_ZERO = 1e-12


@dataclass(frozen=True)
class Coupling:
    """The independent equivariant polynomials of one degree ν with one irrep (L, p) as their value.

    `B[path, M] = Σ_t coefficients[path, M, t] · Π_k A[monomials[t, k]]` with the components A of the features, one
    channel of each irrep, one irrep after the other.

    Attributes:
        monomials: `[T, ν]` int64, ascending in each row; only those that some path needs.
        coefficients: `[paths, 2L+1, T]` float64.
    """

    monomials: np.ndarray
    coefficients: np.ndarray

    @property
    def n_paths(self) -> int:
        return self.coefficients.shape[0]

    @property
    def n_terms(self) -> int:
        """Distinct terms of the polynomials once the paths are summed: the work for one channel."""
        return int((np.abs(self.coefficients).max(axis=0, initial=0) > 0).sum())


@lru_cache(maxsize=64)
def couplings(irreps_in: tuple[Irrep, ...], irrep_out: Irrep, correlation: int) -> tuple[Coupling, ...]:
    """Generalised Clebsch-Gordan coefficients C^{LM}_{η,lm} (eq. 10 of the paper) of degrees 1 to `correlation`.

    Features are coupled one after the other, ((A A) A) A, by √(2l+1) times the Wigner 3j tensor. Since all factors are
    the same A, the result is a polynomial in its components, and most of the paths repeat or vanish: of the 23, 51 and
    65 paths that MACE counts for L = 0, 1, 2 with three factors up to l = 3, 8, 12 and 14 are independent. A path
    that depends on those before it is left out.

    Args:
        irreps_in: of the features, each once.
        irrep_out: (L, p) of the result.
        correlation: the highest degree.

    >>> scalar_and_vector = (Irrep(0, 1), Irrep(1, -1))
    >>> [coupling.n_paths for coupling in couplings(scalar_and_vector, Irrep(0, 1), 3)]  # s; s², v·v; s³, s v·v
    [1, 2, 2]
    """
    polynomials = _polynomials(irreps_in, irrep_out.l, correlation)
    result = []
    for degree in range(1, correlation + 1):
        found = polynomials[degree - 1].get(irrep_out)
        if found is None:
            found = np.zeros((0, irrep_out.dim, 0))
        needed = np.flatnonzero(np.abs(found).max(axis=(0, 1), initial=0) > 0)
        monomials = _monomials(sum(irrep.dim for irrep in irreps_in), degree)[0][needed]
        result.append(Coupling(monomials, np.ascontiguousarray(found[:, :, needed])))
    return tuple(result)


@lru_cache(maxsize=16)
def _polynomials(irreps_in: tuple[Irrep, ...], l_out: int, correlation: int) -> list[dict[Irrep, np.ndarray]]:
    """For each degree the independent polynomials by irrep, `[paths, 2l+1, all monomials of that degree]`."""
    n = sum(irrep.dim for irrep in irreps_in)
    starts = np.cumsum([0, *(irrep.dim for irrep in irreps_in)])
    identity = np.eye(n)
    first = {
        irrep: identity[start : start + irrep.dim][np.newaxis]
        for irrep, start in zip(irreps_in, starts[:-1], strict=True)
    }
    degrees = [first]
    reach = max(irrep.l for irrep in irreps_in)
    for degree in range(2, correlation + 1):
        products: dict[Irrep, list[np.ndarray]] = {}
        # From higher degrees the remaining factors do not lead back to l_out.
        highest = l_out + (correlation - degree) * reach
        table = _monomials(n, degree - 1)[1]
        size = len(_monomials(n, degree)[0])
        for left, polynomials in sorted(degrees[-1].items()):
            for right, start in zip(irreps_in, starts[:-1], strict=True):
                for out in left * right:
                    if out.l > highest:
                        continue
                    c = np.sqrt(out.dim) * wigner_3j(left.l, right.l, out.l)
                    terms = np.einsum("pat,abc->pctb", polynomials, c)
                    places = table[:, start : start + right.dim].ravel()
                    for term in terms.reshape(len(polynomials), out.dim, -1):
                        rows = [np.bincount(places, row, size) for row in term]
                        products.setdefault(out, []).append(np.stack(rows))
        independent = {irrep: _independent(found) for irrep, found in products.items()}
        degrees.append({irrep: found for irrep, found in independent.items() if len(found)})
    return degrees


def _independent(candidates: Sequence[np.ndarray]) -> np.ndarray:
    """The candidates that are not sums of those before them (modified Gram-Schmidt, twice for round-off)."""
    basis: list[np.ndarray] = []
    kept = []
    for candidate in candidates:
        rest = candidate.ravel().copy()
        norm = np.linalg.norm(rest)
        if norm < _ZERO:
            continue
        for _ in range(2):
            for vector in basis:
                rest -= (vector @ rest) * vector
        left = np.linalg.norm(rest)
        if left > _INDEPENDENT * norm:
            basis.append(rest / left)
            kept.append(np.where(np.abs(candidate) > _ZERO, candidate, 0.0))
    return np.stack(kept) if kept else np.zeros((0, *candidates[0].shape))


@lru_cache(maxsize=32)
def _monomials(n: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """All monomials of one degree in n variables, `[T, degree]`, and where each goes times each variable, `[T, n]`."""
    rows = list(combinations_with_replacement(range(n), degree))
    index = {row: i for i, row in enumerate(combinations_with_replacement(range(n), degree + 1))}
    table = [[index[tuple(sorted((*row, variable)))] for variable in range(n)] for row in rows]
    return np.array(rows, dtype=np.int64), np.array(table, dtype=np.int64)


class SymmetricContraction(nn.Module):
    """m_{kLM} = Σ_ν Σ_η W_{z,kη} Σ_lm C^{LM}_{η,lm} Π_{ξ=1..ν} A_{k l_ξ m_ξ}, channel by channel (eqs. 10 and 11).

    The sums run over distinct monomials in the components of A, not over all of their orders.

    Args:
        irreps_in: of the features A, each irrep once, all with the same multiplicity.
        irreps_out: of the messages m, each irrep once, with that multiplicity too.
        correlation: the highest degree ν in A; a message knows ν + 1 bodies.
        n_species: weights belong to the species of the atom.

    Attributes:
        weights: for each irrep of the output and each ν, `[n_species, paths, channels]`.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, correlation: int, n_species: int) -> None:
        super().__init__()
        channels = {mul for mul, _ in [*irreps_in, *irreps_out]}
        if len(channels) != 1:
            raise ValueError(f"{irreps_in} to {irreps_out}: all multiplicities must be equal")
        self.irreps_in, self.irreps_out, self.correlation = irreps_in, irreps_out, correlation
        self.channels, self.n_species = channels.pop(), n_species
        self.couplings = {
            irrep: couplings(tuple(irreps_in.irreps), irrep, correlation) for irrep in irreps_out.irreps
        }
        self.weights = nn.ParameterDict(
            {
                f"{irrep}_{degree}": nn.Parameter(
                    torch.randn(n_species, coupling.n_paths, self.channels) / coupling.n_paths
                )
                for irrep, each in self.couplings.items()
                for degree, coupling in enumerate(each, start=1)
                if coupling.n_paths
            }
        )
        self.table: PolynomialTable = polynomial_table(
            sum(irrep.dim for irrep in irreps_in.irreps),
            [irrep.dim for irrep in irreps_out.irreps],
            [
                [(each.monomials, each.coefficients) for each in self.couplings[irrep]]
                for irrep in irreps_out.irreps
            ],
        )
        for degree in range(1, correlation + 1):
            self._register(degree)

    def weight_names(self) -> list[str]:
        """In the order of the rows of the table's couplings."""
        degrees = range(1, self.correlation + 1)
        names = [f"{irrep}_{degree}" for irrep in self.irreps_out.irreps for degree in degrees]
        return [name for name in names if name in self.weights]

    def weight_rows(self) -> Tensor:
        """All weights, `[n_species, rows of the table's couplings, channels]`."""
        return torch.cat([self.weights[name] for name in self.weight_names()], dim=1)

    def _register(self, degree: int) -> None:
        """The tables of one degree: the monomials of all outputs together, the couplings of all paths as one matrix."""
        each = [self.couplings[irrep][degree - 1] for irrep in self.irreps_out.irreps]
        rows = sorted({tuple(row) for coupling in each for row in coupling.monomials.tolist()})
        index = {row: i for i, row in enumerate(rows)}
        sizes = [coupling.n_paths * coupling.coefficients.shape[1] for coupling in each]
        matrix = np.zeros((sum(sizes), len(rows)))
        start = 0
        for coupling, size in zip(each, sizes, strict=True):
            columns = [index[tuple(row)] for row in coupling.monomials.tolist()]
            matrix[start : start + size, columns] = coupling.coefficients.reshape(size, len(columns))
            start += size
        monomials = np.array(rows, dtype=np.int64).reshape(-1, degree)
        self.register_buffer(f"monomials_{degree}", torch.tensor(monomials), persistent=False)
        self.register_buffer(f"matrix_{degree}", torch.tensor(matrix), persistent=False)

    def forward(self, A: Tensor, types: Tensor) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`; `types` `[N]` is the species of each atom."""
        if kernel_name() == "native" and contraction.supports(self.table, A):
            return contraction.symmetric_contraction(self.table, A, types, self.weight_rows())
        return self._reference(A, types)

    def _reference(self, A: Tensor, types: Tensor) -> Tensor:
        """In plain torch."""
        n = A.shape[0]
        components = A.unflatten(1, (-1, self.channels)).transpose(0, 1).flatten(1)  # [lm, N·C]
        sums: dict[Irrep, Tensor] = {}
        for degree in range(1, self.correlation + 1):
            monomials: Tensor = getattr(self, f"monomials_{degree}")
            matrix: Tensor = getattr(self, f"matrix_{degree}").to(A.dtype)
            products = components.index_select(0, monomials[:, 0])  # [T, N·C]
            for k in range(1, degree):
                products = products * components.index_select(0, monomials[:, k])
            basis = (matrix @ products).unflatten(1, (n, self.channels))  # [(L, η, M), N, C]
            start = 0
            for irrep, each in self.couplings.items():
                paths = each[degree - 1].n_paths
                if paths == 0:
                    continue
                rows = basis[start : start + paths * irrep.dim].unflatten(0, (paths, irrep.dim))
                start += paths * irrep.dim
                weights = self.weights[f"{irrep}_{degree}"].index_select(0, types)  # [N, η, C]
                message = (rows * weights.transpose(0, 1).unsqueeze(1)).sum(0)  # [2L+1, N, C]
                sums[irrep] = sums[irrep] + message if irrep in sums else message
        parts = [
            sums[irrep].transpose(0, 1).flatten(1)
            if irrep in sums
            else A.new_zeros(n, self.channels * irrep.dim)
            for irrep in self.irreps_out.irreps
        ]
        return torch.cat(parts, dim=1)
