"""models: the catalogue of embedding models, and what each backend does with one of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import typer

from ..errors import InputError
from . import options, output

if TYPE_CHECKING:
    from ..limits import Limits
    from ..models import Model
    from ..planner import Plan
    from ..types import Element, Space

Stored: TypeAlias = Literal["float32", "float16"]
Kind: TypeAlias = Literal["hnsw", "ivfflat"]

# whole vectors first, as everywhere
_STORED: tuple[Stored, ...] = ("float32", "float16")
# as `limits` knows them, those with indexes first
BACKENDS = ("pgvector", "qdrant", "edge", "flat")
ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether an index type takes the vectors of a model.

    `index`: its kind and element, as in "hnsw float16" or "exact scan float32". `stored`: the element that
    the vectors are stored as for it. `largest`: the most dimensions that it takes. `objection`: why it does
    not take these, None if it does. `prefix`: the longest Matryoshka prefix that it takes where it does not
    take the whole vectors.
    """

    index: str
    stored: Element
    largest: int
    objection: str | None
    prefix: int | None


@dataclass(frozen=True, slots=True)
class Backend:
    """What one backend does with a model: the index types, and the plan for `ROWS` vectors."""

    name: str
    version: str
    fits: tuple[Fit, ...]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; of the plan what was chosen."""
        from ..explain import describe

        made = self.plan
        return {
            "backend": self.name,
            "version": self.version,
            "indexes": [asdict(fit) | {"fits": fit.objection is None} for fit in self.fits],
            "plan": {
                "rows": made.rows,
                "chosen": describe(made.layout, made.space.dim),
                "layout": made.layout.to_dict(),
            },
        }


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Show all about this model.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the embedding models that vecbridge knows; with NAME, show one and which indexes take it."""
    from .. import models as catalogue

    if name is None:
        if as_json:
            output.write_json({"models": [_facts(model) for model in catalogue.MODELS]})
            return
        from . import render_models

        render_models.listing(catalogue.MODELS)
        return
    model = catalogue.find(name)
    if model is None:
        near = catalogue.near(name)
        like = f"; names like it are {', '.join(near)}" if near else ""
        raise InputError(
            f"expected a model of the catalogue, got {name[:60]!r}{like}; vecbridge models lists them all, "
            f"and vecbridge plan --dim N works for any model"
        )
    backends = [backend(one, model) for one in BACKENDS]
    if as_json:
        output.write_json(_facts(model) | {"backends": [one.to_dict() for one in backends]})
        return
    from . import render_models

    render_models.one(model, catalogue.aliases(model), backends)


def _facts(model: Model) -> dict[str, Any]:
    from ..models import aliases

    return {**asdict(model), "nested": list(model.nested), "aliases": list(aliases(model))}


def backend(on: str, model: Model) -> Backend:
    """What a backend does with the vectors of a model, by its limits."""
    from ..limits import limits
    from ..planner import make_space, plan

    known, space = limits(on), make_space(model.dim, model=model.name)
    fits = [_scan(known, space, element) for element in _STORED if element in known.stored]
    for key in known.indexed:
        kind, element = key.split()
        fits.append(_index(known, space, cast("Kind", kind), cast("Element", element)))
    made = plan(model.dim, rows=ROWS, on=known, model=model.name)
    return Backend(known.backend, known.version, tuple(fits), made)


def _scan(known: Limits, space: Space, element: Stored) -> Fit:
    from ..types import Layout

    reason = known.objection(space, Layout(element))
    return Fit(f"exact scan {element}", element, known.stored[element].high, reason, None)


def _index(known: Limits, space: Space, kind: Kind, element: Element) -> Fit:
    """An index on vectors that are stored whole; on halved ones where the index holds the stored vectors."""
    from ..types import Index, Layout, Shorten

    reason, stored = None, _STORED[0]
    for stored in _STORED if element == "float16" else _STORED[:1]:
        reason = known.objection(space, Layout(stored, index=Index(kind, element)))
        if reason is None:
            break
    shortened = (
        size
        for size in space.nested
        if known.objection(space, Layout(stored, index=Index(kind, element, Shorten("truncate", size))))
        is None
    )
    return Fit(
        f"{kind} {element}",
        stored,
        known.indexed[f"{kind} {element}"].high,
        reason,
        None if reason is None else next(shortened, None),
    )
