"""Message passing by the kernels of others, for comparison and choice: `EQUIPES_KERNEL` names the package.

They get our couplings, in our order and normalisation, and our numbers where they lie, so that no weight and no shape
depends on them. A package changes and fails in its own ways: before a form is computed by it for the first time, its
values, first and second derivatives on a small random graph are compared with those of the reference kernel.

Nothing here imports a peer before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels import reference
from equipes.kernels.form import MessagePassingForm

__all__ = ["PEERS", "Kernel", "installed", "message_passing"]

# The module of each that is imported, and how to get it.
PEERS = {
    "cuequivariance": (
        "cuequivariance_torch",
        "`pip install 'equipes[cuequivariance]'`, on a GPU also `cuequivariance-ops-torch-cu12` (or -cu13)",
    ),
    "openequivariance": (
        "openequivariance",
        "`pip install 'equipes[openequivariance]'` where there is a CUDA compiler",
    ),
}
# How far results may be from the reference kernel's in float64, relative to the largest.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}

Kernel = Callable[[Tensor, Tensor, Tensor, AtomGraph], Tensor]


@cache
def installed() -> tuple[str, ...]:
    """Names of the peers that there are."""
    return tuple(name for name, (module, _) in PEERS.items() if find_spec(module) is not None)


def message_passing(
    name: str, form: MessagePassingForm, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph
) -> Tensor:
    """Sum of the messages at every atom by a peer; see `equipes.kernels.message_passing`.

    Raises:
        InputError: the peer is not installed as it has to be, or cannot compute this form, number type or device, or
            computes something else than the reference kernel.
    """
    if not form.paths or graph.n_edges == 0:  # nothing to compute, of which not all of them know the shape
        return reference.message_passing(form, x, harmonics, weights, graph)
    kernel = _checked(name, form, x.dtype, x.device)
    return kernel(x, harmonics, weights, graph)


@lru_cache(maxsize=256)
def _checked(name: str, form: MessagePassingForm, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The peer's kernel of a form, once it has shown that it computes it."""
    if dtype not in _TOLERANCES:
        raise InputError(
            f"EQUIPES_KERNEL={name}: it computes float32 and float64 here, not {str(dtype).removeprefix('torch.')}; "
            "unset EQUIPES_KERNEL"
        )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            kernel = _build(name, form, dtype, device)
            found = _derivatives(kernel, form, dtype, device)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever goes wrong in somebody else's compiler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"EQUIPES_KERNEL={name}: it cannot compute {form.irreps_in} with harmonics up to l = {form.l_max} on "
            f"{device.type} ({reason}); unset EQUIPES_KERNEL"
        ) from error
    with torch.inference_mode(False), torch.enable_grad():
        expected = _derivatives(
            lambda *given: reference.message_passing(form, *given), form, torch.float64, device
        )
    for what, one, other in zip(_NAMES, found, expected, strict=True):
        off = (
            float((one.double() - other).abs().max() / other.abs().max())
            if one.shape == other.shape
            else float("inf")
        )
        if not off < _TOLERANCES[dtype]:
            raise InputError(
                f"EQUIPES_KERNEL={name}: its {what} of {form.irreps_in} with harmonics up to l = {form.l_max} are off "
                f"by {off:.1e} from the reference kernel; unset EQUIPES_KERNEL, and report it"
            )
    return kernel


def _build(name: str, form: MessagePassingForm, dtype: torch.dtype, device: torch.device) -> Kernel:
    if name == "cuequivariance":
        from equipes.kernels.peers import by_cuequivariance

        return by_cuequivariance.kernel(form, device)
    from equipes.kernels.peers import by_openequivariance

    return by_openequivariance.kernel(form, dtype, device)


_NAMES = (
    "messages",
    *(f"derivatives by {name}" for name in ("features", "harmonics", "weights")),
    *(f"second derivatives by {name}" for name in ("features", "harmonics", "weights", "cotangents")),
)


def _derivatives(
    kernel: Kernel, form: MessagePassingForm, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Messages of random operands on a small graph and derivatives as training on forces takes them (`_NAMES`)."""
    graph = _small_graph().to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (graph.n_atoms, form.irreps_in.dim),
        (graph.n_edges, (form.l_max + 1) ** 2),
        (graph.n_edges, form.n_weights),
        (graph.n_atoms, form.irreps_out.dim),
    )
    *operands, cotangent = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for shape in shapes
    )
    directions = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes[:3]
    ]
    messages = kernel(operands[0], operands[1], operands[2], graph)
    first = torch.autograd.grad(messages, operands, cotangent, create_graph=True)
    second = torch.autograd.grad(first, [*operands, cotangent], directions)
    return [t.detach() for t in (messages, *first, *second)]


def _small_graph() -> AtomGraph:
    """Four atoms: edges that have no reverse, two between the same atoms, an atom that is its own neighbour, and one
    that receives nothing."""
    receiver, sender = np.array([0, 0, 0, 1, 1, 1, 2, 2]), np.array([2, 1, 1, 3, 0, 1, 3, 0])
    counts = np.bincount(receiver, minlength=4)
    return AtomGraph(
        positions=torch.zeros(4, 3, dtype=torch.float64),
        numbers=torch.ones(4, dtype=torch.int64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        structure=torch.zeros(4, dtype=torch.int64),
        receiver=torch.tensor(receiver),
        sender=torch.tensor(sender),
        shift=torch.zeros(len(sender), 3, dtype=torch.float64),
        row_pointer=torch.tensor(np.concatenate([[0], np.cumsum(counts)])),
        sender_order=torch.tensor(np.argsort(sender, kind="stable")),
        cutoff=1.0,
    )
