"""Collections that other libraries made in a Qdrant server, adopted as collections where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from commands import Ran, Run

pytest.importorskip("qdrant_client", reason="needs qdrant-client")

from qdrant_client import QdrantClient, models
from qdrant_fakes_grpc import Fake, grpc_server
from qdrant_fakes_rest import Fault, RestServer, rest_server

import vecbridge
from vecbridge import cli
from vecbridge.backends import Adopting
from vecbridge.backends.qdrant import borrowed, connect
from vecbridge.backends.qdrant.adoption import AdoptedTable
from vecbridge.backends.qdrant.engine import Points
from vecbridge.backends.qdrant.filters import checker, compile
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    FeatureMissing,
    Forbidden,
    IndexFailure,
    InputError,
    ManifestError,
)
from vecbridge.filters import matches, parse
from vecbridge.manifest import Adopted, Manifest
from vecbridge.testing.filtering import RECORDS, TABLE
from vecbridge.types import Finding, Layout, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DATA = Path(__file__).parent / "data" / "qdrant"
DOCS = Path(__file__).parent.parent / "docs"
KINDS = sorted(path.stem for path in DATA.glob("*.json"))
TEXTS = ["a heron waits", "the tide turns at dusk", "stars over the dunes", "salt on every rope", ""]


@dataclass
class Server:
    """A loopback server, and the owner's way to it."""

    url: str
    owner: QdrantClient
    fake: RestServer | Fake

    def load(self, kind: str, name: str = "notes") -> list[dict[str, Any]]:
        """Make the collection that a library made; its points."""
        made = json.loads((DATA / f"{kind}.json").read_text())
        vectors = made["vectors"]
        config: Any = (
            models.VectorParams(**vectors)
            if "size" in vectors
            else {key: models.VectorParams(**one) for key, one in vectors.items()}
        )
        sparse = sorted({key for point in made["points"] for key in _sparse(point["vector"])})
        self.owner.create_collection(
            name,
            vectors_config=config,
            sparse_vectors_config={key: models.SparseVectorParams() for key in sparse} or None,
        )
        self.owner.upsert(name, [models.PointStruct(**point) for point in made["points"]])
        points: list[dict[str, Any]] = made["points"]
        return points

    def plain(
        self,
        payloads: Sequence[dict[str, Any]],
        ids: Sequence[Any] = (),
        *,
        name: str = "notes",
        distance: str = "Euclid",
        **more: Any,
    ) -> Floats:
        """Make a collection of no library: a vector for each payload, at another distance from 0."""
        matrix = np.zeros((len(payloads), 2), np.float32)
        matrix[:, 0] = np.arange(1, len(payloads) + 1)
        config = models.VectorParams(size=2, distance=models.Distance(distance))
        self.owner.create_collection(name, vectors_config=config, **more)
        points = [
            models.PointStruct(id=id, vector=row.tolist(), payload=payload)
            for id, row, payload in zip(ids or range(len(payloads)), matrix, payloads, strict=True)
        ]
        if points:
            self.owner.upsert(name, points)
        return matrix

    def snapshot(self, name: str = "notes") -> tuple[Any, Any]:
        """All that the owner has there: every point, and every setting."""
        points, _ = self.owner.scroll(name, limit=10_000, with_payload=True, with_vectors=True)
        return points, self.owner.get_collection(name).config

    def changes(self) -> list[str]:
        """What was sent so far that changes anything, with the collection that it names."""
        if isinstance(self.fake, RestServer):
            reads = ("/scroll", "/count", "/query/batch", "/points")
            return [
                f"{one.method} {one.path.split('/')[2]}"
                for one in self.fake.requests
                if one.method != "GET" and not (one.method == "POST" and one.path.endswith(reads))
            ]
        changing = ("Upsert", "Delete", "Create", "Update", "CreateFieldIndex")
        return [
            f"{one.method} {_named(one.raw)}"
            for one in self.fake.received
            if one.method.partition("/")[2] in changing
        ]


def _sparse(vector: Any) -> list[str]:
    return [key for key, one in vector.items() if "indices" in one] if isinstance(vector, dict) else []


def _named(raw: bytes) -> str:
    # the name of the collection is field 1 of every message that changes one
    return raw[2 : 2 + raw[1]].decode()


