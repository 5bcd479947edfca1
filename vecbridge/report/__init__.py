"""Plans and evaluations as pages for people who would rather look: one HTML file each, that needs no network.

    from vecbridge import report

    report.write("plan.html", report.plan_page(plan))

Needs the extra vecbridge[report]: matplotlib draws (as SVG, so that no script is in the page), Jinja2
escapes.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    from .files import write
    from .measured import evaluation_page
    from .planned import plan_page
except ImportError as error:
    if (error.name or "").startswith("vecbridge"):
        raise
    raise MissingExtra(
        f"reports need the package {error.name}; install it with pip install 'vecbridge[report]'"
    ) from error

__all__ = ["evaluation_page", "plan_page", "write"]
