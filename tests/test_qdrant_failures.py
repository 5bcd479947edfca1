"""What is tried again, how long is waited for it, and which error is raised at last."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import pytest

from vecbridge.backends.qdrant.failures import ATTEMPTS, LONGEST, PASSING, Kind, Refused, attempt, translated
from vecbridge.errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    InputError,
    StoreError,
    Unavailable,
)

KINDS: tuple[Kind, ...] = get_args(Kind)


class Calls:
    """A call that refuses with each of `refusals` in turn and then answers; `waits` are the pauses."""

    def __init__(self, *refusals: Refused) -> None:
        self.refusals = list(refusals)
        self.made = 0
        self.waits: list[float] = []

    def __call__(self) -> str:
        self.made += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return "done"

    def attempted(self, attempts: int = ATTEMPTS, *, jitter: Callable[[], float] = lambda: 1.0) -> str:
        return attempt(self, attempts=attempts, sleep=self.waits.append, jitter=jitter)


def refusals(kind: Kind, times: int, wait: float | None = None) -> list[Refused]:
    return [Refused(kind, "not now", wait=wait) for _ in range(times)]


def test_an_answer_comes_back_at_once() -> None:
    calls = Calls()
    assert calls.attempted() == "done"
    assert (calls.made, calls.waits) == (1, [])


@pytest.mark.parametrize("kind", sorted(PASSING))
def test_what_may_pass_is_tried_again_until_it_does(kind: Kind) -> None:
    calls = Calls(*refusals(kind, ATTEMPTS - 1))
    assert calls.attempted() == "done"
    assert calls.made == ATTEMPTS


@pytest.mark.parametrize("kind", sorted(set(KINDS) - PASSING))
def test_what_cannot_pass_is_sent_once(kind: Kind) -> None:
    calls = Calls(*refusals(kind, 1))
    with pytest.raises(Refused, match="not now"):
        calls.attempted()
    assert (calls.made, calls.waits) == (1, [])


def test_only_waiting_helps_against_these_three() -> None:
    assert {"rate", "timeout", "unavailable"} == PASSING


@pytest.mark.parametrize("attempts", [1, 3])
def test_no_more_attempts_are_made_than_are_allowed(attempts: int) -> None:
    calls = Calls(*refusals("unavailable", 9))
    with pytest.raises(Refused, match="not now"):
        calls.attempted(attempts)
    assert (calls.made, len(calls.waits)) == (attempts, attempts - 1)


def test_attempts_end_and_the_last_refusal_is_raised() -> None:
    last = Refused("timeout", "the sixth")
    calls = Calls(*refusals("unavailable", ATTEMPTS - 1), last)
    with pytest.raises(Refused, match="the sixth"):
        calls.attempted()
    assert calls.made == ATTEMPTS
    assert len(calls.waits) == ATTEMPTS - 1  # nobody waits for an attempt that is not made


def test_waits_double() -> None:
    calls = Calls(*refusals("unavailable", 5))
    calls.attempted()
    assert calls.waits == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_waits_have_a_cap() -> None:
    calls = Calls(*refusals("unavailable", 11))
    calls.attempted(12)
    assert max(calls.waits) == LONGEST
    assert calls.waits[-1] == LONGEST


def test_jitter_halves_a_wait_at_most() -> None:
    calls = Calls(*refusals("unavailable", 2))
    calls.attempted(jitter=lambda: 0.0)
    assert calls.waits == [0.125, 0.25]


def test_jitter_is_random_unless_given() -> None:
    waits: list[float] = []
    attempt(Calls(*refusals("unavailable", 5)), sleep=waits.append)
    for wait, full in zip(waits, [0.25, 0.5, 1.0, 2.0, 4.0], strict=True):
        assert full / 2 <= wait <= full


def test_a_wait_that_the_server_names_is_kept() -> None:
    calls = Calls(*refusals("rate", 2, wait=7.0))
    calls.attempted()
    assert calls.waits == [7.0, 7.0]


def test_a_named_wait_is_never_shortened_nor_a_short_one_believed() -> None:
    calls = Calls(*refusals("rate", 4, wait=0.75))
    calls.attempted()
    assert calls.waits == [0.75, 0.75, 1.0, 2.0]


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    calls = Calls(*refusals("rate", 1, wait=121.0))
    with pytest.raises(Refused, match="not now"):
        calls.attempted()
    assert (calls.made, calls.waits) == (1, [])


def test_other_errors_pass_through_untouched() -> None:
    def call() -> None:
        raise StoreError("closed")

    with pytest.raises(StoreError, match="closed"):
        attempt(call, sleep=lambda _: pytest.fail("waited"))


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("input", InputError, "the server's words (Qdrant refused the request; nothing was changed by it)"),
        ("missing", StoreError, "the server's words"),
        ("exists", StoreError, "the server's words"),
        ("forbidden", Forbidden, "set QDRANT_API_KEY to a key that may do this"),
        ("locked", StoreError, "the server's words"),
        ("rate", Busy, "send fewer requests at a time"),
        ("full", StoreError, "free disk or memory on the server"),
        ("too large", StoreError, "raise service.max_request_size_mb"),
        ("timeout", Unavailable, "the server did not finish in time"),
        ("unavailable", Unavailable, "the server's words"),
        ("unsupported", FeatureMissing, "the server's words"),
        ("server", StoreError, "the server's words"),
    ],
)
def test_each_refusal_becomes_one_error_with_the_servers_text(kind: Kind, error: Any, said: str) -> None:
    raised = translated(Refused(kind, "the server's words"), "qdrant://host:6334")
    assert type(raised) is error
    assert str(raised).startswith("qdrant://host:6334: the server's words")
    assert said in str(raised)


def test_every_kind_is_in_the_table_above() -> None:
    marks = test_each_refusal_becomes_one_error_with_the_servers_text.pytestmark  # type: ignore[attr-defined] # set by the decorator
    assert {row[0] for row in marks[0].args[1]} == set(KINDS)


def test_a_collection_that_the_call_named_is_named() -> None:
    missing = translated(Refused("missing", "Not found"), "qdrant://host:6334", collection="papers")
    assert type(missing) is CollectionNotFound
    assert re.search("no collection 'papers' in qdrant://host:6334", str(missing))
    exists = translated(Refused("exists", "Wrong input"), "qdrant://host:6334", collection="papers")
    assert type(exists) is CollectionExists
    assert re.search("collection 'papers' is in qdrant://host:6334 already", str(exists))


def test_a_rate_limit_says_how_long_the_server_asks_to_wait() -> None:
    raised = translated(Refused("rate", "Rate limiting exceeded", wait=300.0), "qdrant://host:6334")
    assert "asks to wait 300 s" in str(raised)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"missing"}))
def test_an_upload_that_ended_after_its_first_part_never_says_that_nothing_changed(kind: Kind) -> None:
    refused = Refused(kind, "the server's words")
    refused.stored = (1_000, 2_500)
    raised = translated(refused, "qdrant://host:6334")
    assert not isinstance(raised, InputError)
    assert "the server's words; 1,000 of 2,500 points are stored, the same call again" in str(raised)
    assert "nothing was changed" not in str(raised)
