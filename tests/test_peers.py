"""Kernels of others compute what the reference kernel does, with our weights where they lie, or are refused.

OpenEquivariance cannot be imported without a GPU: what is asked of it here is answered by e3nn, whose conventions it
has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import o3
from torch import Tensor

from equipes.calculators import ase as calculators
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.irreps import Irrep, Irreps
from equipes.kernels import KERNELS, MessagePassingForm, kernel_name, message_passing, peers, reference
from equipes.kernels.peers import by_cuequivariance, by_openequivariance
from potentials import mace, nequip
from test_kernels import all_irreps, by_einsum, derivatives, random_operands

needs_cuequivariance = pytest.mark.skipif(
    find_spec("cuequivariance_torch") is None, reason="cuequivariance-torch is not installed"
)
CPU = torch.device("cpu")
NATURAL = [Irrep(l, (-1) ** l) for l in range(5)]
EVEN = [Irrep(l, 1) for l in range(5)]
FORMS = {
    "both parities": MessagePassingForm(Irreps((2, irrep) for irrep in all_irreps(1)), 1, all_irreps(1)),
    "even harmonics": MessagePassingForm(Irreps("6x0e + 4x1e + 2x2e"), 2, EVEN[:3], parity=1),
    "unused block and degree": MessagePassingForm(Irreps("3x0e + 2x2o + 3x1o"), 2, [Irrep(0, 1)]),
    "l 3": MessagePassingForm(Irreps("2x0e + 2x1o + 2x3o"), 3, NATURAL[:4]),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> MessagePassingForm:
    return request.param


@pytest.fixture
def graph() -> AtomGraph:
    """As in the tests of our kernels: images of one pair, an atom beside its own image, one without neighbours."""
    crystal = Atoms("CuO", positions=[[0, 0, 0], [1.1, 0.7, 1.3]], cell=[2.4, 2.6, 2.9], pbc=True)
    molecule = Atoms("OHHH", positions=[[0, 0, 0], [0.9, 0, 0.2], [0, 1.0, -0.1], [30.0, 0, 0]])
    return AtomGraph.batch([AtomGraph.from_atoms(atoms, 2.7) for atoms in (crystal, molecule)])


def same(compute: Callable[..., Tensor], form: MessagePassingForm, graph: AtomGraph) -> None:
    operands = random_operands(form, graph)
    expected = derivatives(by_einsum(form, graph), operands)
    for mine, theirs in zip(derivatives(compute, operands), expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 1e-13 * theirs.abs().max()


@needs_cuequivariance
class TestCuequivariance:
    @pytest.fixture(autouse=True)
    def chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EQUIPES_KERNEL", "cuequivariance")

    def test_values_and_two_derivatives(self, form: MessagePassingForm, graph: AtomGraph) -> None:
        same(lambda *operands: message_passing(form, *operands, graph), form, graph)

    @pytest.mark.parametrize("name", [name for name in FORMS if name != "l 3"])  # which takes long to set up
    def test_what_a_gpu_gets_lies_as_on_the_cpu(self, name: str, graph: AtomGraph) -> None:
        """Segments of one width and scalar coefficients: the same polynomial, by the arithmetic of the CPU."""
        from cuequivariance_torch import SegmentedPolynomial

        form = FORMS[name]
        pieces = by_cuequivariance.uniform(form)
        width, _ = form.output_order
        for operand, shape in zip(pieces.operands, [(width,), (width,), (), (width,)], strict=True):
            assert set(operand.segments) == {shape}
        assert {path.coefficients.shape for _, product in pieces.operations for path in product.paths} == {()}
        on_cpu = by_cuequivariance.Messages(form, SegmentedPolynomial(pieces, method="naive"), CPU)
        same(lambda *operands: on_cpu(*operands, graph), form, graph)

    def test_float32(self, graph: AtomGraph) -> None:
        form = FORMS["both parities"]
        operands = random_operands(form, graph)
        exact = reference.message_passing(form, *operands, graph)
        single = message_passing(form, *(t.float() for t in operands), graph)
        assert single.dtype == torch.float32
        assert (single - exact).abs().max() < 1e-6 * exact.abs().max()

    def test_nothing_to_compute(self, graph: AtomGraph) -> None:
        alone = AtomGraph.from_atoms(Atoms("HH", positions=[[0, 0, 0], [40, 0, 0]]), 3.0)
        form = FORMS["both parities"]
        value = message_passing(form, *random_operands(form, alone), alone)
        assert value.shape == (2, form.irreps_out.dim) and not value.any()
        without = MessagePassingForm(Irreps("2x0e"), 1, [Irrep(2, 1)])
        assert message_passing(without, *random_operands(without, graph), graph).shape == (graph.n_atoms, 0)

    @pytest.mark.parametrize("small", [nequip("base"), mace("base")], ids=lambda model: model.architecture)
    def test_a_model_keeps_its_weights_and_its_numbers(
        self, small: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        potential = small.potential().train()
        graph = AtomGraph.from_atoms(
            Atoms("OHH", [[0, 0, 0], [0.9, 0, 0.2], [0, 1.0, -0.1]]), small.cutoffs[-1]
        )

        def computed() -> list[Tensor]:
            potential.zero_grad()
            prediction = potential(graph)
            (prediction.energy.sum() + (prediction.forces**2).sum()).backward()
            gradients = [p.grad.clone() for p in potential.parameters() if p.grad is not None]
            return [prediction.energy.detach(), prediction.forces.detach(), *gradients]

        calls = []
        whole = peers.message_passing
        monkeypatch.setattr(peers, "message_passing", lambda *given: calls.append(given[0]) or whole(*given))
        by_peer = computed()
        assert calls and set(calls) == {"cuequivariance"}
        monkeypatch.setenv("EQUIPES_KERNEL", "reference")
        for mine, theirs in zip(by_peer, computed(), strict=True):
            assert (mine - theirs).abs().max() <= 1e-11 * theirs.abs().max()

    def test_other_couplings_are_refused(self, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if the package had other signs in its tensors of l 2."""
        true = by_cuequivariance.wigner_3j
        monkeypatch.setattr(
            by_cuequivariance, "wigner_3j", lambda *l: true(*l) * (-1 if l == (1, 1, 2) else 1)
        )
        form = MessagePassingForm(Irreps("1x1o"), 1, [Irrep(0, 1), Irrep(2, 1)])
        with pytest.raises(InputError, match=r"cuequivariance: its messages of 1x1o .* off by .* unset"):
            message_passing(form, *random_operands(form, graph), graph)

    def test_a_gpu_without_compiled_kernels(self, recwarn: pytest.WarningsRecorder) -> None:
        if find_spec("cuequivariance_ops_torch"):
            pytest.skip("the compiled kernels are installed")
        with pytest.raises(
            InputError, match=r"its compiled kernels are not installed, .* cuequivariance-ops"
        ):
            by_cuequivariance.kernel(FORMS["both parities"], torch.device("cuda"))


