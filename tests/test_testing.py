"""The testing kit (contract 10): an app's endpoints as methods, in this process, on a port, in another process, at a URL."""

from __future__ import annotations

import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
import structlog
from runner.testing import AppClient, AppClientError, AsyncAppClient
from serving import HOUSE, written

import runner

sys.path.insert(0, str(HOUSE / "tests" / "apps"))
from kit import Input, Kit, NeverReady, NoWeights, Output

RED = PIL.Image.new("RGB", (3, 2), "red")


@pytest.fixture(scope="module", params=["in this process", "on a port", "another process"])
def client(request: pytest.FixtureRequest) -> Iterator[AppClient[Kit]]:
    if request.param == "on a port":
        with AppClient.connect(Kit) as connected:
            yield connected
    else:
        with AppClient(Kit, serve=request.param == "another process") as opened:
            yield opened


@pytest.fixture(scope="module")
def here() -> Iterator[AppClient[Kit]]:
    with AppClient(Kit) as opened:
        yield opened


# --- calls


def test_one_model_is_given_whole_as_a_mapping_or_by_its_fields(client: AppClient[Kit]) -> None:
    """Contract 10: docs of fal show keyword arguments, its client takes one positional one."""
    expected = Output(text="HI", n=2)

    assert client.generate(Input(prompt="hi", n=2)) == expected
    assert client.generate({"prompt": "hi", "n": 2}) == expected
    assert client.generate(prompt="hi", n=2) == expected
    assert client.generate(input=Input(prompt="hi", n=2)) == expected
    assert client.app.generate(Input(prompt="hi", n=2)) == expected


def test_plain_parameters_are_given_by_place_or_by_name(client: AppClient[Kit]) -> None:
    assert client.times(3) == 6
    assert client.times(3, 1.5) == 4.5
    assert client.times(b=1, a=5) == 5


def test_each_parameter_travels_where_its_endpoint_reads_it(client: AppClient[Kit]) -> None:
    told = client.item(Input(prompt="body"), item="a b?c", flag=True, x_tag="header")

    assert told == {"item": "a b?c", "prompt": "body", "flag": True, "tag": "header"}
    assert client.both(Input(prompt="1"), {"prompt": "2"}) == ["1", "2"]


def test_what_is_wrong_is_sent_and_refused_by_the_server(client: AppClient[Kit]) -> None:
    with pytest.raises(AppClientError) as refused:
        client.generate(prompt=1, n=-1)

    error = refused.value
    assert (error.status_code, [fault["loc"] for fault in error.detail]) == (422, [["body", "prompt"], ["body", "n"]])
    assert error.message.startswith(f"Failed to POST {client.url}/: 422 ")
    assert error.headers["x-fal-request-id"] == error.request_id


def test_a_status_of_the_authors_own_is_the_error(client: AppClient[Kit]) -> None:
    with pytest.raises(AppClientError) as refused:
        client.generate(prompt="teapot")

    assert (refused.value.status_code, refused.value.detail, refused.value.headers["x-spout"]) == (418, {"short": "stout"}, "yes")


def test_a_method_that_raises_shows_its_own_lines_and_what_it_printed(here: AppClient[Kit]) -> None:
    with pytest.raises(AppClientError) as failed:
        here.generate(prompt="boom")

    shown = str(failed.value)
    assert (failed.value.status_code, failed.value.error_type) == (500, "runner_server_error")
    assert "stdout: generating boom" in shown
    assert 'raise ValueError("boom!")\n  ValueError: boom!' in shown
    assert str(HOUSE / "plugins") not in shown


def test_an_argument_that_the_endpoint_does_not_have_is_a_type_error(here: AppClient[Kit]) -> None:
    with pytest.raises(TypeError, match=r"times\(\) has no 'c'; it takes a, b"):
        here.times(a=1, c=2)
    with pytest.raises(TypeError, match=r"times\(\) takes 2 values and got 3; it takes a, b"):
        here.times(1, 2, 3)
    with pytest.raises(AttributeError, match=r"Kit has no endpoint 'generat'; it has generate, both, count"):
        here.generat()


