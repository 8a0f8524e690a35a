"""Every potential obeys the physical laws; a new one is added to the list in `potentials.py`."""

from __future__ import annotations

import pytest

from laws import PhysicalLaws
from potentials import MODELS


@pytest.mark.parametrize("model", MODELS, ids=str)
class TestLaws(PhysicalLaws):
    pass
