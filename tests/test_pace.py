"""Requests go out as fast as a provider takes them, and seldom faster; in simulated time, on real threads."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge.embedders import pace as module
from vecbridge.embedders.pace import Clock, Pace, seconds
from vecbridge.errors import EmbedderError, InputError


@pytest.fixture(autouse=True)
def _same_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_jitter", random.Random(11))


class Place:
    """Where one simulated thread waits."""

    def __init__(self, world: World, lock: threading.Lock | None = None) -> None:
        self.world, self.lock = world, lock
        self.gate = threading.Semaphore(0)
        self.pending = 0  # which wait this is, 0 while it runs
        self.serial = itertools.count(1)

    def wait(self, timeout: float | None = None) -> None:
        if self.lock is not None:
            self.lock.release()
        self.pending = next(self.serial)
        if timeout is not None:
            self.world.later(timeout, self)
        self.world.next()
        self.gate.acquire()
        if self.lock is not None:
            self.lock.acquire()
        if self.world.stuck:
            raise AssertionError("all threads wait for one another")

    def notify(self) -> None:
        if self.pending:
            self.pending = 0
            self.world.ready.append(self)


class World(Clock):
    """Threads of which one runs at a time, and a clock that jumps when all of them wait."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.ready: deque[Place] = deque()
        self.timers: list[tuple[float, int, Place, int]] = []
        self.order = itertools.count()
        self.stuck = False
        self.failures: list[BaseException] = []
        self.waiting_places: list[Place] = []
        self.living = 0

    def now(self) -> float:
        return self.time

    def waiting(self, lock: threading.Lock) -> Place:
        place = Place(self, lock)
        self.waiting_places.append(place)
        return place

    def sleep(self, duration: float) -> None:
        Place(self).wait(duration)

    def later(self, duration: float, place: Place) -> None:
        heapq.heappush(self.timers, (self.time + duration, next(self.order), place, place.pending))

    def next(self) -> None:
        while not self.ready and self.timers:
            when, _, place, pending = heapq.heappop(self.timers)
            if place.pending == pending:
                self.time = max(self.time, when)
                place.notify()
        if self.ready:
            self.ready.popleft().gate.release()
        elif self.living:
            self.stuck = True
            for place in self.waiting_places:
                if place.pending:
                    place.pending = 0
                    place.gate.release()

    def run(self, *works: Callable[[], None]) -> None:
        def threaded(work: Callable[[], None], start: Place) -> None:
            start.gate.acquire()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                self.failures.append(error)
            self.living -= 1
            self.next()

        starts = [Place(self) for _ in works]
        threads = [
            threading.Thread(target=threaded, args=pair, daemon=True)
            for pair in zip(works, starts, strict=True)
        ]
        self.living = len(threads)
        for thread in threads:
            thread.start()
        self.ready.extend(starts)
        self.next()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        if self.failures:
            raise self.failures[0]


Accepts = Callable[[float], bool]


def fixed_window(most: int) -> Accepts:
    """`most` in each minute of the wall clock."""
    counts: dict[int, int] = {}

    def accepts(now: float) -> bool:
        minute = int(now // 60)
        counts[minute] = counts.get(minute, 0) + 1
        return counts[minute] <= most

    return accepts


def sliding_window(most: int) -> Accepts:
    """`most` in any 60 seconds."""
    taken: deque[float] = deque()

    def accepts(now: float) -> bool:
        while taken and taken[0] <= now - 60:
            taken.popleft()
        if len(taken) >= most:
            return False
        taken.append(now)
        return True

    return accepts


def bucket(most: int, burst: float = 60) -> Accepts:
    """Filled by `most` a minute, and holds what comes in in `burst` seconds."""
    level, filled = most * burst / 60, 1_000.0

    def accepts(now: float) -> bool:
        nonlocal level, filled
        level, filled = min(level + (now - filled) * most / 60, max(most * burst / 60, 1)), now
        if level < 1 - 1e-9:
            return False
        level -= 1
        return True

    return accepts


@dataclass
class Told:
    sent: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)
    bad: list[float] = field(default_factory=list)
    flying: list[tuple[float, int]] = field(default_factory=list)

    def throughput(self, begin: float, end: float) -> float:
        """Accepted per minute."""
        return sum(begin <= at < end for at in self.good) * 60 / (end - begin)

    def share(self, begin: float, end: float) -> float:
        """Refused of all."""
        good, bad = (sum(begin <= at < end for at in those) for those in (self.good, self.bad))
        return bad / max(good + bad, 1)


