"""Random calls on a collection and on a dict: whatever the order, both must hold the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ..filters import matches, parse
from ..store import connect
from ..types import Layout, Metric
from . import oracle

# few ids, so that records are replaced and deleted ones come back
_IDS = ["a", "b", "c", "d", "é", "'", "A", " "]
_COMPONENTS = st.sampled_from([-2.0, -1.0, -0.5, 0.25, 1.0, 3.0])
_RECORDS = st.lists(
    st.tuples(
        st.sampled_from(_IDS),
        st.lists(_COMPONENTS, min_size=3, max_size=3),
        st.sampled_from([None, "", "one", "two"]),
        st.fixed_dictionaries({}, optional={"n": st.sampled_from([0, 1, 1.0, "1", None, [1, 2], True])}),
        st.sampled_from([None, b"", b"\0", bytes(range(24)), b"\xff" * 32]),
    ),
    max_size=6,
)
_Record: TypeAlias = tuple[str, list[float], str | None, dict[str, Any], bytes | None]
_FILTERS: st.SearchStrategy[dict[str, Any]] = st.sampled_from([
    {"n": 1}, {"n": {"$ne": 1}}, {"n": {"$gte": 1}}, {"n": None}, {"n": {"$exists": True}},
    {"n": {"$in": ["1", 0]}}, {"$not": {"n": True}}, {"$or": [{"n": 0}, {"n": {"$lt": "2"}}]},
])  # fmt: skip
_METRICS: st.SearchStrategy[Metric] = st.sampled_from(["cosine", "ip", "l2"])


def play(
    place: Callable[[], str],
    *,
    layouts: Mapping[str, Layout] | None = None,
    examples: int = 25,
    steps: int = 20,
    seed: int | None = None,
) -> None:
    """Play `examples` games of up to `steps` random calls, each on a fresh place; fails with the shortest.

    `place` returns the URL of a fresh place each time. `layouts`: what to choose from. The seed is printed;
    pass it to play the same games again.
    """
    chosen = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"seed {chosen}")  # noqa: T201 - pytest shows it with a failure
    named = dict(layouts or {"flat": Layout()})
    machine = type("Machine", (Machine,), {"place": staticmethod(place), "layouts": named})
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(chosen)(machine)
    run_state_machine_as_test(machine, settings=settings)


class Machine(RuleBasedStateMachine):
    """One collection and a dict that say what it must hold."""

    place: Callable[[], str]
    layouts: Mapping[str, Layout]

    @initialize(metric=_METRICS, data=st.data())
    def start(self, metric: Metric, data: st.DataObject) -> None:
        """A new collection, empty like the dict."""
        layout = data.draw(st.sampled_from(sorted(self.layouts)), label="layout")
        self.rows: dict[str, tuple[list[float], str | None, dict[str, Any]]] = {}
        self.digests: dict[str, bytes | None] = {}
        self.url = type(self).place()
        self.store = connect(self.url)
        self.collection = self.store.create("game", dim=3, metric=metric, layout=self.layouts[layout])

    @rule(records=_RECORDS)
    def upsert(self, records: list[_Record]) -> None:
        """Records, some of them twice."""
        for name, vector, document, metadata, digest in records:
            self.rows[name] = (vector, document, metadata)
            self.digests[name] = digest
        columns: Sequence[Sequence[Any]] = list(zip(*records, strict=True)) or [()] * 5
        written = self.collection.upsert(
            columns[0],
            np.array(columns[1]).reshape(-1, 3),
            documents=columns[2],
            metadata=columns[3],
            digests=columns[4],
        )
        assert written == len(set(columns[0]))

    @rule(ids=st.lists(st.sampled_from(_IDS), max_size=4))
    def delete(self, ids: list[str]) -> None:
        """Some ids, there or not."""
        there = [name for name in set(ids) if name in self.rows]
        assert self.collection.delete(ids) == len(there)
        for name in there:
            del self.rows[name], self.digests[name]

    @rule(where=_FILTERS)
    def delete_where(self, where: dict[str, Any]) -> None:
        """What matches."""
        gone = self._matching(where)
        assert self.collection.delete(where=where) == len(gone)
        for name in gone:
            del self.rows[name], self.digests[name]

    @rule(where=_FILTERS)
    def count(self, where: dict[str, Any]) -> None:
        """What matches is counted."""
        assert self.collection.count(where=where) == len(self._matching(where))

    @rule(ids=st.lists(st.sampled_from(_IDS), max_size=5))
    def get(self, ids: list[str]) -> None:
        """Records come back whole and in order."""
        batch = self.collection.get(ids)
        wanted = [name for name in dict.fromkeys(ids) if name in self.rows]
        assert list(batch.ids) == wanted
        for row, name in enumerate(wanted):
            found = (batch.vectors[row].tolist(), batch.documents[row], batch.metadata[row])
            assert found == self.rows[name]

    @rule(ids=st.lists(st.sampled_from(_IDS), max_size=5))
    def digests_of(self, ids: list[str]) -> None:
        """Digests come back for those that have one."""
        wanted = {name: digest for name in ids if (digest := self.digests.get(name)) is not None}
        assert self.collection.digests(ids) == wanted

    @rule(
        query=st.lists(_COMPONENTS, min_size=3, max_size=3),
        k=st.integers(1, 10),
        where=st.none() | _FILTERS,
        exact=st.booleans(),
    )
    def search(self, query: list[float], k: int, where: dict[str, Any] | None, exact: bool) -> None:
        """A search is brute force; by an index it returns as many hits, with true scores."""
        names = list(self.rows)
        expected = oracle.answer(
            query,
            ids=names,
            vectors=np.array([self.rows[name][0] for name in names]).reshape(-1, 3),
            metric=self.collection.space.metric,
            k=k,
            metadata=[self.rows[name][2] for name in names],
            where=where,
        )
        hits = self.collection.search(query, k=k, where=where, exact=exact)
        if exact or self.collection.layout.index is None:
            oracle.assert_right(hits, expected)
        else:
            assert len(hits) == len(expected.ids)
            oracle.assert_scores(hits, expected)
        for hit in hits:
            assert (hit.document, hit.metadata) == self.rows[hit.id][1:]

    @rule()
    def build_index(self) -> None:
        """As often as one likes."""
        self.collection.build_index()
        # lists cannot be found where there are no vectors yet: such an index waits for them
        assert self.collection.index_state().status in ("none", "ready", *([] if self.rows else ["missing"]))

    @rule()
    def reopen(self) -> None:
        """Everything is still there for whoever comes next."""
        url = self.url
        self.store.close()
        self.store = connect(url)
        self.collection = self.store.open("game")

    @invariant()
    def same_records(self) -> None:
        """No record is lost, and none there twice."""
        assert self.collection.count() == len(self.rows)
        assert oracle.inventory(self.collection.inventory()) == self.digests

    def teardown(self) -> None:
        """Close what was opened."""
        self.store.close()

    def _matching(self, where: dict[str, Any]) -> list[str]:
        condition = parse(where)
        return [name for name, (_, _, metadata) in self.rows.items() if matches(condition, metadata)]
