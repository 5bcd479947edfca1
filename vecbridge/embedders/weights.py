"""Where the files of a model are: in a folder, in the model hub's cache on this machine, or at the hub."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EmbedderError, MissingExtra

T = TypeVar("T")

# one small request tells whether the hub answers: sentence-transformers without a network tries for 70 s
_ANSWERS = 10.0
_BLOCK = 1 << 20
# sentence-transformers' names (one word since 5, a truth value for each kind before) -> fastembed's
_POOLINGS = {
    "mean": "MEAN",
    "cls": "CLS",
    "lasttoken": "LAST_TOKEN",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_lasttoken": "LAST_TOKEN",
}


def roles(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Prompts of sentence-transformers by role.

    Documents have three names there. The library (6.2) takes the first that is present, and adds an empty
    "document" to every model, so that it leaves out a "passage" that the model was trained with.
    """
    document = next(filter(None, map(prompts.get, ("document", "passage", "corpus"))), "")
    return {"document": document, "query": prompts.get("query") or ""}


def prompts(folder: Path) -> dict[str, str]:
    """The prompts that a model of sentence-transformers brings, by role; empty where it brings none."""
    config = folder / "config_sentence_transformers.json"
    if not config.is_file():
        return {}
    return roles(read(folder, lambda: json.loads(config.read_text())).get("prompts") or {})


def place(model: str) -> tuple[str, Path | None]:
    """A model's name, and its folder if it is one. Raises EmbedderError for a path where no folder is."""
    try:
        path = Path(model).expanduser()
        folder, there = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise EmbedderError(
            f"expected the name or the folder of a model, got {model[:80]!a}: {said(error)}"
        ) from error
    if folder:
        return path.resolve().name, path.resolve()
    if there:
        raise EmbedderError(f"expected the folder of a model, got the file {model[:200]!a}; name its folder")
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise EmbedderError(f"expected the folder of a model, found nothing at {model[:200]!a}")
    return model, None


def weights(folder: Path) -> list[Path]:
    """The files that make a model what it is: weights, configurations, vocabularies."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    kinds = {".json", ".txt", ".model", ".safetensors", ".onnx", ".onnx_data"}
    if not any(path.suffix == ".safetensors" for path in files):
        # the older form of the same weights, which many a folder holds beside the newer one
        kinds.add(".bin")
    return sorted((path for path in files if path.suffix in kinds), key=lambda path: path.as_posix())


def digest(files: list[Path]) -> str:
    """Eight characters that change with any byte of the files."""
    found = blake2b(digest_size=4)
    for path in files:
        found.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as source:
            while block := source.read(_BLOCK):
                found.update(block)
    return found.hexdigest()


def onnx(folder: Path) -> tuple[str, str, bool]:
    """The ONNX file in a folder, fastembed's name of the pooling, and whether vectors get unit length."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx"))
    usual = [name for name in ("model.onnx", "onnx/model.onnx", "model_optimized.onnx") if name in found]
    if not usual and len(found) != 1:
        raise EmbedderError(
            f"expected one ONNX file (model.onnx) in {folder}, found {len(found)}"
            + ("; for a folder of static vectors use model2vec:FOLDER" if not found else "")
        )
    modules = folder / "modules.json"
    if not modules.is_file():
        raise EmbedderError(
            f"expected modules.json and the folder of the pooling module in {folder}, as "
            f"sentence-transformers saves them; nothing else says how the vectors of tokens become one"
        )
    steps = read(folder, lambda: json.loads(modules.read_text()))
    kinds = [str(step["type"]).rsplit(".", 1)[-1] for step in steps]
    if set(kinds) - {"Transformer", "Pooling", "Normalize"} or kinds.count("Pooling") != 1:
        raise EmbedderError(
            f"expected a model of Transformer, Pooling and Normalize in {modules}, got {', '.join(kinds)}; "
            f"use sentence-transformers:FOLDER"
        )
    config = folder / str(steps[kinds.index("Pooling")]["path"]) / "config.json"
    wanted = read(folder, lambda: json.loads(config.read_text()))
    modes = wanted.get("pooling_mode") or [key for key, value in wanted.items() if value is True]
    named = [modes] if isinstance(modes, str) else [mode for mode in modes if mode != "include_prompt"]
    pooling = _POOLINGS.get(named[0]) if len(named) == 1 else None
    if pooling is None or wanted.get("include_prompt") is False:
        raise EmbedderError(
            f"expected mean, cls or last-token pooling over the whole text in {config}, got "
            f"{', '.join(named)[:80]}{' without the prompt' if pooling else ''}; "
            f"use sentence-transformers:FOLDER"
        )
    return (usual or found)[0], pooling, "Normalize" in kinds


def read(folder: Path, load: Callable[[], T]) -> T:
    """What `load` gives from a folder. Raises EmbedderError."""
    try:
        return load()
    except Exception as error:
        raise EmbedderError(f"the model in {folder} does not load: {said(error)}") from error


def fetch(name: str, repository: str, *, cached: Callable[[], T], online: Callable[[], T]) -> T:
    """A model from the hub's cache on this machine, else from the hub. Raises EmbedderError."""
    from huggingface_hub import HfApi

    try:
        return cached()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the copy here, the hub has the whole
        here = error
    try:
        HfApi().model_info(repository, timeout=_ANSWERS)
        return online()
    except Exception as error:
        # that files are not there is what an OSError says here; anything else is worth reading
        broken = "" if isinstance(here, OSError) else f" ({said(here)})"
        raise EmbedderError(
            f"the model {name[:80]!a} is not on this machine{broken}, and the model hub did not give "
            f"it: {said(error)}. Check the name and the network (HF_HUB_OFFLINE must not be 1 for a "
            f"download), or download the model where there is one and give its folder instead of its name"
        ) from error


def said(error: Exception) -> str:
    """The first line of what a library says, short."""
    text = " ".join((str(error).strip().splitlines() or [""])[0].split()).rstrip(".")
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def importing(kind: str, extra: str) -> Iterator[None]:
    """Turns a package that is absent into the extra to install."""
    try:
        with warnings.catch_warnings():
            # packages of others warn of one another's deprecated names
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        if error.name is None:
            raise EmbedderError(f"{kind} is installed, but does not load: {said(error)}") from error
        raise MissingExtra(
            f"{kind} embeddings need the package {error.name}; "
            f"install it with pip install 'vecbridge[{extra.replace('_', '-')}]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and progress bars while a model loads; both are as they were afterwards."""
    hub = import_module("huggingface_hub.utils")

    # transformers has a switch of its own, and shows bars for weights that are already on the disk
    transformers: Any = sys.modules.get("transformers.utils.logging")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars = not hub.are_progress_bars_disabled()
        weights = transformers is not None and transformers.is_progress_bar_enabled()
        if weights:
            transformers.disable_progress_bar()
        if bars:
            hub.disable_progress_bars()
        try:
            yield
        finally:
            if weights:
                transformers.enable_progress_bar()
            if bars:
                hub.enable_progress_bars()
            else:
                hub.disable_progress_bars()
