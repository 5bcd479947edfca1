"""How fast a place is, as a few numbers, and what searching and building take by them.

The numbers are rough, measured once on an ordinary machine (`ROUGH`), or measured on the very place by
`calibrate`. Each is a rate: seconds for every item, and bytes a second for what the item holds. How many
items a search or a build touches is counted here as well, as it does not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .errors import InputError
from .types import Element, Index

# a search that is estimated asks for so many
HITS = 10
# from so many rows on a build of pgvector's is given parallel workers (backends/postgres/build.py)
PARALLEL = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds for each item, and bytes per second for what is in it."""

    row: float
    bytes: float
    source: str = field(default="", compare=False)

    def seconds(self, items: float, size: float) -> float:
        """Seconds for so many items of `size` bytes each."""
        return items * (self.row + size / self.bytes)


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast one place is.

    `trip`: seconds that every search takes, whatever it reads: the round trip and the work around it.
    `scans`: comparing stored vectors with a query from end to end, one query at a time; for pgvector "inline"
    and "beside" (in the table's pages, and beside them), else by the stored element.
    `visit`: comparing one vector on the way through a graph. `again`: fetching one candidate and comparing it
    exactly. `insert`: one comparison while a graph is built, on all the cores that a build gets below
    `PARALLEL` rows; `workers`: how many times as fast it is from there on. `start`: seconds that every build
    takes, whatever there is to build. `stage`: seconds on top of `again` where what was found in one set of
    vectors is compared in another. `coded`: what comparing codes takes, relative to whole vectors. `copies`:
    bytes a second at which a build writes anew what is stored, 0 where none does. `source`: where the numbers
    come from.
    """

    backend: str
    trip: float
    scans: Mapping[str, Rate] = field(hash=False)
    visit: Rate
    again: Rate
    insert: Rate
    start: float = 0.0
    workers: float = 1.0
    stage: float = 0.0
    coded: float = 1.0
    copies: float = 0.0
    calibrated: bool = False
    source: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The numbers ready for JSON."""
        return {**asdict(self), "scans": {name: asdict(rate) for name, rate in self.scans.items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Speeds:
        """The speeds that `to_dict` gave. Raises InputError for numbers that cannot be speeds."""
        try:
            rates = {name: _rate(data[name]) for name in ("visit", "again", "insert")}
            scans = {str(name): _rate(one) for name, one in data["scans"].items()}
            backend = str(data["backend"])
            if missing := set(ROUGH[backend].scans) - set(scans):
                raise ValueError(f"no scan of {sorted(missing)}")
            if not (workers := _number(data["workers"])):
                raise ValueError("0 workers")
            return Speeds(
                backend,
                _number(data["trip"]),
                scans,
                **rates,
                start=_number(data["start"]),
                workers=workers,
                # not there where it was measured before these were
                stage=_number(data.get("stage", ROUGH[backend].stage)),
                coded=_number(data.get("coded", ROUGH[backend].coded)),
                copies=_number(data.get("copies", ROUGH[backend].copies)),
                calibrated=bool(data["calibrated"]),
                source=str(data["source"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"expected speeds as vecbridge writes them, got something else: {error}"
            ) from None


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # anything may come; TypeError is caught by the caller
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no speed")
    return number


def _rate(data: Mapping[str, Any]) -> Rate:
    row, size = _number(data["row"]), _number(data["bytes"])
    if not size:
        raise ValueError("0 bytes a second")
    return Rate(row, size, str(data.get("source", "")))


def visits(rows: float, *, width: int, m: int) -> float:
    """Vectors that are compared on one way through an HNSW graph of `rows`, `width` candidates wide.

    rows × (1 - exp(-2.8 width^0.84 m^0.65 / rows^0.9)): what a walk compares grows slower than its width, as
    neighbours have neighbours in common, and never beyond the rows. Measured by the pages that pgvector reads
    (EXPLAIN BUFFERS), width 40 to 400, m 8 to 32, 1,500 to 6,000 rows: within 12 % for definitions embedded
    with wordllama, 20 % more for their LSA in 1,024 dimensions, up to a half less for what lies in few
    directions.
    """
    if rows < 1:
        return 0.0
    return rows * -math.expm1(-2.8 * width**0.84 * m**0.65 / rows**0.9)


def inserts(rows: float, *, width: int, m: int) -> float:
    """Comparisons with which one vector enters a graph that grows to `rows`.

    The walk to its neighbours, in a graph that is half as large on average; the choice among them; and room
    for it in the lists of each (2 m times m). The weights of the three were fitted to the processor time that
    pgvector's build took: within 23 % for m 8 to 32, ef_construction 32 to 256, 1,500 to 6,000 rows.
    """
    return visits(rows / 2, width=width, m=m) + 0.7 * width * m + 2 * m * m


def build_graph(speeds: Speeds, rows: int, *, size: int, index: Index) -> float:
    """Seconds to build an HNSW graph over vectors of `size` bytes, without what reading them takes."""
    compared = rows * inserts(rows, width=index.ef_construction, m=index.m)
    effort = _INSERTING[speeds.backend].get(index.element, 1.0)
    return effort * speeds.insert.seconds(compared, size) / parallel(speeds, rows)


def parallel(speeds: Speeds, rows: int) -> float:
    """How many times as fast as on one core a build is."""
    return speeds.workers if rows >= PARALLEL else 1.0


def build_lists(speeds: Speeds, rows: int, *, size: int, lists: int) -> float:
    """Seconds to build an IVFFlat index over vectors of `size` bytes, without what reading them takes.

    Every row is compared with every list, and sorted, which takes as long as 50 comparisons: within a factor
    of 1.5 of what pgvector took for 6,000 and 15,000 rows of 256 and 1,024 dimensions in 6 to 100 lists.
    """
    return speeds.scans["inline"].seconds(rows * (lists + 50.0), size) / parallel(speeds, rows)


def walk_graph(speeds: Speeds, rows: float, *, size: int, index: Index, wanted: int) -> float:
    """Seconds of one way through a graph to `wanted` candidates."""
    width = max(index.ef_search or 40, wanted)
    effort = _WALKING[speeds.backend].get(index.element, speeds.coded)
    return effort * speeds.visit.seconds(visits(rows, width=width, m=index.m), size)


# What comparing takes relative to the rates above. Those of Qdrant are measured with float32, and a vector
# counts as one of so many dimensions: processor time of Edge's build over 4,000 x 1,024. In 64 dimensions
# it is within 15 % of these, but for "bit", which takes twice as long there. Of pgvector a vector's
# bytes count, so that only what its type costs beyond them is here (half precision has to be converted; signs
# have many ties): processor time of its build over 6,000 x 1,024.
_CODED: dict[Element, float] = {
    "float16": 0.85, "int8": 0.4, "turbo4": 0.6, "turbo2": 0.7, "turbo1": 0.7, "bit": 0.35,
}  # fmt: skip
_INSERTING: dict[str, dict[Element, float]] = {
    "pgvector": {"float16": 1.3, "bit": 1.5}, "qdrant": _CODED, "edge": _CODED,
}  # fmt: skip
# A search saves less by codes than a build, and as much by any of them: `Speeds.coded`.
_WHOLE: dict[Element, float] = {"float32": 1.0, "float16": 0.85}
_WALKING: dict[str, dict[Element, float]] = {
    "pgvector": {"float32": 1.0, "float16": 1.0, "bit": 1.2}, "qdrant": _WHOLE, "edge": _WHOLE,
}  # fmt: skip

# What `Speeds` are where nothing was measured: vecbridge's own tables, cosine, one query at a time on two
# cores of a 2024 server (AMD EPYC), PostgreSQL 18.4 and pgvector 0.8.5 with default settings, Edge 0.9.0,
# numpy 2.4 for flat. Within a factor of two: processors, caches and neighbours differ.
ROUGH = {
    "pgvector": Speeds(
        "pgvector",
        trip=0.8e-3,
        scans={
            "inline": Rate(
                0.35e-6,
                2.7e9,
                "float32 768 to 2,008: 1.9 to 3.1 us; float16 3,584: 3.0 us; bit 4,096: 0.4 us",
            ),
            "beside": Rate(
                1.0e-6, 1.0e9, "float32 768, 1,536, 3,584 TOASTed: 3.9, 8.3, 22.8 us; float16 3,584: 8.6 us"
            ),
        },
        visit=Rate(0.4e-6, 2.6e9, "float32 64, 256, 1,024: 0.45, 0.8, 1.9 us"),
        again=Rate(3e-6, 0.5e9, "float32 1,024"),
        insert=Rate(0.11e-6, 5e9, "float32 64, 256, 1,024: 0.17, 0.32, 0.93 us of processor time"),
        start=0.05,
        workers=1.7,
        source="rough",
    ),
    "flat": Speeds(
        "flat",
        trip=0.5e-3,
        scans={
            "float32": Rate(
                0.02e-6, 8e9, "float32 8, 384, 3,584: 0.009, 0.09, 0.6 us in memory; mapped files less"
            ),
            "float16": Rate(
                0.02e-6, 0.7e9, "float16 384, 3,584: 1.5, 10 us; numpy converts before it multiplies"
            ),
        },
        # a store without graphs has no such speeds; nothing asks for them
        visit=Rate(0.0, 8e9),
        again=Rate(0.0, 8e9),
        insert=Rate(0.0, 8e9),
        source="rough",
    ),
    "qdrant": Speeds(
        "qdrant",
        trip=1.5e-3,
        scans={
            "float32": Rate(0.05e-6, 8e9, "Edge, 1,024: 0.55 us on a busy machine, 0.19 us on an idle one"),
            "float16": Rate(0.05e-6, 6e9, "Edge, 1,024: 0.37 us on a busy machine, 0.09 us on an idle one"),
        },
        visit=Rate(0.1e-6, 5e9, "Edge, float32 64 and 1,024 on a busy machine: 0.05 to 0.36, and 1.0 us"),
        again=Rate(2e-6, 1e9, "Edge, float32 1,024 on a busy machine"),
        insert=Rate(0.06e-6, 25e9, "Edge, float32 64 and 1,024: 0.11 and 0.32 us of two cores' time"),
        start=0.7,
        stage=0.3e-3,
        coded=0.6,
        copies=40e6,
        source="rough",
    ),
}
# the same engine without the way to it
ROUGH["edge"] = replace(ROUGH["qdrant"], backend="edge", trip=0.4e-3)
DISK = Rate(0.0, 0.5e9, "an ordinary SSD; assumed where the memory budget does not hold what is read")
