"""Building indexes of Qdrant Edge in a process of its own, on a copy of the shard.

Edge keeps Python's interpreter lock while it builds, for seconds to minutes, in which no other thread of the
process would do anything; so the build happens elsewhere, and searches go on meanwhile on what there was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import qdrant_edge as qe

from ....errors import IndexFailure
from ....types import Progress
from ..engine import Json
from .config import merged, shard_config
from .files import (
    check_room,
    clear,
    copy_tree,
    failed_build,
    free,
    lengths,
    sentences,
    sync_tree,
    taken,
)
from .place import Collection

_POLL = 1.0  # seconds
_MIB = 1 << 20

# The parent may be killed at any time: on Linux the kernel then ends this process as well (prctl(2),
# PR_SET_PDEATHSIG = 1). Elsewhere it finishes and leaves a copy that the next opener clears away.
# Each call to optimize() does one round: merging may call for indexing, and what was merged stays on disk
# until all is done and flushed. Rounds are counted so that one which calls for itself ends.
_SCRIPT = """
import os, signal, sys
folder, packages, parent = sys.argv[1:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(parent):
    sys.exit("the process that started the build is gone")
sys.path.insert(0, packages)
import qdrant_edge
try:
    shard = qdrant_edge.EdgeShard.load(folder)
    for _ in range(100):
        if not shard.optimize():
            break
    shard.flush()
    shard.close()
except Exception as error:
    sys.exit(str(error))
"""


def optimise(collection: Collection, change: Json, progress: Progress | None) -> None:
    """Change a collection's configuration and build all that it asks for. Raises IndexFailure, StoreError.

    Whoever writes to it waits; whoever reads does not. Whatever dies, the old shard or the new one is there
    afterwards, never a mix: `collection.json` is replaced when the new one is whole and on disk.
    """
    shown = collection.place.shown
    with collection.writing:
        with collection.reading() as shard:
            points = shard.info().points_count
            config = merged(collection.config, change)
            if collection.built and config == collection.config:
                return
        # what is left of the log is copied, too
        collection.shorten()
        number = int(collection.shard.name.partition("-")[2]) + 1
        new = collection.folder / f"shard-{number}"
        try:
            _copy(collection, new, progress)
            with sentences(shown):
                _configure(collection, new, config)
            _build(collection, new, progress)
            with sentences(shown):
                _switch(collection, new, config, points)
        except BaseException:
            # also a KeyboardInterrupt, and whatever `progress` raises
            if collection.shard != new:
                clear(new)
            raise
    if progress is not None:
        progress("index", points, points)


def _switch(collection: Collection, new: Path, config: Json, points: int) -> None:
    sync_tree(new)
    loaded = qe.EdgeShard.load(str(new))
    try:
        if (found := loaded.info().points_count) != points:
            raise failed_build(
                collection.place.shown, collection.name, f"expected {points} points in it, found {found}"
            )
        collection.switch(new, config, loaded)
    finally:
        if collection.shard != new:
            loaded.close()


def _copy(collection: Collection, new: Path, progress: Progress | None) -> None:
    total = lengths(collection.shard) // _MIB
    heard = -1
    for done in _copying(collection, new):
        if progress is not None and done // _MIB > heard:
            heard = done // _MIB
            progress("copy (MiB)", heard, max(total, heard))


def _copying(collection: Collection, new: Path) -> Iterator[int]:
    # a generator of its own, so that no error of `progress` is taken for one of the copy
    with sentences(collection.place.shown):
        # the copy, and what is built beside it until the copy's own segments can go
        used = sum(size for _, size in taken(collection.shard))
        check_room(collection.folder, 3 * used, "building an index on a copy of the collection")
        clear(new)
        new.mkdir()
        yield from copy_tree(collection.shard, new)


def _configure(collection: Collection, new: Path, config: Json) -> None:
    # Edge writes its own file for an empty shard of this configuration: its format is nobody else's business
    with tempfile.TemporaryDirectory(prefix=".", dir=collection.folder) as scratch:
        qe.EdgeShard.create(scratch, shard_config(config)).close()
        Path(scratch, "edge_config.json").replace(new / "edge_config.json")


def _build(collection: Collection, new: Path, progress: Progress | None) -> None:
    if not sys.executable:
        raise failed_build(
            collection.place.shown, collection.name, "this program has no Python executable to build with"
        )
    packages = str(Path(qe.__file__).parent.parent)
    before = sum(size for _, size in taken(new))
    command = [sys.executable, "-I", "-S", "-c", _SCRIPT, str(new), packages, str(os.getpid())]
    # a session of its own: a Ctrl-C is this process's to handle
    process = subprocess.Popen(  # noqa: S603 - our own script, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while True:
            try:
                _, said = process.communicate(timeout=_POLL)
                break
            except subprocess.TimeoutExpired:
                if collection.place.closed:
                    raise collection.place.closed_error() from None
                if progress is not None:
                    written = sum(size for _, size in taken(new)) - before
                    progress("index (MiB written)", max(0, written) // _MIB, None)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise _failure(collection, process.returncode, said)


def _failure(collection: Collection, code: int, said: bytes) -> IndexFailure:
    text = said.decode("utf-8", "replace").strip() or f"the building process ended with code {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        left = free(collection.folder) // _MIB
        text = {
            "SIGKILL": "the building process was killed (SIGKILL): was there too little memory?",
            "SIGBUS": f"the building process got SIGBUS: {left} MiB of disk are free; was the disk full?",
        }.get(name, f"the building process was ended by {name}")
        if said.strip():
            text = f"{text} ({said.decode('utf-8', 'replace').strip()[-500:]})"
    return failed_build(collection.place.shown, collection.name, text[-1000:])
