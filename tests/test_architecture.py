"""The shape of the package: who imports whom, what loads when, and that what is public says what it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vecbridge
from vecbridge.backends import Backend, Table
from vecbridge.backends.qdrant.engine import Engine

ROOT = Path(vecbridge.__file__).parent
MODULES = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py"))

PURE = {
    "_version", "errors", "types", "filters", "limits", "objections", "sizes", "catalogue", "models",
    "candidates", "places", "explain", "planner", "reduction", "manifest", "recall", "evidence", "budgets",
    "notes", "speeds", "axes", "codes", "measuring", "drift", "widths", "ranking", "names", "unfinished",
}  # fmt: skip
ABOVE = {
    "backends", "store", "collection", "ingestion", "cli", "evaluate", "testing", "integrations", "report",
    "checks", "embedders", "cache", "tuning", "replanning", "calibrate", "calibrations", "conform",
    "aio", "stopping", "comparing", "copying", "reembedding",
    "parquet", "exporting", "importing", "adopting", "receiving",
}  # fmt: skip

# what a part of the package never imports: the arrows of docs/design.md, the other way round
NEVER: dict[str, set[str]] = {
    **dict.fromkeys(PURE, ABOVE),
    "errors": ABOVE | PURE,
    "types": ABOVE | PURE,
    "filters": ABOVE | PURE - {"errors", "types"},
    "objections": ABOVE | {"planner", "manifest", "reduction"},
    "limits": ABOVE | {"planner", "manifest", "reduction"},
    "reduction": ABOVE | {"planner", "manifest", "limits"},
    "manifest": ABOVE | {"planner"},
    "measuring": ABOVE - {"checks"} | {"planner", "manifest"},
    "ranking": ABOVE | PURE - {"types"},
    "checks": ABOVE | {"planner", "manifest", "limits"},
    "cache": ABOVE | PURE - {"errors", "sizes"},
    "backends": {
        "store",
        "collection",
        "ingestion",
        "cli",
        "evaluate",
        "testing",
        "planner",
        "checks",
        "cache",
        "integrations",
        "report",
        "tuning",
        "replanning",
        "comparing",
        "copying",
        "receiving",
        "calibrate",
        "calibrations",
        "measuring",
        "adopting",
    },
    "embedders": ABOVE - {"embedders", "cache"} | {"planner", "manifest", "limits"},
    "adopting": {"store", "collection", "ingestion", "cli", "testing", "report"},
    "evaluate": {"store", "collection", "ingestion", "cli", "testing", "planner", "tuning"},
    "tuning": {"store", "collection", "ingestion", "cli", "testing", "planner", "report"},
    "replanning": {"store", "collection", "ingestion", "cli", "testing", "planner", "tuning", "report"},
    "comparing": ABOVE - {"backends", "checks", "conform"} | {"planner"},
    "copying": {"ingestion", "cli", "testing", "integrations", "report"},
    "receiving": {"ingestion", "cli", "testing", "integrations", "report"},
    "parquet": ABOVE - {"checks"} | {"planner"},
    "exporting": ABOVE - {"collection", "parquet"} | {"planner"},
    "importing": {"ingestion", "cli", "testing", "integrations", "report", "exporting"},
    "calibrations": {"store", "collection", "ingestion", "cli", "testing", "planner", "report", "calibrate"},
    "calibrate": {"ingestion", "cli", "testing", "planner", "report"},
    "report": {"store", "collection", "backends", "ingestion", "cli", "testing"},
    "collection": {"store", "ingestion", "cli", "testing", "integrations", "report"},
    "store": {"ingestion", "cli", "testing", "integrations", "report"},
    "aio": {"ingestion", "cli", "testing", "integrations", "report", "backends"},
    "stopping": ABOVE | PURE - {"errors"},
    "ingestion": {"cli", "testing"},
    "integrations": {"backends", "ingestion", "cli", "testing", "report"},
    "reembedding": {"backends", "cli", "testing", "integrations", "report", "aio"},
    "cli": {"testing"},
    "testing": {"cli", "ingestion"},
}


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere in it, as absolute names."""
    here = name_of(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT.parent / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            found |= {whole} | {f"{whole}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "vecbridge"}


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if "." in name}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_what_stands_above_it(path: Path) -> None:
    inside = name_of(path).split(".")
    part = inside[1] if len(inside) > 1 else ""
    assert parts(imports(path)) & NEVER.get(part, set()) == set()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_command_line_imports_the_command_line(path: Path) -> None:
    if path.parts[1] not in ("cli", "__main__.py"):
        assert "cli" not in parts(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_the_async_front(path: Path) -> None:
    assert "aio" not in parts(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_backends_do_not_know_each_other(path: Path) -> None:
    if (
        path.parts[1] != "backends"
        or len(path.parts) < 3
        or (path.name == "__init__.py" and len(path.parts) == 3)
    ):
        return
    own = path.parts[2].removesuffix(".py")
    # the embedded server is started here and spoken to as any other PostgreSQL
    friends = {own} | ({"postgres", "cluster"} if own == "embedded" else set())
    others = {name.split(".")[2] for name in imports(path) if name.startswith("vecbridge.backends.")}
    known = {entry.name.removesuffix(".py") for entry in (ROOT / "backends").iterdir()}
    assert others & known <= friends


def test_every_part_has_its_place_in_the_picture() -> None:
    there = {path.parts[1].removesuffix(".py") for path in MODULES} - {"__init__", "__main__"}
    assert there - PURE - ABOVE - {"checks", "data"} == set()


def loaded(code: str) -> set[str]:
    """Top-level modules that are loaded after running `code` in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


HEAVY = {
    "numpy",
    "scipy",
    "sklearn",
    "psycopg",
    "psycopg_pool",
    "pgvector",
    "qdrant_client",
    "httpx",
    "typer",
    "rich",
}


@pytest.mark.parametrize(
    "code",
    [
        "import vecbridge",
        "import vecbridge; vecbridge.plan(3584, rows=1_000_000).explain()",
        "import vecbridge; vecbridge.Layout; vecbridge.Space; vecbridge.VecbridgeError; dir(vecbridge)",
    ],
)
def test_planning_loads_neither_numpy_nor_a_driver(code: str) -> None:
    assert loaded(code) & HEAVY == set()


def test_a_flat_store_loads_no_driver(tmp_path: Path) -> None:
    drivers = HEAVY - {"numpy", "scipy", "sklearn"}
    assert loaded(f"import vecbridge; vecbridge.connect('flat:{tmp_path}').close()") & drivers == set()


def test_the_async_front_loads_no_driver() -> None:
    assert loaded("import vecbridge.aio") & HEAVY - {"numpy", "scipy", "sklearn"} == set()


def test_every_name_in_all_is_there() -> None:
    assert list(vecbridge.__all__) == sorted(set(vecbridge.__all__))
    for name in vecbridge.__all__:
        assert getattr(vecbridge, name) is not None
    assert set(vecbridge.__all__) <= set(dir(vecbridge))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vecbridge.nothing  # noqa: B018 - the attempt is the test


def modules() -> list[ModuleType]:
    return [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(vecbridge.__path__, "vecbridge.")
        if not found.name.rpartition(".")[2].startswith("_")
    ]


def public(module: ModuleType) -> list[tuple[str, object]]:
    """Functions and classes that a module defines for others, and the methods of the classes."""
    found: list[tuple[str, object]] = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            found.append((name, value))
            found += [
                (f"{name}.{method}", inner)
                for method, inner in vars(value).items()
                if not method.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property))
            ]
        elif inspect.isfunction(value):
            found.append((name, value))
    return found


# what these do is said once, in the Protocols
SAID = {name for protocol in (Backend, Table, Engine) for name in vars(protocol) if not name.startswith("_")}


def test_everything_public_says_what_it_is() -> None:
    silent = [module.__name__ for module in modules() if not module.__doc__]
    for module in modules():
        for name, value in public(module):
            method = name.partition(".")[2]
            # a test's name is its sentence
            if method.startswith("test_") or (
                module.__name__.startswith("vecbridge.backends.") and method in SAID
            ):
                continue
            if not inspect.getdoc(value):
                silent.append(f"{module.__name__}.{name}")
    assert silent == []


def inherited(module: ModuleType, name: str) -> bool:
    """Whether a base class of another package declares the method, and with it what it takes."""
    owner, _, method = name.partition(".")
    bases = vars(module)[owner].__mro__ if method else ()
    return any(hasattr(base, method) for base in bases if not base.__module__.startswith("vecbridge."))


def test_no_signature_takes_just_anything() -> None:
    loose = []
    for module in modules():
        for name, value in public(module):
            if inspect.isfunction(value):
                kinds = {parameter.kind for parameter in inspect.signature(value).parameters.values()}
                if inspect.Parameter.VAR_KEYWORD in kinds and not inherited(module, name):
                    loose.append(f"{module.__name__}.{name}")
    assert loose == []
