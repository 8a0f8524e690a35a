"""mace-torch as `peers.Worker` runs it: the job's model, or beside a model of another kind one with the sizes of
MACE-MP-0 small, so that its place in the field shows; weights are random. See `run_equipes.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric
from serve import Call, Job, serve, single_point, structures

_SMALL = {"r_max": 6.0, "num_bessel": 10, "max_ell": 3, "hidden_irreps": "128x0e", "correlation": 3}


def training_step(job: Job) -> tuple[Call, dict[str, Any]]:
    """Energies and forces, mean squared errors, their gradient, Adam."""
    model, batch, facts = prepare(job)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch, energy, forces = batch.to_dict(), batch.energy, batch.forces
    atoms = torch.bincount(batch["batch"])

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(batch, training=True)
        loss = (((out["energy"] - energy) / atoms) ** 2).mean() + ((out["forces"] - forces) ** 2).mean()
        loss.backward()
        optimizer.step()

    return call, facts


def inference(job: Job) -> tuple[Call, dict[str, Any]]:
    """mace's ASE calculator."""
    model, _, facts = prepare(job)
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float32")
    return single_point(structures(job)[0], calculator), facts


def prepare(job: Job) -> tuple[Any, Any, dict[str, Any]]:
    """The model, a batch of the job's frames, and facts on both."""
    from e3nn import o3  # after mace, which allows the e3nn that it needs to load its tables

    own = job["model"] if job["model"].get("architecture") == "mace" else _SMALL
    r_max = own["r_max"]
    torch.set_num_threads(job["threads"])
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    frames = structures(job)
    numbers = sorted({int(number) for atoms in frames for number in atoms.numbers})
    table = tools.AtomicNumberTable(numbers)
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, atoms.positions * 0.0
        if atoms.calc is not None:
            atoms.info["energy"] = atoms.calc.results["energy"]
            atoms.arrays["forces"] = atoms.calc.results["forces"]
    keys = data.KeySpecification(info_keys={"energy": "energy"}, arrays_keys={"forces": "forces"})
    graphs = [
        data.AtomicData.from_config(
            data.config_from_atoms(atoms, key_specification=keys), z_table=table, cutoff=r_max
        )
        for atoms in frames
    ]
    batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
    atoms_count, edges = len(batch.positions), batch.edge_index.shape[1]
    model = modules.ScaleShiftMACE(
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        r_max=r_max,
        num_bessel=own["num_bessel"],
        num_polynomial_cutoff=5,
        max_ell=own["max_ell"],
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(own["hidden_irreps"]),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=torch.zeros(len(numbers)).numpy(),
        avg_num_neighbors=edges / atoms_count,
        atomic_numbers=numbers,
        correlation=own["correlation"],
    )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, batch, {"atoms": atoms_count, "edges": edges, "parameters": parameters}


if __name__ == "__main__":
    serve({"training step": training_step, "inference": inference})
