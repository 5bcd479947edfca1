"""The layouts that the suite tries: one for each way in which the choices meet.

Search widths and oversampling are the planner's own, so that what the suite measures is what a plan promises.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..limits import Limits
from ..types import Element, Index, Layout, Metric, Shorten, Space

# Every layout is for vectors of this length, of a model with a prefix of half of it.
DIM = 64
NESTED = (DIM // 2,)

_PREFIX, _PCA = Shorten("truncate", DIM // 2), Shorten("pca", DIM // 2)


def _hnsw(element: Element, shorten: Shorten | None = None) -> Index:
    wide = {"bit": 400, "turbo1": 400, "turbo2": 256, "turbo4": 256, "int8": 256}
    return Index("hnsw", element, shorten, ef_search=wide.get(element, 200))


def _ivfflat(element: Element) -> Index:
    return Index("ivfflat", element, lists=20, probes=10)


LAYOUTS: dict[str, Layout] = {
    "flat": Layout(),
    "flat inline": Layout(inline=True),
    "flat float16": Layout(element="float16"),
    "flat float16 inline": Layout(element="float16", inline=True),
    "truncated": Layout(shorten=_PREFIX),
    "truncated float16": Layout(element="float16", shorten=_PREFIX),
    "pca": Layout(shorten=_PCA),
    "scan float16": Layout(index=Index("scan", "float16"), oversample=4),
    "scan bit": Layout(index=Index("scan", "bit"), oversample=40),
    "hnsw": Layout(index=_hnsw("float32")),
    "hnsw inline": Layout(inline=True, index=_hnsw("float32")),
    "hnsw float16": Layout(index=_hnsw("float16"), oversample=2),
    "hnsw bit": Layout(index=_hnsw("bit"), oversample=40),
    "hnsw int8": Layout(index=_hnsw("int8"), oversample=4),
    "hnsw int8 on float16": Layout(element="float16", index=_hnsw("int8"), oversample=4),
    "hnsw turbo4": Layout(index=_hnsw("turbo4"), oversample=4),
    "hnsw turbo2": Layout(index=_hnsw("turbo2"), oversample=10),
    "hnsw turbo1": Layout(index=_hnsw("turbo1"), oversample=40),
    "hnsw prefix": Layout(index=_hnsw("float32", _PREFIX), oversample=20),
    "hnsw prefix float16": Layout(index=_hnsw("float16", _PREFIX), oversample=20),
    "hnsw pca": Layout(index=_hnsw("float32", _PCA), oversample=20),
    "hnsw pca float16": Layout(index=_hnsw("float16", _PCA), oversample=20),
    "hnsw on float16": Layout(element="float16", index=_hnsw("float16")),
    "hnsw bit on float16": Layout(element="float16", index=_hnsw("bit"), oversample=40),
    "ivfflat": Layout(index=_ivfflat("float32")),
    "ivfflat float16": Layout(index=_ivfflat("float16"), oversample=2),
    "ivfflat bit": Layout(index=_ivfflat("bit"), oversample=40),
    "truncated hnsw": Layout(shorten=_PREFIX, index=_hnsw("float32")),
    "truncated hnsw float16": Layout(element="float16", shorten=_PREFIX, index=_hnsw("float16")),
    "pca hnsw": Layout(shorten=_PCA, index=_hnsw("float32")),
}

EXACT = [name for name, layout in LAYOUTS.items() if layout.index is None]
APPROXIMATE = [name for name, layout in LAYOUTS.items() if layout.index is not None]


def space(metric: Metric) -> Space:
    """The embedding space that the layouts are for."""
    return Space(DIM, metric, NESTED)


def allowed(limits: Limits, metric: Metric = "cosine") -> Iterator[str]:
    """Names of the layouts that a store with these limits can hold."""
    for name, layout in LAYOUTS.items():
        if limits.objection(space(metric), layout) is None:
            yield name
