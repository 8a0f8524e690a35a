"""The Triton kernels against the reference kernel: on the CPU through Triton's interpreter, and on a GPU.

What is compiled for a GPU is looked at without one: PTX, registers, and that nothing is kept in local memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from ase import Atoms
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from equipes import kernels
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, kernel_name, message_passing, reference
from equipes.kernels import triton as ours
from equipes.kernels.form import Path
from equipes.kernels.splines import (
    Places,
    RadialSplines,
    reference_spline_message_passing,
    reference_spline_reverse,
    spline_message_passing,
    spline_reverse,
)
from equipes.kernels.triton.source import kernel, tile_of
from equipes.kernels.triton.writer import Variant, arguments, pointer_types
from equipes.models.potential import Potential
from laws import Model, graph_of
from made_up_gpu import compile_for_an_h100
from potentials import mace, nequip
from test_kernels import Operands, all_irreps, derivatives, random_operands

installed = pytest.mark.skipif(not ours.installed(), reason="Triton is not installed (extra gpu)")
EXACT = 1e-12
SINGLE = 3e-6


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels run; they are chosen by the variable on the CPU, by themselves on a GPU."""
    if not ours.installed():
        pytest.skip("Triton is not installed (extra gpu)")
    if request.param == "cpu":
        monkeypatch.setenv("EQUIPES_KERNEL", "triton")
    else:
        monkeypatch.delenv("EQUIPES_KERNEL", raising=False)
    assert kernel_name(request.param) == "triton"
    return request.param


def few_edges() -> AtomGraph:
    """A chain of three atoms, whose ends do not see each other, and one without neighbours."""
    atoms = Atoms("OHHH", positions=[[0, 0, 0], [0.9, 0, 0.2], [-0.3, 1.2, -0.1], [30.0, 0, 0]])
    return AtomGraph.from_atoms(atoms, 1.5)


def many_edges() -> AtomGraph:
    """Several images of one pair, and atoms that are their own neighbours."""
    return AtomGraph.from_atoms(
        Atoms("CuO", positions=[[0, 0, 0], [1.1, 0.7, 1.3]], cell=[2.4, 2.6, 2.9], pbc=True), 2.5
    )


def one_edge() -> AtomGraph:
    """Only the second atom sends."""
    pair = AtomGraph.from_atoms(Atoms("OH", positions=[[0, 0, 0], [0.3, 0.4, 0.8]]), 1.5)
    return replace(
        pair,
        receiver=pair.receiver[:1],
        sender=pair.sender[:1],
        shift=pair.shift[:1],
        row_pointer=torch.tensor([0, 1, 1]),
        sender_order=torch.tensor([0]),
    )


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest element."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return float((found - expected).abs().max()) / scale if scale else float(found.abs().sum())


def agree(form: MessagePassingForm, graph: AtomGraph, device: str, seed: int = 0) -> None:
    """Value, first and second derivatives, in float64."""
    operands = tuple(t.detach().to(device).requires_grad_() for t in random_operands(form, graph, seed))
    there = graph.to(device)
    found = derivatives_on(lambda *o: message_passing(form, *o, there), operands)
    expected = derivatives_on(lambda *o: reference.message_passing(form, *o, there), operands)
    for k, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert error(mine, theirs) < EXACT, ("value", *(f"{o} by {n}" for o in (1, 2) for n in "xYw"))[k]


def derivatives_on(compute: Callable[..., Tensor], operands: Operands) -> list[Tensor]:
    """As `derivatives`, with contractions drawn on the CPU whatever the device."""
    if operands[0].device.type == "cpu":
        return derivatives(compute, operands)
    generator = torch.Generator().manual_seed(9)

    def contracted(tensors: list[Tensor]) -> Tensor:
        drawn = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in tensors]
        return sum((t * d).sum() for t, d in zip(tensors, drawn, strict=True))

    value = compute(*operands)
    first = torch.autograd.grad(contracted([value, value**2]), operands, create_graph=True)
    second = torch.autograd.grad(contracted(list(first)), operands)
    return [t.detach() for t in (value, *first, *second)]


