"""The local stack: what docker-compose.yml promises, and what scripts/stack does with a played `docker`."""

from __future__ import annotations

import http.server
import os
import pty
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from vecbridge import sizes
from vecbridge.backends.postgres import address as postgres_address
from vecbridge.backends.qdrant import address as qdrant_address
from vecbridge.cli import settings as cli_settings
from vecbridge.embedders.api import ITEMS
from vecbridge.limits import limits

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
GUIDE = (ROOT / "docs" / "stack.md").read_text()
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:[-?])([^}]*)\}")
SERVICES = ("postgres", "qdrant", "embeddings")
MB = 2**20


def composed(settings: dict[str, str]) -> dict[str, Any]:
    """The compose file as Compose reads it with these settings."""
    text = VARIABLE.sub(lambda found: settings.get(found[1]) or (found[3] if found[2] == ":-" else ""), TEXT)
    assert "${" not in text
    loaded = yaml.safe_load(text.replace("$$", "$"))
    assert isinstance(loaded, dict)
    return loaded


STACK = composed({})["services"]


def size(text: str) -> int:
    """Bytes of 2g, 2560m (Docker) or 2GB, 128MB (PostgreSQL): both count in powers of two."""
    found = re.fullmatch(r"(\d+)(m|MB|g|GB)", text)
    assert found is not None, text
    return int(found[1]) * (MB if found[2][0] in "mM" else 1024 * MB)


