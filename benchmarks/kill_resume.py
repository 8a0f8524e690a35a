"""Kill a training ten times at random moments and compare what it ends with, bit for bit, with an undisturbed one.

    python benchmarks/kill_resume.py CONFIG [KEY=VALUE ...] [--kills 10] [--seed 0] [--out DIR]

The config needs a budget in steps or epochs: a budget in minutes ends wherever the clock says.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(arguments: list[str], out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "equipes", "train", *arguments, "--out", str(out), *flags]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the column that a clock decides."""
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


def killed_training(arguments: list[str], out: Path, kills: int, longest: float, rng: random.Random) -> int:
    """Train with up to `kills` interruptions; returns how many there were. SIGKILL mostly, SIGTERM now and then."""
    done = 0
    while True:
        process = subprocess.Popen(
            command(arguments, out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done < kills:
            before = (out / "checkpoints" / "last.ckpt").stat().st_mtime if done else 0.0
            # The clock of the killing starts at the first checkpoint of this run, so that every run gets somewhere.
            while process.poll() is None and _written(out) <= before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, longest))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if rng.random() < 0.8 else signal.SIGTERM)
                done += 1
                print(f"killed {done} times, {_steps(out)} validations so far", flush=True)
        errors = process.communicate()[1]
        if process.returncode == 0:
            return done
        if process.returncode not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            raise SystemExit(f"a run ended with status {process.returncode}:\n{errors}")


def _written(out: Path) -> float:
    try:
        return (out / "checkpoints" / "last.ckpt").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _steps(out: Path) -> int:
    path = out / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="+", metavar="CONFIG [KEY=VALUE ...]")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="kill-resume-"))
    out.mkdir(parents=True, exist_ok=True)
    undisturbed, disturbed = out / "undisturbed", out / "disturbed"

    subprocess.run(command(options.arguments, undisturbed), check=True, stdout=subprocess.DEVNULL)
    seconds = 60 * json.loads((undisturbed / "summary.json").read_text())["minutes"]
    print(f"undisturbed: {seconds:.1f} s of training", flush=True)
    longest = seconds / options.kills
    kills = killed_training(options.arguments, disturbed, options.kills, longest, random.Random(options.seed))
    same_model = digest(undisturbed / "model.safetensors") == digest(disturbed / "model.safetensors")
    same_rows = rows(undisturbed / "metrics.csv") == rows(disturbed / "metrics.csv")
    print(f"killed {kills} times: model {'equal' if same_model else 'DIFFERENT'} bit for bit, ", end="")
    print(f"metrics.csv {'equal' if same_rows else 'DIFFERENT'} ({out})")
    raise SystemExit(0 if same_model and same_rows and kills == options.kills else 1)


if __name__ == "__main__":
    main()
