"""Pages on disk in a real browser, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package `chromium`
WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@dataclass
class OpenedPage:
    """A page with all its figures drawn.

    Args:
        errors: What the browser reported on its console as an error, or a script did not catch.
        requests: Addresses that it asked for beside its own.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, and end it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, path: Path, width: str = "wide", theme: Literal["light", "dark"] = "light"
) -> Iterator[OpenedPage]:
    """Open a report from disk with the network off, and scroll through it until every figure is drawn."""
    across, down = WIDTHS[width]
    touch = width == "narrow"
    context = browser.new_context(
        viewport={"width": across, "height": down}, color_scheme=theme, offline=True, has_touch=touch, is_mobile=touch
    )
    context.set_default_timeout(120_000)
    seen = OpenedPage(context.new_page())
    seen.page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda asked: seen.requests.append(asked.url))
    seen.page.goto(path.as_uri())
    seen.requests = [url for url in seen.requests if url != path.as_uri() and not url.startswith("data:")]
    for plot in seen.page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    seen.page.evaluate("scrollTo(0, 0)")
    yield seen
    context.close()
