"""Points on the wire: what we send is what the official client sends, and what is read is what was there."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_fakes_grpc import grpc_server

from vecbridge.backends.qdrant.engine import FULL, SHORT, Points, Query
from vecbridge.backends.qdrant.grpc import messages, wire
from vecbridge.backends.qdrant.server import cut

SEED = 20

PAYLOADS: list[dict[str, Any]] = [
    {"id": "a", "document": "naïve – ☃", "metadata": {"topic": "x", "n": 2**63 - 1, "least": -(2**63)}},
    {"id": "b", "metadata": {"list": [1, 2.5, None, True, "x", [], {}], "empty": {}, "no": False}},
    {"id": "c", "digest": "00ff", "norm": 1e-300, "odd": ["a.b:number"]},
    {},
]


def ids(n: int) -> list[str]:
    return [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(n)]


def matrix(n: int, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(SEED).standard_normal((n, dim), dtype=np.float32)


def official(points: Points) -> grpc.UpsertPoints:
    """The message that the official client makes of PointStructs."""

    def vector(row: int) -> Any:
        named = {name: rows[row].tolist() for name, rows in points.vectors.items()}
        return named[""] if list(named) == [""] else named

    structs = [
        models.PointStruct(id=id, vector=vector(row), payload=payload)
        for row, (id, payload) in enumerate(zip(points.ids, points.payloads, strict=True))
    ]
    return grpc.UpsertPoints(
        collection_name="papers", wait=True, points=[RestToGrpc.convert_point_struct(one) for one in structs]
    )


def packed(points: Points, *, dense: bool = True) -> bytes:
    with wire.Requests(1).made("papers", wire.pieces(points, dense=dense)) as raw:
        return raw


@pytest.mark.parametrize(
    "vectors",
    [
        {"": matrix(4, 1)},
        {"": matrix(4, 33)},
        {"": matrix(4, 3584)},
        {FULL: matrix(4, 300), SHORT: matrix(4, 31)},
        {},
    ],
    ids=["1", "33", "3584", "two named", "none"],
)
def test_a_packed_message_is_the_one_the_official_client_makes(vectors: Any) -> None:
    points = Points(ids(4), vectors, PAYLOADS)
    raw = packed(points)
    assert grpc.UpsertPoints.FromString(raw) == official(points)


def test_without_maps_the_very_bytes_are_equal() -> None:
    # protobuf writes the entries of a map in any order; with one entry there is but one order
    points = Points(ids(3), {"": matrix(3, 17)}, [{"id": "a"}, {}, {"metadata": {"n": [1, -1, 0]}}])
    assert packed(points) == official(points).SerializeToString()


def test_the_official_client_sends_the_same_bytes_through_a_socket() -> None:
    points = Points(ids(5), {"": matrix(5, 40)}, [{"id": str(n)} for n in range(5)])
    with grpc_server() as fake:
        client = QdrantClient(
            host="127.0.0.1", grpc_port=fake.port, prefer_grpc=True, check_compatibility=False
        )
        client.create_collection("papers", models.VectorParams(size=40, distance=models.Distance.COSINE))
        client.upsert(
            "papers",
            [
                models.PointStruct(id=id, vector=row.tolist(), payload=payload)
                for id, row, payload in zip(points.ids, points.vectors[""], points.payloads, strict=True)
            ],
            wait=True,
        )
        client.close()
        (sent,) = fake.raw("Points/Upsert")
    assert packed(points) == sent


def test_vectors_arrive_bit_for_bit() -> None:
    rows = np.array([[0.0, -0.0, 1e-45, 3.4e38, -1.17e-38, 1 / 3]], dtype=np.float32)
    message = grpc.UpsertPoints.FromString(packed(Points(ids(1), {"": rows}, [{}])))
    sent = np.array(message.points[0].vectors.vector.dense.data, dtype=np.float32)
    assert sent.tobytes() == rows[0].tobytes()


def test_servers_before_1_12_get_the_field_that_they_know() -> None:
    points = Points(ids(2), {"": matrix(2, 9)}, [{}, {}])
    message = grpc.UpsertPoints.FromString(packed(points, dense=False))
    for row, point in zip(points.vectors[""], message.points, strict=True):
        assert not point.vectors.vector.HasField("dense")
        assert np.array_equal(np.array(point.vectors.vector.data, np.float32), row)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: "inf" not in repr(value))


@given(payload=st.dictionaries(st.text(), plain, max_size=5))
def test_any_payload_arrives_as_the_client_would_send_it_and_is_read_as_it_was(payload: Any) -> None:
    points = Points(ids(1), {"": matrix(1, 3)}, [payload])
    message = grpc.UpsertPoints.FromString(packed(points))
    assert message == official(points)
    found = messages.payload(message.points[0].payload)
    assert found == payload
    assert repr(sorted(found.items())) == repr(sorted(payload.items())) or _types(found) == _types(payload)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(one) for key, one in value.items()}
    return list(map(_types, value)) if isinstance(value, list) else type(value)


def test_24_nested_levels_and_the_largest_number_survive() -> None:
    deep: Any = 2**63 - 1
    for _ in range(24):
        deep = {"k": deep}
    message = grpc.UpsertPoints.FromString(packed(Points(ids(1), {"": matrix(1, 3)}, [{"metadata": deep}])))
    assert messages.payload(message.points[0].payload) == {"metadata": deep}


@pytest.mark.parametrize(("room", "most"), [(1000, None), (10**9, 3), (1, None), (1000, 2)])
def test_messages_cut_by_size_and_number_hold_all_points_in_order(room: int, most: int | None) -> None:
    points = Points(ids(20), {"": matrix(20, 50)}, [{"id": str(n)} for n in range(20)])
    pieces = wire.pieces(points)
    runs = list(cut(list(map(wire.weight, pieces)), room=room, most=most))
    assert len(runs) > 1
    whole = grpc.UpsertPoints(collection_name="papers", wait=True)
    requests = wire.Requests(1)
    for run in runs:
        # all in the same memory, longer ones after shorter ones and the other way round
        with requests.made("papers", pieces[run.start : run.stop]) as raw:
            message = grpc.UpsertPoints.FromString(raw)
        assert len(message.points) == len(run)
        assert len(run) == 1 or len(raw) <= room + 20
        assert most is None or len(run) <= most
        assert message.wait
        whole.points.extend(message.points)
    assert whole == official(points)


def test_a_message_that_is_still_in_use_is_not_written_over() -> None:
    requests = wire.Requests(2)
    some, others = (wire.pieces(Points(ids(3), {"": matrix(3, dim)}, [{}] * 3)) for dim in (40, 50))
    with requests.made("papers", some) as kept, requests.made("others", others) as beside:
        copy, second = bytes(bytearray(kept)), bytes(bytearray(beside))
    # made in memory that is free, while somebody holds what was in it
    for pieces in (others, some, others):
        with requests.made("again", pieces) as raw:
            assert grpc.UpsertPoints.FromString(raw).collection_name == "again"
    assert kept == copy
    assert beside == second
    assert grpc.UpsertPoints.FromString(kept).collection_name == "papers"


def test_numbers_beyond_64_bits_are_refused_as_the_official_client_refuses_them() -> None:
    with pytest.raises(ValueError, match="out of range"):
        packed(Points(ids(1), {"": matrix(1, 3)}, [{"n": 2**63}]))


class _Text(str):
    """What is a text to isinstance alone."""


def test_values_of_classes_derived_from_text_are_sent_as_what_they_are() -> None:
    points = Points(ids(1), {"": matrix(1, 3)}, [{"n": _Text("ä"), "list": [_Text("b"), 1.5, False, None]}])
    message = grpc.UpsertPoints.FromString(packed(points))
    assert messages.payload(message.points[0].payload) == {"n": "ä", "list": ["b", 1.5, False, None]}


def test_a_query_is_the_message_that_the_official_client_makes() -> None:
    rows = matrix(2, 30)
    filter = {"must": [{"key": "metadata.n", "range": {"gte": 3}}], "must_not": [{"has_id": ids(1)}]}
    params = {"hnsw_ef": 100, "quantization": {"rescore": True, "oversampling": 3.0}}
    asked = [
        Query(rows[0], 10, params=params, filter=filter),
        Query(rows[1], 5, using=FULL, prefetch=Query(rows[0][:7], 50, SHORT, params, filter)),
    ]
    expected = [
        models.QueryRequest(
            query=models.NearestQuery(nearest=rows[0].tolist()),
            limit=10,
            params=models.SearchParams(**params),
            filter=models.Filter.model_validate(filter),
            with_payload=True,
        ),
        models.QueryRequest(
            query=models.NearestQuery(nearest=rows[1].tolist()),
            limit=5,
            using=FULL,
            prefetch=[
                models.Prefetch(
                    query=models.NearestQuery(nearest=rows[0][:7].tolist()),
                    limit=50,
                    using=SHORT,
                    params=models.SearchParams(**params),
                    filter=models.Filter.model_validate(filter),
                )
            ],
            with_payload=True,
        ),
    ]
    assert messages.queries("papers", asked) == grpc.QueryBatchPoints(
        collection_name="papers",
        query_points=[RestToGrpc.convert_query_request(one, "papers") for one in expected],
    )


def test_a_configuration_is_the_message_that_the_official_client_makes() -> None:
    config = {
        "vectors": {
            FULL: {"size": 300, "distance": "Dot", "on_disk": True, "hnsw_config": {"m": 0}},
            SHORT: {"size": 30, "distance": "Cosine", "datatype": "float16"},
        },
        "hnsw_config": {"m": 0},
        "quantization_config": {"binary": {"always_ram": True, "query_encoding": "scalar8bits"}},
        "optimizers_config": {"indexing_threshold": 7},
        "shard_number": 6,
        "replication_factor": 2,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
        "metadata": {"vecbridge": {"manifest": "…", "n": 2**63 - 1, "none": None}},
    }
    with grpc_server() as fake:
        client = QdrantClient(
            host="127.0.0.1", grpc_port=fake.port, prefer_grpc=True, check_compatibility=False
        )
        model = models.CreateCollection.model_validate(config)
        client.create_collection(
            "papers",
            model.vectors,
            hnsw_config=model.hnsw_config,
            quantization_config=model.quantization_config,
            optimizers_config=model.optimizers_config,
            shard_number=6,
            replication_factor=2,
            write_consistency_factor=1,
            on_disk_payload=True,
            metadata=model.metadata,
        )
        client.close()
        (sent,) = fake.raw("Collections/Create")
    assert messages.creation("papers", config) == grpc.CreateCollection.FromString(sent)


@pytest.mark.parametrize("named", ["", FULL])
@pytest.mark.parametrize("old", [False, True])
def test_vectors_are_read_as_the_server_has_them(*, named: str, old: bool) -> None:
    rows = matrix(3, 21)
    points = [grpc.RetrievedPoint() for _ in rows]
    for point, row in zip(points, rows, strict=True):
        output = point.vectors.vectors.vectors[named] if named else point.vectors.vector
        (output.data if old else output.dense.data).extend(row.tolist())
    found = wire.matrix(points, named)
    assert found is not None
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)
    assert wire.matrix([], named) is None


def test_what_local_mode_of_the_client_understands_is_what_was_packed() -> None:
    points = Points(ids(2), {FULL: matrix(2, 5), SHORT: matrix(2, 2)}, PAYLOADS[:2])
    message = grpc.UpsertPoints.FromString(packed(points))
    for row, point in enumerate(message.points):
        found = GrpcToRest.convert_point_struct(point)
        assert found.id == points.ids[row]
        assert found.payload == points.payloads[row]
        assert isinstance(found.vector, dict)
        assert found.vector == {name: rows[row].tolist() for name, rows in points.vectors.items()}
