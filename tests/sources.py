"""Files as a corpus has them, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vecbridge.ingestion.readers import read, strict
from vecbridge.ingestion.records import Document, Record, Reject


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def records(source: Any, **options: Any) -> list[Record]:
    """All of the source, which are records; a reject is an error."""
    found = list(strict(read(source, **options)))
    assert all(isinstance(item, Record) for item in found)
    return [item for item in found if isinstance(item, Record)]


def documents(source: Any, **options: Any) -> list[Document]:
    """All of the source, which are documents; a reject is an error."""
    found = list(strict(read(source, **options)))
    assert all(isinstance(item, Document) for item in found)
    return [item for item in found if isinstance(item, Document)]


def refused(source: Path, **options: Any) -> list[tuple[str, str, str | None]]:
    """Origin below the folder, reason and id of each reject."""
    folder = f"{source if source.is_dir() else source.parent}/"
    found = [item for item in read(source, **options) if isinstance(item, Reject)]
    return [(str(item.origin).removeprefix(folder), item.reason, item.id) for item in found]


def kept(source: Path, **options: Any) -> list[str]:
    return [item.id for item in read(source, **options) if not isinstance(item, Reject)]


def plain(source: Any, **options: Any) -> list[tuple[str, str | None, dict[str, Any]]]:
    """Id, text and metadata of everything in the source."""
    return [(item.id, item.text, dict(item.metadata)) for item in strict(read(source, **options))]


def ids(source: Any, **options: Any) -> list[str]:
    return [item.id for item in strict(read(source, **options))]
