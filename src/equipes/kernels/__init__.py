"""Equivariant message passing behind one function, whatever computes it.

`EQUIPES_KERNEL` chooses: `native` (compiled; the default where it was built) or `reference` (plain torch).
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
from equipes.kernels import native, reference
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.native import operation

__all__ = ["KERNELS", "Call", "MessagePassingForm", "kernel_name", "message_passing", "recorded"]

# The best one first.
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


def kernel_name() -> str:
    """The kernel that runs: `EQUIPES_KERNEL`, or the best one that this build has.

    Raises:
        InputError: the variable names a kernel that is unknown or was not built.
    """
    name = os.environ.get("EQUIPES_KERNEL") or next(iter(KERNELS))
    if name not in KERNELS:
        built = ", ".join(KERNELS)
        if name == "native":
            raise InputError(
                "EQUIPES_KERNEL=native: this build has no native kernel; install equipes where there is a compiler, "
                f"or set it to one of: {built}"
            )
        raise InputError(f"EQUIPES_KERNEL={name}: no such kernel; set it to one of: {built}")
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
        InputError: `EQUIPES_KERNEL` names a kernel that is not there.
    """
    messages = KERNELS[kernel_name()](form, x, harmonics, weights, graph)
    calls = _record.get()
    if calls is not None:
        calls.append(Call(form, x, harmonics, weights, messages))
    return messages
