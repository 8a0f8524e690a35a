"""`python -m equipes` is the command `equipes`."""

from __future__ import annotations

from equipes.cli import main

main()
