"""How far a request is: told by the app, by its bars, and read in the event log."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runner.plugins import progress as room
from runner.plugins.eventlog import EventLog
from runner.schemas.request import Request, enter_request
from serving import serving, written

pytestmark = pytest.mark.anyio

APP = """
import numpy, runner
from PIL import Image
from collections.abc import Iterator

class Painter(runner.App):
    @runner.endpoint("/", on_disconnect="finish")
    def paint(self, steps: int = 3) -> str:
        from tqdm import tqdm  # not before there is something to paint
        runner.preview(Image.new("RGB", (1000, 500), "red"))
        bar = tqdm(total=steps, desc="painting", mininterval=0)
        for _ in range(steps):
            bar.update()
        return "done"

    @runner.endpoint("/own", on_disconnect="finish")
    def own(self) -> str:
        runner.progress(3, 7, "mixing")
        runner.preview(numpy.zeros((4, 4, 3), "uint8"))
        return "done"

    @runner.endpoint("/unread")
    def unread(self) -> str:
        runner.progress(1, 2)
        runner.preview("nobody looks at it")
        return "done"
"""


def told(text: str) -> list[Any]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    return [json.loads(block[2][6:]) for block in blocks if block[1] == "event: progress"]


def test_bars_and_previews_are_events_of_the_request(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        for _ in range(2):  # tqdm is imported in the first
            response = runner.post("/")
        by_bar = told(runner.get(response.headers["x-runner-events"]).text)
        by_hand = told(runner.get(runner.post("/own").headers["x-runner-events"]).text)
        unread = runner.post("/unread")

    assert {"done": 3, "total": 3, "message": "painting"} in by_bar
    assert any(event.get("preview", "").startswith("data:image/jpeg;base64,") for event in by_bar)
    assert by_hand[0] == {"done": 3, "total": 7, "message": "mixing"}
    assert by_hand[1]["preview"].startswith("data:image/jpeg;base64,")
    assert unread.json() == "done"


def test_bars_are_left_alone_when_the_setting_says_so(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP), "--progress-bars", "off") as runner:
        for _ in range(2):
            response = runner.post("/")
        events = told(runner.get(response.headers["x-runner-events"]).text)

    assert [list(event) for event in events] == [["preview"]]


# --- packages that this environment does not have, as far as we touch them


def test_a_download_tells_how_far_it_is(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        """
import runner
class Reader(runner.App):
    @runner.endpoint("/", on_disconnect="finish")
    def read(self, file: runner.File) -> int:
        return len(file.as_bytes())
""",
    )
    (tmp_path / "large.bin").write_bytes(bytes(3_000_000))
    with file_server(tmp_path) as port, serving(app, "--allow-private-hosts", f"127.0.0.1:{port}") as runner:
        response = runner.post("/", f"http://127.0.0.1:{port}/large.bin")
        events = told(runner.get(response.headers["x-runner-events"]).text)

    assert response.json() == 3_000_000
    assert events[-1] == {"done": 3_000_000, "message": "downloading large.bin", "total": 3_000_000}
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)


@contextmanager
def file_server(folder: Path) -> Iterator[int]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def imported(name: str, **content: Any) -> Iterator[None]:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    try:
        room.bars.open()
        room.bars.look()
        yield
    finally:
        room.bars.close()
        del sys.modules[name]


async def logged() -> EventLog:
    request = Request("x")
    request.log = EventLog("x")
    enter_request(request)
    return request.log  # type: ignore[no-any-return]


def progress_in(log: EventLog) -> Any:
    log.append("completed")
    return json.loads(log.since(0)[-2].data)


class Ids:
    def __init__(self, length: int) -> None:
        self.shape = (1, length)


async def test_the_tokens_that_transformers_generates_are_counted() -> None:
    class Criteria(list):  # type: ignore[type-arg]
        max_length = 30

        def __call__(self, input_ids: Ids, scores: Any) -> bool:
            return input_ids.shape[-1] >= 30

    class GenerationMixin:
        def _get_stopping_criteria(self, generation_config: Any) -> Criteria:
            return Criteria([generation_config])

    original = GenerationMixin._get_stopping_criteria
    log = await logged()
    with imported("transformers.generation.utils", GenerationMixin=GenerationMixin):
        criteria = GenerationMixin()._get_stopping_criteria("config")
        stopped = [criteria(Ids(length), None) for length in range(11, 31)]

    assert stopped == [False] * 19 + [True]
    assert list(criteria) == ["config"]
    assert progress_in(log) == {"done": 20, "total": 20}
    assert GenerationMixin._get_stopping_criteria is original


async def test_the_steps_of_a_diffusers_pipeline_are_counted_although_its_bar_is_off() -> None:
    class Bar:
        disable = True

        def update(self, n: float = 1) -> None:
            raise AssertionError("a bar that is off draws nothing")

    class DiffusionPipeline:
        def progress_bar(self, iterable: Any = None, total: Any = None) -> Bar:
            return Bar()

    log = await logged()
    with imported("diffusers.pipelines.pipeline_utils", DiffusionPipeline=DiffusionPipeline):
        bar = DiffusionPipeline().progress_bar(total=5)
        for _ in range(4):
            bar.update()
        counted = progress_in(log)
        log = await logged()
        assert list(DiffusionPipeline().progress_bar([1, 2, 3])) == [1, 2, 3]

    assert (counted, progress_in(log)) == ({"done": 4.0, "total": 5}, {"done": 3, "total": 3})
