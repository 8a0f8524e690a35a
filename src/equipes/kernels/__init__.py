"""Equivariant message passing behind one function, whatever computes it.

`EQUIPES_KERNEL` chooses: `native` (compiled C++; the default on the CPU where it was built), `triton` (the default on
a GPU where Triton is installed; on the CPU its interpreter, for tests), `reference` (plain torch), or the kernels of
others where they are installed (`equipes.kernels.peers`): `cuequivariance`, `openequivariance`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels import native, peers, reference, triton
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.native import operation

__all__ = ["KERNELS", "Call", "MessagePassingForm", "kernel_name", "message_passing", "recorded"]

# Those of the CPU, the best one first.
KERNELS = {"native": operation.message_passing} if native.usable_instruction_sets() else {}
KERNELS["reference"] = reference.message_passing


@dataclass(frozen=True, eq=False)
class Call:
    """One call of `message_passing`: its arguments and what came out."""

    form: MessagePassingForm
    x: Tensor
    harmonics: Tensor
    weights: Tensor
    messages: Tensor


_record: ContextVar[list[Call] | None] = ContextVar("record", default=None)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Collects the calls of `message_passing` made inside, in order, for derivatives that go along the edges."""
    calls: list[Call] = []
    token = _record.set(calls)
    try:
        yield calls
    finally:
        _record.reset(token)


def kernel_name(device: str = "cpu") -> str:
    """The kernel that runs: `EQUIPES_KERNEL`, or the best one that there is for tensors on a device.

    Args:
        device: its type, `cpu` or `cuda`.

    Raises:
        InputError: the variable names a kernel that is unknown, was not built or is not installed.
    """
    name = os.environ.get("EQUIPES_KERNEL")
    if not name:
        if device == "cpu":
            return next(iter(KERNELS))
        return "triton" if device == "cuda" and triton.installed() else "reference"
    here = [*KERNELS, *(["triton"] if triton.installed() else []), *peers.installed()]
    if name not in here:
        if name == "native":
            raise InputError(
                "EQUIPES_KERNEL=native: this build has no native kernel; install equipes where there is a compiler, "
                f"or set it to one of: {', '.join(here)}"
            )
        if name == "triton":
            raise InputError(
                "EQUIPES_KERNEL=triton: Triton is not installed; get it with `pip install 'equipes[gpu]'` (Linux on "
                f"x86-64), or set it to one of: {', '.join(here)}"
            )
        if name in peers.PEERS:
            raise InputError(
                f"EQUIPES_KERNEL={name}: it is not installed; get it with {peers.PEERS[name][1]}, or set it to one of: "
                f"{', '.join(here)}"
            )
        raise InputError(f"EQUIPES_KERNEL={name}: no such kernel; set it to one of: {', '.join(here)}")
    return name


def message_passing(
    form: MessagePassingForm, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph
) -> Tensor:
    """Sum over neighbours of the coupled products of their features with the spherical harmonics of the edges.

    Args:
        form: the couplings.
        x: `[N, form.irreps_in.dim]` features of the senders.
        harmonics: `[E, (form.l_max+1)²]`.
        weights: `[E, form.n_weights]`.
        graph: N atoms, E edges.

    Returns:
        `[N, form.irreps_out.dim]`.

    Raises:
        InputError: `EQUIPES_KERNEL` names a kernel that is not there, or a peer that cannot compute this.
    """
    name = kernel_name(x.device.type)
    if name == "triton":
        from equipes.kernels.triton import operation as on_triton

        messages = on_triton.message_passing(form, x, harmonics, weights, graph)
    elif name in peers.PEERS:
        messages = peers.message_passing(name, form, x, harmonics, weights, graph)
    else:
        messages = KERNELS[name](form, x, harmonics, weights, graph)
    calls = _record.get()
    if calls is not None:
        calls.append(Call(form, x, harmonics, weights, messages))
    return messages
