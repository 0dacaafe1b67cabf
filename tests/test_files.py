"""Files arrive by URL, as data: URIs and as uploads; and no URL leads into a network that is ours (behaviours 37-39)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import enum
import gc
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import PIL.Image
import pydantic
import pytest
import typing_extensions
from runner.plugins import files as plugin
from runner.plugins.files import Audio, Depot, Fetcher, Image
from runner.plugins.types import bind, describe, type_codec
from runner.schemas.endpoint import Mark
from runner.schemas.files import File, Unfetchable, Video, checked_url, safe_name
from runner.schemas.problems import ConfigError, HTTPError, InvalidInput, RequestCancelled
from runner.schemas.request import Request, enter_request
from runner.schemas.settings import Settings

PUBLIC = "93.184.216.34"
T = TypeVar("T")


# --- What the tests are made of


class Network:
    """Every address that this process connects to. Only loopback is really reached."""

    def __init__(self) -> None:
        self.connects: list[Any] = []
        self.watching = False
        self._installed = False

    def watch(self) -> list[Any]:
        if not self._installed:
            sys.addaudithook(self._heard)  # for good: Python has no way to remove one
        self._installed = self.watching = True
        self.connects = []
        return self.connects

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.watching:
            self.connects.append(arguments[1][:2])
            if not arguments[1][0].startswith("127."):
                raise OSError("tests do not reach the internet")


NETWORK = Network()


@pytest.fixture
def connects() -> Iterator[list[Any]]:
    yield NETWORK.watch()
    NETWORK.watching = False


STALL = b""  # from here on the site says nothing, until its client leaves


class Site:
    """A web server on loopback that answers byte for byte what a test tells it to."""

    def __init__(self, answer: Callable[[str], Iterable[bytes]], tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.tls = answer, tls
        self.heads: list[str] = []
        self.stalled, self.left = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                if self.tls is None:
                    self._talk(connection)
                else:
                    with self.tls.wrap_socket(connection, server_side=True) as wrapped:
                        self._talk(wrapped)

    def _talk(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (piece := connection.recv(4096)):
                return
            head += piece
        self.heads.append(head.decode())
        for piece in self.answer(head.decode().split()[1]):
            if piece is STALL:
                self.stalled.set()
                with contextlib.suppress(OSError):
                    connection.recv(1)
                self.left.set()
                return
            connection.sendall(piece)

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}{path}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def open_site(*pieces: bytes, answer: Callable[[str], Iterable[bytes]] | None = None, **options: Any) -> Site:
        sites.append(Site(answer or (lambda path: pieces), **options))
        return sites[-1]

    yield open_site
    for one in sites:
        one.close()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def never() -> bool:
    return False


def fetcher(*sites: Site, **options: Any) -> Fetcher:
    return Fetcher(allowed_hosts=[one.host for one in sites], **options)


def fetched(fetch: Fetcher, url: str) -> bytes:
    with fetch(checked_url(url), never).reader() as reader:
        return reader.read()


def refused(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Unfetchable) as caught:
        fetch(checked_url(url), never)
    return str(caught.value)


class Input(msgspec.Struct):
    audio: Audio
    threshold: float = 0.5


def served(method: Any, *, allowed: Iterable[str] = ()) -> Callable[[Request], dict[str, Any]]:
    """A request to what `method` is called with, through the plugin's hooks, as the service will."""
    endpoint = describe(method, Mark(path="/"), owner="App")
    settings = Settings(allow_private_hosts=list(allowed))
    service: Any = SimpleNamespace(settings=settings, depot=Depot(plugin.file_store(settings), settings))
    bound = bind(endpoint, type_codec)  # type: ignore[arg-type]
    if (wrap := plugin.wrap_bind(endpoint, service)) is not None:
        bound = wrap(bound)
    seen: dict[str, Any] = {}

    async def call(request: Request, arguments: dict[str, Any]) -> Any:
        seen.update(arguments)

    wrapped = call if (wrapper := plugin.wrap_call(endpoint, service)) is None else wrapper(call)

    def serve(request: Request) -> dict[str, Any]:
        seen.clear()
        with contextlib.suppress(StopIteration):
            wrapped(request, bound(request)).send(None)  # type: ignore[attr-defined]
        return dict(seen)

    return serve


