"""How fast requests go to an API: in flight at once, per minute, and when again after a refusal.

Four bounds, and a request goes out when all of them let it:

- set by hand: requests and tokens per minute, never exceeded in any 60 seconds;
- told: what is left of the server's limits (`x-ratelimit-remaining-*`) is spread over the time until they
  are reset;
- learned: where a server only says "too fast", the rate that it accepted is kept to, and tried to be exceeded
  now and then;
- requests in flight: halved by a refusal, growing again with each success.
"""

from __future__ import annotations

import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..errors import EmbedderError, InputError

# beyond this a server says "not today": waiting would look like a hang (openai-python has the same limit)
LONGEST_WAIT = 120.0
_LONGEST_BACKOFF = 8.0  # as openai-python
# how long everybody holds back while one request after the other is refused; longer would waste the minute
# that begins meanwhile
_LONGEST_HOLD = 8.0
_WINDOW = 60.0  # limits are written per minute, however they are enforced
# requests do not take equally long to arrive, and servers round what they say
_MARGIN = 0.1
_FIRST = 4  # in flight at first, where nobody said how many the server takes
# so many accepted requests, or a whole minute, say how fast a server is; fewer are an accident
_ENOUGH = 20
_LATELY = 20.0
# what is left of the rate after a refusal, and after one that comes soon after another
_BETA, _BETA_SOON = 0.9, 0.7
# what was accepted in a whole minute will be taken in the next one, too, or nearly
_LEAST = 0.75
_REGAINED = 0.9  # of the requests in flight before a refusal: up to there the number doubles with each round

_jitter = random.Random()  # noqa: S311 - spreads requests, is no secret


class Waiting(Protocol):
    """What a thread waits on, with the lock of the pace held: `threading.Condition`, or a test's own."""

    def wait(self, timeout: float | None = None) -> object:
        """Sleeps until notified, or for so many seconds."""

    def notify(self) -> None:
        """Wakes the one that waits."""


