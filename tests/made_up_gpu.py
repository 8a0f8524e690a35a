"""A GPU that is not there: Triton compiles for an H100, and nothing can be started."""

from __future__ import annotations

import pytest


def compile_for_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton asks of the current device it is told of an H100 from now on."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    class MadeUp:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(driver, "_active", MadeUp())