def postgres_settings(services: dict[str, Any]) -> dict[str, str]:
    command = services["postgres"]["command"]
    assert command[0] == "postgres"
    assert command[1::2] == ["-c"] * (len(command) // 2)
    return dict(option.split("=") for option in command[2::2])


def fits(settings: dict[str, str]) -> None:
    """Fail if the sizes of these settings break an index build."""
    services = composed(settings)["services"]
    options = postgres_settings(services)
    build, buffers = size(options["maintenance_work_mem"]), size(options["shared_buffers"])
    shared, limit = size(services["postgres"]["shm_size"]), size(services["postgres"]["mem_limit"])
    workers = int(options["max_parallel_maintenance_workers"])
    assert options["vecbridge.build_memory"] == options["maintenance_work_mem"]
    # one segment for all workers of a build, and 256 MB for parallel queries beside it
    assert shared >= build + 256 * MB
    # pgvector starts no worker with less than 32 MB each, the leader included
    assert build >= 32 * MB * (workers + 1)
    # what lies in /dev/shm counts as the container's memory; three workers of autovacuum may run meanwhile
    assert limit >= buffers + shared + 512 * MB
    assert limit >= buffers + shared + 3 * size(options["autovacuum_work_mem"])


def test_sizes_of_memory_fit_each_other_as_they_come() -> None:
    fits({})
    fits(EXAMPLE)


def test_every_row_of_the_table_for_larger_builds_fits_too() -> None:
    names = ["VECBRIDGE_PG_BUILD_MEMORY", "VECBRIDGE_PG_SHM", "VECBRIDGE_PG_MEMORY"]
    rows = re.findall(r"^\| `(\d\w+)` \| `(\d\w+)` \| `(\d\w+)` \| ([\d,]+) \|$", GUIDE, re.MULTILINE)
    assert len(rows) >= 3
    assert rows[0][:3] == tuple(EXAMPLE[name] for name in names)
    for *settings, count in rows:
        fits(dict(zip(names, settings, strict=True)))
        need = sizes.hnsw_memory(int(count.replace(",", "")), "float16", 3584)
        # what vecbridge asks for is a tenth more than it reckons with
        assert 0.95 < (1.1 * need + 8 * MB) / size(settings[0]) <= 1, settings


def test_the_variables_of_the_compose_file_are_those_of_the_example_with_the_same_defaults() -> None:
    used = {name: (kind, value) for name, kind, value in VARIABLE.findall(TEXT)}
    # Compose itself reads this one
    assert set(EXAMPLE) == {*used, "COMPOSE_PROJECT_NAME"}
    for name, (kind, value) in used.items():
        assert kind == ":?" or EXAMPLE[name] == value, name


def test_no_password_is_built_in() -> None:
    assert [name for name, kind, _ in VARIABLE.findall(TEXT) if kind == ":?"] == ["VECBRIDGE_PG_PASSWORD"]
    assert STACK["postgres"]["environment"]["POSTGRES_PASSWORD"] is None
    assert STACK["qdrant"]["environment"]["QDRANT__SERVICE__API_KEY"] is None
    assert composed(EXAMPLE)["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"] == "vecbridge"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_images_are_pinned_to_the_versions_that_the_planner_and_the_readme_speak_of() -> None:
    images = {name: service["image"] for name, service in STACK.items()}
    assert set(images) == set(SERVICES)
    proved = re.search(r"real servers \(pgvector [\d.]+ and ([\d.]+)\)", (ROOT / "README.md").read_text())
    assert proved is not None
    assert images["postgres"] == f"pgvector/pgvector:{proved[1]}-pg18"
    # what is planned without a server holds on this one
    assert limits("pgvector").features == limits(f"pgvector@{proved[1]}").features
    assert images["qdrant"] == f"qdrant/qdrant:v{limits('qdrant').version}"
    for image in images.values():
        assert re.search(r":[a-z-]*v?\d+\.\d+\.\d+", image), f"{image} names no exact version"
        assert f"`{image}`" in GUIDE


def test_everything_listens_on_this_machine_only_at_the_usual_ports() -> None:
    ports = {name: service["ports"] for name, service in STACK.items()}
    assert ports == {
        "postgres": ["127.0.0.1:5432:5432"],
        "qdrant": ["127.0.0.1:6334:6334", "127.0.0.1:6333:6333"],
        "embeddings": ["127.0.0.1:8080:80"],
    }
    moved = {name: "7777" for name in EXAMPLE if name.endswith("_PORT")}
    for service in composed(moved)["services"].values():
        assert all(port.startswith("127.0.0.1:7777:") for port in service["ports"])


def test_every_service_has_a_health_check_limits_and_a_way_to_stop() -> None:
    for service in STACK.values():
        assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries", "start_period"}
        assert size(service["mem_limit"]) >= 1024 * MB
        assert service["restart"] == "unless-stopped"
        assert service["stop_grace_period"] == "1m"
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_data_lie_in_named_volumes() -> None:
    mounted = {volume for service in STACK.values() for volume in service["volumes"]}
    assert mounted == {
        "postgres:/var/lib/postgresql",
        "qdrant:/qdrant/storage",
        "qdrant-snapshots:/qdrant/snapshots",
        "embeddings:/data",
    }
    assert {volume.split(":")[0] for volume in mounted} == set(composed({})["volumes"])


def test_qdrant_tells_nobody_and_answers_no_strange_page() -> None:
    environment = STACK["qdrant"]["environment"]
    assert environment["QDRANT__TELEMETRY_DISABLED"] == "true"
    assert environment["QDRANT__SERVICE__ENABLE_CORS"] == "false"
    assert STACK["qdrant"]["ulimits"]["nofile"] == {"soft": 65536, "hard": 65536}


def test_the_embedding_server_is_off_by_default_and_takes_as_many_texts_as_are_sent() -> None:
    assert {name for name, service in STACK.items() if "profiles" in service} == {"embeddings"}
    assert STACK["embeddings"]["profiles"] == ["embeddings"]
    command = STACK["embeddings"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))
    assert int(options["--max-client-batch-size"]) >= ITEMS
    assert options["--auto-truncate"] == "false"


def test_postgresql_knows_every_setting_and_takes_its_value(pg18: str) -> None:
    with closing(psycopg.connect(pg18, autocommit=True)) as connection:
        for name, value in postgres_settings(STACK).items():
            # checked and written into a file that this server does not read again
            connection.execute(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
            connection.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))


@contextmanager
def answering(path: str, version: str, status: int) -> Iterator[int]:
    """The port of a server that answers `path` with `status`, and everything else with 500."""

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = version

        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 500)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("service", "path", "port"), [("qdrant", "/readyz", 6333), ("embeddings", "/health", 80)]
)
def test_a_health_check_believes_an_answer_of_200_and_nothing_else(
    service: str, path: str, port: int
) -> None:
    kind, *command = STACK[service]["healthcheck"]["test"]
    assert kind == "CMD"
    assert f"/dev/tcp/127.0.0.1/{port} " in command[-1]

    def healthy(port_here: int) -> bool:
        here = [*command[:-1], command[-1].replace(f"127.0.0.1/{port}", f"127.0.0.1/{port_here}")]
        return subprocess.run(here, capture_output=True, check=False).returncode == 0

    for version in ("HTTP/1.0", "HTTP/1.1"):
        for status in (200, 401, 503):
            with answering(path, version, status) as given:
                assert healthy(given) == (status == 200), (version, status)
    with answering("/another", "HTTP/1.1", 200) as given:
        assert not healthy(given)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not healthy(unused.getsockname()[1])


