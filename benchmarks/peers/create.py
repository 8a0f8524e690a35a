"""Makes the virtual environments in which the benchmarks run other packages.

    python benchmarks/peers/create.py                  all of them, about 1.5 GB each
    python benchmarks/peers/create.py nequip sevenn    some of them

Each gets the same version of torch. Where the package index holds builds of torch for GPUs only, give pip the index
of its CPU builds with `--pip --index-url URL`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import ENVIRONMENTS, PEERS, TORCH


def create(name: str, folder: Path, pip_options: list[str]) -> None:
    """One environment; what an interrupted call left is completed."""
    environment, peer = folder / name, PEERS[name]
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(TORCH + "\n")
        constraints.flush()
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-c", constraints.name, TORCH, *pip_options], check=True)
        subprocess.run([*install, "-c", constraints.name, peer.requirement, *pip_options], check=True)
    check = "import torch; assert torch.version.cuda is None, 'this is a torch for GPUs'; print(torch.__version__)"
    torch = subprocess.run([str(python), "-c", check], check=True, capture_output=True, text=True)
    print(f"{name}: {peer.requirement}, torch {torch.stdout.strip()}, in {environment}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; all by default")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder (%(default)s)")
    parser.add_argument("--pip", nargs=argparse.REMAINDER, default=[], help="further options of pip install")
    options = parser.parse_args()
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; the peers are {', '.join(PEERS)}")
    for name in options.peers or PEERS:
        create(name, options.environments, options.pip)


if __name__ == "__main__":
    main()
