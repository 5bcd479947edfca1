"""A Haystack document as a record: `content` is the document, `meta` is the metadata.

What a record has no place for lies in the metadata under one reserved key, `_haystack`, and only where there
is any: `blob` (its bytes in base64, with MIME type and meta) and a `score` that the document came with.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haystack.dataclasses import ByteStream, Document

from ...errors import InputError, MetadataError

RESERVED = "_haystack"


def documents(values: object) -> list[Document]:
    """The documents as a list. Raises InputError for anything else, and for what no record can hold."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise InputError(f"expected a list of haystack.Document, got {type(values).__name__}")
    checked = list(values)
    for position, value in enumerate(checked):
        if not isinstance(value, Document):
            raise InputError(
                f"expected a list of haystack.Document, got {type(value).__name__} at position {position}"
            )
        if value.sparse_embedding is not None:
            raise InputError(
                f"document {value.id!r} has a sparse embedding, and vecbridge stores dense vectors only; "
                f"write it without: dataclasses.replace(document, sparse_embedding=None)"
            )
    return checked


def metadata(document: Document) -> dict[str, Any]:
    """The record's metadata: `meta`, and blob and score where there are any. Raises MetadataError."""
    check_meta(document.meta, f"the meta of document {document.id!r}")
    own: dict[str, Any] = {}
    if document.blob is not None:
        own["blob"] = {
            "data": b64encode(document.blob.data).decode("ascii"),
            "mime_type": document.blob.mime_type,
            "meta": document.blob.meta,
        }
    if document.score is not None:
        own["score"] = float(document.score)
    return {**document.meta, RESERVED: own} if own else document.meta


def check_meta(meta: Mapping[str, Any], what: str) -> None:
    """Raise MetadataError where the key is taken under which blobs and scores lie."""
    if not isinstance(meta, Mapping):
        raise MetadataError(f"expected {what} as a dictionary, got {type(meta).__name__}")
    if RESERVED in meta:
        raise MetadataError(
            f"{what} has a key {RESERVED!r}, under which blobs and scores are kept; rename it"
        )


def document(
    id: str,
    content: str | None,
    stored: Mapping[str, Any],
    *,
    embedding: Sequence[float] | None = None,
    score: float | None = None,
) -> Document:
    """The document of a record. `score`: of a search, which replaces one that it was written with."""
    meta = dict(stored)
    own = meta.pop(RESERVED, {})
    blob = own.get("blob")
    return Document(
        id=id,
        content=content,
        blob=None
        if blob is None
        else ByteStream(data=b64decode(blob["data"]), meta=blob["meta"], mime_type=blob["mime_type"]),
        meta=meta,
        score=own.get("score") if score is None else score,
        embedding=None if embedding is None else list(embedding),
    )
