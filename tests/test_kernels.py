"""Every kernel against e3nn's tensor product and a sum over neighbours: values, first and second derivatives.

A kernel is tested by being listed in `equipes.kernels.KERNELS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from e3nn import o3
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.harmonics import MAX_L
from equipes.irreps import Irrep, Irreps
from equipes.kernels import KERNELS, MessagePassingForm, kernel_name, message_passing

Operands = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=list(KERNELS), autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EQUIPES_KERNEL", request.param)
    return request.param


@pytest.fixture
def graph() -> AtomGraph:
    """Six atoms: several images of one pair, an atom that is its own neighbour, and one without neighbours."""
    crystal = Atoms("CuO", positions=[[0, 0, 0], [1.1, 0.7, 1.3]], cell=[2.4, 2.6, 2.9], pbc=True)
    molecule = Atoms("OHHH", positions=[[0, 0, 0], [0.9, 0, 0.2], [0, 1.0, -0.1], [30.0, 0, 0]])
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, 2.7) for atoms in (crystal, molecule)])


def all_irreps(l_max: int) -> list[Irrep]:
    return [Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1)]


def random_operands(form: MessagePassingForm, graph: AtomGraph, seed: int = 0) -> Operands:
    """Features, harmonics and weights without structure: the form is multilinear in them, whatever they are."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (graph.n_atoms, form.irreps_in.dim),
        (graph.n_edges, (form.l_max + 1) ** 2),
        (graph.n_edges, form.n_weights),
    )
    x, y, w = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    )
    return x, y, w


def to_e3nn(x: Tensor, irreps: Irreps) -> Tensor:
    """Our blocks are `[2l+1, multiplicity]`, e3nn's `[multiplicity, 2l+1]`."""
    blocks = [
        x[:, s].unflatten(1, (irrep.dim, mul))
        for (mul, irrep), s in zip(irreps, irreps.slices(), strict=True)
    ]
    return torch.cat([block.transpose(1, 2).flatten(1) for block in blocks], dim=1)


def gather_paths(form: MessagePassingForm, results: list[Tensor]) -> Tensor:
    """Messages of each path, `[N, 2l+1, u]`, in the layout of the form's result."""
    blocks = []
    for _, irrep in form.irreps_out:
        same = [result for path, result in zip(form.paths, results, strict=True) if path.out == irrep]
        blocks.append(torch.cat(same, dim=2).flatten(1))
    return torch.cat(blocks, dim=1)


