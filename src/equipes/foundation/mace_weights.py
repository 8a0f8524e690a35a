"""From the weights of a MACE checkpoint to those of our model."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.foundation.pickles import Name, Record
from equipes.irreps import Irrep
from equipes.models.mace import MACE, InteractionBlock, ProductBlock, Readout
from equipes.nn import AgnesiTransform, CovalentZBL, Linear, SoftTransform, SymmetricContraction
from equipes.nn.gate import SILU_SCALE
from equipes.nn.symmetric_contraction import Coupling


class Module:
    """One module of the file, and its place in it; it knows which of all tensors have been taken."""

    def __init__(self, record: Any, place: str, taken: set[str]) -> None:
        if not isinstance(record, Record) or not isinstance(record.state, dict):
            raise InputError(f"'{place or 'the object'}' is no module; the file is not a MACE model")
        self.record, self.place, self.taken = record, place, taken
        self.kind = record.name.name

    def entries(self, group: str) -> Mapping[str, Any]:
        entries = self.record.attribute(group)
        return entries if isinstance(entries, Mapping) else {}

    def __contains__(self, name: str) -> bool:
        return self.entries("_modules").get(name) is not None

    def __getitem__(self, name: str) -> Module:
        """A module inside, `a.b`."""
        first, _, rest = name.partition(".")
        if first not in self:
            raise InputError(f"the MACE model has no '{self.place}{first}'; it is of an unknown kind")
        child = Module(self.entries("_modules")[first], f"{self.place}{first}.", self.taken)
        return child[rest] if rest else child

    def children(self) -> list[Module]:
        return [self[name] for name in self.entries("_modules") if name in self]

    def value(self, name: str, default: Any = None) -> Any:
        """A plain attribute."""
        return self.record.attribute(name, default)

    def optional(self, name: str) -> Tensor | None:
        """A parameter or buffer, `a.b.weight`, float64 unless it holds whole numbers; None where there is none."""
        module, _, last = name.rpartition(".")
        owner = self
        for part in module.split(".") if module else ():
            if part not in owner:
                return None
            owner = owner[part]
        for group in ("_parameters", "_buffers"):
            found = owner.entries(group).get(last)
            if isinstance(found, Tensor):
                self.taken.add(f"{owner.place}{last}")
                return found.double() if found.is_floating_point() else found
        return None

    def tensor(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        found = self.optional(name)
        if found is None:
            raise InputError(f"the MACE model has no weights '{self.place}{name}'")
        if shape is not None and found.shape != tuple(shape):
            raise InputError(
                f"the MACE weights '{self.place}{name}' have shape {list(found.shape)}; "
                f"its hyperparameters ask for {list(shape)}"
            )
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise InputError(f"the MACE weights '{self.place}{name}' are not all finite")
        return found

    def number(self, name: str) -> float:
        found = self.tensor(name)
        if found.numel() != 1:
            raise InputError(f"'{self.place}{name}' of the MACE model is not one number")
        return float(found.item())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors inside, by their full name; compiled parts, which are no modules in the file, have none."""
        seen, todo = set(), [(self.place, self.record)]
        while todo:
            place, record = todo.pop()
            if id(record) in seen or not isinstance(record, Record) or not isinstance(record.state, dict):
                continue
            seen.add(id(record))
            module = Module(record, place, self.taken)
            for group in ("_parameters", "_buffers"):
                named = module.entries(group).items()
                yield from ((f"{place}{name}", value) for name, value in named if isinstance(value, Tensor))
            todo += [(f"{place}{name}.", child) for name, child in module.entries("_modules").items()]


