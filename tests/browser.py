"""A real Chromium for tests: Debian's, without a window, with a fresh profile and no way to the network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, sync_playwright

REQUIRED = os.environ.get("VECBRIDGE_REQUIRE_SERVERS") == "1"
PHONE, DESK = (360, 740), (1280, 900)

# whatever a browser asks for on its own account goes to a proxy that is not there
_ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that runs as long as the block; without one, tests are skipped, or fail if they must run."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "Chromium is not there: apt-get install chromium"
        if REQUIRED:
            pytest.fail(f"{reason} (VECBRIDGE_REQUIRE_SERVERS=1)")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # root has no sandbox; playwright makes a profile of its own and removes it
        browser = playwright.chromium.launch(
            executable_path=path, args=_ARGUMENTS, chromium_sandbox=os.geteuid() != 0, timeout=120_000
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Shown:
    """A page in the browser. `said`: what it wrote to the console, errors included.

    `asked`: every URL that it wanted beside its own file; `refused`: those it did not get, and why.
    """

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@contextmanager
def showing(
    browser: Browser,
    path: Path,
    *,
    size: tuple[int, int] = DESK,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Shown]:
    """The file at `path` in a window of so many CSS pixels, by day or by night."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=2
    )
    try:
        shown = Shown(context.new_page())

        def said(message: ConsoleMessage) -> None:
            shown.said.append(f"{message.type}: {message.text}")

        def failed(error: Error) -> None:
            shown.said.append(f"error: {error}")

        def asked(request: Request) -> None:
            if request.url != path.as_uri():
                shown.asked.append(request.url)

        def refused(request: Request) -> None:
            shown.refused[request.url] = request.failure or ""

        shown.page.on("console", said)
        shown.page.on("requestfailed", refused)
        shown.page.on("pageerror", failed)
        shown.page.on("request", asked)
        shown.page.set_default_timeout(60_000)
        shown.page.goto(path.as_uri(), wait_until="load")
        yield shown
    finally:
        context.close()
