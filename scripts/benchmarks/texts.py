"""Ingesting real texts: what is found again, what is in flight, what a run costs in which nothing changed.

The texts are definitions of WordNet.
"""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

import vecbridge
from vecbridge import embedders
from vecbridge.data import GLOSSES
from vecbridge.embedders import Embedder
from vecbridge.explain import describe
from vecbridge.ingestion.chunking import Chunker, chunking, counter
from vecbridge.ingestion.records import Document, Origin
from vecbridge.types import Layout

from .bench import Bench
from .measure import Line, least, turns

Floats = NDArray[np.float32]
Gloss = dict[str, Any]
SEED = 0
QUESTIONS = 1_000
PLANNED = 1_000_000  # rows that the layouts are planned for: a plan for 6,000 needs no index
# a server's answer: as long as the model's that this project began with, so that reading it counts
DIM, SECONDS = 3_584, 0.05
TEXTS = 8  # in a request; 8 requests in flight are then 1,280 texts/s, more than most servers of such a model
RUN = 3.0  # seconds for which there is work
GOAL = 0.99, 0.9


def texts(bench: Bench) -> list[Line]:
    """Definitions of WordNet: those in the package, or more of them."""
    known = read(bench.glosses or GLOSSES)[: bench.rows]
    count = min(bench.rounds, 3)
    with bench.place("texts") as folder:
        folder.mkdir()
        places = {
            "flat": f"flat:{folder / 'flat'}",
            "pgvector": bench.postgres,
            "Edge": f"qdrant:{folder / 'edge'}",
        }
        return [
            *_found(folder, places, known),
            *_flying(folder, places, known, rounds=count, seconds=min(RUN, len(known) / 500)),
            *_again(folder, known, rounds=count),
        ]


