"""Every potential obeys the physical laws with every kernel, and so does every frozen form.

A new potential is added in `potentials.py`.
"""

from __future__ import annotations

import pytest

from equipes.kernels import KERNELS, native
from laws import PhysicalLaws
from potentials import FROZEN, MODELS


@pytest.mark.parametrize("model", MODELS, ids=str)
class TestLaws(PhysicalLaws):
    @pytest.fixture(params=list(KERNELS), autouse=True)
    def kernel(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EQUIPES_KERNEL", request.param)


@pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")
@pytest.mark.parametrize("model", FROZEN, ids=str)
class TestLawsOfFrozenForms(PhysicalLaws):
    # It has no parameters.
    test_loss_gradient_of_every_parameter = None
