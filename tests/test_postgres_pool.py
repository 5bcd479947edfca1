"""Connections are shared in turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from vecbridge.backends.postgres.pool import Turns


def waiting(turns: Turns, count: int) -> None:
    """Return when so many threads wait."""
    while len(turns._waiting) != count:
        time.sleep(0.001)


def begun(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_whoever_gives_back_does_not_take_again_before_those_that_wait() -> None:
    turns = Turns(1)
    order: list[str] = []

    def one(name: str) -> None:
        assert turns.acquire(timeout=60)
        order.append(name)
        turns.release()

    assert turns.acquire(timeout=0)
    threads = []
    for place, name in enumerate(["first", "second", "third"]):
        threads.append(begun(partial(one, name)))
        waiting(turns, place + 1)
    turns.release()
    # a semaphore would be free now
    one("the one that gave back")
    for thread in threads:
        thread.join()
    assert order == ["first", "second", "third", "the one that gave back"]
    assert turns.acquire(timeout=0)
    assert not turns.acquire(timeout=0)


def test_who_waits_no_longer_takes_nothing_away() -> None:
    turns = Turns(2)
    assert turns.acquire(timeout=0)
    assert turns.acquire(timeout=0)
    assert not turns.acquire(timeout=0.001)
    turns.release()
    turns.release()
    assert turns.acquire(timeout=0)
    assert turns.acquire(timeout=0)
    assert not turns.acquire(timeout=0)
