"""Records in points of another's: what a payload tells, and what Qdrant can say of a filter on it.

Where an adoption names nothing (""), the thing itself is meant: the point's own id, the vector without a
name, the payload as a whole. These payloads have no marks beside them (see `filters`), so that numbers,
booleans, null and [] are looked for in the payload itself, and what Qdrant finds is looked at again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from ...manifest import Adopted
from ...types import Batch, Hit
from . import points
from .conditions import (
    NOTHING,
    Pair,
    all_of,
    any_of,
    around,
    filled,
    in_range,
    in_ranges,
    matching,
    negated,
    several,
    spans,
)
from .engine import Found, Json, Scored
from .filters import Reading, key

if TYPE_CHECKING:
    from ...filters import Test

__all__ = [
    "LLAMA_INDEX",
    "MAKERS",
    "batch",
    "hidden",
    "hit",
    "id_of",
    "is_point",
    "metadata_of",
    "reading",
    "vector",
]

LLAMA_INDEX = "llama-index"
# what makes such payloads: its name for people, the keys that tell it, and what is in which
MAKERS: Mapping[str, tuple[str, frozenset[str], tuple[str, str, str]]] = {
    # langchain-qdrant 1.1.0, qdrant.py QdrantVectorStore: CONTENT_KEY and METADATA_KEY
    "langchain": ("LangChain", frozenset({"page_content", "metadata"}), ("", "page_content", "metadata")),
    # llama-index-vector-stores-qdrant 0.10.4, base.py _build_points: node_to_metadata_dict
    LLAMA_INDEX: (
        "LlamaIndex",
        frozenset({"_node_content", "_node_type"}),
        ("", "_node_content", ""),
    ),
    # qdrant-haystack 13.1.0, converters.py: Document.to_dict(flatten=False), its id made the point's UUID
    "haystack": ("Haystack", frozenset({"id", "content", "meta"}), ("id", "content", "meta")),
}
_EXACT = 2**53
_LARGEST = 2**63


def vector(adopted: Adopted) -> Json:
    """The filter that records pass: points which have the vector."""
    return {"must": [{"has_vector": adopted.embedding}]}


def hidden(adopted: Adopted) -> frozenset[str]:
    """Keys of the payload that are no metadata where the rest of it is."""
    return frozenset() if adopted.metadata else frozenset(filter(None, (adopted.document, adopted.id)))


# --- records ------------------------------------------------------------------------------------------


def batch(found: Found, dim: int, adopted: Adopted) -> Batch:
    """Points read back with payload, as records; `dim` is 0 where no vectors were asked for."""
    vectors = np.empty((len(found.ids), dim), np.float32) if found.vectors is None else found.vectors
    return Batch(
        [id_of(id, payload, adopted) for id, payload in zip(found.ids, found.payloads, strict=True)],
        vectors,
        [document_of(payload, adopted) for payload in found.payloads],
        [metadata_of(payload, adopted) for payload in found.payloads],
        [None] * len(found.ids),
    )


def hit(found: Scored, adopted: Adopted, *, euclid: bool) -> Hit:
    """A point as a hit."""
    payload = found.payload
    return Hit(
        id_of(found.id, payload, adopted),
        points.score(found, euclid=euclid),
        document_of(payload, adopted),
        metadata_of(payload, adopted),
    )


def id_of(id: str, payload: Json, adopted: Adopted) -> str:
    """What names a record: text in its payload, or the id of its point."""
    named = payload.get(adopted.id) if adopted.id else None
    # a point that its owner adds without the key is still one record
    return named if isinstance(named, str) else id


def document_of(payload: Json, adopted: Adopted) -> str | None:
    """The text in a payload; what is no text, as JSON."""
    value = None if adopted.document is None else payload.get(adopted.document)
    if value is not None and adopted.maker == LLAMA_INDEX:
        value = _node_text(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _node_text(content: Any) -> Any:
    """The text of a node in LlamaIndex's JSON; older and newer classes keep it in two places."""
    try:
        node = json.loads(content)
    except (TypeError, ValueError):
        return content
    if not isinstance(node, Mapping):
        return content
    inner = node.get("text_resource")
    return node["text"] if "text" in node else inner.get("text") if isinstance(inner, Mapping) else None


