"""A browser for tests: Debian's chromium, driven by playwright, that may ask nobody but the runner."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

GUARD_MS = 30_000  # against a test that hangs; nothing is expected to take so long
expect.set_options(timeout=GUARD_MS)

QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def chromium() -> str:
    """Where chromium is. AssertionError with what to do when it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise AssertionError("the playground is tested in chromium, which is not installed: apt-get install -y chromium")
    return found


@contextmanager
def browsing(*arguments: str) -> Iterator[Browser]:
    """A browser with a profile of its own, started with these arguments beside ours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*QUIET, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def looking_at(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page at `url`, in a window with nothing kept. Its errors, and requests to others, fail the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    asked: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.set_default_timeout(GUARD_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None)
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    host = urlsplit(url).netloc
    strange = [one for one in asked if urlsplit(one).netloc != host and not one.startswith(("data:", "blob:"))]
    assert not strange, f"the page asked others: {strange}"
    assert not errors, errors


# --- what a person does on the page


def run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()


def field(page: Page, name: str) -> str:
    """A selector for all of one field: its label, its widget, its fault."""
    return f'.card.in .field[data-name="{name}"]'


def ended(page: Page, text: str | re.Pattern[str] = "Done") -> None:
    expect(page.locator(".run-status")).to_have_text(text)