def post(body: Any, content_type: str | None = "application/json", query: bytes = b"", **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if content_type is not None:
        named.append((b"content-type", content_type.encode()))
    return Request("id", scope={"headers": named, "query_string": query}, body=raw)


def form(*parts: tuple[str, bytes], query: bytes = b"") -> Request:
    """A form; each part is what follows `form-data` in its head, and its bytes."""
    body = b"".join(
        b"--fence\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts
    )
    return post(body + b"--fence--\r\n", "multipart/form-data; boundary=fence", query)


def faults(serve: Callable[[Request], Any], request: Request) -> list[Any]:
    with pytest.raises(InvalidInput) as caught:
        serve(request)
    return detail_of(caught.value)


def detail_of(error: InvalidInput) -> list[Any]:
    detail = json.loads(error.response().body)["detail"]
    assert isinstance(detail, list)
    return detail


def transcribe(self: Any, input: Input) -> None: ...
def listen(self: Any, audio: Audio) -> None: ...


WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "
DATA_URI = "data:audio/wav;base64," + base64.b64encode(WAV).decode()


# --- A File in an input, and what reading it gives


@pytest.mark.parametrize("given", [DATA_URI, {"url": DATA_URI}, {"url": DATA_URI, "content_type": None}], ids=["text", "object", "null"])
def test_a_data_uri_is_a_file_with_its_type_and_size(given: Any) -> None:
    audio = served(transcribe)(post({"audio": given}))["input"].audio

    assert audio.file_size is None  # nothing was decoded that nobody read
    assert (audio.as_bytes(), audio.content_type, audio.file_size) == (WAV, "audio/wav", len(WAV))


@pytest.mark.parametrize(
    ("uri", "held"),
    [
        ("data:,a%20b", b"a b"),
        ("data:text/plain;charset=utf-8,%C3%A9", "é".encode()),
        ("data:;base64,", b""),
        ("DATA:x/y;BASE64,YWI=", b"ab"),
        ("data:x/y;base64,YW%49%3D", b"ab"),
        ("data:x/y;base64,YWJj\r\nYWJj", b"abcabc"),
    ],
)
def test_every_form_of_data_uri_is_read(uri: str, held: bytes) -> None:
    assert File(uri).as_bytes() == held


@pytest.mark.parametrize("payload", ["YWI", "YW=I", "YWI=YWI=", "Y*I=", "YWJ-", "=", "YWI=x", "ÿÿÿÿ"])
def test_malformed_base64_is_refused_at_its_field(payload: str) -> None:
    audio = served(transcribe)(post({"audio": f"data:audio/wav;base64,{payload}"}))["input"].audio

    with pytest.raises(InvalidInput) as caught:
        audio.as_bytes()
    (fault,) = detail_of(caught.value)
    assert (fault["type"], fault["loc"]) == ("file_download_error", ["body", "audio"])
    assert "not valid base64" in fault["msg"]


@pytest.mark.parametrize(
    "url", ["", "x", "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://h/x", "http://", "http:///x", "https://h:99999/", "http://h:0/",
            "http://a b/", "http://[::1", "http://h/\nx", "http://h\\@i/", "data:x", "javascript:alert(1)", "blob:http://h/1"],
)  # fmt: skip
def test_what_is_not_a_url_is_refused_when_it_is_parsed(url: str) -> None:
    (fault,) = faults(served(transcribe), post({"audio": url}))

    assert (fault["type"], fault["loc"]) == ("value_error", ["body", "audio"])
    assert fault["msg"] == "Value error, value must be a valid URL"


@pytest.mark.parametrize("url", ["http://h/\ud800", "data:,\ud800"])
def test_half_a_character_is_refused_with_the_json_that_holds_it(url: str) -> None:
    (fault,) = faults(served(transcribe), post({"audio": url}))

    assert (fault["type"], fault["loc"]) == ("json_invalid", ["body", json.dumps({"audio": url}).index("\\ud800")])


class Model(pydantic.BaseModel):
    audio: Audio
    images: list[Image] = []
    other: File | None = None


class Struct(msgspec.Struct, rename={"other": "else"}):
    audio: Audio
    images: list[Image] = []
    other: File | None = None


@dataclasses.dataclass
class Data:
    audio: Audio
    images: list[Image] = dataclasses.field(default_factory=list)
    other: File | None = None


class Typed(typing_extensions.TypedDict):
    audio: Audio
    images: typing_extensions.NotRequired[list[Image]]
    other: typing_extensions.NotRequired[File | None]


class Node(msgspec.Struct):
    below: Node | None = None
    aside: list[Node] = []


class Box(msgspec.Struct, Generic[T]):
    held: T


@pytest.mark.parametrize("kind", [Model, Struct, Data, Typed])
def test_files_stand_in_every_kind_of_model_with_their_places(kind: Any) -> None:
    def method(self: Any, input: kind) -> None: ...

    method.__annotations__["input"] = kind
    uri = "data:;base64,?"
    body = {"audio": uri, "images": [{"url": uri, "width": 3}, uri], "other": uri, "else": uri}
    value = served(method)(post(body))["input"]

    audio, images, other = (value[n] if isinstance(value, dict) else getattr(value, n) for n in ("audio", "images", "other"))
    assert [type(file) for file in (audio, *images, other)] == [Audio, Image, Image, File]
    assert images[0].width == 3
    places = []
    for file in (audio, *images, other):
        with pytest.raises(InvalidInput) as caught:
            file.as_bytes()
        places += [fault["loc"] for fault in detail_of(caught.value)]
    last = "else" if kind is Struct else "other"
    assert places == [["body", "audio"], ["body", "images", 0], ["body", "images", 1], ["body", last]]


@pytest.mark.parametrize("kind", [Model, Struct])
@pytest.mark.parametrize("given", [3, [], {}, {"url": 3}, {"url": "x"}, {"url": DATA_URI, "file_size": "big"}, None])
def test_a_bad_file_object_is_a_fault_at_its_field(kind: Any, given: Any) -> None:
    def method(self: Any, input: kind) -> None: ...

    method.__annotations__["input"] = kind

    (fault,) = faults(served(method), post({"audio": given}))
    assert fault["loc"][:2] == ["body", "audio"]


@pytest.mark.parametrize("given", [{}, {"url": 3}, {"url": "x"}, {"url": DATA_URI, "file_size": "big"}])
def test_struct_and_pydantic_model_say_the_same_of_a_bad_file(given: Any) -> None:
    def struct(self: Any, input: Struct) -> None: ...
    def model(self: Any, input: Model) -> None: ...

    def told(method: Any) -> list[Any]:
        return [(f["type"], f["loc"]) for f in faults(served(method), post({"audio": given}))]

    assert told(struct) == told(model)


def test_a_file_may_be_the_whole_body_or_one_of_several_parameters() -> None:
    def several(self: Any, audio: Audio, image: Image | None = None) -> None: ...

    assert served(listen)(post(DATA_URI))["audio"].as_bytes() == WAV
    seen = served(several)(post({"audio": {"url": DATA_URI}}))
    assert (seen["audio"].as_bytes(), seen["image"]) == (WAV, None)


def test_a_generic_struct_of_files_is_looked_into(site: Callable[..., Site]) -> None:
    def method(self: Any, input: Box[Audio]) -> None: ...

    there = site(ok(WAV))
    seen = served(method, allowed=[there.host])(post({"held": there.url()}))

    assert seen["input"].held.as_bytes() == WAV


def test_endpoints_without_files_are_left_alone() -> None:
    def method(self: Any, input: Node, n: int = 1) -> None: ...

    endpoint = describe(method, Mark(path="/"), owner="App")
    service: Any = SimpleNamespace(settings=Settings(), depot=None)
    assert plugin.wrap_call(endpoint, service) is None
    assert plugin.wrap_bind(endpoint, service) is None


def test_a_file_reads_like_any_file_and_saves_whole_or_not_at_all(tmp_path: Path, site: Callable[..., Site]) -> None:
    there = site(ok(b"0123456789"))
    file = served(listen, allowed=[there.host])(post(there.url()))["audio"]

    with file.open() as one, file.open() as other:
        assert (one.read(3), other.seek(-2, io.SEEK_END), other.read(), one.read(2)) == (b"012", 8, b"89", b"34")
    target = tmp_path / "deep" / "name.bin"
    assert file.save(target).read_bytes() == b"0123456789"
    with pytest.raises(FileExistsError):
        file.save(target)
    assert file.save(target, overwrite=True) == target
    assert [path.name for path in target.parent.iterdir()] == ["name.bin"]
    assert len(there.heads) == 1  # fetched once, read four times


def test_a_file_that_cannot_be_fetched_leaves_no_trace_where_it_should_be_saved(tmp_path: Path) -> None:
    file = served(listen)(post("http://127.0.0.1/x"))["audio"]

    with pytest.raises(InvalidInput):
        file.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a.png", "a.png"), ("../../etc/passwd", "passwd"), ("..\\..\\x.exe", "x.exe"), ("..", None), (".", None), ("/", None), ("a\0b\n", "ab"),
     ("x" * 300 + ".wav", "x" * 196 + ".wav"), (" ", None), (None, None)],
)  # fmt: skip
def test_names_lose_what_means_something_to_a_file_system(name: str | None, kept: str | None) -> None:
    assert safe_name(name) == kept
    assert File("data:,", file_name=name).file_name == kept