SHAPES = {
    # Tiles that are not full, and two of them; both parities; a block that has no paths.
    "multiplicities": (Irreps("5x0e + 1x0o + 3x1o + 40x0e"), 1, [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1)], -1),
    "no parity": (Irreps("2x0e + 3x1e"), 1, [Irrep(0, 1), Irrep(1, 1)], 1),
    "uncoupled": (Irreps("2x0e + 3x3o + 2x1o"), 1, [Irrep(0, 1), Irrep(1, -1)], -1),
} | {
    # From l to l by harmonics of every degree that leads there, and from l to all others by one.
    f"l={l}": (Irreps([(3, Irrep(l, (-1) ** l))]), 4, [Irrep(l, (-1) ** l)], -1)
    for l in range(5)
}


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_to_second_order(shape: str, device: str) -> None:
    irreps_in, l_max, wanted, parity = SHAPES[shape]
    agree(MessagePassingForm(irreps_in, l_max, wanted, parity=parity), few_edges(), device)


@pytest.mark.parametrize("l1", range(5))
def test_every_coupling_of_every_degree(l1: int, device: str) -> None:
    """Value and first derivatives of all paths from l1 with l2 and l3 up to 4."""
    form = MessagePassingForm(Irreps([(2, Irrep(l1, 1))]), 4, [Irrep(l, 1) for l in range(5)], parity=1)
    assert len(form.paths) == sum(abs(l1 - a) <= b <= l1 + a for a in range(5) for b in range(5))
    graph = one_edge().to(device)
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(form, graph, l1)]
    outcomes = []
    for compute in (message_passing, reference.message_passing):
        value = compute(form, *operands, graph)
        cotangent = torch.sin(torch.arange(value.numel(), dtype=value.dtype, device=device)).view_as(value)
        outcomes.append([value, *torch.autograd.grad(value, operands, cotangent)])
    for mine, theirs in zip(*outcomes, strict=True):
        assert error(mine.detach(), theirs.detach()) < EXACT


@pytest.mark.gpu
@pytest.mark.parametrize("l_max", range(5))
@pytest.mark.parametrize("multiplicity", [1, 32, 48, 128])
def test_all_irreps_on_a_gpu(l_max: int, multiplicity: int) -> None:
    """Whole forms, which would take the interpreter hours."""
    irreps = all_irreps(l_max)
    form = MessagePassingForm(Irreps((multiplicity, irrep) for irrep in irreps), l_max, irreps)
    agree(form, many_edges(), "cuda")


def test_single_precision(device: str) -> None:
    """Also where a program has two channels for each lane."""
    form = MessagePassingForm(Irreps("70x0e + 3x1o"), 1, [Irrep(0, 1), Irrep(1, -1)])
    assert tile_of(70, Variant("messages", False)) == 64
    graph = few_edges().to(device)
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(form, graph)]
    single = [t.detach().float().requires_grad_() for t in operands]
    outcomes = []
    for compute, given in ((message_passing, single), (reference.message_passing, operands)):
        value = compute(form, *given, graph)
        first = torch.autograd.grad((value**2).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum((f**2).sum() for f in first), given)
        outcomes.append([value, *first, *second])
    for mine, theirs in zip(*outcomes, strict=True):
        assert mine.dtype == torch.float32
        assert error(mine.detach().double(), theirs.detach()) < SINGLE


SMALL = MessagePassingForm(Irreps("2x0e + 1x1o"), 1, [Irrep(0, 1), Irrep(1, -1)])


