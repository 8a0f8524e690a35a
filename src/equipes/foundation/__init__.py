"""Weights published by others, read into our models."""

from __future__ import annotations

from equipes.foundation.mace import read_checkpoint as read_mace_checkpoint
from equipes.foundation.nequip import from_nequip, read_nequip_npz

__all__ = ["from_nequip", "read_mace_checkpoint", "read_nequip_npz"]
