"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one sentence: which file, frame, atom or key, what is wrong, what to do.

    The command line prints the sentence and exits with status 2; in Python it is an ordinary `ValueError`.
    """
