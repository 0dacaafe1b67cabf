"""The playground in a real browser: what a person does there, and what the page never does."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from browsing import browsing, ended, field, looking_at, run
from playwright.sync_api import Browser, Page, expect
from serving import HOUSE, Runner, serving, written

EXAMPLES = HOUSE / "examples"
WIDGETS = Path(__file__).parent / "apps" / "widgets.py"
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with serving(EXAMPLES / "hello.py", cwd=tmp_path_factory.mktemp("hello")) as runner:
        yield runner


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with serving(EXAMPLES / "tokens.py", cwd=tmp_path_factory.mktemp("tokens")) as runner:
        yield runner


@pytest.fixture(scope="module")
def widgets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with serving(WIDGETS, cwd=tmp_path_factory.mktemp("widgets")) as runner:
        yield runner


# --- a run


def test_a_person_fills_in_the_seed_app_and_reads_its_answer(browser: Browser, hello: Runner) -> None:
    with looking_at(browser, hello.url) as page:
        page.get_by_label("Prompt").fill("world")
        run(page)
        ended(page)

        expect(page.locator(".shown .text")).to_have_text("Hello, world!")
        expect(page.locator('[data-fact="wait"]')).to_be_visible()
        expect(page.locator('[data-fact="run"]')).to_be_visible()
        id = page.locator(".id").inner_text()
    assert any(line["request_id"].startswith(id) for line in hello.events("request.finished", path="/", method="POST"))


def test_a_fault_in_the_input_is_shown_at_its_field(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, widgets.url) as page:
        page.get_by_label("Prompt").fill("x")
        page.get_by_text("More settings").click()
        page.get_by_label("Steps", exact=True).fill("99")
        run(page)
        ended(page, "Failed, 422")

        steps = page.locator(field(page, "steps"))
        expect(steps.locator(".error")).to_be_visible()
        expect(page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_label("Steps", exact=True)).to_be_focused()
        page.get_by_label("Steps", exact=True).fill("9")
        expect(steps.locator(".error")).to_be_hidden()


def test_an_uploaded_recording_is_heard(browser: Browser, tmp_path: Path) -> None:
    with serving(EXAMPLES / "speech.py", cwd=tmp_path) as runner, looking_at(browser, runner.url) as page:
        page.locator("input[type=file]").set_input_files(EXAMPLES / "data" / "speech.wav")
        expect(page.locator(".preview audio")).to_be_visible()
        expect(page.get_by_label("Audio")).to_have_value(re.compile(rf"{runner.url}/files/\w+/speech.wav"))
        run(page)
        ended(page)

        spoken = json.loads((EXAMPLES / "data" / "speech.json").read_text())["segments"]
        expect(page.locator("tbody tr")).to_have_count(len(spoken))
        expect(page.locator(".wave")).to_be_visible()


def test_a_stream_is_stopped_half_way_and_its_place_is_free(browser: Browser, tokens: Runner) -> None:
    with looking_at(browser, tokens.url) as page:
        page.get_by_role("button", name="Stream /stream").click()
        page.get_by_label("Length", exact=True).fill("100000")
        run(page)
        expect(page.locator(".text.streaming")).to_contain_text("tide")
        page.get_by_role("button", name="Stop").click()

        ended(page, re.compile(r"Stopped in [\d.]+ m?s"))
        expect(page.locator('[data-fact="place free after"]')).to_be_visible()
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_focused()
        expect(page.locator(".gauge").first).to_have_text("0 of 1 running")
        line = tokens.wait_for("request.finished", path="/stream", status=499)
    assert line["cancel_ms"] < 1000
    assert tokens.get("/health/ready").json()["lanes"]["running"] == 0


def test_a_direct_run_is_stopped_and_the_page_says_how_long_it_took(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/steps") as page:
        page.get_by_label("Count").fill("100000")
        run(page)
        page.keyboard.press("Escape")

        ended(page, re.compile(r"Stopped in [\d.]+ m?s"))
        assert widgets.wait_for("request.finished", path="/steps", status=499)["cancel_ms"] < 1000


def test_a_job_of_the_queue_tells_its_progress_and_its_logs(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/steps") as page:
        page.get_by_role("radio", name="Queue").click()
        run(page)
        expect(page.locator(".bar")).to_have_attribute("max", "20")
        expect(page.get_by_text(re.compile(r"stepping · \d+ of 20"))).to_be_visible()
        expect(page.get_by_alt_text("Preview")).to_be_visible()
        ended(page)

        expect(page.locator(".log")).to_contain_text("step 20")
        expect(page.locator(".pairs")).to_have_text(re.compile("Steps *20"))


def test_a_job_is_stopped_in_the_queue(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/steps&mode=queue") as page:
        page.get_by_label("Count").fill("100000")
        run(page)
        expect(page.locator(".log")).to_contain_text("step 2")
        page.get_by_role("button", name="Stop").click()

        ended(page, re.compile(r"Stopped in [\d.]+ m?s"))


def test_a_job_in_the_line_tells_how_many_are_before_it(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/steps&mode=queue") as page, ExitStack() as held:
        for i in range(2):
            held.enter_context(widgets.call("/steps", f"holder-{i}", b'{"count": 100000}'))
        page.wait_for_function("async () => (await (await fetch('health/ready')).json()).lanes.running === 2")
        for _ in range(4):  # of which some may be as good as begun
            widgets.post("/queue/local/widgets/steps", {"count": 1})
        run(page)
        expect(page.locator(".run-status")).to_have_text(re.compile("In the queue, [1-9] before it"))
        page.get_by_role("button", name="Stop").click()
        ended(page, re.compile(r"Stopped in [\d.]+ m?s"))
    for i in range(2):
        widgets.wait_for("request.finished", request_id=f"holder-{i}")


def test_a_person_talks_to_a_realtime_endpoint(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/double") as page:
        page.get_by_role("button", name="Connect").click()
        expect(page.locator(".run-status")).to_contain_text("Connected")
        page.get_by_label("N", exact=True).fill("4")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Send").click()

        expect(page.locator(".messages .in")).to_have_count(2)
        expect(page.locator(".messages .in").first).to_contain_text('{"n": 8}')
        expect(page.locator(".facts")).to_contain_text(re.compile(r"round trip, median[\d.]+ ms"))
        page.get_by_role("tab", name="JSON").click()
        page.get_by_label("The input as JSON").fill('{"n": "four"}')
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".messages .fault")).to_contain_text("valid integer")
        expect(page.locator(".run-status")).to_have_text("Closed after an error")
        page.get_by_label("The input as JSON").fill('{"n": 5}')
        page.get_by_role("button", name="Send").click()  # connects anew
        expect(page.locator(".messages .in").last).to_contain_text('{"n": 10}')
        expect(page.locator(".messages .in").first).to_contain_text(re.compile(r"after [\d.]+ ms"))
        page.get_by_role("button", name="Disconnect").click()
        expect(page.locator(".run-status")).to_have_text("Closed")


# --- health


GPUS = """
import prometheus_client, runner
# A machine with two GPUs, as the metrics tell of it. All else is real.
for what, gib in ("allocated", 1.5), ("total", 80):
    gauge = prometheus_client.Gauge(f"runner_cuda_memory_{what}_bytes", "Memory.", ["device"])
    for device in "01":
        gauge.labels(device).set(gib * 2**30)

