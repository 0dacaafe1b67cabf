"""The code that the playground shows runs as it stands, and gives what the page's own call would give."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from browsing import browsing, looking_at
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import GUARD_SECONDS, HOUSE, Runner, serving
from test_sdk_streams import packages

__all__ = ["packages"]  # a fixture

EXAMPLES = HOUSE / "examples"
WIDGETS = Path(__file__).parent / "apps" / "widgets.py"
CLIENTS = {"curl", "Python, fal_client", "Python, httpx", "JavaScript, @fal-ai/client", "JavaScript, fetch"}
KEY = "secret:key"
GUARDED = ["--fal-gateway", "0", "--auth-key", KEY]
AS_JSON = "console.log = (value) => process.stdout.write(JSON.stringify(value) + '\\n');"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


def environment(runner: Runner, key: str) -> dict[str, str]:
    """What the runner prints for fal's clients, as a person would export it."""
    runner.wait_for("gateway.listening")
    with runner._news:
        assert runner._news.wait_for(lambda: any("FAL_KEY" in line for line in runner.printed), GUARD_SECONDS)
    exported = dict(re.findall(r"export (\w+)=(\S+)", "\n".join(runner.printed)))
    return {**os.environ, **exported, "FAL_KEY": key, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def shown(page: Page) -> dict[str, str]:
    """Each sample on the page, by its title."""
    page.get_by_role("tab", name="Code").click()
    pick = page.get_by_label("Language and client")
    found = {}
    for title in pick.locator("option").all_inner_texts():
        pick.select_option(label=title)
        found[title] = page.locator(".code-text").inner_text()
    return found


def output(title: str, code: str, folder: Path, packages: Path, env: dict[str, str]) -> list[Any]:
    """The values that a sample prints."""
    if title.startswith("JavaScript"):
        script = folder / f"{re.sub('[^a-z]', '-', title.lower())}.mjs"
        script.write_text(code)
        (folder / "json.mjs").write_text(AS_JSON)
        with suppress(FileExistsError):
            (folder / "node_modules").symlink_to(packages)
        command = ["node", "--import", "./json.mjs", script.name]
    else:
        command = ["bash", "-c", code] if title == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{title}\n{code}\n{done.stderr}"
    lines = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    return [ast.literal_eval(line) if title.startswith("Python") else json.loads(line) for line in lines]


def without_urls(value: Any) -> Any:
    """The same but for the addresses of files, which are new with every run."""
    if isinstance(value, dict):
        return {name: without_urls(item) for name, item in value.items() if name != "url"}
    return [without_urls(item) for item in value] if isinstance(value, list) else value


def check(found: dict[str, str], expected: list[Any], folder: Path, packages: Path, env: dict[str, str]) -> None:
    """Run all samples, side by side; each must print what is expected."""
    with ThreadPoolExecutor(len(found)) as pool:
        printed = {title: pool.submit(output, title, code, folder, packages, env) for title, code in found.items()}
        for title, code in found.items():
            assert without_urls(printed[title].result()) == without_urls(expected), f"{title}\n{code}"


def check_ways(page: Page, answer: Any, folder: Path, packages: Path, env: dict[str, str]) -> None:
    """The samples of an endpoint with one answer, for all three ways to run it."""
    for way in ("Direct", "Stream", "Queue"):
        page.get_by_role("radio", name=way).click()
        found = shown(page)
        assert found.keys() == CLIENTS
        check(found, [answer], folder, packages, env)


@contextmanager
def guarded(browser: Browser, runner: Runner, at: str = "") -> Iterator[Page]:
    """The page of a runner that asks for `KEY`, with the key given."""
    with looking_at(browser, runner.url + at) as page:
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        yield page


def called(runner: Runner, path: str, body: Any, **headers: str) -> Any:
    return runner.post(path, body, headers={"authorization": f"Key {KEY}", **headers}).json()


def test_the_code_for_the_seed_app(browser: Browser, packages: Path, tmp_path: Path) -> None:
    prompt = "it's \"quoted\", né 😀\n$HOME \\ `x`"
    with serving(EXAMPLES / "hello.py", "--fal-gateway", "0", cwd=tmp_path) as runner, looking_at(browser, runner.url) as page:
        env = environment(runner, "any:thing")
        page.get_by_label("Prompt").fill(prompt)
        check_ways(page, {"text": f"Hello, {prompt}!"}, tmp_path, packages, env)


def test_the_code_for_the_language_model(browser: Browser, packages: Path, tmp_path: Path) -> None:
    with serving(EXAMPLES / "tokens.py", *GUARDED, cwd=tmp_path) as runner:
        env = environment(runner, KEY)
        with guarded(browser, runner, "/#endpoint=/stream") as page:
            page.get_by_label("Length", exact=True).fill("8")
            asked = {"prompt": "The tide ", "length": 8, "temperature": 0.5, "seed": 0}
            events = called(runner, "/stream", asked, accept="application/json")
            check(shown(page), events, tmp_path, packages, env)
            for way in ("Direct", "Queue"):
                page.get_by_role("radio", name=way).click()
                check(shown(page), [events], tmp_path, packages, env)
        with guarded(browser, runner) as page:
            page.get_by_label("Length", exact=True).fill("8")
            check_ways(page, called(runner, "/", asked), tmp_path, packages, env)


def test_the_code_for_an_app_that_takes_a_picture(browser: Browser, packages: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"  # to paint a large one takes seconds
    Image.open(EXAMPLES / "data" / "cat.jpg").resize((96, 64)).save(small)
    with serving(EXAMPLES / "portrait.py", *GUARDED, cwd=tmp_path) as runner, guarded(browser, runner) as page:
        page.locator("input[type=file]").set_input_files(small)
        expect(page.locator(".medium[data-filled]")).to_be_visible()
        page.get_by_role("tab", name="JSON").click()
        answer = called(runner, "/", json.loads(page.get_by_label("The input as JSON").input_value()))
        check_ways(page, answer, tmp_path, packages, environment(runner, KEY))


def test_the_code_for_an_app_that_hears(browser: Browser, packages: Path, tmp_path: Path) -> None:
    with serving(EXAMPLES / "speech.py", *GUARDED, cwd=tmp_path) as runner:
        env = environment(runner, KEY)
        with guarded(browser, runner) as page:
            page.locator("input[type=file]").set_input_files(EXAMPLES / "data" / "speech.wav")
            expect(page.locator(".medium[data-filled]")).to_be_visible()
            page.get_by_role("tab", name="JSON").click()
            answer = called(runner, "/", json.loads(page.get_by_label("The input as JSON").input_value()))
            check_ways(page, answer, tmp_path, packages, env)
        with guarded(browser, runner, "/#endpoint=/listen") as page:
            page.get_by_role("tab", name="JSON").click()
            page.get_by_label("The input as JSON").fill(json.dumps({"samples": base64.b64encode(bytes(2048)).decode()}))
            check_socket(page, tmp_path, packages, env)


def test_the_code_for_a_socket(browser: Browser, packages: Path, tmp_path: Path) -> None:
    with serving(WIDGETS, "--fal-gateway", "0", cwd=tmp_path) as runner, looking_at(browser, f"{runner.url}/#endpoint=/double") as page:
        page.get_by_label("N", exact=True).fill("4")
        assert check_socket(page, tmp_path, packages, environment(runner, "any:thing")) == {"n": 8}


def check_socket(page: Page, folder: Path, packages: Path, env: dict[str, str]) -> Any:
    """Run the samples of a socket, JavaScript's in the page. What each of them received."""
    found = shown(page)
    in_page = found.pop("JavaScript, WebSocket")
    printed = page.evaluate(f"(process) => new Promise(async (resolve) => {{ const console = {{ log: resolve }};\n{in_page} }})", {"env": {"FAL_KEY": env["FAL_KEY"]}})
    assert found.keys() == {"Python, fal_client", "Python, websockets"}
    check(found, [printed], folder, packages, env)
    return printed
