"""Ingesting real texts: what is found again, what is in flight, what a run costs in which nothing changed.

scripts/bench.py calls it. The texts are definitions of WordNet.
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
from collections.abc import Callable, Iterator, Sequence
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

Floats = NDArray[np.float32]
Line = dict[str, Any]
SEED = 0
QUESTIONS = 1_000
PLANNED = 1_000_000  # rows that the layouts are planned for: a plan for 6,000 needs no index
# a server's answer: as long as the model's that this project began with, so that reading it counts
DIM, SECONDS = 3_584, 0.05
TEXTS = 8  # in a request; 8 requests in flight are then 1,280 texts/s, more than most servers of such a model
RUN = 3.0  # seconds for which there is work
GOAL = 0.99, 0.9


def rows(
    folder: Path,
    url: str,
    *,
    paired: Callable[[Callable[[], float], Callable[[], float], int], tuple[float, float, float]],
    rounds: int,
    glosses: Path = GLOSSES,
) -> list[Line]:
    """Lines of the table. `url` of a pgvector store; `glosses`: as in `vecbridge.data`, or more of them."""
    folder.mkdir()
    known = read(glosses)
    places = {"flat": f"flat:{folder / 'flat'}", "pgvector": url, "Edge": f"qdrant:{folder / 'edge'}"}
    return [
        *_found(folder, places, known),
        *_flying(folder, places, known, paired=paired, rounds=rounds),
        *_again(folder, known, rounds=rounds),
    ]


def read(path: Path) -> list[Line]:
    """Definitions, from JSON lines, packed or not."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


# --- what is found again


def questions(glosses: list[Line], kind: str) -> list[tuple[str, int]]:
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


def _found(folder: Path, places: dict[str, str], glosses: list[Line]) -> list[Line]:
    source = folder / "glosses.jsonl"
    source.write_text("".join(json.dumps(gloss) + "\n" for gloss in glosses))
    ids = [gloss["id"] for gloss in glosses]
    lines = []
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
                    lines.append(
                        {
                            "job": f"MRR@10, {len(asked[kind]):,} questions ({kind}), {len(ids):,} texts, "
                            f"{embedder.model}, {place}: {layout}",
                            "ours": f"{through:.4f}",
                            "by_hand": f"{exact[kind]:.4f} (numpy, exact, full dimension)",
                            "ratio": through / exact[kind],
                            "goal": f">= {GOAL[0]} of exact",
                            "met": through >= GOAL[0] * exact[kind],
                        }
                    )
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
    """The base URL of an API in another process: see bench_provider."""
    program = Path(__file__).with_name("bench_provider.py")
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
    glosses: list[Line],
    *,
    paired: Callable[[Callable[[], float], Callable[[], float], int], tuple[float, float, float]],
    rounds: int,
) -> list[Line]:
    lines = []
    numbers = itertools.count()
    with provider() as base:
        for place, most in itertools.product(("flat", "pgvector"), (4, 8)):
            count = round(RUN / SECONDS) * most
            texts = [f"{gloss['text']} {n}" for n, gloss in enumerate(_cycle(glosses, count * TEXTS))]
            source = folder / f"flying-{count}.jsonl"
            source.write_text(
                "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
            )
            seen: list[tuple[float, float]] = []

            def ours(place: str = place, most: int = most, source: Path = source, seen: Any = seen) -> float:
                embedder = _client(base, most)
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
                full, mean, speed = flight(base, most)
                seen.append((mean, speed))
                return full

            def by_hand(most: int = most, texts: list[str] = texts) -> float:
                _post(base, texts, most)
                return flight(base, most)[0]

            share, hand, ratio = paired(ours, by_hand, rounds)
            mean, speed = (statistics.median(one[n] for one in seen) for n in (0, 1))
            ceiling = most * TEXTS / SECONDS
            lines += [
                {
                    "job": f"time with all {most} requests in flight, {SECONDS * 1e3:.0f} ms and {TEXTS} x "
                    f"{DIM:,} each, into {place}",
                    "ours": f"{share:.0%}",
                    "by_hand": f"{hand:.0%} (bare httpx, answers thrown away)",
                    "ratio": ratio,
                    "goal": f">= {GOAL[1]:.0%} of the time",
                    "met": share >= GOAL[1],
                },
                {
                    "job": "  in flight on average, and texts/s",
                    "ours": f"{mean:.2f}, {speed:,.0f} texts/s",
                    "by_hand": f"{most}, {ceiling:,.0f} texts/s (the server's ceiling)",
                    "ratio": speed / ceiling,
                    "goal": "",
                    "met": True,
                },
            ]
    return lines


def _cycle(glosses: list[Line], count: int) -> Iterator[Line]:
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


def _again(folder: Path, glosses: list[Line], *, rounds: int) -> list[Line]:
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
        first, second, ratio = (
            statistics.median(one) for one in (*zip(*times, strict=True), [b / a for a, b in times])
        )
    lines: list[Line] = [
        {
            "job": f"second run, nothing changed, {after.documents:,} Markdown files, {after.read:,} chunks",
            "ours": f"{second * 1e3 / after.read:.2f} s for 1,000 chunks",
            "by_hand": f"{first * 1e3 / after.read:.2f} s in the first run, 8 requests of "
            f"{SECONDS * 1e3:.0f} ms in flight",
            "ratio": ratio,
            "goal": "",
            "met": True,
        }
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
        speed = len(text.encode()) / 1e6 / statistics.median(taken)
        lines.append(
            {
                "job": f"  cutting Markdown into {chunks:,} chunks of up to {chunker.chunking.tokens}, "
                f"counted by {count.name}",
                "ours": f"{speed:.2f} MB/s",
                "by_hand": "",
                "ratio": None,
                "goal": "",
                "met": True,
            }
        )
    return lines
