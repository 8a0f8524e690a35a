"""Cases of `applications.py` in which atoms move: dynamics, diffusion, barriers, a glass."""

from __future__ import annotations

from collections.abc import Iterator

import ase.io
import numpy as np
from application_parts import SILICON, Row, Setting
from ase import units
from ase.build import bulk

from equipes.simulate import MDSettings, run_md
from equipes.simulate.diffusion import DiffusionOptions
from equipes.simulate.diffusion_runs import DiffusionRunOptions, diffusion
from equipes.simulate.melt_quench import MeltQuenchOptions, melt_quench
from equipes.simulate.neb import NEBOptions, neb, vacancy_hop


def diffusion_case(at: Setting) -> Iterator[Row]:
    """Lithium in Li10GeP2S12 by dynamics: 5 ps at 1000 K, where it moves enough to be seen so soon."""
    atoms = ase.io.read(at.data / "structures" / "Li10GeP2S12_ordered_lgps.cif")
    options = DiffusionRunOptions(
        temperatures=(1000.0,), analysis=DiffusionOptions("Li"), steps=2500, interval=5, equilibration=0.2
    )
    found = diffusion(atoms, at.calculator("float32"), options, at.out / "lgps", overwrite=True)
    only = found.temperatures[0]
    cold = at.known("ionic_transport", "LGPS_AIMD_600K_file", "expected_from_repository_test")
    barrier = at.known("ionic_transport", "Li10GeP2S12", "activation_energy_exp_eV")
    factor = np.exp(barrier / units.kB * (1 / 600.0 - 1 / 1000.0))
    yield Row(
        "LGPS, 1000 K: D of Li",
        1e6 * only.diffusion_cm2_per_s,
        "10⁻⁶ cm²/s",
        float(1e6 * cold["tracer_diffusivity_cm2_per_s"] * factor),
        "ab initio at 600 K, carried to 1000 K with the measured 0.24 eV",
        1e6 * only.diffusion_error,
    )


def md_case(at: Setting) -> Iterator[Row]:
    """Silicon at 300 K: what the thermostat must give, and what nothing may take away."""
    atoms = bulk("Si", a=SILICON, cubic=True) * (2, 2, 2)
    calculator = at.calculator("float32")
    warm = run_md(
        atoms,
        calculator,
        MDSettings("nvt", steps=600, timestep=2.0, temperature=300.0, thermostat_time=20.0),
        at.out / "nvt",
        overwrite=True,
    )
    error = warm.summary["mean_temperature_k_error"]
    mean = warm.summary["mean_temperature_k"]
    yield Row("Si, nvt: mean temperature", mean, "K", 300.0, "asked for", error)
    alone = run_md(
        warm.atoms,
        calculator,
        MDSettings("nve", steps=400, timestep=1.0, keep_velocities=True),
        at.out / "nve",
        overwrite=True,
    )
    drift = alone.summary["energy_drift_mev_per_atom_per_ps"]
    yield Row("Si, nve: energy drift", drift, "meV/atom/ps", 0.0, "conservation of energy")


def glass_case(at: Setting) -> Iterator[Row]:
    """Silica, 72 atoms, melted and quenched at constant volume: far too fast, but a glass."""
    quartz = ase.io.read(at.data / "structures" / "constructed" / "SiO2_alpha_quartz.vasp")
    quartz.set_cell(quartz.cell.array * (2.65 / 2.2) ** (1 / 3), scale_atoms=True)
    options = MeltQuenchOptions(
        melt=5000.0,
        melt_steps=1110,
        quench_steps=1500,
        anneal_steps=300,
        timestep=1.5,
        interval=10,
        supercell=(2, 2, 2),
    )
    found = melt_quench(quartz, at.calculator("float32"), options, at.out / "glass", overwrite=True)
    counts = found.coordination["Si-O"]
    four = 100 * counts.get(4, 0) / sum(counts.values())
    yield Row("SiO2 glass: silicon with four oxygen", four, "%", 100.0, "the structure of silica glass")
    bond = next(d for d in found.glass if set(d.pair) == {"O", "Si"})
    yield Row("SiO2 glass: Si-O distance", bond.peak_ang, "Å", 1.61, "neutron diffraction, from memory")


