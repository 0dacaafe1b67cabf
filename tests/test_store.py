"""Files go out as URLs that work, come in without passing through memory, and leave when their time is up
(behaviours 37-42, contract checks 28-33 and 67)."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy
import PIL.Image
import pytest
import torch
from runner.plugins.files import Audio, CompressedFile, Depot, Image, archives
from runner.plugins.files.forms import FormReader
from runner.plugins.files.parts import PartSent, Uploads
from runner.plugins.files.serving import bounds_of
from runner.plugins.files.store import RESERVE, LocalStore, digest_kind
from runner.schemas.files import File, Unfetchable
from runner.schemas.problems import HTTPError, InvalidInput
from runner.schemas.request import Request, _current
from runner.schemas.settings import Settings
from runner.schemas.storing import (
    Errand,
    FileData,
    FileDescription,
    FilePlace,
    FileRepository,
    content_disposition,
    enter_depot,
    store_file,
)
from serving import HOUSE, Runner, serving

APP = HOUSE / "tests" / "apps" / "files.py"
MiB = 1024 * 1024


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("files")
    with serving(APP, "--data-dir", str(folder / "data"), cwd=folder) as runner:
        yield runner


def made(app: Runner, text: str = "made", **input: Any) -> Any:
    return app.post("/made", {"text": text, **input}).json()


def get(url: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(url, headers=named, trust_env=False, timeout=30)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "files", now=clock)
    yield store
    store.close()


def keep(store: LocalStore, data: bytes = b"bytes", **described: Any) -> FilePlace:
    place = store.place(FileDescription(**{"name": "a.txt", **described}))
    store_file(store, place, [data])
    return place


def on_disk(store: LocalStore) -> list[str]:
    """The names of all that the store holds, its index apart."""
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file() and not path.name.startswith("index"))


@pytest.fixture
def depot(store: LocalStore) -> Iterator[Depot]:
    """A depot for Files that a test makes, as if a service ran."""
    depot = Depot(store, Settings(public_url="https://here.example"))
    with enter_depot(depot):
        yield depot


# --- Outputs (checks 28 and 29, behaviours 40 and 41)


@pytest.mark.parametrize("path", ["/", "/model"])
def test_check_28_an_output_is_a_url_that_anybody_can_fetch(app: Runner, path: str) -> None:
    image = app.post(path).json()["image"]

    answer = get(image["url"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == image["content_type"]
    assert len(answer.content) == image["file_size"]
    assert PIL.Image.open(io.BytesIO(answer.content)).size == (image["width"], image["height"]) == (8, 4)


def test_what_was_made_comes_back_byte_for_byte_under_its_name(app: Runner) -> None:
    file = made(app, "grüße", content_type="text/plain; charset=utf-8", name="Grüße an alle.txt")

    answer = get(file["url"])
    assert (answer.text, answer.headers["content-type"]) == ("grüße", "text/plain; charset=utf-8")
    assert file["url"].endswith("/Gr%C3%BC%C3%9Fe%20an%20alle.txt")
    assert "filename*=UTF-8''Gr%C3%BC%C3%9Fe%20an%20alle.txt" in answer.headers["content-disposition"]


@pytest.mark.parametrize("path", ["/path", "/setup", "/loop"])
def test_files_are_made_from_paths_in_setup_and_on_the_loop(app: Runner, path: str) -> None:
    file = app.post(path).json()

    assert len(get(file["url"]).content) == file["file_size"]


def test_threads_that_the_author_started_store_files_too(app: Runner) -> None:
    files = app.post("/threads").json()

    assert [get(file["url"]).content for file in files] == [b"a", b"b"]


def test_the_url_begins_with_what_the_caller_called(app: Runner) -> None:
    file = app.post("/made", {}, headers={"host": "models.example:8443"}).json()

    assert re.fullmatch(r"http://models\.example:8443/files/[0-9a-f]{32}/[0-9a-f]{32}\.bin", file["url"])


@pytest.mark.parametrize("host", ["fal.run", "queue.fal.run", "rest.fal.ai", "v3.fal.media", "fal.run:443", "a b", "x/y", "<script>", ""])
def test_no_url_begins_with_a_host_of_fals_or_with_what_is_no_host(host: str, store: LocalStore) -> None:
    depot = Depot(store, Settings(), lambda: "http://127.0.0.1:8000")
    request = Request("r", scope={"scheme": "https", "headers": [(b"host", host.encode())]})

    assert depot.absolute("/files/x", request) == "http://127.0.0.1:8000/files/x"


def test_public_url_is_the_base_that_all_callers_see(store: LocalStore) -> None:
    depot = Depot(store, Settings(public_url="https://cdn.example/models/"))
    request = Request("r", scope={"scheme": "http", "headers": [(b"host", b"127.0.0.1:8000")]})

    assert depot.absolute("/files/x", request) == "https://cdn.example/models/files/x"


def test_check_29_in_memory_is_a_data_uri(app: Runner) -> None:
    assert made(app, "ab", content_type="text/plain", repository="in_memory")["url"] == "data:text/plain;base64,YWI="


@pytest.mark.parametrize("name", ["fal_v2", "cdn"])
def test_check_29_old_names_warn_and_mean_the_same_store(name: str, depot: Depot) -> None:
    with pytest.warns(DeprecationWarning, match=name):
        file = File.from_bytes(b"ab", repository=name)

    assert file.url.startswith("https://here.example/files/")


@pytest.mark.parametrize(
    ("name", "told"), [("s4", '"s4" is not a valid built-in file repository'), ("r2", "--file-store"), ("gcp_storage", "--file-store")]
)
def test_an_unknown_repository_is_a_value_error(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        File.from_bytes(b"", repository=name)


class Shelf(FileRepository):
    """A repository of the author's own."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.saved: list[Any] = []

    def save(self, data: FileData, object_lifecycle_preference: Any = None, **options: Any) -> str:
        if self.broken:
            raise OSError("the shelf is broken")
        self.saved.append((data.data, data.content_type, data.file_name, object_lifecycle_preference, options))
        return "https://shelf.example/1"