COMPOSERS = [
    command
    for command in (["docker", "compose"], ["docker-compose"])
    if shutil.which(command[0])
    and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
]


@pytest.mark.skipif(not COMPOSERS, reason="neither docker compose nor docker-compose is installed")
def test_compose_reads_the_file_as_this_test_does(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, tmp_path / name.replace(".example", ""))
    clean = {name: value for name, value in os.environ.items() if name not in EXAMPLE}
    for command in COMPOSERS:
        done = subprocess.run(
            [*command, "--profile", "embeddings", "config"],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        read = yaml.safe_load(done.stdout)["services"]
        assert set(read) == set(SERVICES)
        for name, service in composed(EXAMPLE)["services"].items():
            assert read[name]["image"] == service["image"]
            assert read[name].get("command") == service.get("command")
            given = read[name].get("environment", {})
            expected = {part: value or "" for part, value in service.get("environment", {}).items()}
            assert {part: value or "" for part, value in given.items()} == expected
    (tmp_path / ".env").unlink()
    refused = subprocess.run(
        [*COMPOSERS[0], "config"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "copy .env.example to .env" in refused.stderr


# --- scripts/stack -----------------------------------------------------------------------------------------

DOCKER = """
cd {here}
printf '%s\\n' "$*" >>log
case "$*" in
  "compose version") exit "$(cat plugin)" ;;
  "version "*) cat daemon >&2; [[ ! -s daemon ]] ;;
  "volume ls "*) cat volumes ;;
  "ps "*)
    [[ "$*" == *"project=$(cat project)"* ]] || exit 0
    for service in postgres qdrant embeddings; do
      [[ "$*" != *"service=$service"* || ! -e "states/$service" ]] || echo "id-$service"
    done ;;
  "inspect "*)
    last="${{*: -1}}"
    file="states/${{last#id-}}"
    head -n 1 "$file"
    [[ "$(wc -l <"$file")" == 1 ]] || sed -i 1d "$file" ;;
  "compose "*) shift; compose "$@" ;;
  *) echo "the fake docker knows no '$*'" >&2; exit 99 ;;
esac
"""
COMPOSE = """
compose() {{
  printf '%s %s\\n' "${{COMPOSE_PROJECT_NAME-}}" "${{VECBRIDGE_PG_PASSWORD-}}" >>{here}/environment
  case "$*" in
    *" logs "*) echo "what ${{*: -1}} said" ;;
    "up "*) exit "$(cat {here}/starts)" ;;
  esac
}}
"""


class Machine:
    """A copy of the project, and a PATH with a fake `docker` and little else."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.here = folder / "a project", folder / "bin", folder / "fake"
        for path in (self.root / "scripts", self.bin, self.here / "states"):
            path.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "stack", self.root / "scripts" / "stack")
        for name in (".env.example", "docker-compose.yml"):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("bash", "cat", "dirname", "env", "head", "od", "sed", "tail", "tr", "wc"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.program("docker", (COMPOSE + DOCKER).format(here=self.here))
        self.program("sleep", f"echo sleep >>{self.here}/log")
        self.play(plugin="0", daemon="", volumes="", starts="0", project="vecbridge")

    def program(self, name: str, code: str) -> None:
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{code}\n")
        (self.bin / name).chmod(0o755)

    def play(self, **files: str) -> None:
        for name, text in files.items():
            (self.here / name).write_text(text)

    def states(self, **services: str) -> None:
        """What each look at a container finds, the last one for ever."""
        for name, text in services.items():
            (self.here / "states" / name).write_text("".join(f"{state}\n" for state in text.split()))

    def run(
        self, *words: str, stdin: int = subprocess.DEVNULL, **shell: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / "stack", *words],
            cwd="/",
            env={"PATH": str(self.bin), "USER": "somebody", **shell},
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self, *, about: str = "") -> list[str]:
        log = self.here / "log"
        return [line for line in log.read_text().splitlines() if about in line] if log.exists() else []

    def env(self) -> dict[str, str]:
        return dict(re.findall(r"^([A-Z_]+)=(.*)$", (self.root / ".env").read_text(), re.MULTILINE))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def configured(machine: Machine, **changes: str) -> None:
    lines = (machine.root / ".env.example").read_text()
    for name, value in changes.items():
        lines, found = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", lines)
        assert found == 1
    (machine.root / ".env").write_text(lines)


def test_up_waits_until_both_are_healthy_and_shows_where_they_are(machine: Machine) -> None:
    configured(machine)
    machine.states(postgres="created starting starting healthy", qdrant="starting healthy")
    done = machine.run("up")
    assert done.returncode == 0, done.stderr
    assert machine.calls(about="compose up") == ["compose up --detach postgres qdrant"]
    assert len(machine.calls(about="sleep")) == 3
    assert "Waiting for postgres qdrant (0 of at most 180 seconds)" in done.stderr
    assert re.findall(r"^(\w+) +healthy +(\S+)$", done.stdout, re.MULTILINE) == [
        ("postgres", "postgresql://vecbridge:***@127.0.0.1:5432/vecbridge"),
        ("qdrant", "qdrant://127.0.0.1:6334"),
    ]
    assert 'eval "$(scripts/stack urls)"' in done.stderr


def test_up_makes_settings_with_random_secrets_once_and_tells_them_only_when_asked(machine: Machine) -> None:
    machine.states(postgres="healthy", qdrant="healthy")
    first = machine.run("up")
    assert first.returncode == 0, first.stderr
    made = machine.env()
    assert set(made) == set(EXAMPLE)
    password, key = made.pop("VECBRIDGE_PG_PASSWORD"), made.pop("QDRANT_API_KEY")
    assert re.fullmatch(r"[0-9a-f]{32}", password)
    assert re.fullmatch(r"[0-9a-f]{32}", key)
    assert password != key
    assert made.items() <= EXAMPLE.items()
    assert (machine.root / ".env").stat().st_mode & 0o077 == 0
    before = (machine.root / ".env").read_bytes()
    again, status = machine.run("up"), machine.run("status")
    assert (machine.root / ".env").read_bytes() == before
    told = [text for done in (first, again, status) for text in (done.stdout, done.stderr)]
    assert not any(secret in text for secret in (password, key) for text in [*told, *machine.calls()])
    assert machine.run("urls").stdout == (
        f"export VECBRIDGE_URL='postgresql://vecbridge:{password}@127.0.0.1:5432/vecbridge "
        f"qdrant://{key}@127.0.0.1:6334'\n"
    )


def test_the_urls_are_read_as_they_are_meant(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(machine, VECBRIDGE_PG_PASSWORD="a-_.~Z9", QDRANT_API_KEY="Z9~._-a")
    line = machine.run("urls").stdout
    code = f'{line}\nprintf %s "$VECBRIDGE_URL"'
    exported = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    monkeypatch.setenv("VECBRIDGE_URL", exported)
    (postgres, qdrant), _ = cli_settings.places()
    found = postgres_address.parse(postgres)
    assert found.params["password"] == "a-_.~Z9"
    assert (found.params["host"], found.params["port"], found.params["user"], found.params["dbname"]) == (
        "127.0.0.1", "5432", "vecbridge", "vecbridge"
    )  # fmt: skip
    there = qdrant_address.parse(qdrant)
    assert (there.host, there.port, there.rest, there.tls, there.key) == (
        "127.0.0.1", 6334, False, False, "Z9~._-a"
    )  # fmt: skip
    # the ports that are meant where none is given are those of the stack
    for url, port in (("qdrant://127.0.0.1", 6334), ("qdrant+http://127.0.0.1", 6333)):
        assert qdrant_address.parse(url).port == port


def test_the_settings_file_of_the_guide_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    (tmp_path / "vecbridge.toml").write_text(found[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VECBRIDGE_URL", raising=False)
    monkeypatch.setenv("VECBRIDGE_PG_PASSWORD", "a-_.~Z9")
    assert cli_settings.places()[0] == (
        "postgresql://vecbridge:a-_.~Z9@127.0.0.1:5432/vecbridge",
        "qdrant://127.0.0.1:6334",
    )


def test_up_makes_no_new_password_for_data_that_have_one(machine: Machine) -> None:
    machine.play(volumes="vecbridge_postgres\n")
    done = machine.run("up")
    assert done.returncode == 1
    assert "data of an earlier stack" in done.stderr
    assert "vecbridge_postgres" in done.stderr
    assert not (machine.root / ".env").exists()
    assert machine.calls(about="compose up") == []


@pytest.mark.parametrize("state", ["unhealthy", "exited", "restarting", "dead"])
def test_up_gives_up_at_once_on_what_will_not_come_and_shows_what_it_said(
    machine: Machine, state: str
) -> None:
    configured(machine)
    machine.states(postgres="healthy", qdrant=f"starting {state}")
    done = machine.run("up")
    assert done.returncode == 1
    assert f"qdrant is {state}." in done.stderr
    assert "what qdrant said" in done.stderr
    assert "what postgres said" not in done.stderr
    assert len(machine.calls(about="sleep")) == 1
    assert machine.calls(about=" down") == []


def test_up_gives_up_after_the_time_given(machine: Machine) -> None:
    configured(machine)
    machine.states(postgres="starting", qdrant="healthy")
    done = machine.run("up", "--timeout", "7")
    assert done.returncode == 1
    assert "Not healthy after 7 seconds: postgres." in done.stderr
    assert "what postgres said" in done.stderr
    # two seconds each
    assert len(machine.calls(about="sleep")) == 4


def test_up_says_so_if_compose_cannot_start(machine: Machine) -> None:
    configured(machine)
    machine.play(starts="1")
    done = machine.run("up")
    assert done.returncode == 1
    assert "If a port is taken" in done.stderr
    assert machine.calls(about="inspect") == []


def test_up_with_embeddings_waits_for_the_third_too(machine: Machine) -> None:
    configured(machine, VECBRIDGE_EMBEDDINGS_PORT="9090")
    machine.states(postgres="healthy", qdrant="healthy", embeddings="starting starting healthy")
    done = machine.run("up", "--embeddings")
    assert done.returncode == 0, done.stderr
    assert machine.calls(about="compose up") == ["compose up --detach postgres qdrant embeddings"]
    # it downloads its model first
    assert "Waiting for embeddings (0 of at most 900 seconds)" in done.stderr
    assert re.search(r"^embeddings +healthy +http://127.0.0.1:9090/v1$", done.stdout, re.MULTILINE)


def test_settings_come_from_the_shell_before_the_file_as_compose_takes_them(machine: Machine) -> None:
    configured(
        machine,
        VECBRIDGE_PG_PASSWORD="'from-file' # quoted",
        VECBRIDGE_QDRANT_PORT='"7334"\r',
        QDRANT_API_KEY="k.e-y_~1  ",
    )
    assert machine.run("urls", VECBRIDGE_PG_PORT="7432").stdout == (
        "export VECBRIDGE_URL='postgresql://vecbridge:from-file@127.0.0.1:7432/vecbridge "
        "qdrant://k.e-y_~1@127.0.0.1:7334'\n"
    )
    assert "vecbridge:from-shell@" in machine.run("urls", VECBRIDGE_PG_PASSWORD="from-shell").stdout


@pytest.mark.parametrize("name", ["VECBRIDGE_PG_PASSWORD", "QDRANT_API_KEY"])
@pytest.mark.parametrize("value", ["p@ss", "a/b", "it's", "$HOME", "ä", "a b"])
def test_a_secret_that_a_url_cannot_hold_is_refused_unprinted(
    machine: Machine, name: str, value: str
) -> None:
    configured(machine, **{name: value})
    for command in ("up", "urls"):
        done = machine.run(command, LC_ALL="C.UTF-8")
        assert done.returncode == 2
        assert f"{name} holds a sign other than letters, digits and -._~" in done.stderr
        assert value not in done.stderr + done.stdout
    assert machine.calls(about="compose up") == []


def test_status_says_how_all_are_and_fails_unless_all_are_healthy(machine: Machine) -> None:
    configured(machine)
    nothing = machine.run("status")
    assert nothing.returncode == 1
    assert re.findall(r"^(\w+) +(\w+) ", nothing.stdout, re.MULTILINE) == [
        ("postgres", "absent"),
        ("qdrant", "absent"),
    ]
    machine.states(postgres="healthy", qdrant="healthy")
    assert machine.run("status").returncode == 0
    machine.states(embeddings="starting")
    third = machine.run("status")
    assert third.returncode == 1
    assert re.search(r"^embeddings +starting ", third.stdout, re.MULTILINE)


def test_another_project_name_is_another_stack(machine: Machine) -> None:
    configured(machine, COMPOSE_PROJECT_NAME="second")
    machine.states(postgres="healthy", qdrant="healthy")
    assert machine.run("status").returncode == 1
    machine.play(project="second")
    assert machine.run("status").returncode == 0
    assert machine.run("down").returncode == 0
    assert (machine.here / "environment").read_text().split()[0] == "second"


def test_down_keeps_the_data_and_needs_no_settings(machine: Machine) -> None:
    done = machine.run("down")
    assert done.returncode == 0, done.stderr
    assert machine.calls(about=" down") == ["compose --profile embeddings down"]
    assert (machine.here / "environment").read_text() == "vecbridge none\n"


def test_down_deletes_data_only_where_it_is_told_to(machine: Machine) -> None:
    configured(machine)
    refused = machine.run("down", "--volumes")
    assert refused.returncode == 2
    assert "to do it unasked: --yes" in refused.stderr
    assert machine.calls(about=" down") == []
    for answer, code in (("\n", 130), ("n\n", 130), ("yellow\n", 130), ("y\n", 0), ("Yes\n", 0)):
        master, terminal = pty.openpty()
        try:
            os.write(master, answer.encode())
            done = machine.run("down", "--volumes", stdin=terminal)
        finally:
            os.close(master)
            os.close(terminal)
        assert done.returncode == code, (answer, done.stderr)
        assert "Delete all data of the stack vecbridge?" in done.stderr
        assert bool(machine.calls(about=" down")) == (code == 0)
    assert machine.run("down", "--volumes", "--yes").returncode == 0
    assert machine.calls(about=" down") == ["compose --profile embeddings down --volumes"] * 3


def test_docker_compose_of_old_serves_where_the_plugin_is_missing(machine: Machine) -> None:
    configured(machine)
    machine.states(postgres="healthy", qdrant="healthy")
    machine.play(plugin="1")
    missing = machine.run("up")
    assert missing.returncode == 1
    assert "docker has no compose" in missing.stderr
    machine.program("docker-compose", f'echo "docker-compose $*" >>{machine.here}/log')
    done = machine.run("up")
    assert done.returncode == 0, done.stderr
    assert machine.calls(about="docker-compose") == ["docker-compose up --detach postgres qdrant"]


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_a_machine_without_docker_or_with_a_daemon_that_sleeps_is_told_what_to_do(
    machine: Machine, command: str
) -> None:
    machine.play(daemon="Cannot connect to the Docker daemon at unix:///nowhere.\n")
    asleep = machine.run(command)
    assert asleep.returncode == 1
    assert "Docker does not answer: Cannot connect to the Docker daemon" in asleep.stderr
    assert "sudo systemctl start docker" in asleep.stderr
    (machine.bin / "docker").unlink()
    without = machine.run(command)
    assert without.returncode == 1
    assert "there is no docker on PATH" in without.stderr
    assert not (machine.root / ".env").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["start"],
        ["up", "--timeout"],
        ["up", "--timeout", "soon"],
        ["up", "--fast"],
        ["down", "postgres"],
        ["status", "x"],
        ["urls", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_before_anything_is_done(machine: Machine, words: list[str]) -> None:
    done = machine.run(*words)
    assert done.returncode == 2
    assert done.stderr != ""
    assert machine.calls(about="compose up") == []
    assert not (machine.root / ".env").exists()


def test_urls_of_no_stack_are_not_made_up(machine: Machine) -> None:
    done = machine.run("urls")
    assert (done.returncode, done.stdout) == (1, "")
    assert "run scripts/stack up" in done.stderr


def test_the_script_is_bash_that_stops_at_errors_and_the_guide_names_what_it_knows(machine: Machine) -> None:
    script = ROOT / "scripts" / "stack"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()
    known = machine.run("--help").stdout
    named = set(re.findall(r"scripts/stack ([a-z]+(?: --[a-z]+)*)", GUIDE))
    assert {"up", "status", "urls", "down"} <= {words.split()[0] for words in named}
    for words in named:
        for word in words.split():
            assert word in known, words
    for name in re.findall(r"\b(?:VECBRIDGE|QDRANT|COMPOSE)_[A-Z_]+\b", GUIDE):
        assert name in {*EXAMPLE, "VECBRIDGE_URL"}, name