def plain_number(value: Any, what: str) -> float:
    """A finite number out of a plain attribute; raises `InputError`."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, Record) and value.name.name == "scalar" and len(value.arguments) == 2:
        value = _numpy_number(value.arguments[1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"the MACE model's {what} is no number")
    return float(value)


def _numpy_number(content: Any) -> Any:
    """A float64 of NumPy as the file has it: its eight bytes, in old files written as text; anything else as it is."""
    if (
        isinstance(content, Record)
        and content.name.name == "encode"
        and isinstance(content.arguments[0], str)
    ):
        content = content.arguments[0].encode("latin1", "replace")
    return struct.unpack("<d", content)[0] if isinstance(content, bytes) and len(content) == 8 else content


def fill(model: MACE, module: Module, coupling_error: float) -> None:
    """Give a model that was built with the file's hyperparameters the file's weights.

    Args:
        model: to be filled.
        module: the file's model.
        coupling_error: how far its couplings may be from ours, relatively: their own round-off.

    Raises:
        InputError: weights that are missing or of another shape, couplings that are not equivariant.
    """
    n, channels = model.embedding.shape
    _assign(model.embedding, module.tensor("node_embedding.linear.weight", [n * channels]))
    roots = module.tensor("radial_embedding.bessel_fn.bessel_weights")
    model.basis.roots = roots.flatten() * (model.r_max / math.pi)
    numbers = module.tensor("atomic_numbers").flatten()
    if isinstance(model.distance_transform, AgnesiTransform | SoftTransform):
        own = ("a", "q", "p") if isinstance(model.distance_transform, AgnesiTransform) else ("alpha",)
        _fill_constants(model.distance_transform, module["radial_embedding.distance_transform"], own, numbers)
    if model.repulsion is not None:
        _fill_constants(model.repulsion, module["pair_repulsion_fn"], ("c", "a_exp", "a_prefactor"), numbers)
    for index, (interaction, product, readout) in enumerate(
        zip(model.interactions, model.products, model.readouts, strict=True)
    ):
        assert isinstance(interaction, InteractionBlock)
        assert isinstance(product, ProductBlock)
        assert isinstance(readout, Readout)
        _fill_interaction(interaction, module[f"interactions.{index}"])
        _fill_product(product, module[f"products.{index}"], coupling_error)
        _fill_readout(readout, module[f"readouts.{index}"], channels, len(model.heads))


def _assign(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.reshape(parameter.shape))


def _fill_constants(
    own: AgnesiTransform | SoftTransform | CovalentZBL, module: Module, names: Sequence[str], numbers: Tensor
) -> None:
    for name in names:
        buffer = own.get_buffer(name)
        buffer.copy_(module.tensor(name).reshape(buffer.shape))
    radii = module.tensor("covalent_radii").flatten()
    if len(radii) <= int(numbers.max()):
        raise InputError(
            f"the MACE model has no covalent radius for each of its elements in '{module.place}'"
        )
    own.covalent_radii.copy_(radii[numbers])


def _fill_interaction(block: InteractionBlock, module: Module) -> None:
    _fill_linear(block.linear_up, module, "linear_up.weight")
    _fill_linear(block.linear, module, "linear.weight")
    _fill_flat(
        [
            block.skip.weights[str(irrep)]
            for irrep in block.skip.irreps_in.irreps
            if str(irrep) in block.skip.weights
        ],
        module,
        "skip_tp.weight",
    )
    layers = list(block.radial_network.weights)
    for index, weight in enumerate(layers):
        value = module.tensor(f"conv_tp_weights.layer{index}.weight", weight.shape)
        _assign(weight, value[:, _reference_columns(block)] if index == len(layers) - 1 else value)
    if block.density is not None:
        _assign(block.density, module.tensor("density_fn.layer0.weight", [len(block.density), 1]))


def _reference_columns(block: InteractionBlock) -> Tensor:
    """For each radial weight here, its column in the file, whose paths run over l3, l1, l2 (here l1, l3, l2)."""
    form = block.form
    columns, start = {}, 0
    for path in sorted(form.paths, key=lambda path: (path.out, path.block, path.l2)):
        mul = form.irreps_in[path.block][0]
        columns[path] = torch.arange(start, start + mul)
        start += mul
    return torch.cat([columns[path] for path in form.paths])


def _fill_linear(layer: Linear, module: Module, name: str) -> None:
    _fill_flat(
        [layer.weights[str(irrep)] for irrep in layer.irreps_in.irreps if str(irrep) in layer.weights],
        module,
        name,
    )


def _fill_flat(blocks: Sequence[Tensor], module: Module, name: str) -> None:
    """The file has one flat array: the blocks' weights one after the other in the order of the input."""
    sizes = [block.numel() for block in blocks]
    for block, part in zip(blocks, module.tensor(name, [sum(sizes)]).split(sizes), strict=True):
        _assign(block, part)


def _fill_product(block: ProductBlock, module: Module, coupling_error: float) -> None:
    contraction = block.symmetric_contraction
    for index, irrep in enumerate(contraction.irreps_out.irreps):
        own = module[f"symmetric_contractions.contractions.{index}"]
        for degree in range(1, contraction.correlation + 1):
            _fill_contraction(contraction, own, irrep, degree, coupling_error)
    _fill_linear(block.linear, module, "linear.weight")


