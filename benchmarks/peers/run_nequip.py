"""nequip, eager, as `peers.Worker` runs it; see `run_equipes.py`."""

from __future__ import annotations

from typing import Any

import torch
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from serve import Call, Job, serve, single_point, structures


def training_step(job: Job) -> tuple[Call, dict[str, Any]]:
    """Energies and forces, mean squared errors, their gradient, Adam; what nequip's own module adds is left out."""
    model, data, facts = _prepare(job)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    energy, forces = data[AtomicDataDict.TOTAL_ENERGY_KEY], data[AtomicDataDict.FORCE_KEY]
    atoms = torch.bincount(data[AtomicDataDict.BATCH_KEY]).unsqueeze(-1)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(data)
        energies = (out[AtomicDataDict.TOTAL_ENERGY_KEY] - energy) / atoms
        loss = (energies**2).mean() + ((out[AtomicDataDict.FORCE_KEY] - forces) ** 2).mean()
        loss.backward()
        optimizer.step()

    facts["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return call, facts


def inference(job: Job) -> tuple[Call, dict[str, Any]]:
    """nequip's ASE calculator."""
    model, _, facts = _prepare(job)
    calculator = NequIPCalculator(model.eval(), device="cpu", transforms=_transforms(job))
    return single_point(structures(job)[0], calculator), facts


def _prepare(job: Job) -> tuple[Any, Any, dict[str, Any]]:
    torch.set_num_threads(job["threads"])
    set_global_state()
    transforms, graphs = _transforms(job), []
    for atoms in structures(job):
        data = from_ase(atoms)
        for transform in transforms:
            data = transform(data)
        graphs.append(data)
    batch = AtomicDataDict.batched_from_list(graphs)
    atoms_count = len(batch[AtomicDataDict.POSITIONS_KEY])
    edges = batch[AtomicDataDict.EDGE_INDEX_KEY].shape[1]
    model = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        type_names=_species(job),
        avg_num_neighbors=edges / atoms_count,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        **job["model"],
    )
    return model, batch, {"atoms": atoms_count, "edges": edges}


def _species(job: Job) -> list[str]:
    return sorted({symbol for atoms in structures(job) for symbol in atoms.get_chemical_symbols()})


def _transforms(job: Job) -> list[Any]:
    return [
        ChemicalSpeciesToAtomTypeMapper(model_type_names=_species(job)),
        NeighborListTransform(r_max=job["model"]["r_max"]),
    ]


if __name__ == "__main__":
    serve({"training step": training_step, "inference": inference})
