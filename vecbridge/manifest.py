"""What a collection remembers about itself; it lies in the store, beside the records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import InputError, ManifestError
from .recall import Recall
from .reduction import Reduction
from .types import FieldKind, Layout, Space

if TYPE_CHECKING:
    from .types import Floats

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,47}")


def check_name(name: object) -> str:
    """A collection's name, if every store can hold it: 1 to 48 ASCII letters, digits, `_` and `-`.

    PostgreSQL identifiers end at 63 bytes, Qdrant bans `/`, file systems ban more: one rule for all of them
    keeps collections movable. Raises InputError.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"expected a collection name of 1 to 48 ASCII letters, digits, '_' or '-', "
            f"not starting with '-', got {_short(name)}"
        )
    return name


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut into chunks: up to `tokens` tokens each, `overlap` of them shared by neighbours.

    `counter` names what counts the tokens: "cl100k_base", "wordllama-256", "tokenizer.json:6f2a…". `rows`:
    whether the texts of rows were cut, too, and not only files of text.
    Raises InputError for numbers that make no chunks.
    """

    tokens: int
    overlap: int
    counter: str
    rows: bool = False

    def __post_init__(self) -> None:
        if not _whole(self.tokens) or self.tokens < 1:
            raise InputError(f"expected chunks of 1 or more tokens, got {_short(self.tokens)}")
        if not _whole(self.overlap) or not 0 <= self.overlap < self.tokens:
            raise InputError(
                f"expected an overlap of 0 to {self.tokens - 1} tokens in chunks of {self.tokens}, "
                f"got {_short(self.overlap)}"
            )
        if not isinstance(self.counter, str) or not self.counter:
            raise InputError(f"expected the name of what counts tokens as text, got {_short(self.counter)}")
        if not isinstance(self.rows, bool):
            raise InputError(f"expected rows as true or false, got {_short(self.rows)}")


@dataclass(frozen=True, slots=True)
class Tuned:
    """How the search width in a collection's layout was found, and what it was confirmed to find.

    `target`: the recall@k that was asked for. `recall`: what was measured on the half of the queries that
    had no part in the choice. `rows`: records at that time. `held_out`: the queries were stored records, each
    left out of its own results, or blends of such; else they were given. `seed` chose and halved them.
    """

    target: float
    k: int
    recall: Recall
    rows: int
    held_out: bool
    seed: int

    @property
    def met(self) -> bool:
        """Whether the target was confirmed."""
        return self.recall.mean >= self.target


@dataclass(frozen=True, slots=True)
class Adopted:
    """Where the records of a collection lie that others made: which column of whose table is what.

    `id_type`: SQL's name of the type of `id`. `document`, `metadata`: None where there is no such column;
    `fields` are further columns, each a field of the metadata, which win over `metadata`. `part` and `key`:
    only rows whose column `part` has this value are records, None for all. `free`: the column of vectors
    declares no dimensions. `nullable`: rows without a vector may be there, which are no records. `index`: the
    name of the index that vecbridge may build there. `maker`: the library whose table it is, "" if unknown.

    In Qdrant, `table` is a collection, which has no `schema`; `embedding` names a vector of its points, and
    `id`, `document` and `metadata` keys of their payloads. "" is the thing itself: the point's own id, the
    vector without a name, the payload without what the others name.
    """

    schema: str
    table: str
    id: str
    id_type: str
    embedding: str
    document: str | None = None
    metadata: str | None = None
    fields: tuple[str, ...] = ()
    part: str | None = None
    key: str | None = None
    free: bool = False
    nullable: bool = True
    index: str = ""
    maker: str = ""

    def __post_init__(self) -> None:
        texts = (self.schema, self.table, self.id, self.id_type, self.embedding, self.index, self.maker)
        perhaps = (self.document, self.metadata, self.part, self.key)
        if not all(isinstance(one, str) for one in (*texts, *self.fields, *filter(None, perhaps))):
            raise ValueError("expected the names of table and columns as text")

    @property
    def whole(self) -> str:
        """The table's name with its schema, or that of a Qdrant collection."""
        return f"{self.schema}.{self.table}" if self.schema else self.table

    @property
    def said(self) -> str:
        """What it is, in words."""
        return f"the table {self.whole}" if self.schema else f"the Qdrant collection {self.table!r}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        named = (self.id, self.embedding, self.document, self.metadata, *self.fields, self.part)
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Space, layout and reductions of one collection, with the versions that made it.

    `rows` is what the layout was planned for. `reduction` shortens vectors at the door, `index_reduction`
    what the index holds; at most one of them is a fitted basis. `filterable`: metadata fields, as filters
    name them, that stores which index fields shall index. `chunking`: how its texts were cut, None where that
    is not known. `copy_of`: what this one is an unfinished copy of (see `unfinished`), None if it is whole.
    `adopted`: where the records lie, if not in a table of vecbridge's own.
    """

    name: str
    space: Space
    layout: Layout
    rows: int
    reduction: Reduction | None = None
    index_reduction: Reduction | None = None
    version: str = __version__
    filterable: Mapping[str, FieldKind] = field(default_factory=dict, hash=False)
    chunking: Chunking | None = None
    recall: float | None = None
    tuned: Tuned | None = None
    generation: int = 0
    copy_of: str | None = None
    adopted: Adopted | None = None

    @property
    def stored_dim(self) -> int:
        """Components of a stored vector."""
        return self.layout.stored_dim(self.space.dim)

    @property
    def whole(self) -> bool:
        """Whether whole vectors are stored, in full precision."""
        return self.layout.shorten is None and self.layout.element == "float32"

    def projected(self, vectors: Floats) -> Floats | None:
        """Stored vectors (n, stored dim) as an index on a projection compares them; None for others."""
        return None if self.index_reduction is None else self.index_reduction.apply(vectors)

    def dump(self) -> tuple[str, bytes]:
        """The manifest as JSON text, and the fitted basis as raw bytes (empty where there is none)."""
        basis = b""
        for reduction in (self.reduction, self.index_reduction):
            if reduction is not None and reduction.basis is not None:
                basis = reduction.basis_bytes()
        text = {
            "format": FORMAT,
            "version": self.version,
            "name": self.name,
            "space": asdict(self.space),
            "layout": self.layout.to_dict(),
            "rows": self.rows,
            "filterable": dict(self.filterable),
            "chunking": None if self.chunking is None else asdict(self.chunking),
            "recall": self.recall,
            "tuned": None if self.tuned is None else asdict(self.tuned),
            "generation": self.generation,
            "copy_of": self.copy_of,
            "adopted": None if self.adopted is None else asdict(self.adopted),
            "reduction": None if self.reduction is None else self.reduction.to_dict(),
            "index_reduction": None if self.index_reduction is None else self.index_reduction.to_dict(),
        }
        return json.dumps(text, sort_keys=True), basis

    @staticmethod
    def load(text: str, basis: bytes) -> Manifest:
        """The manifest that `dump` gave. Raises ManifestError for a newer format or damaged content."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] > FORMAT:
                raise ManifestError(
                    f"collection {data.get('name')!r} has manifest format {data['format']}, this vecbridge "
                    f"({__version__}) reads up to {FORMAT}; upgrade vecbridge"
                )
            recall, generation = data.get("recall"), data.get("generation", 0)
            if isinstance(recall, bool) or not (recall is None or 0 < recall <= 1):
                raise ValueError(f"expected a recall above 0, up to 1, got {_short(recall)}")
            if not _whole(generation) or generation < 0:
                raise ValueError(f"expected a generation of 0 or more, got {_short(generation)}")
            copy_of = data.get("copy_of")
            if not (copy_of is None or isinstance(copy_of, str)):
                raise ValueError(f"expected copy_of as text, got {_short(copy_of)}")
            space = {**data["space"], "nested": tuple(data["space"]["nested"])}

            def reduction(value: dict[str, Any] | None) -> Reduction | None:
                return None if value is None else Reduction.from_dict(value, basis)

            return Manifest(
                name=data["name"],
                space=Space(**space),
                layout=Layout.from_dict(data["layout"]),
                rows=data["rows"],
                reduction=reduction(data["reduction"]),
                index_reduction=reduction(data["index_reduction"]),
                version=data["version"],
                filterable={**data.get("filterable", {})},
                chunking=None if (cut := data.get("chunking")) is None else Chunking(**cut),
                recall=recall,
                tuned=None
                if (tuned := data.get("tuned")) is None
                else Tuned(**{**tuned, "recall": Recall(**tuned["recall"])}),
                generation=generation,
                copy_of=copy_of,
                adopted=None
                if (adopted := data.get("adopted")) is None
                else Adopted(**{**adopted, "fields": tuple(adopted["fields"])}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"the collection's manifest cannot be read ({type(error).__name__}: {error}); "
                f"restore it from a backup or drop the collection"
            ) from error