def simulate(
    pace_of: Callable[[World], Pace],
    accepts: Accepts,
    *,
    threads: int,
    minutes: float,
    latency: float = 0.05,
    most_flying: int = 10**9,
    headers: Callable[[float], dict[str, str]] = lambda now: {},
    asks: Callable[[float], float | None] = lambda now: None,
    tokens: int = 100,
) -> Told:
    world = World()
    pace, told = pace_of(world), Told()
    end = world.time + minutes * 60
    flying = 0

    def work() -> None:
        nonlocal flying
        while world.time < end:
            attempt = 0
            while world.time < end:
                with pace.turn(tokens):
                    flying += 1
                    sent = world.time
                    told.sent.append(sent)
                    told.flying.append((sent, flying))
                    good = flying <= most_flying and accepts(sent)
                    world.sleep(latency if good else latency / 5)
                    flying -= 1
                    (told.good if good else told.bad).append(sent)
                    if good:
                        pace.answered(headers(world.time))
                        break
                    pace.refused(headers(world.time))
                attempt += 1
                assert pace.again(attempt, asks(world.time))

    world.run(*[work] * threads)
    assert flying == 0
    return told


def unlimited(now: float) -> bool:
    return True


# --- what a provider takes is learned


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("threads", "latency"), [(1, 0.05), (16, 0.05), (32, 2.0)])
@pytest.mark.parametrize("most", [60, 600])
@pytest.mark.parametrize("kind", [fixed_window, sliding_window, bucket])
def test_a_limit_that_is_only_seen_by_429_is_used_and_seldom_hit(
    kind: Callable[[int], Accepts], most: int, threads: int, latency: float, seed: int
) -> None:
    module._jitter.seed(seed)
    told = simulate(
        lambda world: Pace(concurrency=threads, clock=world, retries=10**6),
        kind(most),
        threads=threads,
        minutes=8,
        latency=latency,
    )
    assert told.throughput(1_060, 1_480) >= 0.85 * most
    assert told.share(1_060, 1_480) <= 0.07


def test_a_limit_of_each_second_is_learned_within_the_first_minute() -> None:
    told = simulate(
        lambda world: Pace(concurrency=16, clock=world, retries=10**6),
        bucket(600, burst=1),
        threads=16,
        minutes=3,
    )
    assert told.throughput(1_000, 1_060) >= 0.95 * 600
    assert told.share(1_000, 1_060) <= 0.07
    assert told.share(1_060, 1_180) <= 0.02


def test_a_limit_on_requests_in_flight_is_learned() -> None:
    told = simulate(
        lambda world: Pace(concurrency=32, clock=world, retries=10**6),
        unlimited,
        threads=32,
        minutes=4,
        latency=0.5,
        most_flying=8,
    )
    assert told.throughput(1_060, 1_240) >= 0.65 * 8 / 0.5 * 60
    assert told.share(1_060, 1_240) <= 0.05


def test_a_limit_that_is_lowered_and_lifted_is_followed() -> None:
    first, second = sliding_window(1200), sliding_window(120)

    def accepts(now: float) -> bool:
        if now < 1_180:
            return first(now)
        return second(now) if now < 1_480 else True

    told = simulate(
        lambda world: Pace(concurrency=4, clock=world, retries=10**6), accepts, threads=4, minutes=16
    )
    assert told.throughput(1_060, 1_180) >= 0.85 * 1200
    assert told.throughput(1_300, 1_480) >= 0.80 * 120
    assert told.share(1_300, 1_480) <= 0.10
    assert told.throughput(1_900, 1_960) >= 0.95 * 4 / 0.05 * 60


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("threads", [1, 7, 32])
def test_a_provider_that_never_refuses_has_all_requests_in_flight(threads: int, chosen: bool) -> None:
    told = simulate(
        lambda world: Pace(concurrency=threads, fixed=chosen, clock=world),
        unlimited,
        threads=threads + 8,
        minutes=0.5,
    )
    begin = 1_000 if chosen else 1_000 + 0.05 * (math.log2(threads) + 2)
    assert max(flying for _, flying in told.flying) == threads
    assert told.throughput(begin, 1_029) >= 0.98 * threads / 0.05 * 60
    # whatever leaves is followed at once
    later = [flying for at, flying in told.flying if 1_001 <= at <= 1_029]
    assert sum(later) / len(later) >= 0.5 * threads
    if not chosen:
        assert [flying for at, flying in told.flying if at == 1_000] == list(range(1, min(threads, 4) + 1))


