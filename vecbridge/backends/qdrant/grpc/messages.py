"""Qdrant's JSON as its gRPC messages and back, by the conversions of the official client."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload, payload_to_grpc

from ....errors import FeatureMissing
from ..engine import Found, Json, Query, number_of
from . import wire

_SCHEMAS = {
    "keyword": grpc.FieldType.FieldTypeKeyword,
    "integer": grpc.FieldType.FieldTypeInteger,
    "float": grpc.FieldType.FieldTypeFloat,
    "bool": grpc.FieldType.FieldTypeBool,
}

# an entry of CreateCollection's JSON: the message's field, and what converts it (None: taken as it is)
_CREATION: dict[str, tuple[str, Any]] = {
    "vectors": ("vectors_config", RestToGrpc.convert_vectors_config),
    "sparse_vectors": ("sparse_vectors_config", RestToGrpc.convert_sparse_vector_config),
    "hnsw_config": ("hnsw_config", RestToGrpc.convert_hnsw_config_diff),
    "optimizers_config": ("optimizers_config", RestToGrpc.convert_optimizers_config_diff),
    "wal_config": ("wal_config", RestToGrpc.convert_wal_config_diff),
    "quantization_config": ("quantization_config", RestToGrpc.convert_quantization_config),
    "strict_mode_config": ("strict_mode_config", RestToGrpc.convert_strict_mode_config),
    "sharding_method": ("sharding_method", RestToGrpc.convert_sharding_method),
    "shard_number": ("shard_number", None),
    "replication_factor": ("replication_factor", None),
    "write_consistency_factor": ("write_consistency_factor", None),
    "on_disk_payload": ("on_disk_payload", None),
}


@contextmanager
def _understood(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, AttributeError) as error:  # pydantic's ValidationError is a ValueError
        version = importlib.metadata.version("qdrant-client")
        raise FeatureMissing(
            f"qdrant-client {version} does not know all of {what}; install a newer one with "
            f"pip install -U qdrant-client ({error})"
        ) from error


def creation(name: str, config: Json) -> grpc.CreateCollection:
    """The message that creates a collection as PUT /collections/{name} with this body does."""
    fields: dict[str, Any] = {}
    with _understood("the collection's configuration"):
        body = {key: value for key, value in config.items() if key != "metadata"}
        model = models.CreateCollection.model_validate(body)
        for key in body:
            field, convert = _CREATION[key]
            value = getattr(model, key)
            fields[field] = value if convert is None or value is None else convert(value)
        if config.get("metadata"):
            fields["metadata"] = payload_to_grpc(config["metadata"])
        return grpc.CreateCollection(collection_name=name, **fields)


def change(name: str, body: Json) -> grpc.UpdateCollection:
    """The message that changes a collection as PATCH /collections/{name} with this body does."""
    with _understood("the change of the collection's configuration"):
        model = models.UpdateCollection.model_validate(body)
        return RestToGrpc.convert_update_collection(model, name)


def field_index(name: str, field: str, schema: str) -> grpc.CreateFieldIndexCollection:
    """The message that indexes a payload field."""
    return grpc.CreateFieldIndexCollection(
        collection_name=name, field_name=field, field_type=_SCHEMAS[schema], wait=True
    )


def description(info: grpc.CollectionInfo) -> Json:
    """The `result` of GET /collections/{name}, without entries that are null."""
    with _understood("what the server says about the collection"):
        found: Json = GrpcToRest.convert_collection_info(info).model_dump(mode="json", exclude_none=True)
        # here null counts, and numbers stay what they were
        found["config"]["metadata"] = payload(getattr(info.config, "metadata", {}))
    return found


def filter_(json: Json | None) -> grpc.Filter | None:
    """A filter's message; None for none."""
    if json is None:
        return None
    with _understood("the filter"):
        return RestToGrpc.convert_filter(models.Filter.model_validate(json))


def _params(json: Json | None) -> grpc.SearchParams | None:
    if json is None:
        return None
    with _understood("the search parameters"):
        return RestToGrpc.convert_search_params(models.SearchParams.model_validate(json))


def queries(name: str, asked: Sequence[Query]) -> grpc.QueryBatchPoints:
    """One message for all queries; filters and parameters that they share are translated once."""
    translated: dict[tuple[str, int], Any] = {}

    def once(convert: Any, json: Json | None) -> Any:
        key = (convert.__name__, id(json))
        if key not in translated:
            translated[key] = convert(json)
        return translated[key]

    def fields(query: Query) -> dict[str, Any]:
        found: dict[str, Any] = {
            "query": grpc.Query(nearest=grpc.VectorInput(dense=wire.vector(query.vector))),
            "limit": query.limit,
            "using": query.using or None,
            "params": once(_params, query.params),
            "filter": once(filter_, query.filter),
        }
        if query.prefetch is not None:
            found["prefetch"] = [grpc.PrefetchQuery(**fields(query.prefetch))]
        return found

    whole = with_payload(True)
    return grpc.QueryBatchPoints(
        collection_name=name,
        query_points=[
            grpc.QueryPoints(collection_name=name, with_payload=whole, **fields(query)) for query in asked
        ],
    )


def with_payload(wanted: Sequence[str] | bool) -> grpc.WithPayloadSelector:
    """Which parts of the payload come along: all, none, or these keys."""
    if isinstance(wanted, bool):
        return grpc.WithPayloadSelector(enable=wanted)
    return grpc.WithPayloadSelector(include=grpc.PayloadIncludeSelector(fields=wanted))


def with_vectors(name: str | None) -> grpc.WithVectorsSelector:
    """Which vector comes along: none, the single one (""), or that of this name."""
    if not name:
        return grpc.WithVectorsSelector(enable=name is not None)
    return grpc.WithVectorsSelector(include=grpc.VectorsSelector(names=[name]))


def point_id(id: str) -> grpc.PointId:
    """A point's id as a message."""
    number = number_of(id)
    return grpc.PointId(uuid=id) if number is None else grpc.PointId(num=number)


def id_of(id: Any) -> str:
    """A point's id as text."""
    return id.uuid or str(id.num)


def payload(fields: Any) -> Json:
    """A payload's message, or a collection's metadata, as JSON."""
    found: Json = grpc_to_payload(fields)
    return found


def found(points: Sequence[Any], payloads: Sequence[str] | bool, vectors: str | None) -> Found:
    """Points that were read, by column; see `Found`."""
    if vectors is not None:
        points = [point for point in points if wire.output_of(point, vectors) is not None]
    return Found(
        [id_of(point.id) for point in points],
        [] if payloads is False else [payload(point.payload) for point in points],
        None if vectors is None else wire.matrix(points, vectors),
    )
