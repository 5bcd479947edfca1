"""How Qdrant keeps and compares vectors, over qdrant-client's local mode, which does it a little otherwise.

Local mode scales all vectors under cosine and knows no half precision. So it is told that cosine is the inner
product, and vectors and queries are changed here as Qdrant changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qdrant_client import models

Json = dict[str, Any]


def named(vectors: Json) -> dict[str, Json]:
    """The parameters of each vector; a single one is called ""."""
    return {"": vectors} if "size" in vectors else vectors


def local(asked: Any) -> Any:
    """The vectors to make in local mode."""

    def one(vector: models.VectorParams) -> models.VectorParams:
        distance = models.Distance.DOT if vector.distance == models.Distance.COSINE else vector.distance
        return models.VectorParams(size=vector.size, distance=distance)

    return {key: one(vector) for key, vector in asked.items()} if isinstance(asked, dict) else one(asked)


def store(points: Sequence[models.PointStruct], vectors: dict[str, Json]) -> None:
    """Changes the vectors of points as Qdrant does when it stores them. Raises ValueError in its words."""
    for point in points:
        given: dict[str, Any] = point.vector if isinstance(point.vector, dict) else {"": point.vector}
        dense = {key for key, vector in given.items() if not isinstance(vector, models.SparseVector)}
        if dense - set(vectors):
            raise ValueError(f"Not existing vector name error: {min(dense - set(vectors))}")
        for key, vector in given.items():
            if isinstance(vector, models.SparseVector):
                continue
            kept = np.array(vector, np.float32)
            if len(kept) != (size := vectors[key]["size"]):
                raise ValueError(f"Vector dimension error: expected dim: {size}, got {len(kept)}")
            given[key] = _stored(kept, vectors[key]).tolist()
        point.vector = given[""] if set(given) == {""} else given


def ask(request: Any, vectors: dict[str, Json]) -> None:
    """Takes from a search what local mode cannot do, and scales its vector as Qdrant does."""
    request.params = None
    query = request.query
    vector = query.nearest if isinstance(query, models.NearestQuery) else query
    if isinstance(vector, list):
        distance = vectors[request.using or ""]["distance"]
        scaled = _stored(np.array(vector, np.float32), {"distance": distance}).tolist()
        request.query = models.NearestQuery(nearest=scaled)
    inner = request.prefetch or []
    for one in inner if isinstance(inner, list) else [inner]:
        ask(one, vectors)


def _stored(vector: Any, params: Json) -> Any:
    """The vector as Qdrant keeps it (lib/segment/src/spaces/simple.rs)."""
    if params["distance"] == "Cosine":
        squared = float(np.dot(vector, vector))
        if squared > 1e-12 and abs(squared - 1.0) > 1e-6:
            vector = vector / np.float32(np.sqrt(squared))
    if params.get("datatype") == "float16":
        vector = vector.astype(np.float16)
    return vector.astype(np.float32)
