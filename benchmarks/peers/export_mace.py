"""Writes the model of a job for symmetrix-xl, with mace-torch's Python: `export_mace.py JOB OUT SYMMETRIX_PACKAGES`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from run_mace import prepare


def main() -> None:
    job, out, packages = sys.argv[1:]
    model, _, _ = prepare(json.loads(Path(job).read_text(encoding="utf-8")))
    checkpoint = Path(out).with_suffix(".model")
    torch.save(model, checkpoint)
    sys.path.append(packages)  # behind this environment's own
    from symmetrix.cli import extract_mace

    sys.argv = ["symmetrix_extract_mace", "--model", str(checkpoint), "--output", out]
    extract_mace.main()


if __name__ == "__main__":
    main()
