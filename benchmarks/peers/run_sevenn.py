"""sevenn's own calculator with SevenNet-0, whose weights come with the package; see `run_equipes.py`."""

from __future__ import annotations

import torch
from serve import Call, Job, serve, single_point, structures
from sevenn.calculator import SevenNetCalculator


def inference(job: Job) -> Call:
    torch.set_num_threads(job["threads"])
    return single_point(structures(job)[0], SevenNetCalculator("7net-0", device="cpu"))


if __name__ == "__main__":
    serve({"inference": inference})