def by_e3nn(form: MessagePassingForm, graph: AtomGraph) -> Callable[..., Tensor]:
    """The same sum by e3nn's `TensorProduct` in mode "uvu"."""
    outputs = o3.Irreps([(form.irreps_in[path.block][0], str(path.out)) for path in form.paths])
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn bakes its coefficients in with the default precision
    try:
        product = o3.TensorProduct(
            o3.Irreps(str(form.irreps_in)),
            o3.Irreps.spherical_harmonics(form.l_max),
            outputs,
            [(path.block, path.l2, index, "uvu", True) for index, path in enumerate(form.paths)],
            irrep_normalization="component",
            path_normalization="none",
            internal_weights=False,
            shared_weights=False,
        )
    finally:
        torch.set_default_dtype(default)

    def compute(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        messages = product(to_e3nn(x, form.irreps_in)[graph.sender], y, w)
        sums = x.new_zeros(graph.n_atoms, outputs.dim).index_add(0, graph.receiver, messages)
        parts = [
            sums[:, s].unflatten(1, (mul, irrep.dim)).transpose(1, 2)
            for (mul, irrep), s in zip(outputs, outputs.slices(), strict=True)
        ]
        return gather_paths(form, parts)

    return compute


def by_einsum(form: MessagePassingForm, graph: AtomGraph) -> Callable[..., Tensor]:
    """The formula, path by path, with e3nn's Wigner 3j tensors (its `TensorProduct` takes long to set up)."""

    def compute(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        results, first = [], 0
        slices = form.irreps_in.slices()
        for path in form.paths:
            mul, irrep = form.irreps_in[path.block]
            features = x[:, slices[path.block]].unflatten(1, (irrep.dim, mul))[graph.sender]
            coupling = o3.wigner_3j(irrep.l, path.l2, path.out.l, dtype=torch.float64) * path.out.dim**0.5
            harmonics = y[:, path.l2**2 : (path.l2 + 1) ** 2]
            weights = w[:, first : (first := first + mul)]
            messages = torch.einsum("abc,eau,eb,eu->ecu", coupling, features, harmonics, weights)
            zeros = x.new_zeros(graph.n_atoms, path.out.dim, mul)
            results.append(zeros.index_add(0, graph.receiver, messages))
        return gather_paths(form, results)

    return compute


def derivatives(compute: Callable[..., Tensor], operands: Operands) -> list[Tensor]:
    """The value; the gradients of a contraction of it; the gradients of a contraction of those."""
    generator = torch.Generator().manual_seed(9)

    def contracted(tensors: list[Tensor]) -> Tensor:
        return sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in tensors)

    value = compute(*operands)
    # Not linear in the value, so that the second derivative by each operand with itself is there too.
    first = torch.autograd.grad(contracted([value, value**2]), operands, create_graph=True)
    second = torch.autograd.grad(contracted(list(first)), operands)
    return [t.detach() for t in (value, *first, *second)]


def same_derivatives(form: MessagePassingForm, graph: AtomGraph, reference: Callable[..., Tensor]) -> None:
    operands = random_operands(form, graph)
    ours = derivatives(lambda *args: message_passing(form, *args, graph), operands)
    theirs = derivatives(reference, operands)
    names = ["value"] + [
        f"{order} derivative by {o}" for order, o in itertools.product(("first", "second"), "xYw")
    ]
    for name, mine, expected in zip(names, ours, theirs, strict=True):
        assert mine.shape == expected.shape, name
        error = (mine - expected).abs().max() / expected.abs().max()
        assert error < 1e-13, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("l_max", [1, 2])
def test_against_e3nn(graph: AtomGraph, l_max: int) -> None:
    """Both parities, every coupling that there is."""
    irreps_in = Irreps((2, irrep) for irrep in all_irreps(l_max))
    form = MessagePassingForm(irreps_in, l_max, all_irreps(l_max))
    assert len(form.paths) == {1: 10, 2: 30}[l_max]
    same_derivatives(form, graph, by_e3nn(form, graph))


def test_against_e3nn_with_unequal_multiplicities(graph: AtomGraph) -> None:
    """Irreps in any order, some of them never produced, some never used."""
    form = MessagePassingForm(Irreps("4x1o + 6x0e + 2x2e"), 2, [Irrep(0, 1), Irrep(1, -1), Irrep(2, -1)])
    same_derivatives(form, graph, by_e3nn(form, graph))
    same_derivatives(form, graph, by_einsum(form, graph))


@pytest.mark.parametrize("degree", range(MAX_L + 1))
def test_every_degree(graph: AtomGraph, degree: int) -> None:
    """Features, harmonics and results up to `degree`, each of them reached; parity as without mirror images."""
    irreps_in = Irreps((1 + degree % 2, Irrep(d, (-1) ** d)) for d in range(degree + 1))
    wanted = [
        Irrep(d, p) for d in range(degree + 1) for p in ((-1) ** d, -((-1) ** d) if degree < 5 else (-1) ** d)
    ]
    form = MessagePassingForm(irreps_in, degree, wanted)
    assert {path.out.l for path in form.paths} == {path.l2 for path in form.paths} == set(range(degree + 1))
    same_derivatives(form, graph, by_einsum(form, graph))


def test_paths_and_layout() -> None:
    form = MessagePassingForm(Irreps("3x0e + 2x1o"), 1, [Irrep(1, -1), Irrep(0, 1), Irrep(1, 1)])
    assert [(path.block, path.l2, str(path.out)) for path in form.paths] == [
        (0, 0, "0e"),
        (0, 1, "1o"),
        (1, 1, "0e"),
        (1, 0, "1o"),
        (1, 1, "1e"),
    ]
    assert str(form.irreps_out) == "5x0e + 5x1o + 2x1e"
    assert form.n_weights == 3 + 3 + 2 + 2 + 2


def test_derivatives_are_finite_differences(graph: AtomGraph) -> None:
    form = MessagePassingForm(Irreps("2x0e + 1x1o + 1x1e"), 2, all_irreps(2))
    generator = torch.Generator().manual_seed(1)
    small = AtomGraph.from_atoms(Atoms("OHH", positions=[[0, 0, 0], [0.9, 0, 0.2], [0, 1.0, -0.1]]), 2.0)
    operands = random_operands(form, small)
    mix = torch.randn(form.irreps_out.dim, 2, generator=generator, dtype=torch.float64)

    def function(*args: Tensor) -> Tensor:
        return message_passing(form, *args, small) @ mix

    assert torch.autograd.gradcheck(function, operands, rtol=1e-7, atol=1e-7)
    assert torch.autograd.gradgradcheck(function, operands, rtol=1e-7, atol=1e-7)


def test_linear_in_every_argument(graph: AtomGraph) -> None:
    form = MessagePassingForm(Irreps("2x0e + 2x1o"), 2, all_irreps(2))
    first, second = random_operands(form, graph, 1), random_operands(form, graph, 2)
    for place in range(3):
        mixed, other = list(first), list(first)
        mixed[place] = 2 * first[place] - 3 * second[place]
        other[place] = second[place]
        expected = 2 * message_passing(form, *first, graph) - 3 * message_passing(form, *other, graph)
        error = (message_passing(form, *mixed, graph) - expected).abs().max() / expected.abs().max()
        assert error < 1e-14


def test_messages_flow_from_sender_to_receiver(graph: AtomGraph) -> None:
    """One edge, so that nothing but its receiver changes, and nothing but its sender is read."""
    form = MessagePassingForm(Irreps("1x0e"), 0, [Irrep(0, 1)])
    x, y, w = random_operands(form, graph)
    chosen = int(torch.nonzero(graph.sender != graph.receiver)[0])
    only = torch.zeros_like(w)
    only[chosen] = 1.0
    result = message_passing(form, x, torch.ones_like(y), only, graph)
    expected = torch.zeros_like(result)
    expected[graph.receiver[chosen]] = x[graph.sender[chosen]]
    assert torch.equal(result, expected)


def test_atoms_without_neighbours_and_graphs_without_edges() -> None:
    form = MessagePassingForm(Irreps("2x0e + 1x1o"), 1, all_irreps(1))
    empty = AtomGraph.from_atoms(Atoms("HH", positions=[[0, 0, 0], [40, 0, 0]]), 3.0)
    operands = random_operands(form, empty)
    value, *rest = derivatives(lambda *args: message_passing(form, *args, empty), operands)
    assert value.shape == (2, form.irreps_out.dim)
    assert not value.any()
    assert not any(t.any() for t in rest)


def test_form_without_paths(graph: AtomGraph) -> None:
    form = MessagePassingForm(Irreps("2x0e"), 1, [Irrep(2, 1)])
    assert form.paths == () and form.n_weights == 0
    assert message_passing(form, *random_operands(form, graph), graph).shape == (graph.n_atoms, 0)


def test_float32(graph: AtomGraph) -> None:
    form = MessagePassingForm(Irreps("2x0e + 2x1o + 2x2e"), 2, all_irreps(2))
    operands = random_operands(form, graph)
    exact = message_passing(form, *operands, graph)
    single = message_passing(form, *(t.float() for t in operands), graph)
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 1e-6 * exact.abs().max()


def test_choice_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KERNELS:
        monkeypatch.setenv("EQUIPES_KERNEL", name)
        assert kernel_name() == name
    for unset in (
        lambda: monkeypatch.delenv("EQUIPES_KERNEL"),
        lambda: monkeypatch.setenv("EQUIPES_KERNEL", ""),
    ):
        unset()
        assert kernel_name() in KERNELS


def test_unknown_kernel(graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    form = MessagePassingForm(Irreps("1x0e"), 0, [Irrep(0, 1)])
    operands = random_operands(form, graph)
    monkeypatch.setenv("EQUIPES_KERNEL", "quantum")
    with pytest.raises(
        InputError, match=r"EQUIPES_KERNEL=quantum: no such kernel; set it to one of: .*reference"
    ):
        message_passing(form, *operands, graph)


@pytest.mark.skipif("native" in KERNELS, reason="this build has the native kernel")
def test_kernel_that_was_not_built(graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    form = MessagePassingForm(Irreps("1x0e"), 0, [Irrep(0, 1)])
    operands = random_operands(form, graph)
    monkeypatch.setenv("EQUIPES_KERNEL", "native")
    with pytest.raises(InputError, match="EQUIPES_KERNEL=native: this build has no native kernel"):
        message_passing(form, *operands, graph)
