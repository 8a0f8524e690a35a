"""Each law turns red when the thing it guards is broken; a law that cannot fail would be worse than none.

A break is as small as possible, so that it is the law's sensitivity that is tested, and where it can be, it is
consistent (energy, forces and stress follow each other), so that no other law stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipes.graph import AtomGraph
from equipes.kernels import KERNELS, form
from equipes.models import nequip
from equipes.models.potential import Prediction
from laws import Evaluator, Model, PhysicalLaws
from potentials import SMALLEST

Term = Callable[[Tensor, Tensor, AtomGraph], Tensor]
TINY = 1e-6


class WithTerm(nn.Module):
    """An architecture plus a term in the energies of the atoms; forces and stress follow by autograd."""

    def __init__(self, model: nn.Module, term: Term) -> None:
        super().__init__()
        self.model, self.term = model, term

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        return self.model(types, vectors, graph) + self.term(types, vectors, graph)


def with_term(term: Term) -> Callable[[Any], Evaluator]:
    def broken(potential: Any) -> Evaluator:
        potential.model = WithTerm(potential.model, term)
        return potential

    return broken


def with_graph(change: Callable[[AtomGraph], AtomGraph]) -> Callable[[Any], Evaluator]:
    return lambda potential: lambda graph, **asked: potential(change(graph), **asked)


def with_prediction(change: Callable[[Prediction, AtomGraph], Prediction]) -> Callable[[Any], Evaluator]:
    return lambda potential: lambda graph, **asked: change(potential(graph, **asked), graph)


def at_receivers(values: Tensor, graph: AtomGraph) -> Tensor:
    return values.new_zeros(graph.n_atoms, *values.shape[1:]).index_add(0, graph.receiver, values)


def near(vectors: Tensor) -> Tensor:
    """A smooth weight of each edge, nothing beyond the cutoff."""
    return (1 - vectors.norm(dim=1) / SMALLEST.cutoffs[0]).clamp(min=0) ** 4


# Terms and changes


def depends_on_the_origin(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * graph.positions[:, 0]


def prefers_a_direction(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * at_receivers(near(vectors) * vectors[:, 2] ** 2, graph)


def prefers_a_hand(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    """A triple product of moments of the neighbours: turns with the structure, changes sign in a mirror."""
    weight, r = near(vectors).unsqueeze(1), vectors.norm(dim=1, keepdim=True)
    first, second, third = (at_receivers(weight * vectors * r**k, graph) for k in range(3))
    return TINY * 1000 * (torch.linalg.cross(first, second) * third).sum(1)


def depends_on_the_order(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    place = torch.arange(graph.n_atoms, dtype=torch.float64)
    return TINY * place * at_receivers(near(vectors), graph)


def depends_on_the_image(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * at_receivers(near(vectors) * graph.shift.square().sum(1), graph)


def stops_at_the_cutoff(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * at_receivers((vectors.norm(dim=1) < SMALLEST.cutoffs[0]).double(), graph)


def has_a_kink_at_the_cutoff(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return 10 * TINY * at_receivers((SMALLEST.cutoffs[0] - vectors.norm(dim=1)).clamp(min=0), graph)


def sees_beyond_the_cutoff(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * at_receivers(torch.exp(-vectors.norm(dim=1)), graph)


def counts_the_atoms_of_a_structure(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return TINY * (graph.atoms_per_structure[graph.structure] - 1.0)


def counts_the_structures_of_a_batch(types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
    return torch.full_like(graph.positions[:, 0], TINY * (graph.n_structures - 1))


def sees_only_nearest_images(graph: AtomGraph) -> AtomGraph:
    """The minimum-image convention in a cell that is too small for it."""
    lengths, kept = graph.edge_vectors().norm(dim=1), {}
    for edge in lengths.argsort().tolist():
        i, j = int(graph.receiver[edge]), int(graph.sender[edge])
        if i != j:
            kept.setdefault((i, j), edge)
    edges = torch.tensor(sorted(kept.values()))
    receiver, sender = graph.receiver[edges], graph.sender[edges]
    counts = torch.bincount(receiver, minlength=graph.n_atoms)
    return replace(
        graph,
        receiver=receiver,
        sender=sender,
        shift=graph.shift[edges],
        row_pointer=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        sender_order=sender.argsort(stable=True),
    )


def turned_around(graph: AtomGraph) -> AtomGraph:
    """Senders for receivers: the same set of edges where every pair has both, so nothing but direction changes."""
    return replace(graph, receiver=graph.sender, sender=graph.receiver, shift=-graph.shift)


def swirling_forces(prediction: Prediction, graph: AtomGraph) -> Prediction:
    """A force field with curl: what no energy has."""
    if prediction.forces is None:
        return prediction
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    swirl = torch.linalg.cross(axis.expand_as(graph.positions), graph.positions)
    return replace(prediction, forces=prediction.forces + 1e-4 * swirl)


def stress_divided_by_nothing(prediction: Prediction, graph: AtomGraph) -> Prediction:
    """The straightforward formula: NaN where it should be, and, through the division, in every gradient."""
    volumes = torch.linalg.det(graph.cell).abs()
    volumes = torch.where(volumes > 0, volumes, float("nan")).view(-1, 1, 1)
    return replace(prediction, stress=-prediction.virial / volumes)


def forgets_to_detach(potential: Any) -> Evaluator:
    return lambda graph, **asked: potential.train()(graph, **asked)


def always_gives_everything(potential: Any) -> Evaluator:
    return lambda graph, **asked: potential(graph)


def coarse_float32(potential: Any) -> Evaluator:
    """Half-precision weights in the float32 model only."""
    if potential.dtype == torch.float32:
        for parameter in potential.parameters():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    return potential


def changed(**factors: float) -> Callable[[Any], Evaluator]:
    """Fields of the prediction times numbers."""

    def change(prediction: Prediction, graph: AtomGraph) -> Prediction:
        fields = {name: getattr(prediction, name) for name in factors}
        return replace(prediction, **{n: None if f is None else factors[n] * f for n, f in fields.items()})

    return with_prediction(change)


def detached(name: str) -> Callable[[Any], Evaluator]:
    return with_prediction(
        lambda prediction, graph: replace(prediction, **{name: getattr(prediction, name).detach()})
    )


# Breaks of the code itself


def cutoff_function_that_ends_at_one_percent(patch: pytest.MonkeyPatch) -> None:
    whole = nequip.polynomial_cutoff
    patch.setattr(nequip, "polynomial_cutoff", lambda x, p: whole(x, p) + 0.01 * (x < 1))


def harmonics_with_one_component_too_long(patch: pytest.MonkeyPatch) -> None:
    whole, lengths = nequip.spherical_harmonics, torch.tensor([1.0, 1.0, 1.0, 1.00001], dtype=torch.float64)
    patch.setattr(nequip, "spherical_harmonics", lambda *args: whole(*args) * lengths)


def coupling_off_by_a_little(patch: pytest.MonkeyPatch) -> None:
    whole = form.wigner_3j

    def bent(*degrees: int) -> Any:
        tensor = whole(*degrees).copy()
        tensor[0, 0, 0] += 1e-6
        return tensor

    patch.setattr(form, "wigner_3j", bent)


def messages_summed_at_the_sender(patch: pytest.MonkeyPatch) -> None:
    for name, kernel in list(KERNELS.items()):
        patch.setitem(KERNELS, name, lambda *args, whole=kernel: whole(*args[:-1], turned_around(args[-1])))


def gate_that_treats_vectors_as_scalars(patch: pytest.MonkeyPatch) -> None:
    whole = nequip.Gate.forward
    patch.setattr(nequip.Gate, "forward", lambda self, x: torch.tanh(whole(self, x)))


@dataclass(frozen=True)
class Break:
    law: str
    name: str
    broken: Callable[[Any], Evaluator] = lambda potential: potential
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    spares: tuple[str, ...] = ()  # laws that this break must not turn red

    def __str__(self) -> str:
        return f"{self.law} <- {self.name}"


DERIVATIVES = ("forces_are_the_energy_gradient", "stress_is_the_strain_derivative")
BREAKS = [
    Break("translation", "origin", with_term(depends_on_the_origin)),
    Break("rotation", "direction", with_term(prefers_a_direction), spares=("translation", "permutation")),
    Break("rotation", "harmonics", patch=harmonics_with_one_component_too_long),
    Break("rotation", "coupling", patch=coupling_off_by_a_little),
    Break("rotation", "gate", patch=gate_that_treats_vectors_as_scalars),
    Break("reflection", "hand", with_term(prefers_a_hand), spares=("rotation", *DERIVATIVES)),
    Break("permutation", "order", with_term(depends_on_the_order), spares=("rotation",)),
    Break("choice_of_cell", "image", with_term(depends_on_the_image), spares=("rotation", *DERIVATIVES)),
    Break("forces_are_the_energy_gradient", "sign", changed(forces=-1.0), spares=("sums", "rotation")),
    Break(
        "forces_are_the_energy_gradient", "size", changed(forces=1 + 1e-5), spares=("hessian_is_symmetric",)
    ),
    Break("stress_is_the_strain_derivative", "sign of both", changed(stress=-1.0, virial=-1.0)),
    Break(
        "stress_is_the_strain_derivative", "sign of the stress", changed(stress=-1.0), spares=("rotation",)
    ),
    Break("stress_is_the_strain_derivative", "sign of the virial", changed(virial=-1.0)),
    Break("stress_is_the_strain_derivative", "size", changed(stress=1 + 1e-5, virial=1 + 1e-5)),
    Break("hessian_is_symmetric", "swirl", with_prediction(swirling_forces)),
    Break("continuous_through_the_cutoff", "step", with_term(stops_at_the_cutoff), spares=("rotation",)),
    Break("continuous_through_the_cutoff", "kink", with_term(has_a_kink_at_the_cutoff), spares=("rotation",)),
    Break("continuous_through_the_cutoff", "cutoff function", patch=cutoff_function_that_ends_at_one_percent),
    Break(
        "isolated_atom_has_its_reference_energy", "last digit", changed(energies=1 + 1e-15, energy=1 + 1e-15)
    ),
    Break(
        "far_fragments_add_up",
        "count",
        with_term(counts_the_atoms_of_a_structure),
        spares=("batch_is_one_by_one",),
    ),
    Break(
        "batch_is_one_by_one",
        "leak",
        with_term(counts_the_structures_of_a_batch),
        spares=("far_fragments_add_up",),
    ),
    Break("small_cell_is_its_supercell", "nearest images", with_graph(sees_only_nearest_images)),
    Break("sums", "energy", changed(energy=1 + 1e-8)),
    Break("sums", "forces", with_prediction(swirling_forces)),
    Break("torque_on_a_molecule_vanishes", "swirl", with_prediction(swirling_forces)),
    Break(
        "torque_on_a_molecule_vanishes",
        "direction",
        with_term(prefers_a_direction),
        spares=("sums", *DERIVATIVES),
    ),
    Break(
        "messages_go_to_the_receiver", "graph", with_graph(turned_around), spares=("rotation", *DERIVATIVES)
    ),
    Break("messages_go_to_the_receiver", "kernel", patch=messages_summed_at_the_sender),
    Break(
        "edges_beyond_the_cutoff_do_not_matter",
        "sight",
        with_term(sees_beyond_the_cutoff),
        spares=("rotation",),
    ),
    Break("float32_is_near_float64", "half precision", coarse_float32, spares=("rotation",)),
    Break("what_is_asked_for", "not detached", forgets_to_detach, spares=("rotation",)),
    Break("what_is_asked_for", "everything", always_gives_everything, spares=("rotation",)),
    Break("loss_gradient_of_every_parameter", "forces", detached("forces"), spares=DERIVATIVES),
    Break("loss_gradient_of_every_parameter", "stress", detached("stress"), spares=DERIVATIVES),
    Break("loss_gradient_of_every_parameter", "energy", detached("energy"), spares=DERIVATIVES),
    Break(
        "loss_gradient_of_every_parameter",
        "NaN",
        with_prediction(stress_divided_by_nothing),
        spares=DERIVATIVES,
    ),
]


def ask(law: str, model: Model) -> None:
    getattr(PhysicalLaws(), f"test_{law}")(model=model)


@pytest.mark.usefixtures("first_failure")
@pytest.mark.parametrize("case", BREAKS, ids=str)
def test_law_turns_red(case: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    case.patch(monkeypatch)
    monkeypatch.setenv("EQUIPES_KERNEL", "reference")  # what is broken here are its layers
    model = replace(SMALLEST, broken=case.broken)
    with pytest.raises(AssertionError):
        ask(case.law, model)
    for spared in case.spares:
        ask(spared, replace(SMALLEST, broken=case.broken))


def test_every_law_has_been_broken() -> None:
    laws = {name.removeprefix("test_") for name in dir(PhysicalLaws) if name.startswith("test_")}
    assert laws == {case.law for case in BREAKS}