def test_a_repository_of_the_authors_own_is_given_the_file(tmp_path: Path) -> None:
    shelf, path = Shelf(), tmp_path / "a.png"
    path.write_bytes(b"cd")
    caller = Request("r", scope={"headers": [(b"x-fal-object-lifecycle-preference", b'{"expiration_duration_seconds": 60}')]})

    first = File.from_bytes(b"ab", file_name="a.txt", repository=shelf, request=caller, save_kwargs={"acl": "x"})
    second = File.from_path(path, repository=shelf)

    assert first.url == second.url == "https://shelf.example/1"
    assert shelf.saved == [
        (b"ab", "text/plain", "a.txt", {"expiration_duration_seconds": 60}, {"acl": "x"}),
        (b"cd", "image/png", "a.png", None, {}),
    ]


def test_fallbacks_are_tried_in_turn_and_the_last_failure_is_raised(depot: Depot, caplog: pytest.LogCaptureFixture) -> None:
    assert File.from_bytes(b"ab", "x/y", repository=Shelf(broken=True), fallback_repository=["in_memory"]).url == "data:x/y;base64,YWI="
    assert "the shelf is broken" in caplog.text

    with pytest.raises(OSError, match="the shelf is broken"):
        File.from_bytes(b"ab", repository=Shelf(broken=True), fallback_repository=Shelf(broken=True))


def test_outside_a_service_a_file_stays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab")

    assert File.from_path(tmp_path / "a.txt").url == File.from_bytes(b"ab", file_name="a.txt").url == "data:text/plain;base64,YWI="


def test_type_and_name_are_guessed_from_each_other() -> None:
    named, typed, bare = File.from_bytes(b"", file_name="a/b.png"), File.from_bytes(b"", "image/webp"), File.from_bytes(b"")

    assert (named.content_type, named.file_name) == ("image/png", "b.png")
    assert re.fullmatch(r"[0-9a-f]{32}\.webp", typed.file_name or "")
    assert (bare.content_type, (bare.file_name or "")[-4:]) == ("application/octet-stream", ".bin")


@pytest.mark.parametrize("path", ["/stream", "/stream-async"])
def test_behaviour_41_each_item_of_an_iterator_is_stored_once(tmp_path: Path, path: str) -> None:
    data = tmp_path / "data"
    with serving(APP, "--data-dir", str(data), cwd=tmp_path) as runner:
        lines = [json.loads(line[6:]) for line in runner.post(path).text.split("\n\n") if line]

    urls = [line.get("image", line)["url"] for line in lines]
    store = LocalStore(data / "files")
    assert len(urls) == len(set(urls)) == {"/stream": 3, "/stream-async": 2}[path]
    assert len(on_disk(store)) == len(urls) + 1  # and what setup made


def test_behaviour_41_an_output_that_cannot_be_stored_fails_the_request(tmp_path: Path) -> None:
    with serving(APP, "--data-dir", str(tmp_path), "--max-stored-bytes", "20", cwd=tmp_path) as runner:
        answer = runner.post("/made", {"text": "more than twenty bytes"})

        assert answer.status_code == 507
        assert "no room" in answer.json()["detail"]
        assert made(runner, "seven b")["url"]


def test_an_upload_that_is_passed_on_is_stored_once_it_goes_out(app: Runner) -> None:
    echoed = app.post("/echo", files={"file": ("a.txt", b"mine", "text/plain")}).json()

    assert get(echoed["url"]).content == b"mine"
    assert app.post("/echo", {"url": "https://else.example/x"}).json()["url"] == "https://else.example/x"


# --- GET and HEAD (behaviour 40)


@pytest.fixture(scope="module")
def url(app: Runner) -> str:
    return str(made(app, "0123456789", content_type="text/plain", name="digits.txt")["url"])


