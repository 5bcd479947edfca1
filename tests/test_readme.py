"""What the README shows is run as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vecbridge
from vecbridge.filters import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ vecbridge ")
]


def test_there_is_an_example_of_at_most_thirteen_lines() -> None:
    assert "papers.upsert" in PYTHON[0]
    assert len(PYTHON[0].splitlines()) <= 13


def run(code: str, folder: Path) -> str:
    """What a block of code prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_on_all_its_four_stores(place: Path, pg: str) -> None:
    server = "postgresql://localhost/rag"
    assert server in PYTHON[0]
    said = run(PYTHON[0].replace(server, pg), place)
    found = [line for line in said.splitlines() if "paper-" in line]
    assert len(found) == 12
    assert found[0].startswith("1.000  paper-7 "), said
    assert found[:3] == found[3:6] == found[6:9] == found[9:]
    assert said.count("recall@10") == 4


@pytest.mark.parametrize("number", range(1, len(PYTHON)))
def test_every_other_python_block_runs(number: int, tmp_path: Path) -> None:
    run(PYTHON[number], tmp_path)


def test_the_plan_that_is_shown_is_the_plan() -> None:
    block = re.search(r"```pycon\n>>> print\(([^\n]*)\)\n(.*?)```", README, re.DOTALL)
    assert block is not None
    plan = eval(block[1].removesuffix(".explain()"), {"vecbridge": vecbridge})
    lines = [line for line in block[2].splitlines() if line != "…"]
    assert len(lines) > 10
    found = iter(plan.explain().splitlines())
    assert all(line in found for line in lines), "a line is missing, or in another place"


def test_the_filter_that_is_shown_is_a_filter() -> None:
    scope: dict[str, object] = {}
    exec(next(block for block in PYTHON if block.startswith("where")), scope)
    where = scope["where"]
    assert isinstance(where, dict)
    parse(where)


def test_every_command_runs(place: Path) -> None:
    folder = place / "docs"
    folder.mkdir()
    (folder / "security.md").write_text("# Keys\n\nTo rotate a key, make a new one and revoke the old key.\n")
    (folder / "start.txt").write_text("Install the package, then run the first command.\n")
    np.save(place / "vectors.npy", np.random.default_rng(0).normal(size=(1500, 96)).astype(np.float32))
    assert len(COMMANDS) >= 3
    # keeps the server up between the commands: that it starts and stops by itself is in test_embedded.py
    with vecbridge.connect(f"pgvector:{place / 'pg'}"):
        for command in COMMANDS:
            done = subprocess.run(
                [sys.executable, "-m", "vecbridge", *shlex.split(command)[1:]],
                cwd=place,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            if " search " in command:
                assert "security.md" in done.stdout, done.stdout


def test_the_examples_of_measured_planning_run(place: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "measuring.md").read_text(), re.DOTALL)
    said = [run(block, place) for block in blocks]
    assert "recall@10 expected of this layout" in said[0]
    assert "met" in said[1] or "confirmed" in said[1]
    assert "recall@10" in said[2]


def test_the_example_of_ingestion_runs(tmp_path: Path) -> None:
    another, block = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "ingestion.md").read_text(), re.DOTALL
    )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.md").write_text("# A\n\nA short document.\n")
    assert "1 written to papers at flat:./data" in run(block, tmp_path)
    assert "is of wordllama-256 now: 1 records, 1 embedded" in run(another, tmp_path)


def test_the_nightly_jobs_are_those_of_the_providers_page() -> None:
    jobs = re.findall(r"vecbridge ingest docs/ .*? (--collection papers --embedder \S+ --prune)`", README)
    assert len(jobs) == 4
    page = (ROOT / "docs" / "providers.md").read_text()
    assert all(job in page for job in jobs)