class Clock:
    """The time in seconds, and how to wait; a test has its own."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()

    def waiting(self, lock: threading.Lock) -> Waiting:
        """Something to wait on for one thread."""
        return threading.Condition(lock)


class Pace:
    """How fast requests go out; shared by all threads of one client.

    `concurrency`: the most requests in flight (`most`). With `fixed` somebody chose that number, so it is
    used at once; else a few requests go first, and more as they are answered. `requests_per_minute`,
    `tokens_per_minute`: bounds of the account. `retries`: for all requests together. `backoff`: seconds, the
    longest pause before the first retry; it doubles with each. Raises InputError.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        fixed: bool = False,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retries: int = 1000,
        backoff: float = 0.5,
        clock: Clock | None = None,
    ) -> None:
        if concurrency < 1:
            raise InputError(f"expected 1 or more requests in flight (--concurrency), got {concurrency}")
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._queue: deque[Waiting] = deque()  # those who wait for their turn, the first one next
        self._pausing: set[Waiting] = set()
        self._closed = False
        # of this thread's last request: when it went out, and what of it is in flight
        self._mine = threading.local()
        self._flying = self._flying_tokens = 0
        self.most = concurrency
        self._room = float(concurrency if fixed else min(_FIRST, concurrency))
        self._regained = float(concurrency)
        self._retries = retries
        self._backoff = backoff
        self._by_hand = (
            _Minute("requests_per_minute", requests_per_minute),
            _Minute("tokens_per_minute", tokens_per_minute),
        )
        self._told = (_Share("requests"), _Share("tokens"))
        self._learned = _Learned()
        self._asked = self._held = -math.inf  # until when: as a server asks, as we choose
        self._refused = -math.inf
        self._streak = 0  # refusals one after the other without an accepted request between them

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight now."""
        with self._lock:
            return self._allowed()

    def turn(self, tokens: int) -> AbstractContextManager[None]:
        """Waits until a request of about so many tokens may go out; it counts as in flight until the end.

        First come, first served. Raises EmbedderError once the pace was closed.
        """
        return self._turn(max(tokens, 0))

    @contextmanager
    def _turn(self, tokens: int) -> Iterator[None]:
        flying = False
        try:
            with self._lock:
                self._wait_for_turn(tokens)
                flying = True
                self._flying += 1
                self._flying_tokens += tokens
                self._mine.sent = self._clock.now()
                self._mine.flying, self._mine.tokens = 1, tokens
                self._learned.sent(self._mine.sent)
                for bound, cost in zip(self._by_hand, (1, tokens), strict=True):
                    bound.take(self._mine.sent, cost)
                for share, cost in zip(self._told, (1, tokens), strict=True):
                    share.take(self._mine.sent, cost)
                self._wake_first()
            yield
        finally:
            if flying:
                with self._lock:
                    self._flying -= 1
                    self._flying_tokens -= tokens
                    self._mine.flying = self._mine.tokens = 0
                    self._wake_first()

    def answered(self, headers: Mapping[str, str]) -> None:
        """A request of this thread was answered: goes faster again, and heeds what is left of the limits."""
        with self._lock:
            now = self._clock.now()
            self._read(headers, now)
            if self._sent(now) > self._refused and self._streak:
                self._streak = 0
                self._learned.resume(now)
            self._learned.accepted(now)
            if self._streak == 0:
                grown = 1.0 if self._room < self._regained * _REGAINED else 1.0 / self._room
                self._room = min(self._room + grown, float(self.most))
            self._wake_first()

    def refused(self, headers: Mapping[str, str]) -> None:
        """A request of this thread was refused as too fast: slows down, once for all that were under way."""
        with self._lock:
            now = self._clock.now()
            self._read(headers, now)
            if self._sent(now) <= self._refused:
                return
            self._streak += 1
            self._refused = now
            if self._streak == 1:
                self._regained = max(min(self._room, float(self._flying + 1)), 1.0)
                self._room = max(self._regained / 2, 1.0)
                self._learned.slow_down(now)
            longest = min(self._backoff * 2.0 ** (self._streak - 1), _LONGEST_HOLD)
            self._held = now + longest * _jitter.uniform(0.5, 1.0)

    def again(self, attempt: int, asked: float | None) -> bool:
        """Pauses before attempt `attempt` + 1 at a request and says True; False where it is not worth it.

        That is when the retries of the run are used up, or the server `asked` to wait for more than 120
        seconds. The pause is drawn between nothing and a limit that doubles with each attempt ("full jitter":
        Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), or what the server asked
        for: that holds back all threads. Raises EmbedderError once the pace was closed.
        """
        with self._lock:
            self._check()
            if self._retries < 1 or (asked is not None and not asked <= LONGEST_WAIT):
                return False
            self._retries -= 1
            now = self._clock.now()
            if asked is not None and asked > 0:
                self._asked = max(self._asked, now + asked)
                self._held = min(self._held, self._asked)  # the server knows better
                # other processes were asked to come back at the same moment
                until = now + asked + _jitter.uniform(0, min(self._backoff, asked / 4))
            else:
                longest = min(self._backoff * 2.0 ** max(min(attempt, 60) - 1, 0), _LONGEST_BACKOFF)
                until = now + _jitter.uniform(0, longest)
            waiting = self._clock.waiting(self._lock)
            self._pausing.add(waiting)
            try:
                while (left := until - self._clock.now()) > 0:
                    waiting.wait(left)
                    self._check()
            finally:
                self._pausing.discard(waiting)
            return True

    def close(self) -> None:
        """Wakes everything that waits; it raises EmbedderError. May be called twice, from any thread."""
        with self._lock:
            self._closed = True
            for waiting in (*self._queue, *self._pausing):
                waiting.notify()

    def _check(self) -> None:
        if self._closed:
            raise EmbedderError("closed: the embedder was closed while it waited to send a request")

    def _wait_for_turn(self, tokens: int) -> None:
        waiting = self._clock.waiting(self._lock)
        self._queue.append(waiting)
        try:
            while True:
                self._check()
                if self._queue[0] is not waiting or self._flying >= self._allowed():
                    waiting.wait()
                elif (delay := self._delay(tokens)) > 0:
                    waiting.wait(delay)
                else:
                    return
        finally:
            self._queue.remove(waiting)
            self._wake_first()

    def _wake_first(self) -> None:
        if self._queue:
            self._queue[0].notify()

    def _allowed(self) -> int:
        # while everything is refused, one request at a time finds out whether that has changed
        return 1 if self._streak > 1 else int(self._room)

    def _delay(self, tokens: int) -> float:
        """Seconds until a request may go, as far as is known now."""
        now = self._clock.now()
        delays = [self._asked - now, self._held - now, self._learned.delay(now)]
        delays += [bound.delay(now, cost) for bound, cost in zip(self._by_hand, (1, tokens), strict=True)]
        delays += [share.delay(now) for share in self._told]
        return max(delays)

    def _sent(self, now: float) -> float:
        return getattr(self._mine, "sent", now)

    def _read(self, headers: Mapping[str, str], now: float) -> None:
        # what is under way besides this request may not be counted yet
        requests = self._flying - getattr(self._mine, "flying", 0)
        tokens = self._flying_tokens - getattr(self._mine, "tokens", 0)
        for share, flying in zip(self._told, (requests, tokens), strict=True):
            share.read(headers, now, flying)


class _Minute:
    """A bound per minute that is set by hand: evenly, in bursts of a second's worth, and exact in any 60 s.

    A request that costs more than the bound goes alone, and those after it wait the longer.
    """

    def __init__(self, name: str, most: float | None) -> None:
        if most is not None and not (math.isfinite(most) and most > 0):
            raise InputError(f"expected {name} (--{name.replace('_', '-')}) above 0, got {most}")
        self._most = most
        self._burst = max((most or 0.0) / _WINDOW, 1.0)
        self._level = self._burst
        self._filled: float | None = None
        self._taken: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def _fill(self, now: float) -> None:
        assert self._most is not None
        if self._filled is not None:
            self._level += (now - self._filled) * self._most / _WINDOW
        self._level, self._filled = min(self._level, self._burst), now
        while self._taken and now >= self._taken[0][0] + _WINDOW + _MARGIN:
            self._sum -= self._taken.popleft()[1]

    def delay(self, now: float, cost: float) -> float:
        """Seconds until so much may go, as far as is known now."""
        if self._most is None:
            return 0.0
        self._fill(now)
        delay = (min(cost, self._burst) - self._level) * _WINDOW / self._most
        if self._taken and self._sum + cost > self._most:
            delay = max(delay, self._taken[0][0] + _WINDOW + _MARGIN - now)
        return delay if delay > 1e-6 else 0.0  # less is rounding, and would never be filled

    def take(self, now: float, cost: float) -> None:
        """So much goes out now."""
        if self._most is not None and cost:
            self._fill(now)
            self._level -= cost
            self._taken.append((now, cost))
            self._sum += cost


class _Share:
    """What is left of one limit of the server, spread over the time until the limit is reset.

    A server that fills its limit up bit by bit keeps its whole speed by this: at half the limit the rest
    divided by the time until it is full is just what it refills. So above the half nothing is held back.
    """

    def __init__(self, kind: str) -> None:
        self._names = tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
        self._spacing = 0.0  # seconds for each unit
        self._until = self._next = -math.inf

    def read(self, headers: Mapping[str, str], now: float, flying: int) -> None:
        """Takes over what an answer says; `flying`: what else is under way and may not be counted in it."""
        texts = [headers.get(name) for name in self._names]
        limit, left, reset = _number(texts[0]), _number(texts[1]), seconds(texts[2])
        if limit is None or left is None or reset is None or limit <= 0:
            return
        self._until = now + reset + _MARGIN
        left = max(left - flying, 0.0)
        spacing = 0.0 if left >= limit / 2 else reset / left if left else math.inf
        if not self._spacing or not spacing:
            self._next = now
        self._spacing = spacing
        if math.isinf(spacing):
            self._next = self._until

    def delay(self, now: float) -> float:
        """Seconds until the next request may go; not longer than until the limit is reset."""
        return min(self._next, self._until) - now if self._spacing else 0.0

    def take(self, now: float, cost: float) -> None:
        """So much goes out now."""
        if now >= self._until:
            self._spacing = 0.0
        elif self._spacing:
            self._next = max(self._next, now) + cost * self._spacing if cost else self._next


@dataclass(slots=True)
class _Curve:
    """A rate that was accepted up to `top`, in requests per second, from `start` on.

    The curve of CUBIC (RFC 9438, 4.2) without its dependence on round trips: it comes up to `top` quickly,
    stays near it, and then leaves it faster and faster, as the limit may have been raised meanwhile.
    """

    top: float
    start: float
    beta: float
    first: bool

    @property
    def period(self) -> float:
        """Seconds to come back to `top`; longer where requests are rare, as each overshoot costs one."""
        # what was accepted before there was a pace says little about what could have been
        return 10.0 if self.first else min(max(25.0 / self.top, 10.0), 40.0)

    def rate(self, now: float) -> float:
        """Requests per second at this moment."""
        phase = (now - self.start) / self.period - 1
        return self.top * (1 + (1 - self.beta) * phase**3)


class _Learned:
    """The rate that a server accepts, learned from what it refused."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._counts: deque[list[float]] = deque()  # of each second: when it is, accepted requests
        self._curve: _Curve | None = None
        self._refused = -math.inf
        self._next = -math.inf

    def accepted(self, now: float) -> None:
        """A request was accepted."""
        second = math.floor(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += 1
        else:
            self._counts.append([second, 1])
            while now - self._counts[0][0] > 4 * _WINDOW:
                self._counts.popleft()
        if self._curve is not None and now - self._curve.start > 6 * self._curve.period:
            self._curve = None  # no refusal at more than ten times that rate: there is no such limit

    def slow_down(self, now: float) -> None:
        """A request was refused: keeps to a little less than what was accepted in the last minute.

        That is the server's limit, however it counts. Before the first minute is over the beginning weighs
        too much; then further refusals come soon, and take more away.
        """
        self._refused = now
        accepted, beta = self._accepted_rate(self._begin(), now), _BETA
        if self._curve is None:
            top = accepted
        else:
            # since it goes at a pace, that says more than a minute which began with a pause or a burst
            lately = 0.0
            if now - self._curve.start >= _LATELY:
                lately = self._accepted_rate(self._curve.start, now, enough=_ENOUGH // 4) or 0.0
            top = min(max(accepted or math.inf, lately), self._curve.rate(now))
            if accepted is not None and now - self._begin() >= _WINDOW:
                top = max(top, _LEAST * accepted)
            if now - self._curve.start < self._curve.period / 2:
                beta = _BETA_SOON
        if top is not None:
            self._curve = _Curve(top, now, beta, first=self._curve is None)
            self._next = max(self._next, now)

    def resume(self, now: float) -> None:
        """The first request after a refusal was accepted: the time between them was no time of success."""
        if self._curve is not None:
            top = min(self._curve.top, self._accepted_rate(self._begin(), now) or math.inf)
            first = self._curve.first and now - self._refused < _LATELY
            self._curve = _Curve(top, now, self._curve.beta, first)

    def _begin(self) -> float:
        """When the minute before the last refusal began, or the first request was sent."""
        return max(self._refused - _WINDOW, self._first or self._refused)

    def _accepted_rate(self, begin: float, now: float, enough: int = _ENOUGH) -> float | None:
        """Accepted requests per second since `begin`; None where too few were accepted to say."""
        count = sum(count for second, count in self._counts if second >= math.floor(begin))
        if count < 1 or (count < enough and now - begin < _WINDOW):
            return None
        return count / max(now - begin, 1.0)

    def delay(self, now: float) -> float:
        """Seconds until the next request may go."""
        return 0.0 if self._curve is None else self._next - now

    def sent(self, now: float) -> None:
        """A request goes out now."""
        self._first = now if self._first is None else self._first
        if self._curve is not None:
            # some threads come late: what they missed in the last half second is made up for
            self._next = max(self._next, now - 0.5) + 1 / self._curve.rate(now)


_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|us|µs|ns|h|m|s|d)")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def seconds(text: str | None) -> float | None:
    """Seconds of a duration as servers write it: "1s", "6m0s", "120ms", "1h2m3.5s", "17". Else None.

    Source: OpenAI, Rate limits, "Rate limits in headers"; the form is that of Go's time.Duration.
    """
    number = _number(text)
    if text is None or number is not None:
        return number
    text = text.strip()
    parts = _PART.findall(text)
    if not parts or "".join(value + unit for value, unit in parts) != text:
        return None
    return sum(float(value) * _UNITS[unit] for value, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
