"""Bad input: refused with the right error before anything is sent, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ..errors import DimensionMismatch, InputError, MetadataError, PlanError, VecbridgeError, VectorError
from ..store import Collection, Store
from ..types import Layout
from . import data
from .base import METRICS, Base, content
from .layouts import DIM, LAYOUTS, space

Call = Callable[[Collection], object]
OK = [[1.0, 2.0, 3.0]]


def _loop() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _deep() -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


def _put(vectors: Any, **rest: Any) -> Call:
    return lambda collection: collection.upsert(["ok", "new"], vectors, **rest)


def _note(metadata: Any) -> Call:
    return lambda collection: collection.upsert(["ok"], OK, metadata=metadata)


def _text(documents: Any) -> Call:
    return lambda collection: collection.upsert(["ok"], OK, documents=documents)


def _ids(ids: Any) -> Call:
    return lambda collection: collection.upsert(ids, OK)


def _seek(query: Any, **rest: Any) -> Call:
    return lambda collection: collection.search(query, **rest)


def _many(queries: Any, **rest: Any) -> Call:
    return lambda collection: collection.search_many(queries, **rest)


GOOD = [1.0, 2.0, 3.0]
NAN, INF = float("nan"), float("inf")

# What is called on a collection of 3 dimensions, the error, and a part of its text.
CALLS: dict[str, tuple[Call, type[VecbridgeError], str]] = {
    "too short": (_put([[1, 2], [1, 2]]), DimensionMismatch, "expected vectors of 3 dimensions, got 2"),
    "too long": (_put(np.ones((2, 4))), DimensionMismatch, "expected vectors of 3 dimensions, got 4"),
    "no components": (_put(np.ones((2, 0))), DimensionMismatch, "expected vectors of 3 dimensions, got 0"),
    "ragged": (_put([GOOD, [1, 2]]), InputError, "rows of one length"),
    "one vector": (_put(GOOD), InputError, r"shape \(n, 3\)"),
    "three axes": (_put(np.ones((2, 3, 1))), InputError, r"shape \(n, 3\)"),
    "a single number": (_put(1.0), InputError, r"shape \(n, 3\)"),
    "none": (_put(None), InputError, "real numbers"),
    "text": (_put([["a", "b", "c"]] * 2), InputError, "real numbers"),
    "complex": (_put(np.ones((2, 3), dtype=complex)), InputError, "real numbers"),
    "booleans": (_put(np.ones((2, 3), dtype=bool)), InputError, "real numbers"),
    "NaN in the last row": (
        _put([GOOD, [1, NAN, 3]]),
        VectorError,
        "row 1 of vectors holds nan at component 1",
    ),
    "infinity": (_put([[1, 2, INF], GOOD]), VectorError, "row 0 of vectors holds inf at component 2"),
    "minus infinity": (_put([GOOD, [-INF, 2, 3]]), VectorError, "row 1 of vectors holds -inf"),
    "float32 overflow": (_put([GOOD, [1e39, 2, 3]]), VectorError, "more than float32 can hold"),
    "longer than float32 can square": (
        _put([GOOD, [1e19, 2, 3]]),
        VectorError,
        "row 1 of vectors has length",
    ),
    "vectors for fewer ids": (_put([GOOD]), InputError, "expected 2 vectors, one for each id, got 1"),
    "vectors for more ids": (_put([GOOD] * 3), InputError, "expected 2 vectors, one for each id, got 3"),
    "fewer documents": (_put([GOOD] * 2, documents=["a"]), InputError, "expected 2 documents.* got 1"),
    "more documents": (_put([GOOD] * 2, documents=["a"] * 3), InputError, "expected 2 documents.* got 3"),
    "fewer metadata": (_put([GOOD] * 2, metadata=[{}]), InputError, "expected 2 metadata objects.* got 1"),
    "fewer digests": (_put([GOOD] * 2, digests=[b""]), InputError, "expected 2 digests.* got 1"),
    "long digest": (_put([GOOD] * 2, digests=[b"", b"x" * 33]), InputError, "digests of up to 32 bytes"),
    "text as digest": (_put([GOOD] * 2, digests=["a", None]), InputError, "digests of up to 32 bytes"),
    "empty id": (_ids([""]), InputError, "empty one at position 0"),
    "number as id": (_ids([1]), InputError, "expected ids as text, got int at position 0"),
    "none as id": (_ids([None]), InputError, "expected ids as text, got NoneType"),
    "bytes as id": (_ids([b"a"]), InputError, "expected ids as text, got bytes"),
    "one text as ids": (_ids("ok"), InputError, "expected a list of ids, got a single str"),
    "one text as documents": (_text("a"), InputError, "expected a list of 1 documents"),
    "bytes as document": (_text([b"a"]), InputError, "documents as text or None, got bytes at position 0"),
    "one object as metadata": (_note({"a": 1}), InputError, "expected a list of 1 metadata objects"),
    "list as metadata": (_note([[1]]), MetadataError, "an object with text keys, got list"),
    "text as metadata": (_note(["a"]), MetadataError, "an object with text keys, got str"),
    "number as key": (_note([{1: 2}]), MetadataError, "text keys"),
    "inner number as key": (_note([{"a": [{1: 2}]}]), MetadataError, "text keys"),
    "NaN in metadata": (_note([{"a": NAN}]), MetadataError, "finite numbers"),
    "infinity in metadata": (_note([{"a": [INF]}]), MetadataError, "finite numbers"),
    "a whole number of 65 bits": (_note([{"a": 2**63}]), MetadataError, "64 bits"),
    "a huge whole number": (_note([{"a": 10**5_000}]), MetadataError, "64 bits"),
    "bytes in metadata": (_note([{"a": b"1"}]), MetadataError, "JSON cannot hold it"),
    "set in metadata": (_note([{"a": {1}}]), MetadataError, "JSON cannot hold it"),
    "array in metadata": (_note([{"a": np.ones(2)}]), MetadataError, "JSON cannot hold it"),
    "endless metadata": (_note([{"a": _loop()}]), MetadataError, "50 levels"),
    "very deep metadata": (_note([{"a": _deep()}]), MetadataError, "50 levels"),
    "large metadata": (_note([{"a": "x" * 16_000_001}]), MetadataError, "16,000,000 bytes"),
    "query too short": (_seek([1, 2]), DimensionMismatch, "expected a query of 3 dimensions, got 2"),
    "query too long": (_seek([1, 2, 3, 4]), DimensionMismatch, "expected a query of 3 dimensions, got 4"),
    "queries too short": (_many([[1, 2]]), DimensionMismatch, "expected queries of 3 dimensions, got 2"),
    "several as one": (_seek([GOOD]), InputError, "search_many takes several"),
    "one as several": (_many(GOOD), InputError, r"shape \(n, 3\)"),
    "NaN query": (_seek([1, NAN, 3]), VectorError, "the query holds nan"),
    "infinite query": (_seek([1, INF, 3]), VectorError, "the query holds inf"),
    "overflowing query": (_seek([1, 1e39, 3]), VectorError, "more than float32 can hold"),
    "long query": (_seek([1, 1e19, 3]), VectorError, "the query has length"),
    "NaN queries": (_many([GOOD, [NAN, 1, 2]]), VectorError, "row 1 of queries holds nan"),
    "text query": (_seek("text"), InputError, "real numbers"),
    "k of 0": (_seek(GOOD, k=0), InputError, "expected k as a whole number from 1"),
    "negative k": (_seek(GOOD, k=-1), InputError, "got -1"),
    "fraction as k": (_seek(GOOD, k=2.0), InputError, "got 2.0"),
    "true as k": (_seek(GOOD, k=True), InputError, "got True"),
    "text as k": (_many([GOOD], k="10"), InputError, "got '10'"),
    "huge k": (_seek(GOOD, k=10**12), InputError, "got 1000000000000"),
    "k of 0 for none": (_many(np.empty((0, 3)), k=0), InputError, "expected k"),
    "get of one text": (lambda collection: collection.get("kept"), InputError, "expected a list of ids"),
    "delete of one text": (
        lambda collection: collection.delete("kept"),
        InputError,
        "expected a list of ids",
    ),
    "delete of a number": (lambda collection: collection.delete(["kept", 1]), InputError, "ids as text"),  # type: ignore[list-item] # what is refused
    "evaluate without a sample": (
        lambda collection: collection.evaluate(sample=0),
        InputError,
        "sample of 1",
    ),
    "evaluate with k of 0": (lambda collection: collection.evaluate(k=0), InputError, "expected k"),
    "evaluate with wrong queries": (
        lambda collection: collection.evaluate(queries=[[1, 2]]),
        DimensionMismatch,
        "expected queries of 3 dimensions, got 2",
    ),
}


class RefusalTests(Base):
    """Bad input: refused with the right error before anything is sent, and nothing is changed by it."""

    @pytest.fixture(scope="class", params=METRICS)
    @classmethod
    def shelf(cls, request: pytest.FixtureRequest, shared: Store) -> Collection:
        """A collection of two records, for each metric."""
        collection = shared.create(f"shelf-{request.param}", dim=3, metric=request.param, layout=Layout())
        collection.upsert(["kept", "ok"], [GOOD, GOOD], documents=["a", "b"], metadata=[{"a": 1}, {}])
        return collection

    @pytest.mark.parametrize("name", CALLS)
    def test_bad_input_is_refused_and_changes_nothing(self, shelf: Collection, name: str) -> None:
        call, error, text = CALLS[name]
        before = content(shelf, ["kept", "ok", "new"])
        assert len(before) == 2
        with pytest.raises(error, match=text) as caught:
            call(shelf)
        assert isinstance(caught.value, InputError)
        assert shelf.count() == 2
        assert content(shelf, ["kept", "ok", "new"]) == before

    def test_zero_has_no_direction_but_a_place(self, shelf: Collection) -> None:
        before = content(shelf, ["kept", "ok", "new"])
        if shelf.space.metric == "cosine":
            puts = [[GOOD, [0.0, 0, 0]], [[1e-25, 0, 0], GOOD], [GOOD, [1e-46, 0, 0]]]
            for call in map(_put, puts):
                with pytest.raises(VectorError, match=r"row [01] of vectors (is zero|has length)"):
                    call(shelf)
            for seek in (_seek([0, 0, 0]), _many([GOOD, [0.0, 0, 0]]), _seek([1e-25, 0, 0])):
                with pytest.raises(VectorError, match=r"is zero|has length 1e-25"):
                    seek(shelf)
            assert content(shelf, ["kept", "ok", "new"]) == before
        else:
            assert shelf.upsert(["new"], [[0, 0, 0]]) == 1
            scores = {hit.id: hit.score for hit in shelf.search([0, 0, 0], k=3)}
            far = 0.0 if shelf.space.metric == "ip" else -np.sqrt(14)
            assert scores == pytest.approx({"new": 0.0, "kept": far, "ok": far})
            assert shelf.delete(["new"]) == 1
        assert shelf.count() == 2

    def test_what_half_precision_cannot_hold_is_refused(self, store: Store) -> None:
        try:
            half = store.create("half", dim=3, metric="l2", layout=Layout(element="float16"))
        except PlanError as error:
            pytest.skip(str(error))
        half.upsert(["ok"], [[65_519, 1e-9, -1]])
        assert half.get(["ok"]).vectors.tolist() == [[65_504, 0, -1]]
        for call in (
            lambda: half.upsert(["ok", "new"], [[1, 2, 3], [1, -65_520, 3]]),
            lambda: half.search([1, 65_520, 3]),
            lambda: half.search_many([[1.0, 2, 3], [1, 1e10, 3]]),
        ):
            with pytest.raises(VectorError, match="half precision, which ends below 65,520"):
                call()
        with pytest.raises(VectorError, match="half precision, which loses everything below 1e-7"):
            half.upsert(["ok", "new"], [[1.0, 2, 3], [9e-8, 0, -9e-8]])
        assert half.count() == 1
        assert half.get(["ok"]).vectors.tolist() == [[65_504, 0, -1]]
        half.upsert(["zero"], [[0, 0, 0]])
        assert [hit.id for hit in half.search([0, 0, 0], k=1)] == ["zero"]

    def test_what_only_the_projection_makes_too_large_is_refused(self, store: Store) -> None:
        """A vector whose components are all small enough can lie along one axis of a projection."""
        layout, sample = LAYOUTS["hnsw pca float16"], data.clustered(100, DIM, seed=20)
        if reason := store.limits.objection(space("ip"), layout):
            pytest.skip(reason)
        collection = store.create("papers", dim=DIM, metric="ip", layout=layout, sample=sample + 1)
        collection.upsert(["ok"], [[1.0] * DIM])
        with pytest.raises(VectorError, match=r"row 1 of vectors, once projected .* below 65,520"):
            collection.upsert(["ok", "new"], [[1.0] * DIM, [60_000.0] * DIM])
        with pytest.raises(VectorError, match=r"row 0 of queries, once projected .* below 65,520"):
            collection.search([60_000.0] * DIM)
        assert list(content(collection, ["ok", "new"])) == ["ok"]
