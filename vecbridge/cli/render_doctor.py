"""What the doctor found, as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import output, render

if TYPE_CHECKING:
    from ..types import Finding
    from .doctor import Place

_SIGNS = {"ok": "✓", "warning": "!", "broken": "✗"}
_PLAIN = {"ok": "+", "warning": "!", "broken": "x"}
_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}


def places(found: Sequence[Place], *, broken: int, warnings: int) -> None:
    """A heading and a table for each place, then what it comes to."""
    out = render.console()
    signs = _SIGNS if _writes(out.encoding, "✓✗") else _PLAIN
    for place in found:
        out.print(Text(output.safe(place.url), style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(style="dim", max_width=36, overflow="fold")
        table.add_column(overflow="fold")
        for finding in place.findings:
            sign = Text(signs[finding.level], style=_STYLES[finding.level])
            table.add_row(sign, Text(output.safe(finding.subject)), _said(finding))
        out.print(table)
        out.print()
    if broken or warnings:
        out.print(
            Text(
                f"{_count(broken, 'thing')} broken, {_count(warnings, 'warning')}",
                style=_STYLES["broken" if broken else "warning"],
            )
        )
    else:
        out.print(Text("nothing is wrong", style=_STYLES["ok"]))


def _said(finding: Finding) -> RenderableType:
    found = Text(output.safe(finding.found))
    if not finding.remedy:
        return found
    return Group(found, Padding(Text(output.safe(finding.remedy), style="cyan"), (0, 0, 0, 2)))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _writes(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
