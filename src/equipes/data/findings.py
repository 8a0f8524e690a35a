"""What a check has to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from equipes.data.frames import Frame

_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """Something wrong or suspicious in the data.

    Attributes:
        severity: an error makes training or its test meaningless; a warning may be meant.
        code: the kind of finding, for programs.
        message: one sentence for people.
        frames: labels of the frames concerned.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str
    frames: tuple[str, ...]


def labels(frames: Sequence[Frame]) -> tuple[str, ...]:
    """The labels of frames."""
    return tuple(frame.label for frame in frames)


def some(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def some_frames(frames: Sequence[Frame]) -> str:
    """The first few frames and how many more there are, without repeating the name of the file."""
    if len(frames) == 1 or len({frame.source for frame in frames}) > 1:
        return some(labels(frames))
    return f"{frames[0].source} frames {some([str(frame.index) for frame in frames])}"


def sources(frames: Sequence[Frame]) -> str:
    """The first few files that frames come from."""
    return some(list(dict.fromkeys(frame.source for frame in frames)))
