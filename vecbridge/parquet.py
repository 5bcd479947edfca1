"""A collection as a Parquet file: its columns, and what it says of itself. docs/moving.md has the layout.

Vectors are float32 whatever the store keeps: float32 holds every half exactly, the bytes of each component
are stored apart (BYTE_STREAM_SPLIT), so that Zstandard finds the empty halves, and what comes out is smaller
than plain float16, which fewer programs read. Metadata are plain strings: as Arrow's JSON type, Polars 2.1
neither casts nor searches them.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from . import checks
from .errors import InputError, ManifestError, MissingExtra, SourceError
from .manifest import Manifest
from .types import Batch

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtra(
        f"Parquet needs the package {error.name}; install it with pip install 'vecbridge[parquet]'"
    ) from error

if TYPE_CHECKING:
    from .types import Floats

FORMAT = 1
# where the header lies in the key-value metadata of the file
KEY = b"vecbridge"
# of one row group when it is written, and of one batch when it is read, about
GROUP_BYTES = 16 * 2**20
PART_BYTES = 8 * 2**20
_VECTOR = "vector.list.element"
# what the footer may hold: a basis can have hundreds of megabytes
_FOOTER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, besides its records.

    `id`: another one for each export. `manifest`: of the collection as it was. `where`: the filter that its
    records matched, None where all were taken.
    """

    manifest: Manifest
    where: Mapping[str, Any] | None = field(default=None, hash=False)
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    def dump(self) -> bytes:
        """The header as JSON, in UTF-8; a fitted basis is in it as base64."""
        text, basis = self.manifest.dump()
        content = {
            "format": FORMAT,
            "id": self.id,
            "where": self.where,
            "manifest": json.loads(text),
            "basis": base64.b64encode(basis).decode(),
        }
        return json.dumps(content).encode()

    @staticmethod
    def load(content: bytes) -> Header:
        """The header that `dump` gave. Raises ManifestError for a newer format or damaged content."""
        try:
            data = json.loads(content)
            if data["format"] > FORMAT:
                raise ManifestError(
                    f"it has format {data['format']}, this vecbridge reads up to {FORMAT}; upgrade vecbridge"
                )
            if not isinstance(data["id"], str):
                raise TypeError("the id is no text")
            manifest = Manifest.load(
                json.dumps(data["manifest"]), base64.b64decode(data["basis"], validate=True)
            )
            return Header(manifest, data["where"], data["id"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ManifestError(
                f"what it says of itself cannot be read ({type(error).__name__}: {error})"
            ) from error


def schema(dim: int) -> pa.Schema:
    """The columns of a file whose vectors have `dim` components."""
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(element, dim), nullable=False),
            pa.field("document", pa.string()),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("digest", pa.binary()),
        ]
    )


class Writer:
    """Writes records into an open file, which is a Parquet file once `finish` has returned."""

    def __init__(self, out: IO[bytes], header: Header) -> None:
        # in the schema, so that it stays where Arrow writes the file again
        self._schema = schema(header.manifest.stored_dim).with_metadata({KEY: header.dump()})
        self._waiting: list[Batch] = []
        self._weight = 0
        self._file = pq.ParquetWriter(
            out,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=[_VECTOR],
            # the smallest and largest component of a vector tell nobody anything
            write_statistics=["id"],
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, batch: Batch) -> None:
        """Records with their stored vectors; memory holds one row group of them."""
        self._waiting.append(batch)
        self._weight += weight(batch)
        if self._weight >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write what is waiting, and the footer."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._waiting:
            parts = [_columns(batch, self._schema) for batch in self._waiting]
            table = pa.Table.from_batches(parts, self._schema)
            self._waiting, self._weight = [], 0
            self._file.write_table(table, row_group_size=max(1, table.num_rows))


def weight(batch: Batch) -> int:
    """Characters and bytes in a batch, about; metadata are not counted."""
    return batch.vectors.nbytes + sum(map(len, filter(None, batch.documents))) + 64 * len(batch)


def _columns(batch: Batch, kinds: pa.Schema) -> pa.RecordBatch:
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(batch.vectors.reshape(-1), pa.float32()), type=kinds.field("vector").type
    )
    metadata = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in batch.metadata]
    return pa.record_batch(
        [
            pa.array(list(batch.ids), pa.string()),
            vectors,
            pa.array(list(batch.documents), pa.string()),
            pa.array(metadata, pa.string()),
            pa.array(list(batch.digests), pa.binary()),
        ],
        schema=kinds,
    )


