"""What a collection remembers about itself comes back as it was, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vecbridge.errors import InputError, ManifestError, VecbridgeError
from vecbridge.manifest import FORMAT, Adopted, Chunking, Manifest, check_name
from vecbridge.reduction import fit
from vecbridge.testing import LAYOUTS, data
from vecbridge.testing.layouts import DIM, NESTED
from vecbridge.types import Layout, Shorten, Space


def manifest(layout: Layout) -> Manifest:
    sample = data.clustered(100, DIM, seed=1)
    door = inner = None
    if layout.shorten:
        door = fit(layout.shorten, source=DIM, metric="cosine", sample=sample)
    if layout.index and layout.index.shorten and layout.index.shorten.method == "pca":
        inner = fit(layout.index.shorten, source=DIM, metric="cosine", sample=sample)
    space = Space(DIM, "cosine", NESTED, 'a "model"\\ \0 é 🦄 \u2028')
    chunking = Chunking(400, 50, 'tokenizer.json:6f2a "é" 🦄', rows=True)
    return Manifest("papers", space, layout, 12_345, door, inner, chunking=chunking)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_manifest_comes_back_as_it_was(name: str) -> None:
    made = manifest(LAYOUTS[name])
    back = Manifest.load(*made.dump())
    assert back.dump() == made.dump()
    for field in ("name", "space", "layout", "rows", "version", "chunking"):
        assert getattr(back, field) == getattr(made, field)
    assert back.stored_dim == made.stored_dim
    sample = data.clustered(5, DIM, seed=2)
    for one, other in (
        (made.reduction, back.reduction),
        (made.index_reduction, back.index_reduction),
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.apply(sample).tobytes() == other.apply(sample).tobytes()


def test_the_text_is_plain_ascii_json_without_nul() -> None:
    text, _ = manifest(Layout()).dump()
    assert text.isascii()
    assert "\0" not in text
    assert json.loads(text)["format"] == FORMAT


def test_only_a_fitted_basis_makes_bytes() -> None:
    assert manifest(Layout(shorten=Shorten("truncate", DIM // 2))).dump()[1] == b""
    assert len(manifest(LAYOUTS["hnsw pca"]).dump()[1]) == 4 * DIM * (DIM // 2)
    assert len(manifest(LAYOUTS["pca"]).dump()[1]) == 4 * DIM * (DIM // 2)


def test_a_newer_format_is_refused_with_advice() -> None:
    text, basis = manifest(Layout()).dump()
    newer = json.dumps({**json.loads(text), "format": FORMAT + 1})
    with pytest.raises(ManifestError, match=rf"'papers' has manifest format {FORMAT + 1}.*upgrade vecbridge"):
        Manifest.load(newer, basis)


BAD_CHUNKING: list[dict[str, Any]] = [
    *({"tokens": value} for value in (0, -1, 50, "400", 400.0, True, None, [400])),
    *({"overlap": value} for value in (-1, 400, "50", 50.0, False, None)),
    *({"counter": value} for value in ("", None, 7, ["a"])),
    *({"rows": value} for value in (None, 1, "true")),
    {"words": 3},
]


def _damaged() -> list[str]:
    text = manifest(Layout()).dump()[0]
    whole: dict[str, Any] = json.loads(text)
    damaged = ["", "null", "[]", "7", '"text"', "{}", "{", text[:-1], '{"format": null}', '{"format": "1"}']
    damaged += [
        json.dumps({key: value for key, value in whole.items() if key != gone})
        for gone in whole
        if gone not in ("filterable", "chunking", "recall", "tuned", "generation", "copy_of", "adopted")
    ]
    cut = whole["chunking"]
    damaged += [json.dumps({**whole, "chunking": {**cut, **wrong}}) for wrong in BAD_CHUNKING]
    for gone in ("tokens", "overlap", "counter"):
        rest = {key: value for key, value in cut.items() if key != gone}
        damaged.append(json.dumps({**whole, "chunking": rest}))
    damaged += [json.dumps({**whole, "recall": value}) for value in (0, 1.5, "0.9", True, [])]
    damaged += [json.dumps({**whole, "generation": value}) for value in (-1, 0.5, "1", None, True)]
    damaged += [json.dumps({**whole, "copy_of": value}) for value in (7, True, ["flat:a b"], {})]
    for key in ("space", "layout", "reduction", "filterable", "chunking", "tuned", "adopted"):
        wrong = [7, "text", []] if key == "filterable" else [7, "text", [], {}, {"dim": 3, "new": 1}]
        damaged += [json.dumps({**whole, key: value}) for value in wrong]
    return damaged


@pytest.mark.parametrize("text", _damaged())
def test_a_damaged_manifest_is_refused_and_no_other_error_escapes(text: str) -> None:
    with pytest.raises(ManifestError, match="manifest cannot be read"):
        Manifest.load(text, b"")


def test_what_a_collection_is_an_unfinished_copy_of_is_kept() -> None:
    made = replace(manifest(Layout()), copy_of="flat:./data papers")
    assert Manifest.load(*made.dump()) == made
    whole: dict[str, Any] = json.loads(made.dump()[0])
    del whole["copy_of"]
    assert Manifest.load(json.dumps(whole), b"").copy_of is None


QDRANT = Adopted("", "notes", "", "", "", document="_node_content", metadata="", maker="llama-index")
TABLE = Adopted(
    "public", "notes", "id", "uuid", "v", None, "m", ("a", "b"), "part", "7", True, False, "i$idx"
)


@pytest.mark.parametrize("adopted", [QDRANT, replace(QDRANT, embedding="dense", metadata=None), TABLE])
def test_what_a_collection_adopted_comes_back(adopted: Adopted) -> None:
    made = replace(manifest(Layout()), adopted=adopted)
    assert Manifest.load(*made.dump()) == made
    whole: dict[str, Any] = json.loads(made.dump()[0])
    for name in ("table", "id", "embedding", "metadata", "document", "fields", "maker"):
        wrong = {**whole, "adopted": {**whole["adopted"], name: 7}}
        with pytest.raises(ManifestError, match="manifest cannot be read"):
            Manifest.load(json.dumps(wrong), b"")


def test_what_was_adopted_is_told_by_the_name_that_its_owner_knows() -> None:
    assert (QDRANT.whole, QDRANT.said) == ("notes", "the Qdrant collection 'notes'")
    assert (TABLE.whole, TABLE.said) == ("public.notes", "the table public.notes")


def test_a_manifest_from_before_there_were_filterable_fields_and_clusters_is_read() -> None:
    made = manifest(LAYOUTS["hnsw"])
    whole: dict[str, Any] = json.loads(made.dump()[0])
    del whole["filterable"], whole["layout"]["spread"]
    assert Manifest.load(json.dumps(whole), b"") == made


@pytest.mark.parametrize("told", [{}, {"chunking": None}], ids=["missing", "null"])
def test_a_manifest_that_does_not_tell_how_texts_were_cut_is_read(told: dict[str, Any]) -> None:
    whole: dict[str, Any] = json.loads(manifest(LAYOUTS["hnsw"]).dump()[0])
    del whole["chunking"]
    assert Manifest.load(json.dumps({**whole, **told}), b"").chunking is None


@pytest.mark.parametrize("wrong", BAD_CHUNKING[:-1], ids=str)
def test_chunks_that_cannot_be_cut_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^expected (chunks|an overlap|the name|rows) .*got "):
        Chunking(**{"tokens": 400, "overlap": 50, "counter": "cl100k_base", "rows": False, **wrong})


def test_what_is_filterable_comes_back() -> None:
    made = Manifest("papers", Space(3), Layout(), 10, filterable={"topic": "text", "year": "number"})
    assert Manifest.load(*made.dump()).filterable == {"topic": "text", "year": "number"}


def test_a_basis_that_does_not_fit_is_refused() -> None:
    text, basis = manifest(LAYOUTS["pca"]).dump()
    with pytest.raises(
        ManifestError, match=r"expected a basis of 32 x 64 float32 \(8192 bytes\), found 8188"
    ):
        Manifest.load(text, basis[:-4])


@pytest.mark.parametrize("name", data.BAD_NAMES.values(), ids=data.BAD_NAMES.keys())
def test_a_bad_name_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="expected a collection name of 1 to 48 ASCII letters") as caught:
        check_name(name)
    assert isinstance(caught.value, VecbridgeError)
    assert str(caught.value).isascii()


@pytest.mark.parametrize("name", data.ODD_NAMES)
def test_an_odd_name_is_a_name(name: str) -> None:
    assert check_name(name) == name
