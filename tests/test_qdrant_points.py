"""Records as points: every vector comes back bit for bit, however long, and metadata however deep."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecbridge.backends.qdrant import points
from vecbridge.backends.qdrant.engine import Found, Json, Scored
from vecbridge.testing import data
from vecbridge.types import Batch

if TYPE_CHECKING:
    from vecbridge.types import Floats


def there_and_back(matrix: Floats) -> Floats:
    """What is read of these rows after they were stored at unit length."""
    scaled, lengths = points.unit(matrix)
    batch = Batch(
        data.names(len(matrix)), matrix, [None] * len(matrix), [{}] * len(matrix), [None] * len(matrix)
    )
    payloads = points.payloads(batch, lengths, points.lost(matrix, scaled, lengths))
    # a payload is JSON on its way
    payloads = json.loads(json.dumps(payloads))
    return points.batch(Found(list(batch.ids), payloads, scaled), matrix.shape[1]).vectors


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 1_024])
@pytest.mark.parametrize("length", [1.2e-19, 1e-3, 0.999, 1.0, 1.0000001, 3.7, 1e5, 8.9e18])
def test_a_vector_of_any_length_comes_back_bit_for_bit(dim: int, length: float) -> None:
    matrix = (data.clustered(50, dim, seed=dim) * length).astype(np.float32)
    assert there_and_back(matrix).tobytes() == matrix.tobytes()


def test_components_of_every_size_come_back_bit_for_bit() -> None:
    seed = 5
    bits = np.random.default_rng(seed).integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits) & (np.abs(bits) < 2e18)]
    matrix = np.ascontiguousarray(values[: len(values) // 10 * 10].reshape(-1, 10))
    matrix = matrix[np.linalg.norm(matrix.astype(np.float64), axis=1) > 1e-18]
    assert len(matrix) > 1_000
    assert there_and_back(matrix).tobytes() == matrix.tobytes(), f"seed {seed}"
    zeros = np.array([[3.0, -0.0, 0.0, -4.0], [1e-30, 2.0, -1e-40, 0.0]], np.float32)
    assert there_and_back(zeros).tobytes() == zeros.tobytes()


def test_rows_are_brought_to_unit_length_and_unit_rows_left_as_they_are() -> None:
    unit = data.clustered(20, 64, seed=3)
    scaled, lengths = points.unit(unit)
    assert scaled is unit
    assert lengths == [None] * 20
    assert points.lost(unit, scaled, lengths) == [None] * 20
    mixed = unit.copy()
    mixed[3] *= 5
    mixed[7] *= 1e-18
    scaled, lengths = points.unit(mixed)
    assert [row for row, length in enumerate(lengths) if length is not None] == [3, 7]
    assert lengths[3] == pytest.approx(5)
    assert np.linalg.norm(scaled.astype(np.float64), axis=1) == pytest.approx(np.ones(20), abs=1e-6)
    assert mixed[3] == pytest.approx(unit[3] * 5)


def test_a_zero_row_stays_zero() -> None:
    zero = np.zeros((1, 4), np.float32)
    assert points.unit(zero)[0].tobytes() == zero.tobytes()


@pytest.mark.parametrize("depth", [0, 1, 5, 22, 23, 24, 25, 26, 49, 50])
def test_metadata_comes_back_however_deep_and_is_never_nested_deeper_than_a_message_may_be(
    depth: int,
) -> None:
    metadata: dict[str, Any] = {"a": data.nested(depth), "list": [[[data.nested(depth)]], 1, "x"], "n": 1}
    batch = Batch(["one"], np.ones((1, 2), np.float32), ["text"], [metadata], [b"\0\xff"])
    payload: Json = json.loads(json.dumps(points.payloads(batch, [None], [None])[0]))
    assert points.metadata_of(payload) == metadata
    assert levels(payload) <= 28
    hit = points.hit(Scored(0.0, payload), euclid=True)
    assert (hit.id, hit.document, hit.metadata) == ("one", "text", metadata)
    assert str(hit.score) == "0.0"
    assert points.digest_of(payload) == b"\0\xff"


def levels(value: Any) -> int:
    """How deep a value is nested."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((levels(one) for one in inner), default=0) if isinstance(value, dict | list) else 0


@given(name=st.text(min_size=1))
def test_an_id_is_what_the_uuid_module_makes_of_the_name(name: str) -> None:
    space = uuid.uuid5(uuid.NAMESPACE_URL, "https://vecbridge.dev/point")
    assert points.point_id(name) == str(uuid.uuid5(space, name))


def test_ids_become_the_same_uuid_everywhere_and_always() -> None:
    assert points.point_id("paper-1") == "6114ddc7-f3c7-56f0-9ca2-87a763933ed4"
    assert len({points.point_id(name) for name in data.names(10_000)}) == 10_000
