"""What the cases of `applications.py` share: rows, references, settings; and those that analyse forces of DFT."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from equipes.simulate.conductivity import ConductivityOptions, conductivity_from_forces
from equipes.simulate.diffusion import DiffusionOptions, Motion, analyze_diffusion
from equipes.simulate.expansion import ExpansionOptions, expansion_from_harmonics
from equipes.simulate.harmonic import harmonic_from_forces
from equipes.simulate.phonons import phonons_from_forces

SILICON = 5.45  # Å, to start from


@dataclass(frozen=True)
class Row:
    """One number beside its reference."""

    quantity: str
    ours: float
    unit: str
    reference: float | str | None
    source: str
    error: float | None = None


class References:
    """The files of reference numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, file: str, *keys: str) -> Any:
        """What stands under `keys`; a dictionary with a value gives the value."""
        node = json.loads((self.folder / f"{file}.json").read_text())
        for key in keys:
            node = node[key]
        return node["value"] if isinstance(node, dict) and "value" in node else node


@dataclass(frozen=True)
class Setting:
    """What every case is given."""

    calculator: Callable[[str], Any]
    data: Path
    known: References
    out: Path


def phonon_dft_case(at: Setting) -> Iterator[Row]:
    """The phonon workflow on published forces of DFT."""
    found = phonons_from_forces(
        _silicon(at),
        [ase.io.read(at.data / "si_phono3py" / "si_pbe_fc3_displacements.xyz", index=0)],
        (2, 2, 2),
    )
    yield from silicon_frequencies(found, at, "the same forces through phonopy")
    capacity = float(found.thermal.heat_capacity_j_per_k_per_mol[30])
    known = at.known("phonons", "Si_PBE_computed_here", "Cv_300K_J_per_K_per_mol_of_primitive_cell(2 Si)")
    yield Row("Si: heat capacity at 300 K", capacity, "J/K/mol", known, "the same forces through phonopy")


def conductivity_dft_case(at: Setting) -> Iterator[Row]:
    """The conductivity workflow on published forces of DFT."""
    folder = at.data / "si_phono3py"
    options = ConductivityOptions(meshes=(35.0,), temperatures=(300.0,), isotopes=False)
    found = conductivity_from_forces(
        folder / "Si-PBE_phono3py_disp.yaml", folder / "Si-PBE_FORCES_FC3", options
    )
    known = at.known("thermal_conductivity_300K", "Si_phono3py_examples", "PBE", "mesh_11")
    value = float(found.relaxation_time[-1, 0, :3].mean())
    source = "the same forces, phono3py example README"
    yield Row("Si: conductivity at 300 K, 11×11×11, relaxation time", value, "W/m/K", known, source)


def diffusion_dft_case(at: Setting) -> Iterator[Row]:
    """The diffusion workflow on ab initio displacements of Li10GeP2S12."""
    stored = np.load(at.data / "lgps_aimd_600K" / "lgps_600K_displacements.npz")
    atoms = Atoms(list(stored["symbols"]), cell=stored["cell"])
    motion = Motion(
        atoms.numbers,
        atoms.get_masses(),
        stored["displacements"].transpose(1, 0, 2).astype(float),
        float(stored["time_step_fs"] * stored["step_skip"]),
        atoms.get_volume(),
    )
    found = analyze_diffusion(motion, 600.0, DiffusionOptions("Li"))
    known = at.known("ionic_transport", "LGPS_AIMD_600K_file", "expected_from_repository_test")
    source = "pymatgen-analysis-diffusion, the same displacements"
    yield Row(
        "LGPS, 600 K: D of Li",
        1e6 * found.diffusion_cm2_per_s,
        "10⁻⁶ cm²/s",
        1e6 * known["tracer_diffusivity_cm2_per_s"],
        source,
        1e6 * found.diffusion_error,
    )
    yield Row(
        "LGPS, 600 K: conductivity",
        found.conductivity_ms_per_cm or float("nan"),
        "mS/cm",
        known["conductivity_mS_per_cm"],
        source,
        found.conductivity_error,
    )


def expansion_dft_case(at: Setting) -> Iterator[Row]:
    """The quasi-harmonic workflow on published forces of DFT."""
    unit = _silicon(at)
    harmonics, energies = [], []
    for atoms in ase.io.read(at.data / "phonopy_examples" / "si_pbe_volumes_displacements.xyz", index=":"):
        scaled = unit.copy()
        scaled.set_cell(np.eye(3) * (atoms.get_volume() / 8) ** (1 / 3), scale_atoms=True)
        harmonics.append(harmonic_from_forces(scaled, [atoms], (2, 2, 2)))
        entry = harmonics[-1].dataset["first_atoms"][0]
        moved = 0.5 * entry["forces"][entry["number"]] @ entry["displacement"]
        energies.append((atoms.get_potential_energy() + moved) / 32)
    found = expansion_from_harmonics(harmonics, energies, ExpansionOptions(), unit)
    yield Row(
        "Si: linear expansion at 300 K",
        1e6 * found.linear_per_k(300.0),
        "10⁻⁶/K",
        2.6,
        "experiment, from memory",
    )
    known = at.known("lattice_elastic", "Si", "C_PBE")["B"]
    yield Row("Si: bulk modulus at 0 K", float(found.bulk_modulus_gpa[0]), "GPa", known, "PBE, from memory")


def _silicon(at: Setting) -> Atoms:
    return ase.io.read(at.data / "si_phono3py" / "Si-PBE_POSCAR-unitcell", format="vasp")


def silicon_frequencies(found: Any, at: Setting, source: str) -> Iterator[Row]:
    known = at.known("phonons", "Si_PBE_computed_here", "frequencies_THz")
    names = {
        "Γ": {"optical": 5},
        "X": {"TA": 0, "LA/LO": 2, "TO": 4},
        "L": {"TA": 0, "LA": 2, "LO": 3, "TO": 4},
    }
    for point, modes in names.items():
        for mode, index in modes.items():
            reference = known["Gamma" if point == "Γ" else point][index]
            yield Row(
                f"Si: {mode} at {point}", float(found.points_thz[point][index]), "THz", reference, source
            )
