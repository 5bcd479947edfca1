"""How what another library made becomes a collection where it lies: read, planned, and described.

It is a table of PostgreSQL or a collection of a Qdrant server; both are called a table here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

from . import planner
from .backends import Adopting, Backend, Found, Wanted
from .errors import Forbidden, PlanError
from .explain import describe, human
from .limits import Limits
from .manifest import Manifest
from .planner import Plan, Wishes
from .sizes import estimate
from .speeds import Speeds
from .types import Layout

__all__ = ["Adoption", "adoption", "limits"]

T = TypeVar("T")

# stored vectors on which an index is planned
_SAMPLE = 20_000


class Home(Protocol):
    """The place where the table lies."""

    @property
    def url(self) -> str:
        """Where this is, without password."""

    @property
    def limits(self) -> Limits:
        """What can be held and indexed there."""

    @property
    def speeds(self) -> Speeds | None:
        """How fast it is, where that was measured."""

    def ask(self, question: Callable[[Backend], T]) -> T:
        """What the question returns when it is put to the backend."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """How a table would become a collection; `Store.adopt` carries it out.

    `statements`: all that would be run, or sent to Qdrant, that of the index last. `notes`: what was found
    and assumed, and what the index serves, in sentences. `plan`: for the index, None where one of the owner's
    serves, and in Qdrant.
    """

    url: str
    manifest: Manifest
    rows: int
    statements: tuple[str, ...]
    notes: tuple[str, ...]
    plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        """The adoption ready for JSON; `chosen` is the layout in words."""
        manifest = self.manifest
        assert manifest.adopted is not None
        return {
            "url": self.url,
            "collection": manifest.name,
            "adopted": asdict(manifest.adopted),
            "records": self.rows,
            "space": {**asdict(manifest.space), "nested": list(manifest.space.nested)},
            "layout": manifest.layout.to_dict(),
            "chosen": describe(manifest.layout, manifest.space.dim),
            "statements": list(self.statements),
            "notes": list(self.notes),
        }


def adoption(place: Home, wanted: Wanted, wishes: Wishes, *, build_index: bool) -> Adoption:
    """How the table would become a collection; changes nothing. Raises as `Store.adoption` does."""
    found = place.ask(lambda backend: _adopting(backend).adoptable(wanted))
    target = planner.share(wishes.get("recall"))
    space = planner.make_space(
        found.dim, metric=found.metric, model=wishes.get("model"), nested=wishes.get("nested")
    )
    manifest = Manifest(
        found.name,
        space,
        Layout(found.element),
        found.rows,
        recall=target,
        adopted=found.adopted,
    )
    plan: Plan | None = None
    said: tuple[str, ...] = ()
    if found.layout is not None:
        manifest = replace(manifest, layout=found.layout)
    else:
        plan, said = _planned(place, found, manifest, {**wishes, "recall": target})
        manifest = replace(manifest, layout=plan.layout, space=plan.space)
        if found.no_index and plan.layout.index is not None:
            if build_index:
                raise Forbidden(
                    f"{found.no_index}; the plan is {plan.describe()}. Let one adopt it who may, or adopt it "
                    f"without an index (build_index=False, --no-index): searches are exact then"
                )
            manifest, plan = replace(manifest, layout=Layout(found.element)), None
    statements, about = place.ask(
        lambda backend: (
            _adopting(backend).adopting(manifest, rows=found.rows, build_index=build_index),
            _adopting(backend).about_index(manifest, found.served),
        )
    )
    notes = (_read(found), *found.notes, *said, about)
    return Adoption(place.url, manifest, found.rows, tuple(statements), notes, plan)


def limits(known: Limits, manifest: Manifest) -> Limits:
    """What a collection's table can have, where that is another's: its vectors as they are, and an index."""
    if manifest.adopted is None:
        return known
    # no page: there is no choice of where a vector lies
    return replace(known, fixed=manifest.layout.element, page=0)


def _adopting(backend: Backend) -> Adopting:
    assert isinstance(backend, Adopting)
    return backend


def _planned(place: Home, found: Found, manifest: Manifest, wishes: Wishes) -> tuple[Plan, tuple[str, ...]]:
    """The plan for an index, and what to say of it."""
    known = limits(place.limits, manifest)
    space = manifest.space
    wishes = {**wishes, "rows": found.rows, "metric": space.metric}
    if wishes.get("recall") is not None and found.rows >= planner.WORTHWHILE:
        seed = wishes.get("seed", 0)
        batch = place.ask(lambda backend: _adopting(backend).peek(manifest).sample(_SAMPLE, seed=seed))
        wishes = {**wishes, "sample": batch.vectors}
    try:
        _, plan = planner.plan_places(
            space.dim, places=[(place.url, known)], wishes=wishes, speeds=[place.speeds]
        )
    except PlanError as error:
        raise PlanError(f"{error}\nA copy could have any layout: see vecbridge copy") from error
    layout, index = plan.layout, plan.layout.index
    budget = wishes.get("memory") is not None or wishes.get("disk") is not None
    whole = index is not None and index.shorten is None and index.element == "float16"
    if index is None or found.adopted.free or found.element == "float16" or not whole or budget:
        return plan, ()
    # an index on the column itself is what the owner's own queries can use, too
    other = replace(layout, index=replace(index, element="float32"), oversample=1)
    if known.objection(space, other) is not None:
        return plan, ()
    costs = estimate(space, other, rows=found.rows, limits=known, memory=None, speeds=place.speeds)
    return replace(plan, layout=other, estimates=costs), (
        f"in full precision, as the owner's own queries can use that; an index in half precision would take "
        f"{human(plan.estimates.index_bytes)} instead of {human(costs.index_bytes)}",
    )


def _read(found: Found) -> str:
    """Which columns are what, as a sentence."""
    adopted = found.adopted
    where = "" if adopted.part is None else f" where {adopted.part} is {adopted.key}"
    metadata = [name or "the rest" for name in (adopted.metadata, *adopted.fields) if name is not None]
    roles = [
        ("id", adopted.id or "that of the point"),
        ("embedding", adopted.embedding or "the vector without a name"),
        ("document", adopted.document or "nothing"),
        ("metadata", " and ".join(metadata) or "nothing"),
    ]
    return (
        f"{adopted.whole}{where}: {found.rows:,} records of {found.dim:,} dimensions "
        f"({found.metric}); {', '.join(f'{role} is {column}' for role, column in roles)}"
    )
