"""What all tests share: one thread, a deterministic hypothesis, the data beside the repository, a few structures."""

from __future__ import annotations

import os

# Before torch is imported: the systems in the tests are so small that a second thread only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import ase.build
import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, Phase, settings

TESTS = Path(__file__).resolve().parent
pytest.register_assert_rewrite("laws")

_COMMON = {
    "deadline": None,
    "database": None,
    # The laws are methods that hold no state, asked as tests and, of broken potentials, directly.
    "suppress_health_check": [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
}
_PHASES = [
    Phase.explicit,
    Phase.reuse,
    Phase.generate,
    Phase.shrink,
]  # explanations of failures take too long here
# The suite runs in minutes on two cores and the same examples every time; `--hypothesis-profile=thorough` searches.
settings.register_profile("quick", max_examples=3, derandomize=True, phases=_PHASES, **_COMMON)
settings.register_profile("thorough", max_examples=100, **_COMMON)
# To show that a check turns red it is enough to find the first failure: nothing is shrunk.
settings.register_profile(
    "first_failure",
    max_examples=8,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    **_COMMON,
)
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data and goldens: `EQUIPES_SHARED`, or `../shared` beside the repository.

    A test that asks for it is skipped where the folder is absent, and fails instead with `EQUIPES_REQUIRE_SHARED=1`.
    """
    folder = Path(os.environ.get("EQUIPES_SHARED") or TESTS.parent.parent / "shared")
    if not folder.is_dir():
        reason = f"no reference data at {folder} (set EQUIPES_SHARED to their folder)"
        if os.environ.get("EQUIPES_REQUIRE_SHARED") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder


@pytest.fixture
def first_failure() -> Iterator[None]:
    """Hypothesis stops at the first failing example, for tests that expect a check to fail."""
    settings.load_profile("first_failure")
    yield
    settings.load_profile("quick")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture
def water() -> Atoms:
    """One bent molecule without a cell."""
    return Atoms("OHH", positions=[[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.05, -0.75, -0.5]])


@pytest.fixture
def copper() -> Atoms:
    """One atom in its primitive cell, smaller than any usual cutoff."""
    return ase.build.bulk("Cu", "fcc", a=3.61)


@pytest.fixture
def rattled_oxide() -> Atoms:
    """Eight atoms of a rock-salt cell with every symmetry broken."""
    atoms = ase.build.bulk("CuO", "rocksalt", a=4.25, cubic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture
def slab() -> Atoms:
    """Two layers, periodic in two directions only."""
    atoms = ase.build.fcc111("Cu", size=(1, 1, 2), a=3.61, vacuum=5.0)
    atoms.pbc = (True, True, False)
    atoms.rattle(0.05, seed=4)
    return atoms


@pytest.fixture(scope="session")
def published() -> Path:
    """The published SevenNet-0 checkpoint (11 July 2024): `EQUIPES_SEVENNET`, or that of an installed `sevenn`."""
    from equipes.foundation.fetch import find_installed

    path = (
        Path(os.environ["EQUIPES_SEVENNET"])
        if os.environ.get("EQUIPES_SEVENNET")
        else find_installed("7net-0")
    )
    if path is None or not path.is_file():
        pytest.skip("no checkpoint of SevenNet-0 (set EQUIPES_SEVENNET to checkpoint_sevennet_0.pth)")
    return path
