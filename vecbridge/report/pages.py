"""Templates filled in: everything that came from outside is escaped there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .._version import __version__
from .files import GENERATOR


@dataclass(frozen=True, slots=True)
class Fact:
    """A name, a value, and a remark in smaller letters. `mood`: "good", "bad", or empty."""

    name: str
    value: str
    remark: str = ""
    mood: str = ""


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("vecbridge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(template: str, values: Mapping[str, object]) -> str:
    """The page that `template` makes of these values, as HTML."""
    style = files("vecbridge.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    whole = _templates().get_template(template)
    return whole.render(
        {
            **values,
            "generator": GENERATOR,
            "version": __version__,
            # ours, and no part of it comes from outside
            "style": Markup(style),  # noqa: S704 - a file of this package
        }
    )
