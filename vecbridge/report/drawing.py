"""A matplotlib figure as part of a page: SVG that takes its colours and font from the page's style sheet.

matplotlib draws with colours that stand for names; they become CSS variables here, so that one drawing serves
by day, by night and on paper. Text stays text. The same figure gives the same bytes: identifiers are salted
hashes, nothing is dated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

# a page shows the wide drawing, or on a phone the narrow one, so that text keeps a size that can be read
Width: TypeAlias = Literal["wide", "narrow"]

Dashes: TypeAlias = Literal["-", "--", "-.", ":"]
Colour: TypeAlias = Literal["ink", "soft", "grid", "ground", "blue", "orange", "green", "purple"]
# matplotlib wants colours in numbers; these stand for `--ink` and so on of style.css
COLOURS: dict[Colour, str] = {
    "ink": "#010000",
    "soft": "#020000",
    "grid": "#030000",
    "ground": "#040000",
    "blue": "#050000",
    "orange": "#060000",
    "green": "#070000",
    "purple": "#080000",
}
_NAMES = {value: name for name, value in COLOURS.items()}

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
# the font that matplotlib measures with comes with it; browsers' own fonts run narrower
_MEASURED = "DejaVu Sans"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vecbridge",
    "svg.id": None,
    "font.family": [_MEASURED],
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11.5,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 7.0,
}


@contextmanager
def drawing() -> Iterator[None]:
    """A block in which figures are drawn in the page's style, whatever the user's own matplotlibrc says."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many CSS pixels."""
    # svg has 72 units to matplotlib's inch, whatever the dpi; so have labels while they are placed
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def svg(
    figure: Figure, *, name: str, title: str, text: str, marks: Mapping[str, Mapping[str, str]]
) -> Markup:
    """The figure as an <svg> element that can stand in a page beside others.

    `name`: in front of every identifier, unique in the page. `title` and `text`: what it shows, for those who
    do not see it. `marks`: what is known of drawn things by their gid: "title" is shown under the pointer,
    the rest becomes data- attributes.
    """
    out = io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=nothing)
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314 - matplotlib has just written it
    _strip(root)
    for element in root.iter():
        if (gid := element.get("id")) in marks:
            _mark(element, marks[str(gid)])
        _adapt(element, name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    words = ElementTree.Element(f"{{{_SVG}}}desc")
    words.text = text
    root.insert(0, words)
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - a serialiser escaped it


def _strip(root: ElementTree.Element) -> None:
    """Takes out what describes the file, and a style rule that would hold for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _mark(element: ElementTree.Element, known: Mapping[str, str]) -> None:
    for key, value in known.items():
        if key == "title":
            shown = ElementTree.Element(f"{{{_SVG}}}title")
            shown.text = value
            element.insert(0, shown)
        else:
            element.set(f"data-{key}", value)


def _adapt(element: ElementTree.Element, name: str) -> None:
    link = element.attrib.pop(_LINK, None)
    if link is not None:
        element.set("href", link)
    for key in ("id", "href", "clip-path", "style"):
        value = element.get(key)
        if value is None:
            continue
        if key == "id":
            value = f"{name}-{value}"
        elif key == "style":
            value = re.sub(r"#[0-9a-f]{6}", _variable, value).replace(f"'{_MEASURED}'", "var(--font)")
        else:
            value = value.replace("#", f"#{name}-", 1)
        element.set(key, value)


def _variable(found: re.Match[str]) -> str:
    colour = _NAMES.get(found[0])
    return f"var(--{colour})" if colour else found[0]