def test_an_upload_shows_itself_as_a_data_uri_and_an_output_has_the_fields_of_fal() -> None:
    image = Image.received(b"ab", file_name="x.png")

    assert json.loads(type_codec(Image).encode(image)) == {  # type: ignore[union-attr]
        "url": "data:image/png;base64,YWI=", "content_type": "image/png", "file_name": "x.png", "file_size": 2, "width": None, "height": None,
    }  # fmt: skip
    assert repr(image) == "Image('<binary 2 bytes>', content_type='image/png', file_name='x.png', file_size=2)"


def test_the_schema_names_the_widget() -> None:
    for kind, widget in ((Audio, "audio"), (Video, "video"), (Image, "image")):
        assert type_codec(kind).schema(output=False)[1][kind.__name__]["ui"] == {"field": widget}  # type: ignore[union-attr]
        assert pydantic.TypeAdapter(kind).json_schema()["ui"] == {"field": widget}


# --- Pictures


def png(width: int, height: int) -> bytes:
    held = io.BytesIO()
    PIL.Image.new("L", (width, height)).save(held, "PNG")
    return held.getvalue()


def test_a_picture_is_read_upright_in_the_mode_asked_for() -> None:
    held = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    PIL.Image.new("RGB", (4, 2)).save(held, "JPEG", exif=exif)

    picture = Image.from_bytes(held.getvalue()).to_pil("L")
    assert (picture.size, picture.mode) == ((2, 4), "L")


BOMB = png(20_000, 20_000)


