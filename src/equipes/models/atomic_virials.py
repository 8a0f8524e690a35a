"""Virials of single atoms, which carry the heat: exact for potentials whose atoms see farther than their neighbours.

The heat flux of N atoms with energies U_i that depend on all positions is (Z. Fan et al., Phys. Rev. B 92, 094301,
2015)

    J = Σ_i E_i v_i + Σ_j W_j v_j,    W_j = Σ_i (r_i - r_j) ⊗ ∂U_i/∂r_j,

with E_i = U_i + m_i v_i² / 2, and in a crystal every image of an atom counted where it is. With M layers of message
passing U_i depends on atoms up to M cutoffs away, and leaving those out loses part of the heat (M. F. Langer, F.
Knoop, C. Carbogno, M. Scheffler, M. Rupp, Phys. Rev. B 108, L100302, 2023). They unfold the crystal, which for small
cells means calculating it many times over. That is not needed where everything that an atom knows has come to it along
edges:

Let v_j move only the images of j, and look at its effect on atom i with the phase exp(iq(r_j - r_i)). The phase is the
product of those of the edges on the way, r_e for each, so the derivative by q at q = 0 is a sum over edges of r_e
times what the edge carries, the direct effect of its sender's motion and the effect that came from farther on. With
the energy U = Σ U_i, the edges' vectors r_e and, in layer l, the features x of the senders, the gradients λ_e =
∂U/∂r_e and g = ∂U/∂(messages), and the form F(x, Y, w, g) of message passing (`equipes.kernels`), linear in each
argument and a sum over edges,

    Σ_j W_j v_j = -Σ_e r_e (λ_e · v_sender) - Σ_l F(dx/dt, r Y, w, g),

where dx/dt is how the motion changes the features.

This last term is turned around: ∂F/∂x goes backward through the layers below once for each direction of r, and what
arrives at the edges is the rest of W. That is one calculation of forces and, for each direction, about another one,
whatever the size of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equipes import kernels
from equipes.graph import AtomGraph
from equipes.models.potential import Potential


@dataclass(frozen=True)
class AtomicVirials:
    """What carries heat; all float64 and without gradients.

    Attributes:
        energies: `[N]` eV.
        forces: `[N, 3]` eV/Å.
        virials: `[N, D, 3]` eV, W_j along D directions; their sum over the atoms is the virial, -dE/dstrain.
    """

    energies: Tensor
    forces: Tensor
    virials: Tensor


def atomic_virials(potential: Potential, graph: AtomGraph, directions: Tensor | None = None) -> AtomicVirials:
    """Energies, forces and virials of the atoms.

    Args:
        potential: of any architecture whose atoms learn of each other by edges and `equipes.kernels.message_passing`.
        graph: structures, with edges up to at least the potential's cutoff.
        directions: `[D, 3]`, the parts of the virials wanted; by default x, y and z. The time is proportional to D.

    Raises:
        InputError: as `Potential.forward`.
    """
    types, graph = potential.prepared(graph)
    with torch.inference_mode(False), torch.enable_grad():
        vectors = graph.edge_vectors().detach().requires_grad_()
        with kernels.recorded() as calls:
            energies = potential.model(types, vectors, graph)
        calls = [call for call in calls if call.messages.requires_grad]
        along, *at_messages = torch.autograd.grad(
            energies.sum(),
            [vectors, *(call.messages for call in calls)],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        if directions is None:
            directions = torch.eye(3)
        reach = vectors.detach() @ directions.to(vectors).T  # [E, D]
        below = [(call, g) for call, g in zip(calls, at_messages, strict=True) if call.x.requires_grad]
        virials = []
        for component in reach.unbind(1):
            virial = _to_senders(graph, -component.unsqueeze(1) * along)
            if below:
                farther = _from_farther(vectors, below, component, graph)
                virial = virial + _to_senders(graph, -farther).index_add(0, graph.receiver, farther)
            virials.append(virial)
        forces = _to_senders(graph, -along).index_add(0, graph.receiver, along)
    return AtomicVirials(energies.detach(), forces, torch.stack(virials, dim=1))


def _from_farther(
    vectors: Tensor, below: list[tuple[kernels.Call, Tensor]], component: Tensor, graph: AtomGraph
) -> Tensor:
    """`[E, 3]`: the derivative by the edges' vectors of Σ_l F(x, r Y, w, g), through the features x alone."""
    weighted = []
    for call, g in below:
        x = call.x.detach().requires_grad_()
        harmonics = call.harmonics.detach() * component.to(call.harmonics).unsqueeze(1)
        messages = kernels.message_passing(call.form, x, harmonics, call.weights.detach(), graph)
        weighted.append(torch.autograd.grad(messages, x, g)[0])
    (farther,) = torch.autograd.grad(
        [call.x for call, _ in below],
        vectors,
        weighted,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return farther


def _to_senders(graph: AtomGraph, values: Tensor) -> Tensor:
    return values.new_zeros(graph.n_atoms, 3).index_add(0, graph.sender, values)
