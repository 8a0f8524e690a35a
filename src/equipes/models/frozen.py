"""A potential made for speed: linear layers folded, radial functions as splines, everything in native code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.kernels.native.frozen import FrozenEngine, Neighbours
from equipes.models import ani_blueprint, mace_blueprint, physnet_blueprint, schnet_blueprint
from equipes.models.ani import ANI
from equipes.models.blueprint import EVEN, Blueprint, Layer, blueprint, can_describe
from equipes.models.description import Description, SpeciesTable
from equipes.models.mace import MACE
from equipes.models.physnet import PhysNet
from equipes.models.potential import UNITS, Potential, Prediction
from equipes.models.schnet import SchNet
from equipes.models.splines import choose_knots, polynomials

if TYPE_CHECKING:
    import os

    from equipes.models.device_frozen import DevicePotential

# Errors of the splines relative to the largest values, by number type: below its round-off in energies and forces.
TOLERANCES = {torch.float32: 3e-8, torch.float64: 1e-9}

# Models whose features are scalars, and what describes them.
_INVARIANT: dict[type, Callable[..., tuple[dict[str, Any], dict[str, np.ndarray]]]] = {
    SchNet: schnet_blueprint.describe,
    PhysNet: physnet_blueprint.describe,
    ANI: ani_blueprint.describe,
}


class FrozenPotential:
    """A potential for some species whose energies, forces and virial are computed natively and without autograd.

    Its radial functions are splines, so it is not exactly the potential it was made from; how far they are apart on
    test structures is measured when it is made. Forces are the exact derivatives of its own energy.

    Made by `Potential.freeze` and by `equipes.load` from a file that `save` wrote.

    Attributes:
        architecture: of the model that it was made from.
        species: chemical symbols that it knows.
        cutoff: Å.
        dtype: number type of the network; geometry and energies are float64.
        deviation: from the exact model in float64, at most, on the test structures: `energy` (eV per atom), `forces`
            (eV/Å), `stress` (eV/Å³), with the largest force and stress there as `largest_force`, `largest_stress`.
        provenance: that of the model.
        structure: what the layers are, as plain JSON values.
        arrays: matrices, and radial functions at the knots, float64.
    """

    def __init__(
        self,
        architecture: str,
        species: Sequence[str],
        cutoff: float,
        dtype: torch.dtype,
        structure: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        deviation: Mapping[str, float],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.architecture = architecture
        self.species = tuple(species)
        self.cutoff = float(cutoff)
        self.dtype = dtype
        self.structure = dict(structure)
        self.arrays = dict(arrays)
        self.deviation = dict(deviation)
        self.provenance = dict(provenance or {})
        if len(self.species) != len(arrays["scales"]):
            raise ValueError("the number of species is not that of their energies")
        self._engine = FrozenEngine(structure, arrays, dtype)
        self._table = SpeciesTable(self.species)

    @property
    def description(self) -> Description:
        """What it was made from."""
        return Description(
            self.architecture,
            self.species,
            self.cutoff,
            self.dtype,
            self.structure,
            self.arrays,
            self.deviation,
            self.provenance,
        )

    def on(self, device: torch.device | str) -> DevicePotential:
        """The same on a GPU: its tensors there, computed with kernels for it.

        Raises:
            InputError: an architecture that runs frozen on the CPU only.
        """
        from equipes.models.device_frozen import DevicePotential

        return DevicePotential(self.description, device)

    def with_dtype(self, dtype: torch.dtype) -> FrozenPotential:
        """The same with a network of another number type."""
        if dtype == self.dtype:
            return self
        return FrozenPotential(
            self.architecture,
            self.species,
            self.cutoff,
            dtype,
            self.structure,
            self.arrays,
            self.deviation,
            self.provenance,
        )

    @property
    def n_intervals(self) -> int:
        """Between the knots of its splines; 0 where there are none."""
        return max(len(self.arrays["knots"]) - 1, 0)

    @property
    def table_bytes(self) -> int:
        """Memory of its matrices and splines."""
        return self._engine.table_bytes

    def __call__(self, graph: AtomGraph, *, forces: bool = True, stress: bool = True) -> Prediction:
        """Energy, forces and stress as of a `Potential`; see `Potential.forward`.

        Raises:
            InputError: an element that the potential does not know, or edges collected with a smaller cutoff.
        """
        if graph.cutoff < self.cutoff:
            raise InputError(
                f"the graph has edges up to {graph.cutoff:g} Å, the potential reaches {self.cutoff:g} Å; "
                f"build it with AtomGraph.from_atoms(atoms, {self.cutoff:g})"
            )
        graph = graph.to("cpu")
        atoms = Neighbours(
            types=self.types(graph.numbers.numpy()),
            positions=graph.positions.detach().numpy(),
            cell=graph.cell.detach().numpy(),
            row_pointer=graph.row_pointer.numpy(),
            sender=graph.sender.numpy(),
            shift=graph.shift.numpy() if graph._crosses_boundaries else None,
            structure=graph.structure.numpy() if graph.n_structures > 1 else None,
        )
        energies, all_forces, virial = self.evaluate(atoms, differentiate=forces or stress)
        energy = np.bincount(graph.structure.numpy(), energies, graph.n_structures)
        if all_forces is None or virial is None:
            return Prediction(torch.from_numpy(energy), torch.from_numpy(energies))
        return Prediction(
            energy=torch.from_numpy(energy),
            energies=torch.from_numpy(energies),
            forces=torch.from_numpy(all_forces) if forces else None,
            stress=stress_of(graph.cell, torch.from_numpy(virial)) if stress else None,
            virial=torch.from_numpy(virial) if stress else None,
        )

    def evaluate(
        self, atoms: Neighbours, *, differentiate: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Energies `[N]`, forces `[N, 3]` and virials `[S, 3, 3]` straight from arrays; see `FrozenEngine`."""
        return self._engine(atoms, differentiate=differentiate)

    def types(self, numbers: np.ndarray) -> np.ndarray:
        """Index of the species of each atom, `[N]`.

        Raises:
            InputError: an element that the potential does not know.
        """
        return self._table.types(numbers)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write it to one `*.safetensors` file, which `equipes.load` reads.

        Raises:
            InputError: the file exists and `overwrite` is not set, or cannot be written.
        """
        from equipes.models.files import save_frozen

        save_frozen(self, path, overwrite=overwrite)

    def summary(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        return {
            "architecture": self.architecture,
            "frozen": True,
            "species": list(self.species),
            "cutoff": self.cutoff,
            "dtype": str(self.dtype).removeprefix("torch."),
            "deviation": self.deviation,
            "spline_intervals": self.n_intervals,
            "table_bytes": self.table_bytes,
            "units": UNITS,
            "provenance": self.provenance,
        }


def supports(potential: Potential) -> bool:
    """Whether a potential can be frozen here: a known architecture of a degree that the native code was built for."""
    extension, model = native.module(), potential.model
    if extension is None:
        return False
    if type(model) in _INVARIANT:
        return True
    if type(model) is MACE:
        return model.max_ell <= extension.max_l and mace_blueprint.can_describe(model)
    return can_describe(model) and model.l_max <= extension.max_l


def freeze(
    potential: Potential, species: Sequence[str] | None = None, *, tolerance: float | None = None
) -> FrozenPotential:
    """Make a frozen potential; see `Potential.freeze`."""
    from equipes.models.deviation import measure

    if native.module() is None:
        raise InputError(
            "a frozen potential runs on native code, which was not built here; install a C++ compiler and equipes "
            "anew, or use the exact model (exact=True or --exact)"
        )
    if not supports(potential):
        raise InputError(
            f"a {potential.architecture} model like this cannot be frozen; use the exact model (exact=True or --exact)"
        )
    description, exact = describe_potential(potential, species, tolerance)
    frozen = FrozenPotential(
        description.architecture,
        description.species,
        description.cutoff,
        description.dtype,
        description.structure,
        description.arrays,
        {},
        description.provenance,
    )
    frozen.deviation = measure(frozen, exact)
    return frozen


def describe_potential(
    potential: Potential, species: Sequence[str] | None, tolerance: float | None
) -> tuple[Description, Potential]:
    """The description of a potential for some species, and the exact model in float64 on the CPU to measure it by.

    Raises:
        InputError: an element that the potential does not know.
    """
    from equipes.models.files import convert

    wanted = (
        list(potential.species) if species is None else [s for s in potential.species if s in set(species)]
    )
    unknown = [symbol for symbol in species or () if symbol not in potential.species]
    if unknown or not wanted:
        raise InputError(
            f"cannot freeze for {', '.join(unknown) or 'no species'}; "
            f"the potential knows {', '.join(potential.species)}"
        )
    exact = convert(potential, "float64").to("cpu").eval().requires_grad_(False)
    types = [potential.species.index(symbol) for symbol in wanted]
    tolerance = TOLERANCES[potential.dtype] if tolerance is None else tolerance
    if type(exact.model) in _INVARIANT:
        structure, arrays = _INVARIANT[type(exact.model)](exact.model, types, tolerance)
    elif isinstance(exact.model, MACE):
        structure, arrays = mace_blueprint.describe(exact.model, types, tolerance)
    else:
        structure, arrays = describe(blueprint(exact.model, types), tolerance)
    return Description(
        potential.architecture,
        tuple(wanted),
        potential.cutoff,
        potential.dtype,
        structure,
        arrays,
        {},
        dict(potential.provenance),
    ), exact


def describe(plan: Blueprint, tolerance: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The structure and the arrays of a frozen potential.

    The first layer's features depend on the species alone, so its linear layers are folded into the splines: one
    function for each species of the sender and channel of z.
    """
    knots = choose_knots([layer.radial for layer in plan.layers], plan.kinks, tolerance)
    arrays: dict[str, Tensor] = {
        "knots": knots,
        "cutoffs": plan.cutoffs,
        "scales": plan.scales,
        "shifts": plan.shifts,
    }
    power = 0
    if plan.repulsion is not None:
        power, arrays["repulsion_charges"], arrays["repulsion_inverse_lengths"] = plan.repulsion
    layers = []
    for k, layer in enumerate(plan.layers):
        splines = polynomials(layer.radial, knots[:-1], knots[1:])  # [intervals, coefficients, weights]
        gate_in = layer.gate_in
        constants = layer.constants
        reached: list[int] = []
        if k == 0:
            splines, reached = _first_layer(plan, layer, splines)
            for irrep, matrix in layer.self_connection.items():
                if irrep == EVEN:
                    constants = constants + torch.einsum(
                        "su,suw->sw", plan.features, matrix.expand(len(plan.features), -1, -1)
                    )
        else:
            blocks = layer.irreps_in.irreps
            for irrep, matrix in layer.linear_1.items():
                arrays[f"layers.{k}.linear_1.{blocks.index(irrep)}.{blocks.index(irrep)}"] = matrix
            for irrep, matrix in layer.linear_2.items():
                arrays[f"layers.{k}.linear_2.0.{gate_in.irreps.index(irrep)}"] = matrix
            for irrep, matrix in layer.self_connection.items():
                arrays[f"layers.{k}.self_connection.{blocks.index(irrep)}.{gate_in.irreps.index(irrep)}"] = (
                    matrix
                )
            if layer.hidden_constants is not None:
                arrays[f"layers.{k}.hidden_constants"] = layer.hidden_constants
        arrays[f"layers.{k}.splines"] = splines
        arrays[f"layers.{k}.constants"] = constants
        layers.append(
            {
                "irreps_in": str(layer.irreps_in),
                "gate_in": str(gate_in),
                "scalars": str(layer.scalars),
                "gated": str(layer.gated),
                "paths": [[path.block, path.l2, path.out.l, path.out.p] for path in layer.paths],
                "reached": reached,
            }
        )
    for k, matrix in enumerate(plan.readout):
        arrays[f"readout.{k}.{k + 1}"] = matrix.unsqueeze(0)
    structure = {"l_max": plan.l_max, "repulsion_power": power, "layers": layers}
    return structure, {name: tensor.detach().double().contiguous().numpy() for name, tensor in arrays.items()}


