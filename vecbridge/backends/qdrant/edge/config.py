"""Qdrant's REST JSON as the classes of Qdrant Edge: configurations, and the changes to them.

What only concerns several machines or a server's background work is accepted and has no effect; what Edge
cannot do is refused, not dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import qdrant_edge as qe

from ....errors import StoreError
from ..engine import Json, by_name

# of a collection: shards and replicas, and a log whose size Edge does not let one choose
_SERVERS = {
    "shard_number",
    "sharding_method",
    "replication_factor",
    "write_consistency_factor",
    "read_fan_out_factor",
    "read_fan_out_delay_ms",
    "wal_config",
    "strict_mode_config",
}
_COLLECTION = _SERVERS | {
    "vectors",
    "hnsw_config",
    "quantization_config",
    "optimizers_config",
    "on_disk_payload",
    "payload",
    "id_tracker",
    "metadata",
}
_VECTOR = {"size", "distance", "datatype", "on_disk", "memory", "hnsw_config", "quantization_config"}
_CHANGE = _SERVERS | {"vectors", "hnsw_config", "quantization_config", "optimizers_config", "metadata"}
_CHANGE_VECTOR = {"hnsw_config", "quantization_config"}
_HNSW = {
    "m",
    "ef_construct",
    "full_scan_threshold",
    "max_indexing_threads",
    "on_disk",
    "memory",
    "payload_m",
    "inline_storage",
}
_OPTIMIZERS = {
    "deleted_threshold",
    "vacuum_min_vector_number",
    "default_segment_number",
    "max_segment_size",
    "indexing_threshold",
}
# of a server's optimiser, which runs by itself
_BACKGROUND = {"memmap_threshold", "flush_interval_sec", "max_optimization_threads"}

# Qdrant's own defaults (config/config.yaml), which its REST API fills in
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
INDEXING_THRESHOLD = 10_000  # KB of vectors in a segment, from which on it is indexed


def check(given: object, known: set[str], what: str) -> Mapping[str, Any]:
    """The object given, if it has no key that is not known. Raises StoreError."""
    if not isinstance(given, Mapping):
        raise StoreError(f"expected {what} as an object, got {type(given).__name__}")
    if unknown := sorted(set(given) - known):
        raise StoreError(
            f"Qdrant Edge has no {what} {unknown[0]!r}; it knows {', '.join(sorted(known))}; "
            f"leave it out, or use a Qdrant server"
        )
    return given


def shard_config(config: Json) -> qe.EdgeConfig:
    """The configuration of a shard, of the body of PUT /collections/{name}. Raises StoreError."""
    check(config, _COLLECTION, "collection setting")
    if "vectors" not in config:
        raise StoreError("expected the setting 'vectors' with size and distance, got none")
    hnsw = {**HNSW, **(config.get("hnsw_config") or {})}
    return qe.EdgeConfig(
        vectors={name: _vector(params, hnsw) for name, params in vectors(config).items()},
        hnsw_config=_hnsw(hnsw),
        quantization_config=_quantization(config.get("quantization_config")),
        optimizers=_optimizers(config.get("optimizers_config") or {}),
        on_disk_payload=config.get("on_disk_payload"),
        payload_memory=_memory((config.get("payload") or {}).get("memory")),
        id_tracker_memory=_memory((config.get("id_tracker") or {}).get("memory")),
        wal_enabled=True,
    )


def vectors(config: Json) -> dict[str, Json]:
    """The vectors of a collection by name; a single one is named ""."""
    return by_name(config["vectors"])


def merged(config: Json, change: Json) -> Json:
    """The configuration after PATCH /collections/{name} with this body. Raises StoreError."""
    check(change, _CHANGE, "collection setting")
    new = deepcopy(config)
    _merge(new, change)
    known = vectors(new)
    for name, given in (change.get("vectors") or {}).items():
        if name not in known:
            raise StoreError(f"there is no vector {name!r}; there are {sorted(known)}")
        # the dictionary inside `new`, not a copy of it
        _merge(known[name], check(given, _CHANGE_VECTOR, "vector setting"))
    if change.get("metadata"):
        new["metadata"] = {**(new.get("metadata") or {}), **change["metadata"]}
    return new


def _merge(new: Json, change: Mapping[str, Any]) -> None:
    for key in ("hnsw_config", "optimizers_config"):
        if change.get(key):
            new[key] = {**(new.get(key) or {}), **change[key]}
    quantization = change.get("quantization_config")
    if quantization == "Disabled":
        if new.get("quantization_config"):
            raise StoreError(
                "Qdrant Edge cannot take quantisation back once it is set; make a new collection without it"
            )
    elif quantization is not None:
        new["quantization_config"] = quantization


def told(config: Json) -> Json:
    """The `config` that GET /collections/{name} gives of a collection."""
    return {
        "params": {
            "vectors": deepcopy(config["vectors"]),
            "on_disk_payload": config.get("on_disk_payload", True),
        },
        "hnsw_config": {**HNSW, **(config.get("hnsw_config") or {})},
        "optimizer_config": {
            "indexing_threshold": INDEXING_THRESHOLD,
            **(config.get("optimizers_config") or {}),
        },
        "quantization_config": deepcopy(config.get("quantization_config")),
        "metadata": deepcopy(config.get("metadata")),
    }


def indexed(config: Json) -> bool:
    """Whether the configuration asks for anything to be built: a graph, or quantised copies."""
    of_all = HNSW | (config.get("hnsw_config") or {})
    return bool(config.get("quantization_config")) or any(
        params.get("quantization_config") or {**of_all, **(params.get("hnsw_config") or {})}["m"]
        for params in vectors(config).values()
    )


def _vector(params: Json, hnsw: Json) -> qe.EdgeVectorParams:
    check(params, _VECTOR, "vector setting")
    own = params.get("hnsw_config")
    return qe.EdgeVectorParams(
        size=params["size"],
        distance=_one(qe.Distance, params["distance"], "distance"),
        datatype=_one(qe.VectorStorageDatatype, params.get("datatype"), "datatype"),
        on_disk=params.get("on_disk"),
        memory=_memory(params.get("memory")),
        hnsw_config=_hnsw({**hnsw, **own}) if own else None,
        quantization_config=_quantization(params.get("quantization_config")),
    )


def _hnsw(given: Json) -> qe.HnswIndexConfig:
    check(given, _HNSW, "hnsw setting")
    memory = _memory(given.get("memory"))
    threads = given.get("max_indexing_threads") or 0
    return qe.HnswIndexConfig(**{**given, "memory": memory, "max_indexing_threads": threads})


def _optimizers(given: Json) -> qe.EdgeOptimizersConfig:
    check(given, _OPTIMIZERS | _BACKGROUND, "optimizer setting")
    return qe.EdgeOptimizersConfig(**{key: value for key, value in given.items() if key in _OPTIMIZERS})


def _quantization(given: Json | None) -> Any:
    if given is None:
        return None
    check(given, {"scalar", "binary", "turbo", "product"}, "quantisation")
    if len(given) != 1:
        raise StoreError(f"expected one kind of quantisation, got {sorted(given)}")
    kind, settings = next(iter(given.items()))
    common = {"always_ram", "memory"}
    known: dict[str, Any]
    make: Any
    match kind:
        case "scalar":
            make, known = qe.ScalarQuantizationConfig, {"type": qe.ScalarType, "quantile": None}
        case "binary":
            known = {
                "encoding": qe.BinaryQuantizationEncoding,
                "query_encoding": qe.BinaryQuantizationQueryEncoding,
            }
            make = qe.BinaryQuantizationConfig
        case "turbo":
            make, known = qe.TurboQuantQuantizationConfig, {"bits": qe.TurboQuantBitSize}
        case _:
            make, known = qe.ProductQuantizationConfig, {"compression": qe.CompressionRatio}
    check(settings, common | set(known), f"setting of {kind} quantisation")
    made = dict(settings)
    for key, names in {"memory": qe.Memory, **known}.items():
        if names is not None and made.get(key) is not None:
            made[key] = _one(names, made[key], key)
    return make(**made)


def _memory(name: str | None) -> Any:
    return _one(qe.Memory, name, "memory")


def _one(names: Any, name: str | None, what: str) -> Any:
    """The member of one of Edge's enumerations, by Qdrant's REST name: one_bit is OneBit, bits1_5 Bits1_5."""
    if name is None:
        return None
    known = {_plain(member): member for member in dir(names) if member[0].isupper()}
    if not isinstance(name, str) or _plain(name) not in known:
        raise StoreError(f"expected {what} as one of {', '.join(sorted(known))}, got {name!r}")
    return getattr(names, known[_plain(name)])


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
