"""The guide is done, page by page: its files are written, its lines run, its answers compared, its pages built.

See tests/pages.py for what a block of a page may be. A block of Python without a title is a part of a
class, which is assembled, or statements, which are compiled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from pages import DOCS, Fence, Reader, fences, pages
from serving import HOUSE

import runner

HOOKS = DOCS / "plugins"  # their examples are run in test_hooks.py
GUIDE = [page for page in pages() if page.parent != HOOKS]
BLOCKS = {page.stem: fences(page) for page in GUIDE}
SESSIONS = [name for name, blocks in BLOCKS.items() if any(b.language == "sh" and "unrun" not in b.attributes for b in blocks)]
HAS_KIT = importlib.util.find_spec("runner.testing") is not None
NEED_KIT = [name for name, blocks in BLOCKS.items() if any("runner.testing" in block.text for block in blocks)]


@pytest.mark.parametrize("name", SESSIONS)
def test_a_page_does_what_it_says(tmp_path: Path, name: str) -> None:
    if name in NEED_KIT and not HAS_KIT:
        pytest.skip("runner.testing is not here yet")
    with Reader(tmp_path) as reader:
        reader.read(BLOCKS[name])


class Anything(msgspec.Struct):
    """Stands for the types that a part of a class speaks of without showing them."""


NAMES: dict[str, Any] = {
    "runner": runner, "Iterator": Iterator, "AsyncIterator": AsyncIterator,
    **dict.fromkeys(("Input", "Output", "Token", "Frame", "Item"), Anything),
}  # fmt: skip
FRAGMENTS = [b for blocks in BLOCKS.values() for b in blocks if b.language == "python" and not {"title", "unrun"} & set(b.attributes)]


@pytest.mark.parametrize("fence", FRAGMENTS, ids=lambda fence: fence.place)
def test_a_part_of_a_class_is_one_that_can_be_served(fence: Fence) -> None:
    text = fence.text
    if "@runner." not in text:
        compile(text, fence.place, "exec")
        return
    scope = dict(NAMES)
    body = "".join(f"    {line}\n" for line in re.sub(r": \.\.\.$", ":\n    ...", text, flags=re.MULTILINE).splitlines())
    exec(compile(f"class Part(runner.App):\n{body}", fence.place, "exec"), scope)
    service = runner.asgi(scope["Part"], runner.Settings(data_dir=os.devnull))

    assert service.endpoints


def test_every_block_says_what_it_is() -> None:
    languages = {"sh", "python", "text", "json", "toml", "yaml", "dockerfile", "js", "http", "mermaid"}
    for block in [block for blocks in BLOCKS.values() for block in blocks]:
        assert block.language in languages | {""}, f"{block.place}: a block of {block.language!r}"
        assert set(block.attributes) <= {"title", "exit", "unrun"}, block.place
        if block.language == "js":
            assert "unrun" in block.attributes, block.place
        if block.language == "json" and "…" not in block.text:
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "yaml":
            list(yaml.safe_load_all(block.text))


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [block for blocks in BLOCKS.values() for block in blocks if "unrun" in block.attributes]

    assert all(len(block.attributes["unrun"].split()) > 3 for block in left_out)
    assert len(left_out) <= 5, [block.place for block in left_out]


def test_pages_speak_of_settings_that_there_are() -> None:
    known = {f"--{name.replace('_', '-')}" for name in runner.Settings.__struct_fields__} | {"--check", "--openapi", "--help"}
    variables = {f"RUNNER_{name.upper()}" for name in runner.Settings.__struct_fields__}
    for page in pages():
        words = page.read_text()
        for line in re.findall(r"^.*\brunner \S+:\S+.*--.*$", words, re.MULTILINE):
            assert set(re.findall(r"(?<=\s)--[a-z-]+", line.partition("|")[0])) <= known, f"{page.name}: {line}"
        assert set(re.findall(r"\bRUNNER_[A-Z_]+\b", words)) <= variables | {"RUNNER_SOAK", "RUNNER_", "RUNNER_PORT"}, page.name


def commands_of_ci() -> dict[str, list[str]]:
    """What the two examples of CI run, by their files."""
    found = {}
    for block in BLOCKS["deploying"]:
        if block.language == "yaml":
            (job,) = (v for v in yaml.safe_load(block.text).get("jobs", yaml.safe_load(block.text)).values() if isinstance(v, dict))
            found[block.attributes["title"]] = job.get("script") or [step["run"] for step in job["steps"] if "run" in step]
    return found


def test_what_the_examples_of_ci_run_is_the_same_and_passes(tmp_path: Path) -> None:
    github, gitlab = commands_of_ci().values()
    assert github == gitlab

    if not HAS_KIT:
        pytest.skip("runner.testing is not here yet")
    with Reader(tmp_path) as reader:
        for block in BLOCKS["deploying"]:
            if "title" in block.attributes:
                reader.write(block)
        reader.run(Fence("docs/deploying.md", 0, "sh", {}, "\n".join(github), "…onerunner…POST / Greeter.greet…1 passed…"))


def test_the_dockerfile_of_the_guide_copies_what_there_is_and_serves_the_app() -> None:
    files = {block.attributes["title"]: block.text for block in BLOCKS["deploying"] if "title" in block.attributes}
    steps = [line.split(None, 1) for line in files["Dockerfile"].splitlines()]

    assert [step for step, _ in steps] == ["FROM", "USER", "COPY", "RUN", "USER", "COPY", "CMD"]
    copied = [name for step, words in steps if step == "COPY" for name in words.split()[:-1]]
    assert set(copied) <= set(files)
    assert [words for step, words in steps if step == "USER"][-1] == "runner", "the image's own user serves"
    (served,) = json.loads(steps[-1][1])
    assert f"class {served.partition(':')[2]}(runner.App)" in files["app.py"]


def test_the_readme_links_to_what_there_is() -> None:
    links = re.findall(r"\]\(([^)#]+)", (HOUSE / "README.md").read_text())

    assert [link for link in links if "://" not in link and not (HOUSE / link).exists()] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide, built strictly: a link or an anchor that leads nowhere, or a page that nobody finds, fails."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=HOUSE, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_built_pages_ask_nothing_of_other_hosts(site: Path) -> None:
    loads = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)|url\(["']?((?:https?:)?//[^)]+)|@import ["']([^"']+)""")
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = [match for match in loads.findall(file.read_text()) if "".join(match)]
        assert not found, f"{file.relative_to(site)}: {found}"


def test_no_block_is_left_as_it_was_written(site: Path) -> None:
    assert [file.name for file in site.rglob("*.html") if "```" in file.read_text()] == []