class Big(runner.App):
    @runner.endpoint("/items/{id}")
    def item(self, id: int) -> int:
        return id
"""


def test_the_strip_shows_the_memory_of_the_gpus(browser: Browser, tmp_path: Path) -> None:
    with serving(written(tmp_path, GPUS), cwd=tmp_path) as runner, looking_at(browser, runner.url) as page:
        expect(page.locator(".gauges")).to_contain_text("3.0 GiB of 160 GiB 2 GPUs")
        expect(page.locator(".gauges")).to_contain_text("0 per minute")
        page.get_by_role("spinbutton", name="ID").fill("4")
        run(page)
        ended(page)
        expect(page.locator(".gauges")).to_contain_text("1 per minute")  # also of a path with a parameter in it


def test_the_strip_shows_the_requests_of_the_last_minute_and_their_plot(browser: Browser, hello: Runner) -> None:
    with looking_at(browser, hello.url) as page:
        expect(page.locator(".gauges")).to_contain_text("0 per minute")
        bars = page.locator(".plot rect:not(.ground)")
        expect(bars).to_have_count(0)
        for _ in range(3):
            hello.post("/", {"prompt": "x"})
        expect(page.locator(".gauges")).to_contain_text("3 per minute")
        assert bars.count() >= 1
        expect(page.locator(".state")).to_have_text("ready")


# --- forms and results


def test_the_form_and_its_json_stay_in_step(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, widgets.url) as page:
        page.get_by_label("Prompt").fill("a «prompt»")
        page.get_by_text("More settings").click()
        page.get_by_label("Strength, slider").fill("0.25")
        page.get_by_label("Style").select_option("bold")
        page.get_by_label("Loud").check()
        page.get_by_role("button", name="Another seed").click()
        page.get_by_role("radio", name="Custom").click()
        page.get_by_label("Width").first.fill("640")
        page.locator(field(page, "tags")).get_by_role("button", name="Add").click()
        page.get_by_label("Tag 1", exact=True).fill("red")
        page.get_by_label("b", exact=True).check()
        page.get_by_role("tab", name="JSON").click()
        written = json.loads(page.get_by_label("The input as JSON").input_value())
        seed = written.pop("seed")

        assert isinstance(seed, int)
        assert written == {
            "prompt": "a «prompt»", "strength": 0.25, "style": "bold", "loud": True, "tags": ["red"], "corners": ["b"],
            "image_size": {"width": 640, "height": 512},
        }  # fmt: skip

        page.get_by_label("The input as JSON").fill('{"prompt": "b", "steps": 3, "inner": {"width": 1}, "unknown": 1')
        expect(page.locator("#json-fault")).to_be_visible()
        page.get_by_label("The input as JSON").fill('{"prompt": "b", "steps": 3, "inner": {"width": 1}, "unknown": 1}')
        expect(page.locator("#json-fault")).to_be_hidden()
        page.get_by_role("tab", name="Form").click()
        expect(page.get_by_label("Prompt")).to_have_value("b")
        expect(page.get_by_label("Steps", exact=True)).to_have_value("3")
        expect(page.locator(field(page, "inner")).get_by_label("Width")).to_have_value("1")
        run(page)
        ended(page)
        page.get_by_role("tab", name="JSON").click()
        assert json.loads(page.get_by_label("The input as JSON").input_value())["unknown"] == 1


def test_frames_of_the_microphone_are_sent_to_a_socket(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/levels") as page:
        page.get_by_role("button", name="Send microphone").click()
        expect(page.locator(".messages .in").nth(1)).to_contain_text('{"bytes": 8192}')
        page.get_by_role("button", name="Stop microphone").click()


def test_runs_are_kept_looked_at_and_repeated(browser: Browser, hello: Runner) -> None:
    with looking_at(browser, hello.url) as page:
        for name in ("one", "two"):
            page.get_by_label("Prompt").fill(name)
            run(page)
            expect(page.locator(".shown .text")).to_have_text(f"Hello, {name}!")
        page.reload()
        page.get_by_role("tab", name="Runs").click()
        page.get_by_role("button", name='"prompt":"one"').click()
        expect(page.locator(".shown .text")).to_have_text("Hello, one!")
        expect(page.get_by_label("Prompt")).to_have_value("one")
        page.get_by_role("tab", name="Runs").click()
        page.get_by_role("button", name="Repeat the run of").first.click()
        expect(page.locator(".shown .text")).to_have_text("Hello, two!")
        page.get_by_role("tab", name="Runs").click()
        expect(page.locator(".runs li")).to_have_count(3)


def test_a_link_restores_an_input(browser: Browser, tokens: Runner) -> None:
    with looking_at(browser, tokens.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_label("Prompt").fill("The gull & the tide #1")
        page.get_by_role("radio", name="Queue").click()
        page.get_by_role("button", name="Copy a link").click()
        link = page.evaluate("() => navigator.clipboard.readText()")
        page.get_by_role("tab", name="Code").click()
        page.get_by_role("button", name="Copy", exact=True).click()
        assert "#1" in page.evaluate("() => navigator.clipboard.readText()")
        run(page)
        ended(page)
        assert page.url == link
    with looking_at(browser, link) as page:
        expect(page.get_by_label("Prompt")).to_have_value("The gull & the tide #1")
        expect(page.get_by_role("radio", name="Queue")).to_have_attribute("aria-checked", "true")


# --- for everybody


def test_all_can_be_done_by_keyboard(browser: Browser, hello: Runner) -> None:
    def tab_to(page: Page, name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if name in page.evaluate("() => (document.activeElement.labels?.[0] ?? document.activeElement).textContent"):
                return
        raise AssertionError(f"the Tab key does not reach {name}")

    with looking_at(browser, hello.url) as page:
        page.get_by_label("Prompt").wait_for()
        tab_to(page, "Skip to the form")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("Prompt")).to_be_focused()
        for _ in range(2):
            page.keyboard.press("Shift+Tab")  # past the link to this input
        expect(page.get_by_role("tab", name="Form")).to_be_focused()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_label("The input as JSON")).to_be_visible()
        page.keyboard.press("ArrowLeft")
        tab_to(page, "Prompt")
        page.keyboard.type("keys")
        tab_to(page, "Direct")
        page.keyboard.press("ArrowRight")
        tab_to(page, "Run")
        page.keyboard.press("Enter")
        ended(page)
        expect(page.locator(".shown .text")).to_have_text("Hello, keys!")
        page.get_by_label("Prompt").focus()
        page.keyboard.type("!")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".shown .text")).to_have_text("Hello, keys!!")


def test_it_is_dark_as_the_system_is_and_as_the_person_wants(browser: Browser, hello: Runner) -> None:
    def ground(page: Page) -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    with looking_at(browser, hello.url, color_scheme="dark") as page:
        page.get_by_label("Prompt").wait_for()
        dark = ground(page)
        page.get_by_role("button", name="Colours: as the system").click()
        light = ground(page)
        page.reload()
        expect(page.get_by_role("button", name="Colours: light")).to_be_visible()
        assert ground(page) == light != dark


def test_it_fits_a_phone(browser: Browser, tokens: Runner) -> None:
    with looking_at(browser, tokens.url, **PHONE) as page:
        page.get_by_label("Prompt").wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
        page.get_by_role("button", name="Run", exact=True).tap()
        ended(page)
        expect(page.locator(".run-status")).to_be_in_viewport()
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("looks", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_an_audit_by_axe_finds_nothing_serious(browser: Browser, widgets: Runner, looks: dict[str, Any]) -> None:
    def audit(state: str, *, main: bool = True) -> list[str]:
        if looks is PHONE and not main:
            return []
        found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")["violations"]
        return [f"{state}: {one['id']}: {node['html'][:200]}" for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]]

    def opened(name: str) -> None:
        page.get_by_role("navigation").get_by_role("button", name=f"/{name}").click()

    with looking_at(browser, widgets.url, **looks, reduced_motion="reduce") as page:
        page.get_by_label("Prompt").wait_for()
        page.evaluate(AXE.read_text())
        faults = audit("form")
        page.get_by_text("More settings").click()
        faults += audit("all of the form", main=False)
        run(page)
        ended(page, "Failed, 422")
        faults += audit("error")
        opened("steps")
        page.get_by_role("radio", name="Queue").click()
        page.get_by_label("Count").fill("100000")
        run(page)
        expect(page.locator(".log")).to_contain_text("step 2")
        faults += audit("running")
        page.get_by_role("button", name="Stop").click()
        ended(page, re.compile("Stopped in"))
        opened("pictures")
        run(page)
        ended(page)
        faults += audit("result")
        page.get_by_role("tab", name="Code").click()
        faults += audit("code", main=False)
        page.get_by_role("tab", name="Runs").click()
        faults += audit("runs", main=False)
        opened("shot")
        page.get_by_role("button", name="Add advanced").click()
        page.locator(field(page, "palette")).get_by_role("button", name="Add a colour").click()
        faults += audit("choices", main=False)
        opened("scan")
        page.get_by_label("Model URL").fill(f"{widgets.url}/files/none.fbx")
        run(page)
        expect(page.get_by_role("img", name="3D model")).to_be_visible()
        faults += audit("models", main=False)
        opened("double")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".messages .in")).to_have_count(1)
        faults += audit("realtime")
    assert faults == []


# --- safety


def test_text_of_a_model_is_never_markup(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/markup") as page:
        run(page)
        ended(page)

        expect(page.locator(".shown .text")).to_contain_text("<b>bold</b>")
        assert page.locator(".shown b, .shown img").count() == 0
        assert page.title() == "Widgets playground"


def test_media_on_other_hosts_are_links_and_never_asked_for(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/elsewhere") as page:
        page.get_by_label("Image URL").press_sequentially("https://elsewhere.invalid/x.png")
        expect(page.get_by_text("Kept on another host")).to_be_visible()
        run(page)
        ended(page)

        expect(page.get_by_role("link", name="open it")).to_have_count(2)
        expect(page.get_by_role("link", name="open it").first).to_have_attribute("rel", "noreferrer noopener")


def test_a_key_is_asked_for_and_kept_for_the_tab_only(browser: Browser, tmp_path: Path) -> None:
    with serving(WIDGETS, "--auth-key", "secret:key", cwd=tmp_path) as runner, looking_at(browser, runner.url) as page:
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_text("The server does not know this key.")).to_be_visible()
        page.get_by_label("Key", exact=True).fill("secret:key")
        page.keyboard.press("Enter")
        page.get_by_label("Prompt").fill("let in")
        run(page)
        ended(page)
        page.get_by_role("button", name="Double /double").click()
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".messages .in")).to_have_count(1)

        page.get_by_role("tab", name="Code").click()
        expect(page.locator(".code-text")).to_contain_text("FAL_KEY")
        assert page.evaluate("() => JSON.stringify({ ...localStorage })").count("secret:key") == 0
        assert "secret:key" not in page.content()
        page.reload()
        page.get_by_label("Prompt").wait_for()  # the tab still knows it


def test_the_policy_lets_in_no_script_but_the_pages_own(widgets: Runner) -> None:
    page = widgets.get("/", headers=HTML)

    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=|javascript:", page.text) == []


def test_files_of_callers_are_not_run_as_part_of_the_page(widgets: Runner) -> None:
    with widgets.client() as client:
        place = client.post("/files", content=b"alert(1)", headers={"content-type": "text/javascript", "x-fal-file-name": "x.js"}).json()["url"]

        assert client.get(place, headers={"sec-fetch-dest": "script"}).status_code == 403
        assert client.get(place, headers={"sec-fetch-dest": "image"}).status_code == 200


# --- what is served where


def test_a_browser_gets_the_page_and_a_program_the_discovery(hello: Runner) -> None:
    page = hello.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "accept" in page.headers["vary"]

    found = hello.get("/", headers={"accept": "application/json"}).json()
    assert (found["app"], found["app_id"]) == ("MyApp", "local/my-app")
    assert found["endpoints"] == [{"method": "POST", "path": "/", "summary": "Generate", "streams": False}]
    assert found["links"]["openapi"] == "/openapi.json"
    assert hello.get("/").status_code == 405


def test_the_page_is_small_and_a_browser_asks_for_its_parts_once(hello: Runner) -> None:
    with hello.client() as client:
        page = client.get("/", headers=HTML)
        paths = set(re.findall(r'"(playground/[^"]+)"', page.text))
        folder = sorted(paths)[0].rpartition("/")[0]
        parts = {name: client.get(f"/{folder}/{name}") for name in (file.name for file in (HOUSE / "plugins/playground/page").iterdir()) if name != "index.html"}
        stale = client.get(f"/playground/0/{'main.js'}")

    assert {path.rpartition("/")[2] for path in paths} <= parts.keys()
    assert all(part.status_code == 200 and "immutable" in part.headers["cache-control"] for part in parts.values())
    assert all(part.headers["content-encoding"] == "gzip" for part in parts.values())
    assert sum(len(gzip.compress(part.content)) for part in (page, *parts.values())) < 100 * 1024
    assert stale.status_code == 404


def test_without_the_plugin_there_is_no_page(tmp_path: Path) -> None:
    with serving(EXAMPLES / "hello.py", "--no-plugin", "playground", cwd=tmp_path) as runner:
        assert runner.get("/", headers=HTML).status_code == 405
        assert runner.get("/playground/discovery").status_code == 404


def test_an_endpoint_that_answers_get_itself_keeps_its_path(tmp_path: Path) -> None:
    app = "import runner\nclass Own(runner.App):\n    @runner.endpoint('/', health_check=runner.HealthCheck(method='GET'))\n    def check(self) -> str: return 'own'\n"
    with serving(written(tmp_path, app), cwd=tmp_path) as runner:
        assert runner.get("/", headers=HTML).json() == "own"


def test_a_server_without_the_queue_offers_no_queue(browser: Browser, tmp_path: Path) -> None:
    with serving(EXAMPLES / "hello.py", "--no-plugin", "queue", cwd=tmp_path) as runner, looking_at(browser, runner.url) as page:
        page.get_by_label("Prompt").fill("x")
        expect(page.get_by_role("radio")).to_have_text(["Direct", "Stream"])
        run(page)
        ended(page)