def test_refusals_of_one_burst_halve_the_requests_in_flight_once() -> None:
    world = World()
    pace = Pace(concurrency=16, fixed=True, clock=world)
    seen: list[int] = []

    def work() -> None:
        with pace.turn(1):
            world.sleep(1)
            pace.refused({})
            seen.append(pace.concurrency)

    world.run(*[work] * 16)
    assert seen == [8] * 16

    def one_more() -> None:
        with pace.turn(1):
            world.sleep(1)
            pace.answered({})

    before = pace.concurrency
    world.run(*[one_more] * 20)
    assert before < pace.concurrency <= 16


def test_while_everything_is_refused_one_request_at_a_time_goes_out() -> None:
    told = simulate(
        lambda world: Pace(concurrency=16, clock=world, retries=10**6),
        lambda now: now > 1_100,
        threads=16,
        minutes=3,
    )
    silent = [(at, flying) for at, flying in told.flying if 1_005 < at < 1_100]
    assert all(flying == 1 for _, flying in silent)
    assert 10 <= len(silent) <= 30
    assert min(told.good) <= 1_108.2


# --- what a server says about its limits


def limits(kind: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": limit,
        f"x-ratelimit-remaining-{kind}": remaining,
        f"x-ratelimit-reset-{kind}": reset,
    }


