"""Irreducible representations of O(3) and direct sums of them, in the notation of e3nn (`"32x0e + 16x1o"`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from equipes.errors import InputError

_TERM = re.compile(r"(?:(\d+)\s*x\s*)?(\d+)([eo])")


@dataclass(frozen=True, order=True)
class Irrep:
    """One irrep of O(3): degree `l` and parity `p` (+1 even, -1 odd).

    Ordered as tuples (l, p), so that odd stands before even, as NequIP's sorted feature layouts need it.

    >>> sorted([Irrep(1, -1), Irrep(0, 1), Irrep(0, -1)])
    [0o, 0e, 1o]
    """

    l: int
    p: int

    def __post_init__(self) -> None:
        if self.l < 0 or self.p not in (1, -1):
            raise InputError(f"an irrep needs l >= 0 and parity 1 or -1, not l = {self.l}, p = {self.p}")

    @property
    def dim(self) -> int:
        """2l + 1."""
        return 2 * self.l + 1

    def __mul__(self, other: Irrep) -> list[Irrep]:
        """The irreps in the tensor product, in ascending l.

        >>> Irrep(1, -1) * Irrep(1, -1)
        [0e, 1e, 2e]
        """
        return [Irrep(l, self.p * other.p) for l in range(abs(self.l - other.l), self.l + other.l + 1)]

    def __repr__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


class Irreps(tuple[tuple[int, Irrep], ...]):
    """A direct sum of irreps, each with a multiplicity: a tuple of (multiplicity, irrep).

    It also fixes the layout of a feature row: the blocks follow each other, and each block is `[2l+1, multiplicity]`
    with the channels contiguous.

    >>> features = Irreps("32x0e + 16x1o")
    >>> features.dim, features.slices()
    (80, [slice(0, 32, None), slice(32, 80, None)])
    """

    def __new__(cls, terms: str | Iterable[tuple[int, Irrep]] = ()) -> Irreps:
        if isinstance(terms, str):
            terms = cls._parse(terms)
        return super().__new__(cls, tuple((int(mul), irrep) for mul, irrep in terms))

    @staticmethod
    def _parse(text: str) -> list[tuple[int, Irrep]]:
        terms = []
        for term in text.split("+") if text.strip() else []:
            match = _TERM.fullmatch(term.strip())
            if match is None:
                raise InputError(
                    f"irreps {text!r}: cannot read {term.strip()!r}; write for example '32x0e + 16x1o'"
                )
            mul, l, parity = match.groups()
            terms.append((int(mul or 1), Irrep(int(l), 1 if parity == "e" else -1)))
        return terms

    @property
    def dim(self) -> int:
        """Length of a feature row, Σ multiplicity (2l + 1)."""
        return sum(mul * irrep.dim for mul, irrep in self)

    @property
    def irreps(self) -> list[Irrep]:
        """The irreps without their multiplicities."""
        return [irrep for _, irrep in self]

    def slices(self) -> list[slice]:
        """The place of each block in a feature row."""
        result, start = [], 0
        for mul, irrep in self:
            result.append(slice(start, start + mul * irrep.dim))
            start += mul * irrep.dim
        return result

    def multiplicity(self, irrep: Irrep) -> int:
        """Total multiplicity of one irrep (0 when it is absent)."""
        return sum(mul for mul, other in self if other == irrep)

    def merged(self) -> Irreps:
        """Sorted by (l, p), equal irreps united.

        >>> Irreps("4x1o + 2x0e + 3x0o + 5x0e").merged()
        3x0o + 7x0e + 4x1o
        """
        return Irreps((self.multiplicity(irrep), irrep) for irrep in sorted(set(self.irreps)))

    def __iter__(self) -> Iterator[tuple[int, Irrep]]:
        return super().__iter__()

    def __repr__(self) -> str:
        return " + ".join(f"{mul}x{irrep}" for mul, irrep in self)

    __str__ = __repr__