def test_third_derivatives(device: str) -> None:
    """By all of x, Y, w and the cotangent, of a scalar that is not linear in them."""
    graph = one_edge().to(device)
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(SMALL, graph)]
    outcomes = []
    for compute in (message_passing, reference.message_passing):
        tensors: tuple[Tensor, ...] = ((compute(SMALL, *operands, graph) ** 2).sum(),)
        for order in range(3):
            scalar = sum((t**2).sum() for t in tensors)
            tensors = torch.autograd.grad(scalar, operands, create_graph=order < 2)
        outcomes.append(tensors)
    for mine, theirs in zip(*outcomes, strict=True):
        assert error(mine, theirs) < EXACT


def test_finite_differences(device: str) -> None:
    """Of the value and of its first derivatives: nothing of the reference kernel is in this."""
    graph = one_edge().to(device)
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(SMALL, graph)]

    def compute(*given: Tensor) -> Tensor:
        return message_passing(SMALL, *given, graph)

    assert torch.autograd.gradcheck(compute, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, operands, fast_mode=True)


def test_second_derivatives_are_symmetric(device: str) -> None:
    graph = few_edges().to(device)
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(SMALL, graph)]
    value = message_passing(SMALL, *operands, graph)
    first = torch.autograd.grad((value**3).sum(), operands, create_graph=True)
    generator = torch.Generator().manual_seed(5)
    a, b = (
        [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(device) for t in operands] for _ in "ab"
    )

    def product(direction: list[Tensor]) -> tuple[Tensor, ...]:
        along = sum((f * d).sum() for f, d in zip(first, direction, strict=True))
        return torch.autograd.grad(along, operands, retain_graph=True)

    ab = sum(float((h * d).sum()) for h, d in zip(product(a), b, strict=True))
    ba = sum(float((h * d).sum()) for h, d in zip(product(b), a, strict=True))
    assert abs(ab - ba) < EXACT * abs(ab)


def test_only_what_is_needed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces with constant weights ask for no weights' derivatives, and constant features for none of theirs."""
    from equipes.kernels.triton import operation

    launched: list[Variant] = []
    launch = operation.launch
    monkeypatch.setattr(
        operation,
        "launch",
        lambda form, variant, *rest: launched.append(variant) or launch(form, variant, *rest),
    )
    graph = few_edges().to(device)
    x, y, w = (t.detach().to(device) for t in random_operands(SMALL, graph))
    y.requires_grad_()
    (found,) = torch.autograd.grad((message_passing(SMALL, x, y, w, graph) ** 2).sum(), y)
    assert [(v.kind, v.wanted) for v in launched[1:]] == [("edges", "y")]
    (expected,) = torch.autograd.grad((reference.message_passing(SMALL, x, y, w, graph) ** 2).sum(), y)
    assert error(found, expected) < EXACT
    launched.clear()
    w.requires_grad_()
    (dy,) = torch.autograd.grad((message_passing(SMALL, x, y, w, graph) ** 2).sum(), y, create_graph=True)
    (found,) = torch.autograd.grad((dy**2).sum(), w)
    assert "senders" not in {v.kind for v in launched}
    (dy,) = torch.autograd.grad(
        (reference.message_passing(SMALL, x, y, w, graph) ** 2).sum(), y, create_graph=True
    )
    assert error(found, torch.autograd.grad((dy**2).sum(), w)[0]) < EXACT


