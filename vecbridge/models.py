"""Embedding models by name: dimensions, Matryoshka sizes, longest text, and what to write before texts.

A hint, not the truth: the length of the vectors that really come counts, since servers cut them short. The
catalogue only says whether a prefix of them is an embedding too, where a text is too long, and what questions
and documents begin with.
"""

from __future__ import annotations

from .catalogue import ALIASES, MODELS, TAGGED, Model

__all__ = ["MODELS", "Model", "aliases", "find", "near", "nested_sizes", "same"]

_BY_NAME = {model.name.lower(): model for model in MODELS}
_KNOWN = _BY_NAME | {alias: _BY_NAME[name.lower()] for alias, name in ALIASES.items()}


def find(name: str) -> Model | None:
    """The model of this name, in any case, with or without its organisation ("BAAI/bge-m3"); None if unknown.

    What follows a colon ("sentence-t5-xxl:fp32") is a precision or a version and is left out, unless it says
    which of several models is meant ("all-minilm:33m"). Other names that providers and tools give to a model
    are found too, also with LM Studio's "text-embedding-" before and "-GGUF" behind.
    """
    base, _, tag = name.strip().rsplit("/", 1)[-1].lower().partition(":")
    if base in TAGGED:
        size = tag.split("-", 1)[0]
        found = TAGGED[base].get("" if size == "latest" else size)
        return _BY_NAME[found.lower()] if found else None
    plain = base.removesuffix("-gguf")
    return _KNOWN.get(plain) or _KNOWN.get(plain.removeprefix("text-embedding-"))


def same(one: str, other: str) -> bool:
    """Whether two names mean one model: they are equal, or both are names of one entry of the catalogue."""
    found = find(one)
    return one == other or (found is not None and found is find(other))


def aliases(model: Model) -> tuple[str, ...]:
    """The other names that `find` knows this model by, as they are typed."""
    tagged = (
        f"{base}:{tag}" if tag else base
        for base, sizes in TAGGED.items()
        for tag, name in sizes.items()
        if name == model.name
    )
    return (*(alias for alias, name in ALIASES.items() if name == model.name), *tagged)


def near(name: str) -> tuple[str, ...]:
    """Up to three known names that look like this one, the most similar first."""
    from difflib import get_close_matches

    wanted = name.strip().rsplit("/", 1)[-1].partition(":")[0].lower()
    known = {**_KNOWN, **{base: _BY_NAME[sizes[""].lower()] for base, sizes in TAGGED.items()}}
    found = get_close_matches(wanted, known, n=6, cutoff=0.5)
    names = dict.fromkeys(known[one].name for one in found)
    return tuple(names)[:3]


def nested_sizes(name: str | None, *, dim: int | None = None) -> tuple[int, ...]:
    """The Matryoshka sizes of a model, longest first: those below `dim` where its vectors have that length.

    Empty where the model is unknown, or gives no vectors of `dim`: they are something else then.
    """
    model = find(name) if name else None
    if model is None:
        return ()
    length = model.dim if dim is None else dim
    if length not in (model.dim, *model.nested):
        return ()
    return tuple(size for size in model.nested if size < length)
