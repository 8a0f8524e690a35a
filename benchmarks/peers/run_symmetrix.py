"""symmetrix-xl as `peers.Worker` runs it: mace-torch's model of the job, converted by its own command.

It writes and compiles code for a model when it first runs it: `first` is how long that took. `jit_cache` in the job is
the folder where it keeps what it made. See `run_mace.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from serve import Call, Job, serve, single_point, structures


def inference(job: Job) -> tuple[Call, dict[str, Any]]:
    """Its ASE calculator; the conversion needs mace-torch, so that it runs in that environment."""
    torch.set_num_threads(job["threads"])
    cache = Path(job["jit_cache"])
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["SYMMETRIX_JIT_CACHE"] = str(cache)
    atoms = structures(job)[0]
    if atoms.cell.rank < 3:  # its neighbour list wants a cell, also of a molecule
        atoms.center(vacuum=10.0)
    model = cache / f"{'-'.join(sorted(set(atoms.get_chemical_symbols())))}.json"
    if not model.exists():
        here, environments = Path(__file__).resolve().parent, Path(sys.prefix).parent
        own_packages = str(Path(torch.__file__).parents[1])
        python = environments / "mace" / "bin" / "python"
        subprocess.run(
            [str(python), str(here / "export_mace.py"), sys.argv[1], str(model), own_packages], check=True
        )
    from symmetrix import Symmetrix  # reads the variable above

    began = time.perf_counter()
    call = single_point(atoms, Symmetrix(str(model)))
    call()
    return call, {"first": time.perf_counter() - began}


if __name__ == "__main__":
    serve({"inference": inference})