class File:
    """A file that `export_parquet` wrote, open for reading. Use it in a `with`."""

    def __init__(self, path: str | Path) -> None:
        """Opens it, and looks at all but its records.

        Raises SourceError for what is no Parquet file or not one of vecbridge's, for a newer format, and for
        columns that are not as they should be.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise SourceError(f"expected a Parquet file, got {self.path}, which is no file")
        try:
            self._file = pq.ParquetFile(
                self.path,
                buffer_size=1 << 20,
                # it would keep all that has been read until the end
                pre_buffer=False,
                page_checksum_verification=True,
                thrift_string_size_limit=_FOOTER,
                thrift_container_size_limit=_FOOTER,
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"{self.path} cannot be read as a Parquet file: it is something else, or a part of it is "
                f"missing ({error})"
            ) from error
        try:
            self.header = self._checked()
        except BaseException:
            self._file.close()
            raise

    def _checked(self) -> Header:
        content = (self._file.metadata.metadata or {}).get(KEY)
        if content is None:
            names = ", ".join(map(ascii, self._file.schema_arrow.names[:20]))
            raise SourceError(
                f"{self.path} was not exported by vecbridge (its columns: {names}): vecbridge ingest loads "
                f"vectors and texts from any Parquet file, as: vecbridge ingest {self.path} -c NAME --to URL"
            )
        try:
            header = Header.load(content)
        except ManifestError as error:
            raise SourceError(f"{self.path} cannot be imported: {error}") from error
        wanted, there = schema(header.manifest.stored_dim), self._file.schema_arrow
        if not there.equals(wanted, check_metadata=False):
            raise SourceError(
                f"{self.path} cannot be imported: expected the columns {_said(wanted)}, got {_said(there)}"
            )
        return header

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def rows(self) -> int:
        """How many records it has."""
        return int(self._file.metadata.num_rows)

    def batches(self) -> Iterator[Batch]:
        """All records, checked as records are that come from anywhere; vectors as they were stored.

        Batches have about `PART_BYTES`; memory holds a row group and one of them. Raises SourceError.
        """
        space = self.header.manifest.space
        short = replace(space, dim=self.header.manifest.stored_dim, nested=())
        row = 0
        try:
            for part in self._file.iter_batches(batch_size=self._step()):
                try:
                    yield _batch(part, short.dim).checked(short)
                except InputError as error:
                    raise SourceError(
                        f"{self.path}, rows {row + 1:,} to {row + part.num_rows:,}: {error}"
                    ) from error
                row += part.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{self.path} is damaged after row {row:,}: {error}; export the collection again"
            ) from error

    def _step(self) -> int:
        """Rows of one batch."""
        about = self._file.metadata
        total = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        return max(1, min(4_096, PART_BYTES * self.rows // max(total, 1)))


@dataclass(frozen=True, slots=True)
class _Raw:
    ids: list[str]
    vectors: Floats
    documents: list[str | None]
    metadata: list[str]
    digests: list[bytes | None]

    def checked(self, space: Any) -> Batch:
        names = checks.ids(self.ids)
        if len(set(names)) < len(names):
            raise InputError("expected every id once, got one of them twice")
        if not all(digest is None or len(digest) <= 32 for digest in self.digests):
            raise InputError("expected digests of up to 32 bytes, got a longer one")
        return Batch(
            names,
            checks.vectors(self.vectors, space=space),
            checks.documents(self.documents, n=len(names)),
            checks.metadata([_object(text) for text in self.metadata], n=len(names)),
            self.digests,
        )


def _batch(part: pa.RecordBatch, dim: int) -> _Raw:
    lists: Any = part.column("vector")
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    vectors = np.array(flat, dtype=np.float32).reshape(part.num_rows, dim)
    texts: list[list[Any]]
    try:
        texts = [part.column(name).to_pylist() for name in ("id", "document", "metadata")]
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got other bytes ({error})") from error
    return _Raw(texts[0], vectors, texts[1], texts[2], part.column("digest").to_pylist())


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected metadata as JSON, got {text[:60]!a} ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"expected metadata as a JSON object, got {text[:60]!a}")
    return found


def _said(columns: pa.Schema) -> str:
    return ", ".join(f"{column.name[:40]!a} ({column.type})" for column in list(columns)[:20])
