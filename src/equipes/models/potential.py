"""A potential energy surface: graphs of atoms in; energy, forces and stress out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from equipes import kernels
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels.native.engine import Engine, engine_for

if TYPE_CHECKING:
    import os

    from equipes.models.familiarity import Familiarity
    from equipes.models.frozen import FrozenPotential

UNITS = {"energy": "eV", "length": "Ang", "forces": "eV/Ang", "stress": "eV/Ang^3"}


@dataclass(frozen=True)
class Prediction:
    """What a potential says of N atoms in S structures; all float64.

    Attributes:
        energy: `[S]` eV.
        energies: `[N]` eV, the atoms' shares of it.
        forces: `[N, 3]` eV/Å, or None.
        stress: `[S, 3, 3]` eV/Å³, tensile positive, or None; NaN for a structure whose cell has no volume.
        virial: `[S, 3, 3]` eV, -dE/dstrain, or None.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    virial: Tensor | None = None


class Architecture(nn.Module):
    """What a model must be to become a potential.

    A subclass takes the species as its first argument and hyperparameters by keyword after that, and its `forward` maps
    `(types [N], vectors [E, 3] float64, graph)` to the energies of the atoms, `[N]` float64, eV.

    Attributes:
        r_max: the distance beyond which atoms do not see each other, Å.
        EXACT: names of parameters that stay float64 whatever the number type of the network.
        PER_SPECIES: names of parameters that are tables of the species (`*` for any part of a name), and the dimension
            that the species run along; without any, the model cannot be cut to some of its species.
        GROUPS_SPECIES: whether `forward` asks the graph for the atoms of each species.
        FIXED_SHAPES: whether the sizes of all tensors in `forward` follow from those of the graph, so that a GPU can
            record it.
    """

    EXACT: ClassVar[tuple[str, ...]] = ()
    PER_SPECIES: ClassVar[Mapping[str, int]] = {}
    GROUPS_SPECIES: ClassVar[bool] = False
    FIXED_SHAPES: ClassVar[bool] = True
    r_max: float

    def fixed_hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters whose defaults depend on how many species there are, with their values in this model."""
        return {}

    def last_readout(self) -> nn.Module | None:
        """The module whose first input are the atoms' last invariant features, `[N, C]`; None if there is no such."""
        return None


