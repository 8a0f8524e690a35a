"""What a potential has seen: how far the features of an atom are from those of the atoms that it was trained on.

The features are the invariant numbers that the last readout sees, as in J. P. Janet et al., Chem. Sci. 10, 7913
(2019), doi:10.1039/C9SC02298H, and A. Zhu et al., J. Chem. Phys. 158, 164111 (2023), doi:10.1063/5.0136574. They are
measured in units of their spread in the reference (Mahalanobis's metric), and an atom's distance is that to the nearest
of some hundred reference atoms of its species: none of the other ways that benchmarks/uncertainty.py tries follows the
true errors better over all its frames, but for hundredths. It costs one forward pass and needs no second model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph

if TYPE_CHECKING:
    from equipes.models.potential import Potential

# A distance of 1 is that of this share of the atoms it is calibrated with.
QUANTILE = 0.99
# A species of its own has its own limit; fewer atoms than this say nothing of a 99th percentile.
ATOMS_FOR_OWN_LIMIT = 200
# Reference atoms of each species that are kept; ten times as many follow the errors no better.
POINTS = 400
# Variances smaller than this fraction of the largest are round-off of a float32 network.
_SMALLEST_VARIANCE = 1e-9
# In units of the spread. Held-out structures that are copies of the reference's would make all others infinitely far.
_SMALLEST_LIMIT = 0.01


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The reference that distances are measured from; S species, C features, P reference atoms.

    Attributes:
        means: `[S, C]` float64, of the features of each species.
        whitening: `[S, C, C]` float64; `(features - mean) @ whitening` has unit covariance in the reference.
        points: `[P, C]` float32, white features of reference atoms.
        species: `[P]` int64, index of the species of each.
        limits: `[S]` float64, what a distance is divided by; 0 of species never seen, whose distances are infinite.
        facts: how it was made, as plain JSON values.
    """

    means: Tensor
    whitening: Tensor
    points: Tensor
    species: Tensor
    limits: Tensor
    facts: Mapping[str, Any]

    def distances(self, features: Tensor, types: Tensor) -> Tensor:
        """How far atoms are from what was seen, `[N]` float64; 1 is the calibrated limit.

        Args:
            features: `[N, C]`, by `Potential.features`.
            types: `[N]`, index of each atom's species.
        """
        features = features.detach().to("cpu", torch.float64)
        types = types.to("cpu")
        found = torch.full((len(types),), torch.inf, dtype=torch.float64)
        for species in torch.unique(types).tolist():
            if self.limits[species] > 0:
                mine = types == species
                white = (features[mine] - self.means[species]) @ self.whitening[species]
                points = self.points[self.species == species].double()
                found[mine] = torch.cdist(white, points).amin(dim=1) / self.limits[species]
        return found

    def of_species(self, kept: Tensor) -> Familiarity:
        """The same for some of the species, `[K]` indices."""
        places = torch.full((len(self.limits),), -1)
        places[kept] = torch.arange(len(kept))
        stays = places[self.species] >= 0
        return replace(
            self,
            means=self.means[kept],
            whitening=self.whitening[kept],
            points=self.points[stays],
            species=places[self.species[stays]],
            limits=self.limits[kept],
        )

    def arrays(self) -> dict[str, Tensor]:
        """What a file keeps: means and whitening of the species that were seen only."""
        seen = self.limits > 0
        return {name: getattr(self, name) for name in _ARRAYS} | {
            "means": self.means[seen],
            "whitening": self.whitening[seen],
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Tensor], facts: Mapping[str, Any], n_species: int
    ) -> Familiarity:
        """Raises `InputError` where the arrays do not belong together."""
        if set(arrays) != set(_ARRAYS):
            raise InputError(
                f"its familiarity needs {', '.join(_ARRAYS)}; the file is damaged, fetch it again"
            )
        channels, n_points = (*arrays["means"].shape, 0, 0)[1], arrays["species"].numel()
        seen = arrays["limits"] > 0
        n_seen = int(seen.sum())
        shapes = {
            "means": (n_seen, channels),
            "whitening": (n_seen, channels, channels),
            "points": (n_points, channels),
            "species": (n_points,),
            "limits": (n_species,),
        }
        fits = all(
            arrays[name].shape == shapes[name] and arrays[name].dtype == _ARRAYS[name] for name in _ARRAYS
        )
        # Every species that was seen has a point, and no other.
        if not fits or set(arrays["species"].tolist()) != set(seen.nonzero().flatten().tolist()):
            raise InputError("its familiarity makes no sense; the file is damaged, fetch it again")
        whole = {
            name: arrays[name].new_zeros(n_species, *shapes[name][1:]) for name in ("means", "whitening")
        }
        for name, array in whole.items():
            array[seen] = arrays[name]
        return cls(**(dict(arrays) | whole), facts=dict(facts))


_ARRAYS = {
    "means": torch.float64,
    "whitening": torch.float64,
    "points": torch.float32,
    "species": torch.int64,
    "limits": torch.float64,
}


