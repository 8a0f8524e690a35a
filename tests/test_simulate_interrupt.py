"""A run that is killed or stopped from outside, and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipes.simulate import run_md
from equipes.simulate.records import CHECKPOINT, SUMMARY, TABLE, TRAJECTORY
from pair_calculator import PairCalculator, argon, same_record, settings_for

RUNNER = """
import sys, time
sys.path.insert(0, {tests!r})
from pair_calculator import PairCalculator, argon, settings_for
from equipes.simulate import run_md
out, resume = sys.argv[1], sys.argv[2] == "resume"
def slowly(step, row):
    print(step, flush=True)
    time.sleep(0.002)
run_md(argon(), PairCalculator(cutoff=4.9), settings_for("npt", 120), out, resume=resume, on_step=slowly,
       checkpoint_seconds=0.05)
"""


def start_run(out: Path, mode: str) -> subprocess.Popen:
    code = RUNNER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out), mode], stdout=subprocess.PIPE, env=environment, text=True
    )


def follow_to(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if int(line) >= step:
            return


def test_killed_and_continued_it_is_the_same_run(tmp_path: Path) -> None:
    run_md(argon(), PairCalculator(cutoff=4.9), settings_for("npt", 120), tmp_path / "whole")
    out = tmp_path / "killed"
    for mode, step in (("new", 41), ("resume", 85)):
        process = start_run(out, mode)
        follow_to(process, step)
        process.kill()
        process.wait()
    # What a kill in the middle of a write leaves behind.
    with (out / TABLE).open("a") as table, (out / TRAJECTORY).open("a") as trajectory:
        table.write("999,39\n" * 2000)
        trajectory.write("32\nLattice=\n" * 50000)
    run_md(argon(), PairCalculator(cutoff=4.9), settings_for("npt", 120), out, resume=True)
    assert same_record(tmp_path / "whole", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = start_run(out, "new")
    follow_to(process, 20)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 0
    stored = json.loads((out / SUMMARY).read_text())
    assert not stored["completed"]
    assert stored["stopped"] == "interrupted"
    with np.load(out / CHECKPOINT, allow_pickle=False) as checkpoint:
        assert json.loads(str(checkpoint["facts"]))["step"] == stored["steps"] >= 20
    settings = replace(settings_for("npt", 120), steps=stored["steps"] + 2)
    assert run_md(argon(), PairCalculator(cutoff=4.9), settings, out, resume=True).summary["completed"]
