"""Ctrl-C, held back while something must be done whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Generator[list[int]]:
    """Hold Ctrl-C and a polite kill back until the block has ended; yields those that came.

    In any thread but the main one nothing is interrupted in the first place.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, hold)
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            if before[signal.Signals(number)] is signal.SIG_DFL:
                signal.raise_signal(number)
    for number in held[:1]:
        signal.raise_signal(number)
