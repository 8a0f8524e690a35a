"""Small SevenNet checkpoints with random weights, and what they mean, written with e3nn."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from e3nn import o3, set_optimization_defaults
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor

from equipes.graph import AtomGraph

set_optimization_defaults(jit_script_fx=False)  # compiling takes longer than all the rest

SYMBOLS = ["C", "H", "O"]  # alphabetical, as the package sorts them


def structure(seed: int = 0) -> Atoms:
    rng = np.random.default_rng(seed)
    return Atoms("CHOCH", positions=rng.uniform(0, 4, (5, 3)), cell=[4.0, 4.3, 4.6], pbc=True)


def config(**changes: Any) -> dict[str, Any]:
    """As the package writes it, with what we do not need left in."""
    hidden = changes.pop("hidden", "4x0e+3x1e+2x2e")
    layers = changes.get("num_convolution_layer", 3)
    return {
        "version": "0.9.1",
        "_model_type": "E3_equivariant_model",
        "_type_map": {atomic_numbers[symbol]: index for index, symbol in enumerate(SYMBOLS)},
        "irreps_manual": ["4x0e", *[hidden] * (layers - 1), "4x0e"],
        "lmax": 2,
        "is_parity": False,
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5},
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 2.6},
        "cutoff": 3.4,
        "num_convolution_layer": layers,
        "weight_nn_hidden_neurons": [6, 6],
        "self_connection_type": "linear",
        "interaction_type": "nequip",
        "act_radial": "silu",
        "_normalize_sph": True,
        "device": torch.device("cpu"),
        "shift": np.zeros(3, dtype=np.float32),
        "epoch": 12,
        "use_modality": False,
    } | changes  # fmt: skip


def modal(names: dict[str, int]) -> dict[str, Any]:
    places = ("self_inter_intro", "self_inter_outro", "output_block")
    return {"use_modality": True, "_modal_map": names} | {f"use_modal_{place}": True for place in places}


@cache
def plain() -> Reference:
    """One that all tests may share which leave it as it is."""
    return Reference(config())


class Reference(torch.nn.Module):
    """The package's model as a state dict and e3nn's own layers; `flipped` tables have the sign of old releases."""

    def __init__(
        self, settings: dict[str, Any], flipped: tuple[tuple[int, int, int], ...] = (), seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.settings, self.weights = settings, {}
        self.irreps = [o3.Irreps(text) for text in settings["irreps_manual"]]
        self.n_modalities = len(settings.get("_modal_map", {})) if settings["use_modality"] else 0
        self.gates = [self.gate(k) for k in range(settings["num_convolution_layer"])]
        scalars, weights = self.irreps[0], self.weights
        weights["edge_embedding.basis_function.coeffs"] = torch.pi * torch.arange(
            1.0, 6.0
        ) / 3.4 + 0.1 * torch.randn(5)
        weights["onehot_to_feature_x.linear.weight"] = torch.randn(len(SYMBOLS) * scalars.dim)
        self.linears: dict[str, o3.Linear] = {}
        for k in range(settings["num_convolution_layer"]):
            before, gate = self.irreps[k], self.gates[k]
            paths = self.paths(k)
            middle = o3.Irreps([(before[b].mul, (l3, 1)) for b, _, l3 in paths]).sort().irreps
            self.linear(f"{k}_self_connection_intro", before, gate.irreps_in)
            self.linear(f"{k}_self_interaction_1", before, before, self.n_modalities)
            self.linear(f"{k}_self_interaction_2", middle.simplify(), gate.irreps_in, self.n_modalities)
            weights[f"{k}_convolution.denominator"] = torch.tensor([4.0 + k])
            widths = [5, 6, 6, sum(before[b].mul for b, _, _ in paths)]
            for depth, shape in enumerate(pairwise(widths)):
                weights[f"{k}_convolution.weight_nn.layer{depth}.weight"] = torch.randn(*shape)
            for b, l2, l3 in paths:
                degrees = (before[b].ir.l, l2, l3)
                if 0 not in degrees:
                    name = f"{k}_convolution.convolution._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}"
                    weights[name] = o3.wigner_3j(*degrees) * (-1 if degrees in flipped else 1)
        self.linear("reduce_input_to_hidden", scalars, o3.Irreps(f"{scalars.dim // 2}x0e"), self.n_modalities)
        self.linear("reduce_hidden_to_energy", o3.Irreps(f"{scalars.dim // 2}x0e"), o3.Irreps("0e"))
        rows = (self.n_modalities, len(SYMBOLS)) if self.n_modalities else (len(SYMBOLS),)
        weights["rescale_atomic_energy.shift"] = torch.randn(*rows)
        weights["rescale_atomic_energy.scale"] = 1 + torch.rand(len(SYMBOLS))

    def gate(self, k: int) -> Gate:
        after = self.irreps[k + 1]
        rest = o3.Irreps([term for term in after if term.ir.l > 0])
        gates = o3.Irreps([(term.mul, "0e") for term in rest])
        silu = torch.nn.functional.silu
        first = o3.Irreps([term for term in after if term.ir.l == 0])
        return Gate(first, [silu], gates, [silu] * len(gates), rest)

    def paths(self, k: int) -> list[tuple[int, int, int]]:
        """(block, l2, l3) in the package's order."""
        wanted = {term.ir.l for term in self.gates[k].irreps_in}
        return [
            (b, l2, l3)
            for b, term in enumerate(self.irreps[k])
            for l2 in range(self.settings["lmax"] + 1)
            for l3 in range(abs(term.ir.l - l2), term.ir.l + l2 + 1)
            if l3 in wanted
        ]

    def linear(self, name: str, first: o3.Irreps, second: o3.Irreps, n_modalities: int = 0) -> None:
        # As in the package, the modality is one more block of scalars at the end of the input.
        own = o3.Irreps([*first, (n_modalities, "0e")]) if n_modalities else first
        self.linears[name] = layer = o3.Linear(own, second.simplify()).double()
        self.weights[f"{name}.linear.weight"] = torch.randn(layer.weight_numel)

    def save(self, path: Path, weights: dict[str, Any] | None = None, **changes: Any) -> Path:
        """A checkpoint of it, with other weights or configuration if they are given."""
        derived = {
            "0_convolution.convolution.output_mask": torch.ones(3),
            "reduce_hidden_to_energy.linear.bias": torch.zeros(0),
        }
        weights = self.weights if weights is None else weights
        torch.save(
            {"model_state_dict": weights | derived, "config": self.settings | changes, "epoch": 12}, path
        )
        return path

    def energies(self, graph: AtomGraph, modality: int | None = None) -> tuple[Tensor, Tensor]:
        """Energies of the atoms and forces, in float64."""
        settings = self.settings
        weights = {name: value.double() for name, value in self.weights.items()}
        one_hot = torch.eye(self.n_modalities, dtype=torch.float64)[modality] if self.n_modalities else None

        def apply(name: str, x: Tensor) -> Tensor:
            layer = self.linears[name]
            if layer.irreps_in.dim > x.shape[1]:
                x = torch.cat([x, one_hot.expand(len(x), -1)], dim=1)
            return layer(x, weights[f"{name}.linear.weight"])

        vectors = graph.edge_vectors().detach().requires_grad_()
        r, rc = vectors.norm(dim=1), settings["cutoff"]
        function = settings["cutoff_function"]
        if function["cutoff_function_name"] == "XPLOR":
            on = function["cutoff_on"]
            decay = (rc**2 - r**2) ** 2 * (rc**2 + 2 * r**2 - 3 * on**2) / (rc**2 - on**2) ** 3
            cutoff = torch.where(r < on, 1.0, decay)
        else:
            p, x = function["poly_cut_p_value"], r / rc
            cutoff = (
                1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
            )
        roots = weights["edge_embedding.basis_function.coeffs"]
        basis = 2 / rc * torch.sin(roots * r[:, None]) / r[:, None] * cutoff[:, None]
        harmonics = [
            o3.spherical_harmonics(
                l, vectors, normalize=settings["_normalize_sph"], normalization="component"
            )
            for l in range(settings["lmax"] + 1)
        ]
        types = torch.tensor([settings["_type_map"][z] for z in graph.numbers.tolist()])
        x = weights["onehot_to_feature_x.linear.weight"].view(len(SYMBOLS), -1)[types] / len(SYMBOLS) ** 0.5
        for k in range(settings["num_convolution_layer"]):
            before = self.irreps[k]
            layers = [weights[f"{k}_convolution.weight_nn.layer{depth}.weight"] for depth in range(3)]
            network = FullyConnectedNet(
                [w.shape[0] for w in layers] + [layers[-1].shape[1]], torch.nn.functional.silu
            )
            network = network.double()
            for own, values in zip(network, layers, strict=True):
                own.weight.data = values
            radial = network(basis)
            y = apply(f"{k}_self_interaction_1", x)
            sums: list[tuple[int, Tensor]] = []
            start = 0
            for b, l2, l3 in self.paths(k):
                mul, l1 = before[b].mul, before[b].ir.l
                table = f"{k}_convolution.convolution._compiled_main_left_right._w3j_{l1}_{l2}_{l3}"
                # The sign is the file's; the rounded numbers there would hide our own errors.
                exact = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                sign = 1 if table not in weights else (weights[table] * exact).sum().sign()
                coupling = sign * exact * (2 * l3 + 1) ** 0.5
                block = y[:, before.slices()[b]].view(-1, mul, 2 * l1 + 1)[graph.sender]
                message = torch.einsum(
                    "ijk,eui,ej,eu->euk", coupling, block, harmonics[l2], radial[:, start : start + mul]
                )
                total = torch.zeros(len(types), mul, 2 * l3 + 1, dtype=torch.float64)
                sums.append((l3, total.index_add(0, graph.receiver, message).flatten(1)))
                start += mul
            together = torch.cat([value for _, value in sorted(sums, key=lambda pair: pair[0])], dim=1)
            z = apply(f"{k}_self_interaction_2", together / weights[f"{k}_convolution.denominator"])
            x = self.gates[k](z + apply(f"{k}_self_connection_intro", x))
        e = apply("reduce_hidden_to_energy", apply("reduce_input_to_hidden", x))[:, 0]
        shift, scale = weights["rescale_atomic_energy.shift"], weights["rescale_atomic_energy.scale"]
        energies = e * scale[types] + (shift if shift.dim() == 1 else shift[modality])[types]
        (gradient,) = torch.autograd.grad(energies.sum(), vectors)
        forces = torch.zeros(len(types), 3, dtype=torch.float64).index_add(0, graph.receiver, gradient)
        return energies.detach(), forces.index_add(0, graph.sender, -gradient)
