"""The command line as a user meets it: one process per command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import equipes
from command_line import run, run_forked
from equipes.cli import output
from equipes.kernels import KERNELS, triton

COMMANDS = (
    "train",
    "schema",
    "evaluate",
    "predict",
    "relax",
    "md",
    "eos",
    "info",
    "models",
    "benchmark",
    "data",
    "convert",
    "doctor",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    hyperparameters = {"r_max": 4.0, "num_layers": 2, "l_max": 1, "num_features": 4, "avg_num_neighbors": 6.0}
    equipes.build("nequip", ["H", "C", "O"], hyperparameters, seed=1).save(path)
    return path


def test_help_names_every_command_and_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from equipes.cli import app, run\n"
        "status = run(app, ['--help'], 'equipes')\n"
        "heavy = {'torch', 'ase', 'lightning', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    named = {
        line.split()[1] for line in shown.stdout.splitlines() if line.startswith("│ ") and line.split()[1:]
    }
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert f"equipes {command}" in shown.stdout
    assert shown.stderr == ""


def test_version_is_the_packages() -> None:
    shown = run("--version")
    assert (shown.returncode, shown.stdout) == (0, f"equipes {equipes.__version__}\n")


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_unless_told_otherwise(given: dict[str, str], spins: str | None) -> None:
    """Said before torch, which reads it once, is imported."""
    code = (
        "import os, sys\n"
        "from equipes.cli import app, main\n"
        "@app.command()\n"
        "def probe(): print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "sys.argv = ['equipes', 'probe']\n"
        "main()\n"
    )
    kept = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept | given, check=True
    )
    assert shown.stdout.split() == [str(spins), "False"]


def test_without_a_command_the_help_is_shown() -> None:
    shown = run()
    assert shown.returncode == 0
    assert "Usage: equipes" in shown.stdout


def test_installed_commands_are_the_ones_documented() -> None:
    scripts = {entry.name: entry.value for entry in metadata.entry_points(group="console_scripts")}
    if "equipes" not in scripts:
        pytest.skip("equipes is not installed, only importable")
    assert scripts["equipes"] == "equipes.cli:main"
    assert scripts["nequip-train"] == "equipes.cli:nequip_train"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["info"],
        ["info", "a", "b"],
        ["info", "--no-such-option"],
        ["md", "a", "b", "--steps", "ten"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert shown.stderr.startswith("Error: ")
    assert "--help" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_info_tells_what_a_model_is(model: Path, tmp_path: Path) -> None:
    shown = run_forked("info", model, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "nequip" in shown.stdout
    assert "H, C, O" in shown.stdout

    as_json = run_forked("info", model, "--json", "-", cwd=tmp_path)
    summary = json.loads(as_json.stdout)  # nothing but JSON on stdout
    assert summary["architecture"] == "nequip"
    assert summary["species"] == ["H", "C", "O"]
    assert summary["cutoff"] == 4.0


def test_json_files_are_not_overwritten(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "info.json"
    target.write_text("precious")
    refused = run_forked("info", model, "--json", target, cwd=tmp_path)
    assert refused.returncode == 2
    assert "info.json exists" in refused.stderr
    assert target.read_text() == "precious"
    assert run_forked("info", model, "--json", target, "--overwrite", cwd=tmp_path).returncode == 0
    assert json.loads(target.read_text())["architecture"] == "nequip"


def test_convert_writes_a_model(tmp_path: Path) -> None:
    source = Path(__file__).parent / "data" / "nequip" / "l2_noparity_readoutmlp_float32.npz"
    target = tmp_path / "converted.safetensors"
    shown = run_forked("convert", source, target, "--json", "-", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["species"] == ["Cu", "O"]
    assert equipes.load(target).species == ("Cu", "O")

    before = target.read_bytes()
    again = run_forked("convert", source, target, cwd=tmp_path)
    assert again.returncode == 2
    assert target.read_bytes() == before


def test_doctor_reports_facts_and_problems() -> None:
    shown = run("doctor", "--json", "-")
    facts = json.loads(shown.stdout)
    assert shown.returncode == (1 if facts["problems"] else 0)
    assert facts["kernel"] == next(iter(KERNELS))
    assert facts["kernels_built"] == list(KERNELS)
    assert facts["kernel_on_gpu"] == ("triton" if triton.installed() else "reference")
    assert facts["versions"]["torch"]
    assert facts["torch_threads"] == 1

    ill = run("doctor", "--json", "-", EQUIPES_KERNEL="warp")
    assert ill.returncode == 1
    assert "EQUIPES_KERNEL=warp" in ill.stderr
    assert any("warp" in problem for problem in json.loads(ill.stdout)["problems"])


def test_developers_see_the_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    assert "Traceback" not in run_forked("info", missing, cwd=tmp_path).stderr
    assert "Traceback" in run_forked("info", missing, cwd=tmp_path, EQUIPES_TRACEBACK="1").stderr
    assert "Traceback" in run_forked("--traceback", "info", missing, cwd=tmp_path).stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the complaint comes at the end, or at the first line
def test_a_closed_pipe_is_silent(unbuffered: str, model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "equipes", "info", str(model), "--json", "-"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()  # as `equipes info … | head -0` does
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_an_interrupt_is_no_traceback(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "equipes", "train", str(config), "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with config.open("w"):  # returns when the command has begun to read
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "Interrupted\n"


def test_an_existing_json_file_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    output.check_json_path(target)
    target.write_text("precious")
    with pytest.raises(equipes.InputError, match=r"numbers\.json exists"):
        output.check_json_path(target)
    output.check_json_path(target, overwrite=True)
    output.check_json_path(Path("-"))


def test_json_is_strict(tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    output.write_json({"nan": float("nan"), "nested": [{"inf": float("inf")}, 1.5, Path("a")]}, target)
    text = target.read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"nan": None, "nested": [{"inf": None}, 1.5, "a"]}