def test_values_and_tangents_at_once(device: str) -> None:
    from equipes.kernels.triton.operation import dual_cotangents, dual_messages

    graph = few_edges().to(device)
    values, tangents = (
        [t.detach().to(device) for t in random_operands(SMALL, graph, seed)] for seed in (1, 2)
    )
    g, g_t = (
        torch.randn(
            (graph.n_atoms, SMALL.irreps_out.dim), generator=torch.Generator().manual_seed(s), dtype=g_type
        ).to(device)
        for s, g_type in ((3, torch.float64), (4, torch.float64))
    )
    pairs = list(zip(values, tangents, strict=True))

    def reverse(x: Tensor, y: Tensor, w: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        _, pull = torch.func.vjp(lambda *o: reference.message_passing(SMALL, *o, graph), x, y, w)
        return pull(cotangent)

    expected = torch.func.jvp(
        lambda *o: reference.message_passing(SMALL, *o, graph), tuple(values), tuple(tangents)
    )
    for mine, theirs in zip(dual_messages(SMALL, *pairs, graph), expected, strict=True):
        assert error(mine, theirs) < EXACT
    expected = torch.func.jvp(reverse, (*values, g), (*tangents, g_t))
    found = dual_cotangents(SMALL, *pairs, (g, g_t), graph)
    for k in range(3):
        for mine, theirs in zip(found[k], (expected[0][k], expected[1][k]), strict=True):
            assert error(mine, theirs) < EXACT


def test_graph_without_edges(device: str) -> None:
    graph = AtomGraph.from_atoms(Atoms("OH", positions=[[0, 0, 0], [9, 0, 0]]), 1.5).to(device)
    assert graph.n_edges == 0
    operands = [t.detach().to(device).requires_grad_() for t in random_operands(SMALL, graph)]
    value = message_passing(SMALL, *operands, graph)
    assert value.shape == (2, SMALL.irreps_out.dim) and not value.any()
    dx, dy, dw = torch.autograd.grad(value, operands, torch.ones_like(value))
    assert not dx.any() and dy.shape == (0, 4) and dw.shape == (0, SMALL.n_weights)


def test_number_types_it_has_no_kernels_for(device: str) -> None:
    graph = few_edges().to(device)
    operands = [t.detach().to(device, torch.bfloat16) for t in random_operands(SMALL, graph)]
    assert torch.equal(
        message_passing(SMALL, *operands, graph), reference.message_passing(SMALL, *operands, graph)
    )


def test_twice_the_same_bits_and_any_order_of_edges(device: str) -> None:
    form = MessagePassingForm(Irreps("3x0e + 2x1o"), 1, [Irrep(0, 1), Irrep(1, -1)])
    graph = many_edges()
    operands = [t.detach() for t in random_operands(form, graph)]
    # Another order of the edges of each receiver.
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(graph.n_edges, generator=generator)
    order = torch.argsort(graph.receiver.double() + drawn)
    assert not torch.equal(order, torch.arange(graph.n_edges))
    sender = graph.sender[order]
    shuffled = replace(
        graph, sender=sender, shift=graph.shift[order], sender_order=torch.argsort(sender, stable=True)
    )

    def all_of(which: AtomGraph, rows: Tensor) -> list[Tensor]:
        given = [operands[0], operands[1][rows], operands[2][rows]]
        given = [t.to(device).requires_grad_() for t in given]
        value = message_passing(form, *given, which.to(device))
        return [value.detach(), *torch.autograd.grad((value**2).sum(), given)]

    same = torch.arange(graph.n_edges)
    once, again, moved = all_of(graph, same), all_of(graph, same), all_of(shuffled, order)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
    back = order.to(device)
    for k, (a, b) in enumerate(zip(once, moved, strict=True)):
        assert error(b, a if k < 2 else a[back]) < EXACT


def splined(kinds: int, n_weights: int, device: str, dtype: torch.dtype = torch.float64) -> RadialSplines:
    generator = torch.Generator().manual_seed(8)
    coefficients = torch.randn(kinds, 3, 6, n_weights, generator=generator, dtype=torch.float64)
    knots = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    return RadialSplines(knots.to(device), coefficients.to(device, dtype))


# A first layer: species are in the splines, features are 1, a block for each degree.
FIRST_LAYER = MessagePassingForm(
    Irreps("3x0e + 2x0e"), 1, paths=[Path(0, 0, Irrep(0, 1)), Path(1, 1, Irrep(1, -1))]
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("form", "kinds", "has_features"), [(SMALL, 1, True), (SMALL, 3, True), (FIRST_LAYER, 2, False)]
)
def test_splines(
    form: MessagePassingForm, kinds: int, has_features: bool, dtype: torch.dtype, device: str
) -> None:
    """Some edges are beyond the cutoff; what stands in their places must not matter."""
    graph = few_edges().to(device)
    x, y, _ = (t.detach().to(device) for t in random_operands(form, graph))
    g = torch.cos(torch.arange(graph.n_atoms * form.irreps_out.dim, dtype=torch.float64, device=device))
    g = g.view(graph.n_atoms, -1)
    kind = torch.arange(graph.n_edges, device=device) % kinds if kinds > 1 else None
    reduced = graph.edge_vectors().norm(dim=1) / 1.2
    assert 0 < int((reduced >= 1).sum()) < graph.n_edges
    outcomes = []
    for compute, number in (
        (spline_message_passing, dtype),
        (reference_spline_message_passing, torch.float64),
    ):
        splines = splined(kinds, form.n_weights, device, number)
        distances = reduced.clone().requires_grad_()
        inputs = [x.to(number).requires_grad_()] if has_features else []
        inputs += [y.to(number).requires_grad_(), distances]
        places = splines.places(distances, kind)
        features = inputs[0] if has_features else None
        value = compute(form, features, inputs[-2], splines, places, graph)
        outcomes.append([value.detach(), *torch.autograd.grad(value, inputs, g.to(number))])
    for mine, theirs in zip(*outcomes, strict=True):
        assert error(mine.double(), theirs) < (EXACT if dtype == torch.float64 else SINGLE)
    beyond = reduced >= 1
    assert not outcomes[0][-1][beyond].any() and not outcomes[0][-2][beyond].any()
    assert outcomes[0][-1][~beyond].all()


def test_splines_do_not_look_at_padding(device: str) -> None:
    """Edges behind the last row pointer, and those marked as not counting, may hold anything."""
    graph = few_edges().to(device)
    x, y, _ = (t.detach().to(device) for t in random_operands(SMALL, graph))
    splines = splined(2, SMALL.n_weights, device)
    places = splines.places(
        graph.edge_vectors().norm(dim=1) / 1.2, torch.arange(graph.n_edges, device=device) % 2
    )
    assert places.kind is not None
    dead = places.interval < 0
    g = x.new_ones(graph.n_atoms, SMALL.irreps_out.dim)
    expected = [
        reference_spline_message_passing(SMALL, x, y, splines, places, graph),
        *reference_spline_reverse(SMALL, x, y, splines, places, graph, g),
    ]
    t, spoiled, kind = places.t.clone(), y.clone(), places.kind.clone()
    t[dead], spoiled[dead], kind[dead] = torch.nan, torch.nan, 10**9
    # The twin in plain torch does not look at them either, NaN of the harmonics apart.
    twin = Places(places.interval, t, kind)
    assert torch.equal(splines.weights(twin), splines.weights(places))
    nowhere = torch.full((3,), 10**12, device=device)
    padded = Padded(
        graph,
        receiver=torch.cat([graph.receiver, nowhere]),
        sender=torch.cat([graph.sender, nowhere]),
        sender_order=torch.cat([graph.sender_order, nowhere]),
    )
    wide = Places(
        torch.cat([places.interval, places.interval.new_full((3,), 10**9)]),
        torch.cat([t, t.new_full((3,), torch.nan)]),
        torch.cat([kind, kind.new_full((3,), 10**9)]),
    )
    spoiled = torch.cat([spoiled, spoiled.new_full((3, 4), torch.nan)])
    found = [
        spline_message_passing(SMALL, x, spoiled, splines, wide, padded),
        *spline_reverse(SMALL, x, spoiled, splines, wide, padded, g),
    ]
    for k, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert error(mine[: len(theirs)], theirs) < EXACT
        assert k < 2 or not mine[len(theirs) :].any()


@dataclass(frozen=True)
class Padded:
    """A graph with more room for edges than it has."""

    graph: AtomGraph
    receiver: Tensor
    sender: Tensor
    sender_order: Tensor

    @property
    def n_atoms(self) -> int:
        return self.graph.n_atoms

    @property
    def n_edges(self) -> int:
        return len(self.sender)

    @property
    def row_pointer(self) -> Tensor:
        return self.graph.row_pointer

    @property
    def sender_pointer(self) -> Tensor:
        return self.graph.sender_pointer


def test_splines_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"splines on 4 knots have coefficients \[kinds, 3, 6, n_weights\]"):
        RadialSplines(torch.linspace(0, 1, 4, dtype=torch.float64), torch.zeros(1, 4, 6, 2))
    with pytest.raises(ValueError, match="of which kind"):
        splined(2, 1, "cpu").places(torch.tensor([0.5], dtype=torch.float64))


