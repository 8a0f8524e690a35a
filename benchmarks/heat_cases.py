"""Reduced cases of heat conduction for `applications.py`: a glass by Green-Kubo, a strained film by phonons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
from ase.build import bulk
from heat import biaxial

from equipes.simulate import relax
from equipes.simulate.conductivity import ConductivityOptions, conductivity
from equipes.simulate.green_kubo import GreenKuboOptions, green_kubo

# Quantity, ours, unit, reference, source, error: what a row of the page is made from.
Numbers = tuple[str, float, str, float | str | None, str, float | None]


def glass(at: Any) -> Iterator[Numbers]:
    """The glass that the case "melt-quench" made, at 300 K: 6 ps, which leave an error of a third or so."""
    atoms = ase.io.read(Path(at.out) / "glass" / "anneal" / "final.extxyz")
    options = GreenKuboOptions(
        300.0, steps=2000, equilibration=700, runs=2, timestep=1.5, interval=8, correlation=0.75
    )
    found = green_kubo(atoms, at.calculator("float32"), options)
    known = at.known("thermal_conductivity_300K", "experiment", "SiO2_amorphous")
    source = "experiment, from memory; 72 atoms, classical"
    yield ("SiO2 glass: conductivity, Green-Kubo", found.conductivity, "W/m/K", known, source, found.error)


def film(at: Any) -> Iterator[Numbers]:
    """Silicon stretched by one per cent in the plane, free across it, beside silicon at rest."""
    calculator = at.calculator("float64")
    unit = relax(bulk("Si", a=5.45, cubic=True), calculator, cell=True, fmax=0.001).atoms
    options = ConductivityOptions(
        supercell=(2, 2, 2),
        meshes=(28.0,),
        temperatures=(300.0,),
        relax=False,
        isotopes=False,
        full=False,
        cutoff_pair=4.0,
    )
    rest = float(conductivity(unit, calculator, options).best[0, 0])
    strained = conductivity(biaxial(unit, 0.01, calculator)[0], calculator, options).best[0]
    source = "the same at rest; theory and experiment have it fall under tension"
    yield (
        "Si film, +1 %: conductivity in the plane at 300 K",
        float(strained[:2].mean()),
        "W/m/K",
        rest,
        source,
        None,
    )
    yield ("Si film, +1 %: across", float(strained[2]), "W/m/K", rest, source, None)
