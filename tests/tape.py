"""A recorder for the CPU: it does what a CUDA graph does, and refuses what one cannot contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")

# Numbers or sizes that depend on what a GPU computes, and numbers that come from the host.
_WAITS = {
    "_local_scalar_dense", "item", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "lift_fresh", "_linalg_det", "equal", "linalg_qr", "_linalg_eigh",
}  # fmt: skip


class Waits(RuntimeError):
    """On a GPU the host would wait here."""


class Tape(TorchDispatchMode):
    """Every operation below autograd, and where it wrote what."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        name = function.name().removeprefix("aten::").partition(".")[0]
        by_mask = name.startswith("index") and any(
            leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2]) if isinstance(leaf, Tensor)
        )
        if name in _WAITS or by_mask:
            raise Waits(f"{name} makes the host wait")
        result = function(*args, **kwargs)
        there = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        # Views, and what is written in place, are where they were.
        made = [
            (index, leaf)
            for index, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in there
        ]
        self.operations.append((function, args, kwargs, made))
        return result

    @torch.no_grad()
    def play(self) -> None:
        """Do it all again, without the function: every result goes to where it was the first time."""
        for function, args, kwargs, made in self.operations:
            leaves = tree_leaves(function(*args, **kwargs))
            for index, there in made:
                there.copy_(leaves[index])


def record(
    function: Callable[[], Result], device: torch.device, *, touched: Sequence[Tensor], pool: Any
) -> tuple[Callable[[], None], Result]:
    """A recorder (`equipes.models.device_padding.Recorder`)."""
    before = [tensor.detach().clone() for tensor in touched]

    def put_back() -> None:
        for tensor, values in zip(touched, before, strict=True):
            tensor.detach().copy_(values)

    function()
    put_back()
    tape = Tape()
    with tape:
        result = function()
    put_back()
    return tape.play, result
