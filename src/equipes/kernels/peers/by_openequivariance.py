"""Message passing by OpenEquivariance (Bharadwaj, Glover, Buluç and Demmel, https://arxiv.org/abs/2501.13986; BSD-3).

It writes and compiles CUDA kernels for the couplings of e3nn's `TensorProduct`, whose conventions are ours, with the
sum over edges inside. Sums are made by atomic operations: its deterministic kernels want every edge to have its
reverse, which a graph of ours need not give them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.peers import Kernel


def problem(form: MessagePassingForm, dtype: torch.dtype) -> Any:
    """The form as an `openequivariance.TPProblem`, features `[2l+1, u]` and weights as they lie in ours.

    The result has one irrep a path, in the order of the paths. Parities do not enter its kernels, and a form of ours
    may call all harmonics even: all irreps are called even.
    """
    import openequivariance as oeq

    def even(parts: list[tuple[int, int]]) -> Any:
        return oeq.Irreps(" + ".join(f"{multiplicity}x{l}e" for multiplicity, l in parts))

    number = np.float64 if dtype == torch.float64 else np.float32
    return oeq.TPProblem(
        even([(multiplicity, irrep.l) for multiplicity, irrep in form.irreps_in]),
        even([(1, l) for l in range(form.l_max + 1)]),
        even([(form.irreps_in[path.block][0], path.out.l) for path in form.paths]),
        [(path.block, path.l2, k, "uvu", True) for k, path in enumerate(form.paths)],
        irrep_normalization="component",
        path_normalization="none",
        internal_weights=False,
        shared_weights=False,
        irrep_dtype=number,
        weight_dtype=number,
        layout="ir_mul",
    )


def kernel(form: MessagePassingForm, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The form's kernel on a device.

    Raises:
        InputError: a device that is no GPU; a package that cannot be imported here.
    """
    if device.type != "cuda":
        raise InputError(
            f"EQUIPES_KERNEL=openequivariance: it runs on GPUs, not on the {device.type}; unset EQUIPES_KERNEL, or "
            "give a CUDA device"
        )
    # Its workspace goes to the current device.
    with torch.cuda.device(device):
        return messages_by(form, dtype, device)


def messages_by(form: MessagePassingForm, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The convolution of the package, its result brought into the order of the form's."""
    import openequivariance as oeq

    convolution = oeq.TensorProductConv(problem(form, dtype), deterministic=False, torch_op=True)
    width, order = form.output_order
    places = torch.tensor(order, device=device)

    def messages(x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph) -> Tensor:
        sums: Tensor = convolution(x, harmonics, weights, graph.receiver, graph.sender)
        return sums.unflatten(1, (-1, width)).index_select(1, places).flatten(1)

    return messages