def window_with_headers(most: int) -> tuple[Accepts, Callable[[float], dict[str, str]]]:
    counts: dict[int, int] = {}

    def accepts(now: float) -> bool:
        minute = int(now // 60)
        counts[minute] = counts.get(minute, 0) + 1
        return counts[minute] <= most

    def headers(now: float) -> dict[str, str]:
        left = max(most - counts.get(int(now // 60), 0), 0)
        return limits("requests", str(most), str(left), f"{60 - now % 60:.3f}s")

    return accepts, headers


def bucket_with_headers(most: int, cost: int) -> tuple[Accepts, Callable[[float], dict[str, str]]]:
    """As OpenAI: tokens are filled up continuously, the reset says when the bucket is full again."""
    level, filled = float(most), 1_000.0

    def fill(now: float) -> None:
        nonlocal level, filled
        level, filled = min(level + (now - filled) * most / 60, most), now

    def accepts(now: float) -> bool:
        nonlocal level
        fill(now)
        if level < cost:
            return False
        level -= cost
        return True

    def headers(now: float) -> dict[str, str]:
        fill(now)
        reset = (most - level) * 60 / most
        text = f"{int(reset * 1000)}ms" if reset < 1 else f"0m{reset:.3f}s"
        return limits("tokens", str(most), str(int(level)), text)

    return accepts, headers


def test_what_others_have_under_way_is_not_left() -> None:
    world = World()
    pace = Pace(concurrency=4, fixed=True, clock=world)
    sent: list[float] = []

    def other() -> None:
        with pace.turn(1):
            world.sleep(5)

    def told() -> None:
        with pace.turn(1):
            world.sleep(1)
        # the last one that is left is that of the other thread; an answer is read after its turn
        pace.answered(limits("requests", "10", "1", "10s"))
        with pace.turn(1):
            sent.append(world.time)

    world.run(other, told)
    assert sent[0] >= 1_011


@pytest.mark.parametrize("threads", [1, 16])
def test_what_is_left_of_a_window_is_spread_over_it(threads: int) -> None:
    accepts, headers = window_with_headers(300)
    told = simulate(
        lambda world: Pace(concurrency=threads, clock=world),
        accepts,
        threads=threads,
        minutes=5,
        headers=headers,
    )
    assert told.throughput(1_080, 1_260) >= 0.9 * 300
    assert told.share(1_080, 1_260) == 0
    # no wall: there are requests in each 5 seconds
    assert all(told.throughput(at, at + 5) > 0 for at in range(1_080, 1_255, 5))


@pytest.mark.parametrize("threads", [1, 16])
def test_tokens_that_are_filled_up_continuously_are_used_up_to_the_limit(threads: int) -> None:
    accepts, headers = bucket_with_headers(1_000_000, 10_000)
    told = simulate(
        lambda world: Pace(concurrency=threads, clock=world),
        accepts,
        threads=threads,
        minutes=5,
        headers=headers,
        tokens=10_000,
    )
    assert told.throughput(1_060, 1_300) >= 0.9 * 100
    assert told.share(1_000, 1_300) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "0"},
        limits("requests", "0", "0", "9s"),
        limits("tokens", "x", "-1", "soon"),
        limits("tokens", "9", "0", "nan"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense_slow_nothing_down(headers: dict[str, str]) -> None:
    told = simulate(
        lambda world: Pace(concurrency=2, fixed=True, clock=world),
        unlimited, threads=2, minutes=0.1, headers=lambda now: headers,
    )  # fmt: skip
    assert told.throughput(1_000, 1_005) >= 0.98 * 2 / 0.05 * 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("17", 17.0), ("0.5", 0.5), ("1h2m3.5s", 3723.5),
        (" 8.64s ", 8.64), ("1d", 86400.0), ("0s", 0.0), ("250µs", 0.00025), ("", None), (None, None),
        ("soon", None), ("5 apples", None), ("-1", None), ("inf", None), ("nan", None), ("1s!", None),
    ],
)  # fmt: skip
def test_durations_are_read_as_servers_write_them(text: str | None, expected: float | None) -> None:
    found = seconds(text)
    assert found is expected or found == pytest.approx(expected)


# --- pauses


def test_a_wait_that_one_thread_was_asked_for_holds_back_all() -> None:
    asked_at: list[float] = []

    def accepts(now: float) -> bool:
        if now >= 1_002 and not asked_at:
            asked_at.append(now)
            return False
        return True

    told = simulate(
        lambda world: Pace(concurrency=8, clock=world),
        accepts,
        threads=8,
        minutes=1,
        asks=lambda now: 30.0,
    )
    # what was under way when the answer came does not count
    between = [at for at in told.sent if asked_at[0] + 0.06 < at < asked_at[0] + 30]
    assert between == []
    assert sum(at > asked_at[0] + 30 for at in told.sent) > 100


def test_the_pause_is_drawn_between_nothing_and_a_doubling_limit() -> None:
    world, pauses = World(), dict[int, list[float]]()
    pace = Pace(concurrency=1, clock=world, backoff=0.5, retries=10**6)

    def work() -> None:
        for attempt in (1, 2, 3, 5, 9, 500):
            for _ in range(200):
                begin = world.time
                assert pace.again(attempt, None)
                pauses.setdefault(attempt, []).append(world.time - begin)

    world.run(work)
    for attempt, longest in {1: 0.5, 2: 1.0, 3: 2.0, 5: 8.0, 9: 8.0, 500: 8.0}.items():
        drawn = pauses[attempt]
        assert max(drawn) <= longest
        assert max(drawn) > 0.9 * longest
        assert min(drawn) < 0.1 * longest
        assert 0.4 * longest < sum(drawn) / len(drawn) < 0.6 * longest


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    world = World()
    pace = Pace(concurrency=1, clock=world)

    def work() -> None:
        assert not pace.again(1, 120.5)
        assert not pace.again(1, math.inf)
        assert not pace.again(1, math.nan)
        assert world.time == 1_000
        assert pace.again(1, 120.0)
        assert 1_120 <= world.time <= 1_121

    world.run(work)


def test_the_retries_of_a_run_are_for_all_threads_together() -> None:
    world, said = World(), list[bool]()
    pace = Pace(concurrency=4, clock=world, retries=5)

    def work() -> None:
        said.extend(pace.again(1, None) for _ in range(3))

    world.run(*[work] * 4)
    assert sorted(said) == [False] * 7 + [True] * 5


# --- bounds set by hand


@settings(max_examples=40)
@given(
    st.floats(5, 3_000),
    st.floats(1_000, 1_000_000) | st.none(),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=8),
    st.integers(1, 6),
)
def test_no_minute_holds_more_than_was_set_by_hand(
    requests: float, tokens: float | None, costs: list[int], threads: int
) -> None:
    world, sent = World(), list[tuple[float, int]]()
    pace = Pace(
        concurrency=threads, fixed=True, clock=world, requests_per_minute=requests, tokens_per_minute=tokens
    )
    turns = iter(costs * 40)

    def work() -> None:
        for cost in turns:
            with pace.turn(cost):
                sent.append((world.time, cost))
                world.sleep(0.05)
            if len(sent) > 120 or world.time > 1_400:
                return

    world.run(*[work] * threads)
    for number, (begin, _) in enumerate(sent):
        minute = [cost for at, cost in sent[number:] if at < begin + 60 - 1e-6]
        assert len(minute) <= max(requests, 1)
        if tokens is not None:
            # a request beyond the bound goes, but alone
            assert sum(minute) <= tokens or len(minute) == 1


@pytest.mark.parametrize(("requests", "tokens"), [(300, None), (None, 300_000)])
def test_a_bound_that_was_set_by_hand_is_used_evenly(requests: float | None, tokens: float | None) -> None:
    told = simulate(
        lambda world: Pace(
            concurrency=8, clock=world, requests_per_minute=requests, tokens_per_minute=tokens
        ),
        sliding_window(300),
        threads=8,
        minutes=4,
        tokens=1_000,
    )
    assert told.throughput(1_000, 1_240) >= 0.97 * 300
    assert told.bad == []
    assert all(20 <= told.throughput(at, at + 5) / 12 <= 30 for at in range(1_000, 1_235))


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    world, large = World(), list[float]()
    pace = Pace(concurrency=8, fixed=True, clock=world, tokens_per_minute=60_000)

    def small() -> None:
        while world.time < 1_200:
            with pace.turn(500):
                world.sleep(0.05)

    def big() -> None:
        world.sleep(0.1)
        with pace.turn(30_000):
            large.append(world.time)

    world.run(*[small] * 7, big)
    assert large
    assert large[0] < 1_065


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"concurrency": 0}, r"expected 1 or more requests in flight \(--concurrency\), got 0"),
        (
            {"concurrency": 1, "requests_per_minute": 0},
            r"expected requests_per_minute \(--requests-per-minute\) above 0, got 0",
        ),
        (
            {"concurrency": 1, "tokens_per_minute": math.nan},
            r"tokens_per_minute \(--tokens-per-minute\) above 0, got nan",
        ),
    ],
)
def test_bounds_that_let_nothing_through_are_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Pace(**arguments)  # type: ignore[arg-type]  # as a caller may


