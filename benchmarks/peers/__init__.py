"""Other packages, each in a virtual environment of its own, timed on the same structures in the same run.

`peers/create.py` makes the environments. A `Worker` is a process of one of them (or of this
one, for equipes) that has prepared a job and times it when it is asked to, so that programs can take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path.home() / ".cache" / "equipes-peers"
TORCH = "torch==2.13.0"

# Half of a peer's time on large structures goes into page faults of temporary arrays; these settings of glibc spare it
# them. Without them the peers would look worse than they must.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


class MissingEnvironmentError(Exception):
    """A peer's environment has not been made; the message says how to."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with: what pip installs, and which versions to state."""

    requirement: str
    packages: tuple[str, ...]


PEERS = {
    "nequip": Peer("nequip==0.19.1", ("nequip", "e3nn", "torch")),
    "mace": Peer("mace-torch==0.3.16", ("mace-torch", "e3nn", "torch")),
    "sevenn": Peer("sevenn==0.13.0", ("sevenn", "e3nn", "torch")),
    "symmetrix": Peer("symmetrix-xl==0.1.1", ("symmetrix-xl", "torch")),
    "graph-pes": Peer("graph-pes==1.0.2", ("graph-pes", "e3nn", "torch")),
}


def python_of(program: str, environments: Path) -> Path:
    """The interpreter of a program; raises `MissingEnvironmentError`."""
    if program == "equipes":
        return Path(sys.executable)
    python = environments / program / "bin" / "python"
    if not python.exists():
        raise MissingEnvironmentError(
            f"there is no environment of {program} in {environments}; make it with "
            f"`python benchmarks/peers/create.py {program} --environments {environments}`, or leave {program} out "
            "with --peers"
        )
    return python


def frames(structures: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Structures, with energies and forces where they have them, as JSON can hold them; digits are kept."""
    result = []
    for atoms in structures:
        frame = {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
        }
        if atoms.calc is not None:
            frame |= {
                "energy": float(atoms.calc.results["energy"]),
                "forces": atoms.calc.results["forces"].tolist(),
            }
        result.append(frame)
    return result


class Worker:
    """A process that has prepared a job.

    Args:
        program: "equipes" or a name in `PEERS`.
        job: "task", "frames" and whatever the task wants.
        threads: of OpenMP and torch.
        environments: where the peers' environments are.
        tuned_allocator: give it the settings in `ALLOCATOR`.

    Raises:
        MissingEnvironmentError: the program was not installed.
        RuntimeError: the process ended; the message has the end of its log.
    """

    def __init__(
        self,
        program: str,
        job: Mapping[str, Any],
        *,
        threads: int = 1,
        environments: Path = ENVIRONMENTS,
        tuned_allocator: bool = True,
    ) -> None:
        python = python_of(program, environments)
        packages = ("equipes", "torch") if program == "equipes" else PEERS[program].packages
        self.program = program
        self._folder = tempfile.TemporaryDirectory(prefix="equipes-benchmark-")
        folder = Path(self._folder.name)
        (folder / "job.json").write_text(json.dumps({**job, "threads": threads, "packages": packages}))
        self._log_path = folder / "log"
        environment = {
            key: value for key, value in os.environ.items() if key not in ALLOCATOR and key != "PYTHONPATH"
        }
        if program == "equipes":
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        elif tuned_allocator:
            environment |= ALLOCATOR
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        script = HERE / f"run_{program.replace('-', '_')}.py"
        answers, channel = os.pipe()
        self._answers = os.fdopen(answers)
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(script), str(folder / "job.json"), str(channel)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=environment,
                cwd=folder,
                pass_fds=(channel,),
            )
        os.close(channel)
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def time(self, repeats: int = 1) -> list[float]:
        """Seconds of each of so many calls."""
        answer = self.ask(repeats)
        return list(answer["seconds"])

    def ask(self, repeats: int = 1) -> dict[str, Any]:
        """The whole answer: seconds, and the process's peak memory in MB, now and before the job was prepared."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"repeats": repeats}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            log = self._log_path.read_text(errors="replace").splitlines()
            tail = "\n".join(log[-15:])
            raise RuntimeError(f"the process of {self.program} ended; the end of its log:\n{tail}")
        return dict(json.loads(line))


def take_turns(
    workers: Mapping[str, Worker], rounds: int, *, seconds: float = 1.0, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of calls of each program, measured in turn so that what disturbs the machine disturbs all of them.

    In each round a program makes as many calls as fit in `seconds`, at least one.
    """
    pace = {}
    for name, worker in workers.items():
        first = worker.time()[0]
        # The first calls compile and allocate; of slow ones a second is enough, of fast ones there may be more.
        pace[name] = statistics.median(worker.time(warmup if first < 5 else 1))
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name] += worker.time(max(1, min(50, int(seconds / pace[name]))))
    return times