def neb_case(at: Setting) -> Iterator[Row]:
    """Hops of a vacancy in copper and in silicon."""
    copper = bulk("Cu", a=3.63, cubic=True) * (2, 2, 2)
    found = neb(*vacancy_hop(copper, 0), at.calculator("float32"), NEBOptions(images=3, fmax=0.05))
    known = at.known("defects_surfaces", "Cu_DFT_PACE_table", "vacancy_migration")
    yield Row(
        "Cu: barrier of a vacancy hop, 31 atoms",
        found.barrier_ev,
        "eV",
        known,
        "PBE, Lysogorskiy et al. 2021",
    )
    silicon = bulk("Si", a=SILICON, cubic=True) * (2, 2, 2)
    options = NEBOptions(images=3, fmax=0.05, end_fmax=0.02, steps=150)
    found = neb(*vacancy_hop(silicon, 0), at.calculator("float32"), options)
    path = at.known("defects_surfaces", "Si_PW91_CASTEP", "vacancy_migration_path_eV")
    yield Row(
        "Si: barrier of a vacancy hop, 63 atoms",
        found.barrier_ev,
        "eV",
        round(max(path) - path[0], 3),
        "PW91, silicon-testing-framework",
    )


def lithium_case(at: Setting) -> Iterator[Row]:
    """Lithium hops along b in LiFePO4, into a vacancy of a cell of 112 sites."""
    crystal = ase.io.read(at.data / "structures" / "LiFePO4.cif") * (1, 2, 2)
    lithium = int(np.flatnonzero(crystal.numbers == 3)[0])
    options = NEBOptions(images=3, fmax=0.08, end_fmax=0.03, steps=120)
    found = neb(*vacancy_hop(crystal, lithium), at.calculator("float32"), options)
    known = at.known("ionic_transport", "LiFePO4", "migration_barrier_b_axis_eV")
    source = "GGA, Morgan et al. 2004, from memory"
    yield Row("LiFePO4: barrier of a Li hop along b, 111 atoms", found.barrier_ev, "eV", known, source)


def copper_diffusion_case(at: Setting) -> Iterator[Row]:
    """A vacancy carries copper atoms around, hot and in a small cell, where that can be seen in picoseconds."""
    crystal = bulk("Cu", a=3.70, cubic=True) * (2, 2, 2)
    barrier = neb(
        *vacancy_hop(crystal, 0), at.calculator("float32"), NEBOptions(images=3, fmax=0.05)
    ).barrier_ev
    del crystal[0]
    temperature = 1300.0
    options = DiffusionRunOptions(
        temperatures=(temperature,), analysis=DiffusionOptions("Cu"), steps=5000, timestep=3.0, interval=10
    )
    found = diffusion(crystal, at.calculator("float32"), options, at.out / "copper", overwrite=True)
    only = found.temperatures[0]
    # Every hop, 12 ways with 5 THz each, moves one of 31 atoms by a/√2: D = (12 ν / 31) (a²/2) / 6 exp(-E/kT), Å² THz.
    rate = 5.0 * np.exp(-barrier / (units.kB * temperature))
    hops = 12 * rate / 31 * 3.70**2 / 2 / 6
    source = "transition-state theory with the barrier of the same potential and 5 THz: an order of magnitude"
    yield Row(
        "Cu with a vacancy, 31 atoms, 1300 K: D",
        1e6 * only.diffusion_cm2_per_s,
        "10⁻⁶ cm²/s",
        float(1e6 * hops * 1e-4),
        source,
        1e6 * only.diffusion_error,
    )
