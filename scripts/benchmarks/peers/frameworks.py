"""Rows as frameworks hand them to their stores, whichever store that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..rows import Rows


def nodes(rows: Rows) -> Any:
    """TextNodes of LlamaIndex."""
    from llama_index.core.schema import TextNode

    return [
        TextNode(id_=id, text=text, metadata=entry, embedding=vector)
        for id, text, entry, vector in _columns(rows)
    ]


def documents(rows: Rows) -> Any:
    """Documents of Haystack."""
    from haystack import Document

    return [
        Document(id=id, content=text, meta=entry, embedding=vector)
        for id, text, entry, vector in _columns(rows)
    ]


def _columns(rows: Rows) -> Iterator[tuple[Any, ...]]:
    return zip(rows.ids, rows.documents, rows.metadata, rows.vectors.tolist(), strict=True)
