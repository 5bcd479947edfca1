"""The scripts, without network: what they call, what they install when, how they fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [ROOT / "scripts" / name for name in ("check", "quickstart", "test")] + [ROOT / ".ci" / "run"]
BASH = shutil.which("bash")
assert BASH is not None


def bash(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BASH), "-c", code, "bash", *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def program(path: Path, code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_bash_that_stops_at_errors(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    # .ci/run goes on after a failure on purpose, and ends with its code
    assert ("set -uo pipefail" if script.name == "run" else "set -euo pipefail") in text
    assert subprocess.run([str(BASH), "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "scripts" / "venv.sh"], ids=lambda path: path.name)
def test_no_script_names_a_package_index(script: Path) -> None:
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", script.read_text())


@pytest.mark.parametrize(
    ("check", "test", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (2, 0, 2), (0, 5, 5), (1, 5, 5)]
)
def test_ci_runs_both_scripts_and_fails_with_either(tmp_path: Path, check: int, test: int, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    program(tmp_path / "scripts" / "check", f'echo "check $#"; exit {check}')
    program(tmp_path / "scripts" / "test", f'echo "test $#"; exit {test}')
    done = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == "check 0\ntest 0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for PATH with an old python3, a python3.12 that makes environments, and no other Python."""
    folder = tmp_path / "bin"
    program(folder / "python3", "exit 1")
    program(
        folder / "python3.12",
        f"""
        [[ "$1 $2" == "-m venv" ]] || exit 0
        mkdir -p "$4/bin"
        echo venv >>{tmp_path}/log
        cat >"$4/bin/python" <<'END'
#!{BASH}
[[ "$1 $2 $3" == "-m pip install" ]] || exit 0
echo "${{@: -1}}" >>{tmp_path}/log
exit "$(cat {tmp_path}/result)"
END
        chmod +x "$4/bin/python"
        """,
    )
    for name in ("dirname", "mkdir", "cat", "chmod", "rm"):
        (folder / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "result").write_text("0")
    return folder


def install(machine: Path, key: str) -> subprocess.CompletedProcess[str]:
    code = 'set -euo pipefail; source "$1"; install_once "$2" "$3" "./thing[extra]"'
    venv = machine.parent / "a folder" / "venv"
    return bash(code, str(ROOT / "scripts" / "venv.sh"), str(venv), key, PATH=str(machine))


def log(machine: Path) -> list[str]:
    path = machine.parent / "log"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_packages_are_installed_once_for_each_state_of_the_project(machine: Path) -> None:
    assert install(machine, "one").returncode == 0
    assert log(machine) == ["venv", "./thing[extra]"]
    again = install(machine, "one")
    assert (again.returncode, again.stderr, log(machine)) == (0, "", [])
    assert install(machine, "two\nlines").returncode == 0
    assert log(machine) == ["./thing[extra]"]
    assert install(machine, "two\nlines").returncode == 0
    assert log(machine) == []


def test_an_install_that_failed_is_done_again(machine: Path) -> None:
    (machine.parent / "result").write_text("7")
    assert install(machine, "one").returncode == 7
    (machine.parent / "result").write_text("0")
    log(machine)
    assert install(machine, "one").returncode == 0
    assert log(machine) == ["./thing[extra]"]


def test_a_broken_environment_is_made_again(machine: Path) -> None:
    assert install(machine, "one").returncode == 0
    (machine.parent / "a folder" / "venv" / "bin" / "python").unlink()
    log(machine)
    assert install(machine, "one").returncode == 0
    assert log(machine) == ["venv", "./thing[extra]"]


def test_a_machine_without_python_3_11_is_told_what_to_do(machine: Path) -> None:
    (machine / "python3.12").unlink()
    done = install(machine, "one")
    assert done.returncode == 1
    assert "vecbridge needs Python 3.11 or newer and found none on PATH" in done.stderr
    assert log(machine) == []
