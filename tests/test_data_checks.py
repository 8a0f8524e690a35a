"""Checks of data: silent on good data, loud on each kind of fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from equipes.data import Finding, Frame, Units, check_frames, read_frames, work_ratios
from equipes.data.consistency import consistency_findings
from equipes.data.duplicates import duplicate_pairs

DATA = Path(__file__).parent / "data"


def ethanol() -> list[Frame]:
    return read_frames(DATA / "ethanol.npz", units=Units("kcal/mol"))


def volumes() -> list[Frame]:
    return read_frames(DATA / "data_copper_volumes.xyz")


def displaced() -> list[Frame]:
    return read_frames(DATA / "data_silicon_displaced.xyz")


def found(code: str, *frames: Frame, **splits: Sequence[Frame]) -> list[Finding]:
    return [f for f in check_frames(splits or {"data": frames}) if f.code == code]


def the(code: str, *frames: Frame, **splits: Sequence[Frame]) -> Finding:
    """The one finding of a kind; its message is one sentence, with a frame or file in it."""
    (finding,) = found(code, *frames, **splits)
    assert "\n" not in finding.message
    return finding


def with_stress(frames: Sequence[Frame], factor: float) -> list[Frame]:
    return [replace(frame, stress=frame.stress * factor) for frame in frames]


@pytest.mark.parametrize("frames", [ethanol, volumes, displaced])
def test_good_data_is_silent(frames: Callable[[], list[Frame]]) -> None:
    assert check_frames({"train": frames()}) == []


def test_samples_of_others_are_silent() -> None:
    for name in ("hafnia.xyz", "silicon.xyz"):
        assert check_frames({"train": read_frames(DATA / name)}) == []


# --- labels ----------------------------------------------------------------------------------------------------------


def test_no_labels_at_all() -> None:
    bare = [replace(frame, energy=None, forces=None) for frame in ethanol()]
    finding = the("no-labels", train=ethanol()[:6], test=bare[6:])
    assert finding.severity == "error" and finding.message.startswith("test: no frame of")
    assert "data.keys" in finding.message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_not_finite(value: float) -> None:
    frames = ethanol()
    forces = frames[3].forces.copy()
    forces[5, 1] = value
    finding = the("not-finite", *frames[:3], replace(frames[3], forces=forces), *frames[4:])
    assert finding.severity == "error" and finding.frames == (frames[3].label,)
    assert "frame 3: forces of atom 5 (H) are not finite" in finding.message
    assert (
        "frame 4: energy is not finite"
        in the("not-finite", *frames[:4], replace(frames[4], energy=value)).message
    )
    cells = volumes()
    stress = cells[2].stress.copy()
    stress[0, 0] = value
    assert "stress is not finite" in the("not-finite", *cells[:2], replace(cells[2], stress=stress)).message


def test_positions_that_are_not_finite() -> None:
    frames = ethanol()
    atoms = frames[1].atoms.copy()
    atoms.positions[2, 0] = np.nan
    assert (
        "frame 1: positions of atom 2"
        in the("not-finite", frames[0], replace(frames[1], atoms=atoms)).message
    )


def test_labels_on_a_part_of_the_frames() -> None:
    frames = ethanol()
    finding = the(
        "partial-labels", *frames[:10], replace(frames[10], forces=None), replace(frames[11], forces=None)
    )
    assert finding.severity == "warning" and "2 of 12 frames have no forces" in finding.message
    atom = replace(frames[0], atoms=Atoms("H"), forces=None)  # nothing is missing there
    assert not found("partial-labels", *frames, atom)


def test_energy_from_free_energy() -> None:
    frames = [replace(frame, keys=replace(frame.keys, energy="free_energy")) for frame in ethanol()]
    assert "12 frames is their 'free_energy'" in the("free-energy", *frames).message


def test_forces_that_do_not_sum_to_zero() -> None:
    frames = ethanol()
    push = np.zeros((9, 3))
    push[4, 2] = 0.5
    finding = the("net-force", *frames[:5], replace(frames[5], forces=frames[5].forces + push))
    assert finding.severity == "warning" and finding.frames == (frames[5].label,)
    assert "up to 0.5 eV/Å" in finding.message


def test_elements_that_only_the_test_has() -> None:
    finding = the("new-elements", train=volumes(), test=displaced())
    assert finding.severity == "error" and "test has Si" in finding.message
    assert not found("new-elements", train=volumes()[:5], test=volumes()[5:])


# --- geometry --------------------------------------------------------------------------------------------------------


def test_atoms_too_close() -> None:
    def bond(length: float) -> Frame:
        return replace(ethanol()[0], atoms=Atoms("H2", positions=[[0, 0, 0], [length, 0, 0]]), forces=None)

    finding = the("close-atoms", bond(0.74), bond(0.45))
    assert finding.severity == "error" and "down to 0.45 Å" in finding.message
    assert not found("close-atoms", bond(0.74), bond(0.51))


def test_atoms_too_close_to_an_image() -> None:
    def chain(period: float) -> Frame:
        atoms = Atoms(
            "H2", positions=[[0.1, 0, 0], [period - 0.2, 0, 0]], cell=[period, 0, 0], pbc=[True, False, False]
        )
        return replace(ethanol()[0], atoms=atoms, forces=None)

    assert "down to 0.3 Å" in the("close-atoms", chain(5.0)).message
    molecule = replace(chain(5.0), atoms=Atoms(chain(5.0).atoms, pbc=False))
    assert not found("close-atoms", molecule)


@pytest.mark.parametrize(
    "cell",
    [[[1, 0, 0], [2, 0, 0], [0, 0, 3]], [[0, 0, 0]] * 3, [[1, 0, 0], [0, 1, 0], [0, 0, np.nan]]],
    ids=["flat", "none", "not finite"],
)
def test_impossible_cells(cell: list[list[float]]) -> None:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], cell=cell, pbc=True)
    frames = [replace(ethanol()[i], atoms=atoms, forces=np.zeros((2, 3))) for i in range(2)]
    assert len(found("geometry", *frames, *ethanol())) == 2


def test_atoms_at_the_same_place() -> None:
    frame = replace(ethanol()[0], atoms=Atoms("H2"), forces=None)
    assert frame.label in the("geometry", frame).message


@given(seed=st.integers(0, 1000))
def test_copies_are_found_and_similar_structures_are_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crystal = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    crystal.rattle(0.05, rng=rng)
    slab = Atoms(crystal, pbc=[True, True, False])
    for atoms in (crystal, slab, molecule("CH3CH2OH")):
        copies = [atoms.copy() for _ in range(6)]
        copies[1].positions += rng.normal(size=3)  # the same, elsewhere
        copies[2].positions = np.round(copies[2].positions, 4)  # the same, from a file with four decimals
        if atoms.pbc.any():
            copies[2].positions[3] += atoms.cell[0]  # and with an atom in another cell
        copies[3].positions[-1, 0] += 2e-3
        copies[4].symbols[0] = "K"
        copies[5].set_cell(atoms.cell * 1.001, scale_atoms=True)
        copies[5].positions[0, 1] += 1e-3  # a molecule has no cell
        assert duplicate_pairs(copies) == [(0, 1), (0, 2)]


def test_cells_of_another_shape_are_not_copies() -> None:
    cells = [[3, 3, 3, 90, 90, angle] for angle in (90, 90.1, 90)]
    assert duplicate_pairs([Atoms("Cu", cell=cell, pbc=True) for cell in cells]) == [(0, 2)]


def test_duplicates_are_found_among_many_alike() -> None:
    rng = np.random.default_rng(0)
    base = bulk("Cu", cubic=True) * (2, 2, 2)
    many = []
    for _ in range(300):
        atoms = base.copy()
        atoms.positions += rng.normal(scale=0.01, size=atoms.positions.shape)
        many.append(atoms)
    many.append(many[17].copy())
    many[-1].positions += 1e-5 * rng.normal(size=(32, 3))
    assert duplicate_pairs(many) == [(17, 300)]


def test_duplicates_across_splits_are_an_error() -> None:
    frames = ethanol()
    leaked = replace(frames[2], source="other.xyz", index=0)
    finding = the("duplicates-across-splits", train=frames[:6], test=[*frames[6:], leaked])
    assert finding.severity == "error"
    assert "1 frames of test are in train too: other.xyz frame 0 = " in finding.message
    assert finding.frames == (frames[2].label, "other.xyz frame 0")


def test_duplicates_within_a_split_are_a_warning() -> None:
    frames = ethanol()
    repeated = replace(frames[2], index=12, energy=frames[2].energy + 0.5)
    finding = the("duplicates", *frames, repeated)
    assert finding.severity == "warning"
    assert "frame 12 = 2 of" in finding.message and "energies differ by up to 0.5 eV" in finding.message


def test_errors_come_first() -> None:
    frames = ethanol()
    findings = check_frames(
        {"train": [*frames, replace(frames[0], index=12)], "test": [replace(frames[1], index=13)]}
    )
    assert [finding.severity for finding in findings] == ["error", "warning"]


# --- energies --------------------------------------------------------------------------------------------------------


def test_energy_outliers() -> None:
    frames = ethanol()
    wrong = replace(frames[7], energy=frames[7].energy + 9.0)
    finding = the("energy-outliers", *frames[:7], wrong, *frames[8:])
    assert finding.severity == "warning" and finding.frames == (wrong.label,)
    assert "up to 0.976 eV/atom" in finding.message


def test_a_wide_distribution_is_not_full_of_outliers() -> None:
    frames = ethanol()
    scan = [replace(frame, energy=frame.energy + 9 * 2.0 * i) for i, frame in enumerate(frames[8:])]
    assert not found("energy-outliers", *frames[:8], *scan)  # a dissociation, say
    assert found("energy-outliers", *frames[:11], scan[-1])


def test_one_enormous_energy_does_not_hide_itself() -> None:
    frames = ethanol() + read_frames(DATA / "hafnia.xyz")
    wrong = replace(frames[7], energy=1e6)
    assert the("energy-outliers", *frames[:7], wrong, *frames[8:]).frames == (wrong.label,)


def test_a_part_in_other_units_is_found() -> None:
    frames = ethanol()
    other = [replace(frame, energy=frame.energy * units.mol / units.kcal) for frame in frames[8:]]
    finding = the("energy-outliers", train=frames[:8], test=other)
    assert set(finding.frames) == {frame.label for frame in other}


# --- units and signs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "suspicion"),
    [
        (-1.0, "data.units.stress to -eV/Ang^3"),
        (1 / units.GPa, "data.units.stress to GPa"),
        (-1 / units.GPa, "data.units.stress to -GPa"),
        (10 / units.GPa, "data.units.stress to kbar"),
        (-10 / units.GPa, "data.units.stress to -kbar"),
        (3.3, "where it should be 1; check units and sign"),
    ],
)
def test_stress_of_a_wrong_unit_or_sign(factor: float, suspicion: str) -> None:
    finding = the("stress-unit", *with_stress(volumes(), factor))
    assert finding.severity == "warning" and suspicion in finding.message


def test_the_remedy_is_one(tmp_path: Path) -> None:
    from equipes.data import write_frames

    write_frames(with_stress(volumes(), -10 / units.GPa), tmp_path / "vasp.xyz")
    assert found("stress-unit", *read_frames(tmp_path / "vasp.xyz"))
    declared = read_frames(tmp_path / "vasp.xyz", units=Units(stress="-kbar"))
    assert check_frames({"train": declared}) == []
    np.testing.assert_allclose(declared[0].stress, volumes()[0].stress, rtol=1e-12)


@pytest.mark.parametrize(
    ("energy", "forces", "suspicion"),
    [
        (1, -1, "set data.units.forces to -eV/Ang"),
        (1, units.mol / units.kcal, "the forces are in kcal/mol/Ang"),
        (1, units.Bohr / units.Hartree, "the forces are in Ha/Bohr"),
        (1 / units.Hartree, 1, "the energies are in Ha"),
        (1 / 64, 1, "the energies are per atom"),
    ],
)
def test_forces_of_a_wrong_unit_or_sign(energy: float, forces: float, suspicion: str) -> None:
    wrong = [replace(f, energy=f.energy * energy, forces=f.forces * forces) for f in displaced()]
    assert suspicion in the("forces-unit", *wrong).message


def test_the_ratio_of_energy_and_work_is_one() -> None:
    forces, stress = work_ratios(displaced())
    assert forces.decided and forces.ratio == pytest.approx(1, abs=2e-3) and stress is None
    forces, stress = work_ratios(volumes())
    # The basis set of these calculations changed with the volume, so energy and stress differ by 13 %.
    assert stress.decided and stress.ratio == pytest.approx(0.87, abs=0.02) and forces is None


def strained_copper(noise: float = 0.0) -> list[Frame]:
    """Cells that change while their atoms move, with energy, forces and stress of an analytical potential."""
    rng = np.random.default_rng(3)
    frames = []
    for index in range(24):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=4e-3, size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.01, rng=rng)
        labelled = atoms.copy()
        labelled.calc = EMT()
        energy = labelled.get_potential_energy() + noise * rng.normal()
        forces, stress = labelled.get_forces(), labelled.get_stress(voigt=False)
        frames.append(Frame(atoms, energy, forces, stress, None, "emt.xyz", index))
    return frames


def test_the_works_of_forces_and_stress_belong_together() -> None:
    _, stress = work_ratios(strained_copper())
    assert stress.ratio == pytest.approx(1, abs=0.04) and stress.agreement > 0.95


def test_pairs_with_little_work_have_little_weight() -> None:
    _, stress = work_ratios(strained_copper(noise=1e-3))  # eV
    assert stress.decided and stress.ratio == pytest.approx(1, abs=0.1)


def test_the_ratio_does_not_care_in_which_cell_an_atom_is() -> None:
    frames = displaced()
    expected, _ = work_ratios(frames)
    for i, frame in enumerate(frames):
        frame.atoms.positions[i] += frame.atoms.cell[i % 3]
    forces, _ = work_ratios(frames)
    assert forces.pairs == expected.pairs and forces.ratio == pytest.approx(expected.ratio, rel=1e-9)


def test_the_ratio_survives_a_few_wrong_labels() -> None:
    frames = displaced()
    frames[4] = replace(frames[4], energy=frames[4].energy + 300)
    forces, _ = work_ratios(frames)
    assert forces.decided and forces.ratio == pytest.approx(1, abs=0.01)
    rng = np.random.default_rng(0)
    random = [replace(frame, energy=rng.normal()) for frame in frames]
    assert not work_ratios(random)[0].decided
    assert not found("forces-unit", *random)


def test_magnitudes() -> None:
    raw = read_frames(DATA / "ethanol.npz", units=Units())  # kcal/mol, taken for eV
    finding = the("forces-magnitude", *raw)
    assert finding.severity == "warning" and "kcal/mol" in finding.message
    assert found("stress-magnitude", *with_stress(volumes(), 10 / units.GPa))


@pytest.mark.parametrize("element", ["Cu", "Si"])
def test_stress_of_mlearn(shared_data: Path, element: str) -> None:
    frames = read_frames(shared_data / f"data/mlearn/{element}_train.xyz")
    assert check_frames({"train": frames}) == []
    forces, stress = work_ratios(frames)
    assert forces.decided and forces.ratio == pytest.approx(1, abs=0.1)
    assert stress.decided and stress.ratio == pytest.approx(1, abs=0.1)
    for factor, suspicion in (
        (-1, "opposite sign"),
        (1 / units.GPa, "in GPa"),
        (-10 / units.GPa, "in kbar with the opposite"),
    ):
        (finding,) = consistency_findings(with_stress(frames, factor))
        assert finding.code == "stress-unit" and suspicion in finding.message


@pytest.mark.parametrize(
    "name",
    [
        "hfo2_sevennet/hfo2_scan",
        "phonopy_examples/si_pbe_volumes_displacements",
        "phonopy_examples/oxides_phonon_displacements",
        "si_nequip_tutorial/si64_aimd",
        "ec_emc_liquid/ec_emc_test",
        "mattersim_benchmarks/mptrj-random-1k",
        "mattersim_benchmarks/random-TP",
    ],
)
def test_no_false_alarm_about_stress(shared_data: Path, name: str) -> None:
    codes = {
        finding.code for finding in check_frames({"train": read_frames(shared_data / f"data/{name}.xyz")})
    }
    assert codes <= {"energy-outliers"}  # random-TP has such on purpose


@pytest.mark.parametrize(
    ("factor", "said"),
    [(-1.0, "opposite sign"), (units.Bohr / units.Hartree, "Ha/Bohr"), (None, "")],
)
def test_forces_of_shuffled_and_turned_molecules(factor: float | None, said: str) -> None:
    rng = np.random.default_rng(2)
    frames = []
    for index in range(60):
        atoms = molecule("CH3OH")
        rest = atoms.get_all_distances()
        atoms.rattle(0.1, rng=rng)
        vectors = atoms.get_all_distances(vector=True)  # [i, j]: from i to j
        lengths = np.linalg.norm(vectors, axis=2) + np.eye(len(atoms))
        stretch = lengths - rest - np.eye(len(atoms))
        # Springs of 10 eV/Å² between all atoms.
        forces = 10.0 * (stretch / lengths)[..., None] * vectors
        energy = 2.5 * float((stretch**2).sum())
        rotation = Rotation.random(rng=rng).as_matrix()
        atoms.positions = atoms.positions @ rotation + rng.normal(size=3)
        label = forces.sum(axis=1) @ rotation * (1.0 if factor is None else factor)
        frames.append(Frame(atoms, energy, label, None, None, "methanol.xyz", index))
    found = [f.message for f in check_frames({"train": frames}) if f.code == "forces-unit"]
    if factor is None:
        assert found == [] and work_ratios(frames)[0].ratio == pytest.approx(1, abs=0.05)
    else:
        assert len(found) == 1 and said in found[0]


def test_a_dissociation_curve_of_coarse_steps_is_no_wrong_unit() -> None:
    frames = []
    for index, x in enumerate(np.linspace(1.0, 9.6, 40)):
        decay = np.exp(-3.3 * (x - 2.0))
        energy, slope = 4.0 * (decay**2 - 2 * decay), 4.0 * -3.3 * (2 * decay**2 - 2 * decay)
        forces = np.array([[0, 0, slope], [0, 0, -slope]])
        atoms = Atoms("Cl2", [[0, 0, 0], [0, 0, x]])
        frames.append(Frame(atoms, energy, forces, None, None, "curve.xyz", index))
    assert not [f for f in check_frames({"train": frames}) if f.code == "forces-unit"]


def test_crystals_without_periodicity() -> None:
    def found(atoms: Atoms) -> list[Finding]:
        frames = [Frame(atoms, -1.0, np.zeros((len(atoms), 3)), None, None, "set.xyz", 0)]
        return [f for f in check_frames({"train": frames}) if f.code == "not-periodic"]

    crystal = bulk("Cu", a=3.6, cubic=True)
    assert found(crystal) == []
    crystal.pbc = False
    (finding,) = found(crystal)
    assert finding.severity == "warning" and "set.xyz frame 0: a cell, but not periodic" in finding.message
    # Clusters and slabs in vacuum, and molecules without a cell, are what they say.
    crystal.center(vacuum=4.0)
    assert found(crystal) == []
    slab = bulk("Cu", a=3.6, cubic=True)
    slab.center(vacuum=6.0, axis=2)
    slab.pbc = False
    assert found(slab) == []
    assert found(molecule("CH3OH")) == []
