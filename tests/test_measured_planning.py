"""Plans that rest on evidence: what objects, what is chosen as small as it may be, and what is said."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

import vecbridge
from vecbridge.errors import InputError, PlanError
from vecbridge.evidence import MOST, Curve, Evidence
from vecbridge.planner import Plan, plan
from vecbridge.recall import mean_recall
from vecbridge.types import Element, Index, Layout, Shorten

DIM, ROWS, QUERIES = 3_584, 9_500, 500
M = 1_000_000


def curve(first: float, *, element: Element = "float16", shorten: Shorten | None = None) -> Curve:
    """What misses `first` of the neighbours at once, and ever less with more oversampling."""
    shares = [max(1 - (1 - first) / oversample, 0.0) for oversample in range(1, MOST + 1)]
    return Curve(
        element,
        shorten,
        tuple(mean_recall([share] * QUERIES, 10) for share in shares),
        (0.0,) * MOST,
        ROWS,
    )


def evidence(
    *, bit: float = 0.5, prefix: float = 0.2, pca: float = 0.4, centred: float = 0.5, trend: float = 0.0
) -> Evidence:
    """Curves of all representations; a shortened one finds more the longer it is."""
    sizes = (64, 128, 256, 512, 1024, 2000)
    codes: dict[Element, float] = {
        "float16": 0.999,
        "int8": 0.95,
        "turbo4": 0.9,
        "turbo2": 0.8,
        "turbo1": 0.6,
        "bit": bit,
    }
    curves = [curve(found, element=element) for element, found in codes.items()]
    for size in sizes:
        more = math.log2(size / 64) / 10
        curves.append(curve(min(prefix + more, 0.99), shorten=Shorten("truncate", size)))
        curves.append(curve(min(pca + more, 0.99), shorten=Shorten("pca", size)))
        curves.append(curve(min(centred + more, 0.99), shorten=Shorten("pca", size, centred=True)))
    return Evidence(
        k=10,
        rows=ROWS,
        queries=QUERIES,
        dim=DIM,
        held_out=True,
        seed=7,
        curves=tuple(replace(one, trend=(trend,) * MOST) for one in curves),
        spectrum=(0.5, 0.25),
        mean_energy=0.1,
        seconds=1.5,
    )


def asked(target: float | None, **wishes: object) -> Plan:
    given: dict[str, object] = {"rows": M, "sample": evidence(), "recall": target, **wishes}
    return plan(DIM, **given)  # type: ignore[arg-type]  # each test passes what it is about


def test_the_layout_that_needs_least_of_what_meets_the_target_is_chosen() -> None:
    # the half-precision graph takes 8 GB
    made = asked(0.95, memory="3GB")
    index = made.layout.index
    assert index is not None
    assert (index.kind, index.element) == ("hnsw", "float16")
    # 0.6 is missed at 1x, and 3 quarters of 0.05 may be missed before the graph loses its part;
    # 128 dimensions would need 19 candidates for each hit
    assert index.shorten == Shorten("truncate", 256)
    assert made.layout.oversample == 16
    assert made.expected is not None
    assert made.expected.mean == pytest.approx(1 - 0.6 / 16)


def test_the_smallest_size_that_meets_the_target_is_found() -> None:
    made = asked(0.99, memory="3GB", sample=evidence(prefix=0.0))
    chosen = made.layout.index
    assert chosen is not None
    # 0.0075 may be missed: with 16 candidates for each hit that is 0.12 at 1x, and 512 dimensions miss 0.2
    assert chosen.shorten == Shorten("pca", 1024, centred=True)
    assert made.expected is not None
    assert made.expected.mean >= 0.9925


POOR = {"bit": 0.1, "prefix": -0.6, "pca": -0.6, "centred": -0.6}


def test_where_nothing_finds_enough_in_time_the_fastest_that_does_is_chosen() -> None:
    made = asked(0.999, memory="3GB", sample=evidence(**POOR))
    assert made.layout.index is not None
    # lists are built in less memory than a graph, and read faster than everything
    assert (made.layout.index.kind, made.layout.index.element) == ("ivfflat", "float16")
    assert made.estimates.scan_seconds > 0.1
    assert made.notes[0].startswith(
        "nothing finds 0.999 of the nearest within 0.1 s a search and 3.0 GB of memory; the fastest that does"
    )


def test_a_target_that_nothing_approximate_meets_leaves_the_exact_scan() -> None:
    made = asked(0.999, memory="100MB", sample=evidence(**POOR), on="qdrant")
    assert made.layout.index is None
    assert made.layout.element == "float32"
    assert made.notes[0].startswith(
        "nothing finds 0.999 of the nearest within 0.1 s a search and 100 MB of memory; an exact scan takes"
    )
    reasons = " ".join(one.reason for one in made.refused)
    assert "0.999 is wanted" in reasons
    assert "the budget is 100 MB" in reasons


def test_a_latency_that_was_asked_for_is_kept() -> None:
    with pytest.raises(PlanError, match=r"takes about .*; the budget is 0\.1 s"):
        asked(0.999, memory="3GB", sample=evidence(**POOR), latency=0.1)


def test_more_rows_than_the_sample_has_are_reckoned_with() -> None:
    steady = asked(0.95, memory="3GB", sample=evidence(prefix=-9, pca=-9, centred=-9, bit=0.5))
    falling = asked(0.95, memory="3GB", sample=evidence(prefix=-9, pca=-9, centred=-9, bit=0.5, trend=-0.1))
    assert steady.layout.index is not None
    assert steady.layout.index.element == "bit"
    assert falling.layout.oversample > steady.layout.oversample
    assert any("follows its trend" in note for note in falling.notes)
    assert falling.expected is not None
    assert falling.evidence is not None
    among = falling.evidence.recall(falling.layout, rows=ROWS)
    assert among is not None
    assert among.mean > falling.expected.mean >= 0.95


def test_a_prefix_of_a_model_that_is_not_matryoshka_needs_evidence() -> None:
    layout = Layout(index=Index("hnsw", "float16", Shorten("truncate", 64), ef_search=200), oversample=20)
    without = plan(DIM, rows=M, memory="3GB")
    assert any("not known as a Matryoshka model" in one.reason for one in without.refused)
    assert without.layout.index is not None
    assert without.layout.index.shorten is None or without.layout.index.shorten.method == "pca"
    made = asked(0.9, memory="3GB")
    assert made.layout.index is not None
    assert made.layout.index.shorten == layout.index.shorten  # type: ignore[union-attr]  # it has one
    # so that the store takes it
    assert made.limits.objection(made.space, made.layout) is None
    assert 64 in made.space.nested


def test_the_projection_that_finds_more_is_taken_with_or_without_the_mean() -> None:
    only = {"prefix": -9.0, "bit": -9.0}
    with_mean = asked(0.9, memory="3GB", sample=evidence(**only, pca=0.3, centred=0.5))
    without = asked(0.9, memory="3GB", sample=evidence(**only, pca=0.5, centred=0.3))
    for made, centred in ((with_mean, True), (without, False)):
        assert made.layout.index is not None
        assert made.layout.index.shorten is not None
        assert made.layout.index.shorten.method == "pca"
        assert made.layout.index.shorten.centred is centred
    assert "centred PCA projection" in with_mean.describe()
    assert "centred" not in without.describe()


def test_without_a_target_evidence_is_shown_and_decides_nothing() -> None:
    made = asked(None)
    assert made.layout == plan(DIM, rows=M).layout
    assert made.expected is not None
    assert "recall@10 expected of this layout" in made.explain()


def test_a_target_without_a_sample_is_a_promise_to_tune() -> None:
    made = plan(DIM, rows=M, recall=0.95)
    assert made.layout == plan(DIM, rows=M).layout
    assert made.target == 0.95
    assert any("without a sample nothing is known of it beforehand" in note for note in made.notes)


@pytest.mark.parametrize("on", ["pgvector", "qdrant", "edge", "flat"])
def test_every_plan_with_a_target_expects_to_meet_it(on: str) -> None:
    for target in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0):
        for memory in ("500MB", "3GB", "100GB"):
            try:
                made = asked(target, on=on, memory=memory)
            except PlanError as error:
                assert f"{target:g}" in str(error)  # noqa: PT017  a plan or a reason, both are answers
                continue
            assert made.expected is not None
            assert made.expected.mean >= target


def test_the_explanation_shows_what_was_measured_within_88_columns() -> None:
    text = asked(0.95, memory="3GB").explain()
    assert max(map(len, text.splitlines())) <= 88
    flowing = " ".join(text.split())
    assert "measured with 500 queries (held out of the sample, seed 7)" in flowing
    assert "among 9,500 vectors" in flowing
    assert "1x 2x 4x 8x 16x 32x" in flowing
    assert "signs 0.500 0.750" in flowing
    assert "centred PCA 2,000" in flowing


def test_the_plan_with_evidence_goes_through_json() -> None:
    data = json.loads(json.dumps(asked(0.95, memory="3GB").to_dict()))
    assert data["recall"] == 0.95
    assert data["expected"]["mean"] >= 0.95
    measured = {(one["element"], json.dumps(one["shorten"])) for one in data["evidence"]["recall"]}
    assert len(measured) == len(data["evidence"]["recall"]) == 24
    assert data["evidence"]["recall"][0]["oversampling"]["32"]["mean"] > 0.99


def test_wishes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected a recall above 0, up to 1, as 0\.95; got 95"):
        asked(95)
    with pytest.raises(InputError, match="expected a sample of vectors of 512 dimensions, got 3,584"):
        plan(512, sample=evidence())
    with pytest.raises(InputError, match="expected a sample beside the queries"):
        plan(DIM, queries=[[1.0] * DIM])
    with pytest.raises(InputError, match="number of dimensions, or a sample"):
        plan()


def test_the_dimension_is_that_of_the_sample() -> None:
    assert vecbridge.plan(sample=evidence(), recall=0.9).space.dim == DIM
