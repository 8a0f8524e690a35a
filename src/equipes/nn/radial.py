"""What an edge knows of its length: radial basis, cutoff, and the network that makes weights of them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class BesselBasis(nn.Module):
    """b_n(x) = sin(n π x) / (π x), n = 1..`size`, of the reduced distance x = r / r_c (Gasteiger et al., ICLR 2020).

    With `trainable` the roots n are parameters.
    """

    def __init__(self, size: int, *, trainable: bool = False) -> None:
        super().__init__()
        roots = torch.arange(1, size + 1, dtype=torch.float64)
        self.roots: Tensor
        if trainable:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots)

    def forward(self, x: Tensor) -> Tensor:
        """`[E]` -> `[E, size]`."""
        x = x.unsqueeze(-1)
        return torch.sin(self.roots.to(x.dtype) * math.pi * x) / (math.pi * x)


def polynomial_cutoff(x: Tensor, p: int) -> Tensor:
    """u(x): 1 at x = 0, 0 from x = 1 on, with p - 1 continuous derivatives at 0 and two at 1 (Gasteiger et al. 2020).

    Args:
        x: reduced distances, any shape.
        p: the power; larger keeps neighbours longer.
    """
    u = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )  # fmt: skip
    return u * (x < 1)


def xplor_cutoff(lengths: Tensor, r_on: float, r_max: float) -> Tensor:
    """1 up to `r_on`, then (r_c² - r²)² (r_c² + 2 r² - 3 r_on²) / (r_c² - r_on²)³, 0 from r_c = `r_max` on.

    It and its first derivative are continuous at both ends (the switching function of X-PLOR and CHARMM).

    Args:
        lengths: any shape, Å.
        r_on: where the decay begins, Å.
        r_max: the cutoff, Å.
    """
    r2, on2, max2 = lengths**2, r_on**2, r_max**2
    decay = (max2 - r2) ** 2 * (max2 + 2 * r2 - 3 * on2) / (max2 - on2) ** 3
    return torch.where(lengths < r_on, torch.ones_like(lengths), decay * (lengths < r_max))


class ScalarMLP(nn.Module):
    """A network on scalars without bias: SiLU between linear layers, weights of order one, scales in the forward pass.

    Layer k computes `h W_k c_k` with c_0 = 1/√fan_in and c_k = s/√fan_in, where s is the factor of the activation: √2
    in NequIP, `SILU_SCALE` in what follows e3nn. W_k starts uniform in (-√3, √3), that is with unit variance.
    """

    def __init__(
        self, n_in: int, hidden: list[int], n_out: int, *, activation_scale: float = math.sqrt(2)
    ) -> None:
        super().__init__()
        self.activation_scale = activation_scale
        widths = [n_in, *hidden, n_out]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(a, b).uniform_(-math.sqrt(3), math.sqrt(3))) for a, b in pairwise(widths)
        )

    def forward(self, h: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., n_out]`."""
        for k, weight in enumerate(self.weights):
            if k > 0:
                h = nn.functional.silu(h)
            scale = 1.0 if k == 0 else self.activation_scale
            h = h @ (weight * (scale / math.sqrt(weight.shape[0])))
        return h


class AgnesiTransform(nn.Module):
    """x = 1 / (1 + a s^q / (1 + s^(q-p))), s = r / r0, r0 half the sum of the covalent radii (Witt et al. 2023).

    It turns a distance into a number from 1 (near) to 0 (far) that changes most where atoms of the pair bond.
    """

    def __init__(self, radii: Tensor) -> None:
        super().__init__()
        for name, value in (("q", 0.9183), ("p", 4.5791), ("a", 1.0805)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("covalent_radii", radii.clone())
        self.q: Tensor
        self.p: Tensor
        self.a: Tensor
        self.covalent_radii: Tensor

    def forward(self, r: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """`[E]` Å -> `[E]`; `receiver` and `sender` are the species at the ends of the edges."""
        s = r / (0.5 * (self.covalent_radii[receiver] + self.covalent_radii[sender]))
        return 1 / (1 + self.a * s**self.q / (1 + s ** (self.q - self.p)))


class SoftTransform(nn.Module):
    """x = p0 + (r - p0) · ½(1 + tanh(α (r - (p0 + p1)/2) / (p1 - p0))), p0 = ¾ r0 and p1 = 4/3 r0.

    Distances from r0, the sum of the covalent radii, on stay what they are; shorter ones all become about p0.
    """

    def __init__(self, radii: Tensor) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(4.0, dtype=torch.float64))
        self.register_buffer("covalent_radii", radii.clone())
        self.alpha: Tensor
        self.covalent_radii: Tensor

    def forward(self, r: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """`[E]` Å -> `[E]` Å; `receiver` and `sender` are the species at the ends of the edges."""
        r0 = self.covalent_radii[receiver] + self.covalent_radii[sender]
        near, far = 3 / 4 * r0, 4 / 3 * r0
        step = 0.5 * (1 + torch.tanh(self.alpha / (far - near) * (r - 0.5 * (near + far))))
        return near + (r - near) * step
