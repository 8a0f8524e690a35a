"""Weights published by others, read into our models, and where to get them."""

from __future__ import annotations

from equipes.foundation.fetch import get
from equipes.foundation.loading import load, locate, read_checkpoint
from equipes.foundation.mace import read_checkpoint as read_mace_checkpoint
from equipes.foundation.nequip import from_nequip, read_nequip_npz
from equipes.foundation.registry import MODELS, Published
from equipes.foundation.sevennet import from_sevennet
from equipes.foundation.sevennet import read_checkpoint as read_sevennet

__all__ = [
    "MODELS",
    "Published",
    "from_nequip",
    "from_sevennet",
    "get",
    "load",
    "locate",
    "read_checkpoint",
    "read_mace_checkpoint",
    "read_nequip_npz",
    "read_sevennet",
]
