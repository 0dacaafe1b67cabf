"""The first paint of the playground: how long after a browser asked for it something is seen, and when it can be used.

    python bench/paint.py                 the seed app, 15 loads with an empty cache, then 15 with a full one
    python bench/paint.py --loads 50 --app examples/tokens.py

Needs chromium (apt-get install -y chromium). `paint` is first-contentful-paint as the browser measures it, from the
start of the navigation; `usable` is when the button that runs is there. Medians, and the worst, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).parent.parent
sys.path.insert(0, str(HOUSE / "tests"))

from browsing import browsing  # noqa: E402
from playwright.sync_api import Browser, Page  # noqa: E402
from serving import serving  # noqa: E402

TARGET_MS = 200
MEASURED = """() => new Promise((resolve) => {
    const usable = () => performance.getEntriesByName("usable")[0] ?? (document.querySelector(".run") && performance.mark("usable"));
    const look = () => {
        const paint = performance.getEntriesByName("first-contentful-paint")[0];
        const mark = usable();
        if (paint && mark) resolve({
            paint: paint.startTime, usable: mark.startTime,
            bytes: [performance.getEntriesByType("navigation")[0], ...performance.getEntriesByType("resource")]
                .filter(({ name }) => !/health|metrics|openapi|discovery/.test(name)).reduce((sum, { transferSize }) => sum + transferSize, 0),
        });
        else requestAnimationFrame(look);
    };
    look();
})"""


def loads(browser: Browser, url: str, count: int, *, fresh: bool) -> list[dict[str, float]]:
    """`count` loads of the page; each in a profile of its own when `fresh`, else in one that has seen it."""
    found = []
    page: Page | None = None
    for number in range(count + 1):
        if page is None or fresh:
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
        page.goto(url, wait_until="commit")
        measured = page.evaluate(MEASURED)
        if number:  # the first one wakes the browser, or fills its cache
            found.append(measured)
        if fresh:
            page.context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the playground's first paint.")
    parser.add_argument("--loads", type=int, default=15, help="loads of each kind")
    parser.add_argument("--app", type=Path, default=HOUSE / "examples" / "hello.py", help="the app to serve")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(options.app.resolve(), cwd=Path(folder)) as runner, browsing() as browser:
        print(f"{'cache':8}{'paint':>8}{'worst':>8}{'usable':>8}{'worst':>8}{'KiB':>8}   median of {options.loads} loads, ms")
        for name, fresh in (("empty", True), ("full", False)):
            found = loads(browser, runner.url, options.loads, fresh=fresh)
            paint, usable = ([one[what] for one in found] for what in ("paint", "usable"))
            size = statistics.median(one["bytes"] for one in found) / 1024
            print(f"{name:8}{statistics.median(paint):8.0f}{max(paint):8.0f}{statistics.median(usable):8.0f}{max(usable):8.0f}{size:8.1f}")
        print(f"target: first paint under {TARGET_MS} ms on a quiet machine")


if __name__ == "__main__":
    main()
