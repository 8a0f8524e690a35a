"""A potential as a model of torch-sim, which relaxes and moves many structures in one batch.

import torch_sim as ts
from equipes.calculators.torch_sim import TorchSimModel

model = TorchSimModel("model.safetensors")
relaxed = ts.optimize(system=[atoms, other_atoms], model=model, optimizer=…)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipes.calculators.ase import Calculator
from equipes.calculators.batched import BatchedEvaluator, Structures
from equipes.errors import InputError
from equipes.models import FrozenPotential, Potential

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    _missing: ImportError | None = error
    ModelInterface = torch.nn.Module
else:
    _missing = None


class TorchSimModel(ModelInterface):
    """Energies, forces and stresses of a potential for torch-sim (extra `batched`), versions 0.3 to 0.6.

    A state may hold structures of any sizes and elements; torch-sim itself wants the same periodicity of all of them.
    The numbers are those of `equipes.Calculator` for each structure alone, to round-off. On the CPU the potential is
    frozen as there. Lists of neighbours are used again while atoms stay within the skin, also where torch-sim wraps
    atoms back into the cell.

    Geometry is float64, which is what `dtype` tells torch-sim to make its states of; results come in the number type
    of the state that is given.

    Args:
        model: path of a model file, name of a published potential, a `Potential` or a `FrozenPotential`.
        device: where the network runs, and the states are.
        dtype: "float32" or "float64", the number type of the network; None keeps the model's own.
        stress: calculate stresses too; `compute_stress` can be set later, and `compute_forces` likewise.
        skin, exact, modal, species, freeze: see `equipes.Calculator`.

    Raises:
        InputError: torch-sim is not there; what `equipes.Calculator` raises; when called, an element that the
            potential does not know, a structure without sense, a state on another device.
    """

    def __init__(
        self,
        model: Potential | FrozenPotential | str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: str | None = "float32",
        *,
        stress: bool = True,
        skin: float = 0.5,
        exact: bool = False,
        modal: str | None = None,
        species: Sequence[str] | None = None,
        freeze: bool = False,
    ) -> None:
        if _missing is not None:
            raise InputError(
                f"torch-sim cannot be imported ({_missing}); install it with pip install 'equipes[batched]'"
            ) from _missing
        super().__init__()
        calculator = Calculator(
            model, device, dtype, skin, exact, modal=modal, species=species, freeze=freeze
        )
        self._evaluator = BatchedEvaluator(calculator)
        self._device = calculator.device
        self._dtype = torch.float64
        self._compute_stress = stress
        self._compute_forces = True
        # More neighbours, more edges, more memory.
        self._memory_scales_with = "n_atoms_x_density"

    @property
    def calculator(self) -> Calculator:
        """What calculates; its `frozen` and `potential` say how."""
        return self._evaluator.calculator

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are calculated."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        self._compute_stress = bool(wanted)

    @property
    def compute_forces(self) -> bool:
        """Whether forces are calculated."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = bool(wanted)

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Energy `[S]` eV, forces `[N, 3]` eV/Å and stress `[S, 3, 3]` eV/Å³, as torch-sim asks for them.

        Args:
            state: a `SimState`, or a dictionary with positions `[N, 3]`, cell `[S, 3, 3]` (its columns are
                the lattice vectors), pbc, atomic_numbers `[N]` and, of more than one structure, system_idx `[N]`.
        """
        named: dict[str, Any] = state if isinstance(state, dict) else vars(state)
        positions, cell, numbers = (named[name] for name in ("positions", "cell", "atomic_numbers"))
        pbc, system = named["pbc"], named.get("system_idx")
        if positions.device.type != self._device.type:
            raise InputError(
                f"the state is on {positions.device} and the model on {self._device}; move the state with"
                " state.to(model.device)"
            )
        number_type = positions.dtype
        cell = cell.reshape(-1, 3, 3).detach().double().mT
        # One flag for all in torch-sim 0.3, one for each direction in later versions.
        periodic = torch.as_tensor(pbc, dtype=torch.bool, device=positions.device).reshape(
            -1, 3 if _size(pbc) > 1 else 1
        )
        now = Structures(
            positions=positions.detach().double(),
            numbers=numbers.long(),
            cell=cell.contiguous(),
            pbc=periodic.expand(len(cell), 3).contiguous(),
            structure=torch.zeros_like(numbers, dtype=torch.int64) if system is None else system.long(),
        )
        found = self._evaluator(now, forces=self._compute_forces, stress=self._compute_stress, wrapped=True)
        results = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
        return {
            name: tensor.detach().to(positions.device, number_type)
            for name, tensor in results.items()
            if tensor is not None
        }


def _size(pbc: Any) -> int:
    return pbc.numel() if isinstance(pbc, Tensor) else (1 if isinstance(pbc, bool) else len(pbc))
