"""Bad input at the command line: status 2, one sentence that names the culprit, no traceback, no file changed."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from safetensors import safe_open
from safetensors.torch import save_file

import equipes
from command_line import run, run_forked
from equipes.data import Units, read_frames, write_frames

DATA = Path(__file__).parent / "data"
SMALL = ["model.num_layers=1", "model.num_features=2", "model.l_max=1", "train.max_steps=1"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good input, to be spoilt: `ethanol.npz` (kcal/mol), `good.xyz` (eV), `cu.xyz`, and a model of H, C and O."""
    folder = tmp_path_factory.mktemp("originals")
    shutil.copy(DATA / "ethanol.npz", folder)
    write_frames(read_frames(folder / "ethanol.npz", units=Units(energy="kcal/mol")), folder / "good.xyz")
    copper = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    copper.calc = SinglePointCalculator(copper, energy=-7.0, forces=np.zeros((2, 3)))
    ase.io.write(folder / "cu.xyz", copper)
    hyperparameters = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 2}
    equipes.build("nequip", ["H", "C", "O"], hyperparameters, seed=1).save(folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Case:
    """A command, what is done to the good input before it, and words that its complaint must hold."""

    name: str
    command: list[str]
    words: list[str]
    spoil: Callable[[Path], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def _cut_short(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(0.45 * len(content))])

    return spoil


def _edit_frames(change: Callable[[list[Atoms]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        frames = ase.io.read(folder / "good.xyz", ":")
        change(frames)
        ase.io.write(folder / "bad.xyz", frames)

    return spoil


def _nan_force(frames: list[Atoms]) -> None:
    frames[3].calc.results["forces"][2, 1] = np.nan


def _infinite_energy(frames: list[Atoms]) -> None:
    frames[5].calc.results["energy"] = np.inf


def _fused_atoms(frames: list[Atoms]) -> None:
    results = frames[4].calc.results
    frames[4].positions[1] = frames[4].positions[0] + [0.0, 0.0, 0.2]
    frames[4].calc = SinglePointCalculator(frames[4], **results)


def _no_labels(frames: list[Atoms]) -> None:
    for atoms in frames:
        atoms.calc = None


def _write(name: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return spoil


class _Evil:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("owned"),))


def _both(*spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil_all(folder: Path) -> None:
        for one in spoil:
            one(folder)

    return spoil_all


def _pickled_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Evil()))


def _pickled_npz(folder: Path) -> None:
    arrays = dict(np.load(folder / "ethanol.npz"))
    arrays["energies"] = np.array([_Evil()] * 12, dtype=object)
    np.savez(folder / "ethanol.npz", **arrays)


def _edit_header(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata()
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        header = json.loads(metadata["equipes"]) | changes
        save_file(weights, path, metadata={"equipes": json.dumps(header)})

    return spoil


def _foreign_safetensors(folder: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


TRAIN = ["train", "--data", "good.xyz", "--out", "run", *SMALL]
MD = ["md", "model.safetensors", "good.xyz", "--out", "md"]
KCAL = "data.units={energy: kcal/mol, length: Ang}"

CASES = [
    # files
    Case("data file missing", ["train", "--data", "none.xyz", "--out", "run"], ["none.xyz"]),
    Case("model file missing", ["evaluate", "none.safetensors", "good.xyz"], ["none.safetensors"]),
    Case("structure file missing", ["relax", "model.safetensors", "none.xyz"], ["none.xyz"]),
    Case("config missing", ["train", "none.yaml", "--out", "run"], ["none.yaml"]),
    Case("data file empty", ["data", "check", "bad.xyz"], ["bad.xyz", "empty"], _write("bad.xyz", "")),
    Case(
        "data file of another kind",
        ["data", "check", "bad.xyz"],
        ["bad.xyz"],
        _write("bad.xyz", "Dear diary,\ntoday\n"),
    ),
    Case("xyz breaks off", ["data", "check", "good.xyz"], ["good.xyz"], _cut_short("good.xyz")),
    Case(
        "npz breaks off",
        ["train", "--data", "ethanol.npz", "--out", "run", KCAL],
        ["ethanol.npz"],
        _cut_short("ethanol.npz"),
    ),
    Case(
        "npz with pickled objects",
        ["train", "--data", "ethanol.npz", "--out", "run", KCAL],
        ["ethanol.npz", "energies", "pickle"],
        _pickled_npz,
    ),
    # data
    Case(
        "npz without units", ["train", "--data", "ethanol.npz", "--out", "run"], ["ethanol.npz", "data.units"]
    ),
    Case(
        "unknown unit",
        ["train", "--data", "ethanol.npz", "--out", "run", "data.units={energy: kcals, length: Ang}"],
        ["kcals", "kcal/mol"],
    ),
    Case("label key not in the file", [*TRAIN, "data.keys.forces=forcez"], ["forcez", "good.xyz"]),
    Case(
        "no labels",
        ["train", "--data", "bad.xyz", "--out", "run", *SMALL],
        ["bad.xyz", "data.keys"],
        _edit_frames(_no_labels),
    ),
    Case(
        "forces not finite",
        ["train", "--data", "bad.xyz", "--out", "run", *SMALL],
        ["bad.xyz frame 3"],
        _edit_frames(_nan_force),
    ),
    Case(
        "energy not finite",
        ["train", "--data", "bad.xyz", "--out", "run", *SMALL],
        ["bad.xyz frame 5"],
        _edit_frames(_infinite_energy),
    ),
    Case(
        "atoms too close",
        ["train", "--data", "bad.xyz", "--out", "run", *SMALL],
        ["bad.xyz frame 4", "0.2"],
        _edit_frames(_fused_atoms),
    ),
    Case("empty split", [*TRAIN, "data.n_train=0"], ["n_train"]),
    Case("more frames than there are", [*TRAIN, "data.n_train=12", "data.n_val=3"], ["12"]),
    Case("splits overlap by index", [*TRAIN, "data.n_train=[0, 1, 2]", "data.n_val=[2, 3]"], ["2"]),
    Case("splits overlap by file", [*TRAIN, "data.val=good.xyz"], ["12 frames", "good.xyz"]),
    Case("element unknown to the model", ["evaluate", "model.safetensors", "cu.xyz"], ["Cu", "H, C, O"]),
    Case("element unknown in a run", ["relax", "model.safetensors", "cu.xyz"], ["Cu", "H, C, O"]),
    # configuration
    Case("cutoff of zero", [*TRAIN, "model.r_max=0"], ["model.r_max", "greater than 0"]),
    Case(
        "unknown key on the command line", [*TRAIN, "train.max_minuts=1"], ["max_minuts", "train.max_minutes"]
    ),
    Case(
        "unknown key in the file",
        ["train", "bad.yaml", "--out", "run"],
        ["bad.yaml", "n_features", "model.num_features"],
        _write("bad.yaml", "data: {train: good.xyz}\nmodel: {n_features: 8}\n"),
    ),
    Case(
        "malformed YAML",
        ["train", "bad.yaml", "--out", "run"],
        ["bad.yaml line 2"],
        _write("bad.yaml", "data: {train: good.xyz\nmodel: ]\n"),
    ),
    Case("value of a wrong type", [*TRAIN, "train.batch_size=many"], ["train.batch_size", "many"]),
    Case("unknown architecture", [*TRAIN, "model.architecture=perceptron"], ["model.architecture", "nequip"]),
    Case("no data named", ["train", "--out", "run"], ["data"]),
    # models
    Case(
        "model breaks off",
        ["evaluate", "model.safetensors", "good.xyz"],
        ["model.safetensors"],
        _cut_short("model.safetensors"),
    ),
    Case(
        "model is a pickle",
        ["evaluate", "model.safetensors", "good.xyz"],
        ["model.safetensors"],
        _pickled_model,
    ),
    Case(
        "model of another package", ["info", "model.safetensors"], ["model.safetensors"], _foreign_safetensors
    ),
    Case(
        "model of an unknown architecture",
        ["info", "model.safetensors"],
        ["model.safetensors", "gemnet"],
        _edit_header(architecture="gemnet"),
    ),
    Case(
        "model from the future",
        ["info", "model.safetensors"],
        ["model.safetensors", "99"],
        _edit_header(format_version=99),
    ),
    Case(
        "weights of another size",
        ["info", "model.safetensors"],
        ["model.safetensors"],
        _edit_header(hyperparameters={"r_max": 4.0, "num_layers": 3, "l_max": 1, "num_features": 2}),
    ),
    Case("not weights of NequIP", ["convert", "ethanol.npz", "new.safetensors"], ["ethanol.npz"]),
    Case(
        "kernel that does not exist",
        ["evaluate", "model.safetensors", "good.xyz"],
        ["EQUIPES_KERNEL", "warp", "reference"],
        environment={"EQUIPES_KERNEL": "warp"},
    ),
    Case(
        "damaged checkpoint of a training",
        [*TRAIN, "--resume"],
        ["run/checkpoints/last.ckpt"],
        _write("run/checkpoints/last.ckpt", "not a checkpoint"),
    ),
    Case(
        "damaged checkpoint of a dynamics run",
        [*MD, "--ensemble", "nve", "--temperature", "300", "--steps", "5", "--resume"],
        ["md/checkpoint.npz"],
        _write("md/checkpoint.npz", "not a checkpoint"),
    ),
    Case(
        "new training in the place of another is refused",
        ["train", "--data", "bad.xyz", "--out", "run", "--overwrite", *SMALL],
        ["bad.xyz frame 3"],
        _both(_edit_frames(_nan_force), _write("run/model.safetensors", "an earlier one")),
    ),
    Case("crystal wanted", ["elastic", "model.safetensors", "good.xyz", "--out", "new/dir"], ["crystal"]),
    Case(
        "new crystal in the place of another is refused",
        ["elastic", "model.safetensors", "good.xyz", "--out", "run", "--overwrite"],
        ["crystal"],
        _write("run/calculations.npz", "earlier ones"),
    ),
    Case(
        "element unknown in many runs",
        [
            "diffusion",
            "model.safetensors",
            "cu.xyz",
            "--mobile",
            "Cu",
            "--temperature",
            "300",
            "--out",
            "new/dir",
        ],
        ["Cu", "H, C, O"],
    ),
    # output
    Case("output exists", ["predict", "model.safetensors", "good.xyz", "cu.xyz"], ["cu.xyz", "--overwrite"]),
    Case(
        "training directory in use",
        TRAIN,
        ["run", "--overwrite"],
        _write("run/precious.txt", "years of work"),
    ),
    Case(
        "output below a file",
        ["train", "--data", "good.xyz", "--out", "good.xyz/run", *SMALL],
        ["good.xyz/run"],
    ),
    Case(
        "directory of the report missing",
        ["evaluate", "model.safetensors", "good.xyz", "--report", "none/report.html"],
        ["none/report.html"],
    ),
    # simulation
    Case("unknown ensemble", [*MD, "--ensemble", "nph", "--steps", "5"], ["nph", "npt"]),
    Case(
        "temperature below zero",
        [*MD, "--ensemble", "nvt", "--temperature", "-5", "--steps", "5"],
        ["temperature", "-5"],
    ),
    Case(
        "pressure on a molecule",
        [*MD, "--ensemble", "npt", "--temperature", "300", "--steps", "5"],
        ["npt", "periodic"],
    ),
]


def _contents(folder: Path) -> dict[str, bytes | None]:
    """What is in files; None of directories, also of empty ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _assert_one_sentence(shown: subprocess.CompletedProcess[str], words: list[str]) -> None:
    complaint = [line for line in shown.stderr.splitlines() if line.startswith("Error: ")]
    assert shown.returncode == 2, shown.stderr
    assert "Traceback" not in shown.stderr
    assert len(complaint) == 1, shown.stderr
    assert shown.stderr.rstrip().splitlines()[-1] == complaint[0]
    assert [word for word in words if word not in complaint[0]] == [], complaint[0]


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_bad_input(case: Case, originals: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(originals, folder)
    if case.spoil is not None:
        case.spoil(folder)
    before = _contents(folder)
    shown = run_forked(*case.command, cwd=folder, **case.environment)
    _assert_one_sentence(shown, case.words)
    assert _contents(folder) == before


MOUNTED = "mkdir -p disk && mount -t tmpfs {options} tmpfs disk && exec {python} -m equipes {command}"


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        ("-o size=8k", "predict model.safetensors good.xyz disk/out.xyz", ["disk/out.xyz", "full"]),
        ("-o size=8k", "train --data good.xyz --out disk/run " + " ".join(SMALL), ["disk/run", "full"]),
        ("-o ro", "predict model.safetensors good.xyz disk/out.xyz", ["disk/out.xyz", "read-only"]),
    ],
    ids=["predict-on-a-full-disk", "train-on-a-full-disk", "predict-read-only"],
)
def test_bad_disk(options: str, command: str, words: list[str], originals: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(originals, folder)
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "mount -t tmpfs tmpfs /mnt"], check=False).returncode
    ):
        pytest.skip("this system lets nobody mount a small disk of his own (unshare --map-root-user --mount)")
    script = MOUNTED.format(options=options, python=sys.executable, command=command)
    _assert_one_sentence(run(program=[*namespace, script], cwd=folder), words)


def test_what_the_cases_start_from_is_good(originals: Path, tmp_path: Path) -> None:
    """Without spoiling, the commands of the cases work: the errors come from what was spoilt."""
    folder = tmp_path / "work"
    shutil.copytree(originals, folder)
    for command in (
        TRAIN,
        ["evaluate", "run/model.safetensors", "good.xyz"],
        ["relax", "model.safetensors", "good.xyz", "--fmax", "100"],
    ):
        shown = run_forked(*command, cwd=folder)
        assert shown.returncode == 0, shown.stderr