@installed
def test_the_host_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that are said to be on a GPU and hold nothing: looking at a number in one raises."""
    from equipes.kernels.triton import splines as module

    launched: list[str] = []
    monkeypatch.setattr(module, "launch", lambda form, variant, n, given: launched.append(variant.kind))
    monkeypatch.delenv("EQUIPES_KERNEL", raising=False)
    graph = few_edges()
    x, y, _ = (t.detach() for t in random_operands(SMALL, graph))
    splines, reduced = splined(1, SMALL.n_weights, "cpu"), graph.edge_vectors().norm(dim=1) / 1.2
    g = x.new_ones(graph.n_atoms, SMALL.irreps_out.dim)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.no_grad():

        def there(tensor: Tensor) -> Tensor:
            return torch.empty_like(mode.from_tensor(tensor), device="cuda")

        on_gpu = replace(
            graph,
            **{
                name: there(getattr(graph, name))
                for name in ("positions", "receiver", "sender", "row_pointer", "sender_order", "shift")
            },
        )
        table = RadialSplines(there(splines.knots), there(splines.coefficients))
        places = table.places(there(reduced))
        spline_message_passing(SMALL, there(x), there(y), table, places, on_gpu)
        found = spline_reverse(SMALL, there(x), there(y), table, places, on_gpu, there(g))
        assert [t.device.type for t in found] == ["cuda"] * 3
    assert launched == ["messages", "senders", "edges"]


SEVENNET = Model(
    "sevennet",
    "sevennet",
    {
        "r_max": 1.5,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 3,
        "num_bessels": 3,
        "radial_mlp_width": 4,
        "per_type_energy_scales": {"H": 0.8, "C": 1.3, "O": 1.1},
        "per_type_energy_shifts": {"H": -1.25, "C": 3.0, "O": -2.5},
    },
    {},
    (1.5,),
)
MODELS = [
    nequip("small", r_max=1.5, num_features=3, num_bessels=3, radial_mlp_width=4, parity=True),
    mace("small", r_max=1.5, max_ell=2, hidden_irreps="2x0e + 2x1o", correlation=2),
    SEVENNET,
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_whole_models(model: Model, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy, forces, stress, and the gradient of a loss on all three, which goes through the forces."""
    atoms = Atoms("OHC", positions=[[0, 0, 0], [0.9, 0, 0.2], [-0.3, 1.2, -0.1]], cell=[9, 9, 9], pbc=True)
    graph = graph_of([atoms], 1.5).to(device)
    outcomes = []
    for choice in (None, "reference"):
        if choice:
            monkeypatch.setenv("EQUIPES_KERNEL", choice)
        potential: Potential = model.potential().to(device).train()
        prediction = potential(graph)
        energy, forces, stress = prediction.energy, prediction.forces, prediction.stress
        (energy.sum() + (forces**2).sum() + 1e3 * (stress**2).sum()).backward()
        gradients = [p.grad.flatten() for p in potential.parameters() if p.grad is not None]
        outcomes.append([t.detach() for t in (energy, forces, stress, torch.cat(gradients))])
    for mine, theirs in zip(*outcomes, strict=True):
        assert error(mine, theirs) < 1e-11