def test_an_answer_may_be_looked_at_as_it_came(client: AppClient[Kit]) -> None:
    answer = client.generate.with_headers({"X-Fal-Request-Id": "mine"}).answer(prompt="a")
    refused = client.generate.answer(prompt=1)

    assert (answer.status, answer.json(), answer.headers["x-fal-request-id"]) == (200, {"text": "A", "n": 3}, "mine")
    assert refused.status == 422
    assert client.page() == "<p>hello"
    assert client.request("GET", "/nowhere").status == 404


def test_health_is_the_servers_and_the_endpoint_of_that_name_is_had_by_its_name(client: AppClient[Kit]) -> None:
    assert client.health()["status"] == "ready"
    assert client["health"]() == {"version": "of the app"}
    assert client.application == "local/kit"


def test_a_call_that_takes_too_long_is_given_up_and_cancelled() -> None:
    with AppClient(Kit, timeout=0.1) as client:
        with pytest.raises(TimeoutError, match=r"POST /waits took longer than timeout=0\.1"):
            client.waits()
        lane = client._core.host.service.lane
        while lane.occupancy["running"]:
            pass


def test_many_callers_may_call_at_once(client: AppClient[Kit]) -> None:
    """As a batch needs them (behaviour 53): the client is for any number of threads."""
    with ThreadPoolExecutor(8) as callers:
        answers = callers.map(lambda number: client.generate(prompt=f"p{number}", n=number), range(40))

    assert list(answers) == [Output(text=f"P{number}", n=number) for number in range(40)]


# --- streams


def test_items_come_as_they_are_made(client: AppClient[Kit]) -> None:
    items = client.steps()
    first = next(items)
    client.release()  # without which there is no second

    assert first == Output(text="first", n=0)
    assert list(items) == [Output(text="second", n=1)]


def test_a_closed_stream_is_cancelled(client: AppClient[Kit]) -> None:
    items = client.forever()
    assert [next(items), next(items)] == [0, 1]
    items.close()

    assert client.was_closed() is True
    assert list(items) == []


def test_a_stream_that_nobody_holds_any_more_is_cancelled(client: AppClient[Kit]) -> None:
    assert next(client.forever()) == 0

    assert client.was_closed() is True


def test_a_stream_that_fails_raises_after_its_items(client: AppClient[Kit]) -> None:
    items = client.fails()
    came = [next(items), next(items)]
    with pytest.raises(AppClientError) as failed:
        next(items)

    assert came == [{"detail": "no error", "error_type": "but an item that looks like one"}, {"text": "more"}]
    assert (failed.value.detail, failed.value.error_type) == ("Internal Server Error", "runner_server_error")


# --- realtime


def test_a_realtime_endpoint_is_a_context_in_which_messages_cross(client: AppClient[Kit]) -> None:
    with client.reverse() as socket:
        socket.send(prompt="abc")
        socket.send(Input(prompt="xyz", n=1))
        assert [socket.recv(), socket.recv()] == [Output(text="cba", n=3), Output(text="zyx", n=1)]
        with pytest.raises(AppClientError, match="INTERNAL_ERROR: prompt: Input should be a valid string"):
            socket.call(prompt=1)


def test_a_session_in_both_directions_is_iterated_over(client: AppClient[Kit]) -> None:
    with client.count() as socket:
        socket.send(prompt="a", n=2)
        messages = iter(socket)

        assert [next(messages).n, next(messages).n] == [0, 1]


def test_a_raw_socket_takes_and_gives_frames(client: AppClient[Kit]) -> None:
    with client.echo() as socket:
        assert socket.call("hello") == "hello!"
        assert socket.recv() is None


# --- the queue


def test_a_job_is_submitted_and_its_result_awaited(client: AppClient[Kit]) -> None:
    job = client.generate.submit(prompt="later")

    assert job.result() == Output(text="LATER", n=3)
    assert job.status()["status"] == "COMPLETED"
    assert job.logs == ["generating later"]