def _fill_contraction(
    contraction: SymmetricContraction, module: Module, irrep: Irrep, degree: int, coupling_error: float
) -> None:
    """Weights of the independent couplings that give the same polynomials as the file's couplings and weights.

    The file counts more couplings than are independent, and the signs of some depend on the version of e3nn that made
    it; both are taken from its own table of couplings.
    """
    n = sum(each.dim for each in contraction.irreps_in.irreps)
    table = module.tensor(f"U_matrix_{degree}")
    paths = table.shape[-1]
    module.tensor(f"U_matrix_{degree}", [*([irrep.dim] if irrep.l else []), *[n] * degree, paths])
    below = contraction.correlation - degree
    name = "weights_max" if below == 0 else f"weights.{below - 1}"
    weight = module.optional(name)
    if weight is None or weight.shape != (contraction.n_species, paths, contraction.channels):
        found = None if weight is None else list(weight.shape)
        raise InputError(
            f"the MACE weights '{module.place}{name}' have shape {found}, its couplings {paths} paths"
        )
    monomials, theirs = _polynomials(table.numpy().reshape(irrep.dim, n**degree, paths), n, degree)
    ours = _expanded(contraction.couplings[irrep][degree - 1], monomials, n)
    exchange, *_ = np.linalg.lstsq(ours, theirs, rcond=None)  # [our paths, their paths]
    if np.abs(ours @ exchange - theirs).max(initial=0) > coupling_error * np.abs(theirs).max(initial=1):
        raise InputError(f"the MACE couplings '{module.place}U_matrix_{degree}' are not equivariant ones")
    if len(exchange):
        _assign(
            contraction.weights[f"{irrep}_{degree}"],
            torch.einsum("hp,zpc->zhc", torch.tensor(exchange), weight),
        )


def _codes(monomials: np.ndarray, n: int) -> np.ndarray:
    """One number for each monomial `[T, ν]` (indices ascending)."""
    return monomials @ (n ** np.arange(monomials.shape[1]))


def _polynomials(table: np.ndarray, n: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """A table over all orders of factors, `[2L+1, n^ν, paths]`, as polynomials: codes `[T]`, `[(2L+1)·T, paths]`."""
    indices = np.stack(np.unravel_index(np.arange(n**degree), (n,) * degree), axis=1)
    codes, place = np.unique(_codes(np.sort(indices, axis=1), n), return_inverse=True)
    sums = np.zeros((table.shape[0], len(codes), table.shape[2]))
    np.add.at(sums.swapaxes(0, 1), place.ravel(), table.swapaxes(0, 1))
    return codes, sums.reshape(-1, table.shape[2])


def _expanded(coupling: Coupling, codes: np.ndarray, n: int) -> np.ndarray:
    """Our polynomials over the same monomials, `[(2L+1)·T, paths]`."""
    full = np.zeros((*coupling.coefficients.shape[:2], len(codes)))
    full[:, :, np.searchsorted(codes, _codes(coupling.monomials, n))] = coupling.coefficients
    return full.reshape(coupling.n_paths, full.shape[1] * len(codes)).T


def _fill_readout(readout: Readout, module: Module, channels: int, n_heads: int) -> None:
    if len(readout.weights) == 1:
        weight = module.tensor("linear.weight", [channels * n_heads])
        _assign(readout.weights[0], weight.view(channels, n_heads).T)
        return
    activation = module["non_linearity.acts.0"]
    function = activation.value("f")
    scale = plain_number(activation.value("cst"), "scale of the activation")
    if not isinstance(function, Name) or function.name != "silu" or abs(scale - SILU_SCALE) > 1e-6:
        name = getattr(function, "name", function)
        raise InputError(
            f"the MACE model's readout has the activation {scale:g} {name}, not {SILU_SCALE:g} silu"
        )
    hidden = readout.weights[0].shape[2]
    first = module.tensor("linear_1.weight", [channels * n_heads * hidden])
    _assign(readout.weights[0], first.view(channels, n_heads, hidden).transpose(0, 1))
    second = module.tensor("linear_2.weight", [n_heads * hidden * n_heads]).view(n_heads, hidden, n_heads)
    # A head sees its own hidden units only.
    _assign(readout.weights[1], second.diagonal(dim1=0, dim2=2).T)