@pytest.mark.parametrize(
    ("asked", "status", "body", "range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
def test_behaviour_40_ranges(url: str, asked: str, status: int, body: bytes | None, range: str | None) -> None:
    answer = get(url, range=asked)

    assert (answer.status_code, answer.headers.get("content-range")) == (status, range)
    assert body is None or answer.content == body


def test_behaviour_40_a_range_holds_only_for_the_content_it_was_meant_for(url: str) -> None:
    etag = get(url).headers["etag"]

    assert get(url, range="bytes=0-1", if_range=etag).content == b"01"
    assert get(url, range="bytes=0-1", if_range='"other"').content == b"0123456789"


def test_behaviour_40_head_says_all_that_get_says_and_sends_nothing(url: str) -> None:
    head, whole = httpx.head(url, trust_env=False), get(url)

    ours = {"date", "x-fal-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ours} == {k: v for k, v in whole.headers.items() if k not in ours}
    assert (head.content, head.headers["content-length"]) == (b"", "10")


def test_behaviour_40_who_has_it_already_gets_304(url: str) -> None:
    etag = get(url).headers["etag"]

    for known in (etag, f'"x", W/{etag}', "*"):
        answer = get(url, if_none_match=known)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert get(url, if_none_match='"x"').status_code == 200


def test_behaviour_40_the_url_is_not_to_be_guessed_and_not_to_be_varied(app: Runner, url: str) -> None:
    key = url.split("/")[-2]
    assert len(key) * 4 == 128  # bits, from the system's own randomness
    for wrong in (f"/files/{key}/other.txt", f"/files/{key[:-1]}0/digits.txt", f"/files/{key}/", f"/files/{key}", "/files/..%2f..%2fx/y"):
        if app.url + wrong != url:
            assert app.get(wrong).status_code == 404, wrong


@pytest.mark.parametrize("content_type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf",
                                          "text/javascript", "multipart/x-mixed-replace", "TEXT/HTML; charset=utf-8"])  # fmt: skip
def test_behaviour_40_what_a_browser_could_run_is_a_download_in_a_sandbox(app: Runner, content_type: str) -> None:
    answer = get(made(app, "<script>alert(1)</script>", content_type=content_type)["url"])

    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize("content_type", ["image/png", "video/mp4", "audio/wav", "text/plain; charset=utf-8"])
def test_behaviour_40_what_a_browser_only_shows_is_shown(app: Runner, content_type: str) -> None:
    assert get(made(app, content_type=content_type)["url"]).headers["content-disposition"].startswith("inline; ")


@pytest.mark.parametrize("content_type", ["text/plain\r\nset-cookie: a=b", "nonsense", "a/b; c=\x00", "x" * 300 + "/y", "é/x"])
def test_a_type_that_no_header_may_carry_is_no_type(app: Runner, content_type: str) -> None:
    answer = get(made(app, content_type=content_type)["url"])

    assert answer.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in answer.headers


def test_a_name_cannot_break_its_header() -> None:
    assert content_disposition('a"b\\c%d.png', "image/png") == """inline; filename="a_b_c_d.png"; filename*=UTF-8''a%22b%5Cc%25d.png"""


def test_pages_elsewhere_may_read_files(url: str) -> None:
    answer = get(url, origin="https://page.example")

    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert {"etag", "content-range"} <= {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}


def test_an_empty_file_is_a_file(app: Runner) -> None:
    answer = get(made(app, "")["url"])

    assert (answer.status_code, answer.content) == (200, b"")


def test_a_range_at_the_end_of_a_large_file_reads_only_that() -> None:
    assert bounds_of("bytes=2147483640-", 2 * 1024 * MiB) == (2147483640, 2147483648)


# --- How long it lives, and how much there may be


def test_behaviour_40_a_file_is_gone_when_its_time_is_up(store: LocalStore, clock: Clock) -> None:
    place = keep(store, seconds=60)

    clock.seconds += 59
    found = store.find(place.key)
    assert found is not None
    found.file.close()
    clock.seconds += 1
    assert store.find(place.key) is None  # before anybody swept
    assert (store.sweep(), on_disk(store)) == (1, [])


def test_a_file_that_wishes_nothing_lives_as_long_as_the_setting_says(tmp_path: Path, clock: Clock) -> None:
    store = LocalStore(tmp_path, seconds=100, now=clock)
    place, longer = keep(store), keep(store, seconds=1000)

    clock.seconds += 101
    assert (store.sweep(), store.read(place.url)) == (1, None)
    content = store.read(longer.url)
    assert content is not None
    content.close()
    store.close()


def test_the_lifecycle_header_of_a_request_decides_how_long_its_files_live(app: Runner) -> None:
    for seconds, most in ((3600, 3600), (0, 7 * 24 * 3600), ("x", 7 * 24 * 3600)):
        headers = {"x-fal-object-lifecycle-preference": json.dumps({"expiration_duration_seconds": seconds})}
        file = app.post("/made", {}, headers=headers).json()
        age = re.findall(r"max-age=(\d+)", get(file["url"]).headers["cache-control"])
        assert most - 60 < int(age[0]) <= most


def test_check_33_the_lifecycle_header_reaches_the_app_and_a_malformed_one_is_ignored(app: Runner) -> None:
    name = "x-fal-object-lifecycle-preference"

    assert app.post("/lifecycle", headers={name: '{"expiration_duration_seconds": 5}'}).json() == {"expiration_duration_seconds": 5}
    for malformed in ("{", "5", "[" * 100_000):
        assert app.post("/lifecycle", headers={name: malformed[:8000]}).json() is None
        assert app.post("/made", {}, headers={name: malformed[:8000]}).status_code == 200


def test_one_content_lies_on_disk_once_until_its_last_file_is_gone(store: LocalStore, clock: Clock) -> None:
    keep(store, b"same", seconds=10)
    second = keep(store, b"same", seconds=20, name="b.txt")

    assert len(on_disk(store)) == 1
    clock.seconds += 15
    store.sweep()
    content = store.read(second.url)
    assert content is not None
    with content.reader() as reader:
        assert reader.read() == b"same"
    clock.seconds += 15
    store.sweep()
    assert on_disk(store) == []


def test_a_budget_is_kept_and_what_expired_makes_room(tmp_path: Path, clock: Clock) -> None:
    store = LocalStore(tmp_path, most_bytes=10, now=clock)
    keep(store, b"12345678", seconds=60)

    with pytest.raises(HTTPError) as caught:
        keep(store, b"123")
    assert (caught.value.status, len(on_disk(store))) == (507, 1)
    clock.seconds += 61
    keep(store, b"1234567890")
    assert len(on_disk(store)) == 1
    store.close()


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, free_bytes=lambda folder: RESERVE + 3)

    keep(store, b"123")
    with pytest.raises(HTTPError, match="disk is full"):
        keep(store, b"1234")
    assert len(on_disk(store)) == 1
    store.close()


def test_behaviour_40_a_full_disk_is_507_and_harms_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    place = keep(store, b"here before")
    sink = store.write(store.place(FileDescription(name="b")))

    class Full:
        def write(self, chunk: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    file = sink._file  # type: ignore[attr-defined]
    file._file.close()
    monkeypatch.setattr(file, "_file", Full())
    with pytest.raises(HTTPError) as caught:
        sink.write(b"x")
    sink.abort()

    assert caught.value.status == 507
    assert len(on_disk(store)) == 1
    content = store.read(place.url)
    assert content is not None
    content.close()


def test_what_a_killed_process_was_writing_is_swept_and_what_it_had_kept_stays(tmp_path: Path, clock: Clock) -> None:
    source = f"""
import sys, os
sys.path[:0] = [{str(HOUSE)!r}]
import runner
from pathlib import Path
from runner.plugins.files.store import LocalStore
from runner.schemas.storing import FileDescription, store_file
store = LocalStore(Path({str(tmp_path)!r}))
place = store.place(FileDescription(name="a"))
store_file(store, place, [b"kept"])
sink = store.write(store.place(FileDescription(name="b")))
sink.write(b"half")
print(place.url, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    clock.seconds = time.time() + 25 * 3600
    store = LocalStore(tmp_path, now=clock)

    assert done.returncode == -signal.SIGKILL, done.stderr
    nobodys = store.blob("ab" * 32)
    nobodys.parent.mkdir()
    nobodys.write_bytes(b"moved here, and killed before the index knew")
    store.sweep_remains()
    content = store.read(done.stdout.strip())
    assert content is not None
    with content.reader() as reader:
        assert reader.read() == b"kept"
    assert len(on_disk(store)) == 1
    store.close()


def test_a_place_is_written_once(store: LocalStore) -> None:
    place = store.place(FileDescription(name="a"))
    store_file(store, place, [b"first"])

    with pytest.raises(HTTPError) as caught:
        store_file(store, place, [b"second"])
    assert (caught.value.status, len(on_disk(store))) == (410, 1)


def test_other_users_of_the_machine_cannot_list_the_files(store: LocalStore) -> None:
    keep(store)

    assert store.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("installed", [True, False])
def test_contents_are_named_by_blake3_or_where_it_is_missing_by_sha256(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if installed:
        pytest.importorskip("blake3")
    else:
        monkeypatch.setitem(sys.modules, "blake3", None)
    digest_kind.cache_clear()
    keep(store, b"")
    digest_kind.cache_clear()

    empty = {True: "af1349b9f5f9a1a6a0404dea36dcc949", False: "e3b0c44298fc1c149afbf4c8996fb924"}
    assert on_disk(store)[0].startswith(empty[installed])


def test_two_processes_may_share_a_folder(tmp_path: Path, clock: Clock) -> None:
    one, other = LocalStore(tmp_path, now=clock), LocalStore(tmp_path, now=clock)
    place = keep(one, b"same")
    keep(other, b"same")

    other.sweep()
    found = other.find(place.key)
    assert found is not None
    found.file.close()
    one.close()
    other.close()


def test_many_threads_store_and_sweep_at_once(store: LocalStore) -> None:
    places: list[FilePlace] = []

    def work(n: int) -> None:
        places.extend(keep(store, b"%d" % (i % 3)) for i in range(20))
        store.sweep()
        store.sweep_remains()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(places) == 80
    assert len(on_disk(store)) == 3


def test_nothing_is_made_on_disk_before_a_file_is_kept(store: LocalStore) -> None:
    assert store.find("0" * 32) is None
    assert (store.sweep(), store.folder.exists()) == (0, False)


# --- Inputs (checks 30, 31 and 32; behaviour 39)


def test_check_30_a_string_is_a_file_and_what_is_no_url_is_422(app: Runner) -> None:
    answer = app.post("/read-model", {"file": "not_a_valid_url"})

    assert app.post("/read-model", {"file": "data:,hi"}).json() == "hi"
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "file"])
    assert "value must be a valid URL" in answer.json()["detail"][0]["msg"]


def test_check_31_the_servers_own_files_are_read_although_its_address_is_private(app: Runner) -> None:
    url = made(app, "mine")["url"]

    assert app.post("/read", {"url": url}).json() == "mine"
    assert app.post("/read", {"url": url.replace("127.0.0.1", "localhost")}).json() == "mine"
    assert app.post("/mode", app.post("/").json()["image"]).json() == [8, 4]


def test_check_31_other_paths_of_the_server_stay_private(app: Runner) -> None:
    url = made(app, "mine")["url"]

    for other in (app.url + "/health", url + "/x", url.replace("/files/", "/filez/"), re.sub(r"[0-9a-f]{32}", "0" * 32, url)):
        answer = app.post("/read", {"url": other})
        assert answer.status_code == 422, other
        assert "not on the public internet" in answer.json()["detail"][0]["msg"]


def test_check_32_a_picture_of_more_than_50_mib_is_not_read(depot: Depot, store: LocalStore) -> None:
    place = keep(store, bytes(50 * MiB + 1))

    with pytest.raises(InvalidInput, match="larger than"):
        Image(f"https://here.example{place.url}").to_pil()
    assert len(File(f"https://here.example{place.url}").as_bytes()) == 50 * MiB + 1


def test_a_file_of_ours_larger_than_a_reader_takes_is_refused(depot: Depot, store: LocalStore) -> None:
    place = keep(store, b"12345")

    with pytest.raises(Unfetchable, match="larger than 4"):
        depot.fetch(f"http://x{place.url}", lambda: False, Errand(most_bytes=4))


def zipped(**files: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return held.getvalue()


def test_an_archive_is_a_folder_that_is_gone_with_it() -> None:
    packed = CompressedFile.received(zipped(**{"a.txt": b"one", "deep/b.txt": b"two", "deep/c.png": b""}), file_name="x.zip")

    paths = list(packed)
    assert sorted(path.name for path in paths) == ["a.txt", "b.txt", "c.png"]
    assert [path.read_bytes() for path in packed.glob("deep/*.txt")] == [b"two"]
    assert list(packed.iter()) == paths
    del packed
    assert not any(path.exists() for path in paths)


def test_behaviour_39_names_that_lead_out_of_an_archive_do_not() -> None:
    packed = CompressedFile.received(zipped(**{"../../up.txt": b"1", "/abs.txt": b"2", "..\\w.txt": b"3"}))
    paths = list(packed)

    assert sorted(path.name for path in paths) == ["abs.txt", "up.txt", "w.txt"]
    assert len({path.parent for path in paths}) == 1


@pytest.mark.parametrize("held", [b"", b"no zip", zipped(a=b"x" * 1000)[:-30]], ids=["empty", "text", "cut"])
def test_what_is_no_archive_is_refused(held: bytes) -> None:
    with pytest.raises(InvalidInput, match="Archive could not be unpacked"):
        list(CompressedFile.received(held))


def test_behaviour_39_a_zip_bomb_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(archives, "FREE_OF_RATIO", MiB)
    monkeypatch.setattr(archives.tempfile, "tempdir", str(tmp_path))
    bomb = CompressedFile.received(zipped(a=bytes(8 * MiB)))

    with pytest.raises(InvalidInput, match="more bytes than this server allows"):
        list(bomb)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_ENTRIES", 2)

    with pytest.raises(InvalidInput, match="more than 2 files"):
        list(CompressedFile.received(zipped(a=b"", b=b"", c=b"")))


# --- Uploads (behaviours 37 and 42)


def put_file(app: Runner, data: bytes, **headers: str) -> Any:
    answer = app.post("/files", content=data, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_behaviour_37_a_raw_upload_becomes_a_file(app: Runner) -> None:
    file = put_file(app, b"bytes", content_type="image/png", x_fal_file_name="../a b.png")

    assert (file["content_type"], file["file_name"], file["file_size"]) == ("image/png", "a b.png", 5)
    assert get(file["url"]).content == b"bytes"
    assert app.post("/read", file).json() == "bytes"


def test_behaviour_37_a_form_brings_one_file_or_several(app: Runner) -> None:
    one = app.post("/files", files={"file": ("a.txt", b"one", "text/plain")}, data={"note": "ignored"})
    two = app.post("/files", files=[("f", ("a.txt", b"one")), ("f", ("b.bin", bytes(3 * MiB)))]).json()

    assert (one.status_code, one.headers["location"]) == (201, one.json()["url"])
    assert [(f["file_name"], f["content_type"], f["file_size"]) for f in two] == [
        ("a.txt", "text/plain", 3), ("b.bin", "application/octet-stream", 3 * MiB),
    ]  # fmt: skip
    assert get(two[1]["url"]).content == bytes(3 * MiB)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "ends too early"),
        (b"--x--", "holds no file"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\ntext\r\n--x--\r\n", "holds no file"),
        (b'--x\r\nContent-Disposition: form-data; name=a; filename="a"\r\n\r\nhalf', "ends too early"),
        (b"--x\r\nContent-Type: text/plain\r\n\r\n\r\n--x--", "no name"),
        (b"--x\r\n" + b"A: b\r\n" * 500 + b"\r\n\r\n--x--", "too long"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 1001 + b"--x--", "more than 1000 parts"),
    ],
)
def test_a_broken_form_is_400_and_leaves_nothing(tmp_path_factory: Any, app: Runner, body: bytes, told: str) -> None:
    answer = app.post("/files", content=body, headers={"content-type": "multipart/form-data; boundary=x"})

    assert (answer.status_code, told in answer.text) == (400, True), answer.text


async def test_a_form_is_the_same_however_it_is_cut() -> None:
    body = (
        b'preamble\r\n--x\r\nContent-Disposition: form-data; name="a"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        b"one\r\n--y\r\n-\r\n\r\n--x\r\nContent-Disposition: form-data; name=b\r\n\r\n\r\n--x--\r\nepilogue"
    )

    async def cut(size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    for size in (1, 2, 3, 7, 64, 1000):
        reader, found = FormReader(cut(size), "multipart/form-data; boundary=x"), []
        while (part := await reader.next_part()) is not None:
            found.append((part.name, part.file_name, b"".join([chunk async for chunk in reader.data()])))
        assert found == [("a", "a.txt", b"one\r\n--y\r\n-\r\n"), ("b", None, b"")], size


def test_an_upload_above_the_limit_is_refused_before_it_is_sent_and_while_it_is(tmp_path: Path) -> None:
    def unannounced() -> Iterator[bytes]:
        for _ in range(16):
            yield bytes(MiB)

    with serving(APP, "--data-dir", str(tmp_path), "--max-file-bytes", str(2 * MiB), cwd=tmp_path) as runner:
        announced = runner.post("/files", content=bytes(2 * MiB + 1))
        put_file(runner, bytes(2 * MiB))
        assert runner.post("/files", content=unannounced()).status_code == 413
        assert runner.post("/nowhere", content=unannounced()).status_code == 404
        kept = [path for path in (tmp_path / "files").rglob("*") if path.is_file() and path.stat().st_size >= MiB]

    assert (announced.status_code, announced.headers["connection"]) == (413, "close")
    assert len(kept) == 1


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with serving(APP, "--data-dir", str(tmp_path), cwd=tmp_path) as runner:

        def half() -> Iterator[bytes]:
            yield bytes(2 * MiB)
            raise RuntimeError("the client dies")

        with pytest.raises(RuntimeError):
            runner.post("/files", content=half(), headers={"content-length": str(4 * MiB)})
        runner.wait_for("request.finished", path="/files", status=499)

        assert list((tmp_path / "files" / "partial").iterdir()) == []


def test_a_compressed_upload_is_refused_since_its_bytes_would_be_others(app: Runner) -> None:
    assert app.post("/files", content=b"x", headers={"content-encoding": "gzip"}).status_code == 415


def memory(process: int) -> int:
    """What the process has in memory of its own, in bytes."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_behaviour_42_a_large_file_passes_through_with_bounded_memory(tmp_path: Path) -> None:
    size = 256 * MiB  # the benchmark takes 2 GiB; what grows with the file would show here too
    block = os.urandom(MiB)

    with serving(APP, "--data-dir", str(tmp_path), cwd=tmp_path) as runner:
        put_file(runner, block)
        before, most, over = memory(runner.process.pid), 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not over.wait(0.01):
                most = max(most, memory(runner.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            file = put_file(runner, (block for _ in range(size // MiB)))  # type: ignore[arg-type]
            with httpx.stream("GET", file["url"], trust_env=False) as answer:
                got = sum(len(chunk) for chunk in answer.iter_raw())
            length = runner.post("/length", file).json()
        finally:
            over.set()
            watcher.join()

    assert (file["file_size"], got, length) == (size, size, size)
    assert most - before < 64 * MiB


def test_a_download_that_nobody_reads_any_more_ends(tmp_path: Path) -> None:
    with serving(APP, "--data-dir", str(tmp_path), cwd=tmp_path) as runner:
        file = put_file(runner, (bytes(MiB) for _ in range(64)))  # type: ignore[arg-type]
        with httpx.stream("GET", file["url"], trust_env=False) as answer:
            next(answer.iter_raw())
        line = runner.wait_for("request.finished", method="GET", status=499)

    assert line["bytes"] < 64 * MiB


# --- fal's upload protocol (contract 4.4, check 67)


def test_a_token_says_where_to_upload_and_when_it_ends(app: Runner) -> None:
    token = app.post("/storage/auth/token?storage_type=fal-cdn-v3", {}).json()

    assert token["token_type"] == "Bearer"
    assert token["base_url"] == app.url
    assert token["expires_at"].endswith("+00:00")


def test_a_small_file_goes_up_as_the_python_client_sends_it(app: Runner) -> None:
    headers = {"content-type": "text/plain", "x-fal-file-name": "a.txt", "x-fal-object-lifecycle": '{"expiration_duration_seconds": 60}'}
    access_url = app.post("/files/upload", content=b"small", headers=headers).json()["access_url"]

    answer = get(access_url)
    assert (answer.content, answer.headers["content-type"]) == (b"small", "text/plain")
    assert int(re.findall(r"max-age=(\d+)", answer.headers["cache-control"])[0]) <= 60


@pytest.mark.parametrize("kind", ["gcs", "fal-cdn-v3"])
def test_a_small_file_goes_up_to_a_place_asked_for_before(app: Runner, kind: str) -> None:
    asked = {"content_type": "image/png", "file_name": "a.png"}
    place = app.post(f"/storage/upload/initiate?storage_type={kind}", asked).json()

    assert get(place["file_url"]).status_code == 404
    sent = httpx.put(place["upload_url"], content=b"png", headers={"content-type": "image/png"}, trust_env=False)
    assert sent.status_code == 200
    assert sent.json()
    assert (get(place["file_url"]).content, get(place["file_url"]).headers["content-type"]) == (b"png", "image/png")
    assert httpx.put(place["upload_url"], content=b"other", trust_env=False).status_code == 410
    assert get(place["file_url"]).content == b"png"


def begun(app: Runner, protocol: str) -> tuple[str, str]:
    """Where parts go, and where the file will be, as each client learns it."""
    if protocol == "python":
        begun = app.post("/files/upload/multipart", headers={"content-type": "text/plain", "x-fal-file-name": "big é.txt".encode()}).json()
        return f"{begun['access_url']}/multipart/{begun['uploadId']}", begun["access_url"]
    begun = app.post("/storage/upload/initiate-multipart", {"content_type": "text/plain", "file_name": "big é.txt"}).json()
    return begun["upload_url"], begun["file_url"]


@pytest.mark.parametrize("protocol", ["python", "javascript"])
def test_check_67_parts_answer_with_an_etag_in_header_and_body_and_become_one_file(app: Runner, protocol: str) -> None:
    place, file_url = begun(app, protocol)
    parts = []
    for number, data in ((2, b"world"), (1, b"hello, ")):
        answer = httpx.put(f"{place}/{number}", content=data, trust_env=False)
        assert answer.json() == {"partNumber": number, "etag": answer.headers["etag"]}
        parts.append(answer.json())

    done = httpx.post(f"{place}/complete", json={"parts": parts}, trust_env=False)
    assert done.status_code == 200
    assert get(file_url).text == "hello, world"
    assert get(file_url).headers["content-type"] == "text/plain"
    assert httpx.post(f"{place}/complete", json={"parts": parts}, trust_env=False).json() == done.json()  # a client that tries again


def test_parts_that_are_missing_changed_or_listed_twice_are_refused(app: Runner) -> None:
    place, file_url = begun(app, "javascript")
    first = httpx.put(f"{place}/1", content=b"a", trust_env=False).json()
    again = httpx.put(f"{place}/1", content=b"b", trust_env=False).json()

    for parts in ([], [first], [again, again], [again, {"partNumber": 2, "etag": "x"}]):
        assert httpx.post(f"{place}/complete", json={"parts": parts}, trust_env=False).status_code == 400
    assert get(file_url).status_code == 404
    assert httpx.post(f"{place}/complete", json={"parts": [again]}, trust_env=False).status_code == 200
    assert get(file_url).content == b"b"


@pytest.mark.parametrize("upload", ["0" * 32, "x", "..", "%2e%2e"])
def test_an_unknown_upload_is_404(app: Runner, upload: str) -> None:
    assert httpx.put(f"{app.url}/uploads/{upload}/1", content=b"a", trust_env=False).status_code == 404


def test_an_upload_in_parts_goes_on_after_a_restart(tmp_path: Path) -> None:
    options = ("--data-dir", str(tmp_path), "--public-url", "http://files.example")
    with serving(APP, *options, cwd=tmp_path) as runner:
        begun = runner.post("/storage/upload/initiate-multipart", {"content_type": "text/plain", "file_name": "a.txt"}).json()
        path = begun["upload_url"].removeprefix("http://files.example")
        with runner.client() as client:
            first = client.put(f"{path}/1", content=b"be").json()
        runner.signal(signal.SIGKILL)
        runner.wait()

    with serving(APP, *options, cwd=tmp_path) as runner, runner.client() as client:
        here = client.get(path).json()
        second = client.put(f"{path}/2", content=b"fore").json()
        assert client.post(f"{path}/complete", json={"parts": [first, second]}).status_code == 200
        assert client.get(begun["file_url"].removeprefix("http://files.example")).text == "before"

    assert [(part["partNumber"], part["etag"], part["size"]) for part in here["parts"]] == [(1, first["etag"], 2)]


def test_a_client_that_asks_twice_at_once_gets_one_file(tmp_path: Path, store: LocalStore) -> None:
    uploads = Uploads(tmp_path / "uploads", store, 100)
    place = store.place(FileDescription(name="a"))
    upload = uploads.begin(place, "u")
    sink = uploads.part(upload, 1)
    sink.write(b"all")
    sink.commit()
    listed = [PartSent(part_number=1, etag=sink.etag)]

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda _: uploads.complete(upload, listed).url, range(2)))
    assert told == ["u", "u"]
    assert uploads.parts(upload) == []


def test_an_upload_that_nobody_goes_on_with_is_swept(tmp_path: Path, store: LocalStore) -> None:
    uploads = Uploads(tmp_path / "uploads", store, 100)
    place = store.place(FileDescription(name="a"))
    old, fresh = uploads.begin(place, "u"), uploads.begin(place, "u")
    os.utime(tmp_path / "uploads" / old, (1, 1))

    uploads.sweep()
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [fresh]


STOCK_CLIENT = """
import sys
from fal_client import client as module
module.REST_URL = module.CDN_URL = sys.argv[1]
module.MULTIPART_THRESHOLD, module.MULTIPART_CHUNK_SIZE = 3 << 20, 1 << 20
client = module.SyncClient(key="any:thing")
print(client.upload(b"small", "text/plain", file_name="a.txt", lifecycle=module.StorageSettings(expires_in="1h")))
print(client.upload(b"stored", "text/plain", repository="fal"))
print(client.upload(bytes(range(256)) * 20481, "application/zip", file_name="b.zip", lifecycle=module.StorageSettings(expires_in="1d")))
"""


def test_the_stock_python_client_uploads_small_and_in_parts(app: Runner) -> None:
    pytest.importorskip("fal_client")
    env = {**os.environ, "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", STOCK_CLIENT, app.url], capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr
    small, stored, large = done.stdout.split()
    assert (get(small).text, get(stored).text) == ("small", "stored")
    assert (get(large).content == bytes(range(256)) * 20481, get(large).headers["content-type"]) == (True, "application/zip")
    for url, seconds in ((small, 3600), (large, 24 * 3600)):
        assert seconds - 60 < int(re.findall(r"max-age=(\d+)", get(url).headers["cache-control"])[0]) <= seconds


# --- Pictures, sound and arrays


def test_a_picture_keeps_its_format_in_lower_case_unless_told_otherwise() -> None:
    held = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(held, "JPEG")
    opened = PIL.Image.open(held)

    assert Image.from_pil(opened).content_type == "image/jpeg"
    assert Image.from_pil(PIL.Image.new("RGBA", (2, 2))).content_type == "image/png"
    assert Image.from_pil(PIL.Image.new("RGBA", (2, 2)), "jpg").content_type == "image/jpeg"  # without its alpha
    assert Image.from_bytes(held.getvalue(), "jpg", opened).width == 2
    assert Image.from_bytes(b"", "webp").file_name.endswith(".webp")  # type: ignore[union-attr]


@pytest.mark.parametrize(("shape", "mode"), [((4, 6, 3), "RGB"), ((4, 6, 4), "RGBA"), ((4, 6, 1), "L"), ((4, 6), "L")])
def test_a_picture_is_height_by_width_by_channels_both_ways(shape: tuple[int, ...], mode: str) -> None:
    array = numpy.random.default_rng(1).integers(0, 256, shape, dtype=numpy.uint8)
    image = Image.from_numpy(array)

    assert (image.width, image.height) == (6, 4)
    assert (image.to_numpy(mode) == array.reshape(4, 6, -1)).all()
    assert torch.equal(Image.from_torch(torch.from_numpy(array)).to_torch(mode), torch.from_numpy(array.reshape(4, 6, -1)))


@pytest.mark.parametrize("array", [numpy.zeros((2, 2, 3), numpy.float32), numpy.zeros((3, 2, 2), numpy.uint8), numpy.zeros(4, numpy.uint8)])
def test_an_array_that_is_no_picture_is_refused_with_the_shape_to_give(array: Any) -> None:
    with pytest.raises(ValueError, match=r"uint8|channels"):
        Image.from_numpy(array)


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_sound_is_channels_by_samples_both_ways(format: str) -> None:
    waveform = torch.stack([torch.linspace(-1, 1, 1000), torch.zeros(1000)])
    audio = Audio.from_torch(waveform, 16_000, format)

    back, rate = audio.to_torch()
    assert (back.shape, back.dtype, rate) == ((2, 1000), torch.float32, 16_000)
    assert torch.allclose(back, waveform, atol=1e-4)
    assert Audio.from_torch(waveform[0].half(), 8_000).to_numpy()[0].shape == (1, 1000)


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Audio could not be read"):
        Audio.received(b"no sound").to_numpy()
    with pytest.raises(ValueError, match="channels, samples"):
        Audio.from_numpy(numpy.zeros((2, 2), numpy.int16), 8000)
    with pytest.raises(ValueError, match="no format"):
        Audio.from_numpy(numpy.zeros(2, numpy.float32), 8000, "exe")


async def test_async_twins_do_what_their_brothers_do(tmp_path: Path, depot: Depot) -> None:
    (tmp_path / "a.txt").write_text("ab")

    assert await (await File.from_bytes_async(b"ab")).as_bytes_async() == b"ab"
    assert await (await File.from_path_async(tmp_path / "a.txt")).as_bytes_async() == b"ab"
    image = await Image.from_pil_async(PIL.Image.new("L", (3, 2)))
    assert (await image.to_pil_async()).size == (3, 2)
    assert (await image.save_async(tmp_path / "b.png")).stat().st_size == image.file_size


def test_a_file_that_an_endpoint_makes_of_a_url_is_fetched_by_the_same_rules(depot: Depot, store: LocalStore) -> None:
    assert File(f"https://here.example{keep(store).url}").as_bytes() == b"bytes"
    with pytest.raises(InvalidInput, match="not on the public internet"):
        File("http://169.254.169.254/latest").as_bytes()


def test_two_services_in_one_process_keep_their_files_apart(depot: Depot, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "other")
    token = _current.set(Request("r", depot=Depot(store, Settings(public_url="https://other.example"))))
    try:
        assert File.from_bytes(b"").url.startswith("https://other.example/")
    finally:
        _current.reset(token)
        store.close()
    assert File.from_bytes(b"").url.startswith("https://here.example/")




# --- Jobs of the queue


def test_the_result_of_a_job_has_urls_that_its_submitter_can_use(app: Runner) -> None:
    with app.client() as client:
        submitted = client.post("/queue/local/files/made", json={"text": "by a job"}, headers={"host": "models.example:81"}).json()
        path = submitted["response_url"].removeprefix("http://models.example:81")
        events = client.get(path + "/status/stream")
        file = client.get(path).json()

    assert '"COMPLETED"' in events.text
    assert file["url"].startswith("http://models.example:81/files/")
    assert app.get(file["url"].removeprefix("http://models.example:81")).text == "by a job"
