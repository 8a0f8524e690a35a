"""Dynamics whose steps never wait for the host: the same as ASE's, and never with a stale list of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from torch._subclasses.fake_tensor import FakeTensorMode

from equipes import Calculator, InputError
from equipes.harmonics import raising_matrix
from equipes.models import device_frozen
from equipes.models.device_frozen import DevicePotential
from equipes.models.frozen import describe_potential
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.simulate.device_thermostats import DeviceThermostat, Friction, Rescaling
from equipes.simulate.ensembles import Kind, integrator
from equipes.simulate.errors import SimulationError
from equipes.simulate.held import Held, hold
from test_device_steps import _cotangents, _messages
from test_frozen import make


@pytest.fixture(scope="module")
def potential() -> DevicePotential:
    return DevicePotential(describe_potential(make("base"), None, 1e-3)[0], "cpu")


def moving(seed: int = 0, kelvin: float = 3000.0) -> Atoms:
    """Atoms that fly so fast that lists do not last."""
    atoms = bulk("CO", "rocksalt", a=4.4) * (2, 1, 1)
    atoms.rattle(0.05, seed=seed)
    warm(atoms, kelvin, seed)
    return atoms


def warm(atoms: Atoms, kelvin: float, seed: int) -> None:
    spread = np.sqrt(atoms.get_masses() * units.kB * kelvin)[:, None]
    atoms.set_momenta(spread * np.random.default_rng(seed).normal(size=(len(atoms), 3)))


def after(
    atoms: Atoms, potential: DevicePotential, steps: int, **options: float
) -> tuple[Atoms, DeviceDynamics]:
    dynamics = DeviceDynamics(atoms, potential, **options)
    dynamics.run(steps)
    result = atoms.copy()
    dynamics.update(result)
    return result, dynamics


def thermostat_of(atoms: Atoms, ensemble: Kind) -> DeviceThermostat:
    atoms.calc = Held()
    hold(atoms.calc, 0.0, np.zeros((len(atoms), 3)), None)
    dynamics = integrator(
        atoms, ensemble, timestep=1.0, temperature=300.0, pressure=0.0, thermostat_time=20.0, barostat_time=100.0,
        flexible_cell=False, rng=np.random.default_rng(0),
    )  # fmt: skip
    return Rescaling(dynamics) if ensemble == "nvt" else Friction(dynamics, len(atoms))


def far(one: Atoms, other: Atoms) -> float:
    return max(
        np.abs(one.positions - other.positions).max(),
        np.abs(one.get_velocities() - other.get_velocities()).max(),
    )


def test_steps_are_those_of_ase(potential: DevicePotential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipes.calculators.ase.runs_natively", lambda device: False)
    atoms = moving()
    ours, dynamics = after(atoms, potential, 25, timestep=0.7)
    reference = atoms.copy()
    reference.calc = Calculator(make("base"), dtype="float64", freeze=True)
    reference.calc.frozen = potential
    reference.calc._may_freeze = False
    verlet = VelocityVerlet(reference, 0.7 * units.fs)
    verlet.run(25)
    assert dynamics.steps == 25
    assert far(ours, reference) < 1e-10
    assert dynamics.potential_energy == pytest.approx(reference.get_potential_energy(), abs=1e-10)
    assert dynamics.kinetic_energy == pytest.approx(reference.get_kinetic_energy(), abs=1e-10)


@pytest.fixture(scope="module")
def with_one_list(potential: DevicePotential) -> Atoms:
    result, dynamics = after(moving(1), potential, 40, skin=3.0)
    assert dynamics.neighbor_list_builds == 1
    return result


@pytest.mark.parametrize("block", [1, 7])
def test_no_list_is_ever_stale(potential: DevicePotential, with_one_list: Atoms, block: int) -> None:
    """With lists that do not last a block: as with one that lasts for ever."""
    found, dynamics = after(moving(1), potential, 40, skin=0.1, block=block)
    assert dynamics.neighbor_list_builds > 1
    assert (dynamics.blocks_repeated > 0) == (block > 1)
    assert far(found, with_one_list) < 1e-10


def test_calm_atoms_need_no_repetition(potential: DevicePotential) -> None:
    """Lists are collected before they are stale where the host can see it coming."""
    _, dynamics = after(moving(2, kelvin=300.0), potential, 80, skin=0.3, block=5)
    assert dynamics.neighbor_list_builds > 1 and dynamics.blocks_repeated == 0


def test_atoms_that_leave_the_skin_in_one_step_are_told_of(potential: DevicePotential) -> None:
    atoms = moving(1)
    velocities = atoms.get_velocities()
    velocities[1] = [2.0, 0.0, 0.0]
    atoms.set_velocities(velocities)
    with pytest.raises(SimulationError, match=r"step 1 an atom moves by 0\.\d\d Å, more than half"):
        after(atoms, potential, 20, timestep=2.0, skin=0.5)


def test_what_is_no_number_is_told_of(potential: DevicePotential) -> None:
    dynamics = DeviceDynamics(moving(1), potential)
    dynamics.run(2)
    before = dynamics._positions.clone()
    dynamics._velocities[0, 0] = float("nan")
    with pytest.raises(SimulationError, match="after step 2 positions are no numbers"):
        dynamics.run(3)
    assert torch.equal(dynamics._positions, before) and dynamics.steps == 2


def test_wrong_arguments(potential: DevicePotential) -> None:
    for options in ({"timestep": 0.0}, {"skin": -1.0}, {"block": 0}, {"skin": float("nan")}):
        with pytest.raises(InputError, match="must be positive"):
            DeviceDynamics(moving(), potential, **options)
    fixed = moving()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="constraints"):
        DeviceDynamics(fixed, potential)


def test_a_molecule(potential: DevicePotential) -> None:
    atoms = molecule("CH3CH2OH")
    warm(atoms, 500.0, 0)
    _, dynamics = after(atoms, potential, 20, timestep=0.2)
    start = DeviceDynamics(atoms, potential)
    before = start.potential_energy + start.kinetic_energy
    assert before == pytest.approx(dynamics.potential_energy + dynamics.kinetic_energy, abs=2e-3)
    assert start.kinetic_energy == pytest.approx(atoms.get_kinetic_energy(), rel=1e-12)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "nvt-langevin"])
def test_a_step_never_waits_for_the_device(ensemble: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """See test_device_steps.py; only the buffers are replaced by tensors that have no numbers."""
    monkeypatch.setattr(device_frozen, "spline_message_passing", _messages)
    monkeypatch.setattr(device_frozen, "spline_reverse", _cotangents)
    description = describe_potential(make("base"), None, 1e-3)[0]
    atoms = moving()
    dynamics = DeviceDynamics(atoms, DevicePotential(description, "cpu"), virial=True)
    if ensemble != "nve":
        dynamics.thermostat = thermostat_of(atoms, ensemble)
        dynamics._draw(2, None)
    raising_matrix.cache_clear()
    mode = FakeTensorMode()

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return mode.from_tensor(tensor).to("cuda:0")

    with mode, torch.no_grad():
        dynamics.potential = DevicePotential(description, "cuda:0")
        for name, value in list(vars(dynamics).items()):
            if isinstance(value, torch.Tensor):
                setattr(dynamics, name, fake(value))
        own = dynamics._padded.atoms
        for name in (
            "types",
            "cell",
            "receiver",
            "sender",
            "shift",
            "row_pointer",
            "sender_pointer",
            "n_real",
        ):
            object.__setattr__(own, name, fake(getattr(own, name)))
        object.__setattr__(own, "sender_order", fake(own.sender_order))
        object.__setattr__(own, "positions", dynamics._positions)
        object.__setattr__(own, "groups", tuple(fake(group) for group in own.groups))
        dynamics._step()
        dynamics._step()
        assert dynamics._positions.device.type == "cuda"
    raising_matrix.cache_clear()