def fit(
    potential: Potential,
    graphs: Iterable[AtomGraph],
    held_out: Iterable[AtomGraph] = (),
    *,
    facts: Mapping[str, Any] | None = None,
) -> Familiarity:
    """Describe what a potential makes of reference structures.

    The covariance of a species is Σ = (n S + C P) / (n + C): its own S over n atoms, shrunk towards that of all species
    together, P, by as many atoms as there are features. P is shrunk towards a multiple of the unit matrix by the
    intensity of Ledoit and Wolf (J. Multivar. Anal. 88, 365 (2004)).

    The limit of a species, that a distance of 1 stands for, is the 99th percentile over its atoms in `held_out`; over
    all atoms there where it has fewer than 200 of them. Without `held_out`, every fifth structure is left out of the
    fit while limits are found, and then taken in again.

    Args:
        potential: whose features.
        graphs: structures that it was trained on, or that it is to be trusted on, one by one or in batches.
        held_out: structures like them that it was not trained on.
        facts: more to remember of them.

    Raises:
        InputError: no graphs, or an element that the potential does not know.
    """
    known = [pair for graph in graphs for pair in _seen(potential, graph)]
    others = [pair for graph in held_out for pair in _seen(potential, graph)]
    if not known:
        raise InputError("familiarity needs at least one structure to be fitted to")
    n_species = len(potential.species)
    source = "held-out structures"
    rest = known
    if not others:
        source = "every fifth of these structures, left out of the fit meanwhile"
        others, rest = known[::5], [pair for k, pair in enumerate(known) if k % 5]
        if not rest:  # a single structure
            source, rest = "the same structures, there being too few to leave any out", known
    limits = _limits(_fitted(*_joined(rest), n_species), *_joined(others))
    features, types = _joined(known)
    fitted = _fitted(features, types, n_species)
    counts = torch.bincount(types, minlength=n_species)
    return replace(
        fitted,
        limits=torch.where(counts > 0, limits, 0.0),
        facts={
            "method": "distance to the nearest of the reference atoms of the species, by the last layer's invariant "
            "features in units of their spread",
            "structures": len(known),
            "atoms": {s: int(n) for s, n in zip(potential.species, counts, strict=True) if n},
            "calibration": f"1 is the 99th percentile over {len(_joined(others)[1])} atoms of {source}",
            **dict(facts or {}),
        },
    )


def _seen(potential: Potential, graph: AtomGraph) -> list[tuple[Tensor, Tensor]]:
    """Features and types of the atoms of each structure."""
    graph = graph.to(potential.device)
    sizes = graph.atoms_per_structure.tolist()
    features = potential.features(graph).to("cpu", torch.float64).split(sizes)
    types = potential.type_of_number[graph.numbers].cpu().split(sizes)
    return list(zip(features, types, strict=True))


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([features for features, _ in pairs]), torch.cat([types for _, types in pairs])


def _fitted(features: Tensor, types: Tensor, n_species: int) -> Familiarity:
    """Everything but the limits, which are 1 for species that occur and 0 for others."""
    channels = features.shape[1]
    counts = torch.bincount(types, minlength=n_species)
    means = features.new_zeros(n_species, channels).index_add_(0, types, features)
    means /= counts.clamp(min=1).unsqueeze(1)
    centred = features - means[types]
    pooled = _shrunk(centred)
    whitening = features.new_zeros(n_species, channels, channels)
    points, owners = [], []
    generator = torch.Generator().manual_seed(0)
    for species in counts.nonzero().squeeze(1).tolist():
        own = centred[types == species]
        covariance = (own.T @ own + channels * pooled) / (len(own) + channels)
        variances, directions = torch.linalg.eigh(covariance)
        least = _SMALLEST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
        whitening[species] = directions * variances.clamp(min=float(least)).rsqrt()
        # Chosen at random: choosing the farthest from each other spends them on rare atoms.
        chosen = torch.randperm(len(own), generator=generator)[:POINTS]
        points.append((own[chosen] @ whitening[species]).float())
        owners.append(torch.full((len(chosen),), species))
    return Familiarity(means, whitening, torch.cat(points), torch.cat(owners), (counts > 0).double(), {})


def _shrunk(centred: Tensor) -> Tensor:
    """The covariance `[C, C]` of centred samples `[n, C]`, shrunk as Ledoit and Wolf do."""
    n, channels = centred.shape
    sample = centred.T @ centred / n
    target = sample.diagonal().mean() * torch.eye(channels, dtype=sample.dtype)
    distance = ((sample - target) ** 2).sum()
    spread = (centred.square().sum(dim=1).square().sum() / n - sample.square().sum()) / n
    intensity = float((spread / distance).clamp(0, 1)) if distance > 0 else 1.0
    return (1 - intensity) * sample + intensity * target


def _limits(reference: Familiarity, features: Tensor, types: Tensor) -> Tensor:
    """`[S]`: the 99th percentile of distances in the reference, over each species' atoms or, for few, over all."""
    distances = reference.distances(features, types)
    finite = torch.isfinite(distances)
    # Where none of the held-out atoms is of a species that was seen: the length of a vector of C unit variances.
    common = _percentile(distances[finite]) if finite.any() else reference.means.shape[1] ** 0.5
    limits = torch.full_like(reference.limits, common)
    for species in torch.unique(types).tolist():
        own = distances[finite & (types == species)]
        if len(own) >= ATOMS_FOR_OWN_LIMIT:
            limits[species] = _percentile(own)
    return limits


def _percentile(values: Tensor) -> float:
    # torch.quantile refuses more than 16 million values; sorting does not.
    rank = max(0, int(-(-QUANTILE * len(values) // 1)) - 1)
    return max(float(values.sort().values[rank]), _SMALLEST_LIMIT)
