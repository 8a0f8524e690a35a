"""The equivariant nonlinearity: scalars through an activation, everything else times an activated scalar."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equipes.irreps import Irrep, Irreps
from equipes.nn.linear import EVEN_SCALAR, ODD_SCALAR, split_blocks

# The factors that keep the second moment of a standard normal variable, with the digits of the reference package
# (the exact integrals differ in the third decimal).
SILU_SCALE = 1.6791767923989418
TANH_SCALE = 1.5937334472592695


class Gate(nn.Module):
    """Even scalars c·silu(x), odd scalars c·tanh(x), irreps of l > 0 times c·silu(gate), one gate per channel.

    Attributes:
        irreps_in: the united, sorted irreps that the gate takes; its 0e block holds the scalars, then the gates.
        irreps_out: scalars, then gated irreps, in the order given.
    """

    def __init__(self, scalars: Irreps, gated: Irreps) -> None:
        super().__init__()
        self.scalars, self.gated = scalars, gated
        gates = Irreps((mul, EVEN_SCALAR) for mul, _ in gated)
        self.irreps_in = Irreps([*scalars, *gates, *gated]).merged()
        self.irreps_out = Irreps([*scalars, *gated])

    def forward(self, x: Tensor) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`."""
        blocks = split_blocks(x, self.irreps_in)
        outputs: dict[Irrep, Tensor] = {}
        if EVEN_SCALAR in self.irreps_in.irreps:
            activated = SILU_SCALE * nn.functional.silu(blocks[str(EVEN_SCALAR)])  # [N, 1, scalars and gates]
            widths = [self.scalars.multiplicity(EVEN_SCALAR), *(mul for mul, _ in self.gated)]
            outputs[EVEN_SCALAR], *gates = activated.split(widths, dim=2)
            for (_, irrep), gate in zip(self.gated, gates, strict=True):
                outputs[irrep] = blocks[str(irrep)] * gate
        if ODD_SCALAR in self.scalars.irreps:
            outputs[ODD_SCALAR] = TANH_SCALE * torch.tanh(blocks[str(ODD_SCALAR)])
        return torch.cat([outputs[irrep].flatten(1) for irrep in self.irreps_out.irreps], dim=1)