def _first_layer(plan: Blueprint, layer: Layer, splines: Tensor) -> tuple[Tensor, list[int]]:
    """Splines `[n_species, intervals, coefficients, channels of z that messages reach]`, and the block of z for each
    degree (-1: none)."""
    h = torch.einsum("su,suw->sw", plan.features, layer.linear_1[EVEN].expand(len(plan.features), -1, -1))
    if layer.hidden_constants is not None:
        h = h + layer.hidden_constants
    channels = h.shape[1]
    reached = [-1] * (plan.l_max + 1)
    parts: dict[int, Tensor] = {}
    for index, path in enumerate(layer.paths):
        reached[path.l2] = layer.gate_in.irreps.index(path.out)
        folded = h.unsqueeze(2) * layer.linear_2[path.out][0]  # [n_species, u, w]
        parts[path.l2] = torch.einsum(
            "kcu,suw->skcw", splines[:, :, index * channels : (index + 1) * channels], folded
        )
    return torch.cat([parts[l] for l in sorted(parts)], dim=3), reached


def stress_of(cell: Tensor, virial: Tensor) -> Tensor:
    """`[S, 3, 3]` eV/Å³ of the virials; NaN where the cell has no volume."""
    volumes = torch.linalg.det(cell).abs().view(-1, 1, 1)
    return torch.where(volumes > 0, -virial / torch.where(volumes > 0, volumes, 1.0), float("nan"))
