"""Message passing on a GPU: kernels generated for each form, compiled by Triton when they are first called.

Nothing here imports Triton before a kernel runs.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def installed() -> bool:
    """Whether there is a Triton to compile with."""
    return find_spec("triton") is not None
