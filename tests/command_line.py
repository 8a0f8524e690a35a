"""Running the command line as a user does: in a process of its own, judged by its status, stdout and stderr."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

EQUIPES = (sys.executable, "-m", "equipes")
_SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(
    *arguments: object, cwd: Path | None = None, program: Sequence[str] = EQUIPES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start `program` anew."""
    return subprocess.run(
        [*program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, **_SETTINGS, **environment},
    )


def run_forked(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `run`, in a copy of this process, which has imported torch and Lightning already: seconds less for each."""
    import lightning.pytorch  # noqa: F401 - once here, not in every copy

    import equipes.cli

    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(60)
                os.chdir(cwd)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os.environ.update(_SETTINGS | environment)
                sys.argv = ["equipes", *map(str, arguments)]
                sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8")
                sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", line_buffering=True)
                equipes.cli.main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(["equipes", *map(str, arguments)], status, *texts)
