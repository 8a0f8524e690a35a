"""The one exception that stands for a simulation that cannot go on."""

from __future__ import annotations


class SimulationError(RuntimeError):
    """A simulation that left what is physically possible, told in one sentence: step, atom, value, what to do.

    The command line prints the sentence and exits with status 1.
    """