def metadata_of(payload: Json, adopted: Adopted) -> dict[str, Any]:
    """The metadata in a payload; what is no object counts as {}."""
    if adopted.metadata:
        value = payload.get(adopted.metadata)
        return value if isinstance(value, dict) else {}
    without = hidden(adopted)
    return {name: value for name, value in payload.items() if name not in without}


def is_point(id: str) -> bool:
    """Whether a text is the id of a point as we write it: a UUID, or a whole number of 64 bits."""
    if id.isascii() and id.isdecimal():
        return str(int(id)) == id and int(id) < 2**64
    try:
        return str(UUID(id)) == id
    except ValueError:
        return False


# --- filters ------------------------------------------------------------------------------------------


def reading(adopted: Adopted) -> Reading:
    """What Qdrant can say of the metadata in these payloads."""
    borrowed = _Borrowed((adopted.metadata,) if adopted.metadata else (), hidden(adopted))
    return Reading(borrowed.equal, borrowed.compare)


class _Borrowed:
    def __init__(self, within: tuple[str, ...], without: frozenset[str]) -> None:
        self.within = within
        self.without = without

    def _key(self, path: tuple[str, ...]) -> str | None:
        return None if path[0] in self.without else key(path, self.within)

    def equal(self, path: tuple[str, ...], operands: list[Any]) -> Pair:
        at = self._key(path)
        if at is None or any(operand is None for operand in operands):
            # a list that has null is found by no condition of every version
            return {}, NOTHING
        texts = list(dict.fromkeys(one for one in operands if isinstance(one, str)))
        flags = [flag for flag in (True, False) if any(one is flag for one in operands)]
        numbers = [one for one in operands if isinstance(one, int | float) and not isinstance(one, bool)]
        lists = [one for one in operands if isinstance(one, list | Mapping)]
        over, under = [], []
        if texts:
            over.append(matching(at, texts))
            # an index of UUIDs takes two ways of writing one for the same
            if sharp := [text for text in texts if not _is_uuid(text)]:
                under.append(matching(at, sharp))
        for flag in flags:
            over.append(matching(at, [flag]))
            under.append(all_of([matching(at, [flag]), _not_both(at)]))
        if numbers:
            near, _ = spans(sorted(around(float(number)) for number in set(numbers)))
            over += [in_ranges(at, near), _unseen(at)]
            whole = sorted({int(one) for one in numbers if 1 < abs(one) < _EXACT and one == int(one)})
            if whole:
                under.append(matching(at, whole))
        if any(one == [] for one in lists):
            over.append(negated(filled(at)))
        if any(one != [] for one in lists):
            over.append(filled(at))
        return any_of(over), any_of(under)

    def compare(self, test: Test) -> Pair:
        at = self._key(test.path)
        if at is None:
            return {}, NOTHING
        if test.operator == "exists":
            # null and [] are there, too, and Qdrant does not tell them from what is not
            return {}, filled(at)
        if isinstance(test.operand, str):
            return filled(at), NOTHING
        low, high = around(float(test.operand))
        # An index of whole numbers cuts off what is behind the point of a bound: ends that belong to the
        # range let too many pass then, and bounds that are whole are exact.
        if test.operator in ("gt", "gte"):
            over, under = {"gte": low}, {"gte": float(math.ceil(high))}
        else:
            over, under = {"lte": high}, {"lte": float(math.floor(low))}
        [limit] = under.values()
        # beyond its own numbers, that index takes a bound for the last of them
        sure = all_of([in_range(at, under), _not_both(at)]) if abs(limit) < _LARGEST else NOTHING
        return any_of([in_range(at, over), _unseen(at)]), sure


def _unseen(at: str) -> Json:
    """Values among which ranges may miss a number: an index of whole numbers holds no others.

    Whether there is one is its owner's affair and may change at any time. Then 1.5 is a number to no range,
    and in [1, 1.5] only one of the two is.
    """
    some = in_range(at, {"gte": -sys.float_info.max, "lte": sys.float_info.max})
    return all_of([filled(at), any_of([negated(some), several(at)])])


def _not_both(at: str) -> Json:
    """Neither 0 nor 1, which are true and false to Edge and to qdrant-client's local mode."""
    return negated(matching(at, [0, 1]))


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
