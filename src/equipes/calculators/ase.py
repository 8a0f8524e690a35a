"""A potential as an ASE calculator."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equipes.calculators.device import DeviceEvaluator
from equipes.calculators.neighbors import NeighborList, SkinnedNeighbors
from equipes.errors import InputError
from equipes.foundation import load, locate
from equipes.kernels import kernel_name
from equipes.kernels.native.frozen import Neighbours
from equipes.kernels.peers import PEERS
from equipes.models import DTYPES, FrozenPotential, Potential, adapted, convert, is_frozen, load_frozen
from equipes.models.device_frozen import DevicePotential, freeze_on_device, supports_device
from equipes.models.frozen import supports as can_freeze

# A frozen potential whose forces are off by more than this much of the largest is not used. Round-off is about 1e-5 in
# float32; in float64 the splines are what is left, some 1e-8.
TOLERABLE = 1e-3
TOLERABLE_FLOAT64 = 1e-6


class Calculator(AseCalculator):
    """Energy, forces and stress of a potential for ASE.

    Properties: `energy` and `free_energy` (eV, the same number), `energies` `[N]` (eV), `forces` `[N, 3]` (eV/Å) and
    `stress` `[6]` (eV/Å³, xx yy zz yz xz xy, tensile positive). The same structure gives the same numbers, bit for bit,
    whatever was calculated before; on a GPU to round-off.

    In float32 the potential is frozen for the elements of the first structure, and again when new ones come: linear
    layers are folded and radial functions become splines, which is many times faster on the CPU and differs from the
    model by about the round-off of float32 (`frozen.deviation` says by how much). `exact` keeps the model as it is. In
    float64, and for architectures that cannot be frozen (on a GPU SchNet, PhysNet and ANI), the calculator is exact
    anyway.

    Args:
        model: path of a model file, name of a published potential (`equipes models list`), a `Potential` or a
            `FrozenPotential`; it is copied, so what happens to it later changes nothing here.
        device: where the network runs.
        dtype: "float32" or "float64", the number type of the network; None keeps the model's own. Geometry is float64.
        modal: of a potential that knows several kinds of reference calculation, the one to speak for.
        species: keep only these elements of those that it knows.
        skin: Å added to the cutoff when neighbours are collected; the list serves until an atom has moved half of it.
        exact: do not freeze the model.
        freeze: freeze it in float64 too, where otherwise the model itself runs: some 1e-8 eV/Å away, many times faster.
        feature_distance: put `feature_distance` `[N]` into the results too: how far each atom is from what the
            potential was trained on, 1 being the limit (`equipes.models.familiarity`). It costs one forward pass.

    Attributes:
        potential: the model; None if a frozen one was given.
        frozen: what calculates in its place; None as long as nothing is frozen.
        skin: Å.

    Raises:
        InputError: a file that is no model, an unknown dtype or device, a negative skin, a frozen potential that shall
            be exact, feature distances of a potential that has none; when calculating, an
            element that the potential does not know, or a structure without sense (see `AtomGraph.from_atoms`).
        PropertyNotImplementedError: the stress of a structure whose cell has no volume.

    >>> from ase.build import bulk
    >>> import equipes
    >>> potential = equipes.build("nequip", ["Cu"], {"num_layers": 1, "num_features": 4})
    >>> copper = bulk("Cu")
    >>> copper.calc = Calculator(potential)
    >>> copper.get_forces().shape
    (1, 3)
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(
        self,
        model: Potential | FrozenPotential | str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: str | None = "float32",
        skin: float = 0.5,
        exact: bool = False,
        *,
        modal: str | None = None,
        species: Sequence[str] | None = None,
        freeze: bool = False,
        feature_distance: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, list | tuple):
            raise InputError("several models make a committee: equipes.Committee([…])")
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError(f"the skin must be a length of 0 Å or more, not {skin}")
        self.device = _device(device)
        self.potential: Potential | None = None
        self.frozen: FrozenPotential | DevicePotential | None = None
        natively = runs_natively(self.device)
        if not isinstance(model, Potential | FrozenPotential):
            model = locate(model)
            if is_frozen(model):
                model = load_frozen(model, dtype=dtype)
        if isinstance(model, FrozenPotential):
            if exact or species is not None or modal is not None:
                raise InputError(
                    "a frozen potential runs as it was frozen; give the model that it was made from"
                )
            model = model if dtype is None else model.with_dtype(_dtype(dtype))
            self.frozen = model if natively else model.on(self.device)
        elif isinstance(model, Potential):
            self.potential = convert(model, dtype or str(model.dtype).removeprefix("torch.")).to(self.device)
            self.potential = adapted(self.potential, species=species, modal=modal)
        else:
            self.potential = load(model, device=self.device, dtype=dtype, species=species, modal=modal)
        if self.potential is not None:
            self.potential.eval().requires_grad_(False)
        self._may_freeze = (
            self.potential is not None
            and not exact
            and (freeze or self.potential.dtype == torch.float32)
            and (
                _can_freeze_natively(self.potential)
                if natively
                else _can_freeze_on_device(self.potential, self.device)
            )
        )
        self._tells_distance = feature_distance
        if feature_distance:
            self._refuse_unfamiliar()
        self._types: tuple[NeighborList, np.ndarray] | None = None
        self._prepared_for: bytes | None = None
        reach = self.potential or self.frozen
        assert reach is not None
        self.skin = float(skin)
        on_device = not natively and (self._may_freeze or self.frozen is not None)
        self._neighbors = SkinnedNeighbors(reach.cutoff, skin, self.device if on_device else "cpu")
        self._evaluator: DeviceEvaluator | None = None

    def freeze_for(self, symbols: Iterable[str]) -> FrozenPotential | DevicePotential | None:
        """Freeze the potential for some elements ahead of time, beside those it is frozen for already.

        Returns:
            What will calculate; None if the calculator is exact.
        """
        if not self._may_freeze or self.potential is None:
            return self.frozen
        known = set() if self.frozen is None else set(self.frozen.species)
        wanted = known | set(symbols)
        # An unknown element is told by who meets it in a structure.
        if wanted == known or not wanted <= set(self.potential.species):
            return self.frozen
        frozen = (
            self.potential.freeze(sorted(wanted))
            if runs_natively(self.device)
            else freeze_on_device(self.potential, self.device, sorted(wanted))
        )
        tolerable = TOLERABLE if frozen.dtype == torch.float32 else TOLERABLE_FLOAT64
        if not frozen.deviation["forces"] <= tolerable * frozen.deviation["largest_force"]:
            warnings.warn(
                f"frozen, the potential's forces would be off by {frozen.deviation['forces']:.1e} eV/Å; "
                "the exact model runs instead, more slowly",
                stacklevel=2,
            )
            self._may_freeze, self.frozen = False, None
        else:
            self.frozen = frozen
        return self.frozen

    @property
    def neighbor_list_builds(self) -> int:
        """How often neighbours were collected anew."""
        return self._neighbors.builds

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation, of what the potential sees.

        Compared bit for bit; ASE's own comparison takes as long as finding the neighbours of a small molecule, and it
        is made several times in a step of dynamics.
        """
        last = self.atoms
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        pairs = {
            "positions": (last.positions, atoms.positions),
            "numbers": (last.numbers, atoms.numbers),
            "cell": (last.cell.array, atoms.cell.array),
            "pbc": (last.pbc, atoms.pbc),
        }
        return [name for name, (one, two) in pairs.items() if one.tobytes() != two.tobytes()]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; ASE calls it when something is asked that is not known yet."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.get_atoms() if atoms is None else atoms
        # Forces cost as much again as the energy, and whoever wants the one soon wants the other; after them the stress
        # costs next to nothing, so it is only left out where it has no meaning.
        periodic = bool(structure.pbc.any())
        has_volume = structure.cell.rank == 3
        if "stress" in properties and not has_volume:
            raise PropertyNotImplementedError(
                "the structure has no stress, because its cell has no volume; set three lattice vectors"
            )
        stress = has_volume and (periodic or "stress" in properties)
        numbers = structure.numbers.tobytes()
        # Looking at every symbol takes as long as a small molecule's forces.
        if numbers != self._prepared_for:
            self.freeze_for(set(structure.symbols))
            self._prepared_for = numbers
        if self.frozen is not None:
            self._calculate_frozen(structure, stress=stress)
        else:
            self._calculate_exactly(structure, stress=stress)
        if self._tells_distance:
            self.results["feature_distance"] = self.feature_distances(structure)

    def feature_distances(self, structure: ase.Atoms) -> np.ndarray:
        """How far each atom of a structure is from what the potential was trained on, `[N]`; 1 is the limit.

        One forward pass of the exact model, whatever calculates energies and forces.

        Raises:
            InputError: a frozen potential, or one that was not told what it was trained on; see `calculate`.
        """
        potential = self._refuse_unfamiliar()
        graph = self._neighbors.graph(structure)
        if self.device.type != "cpu":
            graph = graph.to(self.device)
        return potential.feature_distances(graph).numpy()

    def _refuse_unfamiliar(self) -> Potential:
        if self.potential is None:
            raise InputError(
                "a frozen potential has no feature distances; give the model that it was made from"
            )
        if self.potential.familiarity is None:
            raise InputError(
                "the potential does not know what it was trained on; tell it with `equipes familiarize MODEL FRAMES`"
            )
        return self.potential

    def _calculate_frozen(self, structure: ase.Atoms, *, stress: bool) -> None:
        assert self.frozen is not None
        if isinstance(self.frozen, DevicePotential):
            if self._evaluator is None or self._evaluator.potential is not self.frozen:
                self._evaluator = DeviceEvaluator(self.frozen, self._neighbors)
            energies, forces, virial = self._evaluator(structure)
        else:
            energies, forces, virial = self._evaluate_natively(self.frozen, structure)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if stress:
            volume = abs(np.linalg.det(structure.cell.array))
            self.results["stress"] = full_3x3_to_voigt_6_stress(-virial / volume)

    def _evaluate_natively(
        self, frozen: FrozenPotential, structure: ase.Atoms
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        neighbors = self._neighbors.list_of(structure)
        if self._types is None or self._types[0] is not neighbors:
            self._types = (neighbors, frozen.types(neighbors.numbers))
        energies, forces, virial = frozen.evaluate(
            Neighbours(
                types=self._types[1],
                positions=structure.positions,
                cell=structure.cell.array[None],
                row_pointer=neighbors.row_pointer,
                sender=neighbors.sender,
                shift=neighbors.shift if neighbors.crosses_boundaries else None,
            )
        )
        assert forces is not None and virial is not None
        return energies, forces, virial[0]

    def _calculate_exactly(self, structure: ase.Atoms, *, stress: bool) -> None:
        assert self.potential is not None
        graph = self._neighbors.graph(structure)
        if self.device.type != "cpu":
            graph = graph.to(self.device)
        prediction = self.potential(graph, forces=True, stress=stress)
        energy = float(prediction.energy)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": prediction.energies.cpu().numpy(),
            "forces": prediction.forces.cpu().numpy(),
        }
        if stress:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].cpu().numpy())

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What the calculator is, for ASE's databases and trajectories."""
        model = self.potential or self.frozen
        assert model is not None
        return {"architecture": model.architecture, "species": list(model.species)}


def runs_natively(device: torch.device) -> bool:
    """Whether frozen potentials run on native code there, and not on the kernels for GPUs."""
    return device.type == "cpu"


def _can_freeze_natively(potential: Potential) -> bool:
    return kernel_name() == "native" and can_freeze(potential)


def _can_freeze_on_device(potential: Potential, device: torch.device) -> bool:
    # The reference kernel writes down the weights of all edges, those of peers want them: the model itself is no
    # worse then.
    return kernel_name(device.type) not in ("reference", *PEERS) and supports_device(potential)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"unknown dtype '{name}'; use {' or '.join(DTYPES)}")
    return DTYPES[name]


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {str(name)!r} cannot be used here; use 'cpu', or one that torch finds"
        ) from error
    return device
