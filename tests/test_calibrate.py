"""Calibration on real stores: what it measures, what it leaves behind, and what it keeps."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import vecbridge
from vecbridge import calibrate as module
from vecbridge.calibrate import calibrate, sweep
from vecbridge.calibrations import keep, known
from vecbridge.cli.calibrating import calibrate as command
from vecbridge.errors import Forbidden, InputError, StoreError
from vecbridge.limits import limits
from vecbridge.sizes import estimate
from vecbridge.speeds import ROUGH, Rate, Speeds
from vecbridge.types import Index, Layout, Space

BUDGET = 1.0  # the least that is allowed: these tests look at what comes out, not at how exact it is


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that calibrations are kept in, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # a series as short as possible: a few hundred rows
    monkeypatch.setattr(module, "_PROBE", 200)
    monkeypatch.setattr(module, "_ROUNDS", 1)
    monkeypatch.setattr(module, "_LARGE", 256)
    monkeypatch.setattr(module, "_LARGEST", 768)
    return tmp_path / "cache" / "vecbridge"


@pytest.fixture(params=["pgvector", "edge", "flat"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "pgvector":
        return str(request.getfixturevalue("pg"))
    return f"{'qdrant' if request.param == 'edge' else 'flat'}:{tmp_path / 'store'}"


def usable(speeds: Speeds) -> bool:
    rates = [*speeds.scans.values(), speeds.visit, speeds.again, speeds.insert]
    numbers = [speeds.trip, speeds.workers, *(rate.bytes for rate in rates)]
    return all(0 < one < math.inf for one in numbers) and all(0 <= rate.row < math.inf for rate in rates)


def test_a_short_run_measures_something_that_plans_can_use_and_leaves_nothing(url: str) -> None:
    told: list[tuple[str, int, int | None]] = []
    with vecbridge.connect(url) as store:
        store.create("mine", dim=3, layout=Layout()).upsert(["a"], [[1, 2, 3]])
        speeds = calibrate(store, seconds=BUDGET, progress=lambda *at: told.append(at))
        assert store.collections() == ["mine"]
        assert store.open("mine").count() == 1
        known_limits = store.limits
    assert usable(speeds)
    assert speeds.calibrated
    assert speeds.backend == known_limits.backend
    assert speeds != ROUGH[speeds.backend]
    assert known_limits.version in speeds.source
    assert told[-1] == ("seconds", 1, 1)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    layout = Layout(index=Index("hnsw", ef_search=200)) if known_limits.indexed else Layout()
    costs = estimate(Space(512), layout, rows=50_000, limits=known_limits, speeds=speeds)
    assert costs.calibrated
    assert speeds.trip <= costs.query_seconds < math.inf
    assert (costs.build_seconds > 0) == bool(known_limits.indexed)


@pytest.mark.parametrize("failing", ["search", "upsert", "build_index"])
def test_a_run_that_fails_leaves_nothing(url: str, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if failing == "build_index" and url.startswith("flat"):
        pytest.skip("flat storage builds no index")
    calls = 0
    real = getattr(vecbridge.Collection, failing)

    def breaks(self: vecbridge.Collection, *arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoreError("the cable was pulled")
        return real(self, *arguments, **named)

    with vecbridge.connect(url) as store:
        monkeypatch.setattr(vecbridge.Collection, failing, breaks)
        with pytest.raises(StoreError, match="the cable was pulled"):
            calibrate(store, seconds=BUDGET)
        monkeypatch.undo()
        assert calls == 2
        assert store.collections() == []


def left(store: vecbridge.Store, *, machine: str, process: int, begun: float) -> str:
    name = f"vecbridge-calibration-{machine}-{process}-{int(begun):08x}7"
    store.create(name, dim=3, layout=Layout()).close()
    return name


def test_what_a_killed_run_left_is_dropped_and_nothing_else(url: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, now = module._machine(), time.time()
    with vecbridge.connect(url) as store:
        killed = left(store, machine=here, process=gone.pid, begun=now)
        ancient = left(store, machine="0123ab", process=1, begun=now - 10 * 86400)
        running = left(store, machine=here, process=os.getpid(), begun=now)
        elsewhere = left(store, machine="0123ab", process=gone.pid, begun=now)
        store.create("vecbridge-calibration", dim=3, layout=Layout()).close()
        assert sorted(sweep(store)) == sorted([killed, ancient])
        assert store.collections() == sorted([running, elsewhere, "vecbridge-calibration"])


def test_a_run_that_is_killed_is_swept_up_by_the_next(tmp_path: Path) -> None:
    url = f"flat:{tmp_path / 'store'}"
    code = (
        "import os, signal, vecbridge; from vecbridge import Collection, calibrate as c\n"
        "Collection.search = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"from vecbridge.calibrate import calibrate\ncalibrate(vecbridge.connect({url!r}), seconds=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    with vecbridge.connect(url) as store:
        assert len(store.collections()) == 1
        assert usable(calibrate(store, seconds=BUDGET))
        assert store.collections() == []


def test_a_user_who_may_not_create_is_told_so(pg: str) -> None:
    with psycopg.connect(pg, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE ROLE calibration_guest LOGIN")
    try:
        guest = pg.replace("postgres@", "calibration_guest@", 1)
        with vecbridge.connect(guest) as store:
            with pytest.raises(
                Forbidden, match=r"calibrating makes collections in .* which this user may not"
            ):
                calibrate(store, seconds=BUDGET)
            assert store.collections() == []
    finally:
        with psycopg.connect(pg, autocommit=True) as connection:
            connection.execute("DROP ROLE calibration_guest")


@pytest.mark.parametrize("seconds", [0, -1, 0.5, 10**9, math.nan, True, "60"])
def test_a_budget_without_sense_is_refused(seconds: float, tmp_path: Path) -> None:
    with (
        vecbridge.connect(f"flat:{tmp_path / 'store'}") as store,
        pytest.raises(InputError, match="expected 1 to 3,600 seconds to calibrate in"),
    ):
        calibrate(store, seconds=seconds)


def test_several_places_are_calibrated_one_by_one(tmp_path: Path) -> None:
    with (
        vecbridge.connect(f"flat:{tmp_path / 'a'}", f"flat:{tmp_path / 'b'}") as store,
        pytest.raises(InputError, match="expected one place to calibrate, got 2"),
    ):
        calibrate(store)


# --- what is kept ------------------------------------------------------------------------------------

MEASURED = replace(ROUGH["pgvector"], trip=0.25, calibrated=True, source="measured on it")
AT = "postgresql://me:s3cret@db.example:5432/papers?host=db.example"


def test_what_was_measured_is_found_again_under_the_url_without_its_password(own_folder: Path) -> None:
    assert known(AT) is None
    file = keep(AT, MEASURED)
    assert file == own_folder / "calibrations.json"
    assert known(AT) == known(AT.replace(":s3cret", "")) == MEASURED
    assert known(AT.replace("papers", "others")) is None
    assert "s3cret" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    entry = next(iter(json.loads(file.read_text())["places"].values()))
    assert set(entry) == {"date", "backend", "vecbridge", "speeds"}


def test_a_folder_is_the_same_place_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = replace(ROUGH["flat"], trip=0.5)
    monkeypatch.chdir(tmp_path)
    keep("flat:./data", flat)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert known(f"flat:{tmp_path}/data") == known("FLAT:../data") == flat
    assert known("flat:./data") is None


def test_places_do_not_overwrite_each_other_and_the_last_calibration_counts() -> None:
    keep("flat:/a", ROUGH["flat"])
    keep("flat:/b", replace(ROUGH["flat"], trip=1.0))
    keep("flat:/a", replace(ROUGH["flat"], trip=2.0))
    assert [one.trip for url in ("flat:/a", "flat:/b") if (one := known(url))] == [2.0, 1.0]


def test_processes_that_keep_at_once_lose_nothing() -> None:
    code = (
        "import sys; from vecbridge.calibrations import keep; from vecbridge.speeds import ROUGH\n"
        "for n in range(5): keep(f'flat:/{sys.argv[1]}/{n}', ROUGH['flat'])"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(which)]) for which in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert all(known(f"flat:/{which}/{n}") == ROUGH["flat"] for which in range(3) for n in range(5))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"places": 3}', '{"format": 1, "places": {"flat:/a": {"speeds": {}}}}']
)
def test_a_damaged_file_is_a_sentence_and_does_not_stop_the_next_calibration(
    content: str, own_folder: Path
) -> None:
    own_folder.mkdir(parents=True)
    file = own_folder / "calibrations.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"calibrations\.json, which is damaged .*; remove it and calibrate"):
        known("flat:/a")
    keep("flat:/a", ROUGH["flat"])
    assert known("flat:/a") == ROUGH["flat"]


def test_numbers_of_another_format_are_not_used(own_folder: Path) -> None:
    own_folder.mkdir(parents=True)
    (own_folder / "calibrations.json").write_text('{"format": 99, "places": {"flat:/a": {}}}')
    assert known("flat:/a") is None


def test_where_nothing_can_be_kept_the_error_says_what_to_do(own_folder: Path) -> None:
    own_folder.parent.mkdir()
    own_folder.write_text("a file where the folder should be")
    with pytest.raises(
        StoreError, match=r"cannot be kept for later plans: .* set XDG_CACHE_HOME to a folder"
    ):
        keep("flat:/a", ROUGH["flat"])


def test_a_speed_that_contradicts_itself_becomes_the_rough_one_stretched() -> None:
    rough = Rate(1e-6, 1e9)
    # exactly twice as slow as the rough one, at one size
    assert module._line(rough, (1000, 4e-6)) == Rate(2e-6, 5e8)
    # the larger was faster: neither slope nor offset mean anything
    busy = module._line(rough, (1000, 4e-6), (3000, 2e-6))
    assert busy.row / busy.bytes**-1 == pytest.approx(rough.row * rough.bytes)
    fitted = module._line(rough, (1000, 3e-6), (3000, 7e-6))
    assert fitted.seconds(1, 1000) == pytest.approx(3e-6)
    assert fitted.seconds(1, 3000) == pytest.approx(7e-6)


# --- the command -------------------------------------------------------------------------------------


def test_the_command_shows_what_was_measured_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"flat:{tmp_path / 'store'}"
    command([url], seconds=BUDGET)
    said = capsys.readouterr().out
    assert "1,000,000 x 1,024" in said
    assert "Kept: plans for this store use what was measured" in said
    assert known(url) is not None


def test_the_command_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"qdrant:{tmp_path / 'edge'}", f"flat:{tmp_path / 'flat'}"]
    command(urls, seconds=BUDGET, as_json=True)
    places = json.loads(capsys.readouterr().out)["places"]
    assert [place["url"] for place in places] == urls
    for place in places:
        speeds = Speeds.from_dict(place["speeds"])
        assert speeds == known(place["url"])
        whats = [example["what"] for example in place["examples"]]
        graph = ["build the index", "one search"] if limits(speeds.backend).indexed else []
        assert whats == ["exact search", *graph]
        assert all(example["seconds"] > 0 for example in place["examples"])