@installed
@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("sevennet", [Variant("messages", False), Variant("senders", False), Variant("edges", False)]),
        ("mace", [Variant("messages", False), Variant("senders", False), Variant("edges", False)]),
        ("nequip", [Variant("messages", True), Variant("senders", False)]),
        ("nequip", [Variant("edges", False, "wxy", ("tangent",))]),
        ("mace", [Variant("edges", False, wanted="yt", splines=True)]),
    ],
    ids=["sevennet", "mace", "nequip", "nequip tangents", "mace splines"],
)
def test_compiled_for_an_h100_nothing_is_spilled(name: str, variants: list[Variant]) -> None:
    """`benchmarks/gpu_kernels.py --resources` looks at all kernels of more forms, for which there is no time here."""
    from equipes.kernels.triton.launch import assemble

    for variant in variants:
        assembly = assemble(TYPICAL[name], variant)
        assert assembly.local_bytes == 0 and assembly.registers <= 168
        # Sums over neighbours in a fixed order; float32 is that, not the TF32 of matrix units.
        assert not {"atom", "red", "mma", "wgmma"} & set(assembly.ptx.replace(".", " ").split())
        assert ("fma.rn.f64" if variant.double else "fma.rn.f32") in assembly.ptx


TYPICAL = {
    "nequip": MessagePassingForm(
        Irreps("32x0e + 32x1o + 32x2e"), 2, [Irrep(0, 1), Irrep(1, -1), Irrep(2, 1)]
    ),
    "sevennet": MessagePassingForm(
        Irreps("128x0e + 64x1e + 32x2e"), 2, [Irrep(l, 1) for l in range(3)], parity=1
    ),
    "mace": MessagePassingForm(Irreps("128x0e + 128x1o"), 3, [Irrep(l, (-1) ** l) for l in range(4)]),
}


