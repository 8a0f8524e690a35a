"""Weights published by others, read into our models."""

from __future__ import annotations

from equipes.foundation.nequip import from_nequip, read_nequip_npz
from equipes.foundation.sevennet import from_sevennet
from equipes.foundation.sevennet import read_checkpoint as read_sevennet

__all__ = ["from_nequip", "from_sevennet", "read_nequip_npz", "read_sevennet"]
