"""The code that the playground shows runs as it stands, and gives what the page's own call would give."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browsing, looking_at
from playwright.sync_api import Browser, Page, expect
from serving import GUARD_SECONDS, HOUSE, Runner, serving
from test_sdk_streams import packages

__all__ = ["packages"]  # a fixture

EXAMPLES = HOUSE / "examples"
WIDGETS = Path(__file__).parent / "apps" / "widgets.py"
CLIENTS = {"curl", "Python, fal_client", "Python, httpx", "JavaScript, @fal-ai/client", "JavaScript, fetch"}
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
        (folder / "sample.mjs").write_text(code)
        (folder / "json.mjs").write_text(AS_JSON)
        if not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(packages)
        command = ["node", "--import", "./json.mjs", "sample.mjs"]
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
    assert found.keys() == CLIENTS
    for title, code in found.items():
        assert without_urls(output(title, code, folder, packages, env)) == without_urls(expected), f"{title}\n{code}"


@pytest.mark.parametrize("key", ["", "secret:key"])
def test_the_code_for_the_seed_app(browser: Browser, packages: Path, tmp_path: Path, key: str) -> None:
    prompt = "it's \"quoted\", né 😀\n$HOME \\ `x`"
    keys = ["--auth-key", key] if key else []
    with serving(EXAMPLES / "hello.py", "--fal-gateway", "0", *keys, cwd=tmp_path) as runner:
        env = environment(runner, key or "any:thing")
        with looking_at(browser, runner.url) as page:
            if key:
                page.get_by_label("Key", exact=True).fill(key)
                page.keyboard.press("Enter")
            page.get_by_label("Prompt").fill(prompt)
            answer = {"text": f"Hello, {prompt}!"}
            for way in ("Direct", "Stream", "Queue"):
                page.get_by_role("radio", name=way).click()
                check(shown(page), [answer], tmp_path, packages, env)


def test_the_code_for_the_language_model(browser: Browser, packages: Path, tmp_path: Path) -> None:
    with serving(EXAMPLES / "tokens.py", "--fal-gateway", "0", cwd=tmp_path) as runner:
        env = environment(runner, "any:thing")
        with looking_at(browser, f"{runner.url}/#endpoint=/stream") as page:
            page.get_by_label("Length", exact=True).fill("8")
            asked = {"prompt": "The tide ", "length": 8, "temperature": 0.5, "seed": 0}
            events = runner.post("/stream", asked, headers={"accept": "application/json"}).json()
            check(shown(page), events, tmp_path, packages, env)
            page.get_by_role("radio", name="Direct").click()
            check(shown(page), [events], tmp_path, packages, env)


@pytest.mark.parametrize(("example", "file"), [("speech.py", "speech.wav"), ("portrait.py", "cat.jpg")])
def test_the_code_for_an_app_that_takes_a_file(browser: Browser, packages: Path, tmp_path: Path, example: str, file: str) -> None:
    with serving(EXAMPLES / example, "--fal-gateway", "0", cwd=tmp_path) as runner:
        env = environment(runner, "any:thing")
        with looking_at(browser, runner.url) as page:
            page.locator("input[type=file]").set_input_files(EXAMPLES / "data" / file)
            expect(page.locator(".medium[data-filled]")).to_be_visible()
            page.get_by_role("tab", name="JSON").click()
            answer = runner.post("/", json.loads(page.get_by_label("The input as JSON").input_value())).json()
            check(shown(page), [answer], tmp_path, packages, env)


def test_the_code_for_a_socket(browser: Browser, packages: Path, tmp_path: Path) -> None:
    with serving(WIDGETS, "--fal-gateway", "0", cwd=tmp_path) as runner:
        env = environment(runner, "any:thing")
        with looking_at(browser, f"{runner.url}/#endpoint=/double") as page:
            page.get_by_label("N", exact=True).fill("4")
            found = shown(page)
            in_page = found.pop("JavaScript, WebSocket")
            printed = page.evaluate(f"() => new Promise((resolve) => {{ const console = {{ log: resolve }};\n{in_page} }})")

        assert printed == {"n": 8}
        for title, code in found.items():
            assert output(title, code, tmp_path, packages, env) == [{"n": 8}]
