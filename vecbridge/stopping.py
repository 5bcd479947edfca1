"""Ending what nobody waits for any longer: whoever calls says so, and a backend ends what it can end.

A backend wraps what can be ended in `stoppable`, and says how. Nothing comes of it unless the thread runs
under a `Call`, as all that reads does for `vecbridge.aio`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from itertools import chain, repeat
from typing import TypeVar

from .errors import StoreError

T = TypeVar("T")

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between two attempts to end something


class Call:
    """Something that runs in one thread, and that another thread may give up."""

    def __init__(self) -> None:
        self.given_up = False
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._stop: Callable[[], None] | None = None

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, which runs in this thread under this call."""
        context = copy_context()
        context.run(_current.set, self)
        return context.run(work)

    def give_up(self) -> Callable[[], None] | None:
        """Begin nothing more; returns what ends that which is under way, and may take its time, or None."""
        # before the look: whoever begins something looks in the opposite order, so that one sees the other
        self.given_up = True
        return None if self._stop is None else self._end

    def _end(self) -> None:
        # again and again: what is told to end before it has begun takes no notice of it, and begins
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            # what has ended by itself meanwhile may have been followed by something else
            with self._ending:
                if self._stop is None:
                    return
                # nobody hears of it, and the next attempt may come through
                with suppress(Exception):
                    self._stop()
            if self._ended.wait(pause):
                return

    @contextmanager
    def _stoppable(self, stop: Callable[[], None]) -> Iterator[None]:
        self._stop = stop
        try:
            if self.given_up:
                raise StoreError("the call was given up by its caller")
            yield
        finally:
            with self._ending:
                self._stop = None
            if self.given_up:
                self._ended.set()


_current: ContextVar[Call | None] = ContextVar("vecbridge_call", default=None)


@contextmanager
def stoppable(stop: Callable[[], None]) -> Iterator[None]:
    """While this is held, `stop` ends what happens inside, from another thread, where the caller gives it up.

    It is not left while `stop` runs. Raises StoreError where the caller gave up before.
    """
    call = _current.get()
    if call is None:
        yield
        return
    with call._stoppable(stop):
        yield


def given_up() -> bool:
    """Whether nobody waits any longer for what this thread does."""
    call = _current.get()
    return call is not None and call.given_up
