"""Every workflow, killed without warning in the middle and continued, ends with the numbers of one left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from equipes.simulate import (
    ConductivityOptions,
    DiffusionOptions,
    DiffusionRunOptions,
    ElasticOptions,
    ExpansionOptions,
    NEBOptions,
    PhononOptions,
    Store,
    conductivity,
    diffusion,
    elastic,
    equation_of_state,
    expansion,
    neb,
    phonons,
    relax,
    vacancy_hop,
)
from pair_calculator import PairCalculator, argon

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the test copies its process")

COPPER = bulk("Cu", a=3.6)
HOP = vacancy_hop(bulk("Cu", a=3.59, cubic=True) * (2, 2, 1), 0)
STRAINED = bulk("Cu", a=3.7, cubic=True)
STRAINED.rattle(0.1, seed=1)
HCP = bulk("Cu", "hcp", a=2.55, c=4.2)


@dataclass(frozen=True)
class Case:
    """A workflow: how it is calculated with store and progress, how many calls of progress it lives, what counts."""

    calculate: Callable[[Store, Any], Any]
    lives: int
    numbers: Callable[[Any], np.ndarray]


CASES = {
    "relax": Case(
        lambda store, progress: relax(STRAINED, EMT(), fmax=1e-6, store=store, on_step=progress),
        9,
        lambda result: np.vstack([result.atoms.positions, result.atoms.cell.array]),
    ),
    "phonons": Case(
        lambda store, progress: phonons(
            COPPER,
            EMT(),
            PhononOptions(supercell=(3, 3, 3), mesh=20.0, points=20),
            store=store,
            progress=progress,
        ),
        3,
        lambda result: np.concatenate([band.frequencies_thz for band in result.bands]),
    ),
    "elastic": Case(
        lambda store, progress: elastic(HCP, EMT(), ElasticOptions(), store=store, progress=progress),
        6,
        lambda result: result.tensor_gpa,
    ),
    "eos": Case(
        lambda store, progress: equation_of_state(COPPER, EMT(), points=7, store=store, progress=progress),
        8,
        lambda result: result.energies_ev,
    ),
    "expansion": Case(
        lambda store, progress: expansion(
            COPPER,
            EMT(),
            ExpansionOptions(supercell=(2, 2, 2), volumes=5, mesh=20.0, highest=200.0, step=25.0),
            store=store,
            progress=progress,
        ),
        4,
        lambda result: result.volume_ang3,
    ),
    "conductivity": Case(
        lambda store, progress: conductivity(
            COPPER,
            EMT(),
            ConductivityOptions(
                supercell=(2, 2, 2), meshes=(8.0,), temperatures=(300.0,), full=False, isotopes=False
            ),
            store=store,
            progress=progress,
        ),
        9,
        lambda result: result.relaxation_time,
    ),
    "neb": Case(
        lambda store, progress: neb(
            *HOP, EMT(), NEBOptions(images=3, fmax=0.1), store=store, progress=progress
        ),
        9,
        lambda result: np.array([image.positions for image in result.images]),
    ),
}


def killed_after(calls: int, work: Callable[[Callable[..., None]], Any]) -> None:
    """Do the work in a copy of this process, which is killed (SIGKILL) at its so many-th call of progress."""
    child = os.fork()
    if child == 0:
        try:
            left = calls

            def count(*_: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            work(count)
        finally:
            os._exit(17)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("name", CASES)
def test_a_killed_calculation_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setattr("equipes.simulate.store._SECONDS_BETWEEN_WRITES", 0.0)
    path = tmp_path / "done.npz"

    def work(progress: Callable[..., None]) -> None:
        with Store(path) as store:
            case.calculate(store, progress)

    killed_after(case.lives, work)
    (tmp_path / ".done-half.npz").write_bytes(path.read_bytes()[:100])  # what a kill while writing leaves
    with Store(path, resume=True) as store:
        again = case.calculate(store, lambda *_: None)
        assert store.reused > 0
    alone = case.calculate(Store(), lambda *_: None)
    # To round-off, because linear algebra may depend on where arrays lie in memory; frequencies at Γ are roots of it.
    np.testing.assert_allclose(case.numbers(again), case.numbers(alone), rtol=1e-9, atol=1e-6)


def test_killed_diffusion_goes_on(tmp_path: Path) -> None:
    options = DiffusionRunOptions(
        temperatures=(250.0, 400.0),
        analysis=DiffusionOptions("Ar", blocks=2, charge=0.0),
        steps=240,
        timestep=8.0,
        interval=5,
    )
    liquid = argon()
    liquid.set_cell(liquid.cell.array * 1.2, scale_atoms=True)

    def work(progress: Callable[..., None] | None, out: str, resume: bool = False) -> Any:
        calculator = PairCalculator(cutoff=6.0)
        return diffusion(liquid, calculator, options, tmp_path / out, resume=resume, on_step=progress)

    killed_after(330, lambda progress: work(progress, "killed"))
    assert work(None, "killed", resume=True).summary() == work(None, "whole").summary()
