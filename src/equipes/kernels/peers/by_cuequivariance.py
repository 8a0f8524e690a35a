"""Message passing by NVIDIA's cuEquivariance (https://github.com/NVIDIA/cuEquivariance, Apache-2.0).

On a GPU by its compiled kernels for polynomials of one uniform mode (`cuequivariance-ops-torch`, a package of its own,
under NVIDIA's licence), on the CPU by its plain PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equipes.clebsch_gordan import wigner_3j
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.peers import Kernel


def polynomial(form: MessagePassingForm) -> Any:
    """The form as a `cuequivariance.SegmentedPolynomial` of weights, features and harmonics of each edge.

    Its operands lie as ours do: weights as one segment `[u]` a path, features `[2l+1, u]` a block, harmonics `[2l+1]` a
    degree. Its result has one segment `[2l+1, u]` a path, in the order of the paths.
    """
    import cuequivariance as cue

    product = cue.SegmentedTensorProduct.from_subscripts("u,iu,j,ku+ijk")
    for multiplicity, irrep in form.irreps_in:
        product.add_segment(1, (irrep.dim, multiplicity))
    for degree in range(form.l_max + 1):
        product.add_segment(2, (2 * degree + 1,))
    for path in form.paths:
        multiplicity, irrep = form.irreps_in[path.block]
        coupling = math.sqrt(path.out.dim) * wigner_3j(irrep.l, path.l2, path.out.l)
        weight = product.add_segment(0, (multiplicity,))
        result = product.add_segment(3, (path.out.dim, multiplicity))
        product.add_path(weight, path.block, path.l2, result, c=coupling)
    return cue.SegmentedPolynomial.eval_last_operand(product)


def uniform(form: MessagePassingForm) -> Any:
    """The same polynomial in segments of equal width, which the kernels on a GPU need; operands lie as before."""
    width, _ = form.output_order
    return polynomial(form).flatten_coefficient_modes().split_mode("u", width)


def kernel(form: MessagePassingForm, device: torch.device) -> Kernel:
    """The form's kernel on a device.

    Raises:
        InputError: a GPU without the compiled kernels.
    """
    from cuequivariance_torch import SegmentedPolynomial

    if device.type == "cuda":
        module = SegmentedPolynomial(uniform(form), method="uniform_1d")
        if module.method != "uniform_1d":
            raise InputError(
                "EQUIPES_KERNEL=cuequivariance: its compiled kernels are not installed, which tensors on a GPU need; "
                "get them with `pip install cuequivariance-ops-torch-cu12` (or -cu13), or unset EQUIPES_KERNEL"
            )
    else:
        module = SegmentedPolynomial(polynomial(form), method="naive")
    return Messages(form, module.to(device), device)


class Messages:
    """Messages of the edges by a segmented polynomial, summed by it, in the order of the form's result."""

    def __init__(self, form: MessagePassingForm, module: torch.nn.Module, device: torch.device) -> None:
        self.module = module
        self.width, order = form.output_order
        self.order = torch.tensor(order, device=device)

    def __call__(self, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph) -> Tensor:
        # Of what is given for the shape of the result it reads the number of rows.
        (sums,) = self.module(
            [weights, x, harmonics],
            input_indices={1: graph.sender},
            output_shapes={0: x},
            output_indices={0: graph.receiver},
        )
        return sums.unflatten(1, (-1, self.width)).index_select(1, self.order).flatten(1)