class _LosesADerivative(torch.autograd.Function):
    """The identity, and its derivative, but not that of its derivative by the cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent.detach() + 0 * cotangent


# What a peer may get wrong: (what it is called with, what comes out) changed.
WRONG = {
    "messages": lambda compute, x, y, w, graph: 1.001 * compute(x, y, w, graph),
    "the other way": lambda compute, x, y, w, graph: compute(
        x, y, w, replace(graph, sender=graph.receiver, receiver=graph.sender)
    ),
    "derivatives by features": lambda compute, x, y, w, graph: compute(
        1.5 * x - 0.5 * x.detach(), y, w, graph
    ),
    "derivatives by weights": lambda compute, x, y, w, graph: compute(x, y, 0.5 * (w + w.detach()), graph),
    "not a number": lambda compute, x, y, w, graph: compute(x, y, w, graph) * float("nan"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_peer_that_computes_something_else_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = MessagePassingForm(Irreps("2x0e + 1x1o"), 1, [Irrep(0, 1), Irrep(1, -1)])

    def compute(*given: Any) -> Tensor:
        return reference.message_passing(form, *given)

    monkeypatch.setattr(peers, "_build", lambda *_: lambda *given: WRONG[what](compute, *given))
    said = what if "derivatives" in what else "messages"
    with pytest.raises(InputError, match=rf"EQUIPES_KERNEL=openequivariance: its {said} of .* are off by"):
        peers._checked("openequivariance", form, torch.float64, CPU)
    monkeypatch.setattr(peers, "_build", lambda *_: compute)
    assert peers._checked("openequivariance", form, torch.float64, CPU) is compute


def test_second_derivatives_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    form = MessagePassingForm(Irreps("2x0e + 1x1o"), 1, [Irrep(0, 1), Irrep(1, -1)])

    def compute(x: Tensor, y: Tensor, w: Tensor, graph: AtomGraph) -> Tensor:
        return _LosesADerivative.apply(reference.message_passing(form, x, y, w, graph))

    monkeypatch.setattr(peers, "_build", lambda *_: compute)
    with pytest.raises(
        InputError, match=r"cuequivariance: its second derivatives by cotangents of .* off by 1.0e"
    ):
        peers._checked("cuequivariance", form, torch.float64, CPU)


def test_failures_of_a_peer_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("nvcc: no such file\nand forty lines of it")

    monkeypatch.setattr(peers, "_build", fails)
    form = MessagePassingForm(Irreps("1x0e"), 0, [Irrep(0, 1)])
    with pytest.raises(
        InputError, match=r"it cannot compute 1x0e .* on cpu \(nvcc: no such file\); unset EQUIPES_KERNEL$"
    ):
        peers._checked("openequivariance", form, torch.float64, CPU)
    with pytest.raises(InputError, match="computes float32 and float64 here, not bfloat16; unset"):
        peers._checked("openequivariance", form, torch.bfloat16, CPU)


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda: ("cuequivariance",))
    monkeypatch.setenv("EQUIPES_KERNEL", "cuequivariance")
    assert kernel_name() == kernel_name("cuda") == "cuequivariance"
    # Frozen potentials have their own kernels, which have nothing to do with a choice of another.
    assert not calculators._can_freeze_on_device(nequip("base").potential(), torch.device("cuda"))
    monkeypatch.setenv("EQUIPES_KERNEL", "openequivariance")
    with pytest.raises(
        InputError,
        match=r"EQUIPES_KERNEL=openequivariance: it is not installed; get it with `pip .*: .*reference",
    ):
        kernel_name()
    monkeypatch.delenv("EQUIPES_KERNEL")
    assert kernel_name() == next(iter(KERNELS))  # never by itself


def test_openequivariance_has_no_kernels_for_the_cpu() -> None:
    with pytest.raises(InputError, match="openequivariance: it runs on GPUs, not on the cpu; unset"):
        by_openequivariance.kernel(FORMS["l 3"], torch.float64, CPU)


class _Convolution:
    """What `openequivariance.TensorProductConv` is documented to compute, by e3nn."""

    def __init__(self, problem: SimpleNamespace, *, deterministic: bool, torch_op: bool) -> None:
        assert problem.layout == "ir_mul" and not deterministic and torch_op
        assert problem.irrep_dtype is problem.weight_dtype is np.float64
        self.problem = problem
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            self.product = o3.TensorProduct(
                *problem.given, **problem.normalisation, internal_weights=False, shared_weights=False
            )
        finally:
            torch.set_default_dtype(default)

    def __call__(self, x: Tensor, y: Tensor, w: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        assert w.shape[1] == self.product.weight_numel
        messages = self.product(self._turned(x, self.product.irreps_in1)[cols], y, w)
        sums = x.new_zeros(len(x), messages.shape[1]).index_add(0, rows, messages)
        return self._turned(sums, self.product.irreps_out, back=True)

    def _turned(self, x: Tensor, irreps: o3.Irreps, back: bool = False) -> Tensor:
        """From `[2l+1, u]` to `[u, 2l+1]`, or back."""
        shapes = [(mul, irrep.dim) if back else (irrep.dim, mul) for mul, irrep in irreps]
        blocks = [x[:, s].unflatten(1, shape) for s, shape in zip(irreps.slices(), shapes, strict=True)]
        return torch.cat([block.transpose(1, 2).flatten(1) for block in blocks], dim=1)


def _problem(
    *given: Any,
    irrep_normalization: str,
    path_normalization: str,
    internal_weights: bool,
    shared_weights: bool,
    **rest: Any,
) -> SimpleNamespace:
    assert not internal_weights and not shared_weights
    normalisation = {"irrep_normalization": irrep_normalization, "path_normalization": path_normalization}
    return SimpleNamespace(given=given, normalisation=normalisation, **rest)


def test_what_openequivariance_is_asked_for(
    form: MessagePassingForm, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(Irreps=o3.Irreps, TPProblem=_problem, TensorProductConv=_Convolution)
    monkeypatch.setitem(sys.modules, "openequivariance", stand_in)
    compute = by_openequivariance.messages_by(form, torch.float64, CPU)
    same(lambda *operands: compute(*operands, graph), form, graph)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("peer", peers.PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_gpu(peer: str, dtype: torch.dtype, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    if peer not in peers.installed():
        pytest.skip(f"{peer} is not installed")
    monkeypatch.setenv("EQUIPES_KERNEL", peer)
    form = MessagePassingForm(Irreps((32, irrep) for irrep in NATURAL[:4]), 3, NATURAL[:4])
    operands = random_operands(form, graph)
    there = graph.to("cuda")
    expected = derivatives(by_einsum(form, graph), operands)
    found = derivatives(
        lambda *given: message_passing(form, *(t.to("cuda", dtype) for t in given), there).cpu().double(),
        operands,
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() < tolerance * theirs.abs().max()
