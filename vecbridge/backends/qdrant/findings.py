"""What `vecbridge doctor` looks at in a Qdrant: version, the way to it, and each collection."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CollectionNotFound, ManifestError, VecbridgeError
from ...explain import human
from ...types import Finding
from .engine import Engine, Json
from .generations import Generations, grouped, name_of

if TYPE_CHECKING:
    from . import Qdrant
    from .table import Table

# of the points; Qdrant compares the newest ones, and small segments, without the graph
_INDEXED = 0.5
_LITTLE = 500 * 10**6  # bytes of free disk; Edge reserves 32 MB pieces for its log ahead of use
# bytes in memory for each byte of float32 vectors; Qdrant's documentation, capacity planning
_MEMORY = 1.5


def findings(qdrant: Qdrant, engine: Engine, *, exposed: bool) -> list[Finding]:
    """Everything that can be said of this Qdrant; `exposed`: the key travels over a network without TLS."""
    return list(_all(qdrant, engine, exposed))


def _all(qdrant: Qdrant, engine: Engine, exposed: bool) -> Iterator[Finding]:
    limits = engine.limits()
    yield Finding("ok", "reachable", f"{engine.url} answers")
    if limits.backend == "edge":
        yield Finding("ok", "engine", f"Qdrant Edge {limits.version}, in this process")
        yield disk(shutil.disk_usage(Path(engine.url.partition(":")[2]).expanduser()).free)
    else:
        yield Finding("ok", "server", f"Qdrant {limits.version}")
        yield client(_installed(), limits.version)
    if exposed:
        yield Finding(
            "warning",
            "credentials",
            "the API key travels to another machine without encryption: whoever listens can use it",
            "turn on TLS in the server (service.enable_tls) and use qdrants:// or qdrant+https://",
        )
    names, physicals = qdrant.names(), engine.collections()
    called = Generations(engine).names()
    groups = {called.now(made): found for made, found in grouped(physicals).items()}
    others = sum(name_of(one) in (one, None) and called.now(one) not in names for one in physicals)
    beside = f", beside {others} that are not vecbridge's" if others else ""
    yield Finding("ok", "collections", f"{len(names) or 'none yet'}{beside}")
    for name in names:
        try:
            yield from _collection(qdrant, engine, name, groups.get(name, []))
        except CollectionNotFound:
            continue  # dropped since it was listed
    for name in sorted(set(groups) - set(names)):
        for physical in groups[name]:
            if physical != called.made_as(name):
                yield Finding(
                    "warning",
                    f"{name}: leftover",
                    f"{physical!r} was to be another layout of a collection that is gone",
                    f"make a collection {name!r}, which removes it, or delete it in Qdrant",
                )


def client(installed: str | None, server: str) -> Finding:
    """What there is to say of an installed qdrant-client beside a server, each with its version."""
    subject = "client"
    if installed is None:
        return Finding("broken", subject, "qdrant-client is not installed", "pip install -U qdrant-client")
    found = f"qdrant-client {installed}, server {server}"
    ours, theirs = _release(installed), _release(server)
    if ours[0] != theirs[0] or abs(ours[1] - theirs[1]) > 1:
        # qdrant-client warns by the same rule
        older = "server" if theirs < ours else "client"
        remedy = (
            f"upgrade the server to {ours[0]}.{ours[1]}, one minor version at a time"
            if older == "server"
            else "pip install -U qdrant-client"
        )
        return Finding(
            "warning", subject, f"{found}: more than one minor version apart, the {older} is older", remedy
        )
    return Finding("ok", subject, found)


def disk(free: int) -> Finding:
    """What there is to say of the free disk space beside Edge."""
    if free < _LITTLE:
        return Finding(
            "warning", "disk", f"{human(free)} free: writing will fail soon", "free some disk space"
        )
    return Finding("ok", "disk", f"{human(free)} free")


def _installed() -> str | None:
    try:
        return version("qdrant-client")
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, int]:
    major, minor = (int(number) for number in [*re.findall(r"\d+", text), "0", "0"][:2])
    return major, minor


def _collection(qdrant: Qdrant, engine: Engine, name: str, physicals: Sequence[str]) -> Iterator[Finding]:
    try:
        table, former = qdrant.look(name)
    except CollectionNotFound:
        raise
    except VecbridgeError as error:
        remedy = f"restore {name} from a snapshot, or give it up: vecbridge drop URL {name}"
        yield Finding(
            "broken",
            f"{name}: manifest",
            str(error),
            remedy if isinstance(error, ManifestError) else "mend what the message names, then ask again",
        )
        return
    yield Finding("ok", f"{name}: manifest", "the collection is as its manifest says")
    adopted = table.manifest.adopted
    if adopted is not None:
        physicals = ()
        found = f"reading {adopted.said}, to which vecbridge never writes"
        yield Finding("ok", f"{name}: points", found)
    before = {one.physical for one in former}
    for physical in physicals:
        if physical in before:
            yield Finding(
                "warning",
                f"{name}: leftover",
                f"{physical!r} is what the collection was before it was laid out anew, and is still there",
                "open the collection with a key that may delete: that removes it",
            )
        elif physical not in (name, table.physical):
            yield Finding(
                "warning",
                f"{name}: leftover",
                f"{physical!r} is another layout of the collection, which is being built or was given up",
                "wait while somebody lays the collection out anew; else the next attempt to do so removes it",
            )
    manifest, description = table.manifest, engine.describe(table.physical)
    if reason := engine.limits().objection(manifest.space, manifest.layout):
        yield Finding(
            "broken",
            f"{name}: layout",
            reason,
            "upgrade the server to the version that made the collection, or later",
        )
    alone = engine.limits().backend != "edge"  # Edge does nothing by itself, and so has nothing to report
    if alone:
        yield status(name, description, own=adopted is None)
    if description.get("status") != "red":
        yield _index(table, description, building=alone and description.get("status") == "yellow")
    strict = (description.get("config") or {}).get("strict_mode_config") or {}
    if strict.get("enabled"):
        limits = ", ".join(
            f"{key} {value}"
            for key, value in sorted(strict.items())
            if value is not None and key != "enabled"
        )
        yield Finding("ok", f"{name}: strict mode", f"on: {limits or 'without limits'}")
    points = description.get("points_count") or 0
    if points:
        size = int(points * manifest.stored_dim * 4 * _MEMORY)
        yield Finding(
            "ok",
            f"{name}: memory",
            f"{points:,} points of {manifest.stored_dim:,} dimensions want about {human(size)} where whole "
            f"vectors and the graph are in memory",
        )


def status(name: str, description: Json, *, own: bool = True) -> Finding:
    """What there is to say of the status in what `describe` gives; `own`: the collection is vecbridge's."""
    subject, colour = f"{name}: status", description.get("status")
    if colour == "red":
        said = description.get("optimizer_status")
        error = said.get("error") if isinstance(said, dict) else said
        return Finding(
            "broken",
            subject,
            f"red: Qdrant's optimiser failed: {error}",
            "find the reason in the server's log (often disk or memory), remove it, then "
            + ("call build_index()" if own else "start the server again"),
        )
    if colour == "grey":
        return Finding(
            "warning",
            subject,
            "grey: the server was started again and waits with its optimisations for the next write",
            "call build_index(), or write a record" if own else "have its owner write a point",
        )
    if colour == "yellow":
        return Finding("ok", subject, "yellow: Qdrant is building; searches go on meanwhile")
    return Finding("ok", subject, f"{colour}")


def _index(table: Table, description: Json, *, building: bool) -> Finding:
    subject, state = f"{table.manifest.name}: index", table.index_state()
    points = description.get("points_count") or 0
    remedy = "call build_index() on the collection"
    if table.manifest.adopted is not None:
        remedy = (
            "have its owner look at hnsw_config and indexing_threshold: vecbridge leaves them as they are"
        )
    if state.status == "none":
        return Finding("ok", subject, state.detail or "none: every search is exact")
    if not points:
        return Finding("ok", subject, "not built yet: there are no records")
    if state.status != "ready" or not state.used:
        return Finding(
            "broken" if table.manifest.adopted is None else "warning",
            subject,
            f"{state.status}: {state.detail}",
            remedy,
        )
    if table.manifest.adopted is not None and state.detail:
        return Finding("ok", subject, f"ready: {state.detail}")
    indexed = min(description.get("indexed_vectors_count") or 0, points)
    if indexed < _INDEXED * points and not building:
        return Finding(
            "warning",
            subject,
            f"only {indexed:,} of {points:,} points are in the graph; the others are compared one by one",
            remedy,
        )
    return Finding("ok", subject, f"ready, and searches run on it ({indexed:,} of {points:,} points)")
