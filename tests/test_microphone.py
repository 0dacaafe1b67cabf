"""The page with a microphone, in a real browser whose microphone hears the recording."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from browsing import browsing
from playwright.sync_api import expect
from serving import HOUSE, serving

RECORDING = HOUSE / "examples" / "data" / "speech.wav"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


def test_the_light_goes_on_while_somebody_speaks_and_off_in_a_pause() -> None:
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HOUSE / "examples")))
    thread = threading.Thread(target=pages.serve_forever)
    thread.start()
    try:
        with serving(HOUSE / "examples" / "speech.py") as runner, browsing(f"--use-file-for-fake-audio-capture={RECORDING}") as browser:
            context = browser.new_context(permissions=["microphone"])
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{pages.server_port}/microphone.html")
            page.get_by_label("Server").fill(f"ws://127.0.0.1:{runner.port}/listen")
            page.get_by_role("button", name="Listen").click()
            light = page.locator("#light")
            expect(light).to_have_class("speech", timeout=20_000)
            expect(light).not_to_have_class("speech", timeout=20_000)
            expect(light).to_have_class("speech", timeout=20_000)
            context.close()
            ended = runner.wait_for("request.finished", path="/listen")
    finally:
        pages.shutdown()
        thread.join()
        pages.server_close()

    assert ended["items"] > 0