# --- the end, on the real clock


def test_close_wakes_all_who_wait() -> None:
    pace = Pace(concurrency=1, fixed=True)
    ended: list[str] = []
    began = threading.Barrier(5)

    def turning() -> None:
        began.wait()
        with pytest.raises(EmbedderError, match="closed"), pace.turn(1):
            raise AssertionError("it was not this thread's turn")
        ended.append("turn")

    def pausing() -> None:
        began.wait()
        with pytest.raises(EmbedderError, match="closed"):
            pace.again(1, 100.0)
        ended.append("pause")

    threads = [threading.Thread(target=work, daemon=True) for work in (turning, turning, pausing, pausing)]
    with pace.turn(1):
        for thread in threads:
            thread.start()
        began.wait()
        while len(pace._queue) < 2 or len(pace._pausing) < 2:
            threading.Event().wait(0.001)
        pace.close()
        pace.close()
        for thread in threads:
            thread.join(30)
    assert sorted(ended) == ["pause", "pause", "turn", "turn"]
    with pytest.raises(EmbedderError, match="closed"), pace.turn(1):
        raise AssertionError("a closed pace gave a turn")
    with pytest.raises(EmbedderError, match="closed"):
        pace.again(1, None)


def test_ctrl_c_while_waiting_leaves_the_turn_to_others() -> None:
    pace = Pace(concurrency=1, fixed=True)
    free, got = threading.Event(), threading.Event()

    def first() -> None:
        with pace.turn(1):
            free.wait(30)

    def interrupter() -> None:
        while not pace._queue:
            threading.Event().wait(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def last() -> None:
        with pace.turn(1):
            got.set()

    holder = threading.Thread(target=first, daemon=True)
    holder.start()
    while pace._flying == 0:
        threading.Event().wait(0.001)
    # a shell starts jobs in the background with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupter, daemon=True).start()
        with pytest.raises(KeyboardInterrupt), pace.turn(1):
            raise AssertionError("it was not this thread's turn")
    finally:
        signal.signal(signal.SIGINT, before)
    follower = threading.Thread(target=last, daemon=True)
    follower.start()
    free.set()
    assert got.wait(30)
    holder.join(30)
    follower.join(30)
    assert pace._flying == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    pace = Pace(concurrency=1, fixed=True)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), pace.turn(1):
            raise ValueError("broken")