@installed
def test_arguments_as_a_gpu_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a launch but the launch, for a GPU that is made up: types, alignment, and no number compiled in."""
    from equipes.kernels.triton.launch import OPTIONS, compiled

    graph = few_edges()
    x, y, _ = (t.detach() for t in random_operands(SMALL, graph))
    splines = splined(16, SMALL.n_weights, "cpu")
    places = splines.places(graph.edge_vectors().norm(dim=1), torch.zeros(graph.n_edges))
    given = {
        "x": x,
        "y": y,
        "g": x.new_zeros(graph.n_atoms, SMALL.irreps_out.dim),
        "table": splines.coefficients,
    }
    given |= {"interval": places.interval, "place": places.t, "table_kind": places.kind, "n_intervals": 16}
    given |= {"dy": torch.zeros_like(y), "dt": torch.zeros_like(places.t)}
    given |= {"row_pointer": graph.row_pointer, "sender": graph.sender}
    variant = Variant("edges", True, wanted="yt", splines=True, kinds=True)
    compile_for_an_h100(monkeypatch)
    code = compiled(kernel(SMALL, variant))
    found = code.warmup(*(given[name] for name in arguments(variant)), grid=(graph.n_atoms, 2), **OPTIONS)
    assert found.src.signature == pointer_types(variant) | {"n_intervals": "i32"}
    assert not found.src.constants
    assert found.metadata.num_warps == 1


def test_places_in_rows_need_64_bits() -> None:
    """A million atoms have more weights than 2³¹: every row is counted in int64 from the start."""
    for kind, row in (("messages", "i"), ("senders", "j"), ("edges", "i")):
        text = kernel(TYPICAL["mace"], Variant(kind, False)).text
        assert f"{row} = tl.program_id(0).to(tl.int64)" in text
    splines = kernel(TYPICAL["mace"], Variant("edges", False, wanted="yt", splines=True, kinds=True)).text
    assert "at = tl.load(interval + e).to(tl.int64)" in splines
    assert "tl.load(table_kind + e).to(tl.int64) * n_intervals" in splines


def test_operands_that_do_not_fit(device: str) -> None:
    graph = few_edges().to(device)
    x, y, w = (t.detach().to(device) for t in random_operands(SMALL, graph))
    for given in ((x[1:], y, w), (x, y[1:], w), (x, y, w[:, 1:])):
        with pytest.raises(ValueError, match="features, harmonics and weights of 4 atoms and 4 edges"):
            message_passing(SMALL, *given, graph)
    splines = splined(1, SMALL.n_weights + 1, device)
    places = splines.places(graph.edge_vectors().norm(dim=1))
    with pytest.raises(ValueError, match="features, harmonics and weights"):
        spline_message_passing(SMALL, x, y, splines, places, graph)


def test_operands_and_indices_that_are_not_contiguous(device: str) -> None:
    graph = few_edges().to(device)
    operands = [t.detach().to(device) for t in random_operands(SMALL, graph)]
    scattered = [torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0] for t in operands]
    names = ("receiver", "sender", "row_pointer", "sender_order")
    strided = replace(graph, **{name: torch.stack([getattr(graph, name)] * 2, dim=1)[:, 0] for name in names})
    assert not strided.sender.is_contiguous() and not scattered[0].is_contiguous()
    outcomes = []
    for given, where in ((scattered, strided), (operands, graph)):
        leaves = [t.requires_grad_() for t in given]
        value = message_passing(SMALL, *leaves, where)
        outcomes.append([value.detach(), *torch.autograd.grad((value**2).sum(), leaves)])
    for mine, theirs in zip(*outcomes, strict=True):
        assert torch.equal(mine, theirs)


@installed
def test_without_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton says when it cannot build what starts its kernels becomes one sentence."""
    from equipes.kernels.triton import launch

    class Helpless:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            def start(*_: object, **__: object) -> None:
                raise RuntimeError("Failed to find C compiler.")

            return start

    monkeypatch.setattr(launch, "compiled", lambda code: Helpless())
    variant = Variant("messages", False)
    given = dict.fromkeys(arguments(variant), torch.empty(1, device="meta"))
    with pytest.raises(
        InputError, match=r"needs a C compiler .*; install gcc, or set EQUIPES_KERNEL=reference"
    ):
        launch.launch(SMALL, variant, 1, given)


