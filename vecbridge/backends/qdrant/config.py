"""A manifest in Qdrant's words: the collection as it is created, as it is indexed, and how it is searched."""

from __future__ import annotations

from typing import Any

from ...limits import Limits
from ...manifest import Manifest
from ...objections import QUANTISED
from ...types import Index, Metric
from .engine import FULL, SHORT, Json, by_name

_DISTANCES: dict[Metric, str] = {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"}
# Qdrant's own default for indexing_threshold, in KB of vectors per segment (config/config.yaml)
_THRESHOLD_KB = 10_000
# a share of a shard that is small enough for its segments to be above it, however many cores make segments
_SHARE = 64


def two_vectors(manifest: Manifest) -> bool:
    """Whether points carry a short vector to search beside the full one."""
    index = manifest.layout.index
    return index is not None and index.shorten is not None


def full_name(manifest: Manifest) -> str:
    """The name of the vector that searches are ranked by."""
    return FULL if two_vectors(manifest) else ""


def creation(manifest: Manifest) -> Json:
    """The body of PUT /collections/{name}, without metadata: no graph and no quantisation yet."""
    layout = manifest.layout
    config: Json = {"hnsw_config": {"m": 0}}
    full = _vector(manifest, manifest.stored_dim, layout.element)
    if two_vectors(manifest):
        index = layout.index
        assert index is not None
        short = _vector(manifest, layout.index_dim(manifest.space.dim), index.element)
        # the whole vectors are read for a few candidates only
        config["vectors"] = {FULL: {**full, "on_disk": True, "hnsw_config": {"m": 0}}, SHORT: short}
    else:
        config["vectors"] = {**full, "on_disk": quantised(manifest)}
    if layout.spread is not None:
        config["shard_number"] = layout.spread.shards
        config["replication_factor"] = layout.spread.replication
        config["write_consistency_factor"] = layout.spread.write_consistency
    return config


def _vector(manifest: Manifest, dim: int, element: str) -> Json:
    vector: Json = {"size": dim, "distance": _DISTANCES[manifest.space.metric]}
    if element == "float16":
        vector["datatype"] = "float16"
    return vector


def indexing(manifest: Manifest, rows: int, limits: Limits) -> Json:
    """The body of PATCH /collections/{name} that has the index built over `rows` points.

    Qdrant builds nothing for segments below its threshold. Where there is less than that, it is lowered, so
    that the index which was planned is the index that is there.
    """
    layout = manifest.layout
    index = layout.index
    assert index is not None
    size = rows * _searched_bytes(manifest)
    shards = layout.spread.shards if layout.spread else 1
    threshold = min(max(size // 1000 // _SHARE // shards, 1), _THRESHOLD_KB)
    # full_scan_threshold stays as it is: few records that match a filter are better compared one by one
    graph = {"m": index.m, "ef_construct": index.ef_construction}
    change: Json = {"optimizers_config": {"indexing_threshold": threshold}}
    if two_vectors(manifest):
        change["vectors"] = {SHORT: {"hnsw_config": graph}}
        return change
    change["hnsw_config"] = graph
    if (quantisation := _quantisation(index, limits)) is not None:
        change["quantization_config"] = quantisation
    return change


def unindexed(manifest: Manifest, description: Json) -> int:
    """How many points may lie below the threshold of every segment, so that no graph is built for them."""
    optimizers = (description.get("config") or {}).get("optimizer_config") or {}
    threshold = optimizers.get("indexing_threshold") or _THRESHOLD_KB
    segments: int = max(description.get("segments_count") or 1, 1)
    return segments * threshold * 1024 // _searched_bytes(manifest)


def _searched_bytes(manifest: Manifest) -> int:
    """Bytes of one vector that searches compare: the stored one, or the short one."""
    layout = manifest.layout
    short = layout.index if two_vectors(manifest) else None
    element = layout.element if short is None else short.element
    return layout.index_dim(manifest.space.dim) * (2 if element == "float16" else 4)


def _quantisation(index: Index, limits: Limits) -> Json | None:
    match index.element:
        case "int8":
            return {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}
        case "turbo4" | "turbo2" | "turbo1":
            return {"turbo": {"bits": f"bits{index.element[-1]}", "always_ram": True}}
        case "bit":
            binary: Json = {"always_ram": True}
            if limits.has("asymmetric binary quantization"):
                # the query keeps 8 bits for each dimension, which finds more at the same size
                binary["query_encoding"] = "scalar8bits"
            return {"binary": binary}
    return None


def quantised(manifest: Manifest) -> bool:
    """Whether searches walk a graph over quantised copies."""
    index = manifest.layout.index
    return index is not None and index.element in QUANTISED


def search_params(manifest: Manifest) -> Json:
    """SearchParams for the layout's index; rescoring and oversampling are never left to Qdrant's defaults.

    Its default for rescoring depends on the kind of quantisation (lib/segment, quantized_vectors.rs).
    """
    index = manifest.layout.index
    assert index is not None
    params: Json = {"hnsw_ef": index.ef_search or index.ef_construction, "exact": False}
    if quantised(manifest):
        params["quantization"] = {
            "ignore": False,
            "rescore": True,
            "oversampling": float(manifest.layout.oversample),
        }
    return params


def exact_params(manifest: Manifest) -> Json:
    """SearchParams for a comparison with every stored vector."""
    params: Json = {"exact": True}
    if quantised(manifest):
        params["quantization"] = {"ignore": True}
    return params


def graph_of(manifest: Manifest, config: Json) -> Json:
    """The graph's settings in what `describe` calls config: those of the vector that searches walk."""
    graph: Json = dict(config.get("hnsw_config") or {})
    adopted = manifest.adopted
    name = SHORT if two_vectors(manifest) else "" if adopted is None else adopted.embedding
    vector = by_name((config.get("params") or {}).get("vectors") or {}).get(name) or {}
    own = vector.get("hnsw_config") or {}
    return graph | {key: value for key, value in own.items() if value is not None}


def disagreements(manifest: Manifest, description: Json) -> list[str]:
    """What is not as the manifest says in the collection that `describe` described, a few words each."""
    real = by_name((description.get("config") or {}).get("params", {}).get("vectors") or {})
    expected = by_name(creation(manifest)["vectors"])
    wrong = []
    for name, vector in expected.items():
        label = f"vector {name!r}" if name else "the vector"
        if name not in real:
            wrong.append(f"{label} is missing")
            continue
        there: dict[str, Any] = real[name]
        for key, default in (("size", None), ("distance", None), ("datatype", "float32")):
            have, want = there.get(key) or default, vector.get(key, default)
            if have != want:
                wrong.append(f"{key} of {label} is {have}, expected {want}")
    wrong += [f"there is another vector {name!r}" for name in real if name not in expected]
    return wrong
