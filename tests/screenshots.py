"""Pictures of the playground for the documentation: `make screenshots` puts them into `docs/`."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from browsing import browsing, looking_at
from PIL import Image
from playwright.sync_api import Page, expect
from serving import HOUSE, serving

APPS = Path(__file__).parent / "apps"
DOCS, EXAMPLES = HOUSE / "docs", HOUSE / "examples"
COLORS = 256  # a page has few; that many keep the files small
LAPTOP = {"viewport": {"width": 1180, "height": 720}}
PHONE = {
    "viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1.5,
    "reduced_motion": "reduce",
}  # fmt: skip

DRAWN = """(selector) => {
    const seen = document.querySelector(selector);
    const copy = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
    const pen = copy.getContext("2d");
    if (!seen?.width) return false;
    pen.drawImage(seen, 0, 0, 64, 64);
    return pen.getImageData(0, 0, 64, 64).data.some((value) => value);
}"""


def keep(page: Page, name: str, *, photo: bool = False) -> None:
    """Write a picture of the page; one with a photo in it keeps all its colors."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = DOCS / f"playground-{name}.png"
    if photo:
        shot.save(file, optimize=True)
    else:
        shot.quantize(COLORS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stdout.write(f"{file.relative_to(HOUSE)}  {file.stat().st_size // 1024} KiB\n")


def done(page: Page) -> None:
    expect(page.locator(".run-status")).to_have_text("Done")
    page.mouse.move(0, 0)
    page.evaluate("() => document.activeElement.blur()")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        with serving(EXAMPLES / "tokens.py", cwd=Path(folder)) as runner:
            with looking_at(browser, f"{runner.url}/#endpoint=/stream", **LAPTOP, color_scheme="dark") as page:
                page.get_by_label("Length", exact=True).fill("100000")
                page.get_by_label("Temperature", exact=True).fill("0.8")
                page.get_by_role("button", name="Run", exact=True).click()
                expect(page.locator(".text.streaming")).to_contain_text("tide")
                expect(page.locator(".gauge").first).to_have_text("1 of 1 running")
                keep(page, "stream")
                page.get_by_role("button", name="Stop").click()
            with looking_at(browser, f"{runner.url}/#endpoint=/stream", **PHONE) as page:
                page.get_by_role("button", name="Run", exact=True).click()
                done(page)
                page.evaluate("() => scrollTo(0, 0)")
                keep(page, "phone")
            with looking_at(browser, f"{runner.url}/", **LAPTOP) as page:
                page.get_by_label("Temperature", exact=True).fill("9")
                page.get_by_role("button", name="Run", exact=True).click()
                expect(page.locator(".run-status")).to_have_text("Failed, 422")
                page.get_by_role("tab", name="Code").click()
                keep(page, "fault")
        with (
            serving(EXAMPLES / "portrait.py", cwd=Path(folder)) as runner,
            looking_at(browser, runner.url, **LAPTOP) as page,
        ):
            page.locator("input[type=file]").set_input_files(EXAMPLES / "data" / "cat.jpg")
            expect(page.locator(".medium[data-filled]")).to_be_visible()
            page.get_by_role("button", name="Run", exact=True).click()
            done(page)
            page.wait_for_function("() => document.querySelector('.picture img').complete")
            keep(page, "picture", photo=True)
        with serving(EXAMPLES / "speech.py", cwd=Path(folder)) as runner, looking_at(browser, runner.url, **LAPTOP) as page:
            page.locator("input[type=file]").set_input_files(EXAMPLES / "data" / "speech.wav")
            expect(page.locator(".medium[data-filled]")).to_be_visible()
            page.get_by_role("button", name="Run", exact=True).click()
            done(page)
            page.wait_for_function(DRAWN, arg=".wave")
            keep(page, "speech")
        with serving(APPS / "knot.py", cwd=Path(folder)) as runner, looking_at(browser, runner.url, **LAPTOP, color_scheme="dark") as page:
            page.get_by_role("button", name="Run", exact=True).click()
            done(page)
            page.wait_for_function(DRAWN, arg=".shown .model canvas")
            keep(page, "model")


if __name__ == "__main__":
    main()
