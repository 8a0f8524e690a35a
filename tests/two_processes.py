"""Run by test_train: a training on two processes that keeps its first gradients."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from equipes.training import load_config, train
from test_train import KeepGradients

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    keep = KeepGradients()
    train(load_config(folder / "two.yaml"), folder / "two", console=Console(quiet=True), callbacks=[keep])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(keep.gradients, folder / "gradients")