def read(path: Path) -> list[Gloss]:
    """Definitions, from JSON lines, packed or not."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


# --- what is found again


def questions(glosses: list[Gloss], kind: str) -> list[tuple[str, int]]:
    """Questions, each with the row of the definition that answers it.

    "what is X?" for words with one definition, which does not contain them: meaning alone leads there.
    "own words": a third of the words of a definition, as somebody remembers it; letters lead there, too.
    """
    rng = np.random.default_rng(SEED)
    times = Counter(word for gloss in glosses for word in set(gloss["words"]))
    found: list[tuple[str, int]] = []
    for row in rng.permutation(len(glosses)).tolist():
        word, text = glosses[row]["words"][0], glosses[row]["text"]
        if kind == "own words":
            own = text.split()
            if len(own) >= 9:
                some = sorted(rng.choice(len(own), len(own) // 3, replace=False))
                found.append((" ".join(own[n] for n in some), row))
        elif times[word] == 1 and word.casefold() not in text.casefold():
            found.append((f"what is {word}?", row))
        if len(found) == QUESTIONS:
            break
    return found


def mrr(ranked: Iterator[Sequence[str]], right: Sequence[str]) -> float:
    """Mean reciprocal rank of the right one among the ten; 0 where it is not there."""
    ranks = [1 / (1 + ids.index(one)) if one in ids else 0.0 for ids, one in zip(ranked, right, strict=True)]
    return statistics.fmean(ranks)


def _found(folder: Path, places: dict[str, str], glosses: list[Gloss]) -> list[Line]:
    source = folder / "glosses.jsonl"
    source.write_text("".join(json.dumps(gloss) + "\n" for gloss in glosses))
    ids = [gloss["id"] for gloss in glosses]
    lines: list[Line] = []
    for spec, kinds in (("wordllama", ("what is X?", "own words")), (f"hashing:{DIM}", ("own words",))):
        embedder = embedders.load(spec)
        vectors = _embedded(embedder, [gloss["text"] for gloss in glosses])
        asked = {kind: questions(glosses, kind) for kind in kinds}
        queries = {kind: np.stack([embedder.embed_query(q) for q, _ in asked[kind]]) for kind in kinds}
        right = {kind: [ids[row] for _, row in asked[kind]] for kind in kinds}
        exact = {
            kind: mrr(([ids[n] for n in _nearest(vectors, query)] for query in queries[kind]), right[kind])
            for kind in kinds
        }
        for place, to in places.items():
            name = f"glosses{vectors.shape[1]}"
            vecbridge.ingest(
                source,
                to=to,
                collection=name,
                embedder=embedder,
                id_field="id",
                text_field="text",
                rows=len(glosses) if place == "flat" else PLANNED,
                evaluate=False,
            )
            with vecbridge.connect(to) as store:
                papers = store.open(name)
                layout = describe(papers.layout, vectors.shape[1])
                for kind in kinds:
                    hits = (papers.search(query, k=10) for query in queries[kind])
                    through = mrr(([hit.id for hit in some] for some in hits), right[kind])
                    what = (
                        f"MRR@10, {len(asked[kind]):,} questions ({kind}), {len(ids):,} texts, "
                        f"{embedder.model}, {place}: {layout}"
                    )
                    lines.append(
                        Line(
                            "texts",
                            what,
                            "",
                            "numpy, exact, full dimension",
                            ((through, exact[kind]),),
                            more=True,
                            goal=least(GOAL[0]),
                        )
                    )
                store.drop(name)
    return lines


def _embedded(embedder: Embedder, texts: list[str]) -> Floats:
    return np.concatenate([embedder.embed(texts[n : n + 1_000]) for n in range(0, len(texts), 1_000)])


def _nearest(vectors: Floats, query: Floats) -> list[int]:
    """The rows of the ten nearest unit vectors, nearest first."""
    scores = vectors @ query
    best = np.argpartition(-scores, 10)[:10]
    return best[np.argsort(-scores[best], kind="stable")].tolist()


# --- what is in flight


@contextmanager
def provider() -> Iterator[str]:
    """The base URL of an API in another process: see `provider`."""
    program = Path(__file__).with_name("provider.py")
    with subprocess.Popen(
        [sys.executable, program, str(DIM), str(SECONDS)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def flight(base: str, most: int) -> tuple[float, float, float]:
    """By the server's own account: the share of the time with `most` requests in flight, how many there were
    on average, and texts per second.

    From the second request on, as the first one goes alone to learn the dimension, until the last one comes.
    """
    account = sorted(httpx.get(base, trust_env=False).json())[1:]
    start, end = account[0][0], account[-1][0]
    steps = sorted([(begun, 1) for begun, _, _ in account] + [(ended, -1) for _, ended, _ in account])
    flying, full, area, last = 0, 0.0, 0.0, start
    for moment, step in steps:
        spent = min(moment, end) - last
        if spent > 0:
            full += spent * (flying >= most)
            area += spent * flying
            last += spent
        flying += step
    texts = sum(texts for _, ended, texts in account if ended <= end)
    return full / (end - start), area / (end - start), texts / (end - start)


def _flying(
    folder: Path,
    places: dict[str, str],
    glosses: list[Gloss],
    *,
    rounds: int,
    seconds: float,
) -> list[Line]:
    lines: list[Line] = []
    numbers = itertools.count()
    with provider() as base:
        for place, wanted in itertools.product(("flat", "pgvector"), (4, 8)):
            count = round(seconds / SECONDS) * wanted
            texts = [f"{gloss['text']} {n}" for n, gloss in enumerate(_cycle(glosses, count * TEXTS))]
            source = folder / f"flying-{count}.jsonl"
            source.write_text(
                "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
            )
            seen: list[tuple[float, float]] = []

            def ours(
                turn: int, place: str = place, wanted: int = wanted, source: Path = source, seen: Any = seen
            ) -> float:
                embedder = _client(base, wanted)
                try:
                    vecbridge.ingest(
                        source,
                        to=places[place],
                        collection=f"flying{next(numbers)}",
                        embedder=embedder,
                        layout=Layout(),
                        cache=False,
                        evaluate=False,
                    )
                finally:
                    embedder.close()
                full, mean, speed = flight(base, wanted)
                if turn >= 0:
                    seen.append((mean, speed))
                return full

            def by_hand(turn: int, wanted: int = wanted, texts: list[str] = texts) -> float:
                _post(base, texts, wanted)
                return flight(base, wanted)[0]

            found = turns({"ours": ours, "hand": by_hand}, rounds)
            shares = tuple(zip(found["ours"], found["hand"], strict=True))
            mean = statistics.median(one for one, _ in seen)
            ceiling = wanted * TEXTS / SECONDS
            each = f"{SECONDS * 1e3:.0f} ms and {TEXTS} x {DIM:,} each"
            what = f"{wanted} requests in flight, {each}, into {place}"
            lines += [
                Line(
                    "texts",
                    f"share of the time with all {what}",
                    "",
                    "bare httpx, answers thrown away",
                    shares,
                    more=True,
                    goal=least(GOAL[1], ours=True),
                    note=f"{mean:.2f} on average",
                ),
                Line(
                    "texts",
                    f"texts/s with {what}",
                    "texts/s",
                    "the server's ceiling",
                    tuple((speed, ceiling) for _, speed in seen),
                    more=True,
                ),
            ]
    return lines


def _cycle(glosses: list[Gloss], count: int) -> Iterator[Gloss]:
    return itertools.islice(itertools.cycle(glosses), count)


def _client(base: str, concurrency: int) -> Any:
    """The client under measurement, with as many texts in a request as the bench says."""
    embedder: Any = embedders.load("openai:bench", base_url=base, concurrency=concurrency)
    embedder.items = TEXTS
    return embedder


def _post(base: str, texts: list[str], most: int) -> None:
    """The same requests by bare httpx, each thread sending the next one once it has read an answer."""
    parts = iter([texts[n : n + TEXTS] for n in range(0, len(texts), TEXTS)])
    lock = threading.Lock()
    with httpx.Client(trust_env=False) as client:

        def work() -> None:
            while True:
                with lock:
                    part = next(parts, None)
                if part is None:
                    return
                client.post(
                    f"{base}/embeddings", json={"model": "bench", "input": part, "encoding_format": "base64"}
                )

        threads = [threading.Thread(target=work) for _ in range(most)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


# --- a run in which nothing changed


def _again(folder: Path, glosses: list[Gloss], *, rounds: int) -> list[Line]:
    documents = folder / "documents"
    documents.mkdir()
    topics: dict[str, list[str]] = {}
    for gloss in glosses:
        topics.setdefault(gloss["topic"], []).append(f"## {gloss['words'][0]}\n\n{gloss['text']}\n")
    for topic, parts in topics.items():
        for n in range(0, len(parts), 50):
            (documents / f"{topic}-{n}.md").write_text(f"# {topic}\n\n" + "\n".join(parts[n : n + 50]))
    to = f"flat:{folder / 'again'}"
    times: list[tuple[float, float]] = []
    with provider() as base:
        for turn in range(rounds):
            found = []
            for _ in range(2):
                embedder = _client(base, 8)
                start = time.perf_counter()
                summary = vecbridge.ingest(
                    documents,
                    to=to,
                    collection=f"again{turn}",
                    embedder=embedder,
                    chunk_tokens=128,
                    cache=documents.parent / f"cache{turn}",
                    evaluate=False,
                )
                found.append((time.perf_counter() - start, summary))
                embedder.close()
            (first, before), (second, after) = found
            assert after.unchanged == after.read == before.written
            assert after.usage is not None
            assert after.usage.requests == 0
            times.append((first, second))
    per = 1_000 / after.read
    lines = [
        Line(
            "texts",
            f"second run, nothing changed, {after.documents:,} Markdown files, {after.read:,} chunks",
            "s for 1,000 chunks",
            f"the first run, 8 requests of {SECONDS * 1e3:.0f} ms in flight",
            tuple((second * per, first * per) for first, second in times),
        )
    ]
    text = "\n".join(path.read_text() for path in sorted(documents.iterdir()))
    wordllama: Any = embedders.load("wordllama")
    for count in (counter("cl100k_base"), counter(wordllama.tokenizer, model=wordllama.model)):
        chunker = Chunker(chunking(count), counter=count)
        document = Document("bench", text, {}, Origin("bench"), markdown=True)
        next(chunker.cut(document))
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            chunks = sum(1 for _ in chunker.cut(document))
            taken.append(time.perf_counter() - start)
        lines.append(
            Line(
                "texts",
                f"cutting Markdown into {chunks:,} chunks of up to {chunker.chunking.tokens}, "
                f"counted by {count.name}",
                "MB/s",
                pairs=tuple((len(text.encode()) / 1e6 / seconds, None) for seconds in taken),
                more=True,
            )
        )
    return lines
