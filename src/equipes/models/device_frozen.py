"""A frozen NequIP-type or MACE potential on a GPU: the layers and splines of the native form, in few calls.

Energies and their derivatives come from a forward and a reverse sweep written by hand, without autograd. What is kept
for the reverse sweep are two rows of features for each atom and layer; for an edge nothing is kept but its geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels.splines import Places, spline_message_passing, spline_reverse
from equipes.models.blueprint import can_describe
from equipes.models.description import Description, SpeciesTable
from equipes.models.device_geometry import (
    DeviceAtoms,
    Repulsion,
    edge_geometry,
    edge_gradients,
    forces_and_virials,
    harmonics_of,
    harmonics_reverse,
)
from equipes.models.device_layers import DeviceLayer, Groups, make_layers
from equipes.models.device_product import ProductLayer, make_product_layers
from equipes.models.frozen import describe_potential, stress_of
from equipes.models.mace import MACE
from equipes.models.potential import Potential, Prediction, differentiable
from equipes.nn.zbl import SCREENING


@dataclass(frozen=True, eq=False)
class DeviceResult:
    """What one evaluation gives, float64, on the device: energies of the atoms `[N]` eV, forces `[N, 3]` eV/Å, virials
    `[S, 3, 3]` eV; None for what was not asked for."""

    energies: Tensor
    forces: Tensor | None = None
    virial: Tensor | None = None


class DevicePotential:
    """A frozen potential that runs where its tensors are, with kernels for GPUs and in plain torch elsewhere.

    It computes what `FrozenPotential` computes natively on the CPU, from the same description, to round-off.

    Attributes:
        architecture, species, cutoff, dtype, deviation, provenance: see `FrozenPotential`.
        device: where it computes.
    """

    def __init__(self, description: Description, device: torch.device | str) -> None:
        if "kind" in description.structure:
            raise InputError(
                f"a frozen {description.architecture} potential runs on the CPU; use the exact model elsewhere "
                "(exact=True or --exact)"
            )
        arrays, structure = description.arrays, description.structure
        self.architecture = description.architecture
        self.species = description.species
        self.cutoff = description.cutoff
        self.dtype = description.dtype
        self.deviation: dict[str, float] = dict(description.deviation)
        self.provenance = description.provenance
        # With its number: 'cuda' is another device than 'cuda:0' to who compares them.
        self.device = torch.empty(0, device=device).device
        self._l_max = int(structure["l_max"])
        self._by_pair = bool(structure.get("by_pair", False))
        make = make_product_layers if "out" in structure["layers"][0] else make_layers
        self._layers: tuple[DeviceLayer | ProductLayer, ...] = make(
            structure, arrays, self.dtype, self.device
        )

        def exactly(name: str) -> Tensor:
            return torch.tensor(arrays[name], dtype=torch.float64).to(self.device)

        cutoffs = arrays["cutoffs"]
        same = bool((cutoffs == cutoffs.flat[0]).all())
        self._cutoffs = torch.tensor(float(cutoffs.flat[0]), dtype=torch.float64).to(self.device)
        if not same:
            self._cutoffs = exactly("cutoffs")
        self._scales, self._shifts = exactly("scales"), exactly("shifts")
        knots = exactly("knots")
        self._inverse_widths = 1 / knots.diff()
        n_readout = sum(name.startswith("readout.") for name in arrays)
        self._readout = [
            torch.tensor(arrays[f"readout.{k}.{k + 1}"][0], dtype=self.dtype).to(self.device)
            for k in range(n_readout)
        ]
        self._repulsion = None
        if structure["repulsion_power"]:
            self._repulsion = Repulsion(
                structure["repulsion_power"],
                exactly("repulsion_charges"),
                exactly("repulsion_inverse_lengths"),
                exactly("repulsion_cutoffs") if "repulsion_cutoffs" in arrays else None,
                tuple((float(c), float(k)) for c, k in arrays.get("repulsion_screening", SCREENING)),
            )
        # Linear layers of several species have a matrix for each, or one for all.
        self._by_species = any(layer.by_species for layer in self._layers)
        self._table = SpeciesTable(self.species)
        self._seen: tuple[Tensor, int] | None = None
        self._kinds: tuple[Tensor, Groups]

    def types(self, numbers: np.ndarray) -> np.ndarray:
        """Index of the species of each atom, `[N]`.

        Raises:
            InputError: an element that the potential does not know.
        """
        return self._table.types(numbers)

    def groups(self, types: np.ndarray) -> Groups:
        """The atoms of each species, on the device, where the matrices of species differ."""
        if not self._by_species:
            return None
        return tuple(
            torch.tensor(np.flatnonzero(types == index), device=self.device)
            for index in range(len(self.species))
        )

    def __call__(self, graph: AtomGraph, *, forces: bool = True, stress: bool = True) -> Prediction:
        """Energy, forces and stress as of a `Potential`, on the device; see `Potential.forward`.

        Raises:
            InputError: an element that the potential does not know, or edges collected with a smaller cutoff.
        """
        if graph.cutoff < self.cutoff:
            raise InputError(
                f"the graph has edges up to {graph.cutoff:g} Å, the potential reaches {self.cutoff:g} Å; "
                f"build it with AtomGraph.from_atoms(atoms, {self.cutoff:g})"
            )
        types, groups = self._kinds_of(graph.numbers)
        if graph.positions.device != self.device:
            graph = graph.to(self.device)
        with torch.inference_mode(False):
            graph = differentiable(graph)
        atoms = DeviceAtoms.of(graph, types, groups)
        result = self.evaluate(atoms, forces=forces, virial=stress)
        return Prediction(
            energy=atoms.sums_of_structures(result.energies),
            energies=result.energies,
            forces=result.forces,
            stress=None if result.virial is None else stress_of(graph.cell, result.virial),
            virial=result.virial,
        )

    def _kinds_of(self, numbers: Tensor) -> tuple[Tensor, Groups]:
        """Types and groups on the device. Of the same tensor as in the last call they are known, and nobody waits."""
        # Tensors of inference mode do not tell whether they were written to.
        version = None if numbers.is_inference() else numbers._version
        known = self._seen
        if known is None or version is None or known[0] is not numbers or known[1] != version:
            types = self.types(numbers.cpu().numpy())
            self._kinds = torch.tensor(types, device=self.device), self.groups(types)
            self._seen = None if version is None else (numbers, version)
        return self._kinds

    def workspace_bytes(self, n_atoms: int, n_edges: int) -> int:
        """What an evaluation with derivatives takes at most beside its input, by the sizes of its tensors.

        Kept are h and z (A in MACE) of every layer; with them are in use, in the layer that needs most, messages (in
        the reverse sweep their cotangents) and those of z and h. Edges have their geometry in float64, harmonics and
        their cotangents, and in the end the gradients that are summed for forces and virials.
        """
        size = torch.empty((), dtype=self.dtype).element_size()
        kept = sum(layer.z_width + layer.hidden_width for layer in self._layers)
        busiest = max(layer.busy_width for layer in self._layers)
        # Vectors, directions, lengths, reduced lengths and whether they count; harmonics, their cotangents twice.
        geometry = 8 * (3 + 3 + 1 + 1) + 1 + size * (3 * (self._l_max + 1) ** 2 + 3) + 8
        # Gradients, outer products, both side by side, and some in the making.
        gradients = 8 * (3 + 9 + 12 + 6)
        return n_atoms * size * (kept + busiest) + n_edges * (geometry + gradients) + n_atoms * 8 * 24

    # Kernels in plain torch find their derivatives by autograd, also where the caller is in inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def evaluate(self, atoms: DeviceAtoms, *, forces: bool = True, virial: bool = True) -> DeviceResult:
        """Energies, forces and virials; nothing here waits for the device, and sizes alone decide what is called."""
        geometry = edge_geometry(atoms, self._cutoffs)
        harmonics = harmonics_of(self._l_max, geometry.directions.to(self.dtype))
        places = self._layers[0].splines.places(geometry.reduced, self._kinds_of_edges(atoms))
        later = places if self._by_pair else Places(places.interval, places.t, None)
        # Forward, keeping h and z of each layer.
        hidden: list[Tensor | None] = []
        mixed: list[Tensor] = []
        densities: list[Tensor | None] = []
        network = geometry.lengths.new_zeros(atoms.n_atoms)
        x: Tensor | None = None
        for k, layer in enumerate(self._layers):
            h = None if x is None else layer.hidden(x, atoms.groups)
            messages = spline_message_passing(
                layer.form, h, harmonics, layer.splines, places if k == 0 else later, atoms
            )
            densities.append(None if layer.densities is None else layer.densities(atoms, later))
            z = layer.mixed(x, messages, atoms, densities[k])
            hidden.append(h)
            mixed.append(z)
            x = layer.forward(x, z, atoms)
            layer.add_readout(x, network)
        assert x is not None
        differentiate = forces or virial
        scales = self._scales.index_select(0, atoms.types)
        last, cotangents = self._read_out(x, scales.to(self.dtype), differentiate=differentiate)
        network += last
        energies = network * scales
        energies = energies + self._shifts.index_select(0, atoms.types)
        slopes = None
        if self._repulsion is not None:
            repulsion, slopes = self._repulsion(atoms, geometry)
            energies = energies + repulsion
        # A position that is no number has no edges; it must not pass for an atom alone.
        doubt = atoms.positions * 0.0
        energies = atoms.only_real(energies + doubt.sum(1))
        if cotangents is None:
            return DeviceResult(energies)
        # Reverse.
        by_harmonics = torch.zeros_like(harmonics)
        by_place = harmonics.new_zeros(atoms.n_edges)
        by_density: Tensor | None = None
        for k in reversed(range(len(self._layers))):
            layer, z, h, density = self._layers[k], mixed[k], hidden[k], densities[k]
            z_cotangents = layer.reverse(z, cotangents, atoms)
            if layer.densities is not None and density is not None:
                through = layer.densities.reverse(z, z_cotangents, density, atoms, later)
                by_density = through if by_density is None else by_density + through
            del z
            hidden[k] = mixed[k] = None  # type: ignore[call-overload]  # their memory serves the layers before
            by_h, by_y, by_t = spline_reverse(
                layer.form,
                h,
                harmonics,
                layer.splines,
                places if k == 0 else later,
                atoms,
                layer.messages_reverse(z_cotangents, atoms.groups, density),
            )
            by_harmonics += by_y
            by_place += by_t
            if by_h is not None:
                cotangents = layer.x_reverse(z_cotangents, cotangents, by_h, atoms.groups)
                self._layers[k - 1].add_readout_reverse(cotangents, scales.to(self.dtype))
        along = by_place.double() if by_density is None else by_place.double() + by_density
        along = along * self._inverse_widths.index_select(0, places.interval.clamp(min=0))
        along = along / geometry.cutoffs
        if slopes is not None:
            along = along + slopes
        by_direction = harmonics_reverse(self._l_max, harmonics, by_harmonics).double()
        gradient = edge_gradients(geometry, along, by_direction)
        found, virials = forces_and_virials(atoms, geometry, gradient, virial=virial)
        return DeviceResult(energies, atoms.only_real(found + doubt) if forces else None, virials)

    def _kinds_of_edges(self, atoms: DeviceAtoms) -> Tensor:
        """Which table of splines an edge uses: that of the sender's species, or of the pair of both; `[E]` int32."""
        kinds = atoms.types.index_select(0, atoms.sender)
        if self._by_pair:
            kinds = kinds + atoms.types.index_select(0, atoms.receiver) * len(self.species)
        return kinds.to(torch.int32)

    def _read_out(self, x: Tensor, scales: Tensor, *, differentiate: bool) -> tuple[Tensor, Tensor | None]:
        """What the last layer says of the atoms, `[N]` float64, and the cotangents of x."""
        inputs = [x]
        for matrix in self._readout[:-1]:
            inputs.append(inputs[-1] @ matrix)
            x = torch.nn.functional.silu(inputs[-1])
            inputs.append(x)
        values = (x @ self._readout[-1]).squeeze(1).double()
        if not differentiate:
            return values, None
        cotangents = scales.unsqueeze(1) * self._readout[-1].T
        for k in reversed(range(len(self._readout) - 1)):
            z = inputs[2 * k + 1]
            sigmoid = torch.sigmoid(z)
            cotangents = cotangents * (sigmoid * (1 + z * (1 - sigmoid)))
            cotangents = cotangents @ self._readout[k].T
        return values, cotangents


def supports_device(potential: Potential) -> bool:
    """Whether a potential can be frozen for a device: NequIP, SevenNet and MACE."""
    return isinstance(potential.model, MACE) or can_describe(potential.model)


def freeze_on_device(
    potential: Potential,
    device: torch.device | str,
    species: Sequence[str] | None = None,
    *,
    tolerance: float | None = None,
) -> DevicePotential:
    """Like `Potential.freeze`, for a device; it needs no native code.

    Raises:
        InputError: an element that the potential does not know, or an architecture that runs on devices only as it is.
    """
    from equipes.models.deviation import measure

    if not supports_device(potential):
        raise InputError(
            f"a {potential.architecture} potential cannot be frozen for {torch.device(device).type}; "
            "use the exact model (exact=True or --exact)"
        )
    description, exact = describe_potential(potential, species, tolerance)
    frozen = DevicePotential(description, device)
    frozen.deviation = measure(frozen, exact)
    return frozen
