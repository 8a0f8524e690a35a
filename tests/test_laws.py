"""Every potential obeys the physical laws with every kernel; a new potential is added in `potentials.py`."""

from __future__ import annotations

import pytest

from equipes.kernels import KERNELS
from laws import PhysicalLaws
from potentials import MODELS


@pytest.mark.parametrize("model", MODELS, ids=str)
class TestLaws(PhysicalLaws):
    @pytest.fixture(params=list(KERNELS), autouse=True)
    def kernel(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EQUIPES_KERNEL", request.param)
