"""Files in a bucket, against moto's server on loopback: a real S3 protocol, spoken over real sockets."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from runner.plugins import s3
from runner.plugins.files import Depot
from runner.plugins.s3 import Bucket
from runner.schemas.files import File
from runner.schemas.problems import ConfigError, HTTPError
from runner.schemas.settings import Settings
from runner.schemas.storing import FileDescription, FilePlace, enter_depot, store_file
from serving import HOUSE, serving

server = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
obstore = pytest.importorskip("obstore")
MiB = 1024 * 1024


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def environment(endpoint: str) -> dict[str, str]:
    httpx.put(f"{endpoint}/models", trust_env=False).raise_for_status()
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda **options: Settings(file_store=f"s3://models/{os.urandom(4).hex()}", **options)


def bucket(settings: Settings) -> Bucket:
    found = s3.file_store(settings)
    assert found is not None
    return found


def keep(store: Bucket, data: bytes = b"bytes", **described: Any) -> FilePlace:
    place = store.place(FileDescription(**{"name": "a é.txt", "content_type": "text/plain", **described}))
    store_file(store, place, [data])
    return place


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, follow_redirects=True)


def test_a_file_is_read_by_its_signed_url_with_its_type_and_name(settings: Any) -> None:
    answer = get(keep(bucket(settings()), seconds=60).url)

    assert (answer.content, answer.headers["content-type"]) == (b"bytes", "text/plain")
    assert answer.headers["content-disposition"].startswith('inline; filename="a _.txt"')


def test_what_a_browser_could_run_is_a_download(settings: Any) -> None:
    place = keep(bucket(settings()), b"<script>", content_type="text/html", seconds=60)

    assert get(place.url).headers["content-disposition"].startswith("attachment; ")


def test_a_public_bucket_has_plain_urls(settings: Any) -> None:
    store = bucket(settings(file_store_url="https://cdn.example/models/"))
    place = store.place(FileDescription(name="a é.txt"))

    assert place.url == f"https://cdn.example/models/{place.key[:8]}/{place.key}/{quote('a é.txt')}"


@pytest.mark.parametrize("options", [{}, {"file_store_url": "https://cdn.example"}, {"file_seconds": 0}], ids=["signed", "public", "ours"])
def test_its_own_files_are_read_from_the_bucket(settings: Any, options: dict[str, Any]) -> None:
    store = bucket(settings(**options))
    place = keep(store, b"x" * (3 * MiB))
    content = store.read(place.url)

    assert content is not None
    with content.reader() as reader:
        assert reader.read() == b"x" * (3 * MiB)
    assert (content.content_type, content.file_name) == ("text/plain", "a é.txt")
    content.close()
    assert store.read(place.url.replace(place.key, place.key[:-1] + "g")) is None
    assert store.read("https://else.example/a.txt") is None


def test_a_large_file_goes_up_in_parts(settings: Any) -> None:
    store = bucket(settings())
    data = os.urandom(20 * MiB)

    assert get(keep(store, data, seconds=60).url).content == data


def test_objects_of_past_days_are_swept_and_not_read(settings: Any) -> None:
    today = datetime.datetime(2026, 1, 10, tzinfo=datetime.UTC)
    store = Bucket(bucket(settings())._client, seconds=0, now=lambda: today)
    short, long, forever = keep(store, seconds=3600), keep(store, seconds=10 * 24 * 3600), keep(store)

    assert store.sweep() == 0
    today += datetime.timedelta(days=1)
    assert store.read(short.url) is None
    assert store.sweep() == 1
    for place in (long, forever):
        content = store.read(place.url)
        assert content is not None
        content.close()


def test_behaviour_41_a_bucket_that_does_not_answer_fails_the_output(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.store import S3Store

    retry: Any = {"max_retries": 0}
    options: Any = {"allow_http": True}
    store = Bucket(S3Store("models", endpoint="http://127.0.0.1:1", client_options=options, retry_config=retry), seconds=60)

    with enter_depot(Depot(store, Settings())), pytest.raises(HTTPError) as caught:
        File.from_bytes(b"x")
    assert caught.value.status == 502


def test_without_its_client_the_setting_is_refused(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)

    with pytest.raises(ConfigError, match=r"pip install 'onerunner\[s3\]'"):
        s3.file_store(settings())


@pytest.mark.parametrize("seconds", ["60", "0"], ids=["signed", "through us"])
def test_a_runner_keeps_outputs_and_uploads_in_the_bucket(environment: dict[str, str], tmp_path: Path, seconds: str) -> None:
    arguments = ("--file-store", "s3://models/served", "--file-seconds", seconds, "--data-dir", str(tmp_path))
    with serving(HOUSE / "tests" / "apps" / "files.py", *arguments, cwd=tmp_path, env=environment) as runner:
        image = runner.post("/").json()["image"]
        upload = runner.post("/files", content=b"mine", headers={"content-type": "text/plain"}).json()
        begun = runner.post("/files/upload/multipart", headers={"content-type": "text/plain", "x-fal-file-name": "b.txt"}).json()
        with runner.client() as client:
            place = f"{begun['access_url'].removeprefix(runner.url)}/multipart/{begun['uploadId']}"
            parts = [client.put(f"{place}/{n}", content=b"part%d " % n).json() for n in (1, 2)]
            assert client.post(f"{place}/complete", json={"parts": parts}).status_code == 200

        assert get(image["url"]).content[:4] == b"\x89PNG"
        assert image["url"].startswith(runner.url if seconds == "0" else environment["AWS_ENDPOINT_URL"])
        assert runner.post("/read", {"url": upload["url"]}).json() == "mine"
        assert get(begun["access_url"]).text == "part1 part2 "
        assert runner.post("/read", {"url": begun["access_url"]}).json() == "part1 part2 "
        assert runner.get("/files/" + "0" * 40 + "/x").status_code == 404
