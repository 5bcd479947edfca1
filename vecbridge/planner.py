"""The layout that suits an embedding space, with the reasons: the first candidate without an objection.

`candidates` holds the policy: layouts in order of preference, the most exact first. Limits, budgets and the
recall measured on a sample object, each with a sentence; of several places, `places` chooses one. Nothing
here talks to a server or loads a driver; numpy is loaded to measure a sample, and only then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from . import models, notes
from .budgets import Budget, too_big, too_little, too_slow
from .candidates import Aim, candidates
from .errors import InputError, PlanError
from .evidence import Evidence
from .explain import describe, explain, grouped, human, lasting
from .limits import Limits
from .limits import limits as limits_of
from .places import Other, choose
from .recall import Recall
from .sizes import Estimates, estimate, in_bytes
from .speeds import Speeds
from .types import Layout, Metric, Progress, Space

if TYPE_CHECKING:
    # numpy costs a tenth of a second; planning without a sample does without it
    from numpy.typing import ArrayLike

DEFAULT_ROWS = 100_000
# seconds that one search may take where nobody says how many
LATENCY = 0.1
K = 10
# vectors: of fewer, the tenth that is held out as queries says too little to plan by
WORTHWHILE = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """A layout that was preferred, and the sentence that speaks against it."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout chosen for a space, and why; `print(plan.explain())` shows it as text.

    `refused`: the layouts that would have been preferred, in order, each with its reason. `notes`: what was
    assumed, and what to watch. `target`: the recall@k that was asked for; `evidence`: what was measured on a
    sample. Where several places were planned for, `place` names the one that was chosen, `here` says why, in
    sentences, and `others` why not the rest.
    """

    space: Space
    rows: int
    layout: Layout
    limits: Limits = field(repr=False)
    refused: tuple[Refusal, ...]
    estimates: Estimates
    notes: tuple[str, ...]
    target: float | None = None
    evidence: Evidence | None = field(default=None, repr=False)
    place: str = ""
    here: tuple[str, ...] = ()
    others: tuple[Other, ...] = ()

    @property
    def expected(self) -> Recall | None:
        """The recall@k that the chosen layout's representation should find, by the evidence; None without.

        The loss of a graph, or of lists that are not read, is not part of it: tuning takes care of that.
        """
        return None if self.evidence is None else self.evidence.recall(self.layout, rows=self.rows)

    def describe(self) -> str:
        """The chosen layout in a few words."""
        return describe(self.layout, self.space.dim)

    def explain(self) -> str:
        """The plan as text for a terminal: choice, reasons, sizes, assumptions, refusals; 88 columns."""
        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan ready for JSON; `chosen` is the layout in words."""
        return {
            "space": {**asdict(self.space), "nested": list(self.space.nested)},
            "rows": self.rows,
            "backend": self.limits.backend,
            "version": self.limits.version,
            "chosen": self.describe(),
            "layout": self.layout.to_dict(),
            "refused": [{"layout": one.layout.to_dict(), "reason": one.reason} for one in self.refused],
            "estimates": asdict(self.estimates),
            "notes": list(self.notes),
            "recall": self.target,
            "expected": None if (one := self.expected) is None else asdict(one),
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "nodes": self.limits.nodes,
            "place": self.place,
            "here": list(self.here),
            "others": [one.to_dict(self.space.dim) for one in self.others],
        }


class Wishes(TypedDict, total=False):
    """What a plan shall reckon with; see `plan`."""

    rows: int
    metric: Metric
    model: str | None
    nested: Sequence[int] | None
    memory: int | str | None
    disk: int | str | None
    latency: float | None
    nodes: int | None
    recall: float | None
    k: int
    sample: ArrayLike | Evidence | None
    queries: ArrayLike | None
    seed: int
    progress: Progress | None


