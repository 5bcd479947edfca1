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


def pdf(*texts: str, trailer: str = "") -> bytes:
    """A PDF with one page for each text, at most a line long."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(texts)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(texts):
        drawn = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    written, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    written += (
        f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n"
    )
    return f"{written}startxref\n{written.index('xref')}\n%%EOF\n".encode()
