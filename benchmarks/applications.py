"""A reduced case of every workflow, our number beside the reference value and its source, on one page.

    python benchmarks/applications.py --model 7net-0 --out applications
    python benchmarks/applications.py --only dft --out applications

`dft` cases need no model: they analyse forces and displacements of ab initio calculations, so that what differs from
the reference there is the workflow's own. The others take any potential that knows silicon, copper, lithium and the
rest. The data are looked for in `--shared` (../shared by default). Each case is stored as it is done, and the script
goes on where it was stopped. OUT/applications.md is the page and OUT/applications.json its numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import heat_cases
import machine
import numpy as np
from ase import Atoms, units
from ase.build import bulk

from equipes.simulate import MDSettings, equation_of_state, relax, run_md
from equipes.simulate.conductivity import ConductivityOptions, conductivity, conductivity_from_forces
from equipes.simulate.diffusion import DiffusionOptions, Motion, analyze_diffusion
from equipes.simulate.diffusion_runs import DiffusionRunOptions, diffusion
from equipes.simulate.elastic import ElasticOptions, elastic
from equipes.simulate.expansion import ExpansionOptions, expansion, expansion_from_harmonics
from equipes.simulate.expansion_npt import NPTExpansionOptions, expansion_npt
from equipes.simulate.harmonic import harmonic_from_forces
from equipes.simulate.melt_quench import MeltQuenchOptions, melt_quench
from equipes.simulate.neb import NEBOptions, neb, vacancy_hop
from equipes.simulate.phonons import PhononOptions, phonons, phonons_from_forces

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


def eos_case(at: Setting) -> Iterator[Row]:
    """Equation of state of silicon and copper."""
    for symbol, a, crystal in (("Si", SILICON, "diamond"), ("Cu", 3.63, "fcc")):
        found = equation_of_state(
            bulk(symbol, crystal, a=a), at.calculator("float64"), volume_range=0.05, points=7
        )
        yield Row(
            f"{symbol}: lattice constant",
            found.lattice_constants["a"],
            "Å",
            at.known("lattice_elastic", symbol, "a_PBE"),
            "PBE, from memory",
        )
        references = {"Si": ("C_PBE", "PBE, from memory"), "Cu": ("C_exp_300K", "experiment, from memory")}
        key, source = references[symbol]
        reference = at.known("lattice_elastic", symbol, key)["B"]
        yield Row(f"{symbol}: bulk modulus", found.bulk_modulus_gpa, "GPa", reference, source)


def relax_case(at: Setting) -> Iterator[Row]:
    """Cells of quartz and monoclinic hafnia, with their symmetry kept."""
    folder = at.data / "structures" / "constructed"
    cases = (
        ("SiO2_alpha_quartz", "SiO2_alpha_quartz.vasp", ("a", "c"), "a_PBE"),
        ("HfO2_monoclinic", "HfO2_monoclinic_P21c.vasp", ("a", "b", "c", "beta"), "cell_PBE"),
    )
    for name, file, lengths, _ in cases:
        found = relax(ase.io.read(folder / file), at.calculator("float64"), symmetry=True, fmax=0.005)
        cell = dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), found.atoms.cell.cellpar(), strict=True))
        for length in lengths:
            if name == "SiO2_alpha_quartz":
                reference = at.known("lattice_elastic", name, f"{length}_PBE")
            else:
                reference = at.known("lattice_elastic", name, "cell_PBE")[length]
            unit = "°" if length == "beta" else "Å"
            yield Row(f"{name}: {length}", float(cell[length]), unit, reference, "PBE, from memory")


def elastic_case(at: Setting) -> Iterator[Row]:
    """Elastic constants of silicon, copper and gallium nitride."""
    gallium_nitride = ase.io.read(at.data / "structures" / "GaN.cif")
    constants = {"C11": (0, 0), "C12": (0, 1), "C13": (0, 2), "C33": (2, 2), "C44": (3, 3)}
    cases: tuple[tuple[str, Atoms, str, str], ...] = (
        ("Si", bulk("Si", a=SILICON), "C_PBE", "PBE, from memory"),
        ("Cu", bulk("Cu", a=3.63), "C_DFT_PBE", "PBE, Lysogorskiy et al. 2021"),
        ("GaN_wurtzite", gallium_nitride, "C_exp", "experiment, Polian 1996, from memory"),
    )
    for name, atoms, key, source in cases:
        found = elastic(atoms, at.calculator("float64"), ElasticOptions())
        reference = at.known("lattice_elastic", name, key)
        for constant, (i, j) in constants.items():
            if constant in reference:
                value, error = float(found.tensor_gpa[i, j]), float(found.errors_gpa[i, j])
                yield Row(f"{name}: {constant}", value, "GPa", reference[constant], source, error)


def phonon_case(at: Setting) -> Iterator[Row]:
    """Phonons of silicon at Γ and X."""
    found = phonons(
        bulk("Si", a=SILICON), at.calculator("float64"), PhononOptions(length=10.0, check_supercell=False)
    )
    yield from _silicon_frequencies(found, at, "PBE forces through phonopy (published, computed here)")


def phonon_dft_case(at: Setting) -> Iterator[Row]:
    """The phonon workflow on published forces of DFT."""
    found = phonons_from_forces(
        _silicon(at),
        [ase.io.read(at.data / "si_phono3py" / "si_pbe_fc3_displacements.xyz", index=0)],
        (2, 2, 2),
    )
    yield from _silicon_frequencies(found, at, "the same forces through phonopy")
    capacity = float(found.thermal.heat_capacity_j_per_k_per_mol[30])
    known = at.known("phonons", "Si_PBE_computed_here", "Cv_300K_J_per_K_per_mol_of_primitive_cell(2 Si)")
    yield Row("Si: heat capacity at 300 K", capacity, "J/K/mol", known, "the same forces through phonopy")


def conductivity_case(at: Setting) -> Iterator[Row]:
    """Lattice thermal conductivity of silicon."""
    options = ConductivityOptions(meshes=(28.0, 35.0), temperatures=(300.0,), isotopes=False)
    found = conductivity(bulk("Si", a=SILICON), at.calculator("float64"), options)
    known = at.known("thermal_conductivity_300K", "Si_phono3py_examples", "PBE", "mesh_11")
    source = "PBE, phono3py example, 11×11×11, relaxation time"
    value = float(found.relaxation_time[-1, 0, :3].mean())
    yield Row("Si: conductivity at 300 K, relaxation time", value, "W/m/K", known, source)
    experiment = at.known("thermal_conductivity_300K", "experiment", "Si_natural")
    yield Row(
        "Si: conductivity at 300 K, full solution, 11×11×11",
        found.isotropic(300.0),
        "W/m/K",
        experiment,
        "experiment, natural silicon, from memory; the mesh is too coarse to compare closely",
    )


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


def salt_case(at: Setting) -> Iterator[Row]:
    """Phonons of rock salt; without Born charges the longitudinal optical mode falls onto the transverse one at Γ."""
    salt = bulk("NaCl", "rocksalt", a=5.69)
    options = PhononOptions(supercell=(3, 3, 3), check_supercell=False)
    found = phonons(salt, at.calculator("float64"), options)
    known = at.known("phonons", "LiF_NaCl_MgO_exp_TO", "NaCl")
    yield Row(
        "NaCl: transverse optical at Γ",
        float(found.points_thz["Γ"][3]),
        "THz",
        known["TO"],
        "experiment, from memory",
    )
    yield Row(
        "NaCl: longitudinal optical at Γ",
        float(found.points_thz["Γ"][5]),
        "THz",
        known["LO"],
        "experiment, from memory; missing here without Born charges (--born), which no potential of ours gives",
    )


def film_case(at: Setting) -> Iterator[Row]:
    """Silicon stretched by 1 % in its plane, and relaxed across it, as a film on a substrate is."""
    calculator = at.calculator("float64")
    rest = relax(bulk("Si", a=SILICON, cubic=True), calculator, symmetry=True).atoms
    options = ConductivityOptions(
        meshes=(28.0,),
        temperatures=(300.0,),
        isotopes=False,
        full=False,
        relax=False,
        supercell=(2, 2, 2),
        cutoff_pair=4.5,
    )
    found = {}
    for name, stretch in (("at rest", 1.0), ("stretched", 1.01)):
        film = rest.copy()
        film.set_cell(rest.cell.array * [stretch, stretch, 1.0], scale_atoms=True)
        if stretch > 1:
            film = relax(film, calculator, cell=False, fmax=0.001).atoms
            lengths = []
            for thickness in (0.985, 0.995, 1.0):
                thin = film.copy()
                thin.set_cell(film.cell.array * [1.0, 1.0, thickness], scale_atoms=True)
                lengths.append(
                    (thickness, -relax(thin, calculator, cell=False, fmax=0.001).atoms.get_stress()[2])
                )
            free = float(np.interp(0.0, *zip(*sorted(((p, x) for x, p in lengths)), strict=True)))
            film.set_cell(film.cell.array * [1.0, 1.0, free], scale_atoms=True)
        found[name] = conductivity(film, calculator, options).relaxation_time[0, 0]
    source = "the same at rest, on the same mesh (9×9×9) and without pairs beyond 4.5 Å"
    reference = float(found["at rest"][:3].mean())
    yield Row(
        "Si film, 1 % strain: conductivity at 300 K in plane",
        float(found["stretched"][:2].mean()),
        "W/m/K",
        reference,
        source,
    )
    yield Row("Si film, 1 % strain: across", float(found["stretched"][2]), "W/m/K", reference, source)


def npt_case(at: Setting) -> Iterator[Row]:
    """Thermal expansion of copper by dynamics at constant pressure: short runs of 32 atoms."""
    options = NPTExpansionOptions(
        temperatures=(300.0, 500.0, 700.0),
        steps=2500,
        timestep=3.0,
        interval=5,
        supercell=(2, 2, 2),
        barostat_time=300.0,
    )
    copper = bulk("Cu", a=3.63, cubic=True)
    found = expansion_npt(copper, at.calculator("float32"), options, at.out / "npt", overwrite=True)
    assert found is not None
    yield Row(
        "Cu: linear expansion, 300 to 700 K, 32 atoms, 7.5 ps each",
        1e6 * found.linear_per_k(500.0),
        "10⁻⁶/K",
        18.3,
        "experiment at 500 K, from memory",
        1e6 * (found.linear_error_per_k(500.0) or 0.0),
    )
    assert found.bulk_modulus_error_gpa is not None
    yield Row(
        "Cu: bulk modulus at 300 K, from fluctuations",
        float(found.bulk_modulus_gpa[0]),
        "GPa",
        at.known("lattice_elastic", "Cu", "C_exp_300K")["B"],
        "experiment, from memory",
        float(found.bulk_modulus_error_gpa[0]),
    )


def expansion_case(at: Setting) -> Iterator[Row]:
    """Thermal expansion of copper and silicon."""
    for symbol, crystal, a, reference in (("Cu", "fcc", 3.63, 16.5), ("Si", "diamond", SILICON, 2.6)):
        options = ExpansionOptions(length=8.0, volumes=7, highest=500.0, mesh=40.0)
        found = expansion(bulk(symbol, crystal, a=a), at.calculator("float64"), options)
        yield Row(
            f"{symbol}: linear expansion at 300 K",
            1e6 * found.linear_per_k(300.0),
            "10⁻⁶/K",
            reference,
            "experiment, from memory",
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


CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "dft phonons": phonon_dft_case,
    "dft conductivity": conductivity_dft_case,
    "dft diffusion": diffusion_dft_case,
    "dft expansion": expansion_dft_case,
    "eos": eos_case,
    "relax": relax_case,
    "elastic": elastic_case,
    "phonons": phonon_case,
    "md": md_case,
    "phonons salt": salt_case,
    "neb": neb_case,
    "neb lithium": lithium_case,
    "expansion": expansion_case,
    "expansion npt": npt_case,
    "conductivity": conductivity_case,
    "conductivity film": film_case,
    "diffusion": diffusion_case,
    "diffusion copper": copper_diffusion_case,
    "melt-quench": glass_case,
    "green-kubo": lambda at: (Row(*numbers) for numbers in heat_cases.glass(at)),
    "film": lambda at: (Row(*numbers) for numbers in heat_cases.film(at)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="7net-0", help="name or file of a potential")
    parser.add_argument("--only", nargs="*", default=list(CASES), help=f"of: dft, {', '.join(CASES)}")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("applications"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.shared / "data"
    setting = Setting(_calculators(options.model), data, References(data / "reference"), options.out)
    wanted = [
        name for name in CASES if any(name == word or name.startswith(f"{word} ") for word in options.only)
    ]
    path = options.out / "applications.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in wanted:
        if name in done:
            continue
        began = time.monotonic()
        rows = [asdict(row) for row in CASES[name](setting)]
        done[name] = {
            "model": None if name.startswith("dft") else options.model,
            "seconds": round(time.monotonic() - began, 1),
            "rows": rows,
            "conditions": machine.conditions(("equipes", "torch", "ase", "phonopy", "phono3py")),
        }
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {done[name]['seconds']} s")
    page = "\n".join(_page(done)) + "\n"
    (options.out / "applications.md").write_text(page)
    print(page)


def _page(done: dict[str, Any]) -> Iterator[str]:
    yield "| case | quantity | ours | reference | unit | source of the reference | s |"
    yield "|---|---|---|---|---|---|---|"
    for name in (case for case in CASES if case in done):
        entry = done[name]
        label = name if entry["model"] is None else f"{name}, {Path(entry['model']).stem}"
        for number, row in enumerate(entry["rows"]):
            ours = f"{row['ours']:.4g}" + ("" if row["error"] is None else f" ± {row['error']:.2g}")
            reference = row["reference"]
            if isinstance(reference, float | int):
                reference = f"{reference:.4g}"
            seconds = f"{entry['seconds']:.0f}" if number == 0 else ""
            yield (
                f"| {label if number == 0 else ''} | {row['quantity']} | {ours} | {reference} | {row['unit']} |"
                f" {row['source']} | {seconds} |"
            )
    last = next(reversed(done.values()))
    total = sum(entry["seconds"] for entry in done.values())
    yield ""
    yield f"{total / 60:.0f} minutes in all; {machine.sentence(last['conditions'])}."


def _calculators(model: str) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def calculator(dtype: str) -> Any:
        from equipes.calculators import Calculator

        if dtype not in loaded:
            loaded[dtype] = Calculator(model, dtype=dtype, freeze=True)
        return loaded[dtype]

    return calculator


def _silicon(at: Setting) -> Atoms:
    return ase.io.read(at.data / "si_phono3py" / "Si-PBE_POSCAR-unitcell", format="vasp")


def _silicon_frequencies(found: Any, at: Setting, source: str) -> Iterator[Row]:
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


if __name__ == "__main__":
    main()