@pytest.mark.parametrize("held", [b"", b"no picture", png(90, 90)[:-40], BOMB, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
                         ids=["empty", "text", "cut", "bomb", "eps"])  # fmt: skip
def test_what_is_no_picture_or_a_bomb_is_refused_at_its_field(held: bytes) -> None:
    def method(self: Any, input: Model) -> None: ...

    uri = "data:image/png;base64," + base64.b64encode(held).decode()
    picture = served(method)(post({"audio": DATA_URI, "images": [uri]}))["input"].images[0]

    with pytest.raises(InvalidInput) as caught:
        picture.to_pil()
    (fault,) = detail_of(caught.value)
    assert (fault["type"], fault["loc"]) == ("image_load_error", ["body", "images", 0])
    assert len(fault["input"]) < 200


# --- Downloads


def test_a_url_is_fetched_when_it_is_read_and_not_before(site: Callable[..., Site]) -> None:
    there = site(ok(WAV, "Content-Type: audio/X-Wav; rate=8000", 'Content-Disposition: attachment; filename="../my \\"take\\".wav"'))
    audio = served(transcribe, allowed=[there.host])(post({"audio": there.url("/a/b.ogg?token=1")}))["input"].audio

    assert there.heads == []
    assert audio.as_bytes() == WAV
    assert (audio.content_type, audio.file_name, audio.file_size) == ("audio/x-wav", 'my "take".wav', len(WAV))
    assert there.heads[0].startswith("GET /a/b.ogg?token=1 HTTP/1.1\r\n")
    assert f"host: {there.host}\r\n" in there.heads[0].lower()


@pytest.mark.parametrize(
    ("path", "headers", "name", "content_type"),
    [
        ("/a/b.wav", [], "b.wav", "audio/x-wav"),
        ("/a/na%C3%AFve.txt?x=/y.png", [], "naïve.txt", "text/plain"),
        ("/a/%2e%2e%2f..", [], None, "application/octet-stream"),
        ("/", ["Content-Disposition: inline; filename=plain.png"], "plain.png", "image/png"),
        ("/", ["Content-Disposition: inline; filename=\"x.gif\"; filename*=UTF-8''%e2%82%ac%2fr.png"], "r.png", "image/png"),
    ],
)
def test_name_and_type_come_from_the_answer_or_the_path(
    site: Callable[..., Site], path: str, headers: list[str], name: str | None, content_type: str
) -> None:
    there = site(ok(b"x", *headers))
    file = served(listen, allowed=[there.host])(post(there.url(path)))["audio"]
    file.as_bytes()

    assert file.file_name == name
    assert file.content_type in (content_type, content_type.replace("x-wav", "wav"))


def test_a_path_that_is_not_ascii_is_sent_as_utf_8(site: Callable[..., Site]) -> None:
    there = site(ok(b"x"))

    assert fetched(fetcher(there), there.url("/ü?q=é#part")) == b"x"
    assert there.heads[0].startswith("GET /%C3%BC?q=%C3%A9 HTTP/1.1\r\n")


def test_redirects_are_followed_and_credentials_stay_with_their_origin(site: Callable[..., Site]) -> None:
    end = site(ok(b"there"))
    first = site(answer=lambda path: [moved("/second") if path == "/" else moved(end.url("/end"))])

    assert fetched(fetcher(first, end), f"http://me:p%40ss@{first.host}/") == b"there"
    secret = "authorization: Basic " + base64.b64encode(b"me:p@ss").decode()
    assert [secret.lower() in head.lower() for head in (*first.heads, *end.heads)] == [True, True, False]


def test_a_chunked_body_and_one_that_ends_with_the_connection_arrive_whole(site: Callable[..., Site]) -> None:
    chunked = site(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    closed = site(b"HTTP/1.0 200 OK\r\n\r\nabc")

    assert fetched(fetcher(chunked), chunked.url()) == b"abcde"
    assert fetched(fetcher(closed), closed.url()) == b"abc"


BAD_ANSWERS: dict[str, tuple[list[bytes], str]] = {
    "404": ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], "answered 404"),
    "500": ([b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"], "answered 500"),
    "304": ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], "answered 304"),
    "redirect to nowhere": ([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"], "answered 302"),
    "announced too large": ([b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"], "larger than 1000 bytes"),
    "absurdly large": ([b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n"], "larger than 1000 bytes"),
    "grows too large": ([CHUNKED, b"1f4\r\n" + b"x" * 500 + b"\r\n"] + [b"1f4\r\n" + b"x" * 500 + b"\r\n"] * 2, "larger than 1000 bytes"),
    "too short": ([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"], "without sending complete message body"),
    "chunk cut off": ([CHUNKED + b"ff\r\nabc"], "without sending complete message body"),
    "no last chunk": ([CHUNKED + b"3\r\nabc\r\n"], "without sending complete message body"),
    "bad chunk": ([CHUNKED + b"zz\r\nabc\r\n"], "broke the rules of HTTP"),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"], "broke the rules of HTTP"),
    "negative length": ([b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc"], "broke the rules of HTTP"),
    "not HTTP": ([b"220 smtp.example ESMTP\r\n"], "broke the rules of HTTP"),
    "endless head": ([b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"y" * 200_000], "broke the rules of HTTP"),
    "nothing": ([], "broke the rules of HTTP"),
    "gzip": ([ok(b"\x1f\x8b", "Content-Encoding: gzip")], "content coding 'gzip'"),
    "silent": ([STALL], "silent for 0.2 seconds"),
    "silent half way": ([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", STALL], "silent for 0.2 seconds"),
}


@pytest.mark.parametrize(("pieces", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_is_the_callers_error_with_its_reason_and_leaves_nothing(
    pieces: list[bytes], reason: str, site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = site(*pieces)

    assert reason in refused(fetcher(there, max_bytes=1000, idle_seconds=0.2), there.url())
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_ends_is_left_in_time(site: Callable[..., Site]) -> None:
    def endless(path: str) -> Iterator[bytes]:
        yield CHUNKED
        while True:
            yield b"1\r\nx\r\n" * 1000

    there = site(answer=endless)
    interim = site(answer=lambda path: iter(lambda: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, None))

    assert "longer than 0.2 seconds" in refused(fetcher(there, seconds=0.2), there.url())
    assert "longer than 0.2 seconds" in refused(fetcher(interim, seconds=0.2), interim.url())


def test_redirects_end_somewhere(site: Callable[..., Site]) -> None:
    there = site(moved("/again"))

    assert "more than 5 times" in refused(fetcher(there), there.url())
    assert len(there.heads) == 6


def test_a_host_that_takes_no_connection_is_the_callers_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"

    assert "the connection failed (Connection refused)" in refused(Fetcher(allowed_hosts=[host]), f"http://{host}/")


def test_the_next_address_is_tried_when_the_first_does_not_answer(site: Callable[..., Site]) -> None:
    there = site(ok(b"x"))
    fetch = Fetcher(allowed_hosts=["two.test"], resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"])

    assert fetched(fetch, f"http://two.test:{there.port}/") == b"x"


def test_what_cannot_be_fetched_is_422_at_its_field(site: Callable[..., Site]) -> None:
    there = site(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    audio = served(transcribe, allowed=[there.host])(post({"audio": there.url()}))["input"].audio

    with pytest.raises(InvalidInput) as caught:
        audio.as_bytes()
    assert caught.value.response().status == 422
    assert detail_of(caught.value) == [
        {"type": "file_download_error", "loc": ["body", "audio"], "msg": "File could not be read: its server answered 404", "input": there.url()}
    ]


def test_a_full_disk_is_our_fault_and_says_so(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    there = site(ok(b"x"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115

    with pytest.raises(HTTPError) as caught:
        fetcher(there)(there.url(), never)
    assert (caught.value.status, caught.value.detail) == (507, "this server could not keep the file: No space left on device")


def test_a_large_file_passes_through_with_bounded_memory(site: Callable[..., Site]) -> None:
    piece = bytes(1024 * 1024)
    there = site(answer=lambda path: (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (48 * len(piece)), *[piece] * 48))
    file = served(listen, allowed=[there.host])(post(there.url()))["audio"]

    tracemalloc.start()
    try:
        with file.open() as reader:
            size = sum(len(part) for part in iter(lambda: reader.read(1024 * 1024), b""))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == file.file_size == 48 * len(piece)
    assert peak < 8 * len(piece)


def test_a_default_file_is_one_for_all_requests_and_fetched_once(site: Callable[..., Site]) -> None:
    there = site(ok(WAV))

    class Defaulted(msgspec.Struct):
        audio: Audio = Audio(there.url())

    def method(self: Any, input: Defaulted) -> None: ...

    serve = served(method, allowed=[there.host])
    first, second = serve(post({}))["input"].audio, serve(post({}))["input"].audio

    assert (first.as_bytes(), second.as_bytes()) == (WAV, WAV)
    assert len(there.heads) == 1


# --- Whoever leaves ends his download


class Token:
    cancelled = False
    reason: str | None = None


@pytest.mark.parametrize("pieces", [[STALL], [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", STALL]], ids=["head", "body"])
def test_a_download_ends_when_its_request_is_cancelled(pieces: list[bytes], site: Callable[..., Site]) -> None:
    there, token = site(*pieces), Token()
    request = post({"audio": there.url()})
    request.token = token
    audio = served(transcribe, allowed=[there.host])(request)["input"].audio

    with ThreadPoolExecutor() as threads:
        reading = threads.submit(audio.as_bytes)
        waiting = threads.submit(audio.as_bytes)  # for the first one to fetch it
        assert there.stalled.wait(5)
        token.cancelled = True
        for reader in (reading, waiting):
            with pytest.raises(RequestCancelled):
                reader.result(5)
    assert there.left.wait(5)


def test_a_slow_resolver_does_not_hold_a_cancelled_request() -> None:
    asked, done = threading.Event(), threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        asked.set()
        done.wait(5)
        return []

    with ThreadPoolExecutor() as threads:
        fetching = threads.submit(Fetcher(resolve=resolve), "http://slow.test/", asked.is_set)
        with pytest.raises(RequestCancelled):
            fetching.result(5)
        done.set()


async def test_an_async_endpoint_reads_without_stopping_the_loop_and_leaves_when_cancelled(site: Callable[..., Site]) -> None:
    good, stuck = site(ok(WAV)), site(STALL)
    serve = served(listen, allowed=[good.host, stuck.host])

    assert await serve(post(good.url()))["audio"].as_bytes_async() == WAV
    with await serve(post(good.url()))["audio"].open_async() as reader:
        assert reader.read() == WAV
    task = asyncio.create_task(serve(post(stuck.url()))["audio"].as_bytes_async())
    await asyncio.to_thread(stuck.stalled.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(stuck.left.wait, 5)


async def test_a_download_on_the_event_loop_is_refused_with_what_to_write_instead(site: Callable[..., Site]) -> None:
    there = site(ok(WAV))
    audio = served(listen, allowed=[there.host])(post(there.url()))["audio"]

    with pytest.raises(RuntimeError, match=r"await file\.as_bytes_async\(\)"):
        audio.as_bytes()
    assert there.heads == []


def test_a_shared_default_file_asks_the_request_that_reads_it(site: Callable[..., Site]) -> None:
    there = site(ok(WAV))
    shared = Audio(there.url())
    here, gone = post({}), post({})
    gone.token = token = Token()
    token.cancelled = True
    for request in (here, gone):  # the one that is gone came last
        plugin.attach(shared, ("body",), request, fetcher(there))

    def read() -> bytes:
        enter_request(here)
        return shared.as_bytes()

    with ThreadPoolExecutor() as threads:
        assert threads.submit(read).result(5) == WAV


# --- Addresses that are not the caller's to reach

NAMES = {
    "loopback.test": ["127.0.0.1"], "ten.test": ["10.0.0.1"], "metadata.test": ["169.254.169.254"], "six.test": ["::1"],
    "mapped.test": ["::ffff:10.0.0.1"], "mixed.test": [PUBLIC, "127.0.0.1"], "mixed6.test": [PUBLIC, "fd00::1"], "ula.test": ["fc00::1"],
    "nobody.test": [], "scoped.test": ["fe80::1%lo"], "odd.test": ["not an address"], "localhost": ["127.0.0.1", "::1"], "localhost.": ["127.0.0.1"],
    "127.0.0.1.nip.test": ["127.0.0.1"], "azure.test": ["168.63.129.16"], "bücher.test".encode("idna").decode(): ["192.168.0.1"],
}  # fmt: skip

HOSTILE = [
    # loopback, spelled
    "http://127.0.0.1:{port}/", "http://127.0.0.1.:{port}/", "http://127.1:{port}/", "http://127.0.1:{port}/", "http://127.255.255.254:{port}/",
    "http://2130706433:{port}/", "http://017700000001:{port}/", "http://0x7f000001:{port}/", "http://0x7f.0.0.1:{port}/", "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/", "http://0177.0.0.01:{port}/", "http://00000177.0.0.1:{port}/", "http://0x7F.0X0.0.0x1:{port}/",
    "http://127.0.0.0x1:{port}/", "http://4294967297:{port}/", "http://0:{port}/", "http://0.0.0.0:{port}/", "http://0x:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/", "http://127。0。0。1:{port}/", "http://\uff11\uff12\uff17.0.0.1:{port}/", "http://127%2e0%2e0%2e1:{port}/",
    "http://%31%32%37.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST:{port}/", "http://localhost.:{port}/", "http://ⓛocalhost:{port}/",
    # other networks of IPv4
    "http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/", "http://100.64.0.1/", "http://100.100.100.200/", "http://192.0.0.192/", "http://192.0.2.1/", "http://198.18.0.1/",
    "http://198.51.100.1/", "http://203.0.113.1/", "http://224.0.0.1/", "http://239.255.255.250/", "http://240.0.0.1/", "http://255.255.255.255/",
    "http://168.63.129.16/", "http://192.88.99.1/", "http://2852039166/", "http://0xa9fea9fe/", "http://169.254.43518/",
    # IPv6
    "http://[::1]:{port}/", "http://[::]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/", "http://[0000::0001]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/", "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/", "http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::7f00:1]/", "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/", "http://[2001:0:7f00:1::80ff:fffe]/", "http://[fe80::1]/", "http://[fe80::1%25lo]:{port}/", "http://[fec0::1]/",
    "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[fd20:ce::254]/", "http://[ff02::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/",
    "http://[100::1]/", "http://[5f00::1]/", "http://[2620:4f:8000::1]/", "http://[::ffff:169.254.169.254]/", "http://[2606:4700::1111%25lo]/",
    "http://[v1.x]/", "http://[127.0.0.1]:{port}/",
    # names
    "http://loopback.test:{port}/", "http://ten.test/", "http://metadata.test/", "http://six.test:{port}/", "http://mapped.test/",
    "http://mixed.test:{port}/", "http://mixed6.test/", "http://ula.test/", "http://nobody.test/", "http://scoped.test/", "http://odd.test/",
    "http://127.0.0.1.nip.test:{port}/", "http://azure.test/", "http://bücher.test/", "http://LOOPBACK.TEST:{port}/", "http://" + "a" * 70 + ".test/",
    "http://loopback.test%00.example/", "http://a..b/", "http://.test/", "http://-/", "http://loopback.test:{port}@ten.test/",
    # what looks like another host
    "http://example.com@127.0.0.1:{port}/", "http://example.com:80@127.0.0.1:{port}/", "http://example.com%40@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/", "http://127.0.0.1:{port}?@example.com/", "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\@127.0.0.1:{port}/", "http://example.com#@127.0.0.1:{port}/ ".strip().replace("example.com", "ten.test"),
    "http://127.0.0.1:{port}&@ten.test/", "http://127.0.0.1\t:{port}/", "http://127.0.0.1\r\n:{port}/", "http://ex\nample@127.0.0.1/",
    "http:127.0.0.1:{port}", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "//127.0.0.1:{port}/", "\\\\127.0.0.1\\x",
    "http://[::1]]:{port}/", "http://[[::1]]:{port}/", "http://::1:{port}/", "http://127.0.0.1:{port}:80/", "http://127.0.0.1:+{port}/",
    "http://127.0.0.1:00/", "http://127.0.0.1:65536/", "http://127.0.0.1:\uff18\uff10/",
    # other schemes, and TLS
    "https://127.0.0.1:{port}/", "https://[::1]:{port}/", "HTTPS://loopback.test:{port}/", "HtTp://127.0.0.1:{port}/", "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd", "gopher://127.0.0.1:{port}/_GET", "ftp://127.0.0.1:{port}/x", "dict://127.0.0.1:{port}/d", "ldap://127.0.0.1/",
    "ws://127.0.0.1:{port}/", "unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "jar:http://127.0.0.1:{port}/!/", "view-source:http://127.0.0.1/",
    "netdoc:///etc/passwd", "javascript:alert(1)", "about:blank", "",
]  # fmt: skip


@pytest.fixture
def bait() -> Iterator[socket.socket]:
    """A socket that listens where no download may go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener
        with pytest.raises(BlockingIOError):
            listener.accept()


def resolve_names(host: str, port: int) -> list[str]:
    return NAMES[host.lower()]


@pytest.mark.parametrize("url", HOSTILE)
def test_behaviour_38_no_spelling_of_an_address_leads_into_our_network(url: str, bait: socket.socket, connects: list[Any]) -> None:
    url = url.replace("{port}", str(bait.getsockname()[1]))

    with pytest.raises((Unfetchable, ValueError)):
        Fetcher(resolve=resolve_names)(checked_url(url), never)
    assert connects == []


@pytest.mark.parametrize("url", [url for url in HOSTILE if not set(url) & set("\r\n") and url and not url.startswith("http:/127")])
def test_behaviour_38_no_redirect_leads_into_our_network(url: str, bait: socket.socket, connects: list[Any], site: Callable[..., Site]) -> None:
    url = url.replace("{port}", str(bait.getsockname()[1]))
    there = site(answer=lambda path: [moved(url)] if path == "/" else [b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"])

    refused(Fetcher(allowed_hosts=[there.host], resolve=resolve_names), there.url())
    assert set(connects) == {("127.0.0.1", there.port)}  # `http:x` is relative there, and so stays


def test_the_table_of_hostile_urls_is_long() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) > 120


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_address_that_was_checked_is_the_one_connected_to(scheme: str, connects: list[Any]) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])  # a name that is rebound once it was checked
    fetch = Fetcher(resolve=lambda host, port: next(answers))

    assert "the connection failed" in refused(fetch, f"{scheme}://rebind.test:8080/")
    assert connects == [(PUBLIC, 8080)]
    assert next(answers) == ["127.0.0.1"]  # nobody asked again


def test_every_redirect_is_resolved_and_checked_anew(site: Callable[..., Site], connects: list[Any]) -> None:
    there = site(answer=lambda path: [moved(f"http://rebind.test:{there.port}/again")])
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetch = Fetcher(allowed_hosts=[there.host], resolve=lambda host, port: next(answers))

    assert "not on the public internet" in refused(fetch, there.url())
    assert connects == [("127.0.0.1", there.port)]


@pytest.mark.parametrize(
    "host",
    [PUBLIC, "1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.1.1", "223.255.255.255", "[2606:4700::1111]", "[2a00:1450::8a]", "fine.test"],
)
def test_public_addresses_are_connected_to(host: str, connects: list[Any]) -> None:
    fetch = Fetcher(resolve=lambda host, port: ["2a00:1450::8a"])

    assert "the connection failed (tests do not reach" in refused(fetch, f"http://{host}/")
    assert len(connects) == 1


def test_proxies_of_the_environment_are_not_asked(site: Callable[..., Site], bait: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{bait.getsockname()[1]}")
    there = site(ok(b"x"))

    assert fetched(fetcher(there), there.url()) == b"x"


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port}/", True),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}/", True),
        ("127.0.0.1:1", "http://127.0.0.1:{port}/", False),
        ("127.0.0.1", "http://loopback.test:{port}/", False),
        ("Loopback.Test", "http://LOOPBACK.test:{port}/", True),
        ("loopback.test", "http://127.0.0.1:{port}/", False),
        ("test", "http://loopback.test:{port}/", False),
        ("127.0.0.1", "http://2130706433:{port}/", False),
        ("::1", "http://127.0.0.1:{port}/", False),
    ],
)
def test_only_the_hosts_that_are_named_are_exempt(entry: str, url: str, allowed: bool, site: Callable[..., Site]) -> None:
    there = site(ok(b"x"))
    fetch = Fetcher(allowed_hosts=[entry.format(port=there.port)], resolve=resolve_names)

    if allowed:
        assert fetched(fetch, url.format(port=there.port)) == b"x"
    else:
        refused(fetch, url.format(port=there.port))
    assert bool(there.heads) == allowed


@pytest.mark.parametrize("entry", ["", "http://minio:9000", "minio/x", "10.0.0.0/8", "a b", "minio:x", "127.1"])
def test_an_allowed_host_that_is_none_stops_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"--allow-private-hosts .* for example"):
        Fetcher(allowed_hosts=[entry])


@pytest.mark.parametrize("spelled", ["::1", "[::1]", "[0:0::1]:80"])
def test_an_allowed_ipv6_host_may_be_spelled_in_any_way(spelled: str, connects: list[Any]) -> None:
    assert "the connection failed" in refused(Fetcher(allowed_hosts=[spelled]), "http://[::0001]/")
    assert connects == [("::1", 80)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and key for secure.test, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=secure.test",
            "-addext", "subjectAltName=DNS:secure.test", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    return folder


def test_tls_goes_to_the_checked_address_under_the_hosts_name(certificate: Path, site: Callable[..., Site], connects: list[Any]) -> None:
    named: list[Any] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert", certificate / "key")
    server.sni_callback = lambda sock, name, context: named.append(name)
    there = site(ok(b"x" * 100_000), tls=server)
    trusting = ssl.create_default_context(cafile=str(certificate / "cert"))

    def fetch(tls: ssl.SSLContext | None = None) -> Fetcher:
        return Fetcher(allowed_hosts=["secure.test", "other.test"], resolve=lambda host, port: ["127.0.0.1"], tls=tls)

    assert fetched(fetch(trusting), f"https://secure.test:{there.port}/") == b"x" * 100_000
    assert fetched(fetch(trusting), f"https://secure.test.:{there.port}/") == b"x" * 100_000
    assert named == ["secure.test", "secure.test"]
    assert "certificate of its host is not valid" in refused(fetch(trusting), f"https://other.test:{there.port}/")
    assert "certificate of its host is not valid" in refused(fetch(), f"https://secure.test:{there.port}/")
    assert {address for address, _ in connects} == {"127.0.0.1"}


# --- Uploads


class Mood(enum.Enum):
    CALM = "calm"


class Wide(msgspec.Struct):
    audio: Audio
    prompt: str = ""
    count: int = 1
    scale: float | None = None
    loud: bool = False
    mode: Literal["fast", 2] = "fast"
    mood: Mood | None = None
    tags: list[str] = []
    sizes: list[int] = []
    table: dict[str, int] = {}
    either: int | str = 0


class WideModel(pydantic.BaseModel):
    audio: Audio
    prompt: str = ""
    count: Annotated[int, pydantic.Field(le=4)] = 1
    loud: bool = False
    tags: list[str] = []


def test_a_form_fills_a_model_with_files_and_texts() -> None:
    def method(self: Any, input: Wide) -> None: ...

    value = served(method)(
        form(
            ('name="audio"; filename="../take 1.wav"\r\nContent-Type: audio/wav', WAV), ('name="prompt"', b"5"), ('name="count"', b"3"),
            ('name="scale"', b"0.5"), ("name=loud", b"on"), ('name="mode"', b"2"), ('name="mood"', b"calm"), ('name="tags"', b"a"),
            ('name="tags"', b"1"), ('name="sizes"', b"[1, 2]"), ('name="table"', b'{"a": 1}'), ('name="either"', b"7"), ('name="unknown"', b"x"),
        )
    )["input"]  # fmt: skip

    audio = value.audio
    assert (type(audio), audio.as_bytes(), audio.content_type, audio.file_name, audio.file_size) == (Audio, WAV, "audio/wav", "take 1.wav", len(WAV))
    value.audio = None
    assert value == Wide(
        None, prompt="5", count=3, scale=0.5, loud=True, mode=2, mood=Mood.CALM, tags=["a", "1"], sizes=[1, 2], table={"a": 1}, either="7"
    )  # type: ignore[arg-type]


def test_a_form_fills_a_pydantic_model_too() -> None:
    def method(self: Any, input: WideModel) -> None: ...

    serve = served(method)
    value = serve(form(('name="audio"; filename="x.wav"', WAV), ('name="prompt"', b"5"), ('name="count"', b"3"), ('name="tags"', b"a")))["input"]

    assert (type(value.audio), value.audio.as_bytes(), value.prompt, value.count, value.tags) == (Audio, WAV, "5", 3, ["a"])
    (fault,) = faults(serve, form(('name="audio"; filename="x.wav"', WAV), ('name="count"', b"9")))
    assert (fault["type"], fault["loc"], fault["input"]) == ("less_than_equal", ["body", "count"], 9)


def test_a_text_in_a_form_is_the_url_of_a_file() -> None:
    assert served(transcribe)(form(('name="audio"', DATA_URI.encode())))["input"].audio.as_bytes() == WAV
    assert served(listen)(form(('name="audio"', DATA_URI.encode())))["audio"].as_bytes() == WAV
    assert served(listen)(form(('name="url"', DATA_URI.encode())))["audio"].as_bytes() == WAV


def test_texts_without_files_may_come_urlencoded() -> None:
    value = served(transcribe)(post(b"audio=data%3A%2Cab&threshold=0.25", "application/x-www-form-urlencoded"))["input"]

    assert (value.audio.as_bytes(), value.threshold) == (b"ab", 0.25)


def test_a_lone_file_takes_whatever_file_a_form_has() -> None:
    def optional(self: Any, audio: Audio | None = None, threshold: float = 0.5) -> None: ...
    def many(self: Any, files: list[File]) -> None: ...

    seen = served(optional)(form(('name="upload"; filename="a.ogg"', b"OggS"), ('name="threshold"', b"0.25")))
    assert (seen["audio"].as_bytes(), seen["audio"].content_type, seen["threshold"]) == (b"OggS", "audio/ogg", 0.25)
    assert served(optional)(form())["audio"] is None
    two = served(many)(form(('name="files"; filename="a"', b"1"), ('name="files"; filename="b"', b"2")))["files"]
    assert [file.as_bytes() for file in two] == [b"1", b"2"]


def test_several_parameters_are_parts_of_one_form() -> None:
    def method(self: Any, audio: Audio, image: Image | None = None, n: int = 1) -> None: ...

    seen = served(method)(form(('name="audio"; filename="a"', b"1"), ('name="n"', b"4"), ('name="image"; filename=""', b"")))

    assert (seen["audio"].as_bytes(), seen["image"], seen["n"]) == (b"1", None, 4)


def test_what_a_form_lacks_or_spoils_is_a_fault_at_its_field() -> None:
    serve = served(transcribe)

    assert [(f["type"], f["loc"]) for f in faults(serve, form(('name="threshold"', b"loud")))] == [
        ("missing", ["body", "audio"]),
        ("float_parsing", ["body", "threshold"]),
    ]
    (fault,) = faults(serve, form(('name="audio"; filename="a"', b"1"), ('name="audio"; filename="b"', b"2")))
    assert (fault["type"], fault["loc"]) == ("file_type", ["body", "audio"])
    (fault,) = faults(serve, form(('name="audio"', b"\xff\xfe")))
    assert (fault["loc"], fault["input"]) == (["body", "audio"], "<binary 2 bytes>")


@pytest.mark.parametrize("content_type", ["audio/wav", "audio/wav; rate=8000", "application/octet-stream", None, "application/x-www-form-urlencoded"])
def test_a_raw_body_is_the_file_where_there_is_one_place_for_it(content_type: str | None) -> None:
    request = post(WAV, content_type, b"threshold=0.25&other=1", content_disposition='attachment; filename="x.wav"')
    value = served(transcribe)(request)["input"]
    alone = served(listen)(request)["audio"]

    assert (value.audio.as_bytes(), value.threshold) == (WAV, 0.25)
    assert alone.as_bytes() == WAV
    assert alone.content_type in ("audio/wav", "audio/x-wav")
    assert alone.file_name == "x.wav"
    assert request.body == WAV
    assert request.query == {"threshold": ["0.25"], "other": ["1"]}


def test_a_raw_body_without_a_place_of_its_own_is_refused_as_before() -> None:
    def method(self: Any, input: Struct) -> None: ...

    (fault,) = faults(served(method), post(WAV, "audio/wav"))
    assert (fault["type"], fault["loc"], fault["input"]) == ("model_attributes_type", ["body"], f"<binary {len(WAV)} bytes>")


def test_json_by_any_of_its_names_is_json() -> None:
    for content_type in ("application/json", "application/json; charset=utf-8", "application/ld+json"):
        assert served(transcribe)(post({"audio": DATA_URI}, content_type))["input"].audio.as_bytes() == WAV


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"--x\r\n\r\n--x--", "multipart/form-data", "no boundary"),
        (b"", "multipart/form-data; boundary=x", ""),
        (b"hello", "multipart/form-data; boundary=x", "ends too early"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc', "multipart/form-data; boundary=x", "ends too early"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc\r\n--x', "multipart/form-data; boundary=x", "ends too early"),
        (b"--x\r\nContent-Type: a/b\r\n\r\nabc\r\n--x--", "multipart/form-data; boundary=x", "no name"),
        (b"--xy\r\n\r\nabc\r\n--x--", "multipart/form-data; boundary=x", "follows its boundary"),
        (b"--x\r\nX: " + b"y" * 5000 + b"\r\n\r\n\r\n--x--", "multipart/form-data; boundary=x", "too long"),
        (b'--x\r\nContent-Disposition: form-data; name="a"; filename=""\r\n\r\n\r\n' * 1001 + b"--x--", "multipart/form-data; boundary=x", "1000 parts"),
        (b"a=b&" * 1001, "application/x-www-form-urlencoded", "1000 parts"),
    ],
    ids=["boundary", "empty", "text", "cut", "unfinished", "nameless", "other fence", "long head", "many", "many pairs"],
)  # fmt: skip
def test_a_broken_form_is_answered_400_with_its_reason(body: bytes, content_type: str, reason: str) -> None:
    if not body:
        assert faults(served(transcribe), post(body, content_type))[0]["type"] == "missing"
        return
    with pytest.raises(HTTPError) as caught:
        served(transcribe)(post(body, content_type))
    assert caught.value.status == 400
    assert reason in caught.value.detail


def test_the_bytes_of_a_part_may_be_anything_but_the_fence() -> None:
    for data in (b"", b"\r\n", b"\r\n--fenc", b"--fence", b"\r\n\r\n--", bytes(range(256)) * 100, b"\r\n--\r\n"):
        assert served(transcribe)(form(('name="audio"; filename="a"', data)))["input"].audio.as_bytes() == data


def test_preamble_padding_and_epilogue_are_skipped() -> None:
    body = b'hi\r\n--x \t\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\nabc\r\n--x--\r\nbye'

    assert served(transcribe)(post(body, 'multipart/form-data; boundary="x"'))["input"].audio.as_bytes() == b"abc"


def test_nothing_stays_open(site: Callable[..., Site]) -> None:
    there = site(ok(WAV))
    serve = served(listen, allowed=[there.host])
    serve(post(there.url()))["audio"].as_bytes()
    gc.collect()  # of what other tests left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        serve(post(there.url()))["audio"].as_bytes()
        with pytest.raises(InvalidInput):
            serve(post("http://127.0.0.1/"))["audio"].as_bytes()

    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the site may not have closed its end yet
