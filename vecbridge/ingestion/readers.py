"""Files in, records and documents out, one at a time; and what cannot be used, with its place and the reason.

Rows of JSON lines, CSV, Parquet and .npy or .npz become records:

* `id` is the id; numbers become text. A record without one is named by its place, `notes.jsonl:12`: the same
  on every reading of the same file, and pointing to the line. Inserting a line renames those below it, so
  give ids to files that are edited in the middle.
* `text`, else `document`, else `content`, is the text.
* `vector`, else `embedding`, is a vector made beforehand: a list of numbers (in CSV written as JSON).
* The entries of an object `metadata`, and every other field, are metadata.

CSV holds nothing but text, and "007" is not 7: values stay text unless their column is named in `numbers`.
Empty cells of CSV, and nulls and NaNs of Parquet, say that there is nothing and are left out.

Files of text, Markdown, HTML, PDF, DOCX and PPTX become documents, whole.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import MissingExtra, SourceError
from .arrays import described, named, parquet
from .lines import Fault, check_encoding, shown, whole
from .records import LATER, Document, Fields, Kind, Origin, Record, Reject, Source, build, objection
from .tables import rows

Item = Record | Document | Reject

_SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npz",
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
}
_DOCUMENTS: dict[str, Kind] = {
    suffix: kind
    for suffix, kind in _SUFFIXES.items()
    if kind not in ("jsonl", "csv", "parquet", "npy", "npz")
}
_SIDECARS = (".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz")
_STDIN: tuple[Kind, ...] = ("jsonl", "csv", "text", "markdown")
STDIN = "-"


def read(
    source: str | Path | Source,
    *,
    id_field: str | None = None,
    text_field: str | None = None,
    vector_field: str | None = None,
    numbers: Sequence[str] = (),
    encoding: str | None = None,
    kind: Kind | None = None,
    whole: bool = True,
) -> Iterator[Item]:
    """The records or documents of a file or folder, one after the other, and a Reject for each that is none.

    * `.jsonl`, `.ndjson`: one JSON object a line. `.csv`, `.tsv`: a header row; separated by commas, or by
      semicolons or tabs if the header has more of those. Each may be packed as `.gz`.
    * `.parquet`: needs the extra "parquet".
    * `.npy`, `.npz`: a matrix (n, dim); row i belongs to record i of the `.jsonl` or `.csv` of the same name
      beside it, or in an `.npz` to entry i of its arrays `ids` and `texts` (or `documents`). Of several
      arrays `vector_field` names the one with the vectors. Pickles are refused.
    * `.txt`, `.md`, `.markdown`, `.html`, `.htm`, `.xhtml`, and with the extra "documents" `.pdf`, `.docx`,
      `.pptx`; or a folder of them, read recursively in sorted order. The id of a document is its path in the
      folder, its metadata are `source`, and `title` for HTML. Hidden files are skipped, linked folders are
      not entered, files of other kinds are left alone.
    * `-`: standard input, as `kind` says: "jsonl" unless given, or "csv", "text", "markdown". It is read
      into a temporary file first; `materialised` keeps that for several readings.

    Fields have other names with `id_field`, `text_field`, `vector_field`; a field named so must be there.
    `numbers`: columns of a CSV that hold numbers. `encoding`: of text that has no byte order mark, UTF-8
    unless given; HTML says its own. `kind`: what the file is, whatever its name. Unless `whole`, vectors that
    lie apart from their rows, in a column of Parquet or a matrix, are not read: an empty array stands for
    each.

    Rows are read one by one, and documents one by one: memory stays small whatever the size of the whole.
    Raises SourceError where the source as a whole cannot be used, or holds nothing, and MissingExtra.
    """
    check_encoding(encoding)
    fields = Fields(id_field, text_field, vector_field, tuple(numbers))
    if isinstance(source, str) and source == STDIN:
        _check_kind(kind, stdin=True)
        if numbers and kind != "csv":
            raise SourceError(_NUMBERS.format("standard input, unless its kind (--kind) is csv,"))
        return _once(kind, fields, encoding)
    if isinstance(source, Source):
        return _items(source if kind is None else replace(source, kind=kind), fields, encoding, whole=whole)
    return _items(_located(Path(source), kind), fields, encoding, whole=whole)


def strict(items: Iterable[Item]) -> Iterator[Record | Document]:
    """The same records and documents, if nothing is rejected. Raises SourceError at the first Reject."""
    for item in items:
        if isinstance(item, Reject):
            raise SourceError(f"{item.origin}: {item.reason}")
        yield item


@contextmanager
def materialised(source: str | Path, kind: Kind | None = None) -> Iterator[Source]:
    """The source as `read` takes it any number of times: `-`, standard input, lies in a file meanwhile.

    The file is in the folder for temporary files (TMPDIR) and is gone afterwards, errors or not.
    """
    if not (isinstance(source, str) and source == STDIN):
        yield _located(Path(source), kind)
        return
    _check_kind(kind, stdin=True)
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise SourceError("expected a corpus on standard input, which is closed; name a file or a folder")
    with tempfile.TemporaryDirectory(prefix="vecbridge-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "stdin")
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or error
            raise SourceError(
                f"standard input cannot be copied to {shown(folder)}: {got}; it is read more than once, so "
                f"it must fit there, or in another folder that TMPDIR names"
            ) from error
        yield Source(path, kind or "jsonl", "<stdin>", "stdin")


def _check_kind(kind: str | None, *, stdin: bool = False) -> None:
    """Raise SourceError for a kind of source that there is not, or that standard input cannot be."""
    known = _STDIN if stdin else get_args(Kind)
    if kind is not None and kind not in known:
        what = "the kind of standard input" if stdin else "the kind of a source"
        raise SourceError(f"expected {what} as one of {', '.join(known)}, got {kind!a}")


_NUMBERS = "numbers (--number) is for CSV, where all is text; {} has types of its own"


def _once(kind: Kind | None, fields: Fields, encoding: str | None) -> Iterator[Item]:
    with materialised(STDIN, kind) as source:
        yield from _items(source, fields, encoding, whole=True)


def _items(source: Source, fields: Fields, encoding: str | None, *, whole: bool) -> Iterator[Item]:
    """Check what can be checked before anything is read, and begin."""
    if fields.numbers and source.kind not in ("csv", "npy", "npz"):
        raise SourceError(_NUMBERS.format(source.file))
    if source.kind == "parquet":
        items: Iterator[Item] = parquet(source, fields, whole=whole)
    elif source.kind in ("jsonl", "csv"):
        items = _rows(source, fields, encoding)
    elif source.kind in ("npy", "npz"):
        items = _matrix(source, fields, encoding, whole=whole)
    elif source.kind == "folder":
        items = _walk(source, encoding)
    else:
        items = iter([_document(source, source.name, encoding, alone=True)])
    return _checked(items, source)


def _located(path: Path, kind: Kind | None) -> Source:
    _check_kind(kind)
    file = shown(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise SourceError(f"{file}: expected a file or a folder, found nothing there") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(path)!a}: cannot be read: {error}") from error
    if stat.S_ISDIR(mode) != (kind == "folder") and (kind is not None):
        got = "a folder" if stat.S_ISDIR(mode) else "a file"
        raise SourceError(
            f"{file}: expected {'a folder' if kind == 'folder' else f'a {kind} file'}, got {got}"
        )
    if stat.S_ISDIR(mode):
        return Source(path, "folder", file, file)
    found = kind or _kind(path)
    if found is None:
        advice = "; write one JSON object a line and name it .jsonl" if path.suffix.lower() == ".json" else ""
        raise SourceError(
            f"{file}: expected a folder, or a file that ends in {', '.join(_SUFFIXES)} "
            f"(.jsonl, .ndjson, .csv, .tsv also with .gz), or its kind said{advice}"
        )
    if not stat.S_ISREG(mode):
        raise SourceError(f"{file}: expected a file that can be read twice, got a pipe or a device")
    return Source(path, found, file, shown(path.name))


def _kind(path: Path) -> Kind | None:
    packed = path.suffix.lower() == ".gz"
    suffixes = path.suffixes[-2:] if packed else path.suffixes[-1:]
    kind = _SUFFIXES.get(suffixes[0].lower()) if suffixes else None
    return None if packed and kind not in ("jsonl", "csv") else kind


def _checked(items: Iterator[Item], source: Source) -> Iterator[Item]:
    """The items, if there are any; vectors of another length than the first are refused."""
    nothing = True
    first: Origin | None = None
    length = 0
    for item in items:
        nothing = False
        if isinstance(item, Record) and item.vector is not None and item.vector is not LATER:
            if first is None:
                first, length = item.origin, len(item.vector)
            elif len(item.vector) != length:
                reason = f"expected a vector of {length} numbers as at {first}, got {len(item.vector)}"
                yield Reject(item.origin, reason, item.id)
                continue
        yield item
    if nothing:
        wanted = (
            f"files with text ({', '.join(_DOCUMENTS)})" if source.kind == "folder" else "at least one record"
        )
        raise SourceError(f"{source.file}: expected {wanted}, got none")


def _rows(source: Source, fields: Fields, encoding: str | None) -> Iterator[Item]:
    kind: Literal["jsonl", "csv"] = "csv" if source.kind == "csv" else "jsonl"
    for row in rows(source, fields, kind=kind, encoding=encoding):
        if isinstance(row, Reject):
            yield row
        else:
            origin, name, values = row
            yield build(values, fields, origin=origin, name=name, nulls=kind == "jsonl")


def _matrix(source: Source, fields: Fields, encoding: str | None, *, whole: bool) -> Iterator[Item]:
    if source.kind == "npz" and (records := named(source, fields, whole=whole)) is not None:
        if fields.numbers:
            raise SourceError(_NUMBERS.format(source.file))
        return records
    sidecar = _sidecar(source.path)
    kind: Literal["jsonl", "csv"] = "csv" if sidecar.kind == "csv" else "jsonl"
    if fields.numbers and kind != "csv":
        raise SourceError(_NUMBERS.format(sidecar.file))
    return described(source, fields, sidecar=sidecar, kind=kind, encoding=encoding, whole=whole)


def _sidecar(path: Path) -> Source:
    """The file beside a matrix that describes its rows."""
    beside = [found for end in _SIDECARS if (found := path.with_name(path.stem + end)).is_file()]
    if len(beside) != 1:
        got = "none" if not beside else " and ".join(shown(found) for found in beside)
        raise SourceError(
            f"{shown(path)}: expected one file {shown(path.stem)}.jsonl or .csv beside it, whose "
            f"record i describes row i, got {got}"
        )
    return _located(beside[0], None)


def _walk(root: Source, encoding: str | None) -> Iterator[Item]:
    """The documents below a folder, sorted folder by folder."""
    failed: list[OSError] = []
    for folder, below, files in os.walk(root.path, onerror=failed.append):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            kind = _DOCUMENTS.get(path.suffix.lower())
            if kind is not None and not name.startswith("."):
                relative = path.relative_to(root.path).as_posix()
                file = Source(path, kind, shown(path), relative, root.memo)
                yield _document(file, relative, encoding, alone=False)
        yield from _unread(failed, root)
    yield from _unread(failed, root)


def _unread(failed: list[OSError], root: Source) -> Iterator[Reject]:
    """A Reject for each folder that could not be listed. Raises SourceError where it is the root."""
    for error in failed:
        reason = f"cannot be read: {error.strerror}; what is in this folder is missing"
        if Path(error.filename) == root.path:
            raise SourceError(f"{root.file}: cannot be read: {error.strerror}") from error
        yield Reject(Origin(shown(error.filename)), reason)
    failed.clear()


def _document(source: Source, name: str, encoding: str | None, *, alone: bool) -> Document | Reject:
    """The document that a file is. Raises MissingExtra for one that is read alone."""
    origin = Origin(source.file)
    try:
        name.encode()
    except UnicodeEncodeError:
        return Reject(origin, "expected a file name in UTF-8, got other bytes; rename the file")
    try:
        text, title = _content(source, encoding)
        if not text.strip():
            raise Fault("expected text, got an empty file" if not text else "expected text, got a blank file")
        metadata: dict[str, Any] = {"source": name, **({"title": title} if title else {})}
        document = Document(name, text, metadata, origin, source.kind != "text")
        reason = objection(document)
        return document if reason is None else Reject(origin, reason, name)
    except Fault as fault:
        where = origin if fault.line is None else replace(origin, unit="line", number=fault.line)
        return Reject(where, str(fault), name)
    except MissingExtra as error:
        if alone:
            raise
        return Reject(origin, str(error), name)


def _content(source: Source, encoding: str | None) -> tuple[str, str | None]:
    """Text and title of a document. Raises Fault, MissingExtra."""
    try:
        regular = stat.S_ISREG(source.path.stat().st_mode)
    except OSError as error:
        raise Fault(f"cannot be read: {error.strerror or error}") from None
    if not regular:
        raise Fault("expected a file, got a pipe, a socket or a device")
    if source.kind in ("text", "markdown"):
        return whole(source.path, encoding=encoding), None
    # imported where there is something to convert: it takes a quarter of a second
    from . import pages

    if source.kind == "html":
        return pages.html(source.path, encoding=encoding, memo=source.memo)
    assert source.kind in ("pdf", "docx", "pptx")
    return pages.office(source.path, source.kind, memo=source.memo), None
