"""The catalogue of models, and one of them with what every backend does with it, as people read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..explain import describe
from . import output, render

if TYPE_CHECKING:
    from ..models import Model
    from .models import Backend, Fit

_UNIT = {True: "yes", False: "no", None: ""}
# the types of pgvector that hold an element
_TYPES = {"float32": "vector", "float16": "halfvec", "bit": "bit"}


def listing(models: Sequence[Model]) -> None:
    """All models, a row each."""
    # little space between columns: the longest names have 39 letters, a narrow terminal has 80 columns
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("model", style="cyan", overflow="fold")
    table.add_column("dims", justify="right", no_wrap=True)
    table.add_column("Matryoshka", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("prefix", no_wrap=True)
    for model in models:
        table.add_row(
            Text(model.name),
            f"{model.dim:,}",
            _sizes(model.nested),
            f"{model.max_tokens:,}" if model.max_tokens else "",
            _UNIT[model.normalised],
            _prefixes(model),
        )
    out = render.console()
    out.print(table)
    out.print()
    out.print(
        Text(
            "unit: whether the vectors come with unit length; empty where that depends on the server. "
            "prefix: whether questions, or questions and documents, begin with something. "
            "vecbridge models NAME shows all about one, and which indexes take it.",
            style="dim",
        )
    )


def _sizes(nested: Sequence[int]) -> str:
    """The longest and the shortest size."""
    ends = [f"{size:,}" for size in (*nested[:1], *nested[1:][-1:])]
    return (" … " if len(nested) > 2 else ", ").join(ends)


def _prefixes(model: Model) -> str:
    if model.query_prefix and model.document_prefix:
        return "both"
    return "query" if model.query_prefix else "document" if model.document_prefix else ""


def one(model: Model, aliases: Sequence[str], backends: Sequence[Backend]) -> None:
    """Everything about one model."""
    depends = "depends on the server"
    rows = [
        ("dimensions", f"{model.dim:,}"),
        ("Matryoshka sizes", ", ".join(f"{size:,}" for size in model.nested) or "none"),
        ("longest text", f"{model.max_tokens:,} tokens" if model.max_tokens else "no limit known"),
        ("unit length", _UNIT[model.normalised] or depends),
        ("before questions", _verbatim(model.query_prefix)),
        ("before documents", _verbatim(model.document_prefix)),
    ]
    if aliases:
        rows.append(("also called", ", ".join(aliases)))
    if model.note:
        rows.append(("note", model.note))
    rows.append(("source", model.source))
    out = render.console()
    out.print(Text(model.name, style="bold"))
    out.print(_grid(rows))
    for backend in backends:
        out.print()
        out.print(Text(f"{backend.name} {backend.version}", style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(max_width=28)
        table.add_column()
        for _, group in groupby(backend.fits, key=_alike):
            table.add_row(*_fit(backend.name, list(group)))
        out.print(Padding(table, (0, 0, 0, 1)))
        plan = f"plan for {backend.plan.rows:,}: {describe(backend.plan.layout, model.dim)}"
        out.print(Padding(Text(plan, style="cyan"), (0, 0, 0, 1)))


def _verbatim(prefix: str) -> str:
    """The prefix in quotes, because it may end with a space, and with \\n for a new line."""
    return json.dumps(prefix, ensure_ascii=False) if prefix else "nothing"


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(output.safe(value)))
    return table


def _alike(fit: Fit) -> tuple[str, int, str | None]:
    """What the index types of one row have in common."""
    return fit.index.rpartition(" ")[0], fit.largest, fit.objection


def _fit(backend: str, fits: Sequence[Fit]) -> tuple[Text, Text, Text]:
    """One row: yes or no, the index types, and how far they go or why not."""
    first, kind = fits[0], fits[0].index.rpartition(" ")[0]
    elements = [fit.index.rpartition(" ")[2] for fit in fits]
    if backend == "pgvector":
        elements = [_TYPES[element] for element in elements]
    what = Text(f"{kind} {', '.join(elements)}")
    if first.objection is None:
        return Text("yes", style="green"), what, Text(f"up to {first.largest:,} dimensions", style="dim")
    why = Text(output.safe(first.objection), style="yellow")
    if first.prefix:
        why.append(f"; it takes the Matryoshka prefix of {first.prefix:,}", style="green")
    return Text("no", style="red"), what, why
