"""Ending a run between two steps when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_at_signal() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a run ends between two steps. A second signal acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        event.set()
        restore()

    for number in handled:
        signal.signal(number, note)
    try:
        yield event
    finally:
        restore()