def plan(
    dim: int | None = None,
    *,
    rows: int = DEFAULT_ROWS,
    metric: Metric = "cosine",
    on: str | Limits | Sequence[str | Limits] = "pgvector",
    model: str | None = None,
    nested: Sequence[int] | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float | None = None,
    nodes: int | None = None,
    recall: float | None = None,
    k: int = K,
    sample: ArrayLike | Evidence | None = None,
    queries: ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The best layout for `rows` vectors of `dim` dimensions, with the reasons. Needs no server.

    `on`: "flat", "pgvector", "qdrant", "edge", a version such as "pgvector@0.6.2", the Limits of a server, or
    several of them in order of preference, of which the plan then chooses one. `nested`: Matryoshka sizes of
    the vectors; None takes those known for `model`. `memory` (for the index, while building and serving) and
    `disk` (for table and index), of one machine: bytes, or text such as "16GB" or "512MiB"; None sets no
    bound. `latency`: seconds that one search may take, 0.1 if not given; a store without indexes only notes
    it, unless there are others. `nodes`: machines of a Qdrant cluster. `sample`: some of the vectors, float
    (n, dim), on which the recall@`k` of every representation is measured, or what `measure` made of them;
    `queries`, float (m, dim), else vectors held out of the sample, chosen by `seed`. `recall`: what is wanted
    of recall@k. With a sample, layouts that find less are refused; where nothing approximate finds enough, an
    exact scan that takes longer than 0.1 s is the answer. `progress` hears of the stage "measure". Raises
    InputError for arguments that make no sense, PlanError where no layout fits.
    """
    wanted = [on] if isinstance(on, str | Limits) else list(on)
    if not wanted:
        raise InputError("expected at least one backend to plan for, got none")
    known = [limits_of(one) if isinstance(one, str) else one for one in wanted]
    places = [(f"{limits.backend} {limits.version}", limits) for limits in known]
    wishes: Wishes = {
        "rows": rows,
        "metric": metric,
        "model": model,
        "nested": nested,
        "memory": memory,
        "disk": disk,
        "latency": latency,
        "nodes": nodes,
        "recall": recall,
        "k": k,
        "sample": sample,
        "queries": queries,
        "seed": seed,
        "progress": progress,
    }
    return plan_places(dim, places=places, wishes=wishes)[1]


def plan_places(
    dim: int | None,
    *,
    places: Sequence[tuple[str, Limits]],
    wishes: Wishes,
    speeds: Sequence[Speeds | None] | None = None,
) -> tuple[int, Plan]:
    """Which of `places` suits best, counted from 0, and the plan for it, which says why not the others.

    `places`: the name that a place has in the explanation, as its URL, and its limits; the one that is liked
    best comes first. `speeds`: what was measured on each, in this order, None where nothing was. The rest,
    and what is raised, as for `plan`.
    """
    nested, latency = wishes.get("nested"), wishes.get("latency")
    rows = whole_number(wishes.get("rows", DEFAULT_ROWS), "rows", 0)
    target = share(wishes.get("recall"))
    if latency is not None and (
        isinstance(latency, bool) or not isinstance(latency, int | float) or not 0 < latency < math.inf
    ):
        raise InputError(f"expected a latency above 0, in seconds, got {latency!r}")
    budget = Budget(
        _bytes(wishes.get("memory"), "memory"),
        _bytes(wishes.get("disk"), "disk"),
        LATENCY if latency is None else float(latency),
        latency is not None,
    )
    sample = wishes.get("sample")
    space = make_space(
        _dim(dim, sample),
        metric=wishes.get("metric", "cosine"),
        model=wishes.get("model"),
        nested=nested,
    )
    places = clustered(places, wishes.get("nodes"))
    evidence = None
    if sample is not None:
        evidence = measured(
            sample,
            space,
            rows=rows,
            queries=wishes.get("queries"),
            k=wishes.get("k", K),
            seed=wishes.get("seed", 0),
            progress=wishes.get("progress"),
        )
    elif wishes.get("queries") is not None:
        raise InputError("expected a sample beside the queries: they are searched for in it")
    about = tuple(notes.about_model(space, asked=nested is None))
    outcomes = [
        (name, _plan(space, rows, limits, speed, budget, about, target, evidence))
        for (name, limits), speed in zip(places, speeds or [None] * len(places), strict=True)
    ]
    chosen = choose(outcomes, latency=budget.latency)
    if chosen is not None:
        return chosen
    what = f"no layout for {rows:,} vectors of {space.dim:,} dimensions"
    reasons = []
    for name, refused in outcomes:
        assert isinstance(refused, tuple)  # else it would have been chosen
        lines = "\n".join(f"- {line}" for line in grouped(refused))
        reasons.append(f"on {name} fits; refused were:\n{lines}")
    raise PlanError(f"{what} " + "\nand none ".join(reasons))


def measured(
    sample: ArrayLike | Evidence,
    space: Space,
    *,
    rows: int | None = None,
    queries: ArrayLike | None = None,
    k: int = K,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """What the sample says about representations of vectors in this space. Raises InputError."""
    if isinstance(sample, Evidence):
        if queries is not None:
            raise InputError("expected queries where the sample is measured; this evidence is there already")
        evidence = sample
    else:
        from .measuring import measure

        evidence = measure(
            sample,
            metric=space.metric,
            rows=rows,
            nested=space.nested,
            queries=queries,
            k=whole_number(k, "k", 1),
            seed=seed,
            progress=progress,
        )
    if evidence.dim != space.dim:
        raise InputError(f"expected a sample of vectors of {space.dim:,} dimensions, got {evidence.dim:,}")
    return evidence


def _dim(dim: int | None, sample: ArrayLike | Evidence | None) -> int:
    if dim is not None:
        return dim
    if isinstance(sample, Evidence):
        return sample.dim
    if sample is None:
        raise InputError("expected the number of dimensions, or a sample of the vectors; got neither")
    import numpy as np

    shape = np.shape(sample)
    if len(shape) != 2:
        raise InputError(f"expected a sample of shape (n, dim), got {shape}")
    return int(shape[1])


def share(recall: float | None) -> float | None:
    """A recall that is wanted, if it is one. Raises InputError."""
    if recall is None:
        return None
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
        raise InputError(f"expected a recall above 0, up to 1, as 0.95; got {recall!r}")
    return float(recall)


def clustered(places: Sequence[tuple[str, Limits]], nodes: int | None) -> list[tuple[str, Limits]]:
    """The places with a Qdrant of so many machines; as they are for None. Raises InputError without one."""
    if nodes is None:
        return list(places)
    nodes = whole_number(nodes, "nodes", 1)
    if nodes > 1 and not any(limits.backend == "qdrant" for _, limits in places):
        named = ", ".join(limits.backend for _, limits in places)
        raise InputError(
            f"expected qdrant among the backends for a cluster of {nodes:,} nodes, got {named}: the others "
            f"keep a collection on one machine"
        )
    return [
        (name, replace(limits, nodes=nodes) if limits.backend == "qdrant" else limits)
        for name, limits in places
    ]


def _plan(
    space: Space,
    rows: int,
    limits: Limits,
    speeds: Speeds | None,
    budget: Budget,
    about: tuple[str, ...],
    target: float | None,
    evidence: Evidence | None,
) -> Plan | tuple[Refusal, ...]:
    """The first candidate that nothing speaks against in one place, or all refusals."""
    if evidence is not None and limits.has("asymmetric binary quantization"):
        evidence = evidence.asymmetric()
    aim = None if target is None or evidence is None else Aim(target, evidence, rows)
    refused: list[Refusal] = []
    slow: list[tuple[bool, float, Layout]] = []

    def estimated(layout: Layout) -> Estimates:
        return estimate(space, layout, rows=rows, limits=limits, memory=budget.memory, speeds=speeds)

    def made(layout: Layout, *first: str) -> Plan:
        costs = estimated(layout)
        others = tuple(one for one in refused if one.layout != layout)
        proved = _proved(space, layout, aim)
        said = (*first, *about, *notes.notes(space, layout, rows, limits, budget, costs))
        said += tuple(notes.about_recall(space, layout, rows, target, evidence))
        return Plan(proved, rows, layout, limits, others, costs, said, target, evidence)

    for layout in candidates(space, rows, limits, aim=aim):
        reason = limits.objection(_proved(space, layout, aim), layout)
        if reason is None:
            costs = estimated(layout)
            reason = too_big(layout, limits, budget, costs) or too_little(layout, aim)
            if reason is None:
                reason = too_slow(space, layout, rows, limits, budget, costs)
                if reason is None:
                    return made(layout)
                gives_up = layout.shorten is not None or layout.element != "float32"
                slow.append((gives_up, costs.scan_seconds, layout))
        refused.append(Refusal(layout, reason))
    if aim is None or not slow or budget.firm:
        return tuple(refused)
    # recall was asked for, the time a search may take is only the default: the fastest that finds enough, and
    # of those that keep the whole vectors, if there are any
    _, seconds, layout = min(slow, key=operator.itemgetter(0, 1))
    within = "" if budget.memory is None else f" and {human(budget.memory)} of memory"
    what = "an exact scan" if layout.index is None and layout.shorten is None else "the fastest that does"
    limit = f"{lasting(budget.latency)} a search{within}"
    return made(
        layout,
        f"nothing finds {aim.target:g} of the nearest within {limit}; {what} takes about {lasting(seconds)}",
    )


def _proved(space: Space, layout: Layout, aim: Aim | None) -> Space:
    """The space with the prefix of a layout among its nested sizes, where evidence is what judges it."""
    if aim is None:
        return space
    shortened = (layout.shorten, layout.index.shorten if layout.index else None)
    sizes = {one.dim for one in shortened if one is not None and one.method == "truncate"}
    return replace(space, nested=tuple(sorted({*space.nested, *sizes}, reverse=True)))


def make_space(
    dim: int,
    *,
    metric: Metric = "cosine",
    model: str | None = None,
    nested: Sequence[int] | None = None,
) -> Space:
    """A Space, if its parts make sense; `nested` None takes the Matryoshka sizes known for `model`.

    Raises InputError.
    """
    dim = whole_number(dim, "dim", 1)
    if metric not in get_args(Metric):
        raise InputError(f"expected the metric 'cosine', 'ip' or 'l2', got {metric!r}")
    if model is not None and not isinstance(model, str):
        raise InputError(f"expected the model's name as text, got {model!r}")
    if nested is None:
        return Space(dim, metric, models.nested_sizes(model, dim=dim), model)
    given = {whole_number(size, "a nested size", 1) for size in nested}
    return Space(dim, metric, tuple(sorted((size for size in given if size < dim), reverse=True)), model)


def whole_number(value: object, name: str, least: int) -> int:
    """`value` as an int of at least `least`. Raises InputError, which calls it `name`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # anything may come; TypeError is caught
    except TypeError:
        raise InputError(f"expected {name} as a whole number, got {value!r}") from None
    if number < least:
        raise InputError(f"expected {name} of at least {least}, got {number}")
    return number


def _bytes(value: int | str | None, name: str) -> int | None:
    if value is None or isinstance(value, str):
        return None if value is None else in_bytes(value, name)
    return in_bytes(whole_number(value, name, 0), name)
