"""Bytes on a server's disks, reckoned from what it counts: Qdrant's API tells no sizes."""

from __future__ import annotations

import math

from ...sizes import IDS, PAYLOAD, graph_bytes, quantised_bytes
from ...types import Element, Sizes
from .engine import Json, by_name

_BITS = {"float32": 32, "float16": 16, "uint8": 8, "turbo4": 4, "turbo8": 8, "turbo16": 16}
_TURBO: dict[str, Element] = {"bits4": "turbo4", "bits2": "turbo2", "bits1": "turbo1"}


def sizes(description: Json) -> Sizes:
    """What a collection takes on all machines together, from GET /collections/{name}; without long payloads.

    A vector's graph is counted where it has one and anything has been indexed.
    """
    config = description["config"]
    rows = description.get("points_count") or 0
    copies = config["params"].get("replication_factor") or 1
    table, index = rows * (PAYLOAD + IDS), 0
    for vector in by_name(config["params"].get("vectors") or {}).values():
        dim = vector["size"]
        table += rows * math.ceil(dim * _BITS.get(vector.get("datatype") or "float32", 32) / 8)
        graph = {**config["hnsw_config"], **(vector.get("hnsw_config") or {})}
        if description.get("indexed_vectors_count") and graph["m"]:
            index += graph_bytes(rows, graph["m"])
            quantisation = vector.get("quantization_config") or config.get("quantization_config")
            index += rows * _copy(quantisation or {}, dim)
    return Sizes(table * copies, index * copies)


def _copy(quantisation: Json, dim: int) -> int:
    """Bytes of one vector's quantised copy, 0 where there is none of a kind that vecbridge makes."""
    if "scalar" in quantisation:
        return quantised_bytes("int8", dim)
    if "binary" in quantisation:
        return quantised_bytes("bit", dim)
    if "turbo" in quantisation:
        return quantised_bytes(_TURBO.get(quantisation["turbo"].get("bits") or "", "turbo4"), dim)
    return 0
