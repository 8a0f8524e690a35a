"""Cases of `applications.py` about crystals: lattices, elasticity, phonons, heat, expansion."""

from __future__ import annotations

from collections.abc import Iterator

import ase.io
from application_parts import SILICON, Row, Setting, silicon_frequencies
from ase import Atoms
from ase.build import bulk

from equipes.simulate import equation_of_state, relax
from equipes.simulate.conductivity import ConductivityOptions, conductivity
from equipes.simulate.elastic import ElasticOptions, elastic
from equipes.simulate.expansion import ExpansionOptions, expansion
from equipes.simulate.expansion_npt import NPTExpansionOptions, expansion_npt
from equipes.simulate.phonons import PhononOptions, phonons


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
    yield from silicon_frequencies(found, at, "PBE forces through phonopy (published, computed here)")


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
