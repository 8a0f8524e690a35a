"""Barriers against saddles that symmetry gives, bands that go on to the same path, ends that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

import equipes
from equipes import InputError
from equipes.cli import app, run
from equipes.simulate import SimulationError, relax
from equipes.simulate.neb import NEBOptions, first_path, matched_ends, neb, vacancy_hop
from equipes.simulate.store import Store

FAST = NEBOptions(images=3, fmax=0.05)


def equipes_command(*arguments: object) -> int:
    return run(app, [str(argument) for argument in arguments], "equipes")


@pytest.fixture(scope="module")
def ends() -> tuple[Atoms, Atoms]:
    crystal = bulk("Cu", a=3.59, cubic=True) * (2, 2, 1)
    return vacancy_hop(crystal, 0)


@pytest.fixture(scope="module")
def hop(ends):
    return neb(*ends, EMT(), FAST)


def test_a_vacancy_hop_goes_over_the_saddle_that_symmetry_gives(ends, hop) -> None:
    first, last = ends
    moving = int(np.linalg.norm(matched_ends(first, last)[1].positions - first.positions, axis=1).argmax())
    # Half way, held there, with all others relaxed: nothing pulls it off the path.
    half = matched_ends(first, last)[1]
    half.positions[:] = (half.positions + first.positions) / 2
    half.set_constraint(FixAtoms([moving]))
    saddle = relax(half, EMT(), cell=False, fmax=0.001).energy_ev
    minimum = relax(first, EMT(), cell=False, fmax=0.001).energy_ev
    assert hop.converged
    assert hop.barrier_ev == pytest.approx(saddle - minimum, abs=0.005)
    assert hop.reaction_energy_ev == pytest.approx(0, abs=1e-3)
    assert hop.reverse_barrier_ev == pytest.approx(hop.barrier_ev, abs=1e-3)
    assert hop.saddle == 2
    assert all(check.converged for check in hop.provenance.checks)
    assert json.loads(json.dumps(hop.summary()))["converged"] is True


def test_the_image_climbs_to_the_saddle_between_images() -> None:
    """With an even number of images none starts at the top."""
    first, last = vacancy_hop(bulk("Cu", a=3.59, cubic=True) * (2, 2, 1), 0)
    even = neb(first, last, EMT(), NEBOptions(images=4))
    odd = neb(first, last, EMT(), NEBOptions(images=3))
    assert even.barrier_ev == pytest.approx(odd.barrier_ev, abs=0.003)
    assert abs(even.images[even.saddle].get_forces()).max() < 0.05


def test_a_batch_of_images_is_one_by_one(ends) -> None:
    model = equipes.build("nequip", ["Cu"], {"num_layers": 1, "num_features": 4, "r_max": 4.0}, seed=2)
    calculator = equipes.Calculator(model, dtype="float64")
    options = NEBOptions(images=3, relax_ends=False, steps=0)
    result = neb(*ends, calculator, options)
    for image in result.images:
        alone = image.copy()
        alone.calc = calculator
        assert image.get_potential_energy() == pytest.approx(alone.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(image.get_forces(), alone.get_forces(), atol=1e-9)
    assert not result.converged
    assert any("not converged after 0 steps" in warning for warning in result.provenance.warnings)


def test_a_stopped_band_goes_on_to_the_same_path(tmp_path: Path, ends, hop) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("band") and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "band.npz") as store:
        neb(*ends, EMT(), FAST, store=store, progress=stop)
    with Store(tmp_path / "band.npz", resume=True) as store:
        result = neb(*ends, EMT(), FAST, store=store)
    assert result.steps == hop.steps > 10
    for image, known in zip(result.images, hop.images, strict=True):
        assert np.array_equal(image.positions, known.positions)


def test_the_first_path_keeps_atoms_apart() -> None:
    """A straight line leads one atom through another; changing distances evenly leads it around."""
    first = Atoms("CuHCu", positions=[[0, 0, 0], [0, 0.1, 3.0], [0, -0.1, 6.0]])
    last = first.copy()
    last.positions[1] = [0, 0.1, -3.0]
    closest = [
        min(image.get_distance(0, 1) for image in first_path(first, last, 5, idpp=idpp))
        for idpp in (False, True)
    ]
    assert closest[0] < 0.2
    assert closest[1] > 1.0


def test_a_path_is_symmetric_also_for_a_hop_by_half_a_cell(hop) -> None:
    """The cell is so thin that the hop is by half of it, and as short on the other side."""
    steps = [
        np.linalg.norm(b.positions - a.positions)
        for a, b in zip(hop.images[:-1], hop.images[1:], strict=True)
    ]
    assert hop.images[0].cell[2, 2] == pytest.approx(2 * 3.59 / 2)
    np.testing.assert_allclose(steps, np.diff(hop.distances_ang), rtol=1e-6)
    np.testing.assert_allclose(hop.curve_energies_ev, hop.curve_energies_ev[::-1], atol=0.02)


def test_atoms_take_the_shortest_way_through_the_boundary() -> None:
    first = Atoms("Cu2", positions=[[0.2, 0, 0], [2, 2, 2]], cell=[5, 5, 5], pbc=True)
    last = first.copy()
    last.positions[0] = [4.7, 0, 0]
    assert matched_ends(first, last)[1].positions[0, 0] == pytest.approx(-0.3)
    # By half a cell both ways are as short, and the one that was given is meant.
    for way in (2.5, -2.5):
        last.positions[0] = [0.2 + way, 0, 0]
        assert matched_ends(first, last)[1].positions[0, 0] == pytest.approx(0.2 + way)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda atoms: atoms[::-1] if atoms.symbols[0] != "Cu" else atoms[1:], "the ends have other atoms"),
        (lambda atoms: Atoms(atoms, cell=atoms.cell * 1.1), "different cells"),
        (lambda atoms: atoms.copy(), "they are the same"),
    ],
)
def test_ends_that_do_not_fit(ends, change, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        neb(ends[0], change(ends[0]), EMT(), FAST)


def test_more_bad_input(ends) -> None:
    with pytest.raises(InputError, match="at least 1 image"):
        neb(*ends, EMT(), NEBOptions(images=0))
    with pytest.raises(InputError, match="no atom 99"):
        vacancy_hop(bulk("Cu", cubic=True), 99)
    near = ends[0].copy()
    near.positions[3] += 0.3
    with pytest.raises(SimulationError, match="same minimum"):
        neb(ends[0], near, EMT(), FAST)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, ends
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipes.calculators.Calculator", lambda *_, **__: EMT())
    Path("any").touch()
    ase.io.write("a.extxyz", ends[0])
    ase.io.write("b.extxyz", ends[1])
    options = ["--images", 3, "--fmax", 0.05, "--out", "hop"]
    assert equipes_command("neb", "any", "a.extxyz", "b.extxyz", *options, "--steps", 5) == 1
    shown = capsys.readouterr()
    assert "not converged after 5 steps" in shown.err
    assert equipes_command("neb", "any", "a.extxyz", "b.extxyz", *options, "--resume") == 0
    assert "barrier back" in capsys.readouterr().out
    assert Path("hop/neb.png").exists()
    assert len(ase.io.read("hop/structure.extxyz", index=":")) == 5
    assert 'type="range"' in Path("hop/report.html").read_text()
    assert equipes_command("neb", "any", "b.extxyz", "b.extxyz", *options, "--resume") == 2
    assert "was made with" in capsys.readouterr().err