class TestChoice:
    @pytest.fixture(autouse=True)
    def unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("EQUIPES_KERNEL", raising=False)

    def test_by_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ours, "installed", lambda: True)
        assert kernel_name("cuda") == "triton"
        assert kernel_name() == kernel_name("cpu") == next(iter(kernels.KERNELS))
        assert kernel_name("mps") == "reference"

    def test_by_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ours, "installed", lambda: True)
        for name in ("triton", *kernels.KERNELS):
            monkeypatch.setenv("EQUIPES_KERNEL", name)
            assert kernel_name() == kernel_name("cuda") == name

    def test_where_it_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ours, "installed", lambda: False)
        assert kernel_name("cuda") == "reference"
        monkeypatch.setenv("EQUIPES_KERNEL", "triton")
        with pytest.raises(
            InputError, match=r"EQUIPES_KERNEL=triton: Triton is not installed; get it with .*gpu"
        ):
            kernel_name()

    def test_where_it_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from equipes.kernels.triton import launch

        monkeypatch.setitem(sys.modules, "triton", None)
        launch._triton.cache_clear()
        with pytest.raises(InputError, match="Triton cannot be used here"):
            launch._triton()

    def test_importing_equipes_does_not_import_triton(self) -> None:
        script = "import sys, equipes, equipes.kernels.splines; sys.exit('triton' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