def test_a_job_that_fails_or_is_cancelled_raises(client: AppClient[Kit]) -> None:
    failed, cancelled = client.generate.submit(prompt="teapot"), client.waits.submit()
    assert cancelled.cancel() in ("OK", "CANCELLATION_REQUESTED")

    with pytest.raises(AppClientError) as first:
        failed.result()
    with pytest.raises(AppClientError) as second:
        cancelled.result()
    assert (first.value.status_code, second.value.status_code) == (418, 499)


# --- files


def test_a_file_is_given_as_picture_bytes_path_or_file(client: AppClient[Kit], tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    data = path.read_bytes()

    for given in (RED, data, path, runner.File.from_bytes(data, "image/png"), f"data:image/png;base64,{b64encode(data).decode()}"):
        assert client.twice(given).to_pil().size == (6, 4)


def test_files_in_fields_and_lists_are_found(client: AppClient[Kit], tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")

    assert client.sizes(first=RED, others=[b"12", note]) == [3, 2, 5]
    assert client.named(note) == ["note.txt", "text/plain", "hello"]


def test_a_large_file_is_uploaded_first(client: AppClient[Kit]) -> None:
    assert client.sizes(first=RED, others=[bytes(5_000_000)]) == [3, 5_000_000]


# --- where the app runs


def test_what_a_client_has_taken_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate()), sys.stdout, structlog.is_configured()
    with AppClient(Kit) as client:
        client.generate.submit(prompt="x").result()
        folder = Path(client._core.host.service.settings.data_dir)
        assert folder.is_dir()

    assert (set(threading.enumerate()) - before[0], sys.stdout, structlog.is_configured()) == (set(), *before[1:])
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_the_app_prints_and_logs_is_seen_also_where_structlog_is_the_authors_own(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    try:
        with AppClient(Kit) as client:
            client.generate(prompt="seen")
            with pytest.raises(AppClientError, match="stdout: generating boom"):
                client.generate(prompt="boom")
    finally:
        structlog.reset_defaults()

    printed = capsys.readouterr().out
    assert "generating seen\n" in printed
    assert "generating boom\n" in printed
    assert "event='request.failed'" in printed


def test_a_url_of_the_server_or_of_the_app_on_it_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_KEY", "id:secret")
    with AppClient.connect(Kit) as server:
        for url in (server.url, f"{server.url}/run/local/kit"):
            with AppClient(Kit, url) as client:
                assert client.generate(prompt="x").text == "X"
                assert client.generate.submit(prompt="x").result().text == "X"
                assert client.twice(RED).to_pil().size == (6, 4)
                assert client.sizes(first=RED, others=[bytes(5_000_000)]) == [3, 5_000_000]
                assert client._core._headers["authorization"] == "Key id:secret"


def test_connect_gives_an_address_that_others_can_call() -> None:
    """Contract 10: in this process, on a free port, with no key."""
    with AppClient.connect(Kit, startup_timeout=30, health_request_timeout=5, health_check_interval=0.1) as client:
        answer = httpx.post(f"{client.url}/", json={"prompt": "x"}, trust_env=False)

    assert answer.json() == {"text": "X", "n": 3}


def test_settings_and_plugins_are_those_of_the_command_line() -> None:
    class Stamp:
        @runner.hookimpl
        def response_headers(self, service: Any) -> Any:
            return lambda request: [(b"x-stamp", b"yes")]

    with AppClient(Kit, settings={"auth_key": ["secret"]}, plugins=[Stamp()]) as client:
        refused = client.generate.answer(prompt="x")
        let_in = client.generate.with_headers({"Authorization": "Key secret"}).answer(prompt="x")

    assert (refused.status, let_in.status, let_in.headers["x-stamp"]) == (401, 200, "yes")


def test_an_app_that_does_not_start_says_why() -> None:
    with pytest.raises(AppClientError, match="NoWeights did not start: setup failed: OSError") as failed, AppClient(NoWeights):
        pass
    with pytest.raises(AppClientError, match=r"it was not ready after 0\.1 s; give startup_timeout"), AppClient(NeverReady, startup_timeout=0.1):
        pass
    with pytest.raises(AppClientError, match="NoWeights did not start: the process ended with code 1") as ended, AppClient(NoWeights, serve=True):
        pass

    assert "stdout: looking for weights" in str(failed.value)
    assert "looking for weights" in str(ended.value)


def test_what_cannot_be_is_said_with_what_to_write() -> None:
    class Inside(runner.App):
        @runner.endpoint("/")
        def run(self) -> str:
            return "x"

    with pytest.raises(runner.ConfigError, match="Inside cannot be imported by another process"), AppClient(Inside, serve=True):
        pass
    with pytest.raises(runner.ConfigError, match=r"AppClient takes the app's class or its name, not an object of Inside"):
        AppClient(Inside())  # type: ignore[arg-type]
    with pytest.raises(runner.ConfigError, match="write `with AppClient"):
        AppClient(Inside).health()
    with pytest.raises(runner.ConfigError, match="settings: "), AppClient(Inside, settings={"port": "x"}):
        pass
    with AppClient(Inside) as client:
        assert client.run() == "x"
    with pytest.raises(runner.ConfigError, match="a client is opened once"), client:
        pass


def test_apps_written_for_fal_are_tested_alike(tmp_path: Path) -> None:
    """Where fal is not installed, importing the kit lets the app's `import fal` find what the server offers."""
    written(
        tmp_path,
        """
import fal
from pydantic import BaseModel
class Input(BaseModel):
    prompt: str
class Output(BaseModel):
    text: str
class MyApp(fal.App):
    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        if input.prompt == "no":
            raise fal.exceptions.FieldException("prompt", "not that")
        return Output(text=input.prompt)
""",
        "of_fal.py",
    )
    with AppClient(str(tmp_path / "of_fal.py:MyApp")) as client:
        answer = client.generate(prompt="yes")
        with pytest.raises(AppClientError) as refused:
            client.generate(prompt="no")
    module = sys.modules["of_fal"]
    from fal.app import AppClient as FalAppClient  # type: ignore[import-not-found]

    with FalAppClient.connect(module.MyApp) as client:
        assert client.generate(module.Input(prompt="again")).text == "again"

    assert answer == module.Output(text="yes")
    assert (refused.value.status_code, refused.value.detail[0]["msg"]) == (422, "not that")
    assert module.MyApp.get_endpoints() == ["/"]


def test_it_is_there_in_every_way_of_importing_it() -> None:
    """The checkout; an editable install and the wheel are in test_names.py."""
    program = "from runner.testing import AppClient, cancel_at; import runner.testing as kit; assert kit.AppClient is AppClient"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=HOUSE)


# --- async


@pytest.mark.anyio
async def test_the_async_twin_runs_the_app_on_the_loop_of_its_test() -> None:
    async with AsyncAppClient(Kit) as client:
        assert await client.generate(prompt="hi") == Output(text="HI", n=3)
        with pytest.raises(AppClientError) as refused:
            await client.generate(prompt=1)

        items = client.steps()
        first = await anext(items)
        await client.release()
        assert [first.text, *[item.text async for item in items]] == ["first", "second"]

        async with client.forever() as stream:
            assert await anext(stream) == 0
        assert await client.was_closed()

        async with client.reverse() as socket:
            assert (await socket.call(prompt="abc")).text == "cba"
        job = await client.generate.submit(prompt="later")
        assert await job.result() == Output(text="LATER", n=3)
        assert await (await client.twice(RED)).as_bytes_async()
        assert (await client.health())["status"] == "ready"
    assert refused.value.status_code == 422


@pytest.mark.anyio
async def test_the_async_twin_serves_in_another_process_and_on_a_port() -> None:
    async with AsyncAppClient(Kit, serve=True) as client:
        assert [item async for item in client.steps.with_headers({"accept": "text/event-stream"})() if await client.release() is None]
    async with AsyncAppClient.connect(Kit) as client:
        assert (await client.generate(prompt="x")).text == "X"