class Potential(nn.Module):
    """A trained or trainable interatomic potential.

    Made by `equipes.load`, `equipes.build`, training or a conversion. In `train()` mode forces and stress can be
    differentiated by the parameters; in `eval()` mode they are plain numbers.

    Attributes:
        architecture: name in `equipes.models.ARCHITECTURES`.
        hyperparameters: what the architecture was built with.
        species: chemical symbols that it knows, in the order of its tables.
        cutoff: Å.
        provenance: how it came to be (data, configuration, versions), kept in the file.
        model: the architecture, from types, edge vectors and graph to energies of atoms.
        familiarity: what it was trained on, to measure distances from; None if nobody fitted it.
    """

    def __init__(
        self,
        architecture: str,
        hyperparameters: Mapping[str, Any],
        species: Sequence[str],
        model: Architecture,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.hyperparameters = dict(hyperparameters)
        self.species = tuple(species)
        self.cutoff = float(model.r_max)
        self.provenance = dict(provenance or {})
        self.model = model
        self.familiarity: Familiarity | None = None
        table = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        for index, symbol in enumerate(self.species):
            table[atomic_numbers[symbol]] = index
        self.register_buffer("type_of_number", table, persistent=False)
        self.type_of_number: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the network; geometry and energies are float64 whatever it is."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.type_of_number.device

    def forward(self, graph: AtomGraph, *, forces: bool = True, stress: bool = True) -> Prediction:
        """Energy and its derivatives.

        Forces are -dE/dx. Under a strain ε (symmetric) positions and cells become x (1 + ε); the virial is -dE/dε and
        the stress (dE/dε) / volume. Both follow from the derivative g_e of the energy by the edge vectors r_e:
        F_i = Σ_{e to i} g_e - Σ_{e from i} g_e and dE/dε = Σ_e (r_e g_eᵀ + g_e r_eᵀ) / 2.

        Args:
            graph: structures, with edges up to at least the potential's cutoff.
            forces: compute forces.
            stress: compute stress and virial.

        Raises:
            InputError: an element that the potential does not know, or edges collected with a smaller cutoff.
        """
        types, graph = self.prepared(graph)
        return self.evaluate(types, graph, forces=forces, stress=stress)

    def evaluate(
        self, types: Tensor, graph: AtomGraph, *, forces: bool = True, stress: bool = True
    ) -> Prediction:
        """`forward` of what `prepared` gives: `types` `[N]` is the index of each atom's species."""
        differentiate = forces or stress
        # Forces are derivatives, also where the caller switched autograd off.
        tracked = differentiate or (self.training and torch.is_grad_enabled())
        with torch.inference_mode(False), torch.set_grad_enabled(tracked):
            vectors = graph.edge_vectors()
            engine = self._engine(vectors)
            if engine is not None:
                with torch.set_grad_enabled(self.training and tracked):
                    energies, gradient = engine(types, vectors, graph, gradient=differentiate)
            else:
                energies, gradient = self._by_autograd(types, vectors, graph, differentiate)
            energy = energies.new_zeros(graph.n_structures).index_add(0, graph.structure, energies)  # [S]
            if gradient is None:
                return Prediction(energy, energies)
            edge_forces, edge_virials = None, None
            if forces:
                at_atoms = gradient.new_zeros(graph.n_atoms, 3)
                edge_forces = at_atoms.index_add(0, graph.receiver, gradient).index_add(
                    0, graph.sender, -gradient
                )
            if stress:
                edge_virials = self._virial(graph, vectors, gradient)
        if not self.training:
            energy, energies = energy.detach(), energies.detach()
            edge_forces = None if edge_forces is None else edge_forces.detach()
            edge_virials = None if edge_virials is None else edge_virials.detach()
        return Prediction(
            energy=energy,
            energies=energies,
            forces=edge_forces,
            stress=None if edge_virials is None else _stress(graph, edge_virials),
            virial=edge_virials,
        )

    def features(self, graph: AtomGraph) -> Tensor:
        """The invariant features of the atoms that the last readout sees, `[N, C]`, in the network's number type.

        One forward pass through the modules, without derivatives.

        Raises:
            InputError: see `forward`; an architecture that has no such features.
        """
        readout = self.model.last_readout()
        if readout is None:
            raise InputError(f"a {self.architecture} potential has no features to compare atoms by")
        caught: list[Tensor] = []
        handle = readout.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            with torch.no_grad():
                self._check_cutoff(graph)
                self.model(self._types(graph), graph.edge_vectors(), graph)
        finally:
            handle.remove()
        return caught[-1].detach()

    def feature_distances(self, graph: AtomGraph) -> Tensor:
        """How far the atoms are from what the potential was trained on, `[N]` float64; see `Familiarity`.

        Raises:
            InputError: see `features`; a potential that was not told what it was trained on.
        """
        if self.familiarity is None:
            raise InputError(
                "the potential does not know what it was trained on; tell it with `equipes familiarize MODEL FRAMES`"
            )
        return self.familiarity.distances(self.features(graph), self._types(graph))

    def _check_cutoff(self, graph: AtomGraph) -> None:
        if graph.cutoff < self.cutoff:
            raise InputError(
                f"the graph has edges up to {graph.cutoff:g} Å, the potential reaches {self.cutoff:g} Å; "
                f"build it with AtomGraph.from_atoms(atoms, {self.cutoff:g})"
            )

    def _engine(self, vectors: Tensor) -> Engine | None:
        """What runs the whole model natively; None where autograd through its modules is wanted or the only way."""
        if kernels.kernel_name() != "native" or vectors.device.type != "cpu" or vectors.requires_grad:
            return None
        return engine_for(self.model)

    def _by_autograd(
        self, types: Tensor, vectors: Tensor, graph: AtomGraph, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Energies of the atoms `[N]` and, if asked for, the derivative of their sum by the edge vectors `[E, 3]`."""
        if differentiate and not vectors.requires_grad:
            vectors.requires_grad_()
        energies = self.model(types, vectors, graph)
        if not differentiate:
            return energies, None
        # Atoms without neighbours have no edges to differentiate by: their derivatives are zero.
        (gradient,) = torch.autograd.grad(
            energies.sum(), vectors, create_graph=self.training, allow_unused=True, materialize_grads=True
        )
        return energies, gradient

    def prepared(self, graph: AtomGraph) -> tuple[Tensor, AtomGraph]:
        """Index of each atom's species `[N]`, and the graph as autograd can work with it.

        Raises:
            InputError: an element that the potential does not know, or edges collected with a smaller cutoff.
        """
        self._check_cutoff(graph)
        with torch.inference_mode(False):
            graph = differentiable(graph)
            return self._types(graph), graph

    def _types(self, graph: AtomGraph) -> Tensor:
        types = self.type_of_number[graph.numbers]
        if bool((types < 0).any()):
            unknown = sorted({chemical_symbols[z] for z in graph.numbers[types < 0].tolist()})
            raise InputError(
                f"the potential does not know {', '.join(unknown)}; it knows {', '.join(self.species)}. "
                "Use a potential trained on all elements of the structure"
            )
        return types

    @staticmethod
    def _virial(graph: AtomGraph, vectors: Tensor, gradient: Tensor) -> Tensor:
        """-dE/dε, `[S, 3, 3]`."""
        outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)  # [E, 3, 3]
        symmetric = (outer + outer.transpose(1, 2)) / 2
        zeros = gradient.new_zeros(graph.n_structures, 3, 3)
        return -zeros.index_add(0, graph.structure[graph.receiver], symmetric)

    def freeze(
        self, species: Sequence[str] | None = None, *, tolerance: float | None = None
    ) -> FrozenPotential:
        """The potential for simulations: linear layers folded, radial functions as splines, all native, no autograd.

        Args:
            species: the elements that will occur; all that the potential knows by default. Fewer need less memory.
            tolerance: error of the splines relative to the largest values; by default below the round-off of the
                network's number type.

        Returns:
            A frozen potential of the same number type, with its measured `deviation` from this one.

        Raises:
            InputError: an element that the potential does not know, an architecture that cannot be frozen, or native
                code that was not built.
        """
        from equipes.models.frozen import freeze

        return freeze(self, species, tolerance=tolerance)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the potential to one `*.safetensors` file: weights and a JSON header.

        Raises:
            InputError: the file exists and `overwrite` is not set, or cannot be written.
        """
        from equipes.models.files import save

        save(self, path, overwrite=overwrite)

    def summary(self) -> dict[str, Any]:
        """What the potential is, as plain JSON values."""
        return {
            "architecture": self.architecture,
            "species": list(self.species),
            "cutoff": self.cutoff,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "hyperparameters": self.hyperparameters,
            "units": UNITS,
            "familiarity": None if self.familiarity is None else dict(self.familiarity.facts),
            "provenance": self.provenance,
        }


def differentiable(graph: AtomGraph) -> AtomGraph:
    """The graph; a copy when its tensors were made in inference mode, which autograd cannot work with."""
    if not graph.positions.is_inference():
        return graph
    values: dict[str, Any] = {field.name: getattr(graph, field.name) for field in fields(graph)}
    copies: dict[str, Any] = {name: v.clone() for name, v in values.items() if isinstance(v, Tensor)}
    return replace(graph, **copies)


def _stress(graph: AtomGraph, virial: Tensor) -> Tensor:
    """`[S, 3, 3]` eV/Å³, NaN where the cell has no volume.

    The NaN is put in last: a loss that leaves such structures out must not get NaN gradients from a division by it.
    """
    volumes = graph.volumes.view(-1, 1, 1)
    filled = volumes > 0
    return torch.where(filled, -virial / torch.where(filled, volumes, 1.0), float("nan"))