@pytest.fixture(params=["rest", "grpc"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "rest":
        with rest_server() as fake, closing(QdrantClient(url=fake.http, check_compatibility=False)) as client:
            yield Server(fake.url, client, fake)
        return
    with grpc_server() as other:
        owner = QdrantClient(
            host="127.0.0.1", grpc_port=other.port, prefer_grpc=True, check_compatibility=False
        )
        with closing(owner):
            yield Server(other.url, owner, other)


@pytest.fixture
def rest() -> Iterator[Server]:
    with rest_server() as fake, closing(QdrantClient(url=fake.http, check_compatibility=False)) as owner:
        yield Server(fake.url, owner, fake)


def dense(point: dict[str, Any]) -> list[float] | None:
    """The vector of a point that searches are for."""
    vector = point["vector"]
    if not isinstance(vector, dict):
        return list(vector)
    found = vector.get("", vector.get("text-dense"))
    return None if found is None else list(found)


def id_of(kind: str, point: dict[str, Any]) -> str:
    return str(point["payload"]["id"] if kind == "haystack" else point["id"])


@pytest.mark.parametrize("kind", KINDS)
def test_search_of_an_adopted_collection_finds_what_numpy_finds(server: Server, kind: str) -> None:
    points = server.load(kind)
    stored = {id_of(kind, one): np.array(row, np.float32) for one in points if (row := dense(one))}
    texts = dict(zip(sorted(id_of(kind, one) for one in points), TEXTS, strict=True))
    assert len(stored) == (4 if kind == "haystack" else 5)
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes"))
        assert store.collections() == ["notes"]
        assert (collection.name, collection.count(), collection.space.metric) == (
            "notes",
            len(stored),
            "cosine",
        )
        query = np.array([0.3, -0.5, 0.2, 1.0, -0.1, 0.4, 0.0, 0.7], np.float32)
        scores = {id: float(row @ query / np.linalg.norm(query)) for id, row in stored.items()}
        best = sorted(scores, key=lambda id: (-scores[id], id))
        for exact in (False, True):
            hits = collection.search(query, k=3, exact=exact)
            assert [hit.id for hit in hits] == best[:3]
            assert [hit.score for hit in hits] == pytest.approx([scores[id] for id in best[:3]], abs=1e-6)
            assert [hit.document for hit in hits] == [texts[id] for id in best[:3]]
        batch = collection.get([best[2], "nobody", best[0]])
        assert list(batch.ids) == [best[2], best[0]]
        assert np.array_equal(batch.vectors, [stored[best[2]], stored[best[0]]])
        scanned = {id: row for one in collection.scan() for id, row in zip(one.ids, one.vectors, strict=True)}
        assert scanned.keys() == stored.keys()
        assert all(np.array_equal(scanned[id], stored[id]) for id in stored)
        assert sorted(id for one in collection.scan(vectors=False) for id in one.ids) == sorted(stored)
        first = sorted(stored)[0]
        assert collection.get([first]).metadata[0]["deep"] == {"tags": ["grey", "tall"]}
        assert [hit.id for hit in collection.search(query, where={"deep.tags": "tall"})] == [first]
        assert collection.count(where={"kind": "sea"}) == 2
        assert {hit.id for hit in collection.search(query, where={"n": {"$gte": 3}})} == set(
            sorted(stored)[2:4]
        )
        assert collection.evaluate(k=2, sample=4).recall == 1.0
        assert collection.digests([first]) == {}
        reopened = store.open("notes")
        assert reopened.manifest == collection.manifest
        assert [hit.id for hit in reopened.search(query, k=3)] == best[:3]


def test_the_metadata_is_what_the_library_gave(server: Server) -> None:
    for kind, name in (("langchain", "a"), ("haystack", "b"), ("llama_index", "c")):
        server.load(kind, name)
    meta = {"n": 1, "kind": "sea", "deep": {"tags": ["grey", "tall"]}, "draft": False}
    with vecbridge.connect(server.url) as store:
        first = "00000000-0000-4000-8000-000000000000"
        assert store.adopt(store.adoption("a")).get([first]).metadata[0] == meta
        assert store.adopt(store.adoption("b")).get(["h0"]).metadata[0] == meta
        more = {"_node_type": "TextNode", "document_id": "doc-0", "doc_id": "doc-0", "ref_doc_id": "doc-0"}
        assert store.adopt(store.adoption("c")).get([first]).metadata[0] == {**meta, **more}


@pytest.mark.parametrize("kind", KINDS)
def test_adopting_tuning_and_dropping_change_nothing_of_the_owners(server: Server, kind: str) -> None:
    server.load(kind)
    before = server.snapshot()
    sent = len(server.changes())
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes", name="mine", recall=0.9))
        assert collection.build_index() is not None
        assert collection.manifest.tuned is not None
        assert store.open("mine").manifest.tuned == collection.manifest.tuned
        assert server.snapshot() == before
        store.drop("mine")
        assert store.collections() == []
        with pytest.raises(CollectionNotFound, match="no collection 'mine'"):
            collection.count()
    assert server.snapshot() == before
    after = server.changes()[sent:]
    assert after
    assert {one.partition(" ")[2].replace("%24", "$") for one in after} == {"vecbridge$kept"}


def test_what_finds_too_little_is_told_to_be_copied(rest: Server) -> None:
    rest.load("langchain")
    assert isinstance(rest.fake, RestServer)
    with vecbridge.connect(rest.url) as store:
        collection = store.adopt(store.adoption("notes"))
        advice = collection._better(0.99, 10, 0)
        assert advice == (
            "the graph is its owner's: search with exact=True, or copy the collection to one of vecbridge's "
            "own with this recall (vecbridge copy --recall)"
        )


def test_writing_is_refused_and_says_whose_collection_it_is(server: Server) -> None:
    server.load("haystack")
    before = server.snapshot()
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes", name="papers"))
        words = r"'papers' is the Qdrant collection 'notes', which is Haystack's.*vecbridge copy"
        with pytest.raises(Forbidden, match=words):
            collection.upsert(["a"], np.ones((1, 8)))
        with pytest.raises(Forbidden, match=words):
            collection.delete(["h0"])
        with pytest.raises(Forbidden, match=words):
            collection.delete(where={"kind": "sea"})
        with pytest.raises(Forbidden, match=words):
            collection.replan(layout=Layout())
    assert server.snapshot() == before


def test_what_the_owner_writes_is_seen_by_the_next_search(server: Server) -> None:
    server.load("langchain")
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes"))
        new = "99999999-0000-4000-8000-000000000000"
        vector = np.eye(8, dtype=np.float32)[5]
        payload = {"page_content": "a new one", "metadata": {"kind": "new"}}
        server.owner.upsert("notes", [models.PointStruct(id=new, vector=vector.tolist(), payload=payload)])
        [hit] = collection.search(vector, k=1)
        assert (hit.id, hit.document, hit.metadata) == (new, "a new one", {"kind": "new"})
        assert collection.count() == 6
        server.owner.delete("notes", [new])
        assert collection.search(vector, k=1)[0].id != new


def test_an_owner_who_deletes_or_remakes_the_collection_is_told_of(server: Server) -> None:
    server.load("langchain")
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes"))
        server.owner.delete_collection("notes")
        for use in (collection.count, lambda: collection.search(np.ones(8)), lambda: store.open("notes")):
            with pytest.raises(ManifestError, match="'notes' has lost the Qdrant collection 'notes' in"):
                use()
        assert store.collections() == ["notes"]
        [said] = [one for one in findings(store) if one.subject == "notes: manifest"]
        assert (said.level, "it is gone" in said.found) == ("broken", True)
        server.owner.create_collection(
            "notes", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT)
        )
        words = (
            "is not as it was when collection 'notes' adopted it: .* has 4 dimensions of float32 under Dot"
        )
        with pytest.raises(ManifestError, match=words):
            store.open("notes")
        store.drop("notes")
        assert store.collections() == []
    assert server.owner.get_collection("notes").points_count == 0


def findings(store: vecbridge.Store) -> list[Finding]:
    return store.places[0].ask(lambda backend: backend.findings())


@pytest.mark.parametrize(
    "ids", [[7, 10, 2**64 - 1], [f"{n:08}-0000-4000-8000-000000000000" for n in range(3)]]
)
def test_the_ids_of_points_are_the_ids_of_records(server: Server, ids: list[Any]) -> None:
    server.plain([{"n": n, "text": f"t{n}"} for n in range(3)], ids)
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes", document="text"))
        names = [str(id) for id in ids]
        assert [hit.id for hit in collection.search([0, 0], k=3, exact=True)] == names
        wrong = ["x", "007", "+7", "-1", str(2**64), names[0].upper() + " ", "٧"]
        batch = collection.get([names[2], *wrong, names[0]])
        assert list(batch.ids) == [names[2], names[0]]
        assert [batch.documents[0], batch.metadata[0]] == ["t2", {"n": 2}]
        assert sorted(id for one in collection.scan() for id in one.ids) == sorted(names)
        table = collection._table
        assert sorted(id for part in table.inventory() for id, _ in part) == sorted(names)
        sampled = [list(table.sample(2, seed=seed).ids) for seed in (0, 0, 1, 2, 3, 4)]
        assert sampled[0] == sampled[1]
        assert len({tuple(one) for one in sampled}) > 1


def test_a_scan_and_an_inventory_page_through_numbered_points(server: Server) -> None:
    server.plain([{"n": n} for n in range(2_500)], range(1, 2_501), distance="Dot")
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes", metadata=["n"]))
        assert sorted(int(id) for one in collection.scan() for id in one.ids) == list(range(1, 2_501))
        assert sum(len(part) for part in collection._table.inventory()) == 2_500


def test_options_say_what_a_plain_payload_holds(server: Server) -> None:
    payloads = [
        {"key": f"k{n}", "body": body, "meta": meta, "more": n}
        for n, (body, meta) in enumerate(
            [("one", {"a": 1}), (None, ["no object"]), ({"x": 1}, None), (7, {"a": {"b": True}})]
        )
    ]
    server.plain(payloads)
    with vecbridge.connect(server.url) as store:
        found = store.adoption("notes", id="key", document="body", metadata=["meta"], name="a")
        assert "nothing keeps key unique" in " ".join(found.notes)
        collection = store.adopt(found)
        batch = collection.get(["k3", "k0", "k9", "k1", "k2"])
        assert list(batch.ids) == ["k3", "k0", "k1", "k2"]
        assert list(batch.documents) == ["7", "one", None, '{"x": 1}']
        assert list(batch.metadata) == [{"a": {"b": True}}, {"a": 1}, {}, {}]
        assert [hit.id for hit in collection.search([0, 0], where={"a.b": True})] == ["k3"]
        assert sorted(id for part in collection._table.inventory() for id, _ in part) == [
            "k0",
            "k1",
            "k2",
            "k3",
        ]
        whole = store.adopt(store.adoption("notes", document="body", name="b"))
        assert whole.get(["0"]).metadata[0] == {"key": "k0", "meta": {"a": 1}, "more": 0}
        # what is no metadata is none to filters, either
        assert whole.count(where={"body": "one"}) == 0
        assert whole.count(where={"body": {"$ne": "one"}}) == 4
        assert store.collections() == ["a", "b"]


@pytest.mark.parametrize(("server", "where"), [("rest", "meta"), ("grpc", "")], indirect=["server"])
def test_filters_on_foreign_payloads_mean_what_they_mean_everywhere(server: Server, where: str) -> None:
    records = [one for one in RECORDS if where or one]
    server.plain([{"meta": one} if where else one for one in records])
    with vecbridge.connect(server.url) as store:
        collection = store.adopt(store.adoption("notes", metadata=[where] if where else None))
        read = {
            id: one for part in collection.scan() for id, one in zip(part.ids, part.metadata, strict=True)
        }
        wrong = []
        for number, (label, condition) in enumerate(TABLE.items()):
            test = parse(condition)
            right = sorted((id for id in read if matches(test, read[id])), key=int)
            # by turns, for the sake of time
            found = collection.search([0, 0], k=len(read), where=condition, exact=number % 2 == 0)
            hits = [hit.id for hit in found]
            scanned = sorted((id for part in collection.scan(where=condition) for id in part.ids), key=int)
            if not hits == scanned == right or collection.count(where=condition) != len(right):
                wrong.append((label, right, hits, scanned, collection.count(where=condition)))
        assert wrong == []


class Shelf:
    """Foreign payloads in Qdrant's real engine."""

    def __init__(self, path: Path, records: Sequence[Any], adopted: Adopted, index: str) -> None:
        qe = pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, the engine in process")
        path.mkdir()
        vectors = qe.EdgeVectorParams(size=1, distance=qe.Distance.Dot)
        self.qe, self.records, self.adopted = qe, records, adopted
        self.shard = qe.EdgeShard.create(str(path), qe.EdgeConfig(vectors=vectors))
        inside = f"{adopted.metadata}." if adopted.metadata else ""
        if index:
            fields = {name for one in records for name in one if name.isalnum()}
            for field in sorted(fields):
                schema = getattr(qe.PayloadSchemaType, index)
                self.shard.update(qe.UpdateOperation.create_field_index(f"{inside}{field}", schema))
        payloads = [{adopted.metadata: one} if adopted.metadata else one for one in records]
        points = [qe.Point(number, [1.0], payload) for number, payload in enumerate(payloads)]
        self.shard.update(qe.UpdateOperation.upsert_points(points))

    def find(self, where: Any) -> set[int]:
        from vecbridge.backends.qdrant.edge.query import filter_of

        request = self.qe.ScrollRequest(
            limit=1_000_000, filter=filter_of(self.told(where)), with_payload=False, with_vector=False
        )
        return {point.id for point in self.shard.scroll(request)[0]}

    def told(self, part: Any) -> Any:
        """The same filter with the points that a server finds for booleans, which Edge takes for numbers."""
        if isinstance(part, list):
            return [self.told(one) for one in part]
        if not isinstance(part, dict):
            return part
        flag = part.get("match", {}).get("value")
        if not isinstance(flag, bool):
            return {name: self.told(one) for name, one in part.items()}
        at = part["key"].removeprefix("meta.") if self.adopted.metadata else part["key"]
        found = []
        for number, value in enumerate(self.records):
            for name in at.replace('"', "").split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if any(one is flag for one in (value if isinstance(value, list) else [value])):
                found.append(number)
        return {"has_id": found}

    def check(self, condition: Any) -> None:
        test = parse(condition)
        bounds, check = compile(test, borrowed.reading(self.adopted)), checker(test)
        right = {number for number, record in enumerate(self.records) if check(record)}
        over, under = self.find(bounds.over), self.find(bounds.under)
        assert right <= over, f"{bounds.over} misses {[self.records[row] for row in right - over]}"
        assert under <= right, f"{bounds.under} takes {[self.records[row] for row in under - right]}"
        assert self.find(bounds.doubt) == over - under


NUMBERS = [
    {"v": value}
    for value in (-5, -4.5, -4.000000001, -1, -0.5, 0, 0.1, 0.5, 1, 4, 4.0, 4.4, 4.5, 4.6, 5, 5.000000001,
                  2**53 + 1, 2**63 - 1, -(2**63), 1e300, True, False,
                  [4, 5], [0, 7], [1, 4.5], [4.5], "4", None, [], {})
]  # fmt: skip


@pytest.mark.parametrize("index", ["", "Keyword", "Integer", "Float", "Uuid", "Bool", "Datetime", "Text"])
@pytest.mark.parametrize("within", ["meta", ""], ids=["in an object", "the payload itself"])
def test_what_matches_lies_between_the_bounds_in_the_real_engine(
    tmp_path: Path, within: str, index: str
) -> None:
    adopted = Adopted("", "notes", "", "", "", metadata=within)
    shelf = Shelf(tmp_path / "shelf", RECORDS, adopted, index)
    for condition in TABLE.values():
        shelf.check(condition)
    shelf.shard.close()
    shelf = Shelf(tmp_path / "numbers", NUMBERS, adopted, index)
    for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
        for operand in (
            -5,
            -4.5,
            -4,
            -0.5,
            0,
            0.1,
            0.3,
            1,
            4,
            4.5,
            5,
            6,
            2**53 + 1,
            2.0**63,
            -(2**63),
            -1e300,
            1e300,
        ):
            shelf.check({"v": {operator: operand}})
    shelf.check({"v": {"$in": [n / 7 for n in range(-100, 100)]}})
    shelf.shard.close()


def test_records_are_read_from_the_real_engine(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, the engine in process")
    made = json.loads((DATA / "langchain.json").read_text())
    backend = connect(f"qdrant:{tmp_path}")
    engine = backend._engine
    engine.create("notes", {"vectors": made["vectors"]})
    rows = np.array([one["vector"] for one in made["points"]], np.float32)
    ids = [one["id"] for one in made["points"]]
    engine.upsert("notes", Points(ids, {"": rows}, [one["payload"] for one in made["points"]]))
    adopted = Adopted("", "notes", "", "", "", "page_content", "metadata", maker="langchain")
    table = AdoptedTable(engine, Manifest("notes", Space(8), Layout(), 5, adopted=adopted))
    assert (table.count(), table.count(parse({"kind": "sea"}))) == (5, 2)
    assert table.count(parse({"n": {"$gt": 2}})) == 2
    [hits] = table.search(rows[2:3], None, k=5, where=parse({"score": {"$exists": True}}), exact=True)
    assert [(hit.id, hit.document) for hit in hits] == [(ids[2], TEXTS[2]), (ids[1], TEXTS[1])]
    assert sorted(id for batch in table.scan(None, vectors=True) for id in batch.ids) == ids
    assert len(table.sample(3, seed=1)) == 3
    with pytest.raises(Forbidden, match="is LangChain's: vecbridge only reads"):
        table.write(table.read(ids[:1]))
    backend.close()


# --- what cannot be adopted ---------------------------------------------------------------------------


def refused(url: str, table: str, **options: Any) -> str:
    with vecbridge.connect(url) as store, pytest.raises(InputError, match=r"\S") as caught:
        store.adoption(table, **options)
    return str(caught.value)


def test_what_cannot_be_adopted_is_refused_before_anything_is_changed(server: Server) -> None:
    server.load("langchain")
    one = models.VectorParams(size=2, distance=models.Distance.COSINE)
    make = server.owner.create_collection
    city = models.VectorParams(size=2, distance=models.Distance.MANHATTAN)
    make("city", vectors_config=city)
    comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    many = models.VectorParams(size=2, distance=models.Distance.COSINE, multivector_config=comparator)
    make("colbert", vectors_config=many)
    make("words", vectors_config={}, sparse_vectors_config={"bm25": models.SparseVectorParams()})
    make("two", vectors_config={"a": one, "b": one})
    tiny = models.VectorParams(size=2, distance=models.Distance.DOT, datatype=models.Datatype.UINT8)
    make("bytes", vectors_config=tiny)
    sent = len(server.changes())
    url = server.url
    assert "there is no collection 'nobody'; there are bytes, city, colbert" in refused(url, "nobody")
    assert "there is no collection 'vecbridge$kept'" in refused(url, "vecbridge$kept")
    assert "is compared by Manhattan: expected Cosine, Dot or Euclid" in refused(url, "city")
    assert "holds several vectors for each point (multivector)" in refused(url, "colbert")
    assert "'words' has sparse vectors alone" in refused(url, "words")
    assert "is stored as uint8: expected float32 or float16" in refused(url, "bytes")
    assert "has vector 'a' and vector 'b'; say which: --embedding" in refused(url, "two")
    assert "has no vector 'c'; it has vector 'a' and vector 'b'" in refused(url, "two", embedding="c")
    assert "has no payloads yet" in refused(url, "two", embedding="a")
    assert "leave --part" in refused(url, "notes", part="x")
    assert "which is cosine; got the metric 'l2'" in refused(url, "notes", metric="l2")
    assert "no point of 'notes' has 'body' in its payload; the first have metadata" in refused(
        url, "notes", document="body"
    )
    assert "without quotes" in refused(url, "notes", document='a"b')
    assert "expected one key of the payload" in refused(url, "notes", metadata=["a", "b"])
    assert "expected a text under 'metadata'" in refused(url, "notes", id="metadata")
    assert "expected a collection name" in refused(url, "notes", name="a/b")
    assert server.changes()[sent:] == []


def test_ids_in_the_payload_have_to_be_unique(server: Server) -> None:
    server.plain([{"k": "a"}, {"k": "a"}])
    assert "several points of 'notes' have 'a' as their k" in refused(server.url, "notes", id="k")


def test_a_collection_of_ours_needs_no_adopting_and_keeps_its_name(server: Server) -> None:
    server.load("langchain")
    with vecbridge.connect(server.url) as store:
        store.create("mine", dim=3)
        assert "is a collection of vecbridge's own already: open it" in refused(server.url, "mine")
        with pytest.raises(CollectionExists, match="'mine' is in"):
            store.adoption("notes", name="mine")
        store.adopt(store.adoption("notes", name="other"))
        with pytest.raises(CollectionExists, match="'other' is in"):
            store.create("other", dim=3)
        with pytest.raises(CollectionExists, match="'other' is in"):
            store.adoption("notes", name="other")
        assert store.adopt(store.adoption("notes", name="third")).count() == 5
        assert store.collections() == ["mine", "other", "third"]


def test_a_point_without_the_vector_is_no_record(server: Server) -> None:
    one = models.VectorParams(size=2, distance=models.Distance.DOT)
    many = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    late = models.VectorParams(size=2, distance=models.Distance.DOT, multivector_config=many)
    server.owner.create_collection("notes", vectors_config={"a": one, "b": one, "late": late})
    vectors: list[Any] = [{"a": [1, 0], "b": [0, 1]}, {"b": [3, 4]}, {"a": [5, 6]}, {}]
    points = [models.PointStruct(id=n, vector=one, payload={"n": n}) for n, one in enumerate(vectors)]
    server.owner.upsert("notes", points)
    with vecbridge.connect(server.url) as store:
        found = store.adoption("notes", embedding="b")
        assert "not read: vector 'a' and vector 'late'" in " ".join(found.notes)
        collection = store.adopt(found)
        assert (collection.count(), collection.count(where={"n": {"$gte": 0}})) == (2, 2)
        assert [hit.id for hit in collection.search([1, 1], k=9)] == ["1", "0"]
        assert list(collection.get(["0", "1", "2", "3"]).ids) == ["0", "1"]
        assert sorted(id for one in collection.scan(vectors=False) for id in one.ids) == ["0", "1"]


def test_edge_and_files_have_nothing_to_adopt(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, the engine in process")
    for url in (f"qdrant:{tmp_path / 'edge'}", f"flat:{tmp_path / 'flat'}"):
        with vecbridge.connect(url) as store, pytest.raises(InputError, match=r"Edge .* is vecbridge's own"):
            store.adoption("notes")
        # without --yes, too: there is nothing to agree to
        said = run("adopt", url, "--table", "notes")
        assert (said.code, "Error: expected a PostgreSQL database or a Qdrant server" in said.err) == (
            2,
            True,
        )


def test_an_old_server_is_told_what_it_lacks() -> None:
    with (
        rest_server(version="1.12.6") as fake,
        vecbridge.connect(fake.url) as store,
        pytest.raises(FeatureMissing, match=r"to adopt a collection needs qdrant 1\.13\.0, this is 1\.12"),
    ):
        store.adoption("notes")


# --- the graph, which is its owner's ------------------------------------------------------------------


def test_without_a_graph_every_search_is_exact_and_no_setting_is_changed(server: Server) -> None:
    server.plain([{"n": n} for n in range(5)], hnsw_config=models.HnswConfigDiff(m=0))
    with vecbridge.connect(server.url) as store:
        found = store.adoption("notes")
        assert "No graph (m is 0): every search is exact" in found.notes[-1]
        collection = store.adopt(found)
        assert (collection.layout, collection.index_state().status) == (Layout(), "none")
        assert collection.build_index() is None
        assert [hit.id for hit in collection.search([0, 0], k=2)] == ["0", "1"]


def test_a_graph_that_is_not_built_is_told_and_left_to_its_owner(rest: Server) -> None:
    payloads = [{"n": n} for n in range(2_000)]
    rest.plain(payloads, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))
    assert isinstance(rest.fake, RestServer)
    unbuilt = {"points_count": 2_000_000, "indexed_vectors_count": 0}
    before = rest.snapshot()
    with vecbridge.connect(rest.url) as store:
        collection = store.adopt(store.adoption("notes"))
        rest.fake.states = [unbuilt]
        state = collection.index_state()
        assert (state.status, state.used) == ("missing", False)
        assert state.detail == "he has turned indexing off (indexing_threshold = 0)"
        rest.fake.states = [unbuilt]
        with pytest.raises(IndexFailure, match="whose graph is its owner's to build: he has turned indexing"):
            collection.build_index()
        rest.fake.states = [{**unbuilt, "status": "yellow", "config": _with(rest, indexing_threshold=100)}]
        assert collection.index_state().detail == "Qdrant is building it"
        rest.fake.states = [{**unbuilt, "config": _with(rest, m=0)}]
        assert collection.index_state().detail == "he has turned it off (m = 0)"
    assert rest.snapshot() == before


def _with(server: Server, **changed: int) -> dict[str, Any]:
    config: dict[str, Any] = server.owner.get_collection("notes").config.model_dump(mode="json")
    for part in ("hnsw_config", "optimizer_config"):
        config[part] |= {key: value for key, value in changed.items() if key in config[part]}
    return config


@pytest.mark.parametrize(
    ("quantisation", "element", "sent"),
    [
        ({"scalar": {"type": "int8"}}, "int8", {"ignore": False, "rescore": True, "oversampling": 4.0}),
        ({"binary": {}}, "bit", {"ignore": False, "rescore": True, "oversampling": 40.0}),
        ({"product": {"compression": "x16"}}, "float32", {"ignore": True}),
        (None, "float32", {"ignore": True}),
    ],
    ids=["int8", "bit", "product", "none"],
)
def test_the_owners_graph_and_its_copies_are_searched_as_widely_as_ours(
    rest: Server, quantisation: Any, element: str, sent: dict[str, Any]
) -> None:
    graph = models.HnswConfigDiff(m=24, ef_construct=300)
    rest.plain([{"n": 1}], hnsw_config=graph, quantization_config=quantisation)
    assert isinstance(rest.fake, RestServer)
    with vecbridge.connect(rest.url) as store:
        collection = store.adopt(store.adoption("notes"))
        index = collection.layout.index
        assert index is not None
        assert (index.m, index.ef_construction, index.element) == (24, 300, element)
        collection.search([0, 0], k=1)
        collection.search([0, 0], k=1, exact=True)
        near, exact = (one.json["searches"][0]["params"] for one in rest.fake.sent("query/batch")[-2:])
        assert (near["hnsw_ef"], near["exact"], near["quantization"]) == (
            max(index.ef_search, 300),
            False,
            sent,
        )
        assert exact == {"exact": True, "quantization": {"ignore": True}}


# --- half states, and others --------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_its_requests_are_those_that_are_sent(rest: Server) -> None:
    rest.load("llama_index")
    assert isinstance(rest.fake, RestServer)
    for table in ("notes", "more"):
        if table == "more":
            rest.load("langchain", "more")
        with vecbridge.connect(rest.url) as store:
            before, sent = rest.changes(), len(rest.fake.requests)
            found = store.adoption(table)
            assert rest.changes() == before
            store.adopt(found)
        made = [one for one in rest.fake.requests[sent:] if one.method == "PUT"]
        said = [text.split(" ", 2) for text in found.statements]
        assert len(said) == (3 if table == "notes" else 2)
        assert [one[1].partition("?")[0] for one in said] == [one.path for one in made]
        assert [json.loads(one[2]) for one in said] == [one.json for one in made]


def test_a_crash_in_the_middle_leaves_nothing_adopted_and_can_be_repeated(rest: Server) -> None:
    rest.load("langchain")
    assert isinstance(rest.fake, RestServer)
    with vecbridge.connect(rest.url) as store:
        store.adopt(store.adoption("notes", name="first"))
        found = store.adoption("notes")
        writes = r"PUT /collections/vecbridge%24kept/points"
        for lost in range(2):
            rest.fake.faults = [*([_passes(writes)] * lost), Fault(status=400, body=_wrong(), on=writes)]
            with pytest.raises(InputError, match="out of order"):
                store.adopt(found)
            assert store.collections() == ["first"]
            with pytest.raises(CollectionNotFound, match="not made by vecbridge"):
                store.open("notes")
        rest.fake.faults = []
        assert store.adopt(found).count() == 5
        assert store.collections() == ["first", "notes"]


def _wrong() -> dict[str, Any]:
    return {"status": {"error": "out of order"}, "time": 0.0}


def _passes(on: str) -> Fault:
    return Fault(delay=0.001, on=on)


def test_of_two_that_adopt_under_one_name_the_later_stays(server: Server) -> None:
    server.load("langchain", "a")
    server.load("haystack", "b")
    with vecbridge.connect(server.url) as one, vecbridge.connect(server.url) as two:
        first, second = one.adoption("a", name="x"), two.adoption("b", name="x")
        one.adopt(first)
        with pytest.raises(CollectionExists, match="'x' is in"):
            two.adopt(second)
        assert two.open("x").manifest.adopted == first.manifest.adopted
        two.drop("x")
        with pytest.raises(CollectionNotFound, match="no collection 'x'"):
            two.open("x")
        two.adopt(second)
        assert one.open("x").count() == 4


def test_an_adopted_collection_and_one_of_ours_exchange_their_names(server: Server) -> None:
    server.load("langchain")
    with vecbridge.connect(server.url) as store:
        adopted = store.adopt(store.adoption("notes"))
        store.create("mine", dim=3).upsert(["a"], np.eye(3)[:1])
        backend = store.places[0]
        backend.ask(lambda one: one.exchange("notes", "mine"))
        assert store.collections() == ["mine", "notes"]
        assert (store.open("notes").count(), store.open("mine").count()) == (1, 5)
        with pytest.raises(
            DimensionMismatch, match=r"opened for vectors of 8 dimensions .* got others since"
        ):
            adopted.count()
        store.drop("mine")
        assert store.collections() == ["notes"]
        assert store.open("notes").count() == 1
    assert server.owner.count("notes").count == 5


def test_what_is_remembered_damaged_says_so(rest: Server) -> None:
    rest.load("langchain")
    with vecbridge.connect(rest.url) as store:
        store.adopt(store.adoption("notes"))
        backend = connect(rest.url)
        backend._engine.keep("adopted-notes", b"{}")
        backend.close()
        with pytest.raises(ManifestError, match="manifest cannot be read"):
            store.open("notes")
        with pytest.raises(CollectionExists, match="'notes' is in"):
            store.adoption("notes")
        store.drop("notes")
        assert store.adopt(store.adoption("notes")).count() == 5


def test_an_adopted_collection_is_copied_into_one_of_ours(server: Server, tmp_path: Path) -> None:
    points = server.load("llama_index")
    with vecbridge.connect(server.url) as store:
        store.adopt(store.adoption("notes"))
    with vecbridge.connect(server.url) as store, vecbridge.connect(f"flat:{tmp_path}") as flat:
        vecbridge.copy(store.open("notes"), flat, name="mine")
        copied = flat.open("mine")
        assert copied.count() == 5
        ids = [str(one["id"]) for one in points]
        assert np.array_equal(copied.get(ids).vectors, np.array([dense(one) for one in points], np.float32))
        assert list(copied.get(ids).documents) == TEXTS
        copied.upsert(["new"], np.ones((1, 8)))


def test_doctor_finds_an_adopted_collection_in_order(rest: Server) -> None:
    rest.load("langchain")
    with vecbridge.connect(rest.url) as store:
        store.adopt(store.adoption("notes", name="tides"))
        said = {one.subject: one for one in findings(store) if one.subject.startswith("tides:")}
        assert {one.level for one in said.values()} == {"ok"}
        assert "reading the Qdrant collection 'notes'" in said["tides: points"].found
    assert isinstance(rest.fake, RestServer)
    with vecbridge.connect(rest.url) as store:
        unbuilt = {"points_count": 9_000_000, "indexed_vectors_count": 0}
        rest.fake.states = [unbuilt] * 12
        index = next(one for one in findings(store) if one.subject == "tides: index")
        assert (index.level, "missing" in index.found) == ("warning", True)
        assert "vecbridge leaves them as they are" in index.remedy


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Ran:
        code = cli.run(words)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


def test_the_command_says_what_it_does_and_does_what_it_says(server: Server, run: Run) -> None:
    server.load("langchain")
    words = ["adopt", server.url, "--table", "notes", "--name", "tides"]
    before = server.changes()
    dry = run(*words, "--dry-run")
    assert dry.code == 0, dry.err
    assert "notes: 5 records of 8 dimensions (cosine); id is that of the point" in dry.err
    assert "document is page_content, metadata is metadata" in dry.err
    assert "Qdrant keeps vectors at unit length" in dry.err
    assert "Searches walk the owner's graph (m=16, ef_construct=100)" in dry.err
    assert [line.split(" {")[0] for line in dry.out.splitlines()] == [
        "PUT /collections/vecbridge%24kept",
        "PUT /collections/vecbridge%24kept/points?wait=true",
        "PUT /collections/vecbridge%24kept/points?wait=true",
    ]
    assert server.changes() == before
    assert run(*words).code == 2
    done = run(*words, "--yes")
    assert done.code == 0, done.err
    assert done.out.startswith("adopted notes as tides; index ready")
    assert run("list", server.url).out == "tides\n"
    assert run("info", server.url, "tides", "--json").json["adopted"]["table"] == "notes"
    assert "the Qdrant collection 'notes'  which stays its owner's" in run("info", server.url, "tides").out
    assert run("doctor", server.url).code == 0
    again = run(*words, "--yes")
    assert (again.code, "Error: collection 'tides' is in" in again.err) == (2, True)
    assert (
        run("drop", server.url, "tides", "--yes").out
        == "dropped tides; the Qdrant collection 'notes' is as it was\n"
    )
    assert server.owner.count("notes").count == 5


def test_only_a_server_can_adopt(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, the engine in process")
    with (
        rest_server() as fake,
        closing(connect(fake.url)) as there,
        closing(connect(f"qdrant:{tmp_path}")) as edge,
    ):
        assert isinstance(there, Adopting)
        assert not isinstance(edge, Adopting)


def test_a_server_that_is_away_is_no_missing_collection(rest: Server) -> None:
    rest.load("langchain")
    assert isinstance(rest.fake, RestServer)
    with vecbridge.connect(rest.url) as store:
        collection = store.adopt(store.adoption("notes"))
        rest.fake.faults = [Fault(status=401, body=_wrong(), on="count")]
        with pytest.raises(Forbidden, match="out of order"):
            collection.count()


def test_an_adopted_collection_is_remembered_as_it_was(server: Server) -> None:
    server.load("llama_index_hybrid")
    with vecbridge.connect(server.url) as store:
        manifest = store.adoption("notes").manifest
    assert Manifest.load(*manifest.dump()) == manifest
    assert manifest.adopted is not None
    assert manifest.adopted == replace(manifest.adopted, embedding="text-dense", maker="llama-index")
