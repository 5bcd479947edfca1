"""Whatever an embedding API does, in any order: each input is stored once or rejected once."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
from embedding_server import Asked, EmbeddingServer, Hurried, Reply, good, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge import store
from vecbridge.embedders.api import Api
from vecbridge.embedders.pace import Pace
from vecbridge.embedders.providers import PROVIDERS
from vecbridge.errors import SourceError
from vecbridge.ingestion import ingest

PASSING = [
    Reply(429, {"error": {"message": "slow down", "type": "requests", "param": None, "code": None}}),
    Reply(429, b"", {"retry-after": "0"}),
    Reply(500, b"oops"),
    Reply(502, b"<!DOCTYPE html><title>502 Bad Gateway</title>"),
    Reply(504),
    Reply(200, {"error": {"message": "busy", "code": 429}}),
    Reply(cut=-1),
    Reply(200, b'{"data": [{"ind'),
]
REFUSALS = {
    "long": Reply(
        400,
        {
            "error": {
                "message": "This model's maximum context length is 8 tokens",
                "type": "invalid_request_error",
            }
        },
    ),
    "odd": Reply(422, {"detail": "no"}),
    "nan": Reply(500, {"error": {"message": "json: unsupported value: NaN", "type": "api_error"}}),
}


@given(
    script=st.lists(st.one_of(st.none(), st.sampled_from(PASSING)), max_size=15),
    kinds=st.lists(st.sampled_from(["good"] * 5 + [*REFUSALS]), min_size=1, max_size=24),
    changed=st.sets(st.integers(0, 23)),
    most=st.integers(1, 9),
    concurrency=st.integers(1, 3),
    batch=st.integers(1, 10),
    cache=st.booleans(),
)
@settings(max_examples=30)
def test_any_sequence_of_faults_ends_with_each_input_stored_once_or_rejected_once(
    script: list[Reply | None],
    kinds: list[str],
    changed: set[int],
    most: int,
    concurrency: int,
    batch: int,
    cache: bool,
) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.number <= len(script) and (fault := script[asked.number - 1]):
            return fault
        if len(asked.texts) > most:
            return Reply(413)
        refused = (REFUSALS.get(text.split()[0]) for text in asked.texts)
        return next(filter(None, refused), None) or good(asked)

    texts = {f"id-{n}": f"{kind} {n}" for n, kind in enumerate(kinds)}
    wanted = {key for key, text in texts.items() if text.startswith("good")}
    with tempfile.TemporaryDirectory() as name, EmbeddingServer(answer) as server:
        folder = Path(name)
        source, rejects, to = folder / "rows.jsonl", folder / "rejects.jsonl", f"flat:{folder / 'store'}"

        def night() -> None:
            lines = (json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items())
            source.write_text("".join(lines))
            pace = Pace(concurrency=concurrency, fixed=True, backoff=0.001, clock=Hurried())
            api = Api("some-model", provider=PROVIDERS["openai"], base_url=server.url, pace=pace, attempts=30)
            with closing(api):
                try:
                    done = ingest(
                        source, to=to, collection="c", embedder=api, batch=batch, rejects=rejects,
                        max_rejects=100, cache=folder / "cache" if cache else False, evaluate=False,
                    )  # fmt: skip
                except SourceError:
                    assert not wanted, "only a source without anything good is an error"
                    return
            assert done.new + done.changed + done.unchanged + done.rejected == done.read == len(texts)
            listed = (
                [json.loads(line)["id"] for line in rejects.read_text().splitlines()] if done.rejects else []
            )
            assert sorted(listed) == sorted(texts.keys() - wanted)
            with store.connect(to) as place:
                table = place.open("c")
                there = Counter(key for part in table.inventory() for key, _ in part)
                assert there == Counter(wanted)
                found = table.get(sorted(wanted))
            assert list(found.documents) == [texts[key] for key in sorted(wanted)]
            np.testing.assert_allclose(
                found.vectors, [vector(texts[key]) for key in sorted(wanted)], rtol=0, atol=1e-6
            )

        night()
        once = Counter(server.embedded)
        night()
        again = Counter(server.embedded) - once
        assert not any(text.startswith("good") for text in again), "what was stored was embedded again"
        for number in changed & set(range(len(kinds))):
            if f"id-{number}" in wanted:
                texts[f"id-{number}"] += " changed"
        night()
