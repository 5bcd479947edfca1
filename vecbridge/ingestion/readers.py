"""Files in, records out: JSON lines, CSV, Parquet, .npy matrices, and folders of text; one record at a time.

What becomes what, in JSON lines, CSV and Parquet:

* `id` is the id; numbers become text. A record without one is named by its place, `notes.jsonl:12`: the same
  on every reading of the same file, and pointing to the line. Inserting a line renames those below it, so
  give ids to files that are edited in the middle.
* `text`, else `document`, else `content`, is the text.
* `vector`, else `embedding`, is a vector made beforehand: a list of numbers (in CSV written as JSON).
* The entries of an object `metadata`, and every other field, are metadata.

CSV holds nothing but text, and "007" is not 7: values stay text unless their column is named in `numbers`.
Empty cells of CSV, and nulls and NaNs of Parquet, say that there is nothing and are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, SourceError
from . import chunks
from .arrays import npy, parquet
from .lines import lines, shown
from .records import Fields, Record, build, storable
from .tables import rows

Kind = Literal["jsonl", "csv", "parquet", "npy", "text", "folder"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npy": "npy",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
}
_SIDECARS = (".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz")
_TEXTS = tuple(suffix for suffix, kind in _KINDS.items() if kind == "text")


def read(
    source: str | Path,
    *,
    id_field: str | None = None,
    text_field: str | None = None,
    vector_field: str | None = None,
    numbers: Sequence[str] = (),
    chunk_chars: int = chunks.CHARS,
) -> Iterator[Record]:
    """The records of a file or folder, one after the other; memory stays small whatever its size.

    * `.jsonl`, `.ndjson`: one JSON object a line. `.csv`, `.tsv`: a header row; separated by commas, or by
      semicolons or tabs if the header has more of those. Each may be packed as `.gz`.
    * `.parquet`: needs the extra "parquet".
    * `.npy`: a matrix (n, dim); row i belongs to record i of the `.jsonl` or `.csv` of the same name beside
      it. Pickled arrays are refused.
    * `.txt`, `.md`, `.markdown`, or a folder of them, read recursively in sorted order: pieces of up to
      `chunk_chars` characters with ids such as `guide/start.md#0`, and as metadata `source`, `position`, and
      `heading` where there is one. Hidden files are skipped, linked folders are not entered.

    Fields have other names with `id_field`, `text_field`, `vector_field`; a field named so must be there.
    `numbers`: columns of a CSV that hold numbers. Text files are UTF-8, or UTF-16 with a byte order mark.

    Raises SourceError naming file and line for whatever cannot be read or stored, MissingExtra.
    """
    path = Path(source)
    kind = _kind(path)
    fields = Fields(id_field, text_field, vector_field)
    if chunk_chars < chunks.FEWEST_CHARS:
        raise InputError(f"expected chunks of {chunks.FEWEST_CHARS} or more characters, got {chunk_chars}")
    sidecar = _sidecar(path) if kind == "npy" else path
    table = _kind(sidecar)
    if numbers and table != "csv":
        raise InputError(f"numbers= is for CSV, where all is text; {shown(sidecar)} has types of its own")
    if kind == "parquet":
        records = parquet(path, fields)
    elif table != "csv" and table != "jsonl":
        records = _texts(path, chunk_chars)
    elif kind == "npy":
        records = npy(path, sidecar, table, fields=fields, numbers=numbers)
    else:
        records = (
            build(row, fields, place=place, name=name, nulls=table == "jsonl")
            for place, name, row in rows(path, table, fields=fields, numbers=numbers)
        )
    return _checked(records, path, kind)


def _kind(path: Path) -> Kind:
    try:
        if path.is_dir():
            return "folder"
        if not path.exists():
            raise SourceError(f"{shown(path)}: expected a file or a folder, found nothing there")
        regular = path.is_file()
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(path)!a}: cannot be read: {error}") from error
    suffixes = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    suffix = suffixes[0].lower() if suffixes else ""
    kind = _KINDS.get(suffix)
    packed = path.suffix.lower() == ".gz"
    if kind is None or (packed and kind not in ("jsonl", "csv")):
        advice = "; write one JSON object a line and name it .jsonl" if suffix == ".json" else ""
        raise SourceError(
            f"{shown(path)}: expected a folder, or a file that ends in {', '.join(_KINDS)} "
            f"(.jsonl, .ndjson, .csv, .tsv also with .gz){advice}"
        )
    if not regular:
        raise SourceError(f"{shown(path)}: expected a file that can be read twice, got a pipe or a device")
    return kind


def _sidecar(path: Path) -> Path:
    """The file beside a matrix that describes its rows."""
    beside = [found for end in _SIDECARS if (found := path.with_name(path.stem + end)).is_file()]
    if len(beside) != 1:
        got = "none" if not beside else " and ".join(shown(found) for found in beside)
        raise SourceError(
            f"{shown(path)}: expected one file {shown(Path(path.stem))}.jsonl or .csv beside it, whose "
            f"record i describes row i, got {got}"
        )
    return beside[0]


def _checked(records: Iterator[Record], path: Path, kind: Kind) -> Iterator[Record]:
    """The records, if there are any, and their vectors are of one length."""
    first: Record | None = None
    length = 0
    for record in records:
        if record.vector is not None:
            if first is None or first.vector is None:
                first, length = record, len(record.vector)
            if len(record.vector) != length:
                raise SourceError(
                    f"{record.place}: expected a vector of {length} numbers as at {first.place}, "
                    f"got {len(record.vector)}"
                )
        first = first or record
        yield record
    if first is None:
        wanted = "files with text (.txt, .md, .markdown)" if kind == "folder" else "at least one record"
        raise SourceError(f"{shown(path)}: expected {wanted}, got none")


def _texts(path: Path, limit: int) -> Iterator[Record]:
    for name, file in _walk(path) if path.is_dir() else [(path.name, path)]:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise SourceError(f"{shown(file)}: expected a file name in UTF-8; rename the file") from None
        markdown = file.suffix.lower() != ".txt"
        for position, chunk in enumerate(chunks.chunks(lines(file), markdown=markdown, limit=limit)):
            metadata: dict[str, Any] = {"source": name, "position": position}
            if chunk.heading is not None:
                metadata["heading"] = chunk.heading
            place = f"{shown(file)}, chunk {position}"
            yield storable(Record(f"{name}#{position}", chunk.text, metadata, None, place))


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each text file below `root`, sorted folder by folder."""

    def fail(error: OSError) -> None:
        raise SourceError(f"{shown(Path(error.filename))}: cannot be read: {error.strerror}") from error

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in _TEXTS and path.is_file():
                yield path.relative_to(root).as_posix(), path
