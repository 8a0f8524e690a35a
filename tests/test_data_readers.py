"""Reading and writing frames: every layout gives the same labels, and every broken file its one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from equipes.data import Frame, LabelKeys, Units, read_frames, write_frames
from equipes.data.labels import USUAL_KEYS
from equipes.errors import InputError

DATA = Path(__file__).parent / "data"
KCAL = Units(energy="kcal/mol", length="Ang")
# Independent of the package: 1 kcal = 4184 J, 1 eV = 1.602176634e-19 J, Avogadro's number.
KCAL_PER_MOL = 4184 / 6.02214076e23 / 1.602176634e-19

XYZ = """2
Lattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3{columns} {info} pbc="T T T"
Cu 0 0 0{first}
O 1 1 2{second}
"""


def xyz(path: Path, info: str = "", columns: str = "", first: str = "", second: str = "") -> Path:
    path.write_text(XYZ.format(info=info, columns=columns, first=first, second=second))
    return path


def fails(message: str, path: object, **options: object) -> None:
    """Reading raises one sentence that names the file and matches `message`."""
    with pytest.raises(InputError, match=message) as raised:
        read_frames(path, **options)
    assert Path(str(path)).name in str(raised.value)
    assert "\n" not in str(raised.value)


def same(a: Frame, b: Frame) -> bool:
    def equal(x: np.ndarray | None, y: np.ndarray | None) -> bool:
        return (x is None) == (y is None) and (x is None or np.array_equal(x, y))

    return (
        np.array_equal(a.atoms.numbers, b.atoms.numbers)
        and np.array_equal(a.atoms.positions, b.atoms.positions)
        and np.array_equal(a.atoms.cell.array, b.atoms.cell.array)
        and np.array_equal(a.atoms.pbc, b.atoms.pbc)
        and a.energy == b.energy
        and equal(a.forces, b.forces)
        and equal(a.stress, b.stress)
        and a.config_type == b.config_type
    )


# --- npz -------------------------------------------------------------------------------------------------------------


def test_rmd17_is_converted_from_kcal_per_mol() -> None:
    raw = np.load(DATA / "ethanol.npz")
    frames = read_frames(DATA / "ethanol.npz", units=KCAL)
    assert [frame.index for frame in frames] == list(range(len(raw["energies"])))
    for i, frame in enumerate(frames):
        assert frame.energy == pytest.approx(raw["energies"][i] * KCAL_PER_MOL, rel=1e-6)
        np.testing.assert_allclose(frame.forces, raw["forces"][i] * KCAL_PER_MOL, rtol=1e-6)
        np.testing.assert_array_equal(frame.atoms.positions, raw["coords"][i])
        np.testing.assert_array_equal(frame.atoms.numbers, raw["nuclear_charges"])
        assert frame.stress is None and not frame.atoms.pbc.any()


def md17(path: Path, **changes: object) -> Path:
    raw = np.load(DATA / "ethanol.npz")
    arrays = {
        "z": raw["nuclear_charges"],
        "R": raw["coords"],
        "E": raw["energies"][:, None],
        "F": raw["forces"],
        "name": np.array(b"ethanol"),
    } | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_md17_layout_gives_the_frames_of_rmd17(tmp_path: Path) -> None:
    ours = read_frames(md17(tmp_path / "md17.npz"), units=KCAL)
    assert all(map(same, ours, read_frames(DATA / "ethanol.npz", units=KCAL)))


def test_npz_units_must_be_declared_by_the_user_or_the_file(tmp_path: Path) -> None:
    fails(r"does not say its units; set data\.units.*kcal/mol", DATA / "ethanol.npz")
    stated = md17(tmp_path / "stated.npz", e_unit=np.array("kcal/mol"), r_unit=np.array("Ang"))
    assert same(read_frames(stated)[0], read_frames(DATA / "ethanol.npz", units=KCAL)[0])
    fails("energy is in kcal/mol, but data.units.energy is eV", stated, units=Units())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": np.zeros((12, 9))}, r"positions have shape \(12, 9\)"),
        ({"R": np.zeros((11, 9, 3))}, r"'E' has shape \(12, 1\).*\(11,\)"),
        ({"F": np.zeros((12, 8, 3))}, r"'F' has shape \(12, 8, 3\).*\(12, 9, 3\)"),
        ({"E": np.zeros((12, 9))}, r"'E' has shape \(12, 9\)"),
        ({"z": np.full(8, 6)}, r"atomic numbers have shape \(8,\)"),
        ({"z": np.zeros(9, dtype=int)}, "from 1 to 118"),
        ({"z": None}, r"no atomic numbers \(looked for 'nuclear_charges'.*there are 'R', 'E', 'F', 'name'"),
        ({"R": None}, "no positions"),
        ({"lattice": np.eye(3)}, "periodic npz files are not read"),
        ({"E": np.array(["low"] * 12)}, "'E' does not hold numbers"),
        ({"E": np.array([None] * 12)}, "'E' holds pickled Python objects, which are not loaded"),
    ],
)
def test_npz_of_a_wrong_shape(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    fails(message, md17(tmp_path / "bad.npz", **changes), units=KCAL)


def test_npz_of_python_objects_beside_the_labels(tmp_path: Path) -> None:
    path = md17(tmp_path / "named.npz", name=np.array([{"a": 1}], dtype=object))
    assert len(read_frames(path, units=KCAL)) == 12


def test_npz_that_is_none(tmp_path: Path) -> None:
    whole = (DATA / "ethanol.npz").read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "text": b"not numbers",
        "flipped": b"PK" + bytes(500),
    }.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        fails("not a whole npz file", path, units=KCAL)
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    fails("not a whole npz file", tmp_path / "damaged.npz", units=KCAL)
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    fails("a single array", tmp_path / "single.npz", units=KCAL)


def test_npz_arrays_by_configured_name(tmp_path: Path) -> None:
    raw = np.load(DATA / "ethanol.npz")
    path = md17(tmp_path / "two.npz", old_energies=raw["energies"] + 1)
    shifted = read_frames(path, units=KCAL, keys=LabelKeys(energy="old_energies"))[0]
    assert shifted.energy == pytest.approx((raw["energies"][0] + 1) * KCAL_PER_MOL, rel=1e-6)
    fails(
        "no array 'ccsd'.*'old_energies'.*data.keys.energy", path, units=KCAL, keys=LabelKeys(energy="ccsd")
    )


# --- labels and their keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", USUAL_KEYS["energy"])
def test_usual_keys_of_energy(tmp_path: Path, key: str) -> None:
    (frame,) = read_frames(xyz(tmp_path / "a.xyz", f"{key}=-3.25"))
    assert frame.energy == -3.25 and frame.forces is None and frame.stress is None
    assert frame.keys.energy == key


@pytest.mark.parametrize("key", USUAL_KEYS["forces"])
def test_usual_keys_of_forces(tmp_path: Path, key: str) -> None:
    path = xyz(tmp_path / "a.xyz", columns=f":{key}:R:3", first=" 1 2 3", second=" -1 -2 -3.5")
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.forces, [[1, 2, 3], [-1, -2, -3.5]])
    assert frame.energy is None


NINE, SIX = "1 6 5 6 2 4 5 4 3", "1 2 3 4 5 6"  # xx yy zz yz xz xy = 1 2 3 4 5 6
TENSOR = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]], dtype=float)


@pytest.mark.parametrize(
    ("key", "numbers"),
    [(key, NINE) for key in USUAL_KEYS["stress"]]
    # Under these two names ASE takes nine numbers only.
    + [(key, SIX) for key in USUAL_KEYS["stress"] if key not in ("stress", "virial")],
)
def test_usual_keys_of_stress_and_virial(tmp_path: Path, key: str, numbers: str) -> None:
    (frame,) = read_frames(xyz(tmp_path / "a.xyz", f'{key}="{numbers}"'))
    expected = -TENSOR / (4 * 5 * 6) if "virial" in key else TENSOR
    np.testing.assert_allclose(frame.stress, expected, rtol=1e-14)


def test_the_stress_of_a_virial_is_that_of_ase() -> None:
    # A compressed spring pushes outwards: its virial -dE/dstrain is positive, its stress (tensile positive) negative.
    (frame,) = [f for f in read_frames(DATA / "data_copper_volumes.xyz") if f.index == 0]
    assert np.trace(frame.stress) < 0  # the smallest volume
    assert frame.atoms.cell.volume == min(
        f.atoms.cell.volume for f in read_frames(DATA / "data_copper_volumes.xyz")
    )


def test_a_virial_stress_is_a_stress(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", f'virial_stress="{NINE}"')
    assert read_frames(path)[0].stress is None
    np.testing.assert_array_equal(read_frames(path, keys=LabelKeys(stress="virial_stress"))[0].stress, TENSOR)


def test_keys_that_disagree_must_be_chosen(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", "energy=-1.0 REF_energy=-2.0")
    fails("frame 0: 'energy' and 'REF_energy' differ; set data.keys.energy", path)
    assert read_frames(path, keys=LabelKeys(energy="REF_energy"))[0].energy == -2.0
    assert read_frames(path, keys=LabelKeys(energy="energy"))[0].energy == -1.0
    assert read_frames(xyz(tmp_path / "b.xyz", "energy=-1.0 REF_energy=-1.0"))[0].energy == -1.0


def test_a_configured_key_that_no_frame_has(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", "energy=-1.0 ccsd=-2.0")
    fails("no frame has 'cc' .*'ccsd'.*'energy'.*set data.keys.forces", path, keys=LabelKeys(forces="cc"))
    assert read_frames(path, keys=LabelKeys(energy="ccsd"))[0].energy == -2.0


def test_missing_labels_are_none_not_invented(tmp_path: Path) -> None:
    path = tmp_path / "mixed.xyz"
    with_forces = XYZ.format(info="energy=1.5", columns=":forces:R:3", first=" 1 0 0", second=" -1 0 0")
    path.write_text(with_forces + XYZ.format(info=f'stress="{NINE}"', columns="", first="", second=""))
    first, second = read_frames(path)
    assert first.energy == 1.5 and first.forces is not None and first.stress is None
    assert second.energy is None and second.forces is None and second.stress is not None


def test_free_energy_is_a_last_resort_and_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = xyz(tmp_path / "both.xyz", "energy=-1.0 free_energy=-1.5")
    assert read_frames(both)[0].energy == -1.0
    assert not caplog.messages
    only = xyz(tmp_path / "only.xyz", "free_energy=-1.5")
    assert read_frames(only)[0].energy == -1.5
    assert re.search("only.xyz: 1 frames have only a 'free_energy'", caplog.text)
    caplog.clear()
    assert read_frames(both, keys=LabelKeys(energy="free_energy"))[0].energy == -1.5
    assert not caplog.messages


def test_the_kind_of_configuration(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", "energy=0.0 config_type=surface phase=liquid")
    assert read_frames(path)[0].config_type == "surface"
    assert read_frames(path, keys=LabelKeys(config_type="phase"))[0].config_type == "liquid"


def test_forces_on_constrained_atoms_are_kept(tmp_path: Path) -> None:
    atoms = Atoms("CuO", positions=[[0, 0, 0], [0, 0, 2]])
    atoms.set_constraint(FixAtoms([0]))
    forces = np.array([[0, 0, 1.25], [0, 0, -1.25]])
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=forces)
    ase.io.write(tmp_path / "fixed.traj", atoms)
    assert not ase.io.read(tmp_path / "fixed.traj").get_forces()[0].any()  # what ASE gives
    np.testing.assert_array_equal(read_frames(tmp_path / "fixed.traj")[0].forces, forces)


def test_columns_and_data_of_a_database(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(
            Atoms("Cu"), dft_energy=-4.5, data={"forces": [[1.0, 2.0, 3.0]], "config_type": "atom"}
        )
    (frame,) = read_frames(tmp_path / "a.db")
    assert frame.energy == -4.5 and frame.config_type == "atom"
    np.testing.assert_array_equal(frame.forces, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"info": "energy=low"}, "frame 0: 'energy' is 'low', not numbers"),
        ({"info": 'energy="1 2"'}, r"frame 0: 'energy' has shape \(2,\)"),
        ({"columns": ":forces:R:2", "first": " 1 2", "second": " 1 2"}, r"'forces' has shape \(2, 2\)"),
        ({"info": 'REF_stress="1 2 3 4"'}, "9 numbers, or 6 in the order"),
        ({"info": 'REF_stress="1 2 3 4 5 6 7 8 9"'}, "'REF_stress' is not a symmetric tensor"),
    ],
)
def test_labels_of_a_wrong_shape(tmp_path: Path, text: dict[str, str], message: str) -> None:
    fails(message, xyz(tmp_path / "a.xyz", **text))


def test_stress_without_a_volume(tmp_path: Path) -> None:
    text = '1\nProperties=species:S:1:pos:R:3 energy=1.0 stress="{}" pbc="F F F"\nCu 0 0 0\n'
    (tmp_path / "zeros.xyz").write_text(text.format("0 0 0 0 0 0 0 0 0"))
    assert read_frames(tmp_path / "zeros.xyz")[0].stress is None
    in_a_box = text.replace("Properties", 'Lattice="9 0 0 0 9 0 0 0 9" Properties')
    (tmp_path / "box.xyz").write_text(in_a_box.format("0 0 0 0 0 0 0 0 0"))
    assert read_frames(tmp_path / "box.xyz")[0].stress is None
    (tmp_path / "bulk.xyz").write_text(in_a_box.format("0 0 0 0 0 0 0 0 0").replace("F F F", "T T T"))
    np.testing.assert_array_equal(read_frames(tmp_path / "bulk.xyz")[0].stress, np.zeros((3, 3)))
    (tmp_path / "stress.xyz").write_text(text.format(NINE))
    fails("frame 0: 'stress' is given but the cell has no volume", tmp_path / "stress.xyz")


# --- units of other files --------------------------------------------------------------------------------------------


def test_declared_units_hold_for_extended_xyz(tmp_path: Path) -> None:
    info = f'energy=-1.0 stress="{NINE}"'
    path = xyz(tmp_path / "a.xyz", info, columns=":forces:R:3", first=" 1 2 3", second=" 0 0 0")
    (frame,) = read_frames(path, units=Units(energy="Ha", length="Bohr"))
    assert frame.energy == pytest.approx(-27.211386, rel=1e-6)
    np.testing.assert_allclose(frame.atoms.positions[1], np.array([1, 1, 2]) * 0.52917721, rtol=1e-7)
    np.testing.assert_allclose(frame.atoms.cell.lengths(), np.array([4, 5, 6]) * 0.52917721, rtol=1e-7)
    np.testing.assert_allclose(frame.forces[0], np.array([1, 2, 3]) * 51.422067, rtol=1e-6)
    np.testing.assert_allclose(frame.stress, TENSOR * 183.63153, rtol=1e-6)
    (frame,) = read_frames(path, units=Units(forces="-Ha/Bohr", stress="-kbar"))
    assert frame.energy == -1.0
    np.testing.assert_allclose(frame.forces[0], -np.array([1, 2, 3]) * 51.422067, rtol=1e-6)
    np.testing.assert_allclose(frame.stress, -TENSOR / 1602.1766, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("eV", 1),
        ("meV", 1e-3),
        ("kcal/mol", KCAL_PER_MOL),
        ("kJ/mol", KCAL_PER_MOL / 4.184),
        ("hartree", 27.211386),
    ],
)
def test_energy_units(name: str, factor: float) -> None:
    assert Units(energy=name).to_ev == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("GPa", 1 / 160.21766),
        ("kbar", 1 / 1602.1766),
        ("-GPa", -1 / 160.21766),
        ("eV/Ang^3", 1),
        ("-Ha/Bohr3", -183.63153),
    ],
)
def test_stress_units(name: str, factor: float) -> None:
    assert Units(stress=name).to_ev_per_angstrom3 == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"energy": "kcal"}, {"energy": "MeV"}, {"length": "mm"}, {"forces": "N"}, {"stress": "atm"}]
)
def test_unknown_units(wrong: dict[str, str]) -> None:
    (quantity,) = wrong
    with pytest.raises(InputError, match=rf"unknown unit .* for data\.units\.{quantity}"):
        Units(**wrong)


def test_codes_with_units_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "OUTCAR").write_text("any")
    fails("carry their units", tmp_path / "OUTCAR", units=KCAL)


# --- files -----------------------------------------------------------------------------------------------------------


def test_several_files_a_directory_and_a_pattern(tmp_path: Path) -> None:
    first = xyz(tmp_path / "b.xyz", "energy=1.0")
    second = xyz(tmp_path / "a.xyz", "energy=2.0")
    (tmp_path / "notes.txt").write_text("no data")
    assert [f.energy for f in read_frames([first, second])] == [1.0, 2.0]
    assert [f.energy for f in read_frames(tmp_path)] == [2.0, 1.0]
    assert [f.energy for f in read_frames(f"{tmp_path}/*.xyz")] == [2.0, 1.0]
    assert read_frames(first)[0].label == f"{first} frame 0"
    assert read_frames(xyz(tmp_path / "c@0.xyz", "energy=3.0"))[0].energy == 3.0  # "@" means something to ASE


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    fails("no such file", tmp_path / "missing.xyz")
    fails("no file matches this pattern", tmp_path / "*.xyz")
    fails("no data files in this directory", tmp_path)
    (tmp_path / "empty.xyz").touch()
    fails("the file is empty", tmp_path / "empty.xyz")
    (tmp_path / "blank.xyz").write_text("\n\n")
    fails("no frames|cannot be read", tmp_path / "blank.xyz")
    with pytest.raises(InputError, match="no data files given"):
        read_frames([])


def test_files_that_break_off(tmp_path: Path) -> None:
    whole = (DATA / "data_copper_volumes.xyz").read_text()
    (tmp_path / "cut.xyz").write_text(whole[: len(whole) * 2 // 3])
    fails("cannot be read", tmp_path / "cut.xyz")
    (tmp_path / "typo.xyz").write_text(whole[:-30] + "1.0 x.0 2.0\n")
    fails("cannot be read after 10 whole frames .*x.0", tmp_path / "typo.xyz")
    (tmp_path / "text.xyz").write_text("hello\nworld\n")
    fails("cannot be read", tmp_path / "text.xyz")
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    fails("cannot be read", tmp_path / "bad.db")


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "db", "traj", "json"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path, suffix: str) -> None:
    frames = read_frames(DATA / "ethanol.npz", units=KCAL)[:3] + read_frames(DATA / "hafnia.xyz")
    bulk = frames[-1]
    frames += [
        replace(bulk, forces=None, config_type=None),
        replace(bulk, energy=None, stress=None, config_type='say "3" \\ or so'),
        replace(bulk, config_type="17"),
    ]
    path = tmp_path / f"all.{suffix}"
    write_frames(frames, path)
    assert all(map(same, read_frames(path), frames))


def test_ase_reads_what_is_written(tmp_path: Path) -> None:
    frames = read_frames(DATA / "hafnia.xyz")
    write_frames(frames, tmp_path / "a.xyz")
    for atoms, frame in zip(ase.io.read(tmp_path / "a.xyz", ":"), frames, strict=True):
        assert atoms.get_potential_energy() == frame.energy
        np.testing.assert_array_equal(atoms.get_forces(), frame.forces)
        np.testing.assert_array_equal(atoms.get_stress(voigt=False), frame.stress)
        assert atoms.info == {"config_type": frame.config_type}


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    frame = Frame(Atoms("H"), np.float64(-13.25), None, None, None, "made.xyz", 0)
    for name in ("frames.xyz", "frames.db"):
        write_frames([frame], tmp_path / name)
        assert read_frames(tmp_path / name)[0].energy == -13.25


def test_writing_refuses(tmp_path: Path) -> None:
    frames = read_frames(DATA / "hafnia.xyz")
    path = tmp_path / "a.xyz"
    path.write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        write_frames(frames, path)
    assert path.read_text() == "precious"
    with pytest.raises(InputError, match=r"unknown format '\.csv'"):
        write_frames(frames, tmp_path / "a.csv")
    with pytest.raises(InputError, match="no frames"):
        write_frames([], tmp_path / "b.xyz")
    write_frames(frames, path, overwrite=True)
    assert len(read_frames(path)) == len(frames)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.xyz"]


def test_the_shared_samples_convert_as_the_constants_of_ase(shared_data: Path) -> None:
    path = shared_data / "data/rmd17/rmd17_aspirin_train_01.npz"
    frame = read_frames(path, units=KCAL)[5]
    assert frame.energy == pytest.approx(np.load(path)["energies"][5] * units.kcal / units.mol, rel=1e-12)
