"""Files as an app written for fal makes and fetches them (contract 4.1 to 4.3, checks 28-32)."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import httpx
import pydantic
import pytest
from runner.plugins.fal import downloads, provide_modules, toolkit
from runner.plugins.fal.toolkit import DownloadError
from runner.plugins.files import Depot
from runner.plugins.files.store import LocalStore
from runner.schemas.problems import InvalidInput
from runner.schemas.settings import Settings
from runner.schemas.storing import FileDescription, enter_depot, store_file
from serving import serving, written

import runner

APP = """
import fal
from fal.toolkit import File, Image, FalBaseModel, ImageField, download_file
from fal.toolkit.image import ImageSizeInput, get_image_size
from PIL import Image as Pictures
from pydantic import BaseModel, Field

class Input(FalBaseModel):
    image_size: ImageSizeInput = "square"
    num_images: int = Field(default=1, ge=1, le=4)

class Output(BaseModel):
    images: list[Image] = Field(description="The pictures.")

class Given(BaseModel):
    image_url: str = ImageField(description="A picture.")

class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self, input: Input) -> Output:
        size = get_image_size(input.image_size)
        pictures = [Pictures.new("RGB", (size.width, size.height), (n, 0, 0)) for n in range(input.num_images)]
        return Output(images=[Image.from_pil(picture, "jpeg") for picture in pictures])

    @fal.endpoint("/fetch")
    def fetch(self, input: Given) -> str:
        try:
            return download_file(input.image_url, "fetched", force=True).name
        except fal.toolkit.utils.DownloadError as error:
            return str(error)
"""


def test_check_28_an_app_written_for_fal_answers_with_pictures_that_can_be_fetched(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    with serving(written(tmp_path, APP), "--data-dir", str(tmp_path), cwd=tmp_path, env=env) as app:
        images = app.post("/", {"image_size": "portrait_4_3", "num_images": 2}).json()["images"]
        answers = [httpx.get(image["url"], trust_env=False) for image in images]
        own = app.post("/fetch", {"image_url": images[0]["url"]}).json()
        private = app.post("/fetch", {"image_url": app.url + "/health"}).json()
        document = app.get("/openapi.json").json()

    assert [(image["width"], image["height"], image["content_type"]) for image in images] == [(768, 1024, "image/jpeg")] * 2
    assert [(a.status_code, a.headers["content-type"], a.content[:2]) for a in answers] == [(200, "image/jpeg", b"\xff\xd8")] * 2
    assert own == images[0]["file_name"]
    assert "not on the public internet" in private
    assert document["components"]["schemas"]["Image"]["ui"] == {"field": "image"}
    assert document["components"]["schemas"]["Given"]["properties"]["image_url"]["ui"] == {"field": "image"}


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with what its class says; remembers who asked."""

    body, announced = b"weights", True
    headers_sent: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers.get("authorization")))
        self.send_response(200)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        if self.announced:
            self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that this test's depot may fetch from, and folders of its own."""
    monkeypatch.setattr(toolkit, "FAL_PERSISTENT_DIR", tmp_path / "data")
    monkeypatch.setattr(toolkit, "FAL_MODEL_WEIGHTS_DIR", tmp_path / "data" / "weights")
    handler: Any = type("Mine", (Site,), {"asked": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    store = LocalStore(tmp_path / "files")
    settings = Settings(allow_private_hosts=[f"127.0.0.1:{server.server_port}"], max_file_bytes=10)
    with enter_depot(Depot(store, settings)):
        handler.store = store
        yield handler
    server.shutdown()
    thread.join()
    server.server_close()
    store.close()


def test_a_download_lies_in_the_persistent_folder_under_its_name(site: Any, tmp_path: Path) -> None:
    path = downloads.download_file(f"{site.url}/a/model.bin?x=1", "models", request_headers={"Authorization": "Bearer x"})

    assert (path, path.read_bytes()) == (tmp_path / "data" / "models" / "model.bin", b"weights")
    assert site.asked == [("/a/model.bin?x=1", "Bearer x")]


def test_a_download_is_named_by_its_server_or_else_by_its_url(site: Any, tmp_path: Path) -> None:
    site.headers_sent = {"content-disposition": 'attachment; filename="../named.bin"'}
    named = downloads.download_file(f"{site.url}/", tmp_path)
    site.headers_sent = {}

    assert named == tmp_path / "named.bin"
    assert len(downloads.download_file(f"{site.url}/", tmp_path).name) == 64
    assert len(downloads.download_file("data:,abc", tmp_path).name) == 64


def test_a_file_of_the_same_size_stays_unless_forced(site: Any, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"already")
    kept = downloads.download_file(f"{site.url}/model.bin", tmp_path).read_bytes()
    fresh = downloads.download_file(f"{site.url}/model.bin", tmp_path, force=True).read_bytes()

    assert (kept, fresh) == (b"already", b"weights")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["model.bin"]


@pytest.mark.parametrize("announced", [True, False])
def test_check_32_filesize_limit_counts_what_is_announced_and_what_comes(site: Any, tmp_path: Path, announced: bool) -> None:
    site.body, site.announced = bytes(1024 * 1024 + 1), announced

    with pytest.raises(DownloadError, match="larger than 1048576 bytes"):
        downloads.download_file(f"{site.url}/x", tmp_path / "there", filesize_limit=1)
    assert list((tmp_path / "there").iterdir()) == []
    assert downloads.download_file(f"{site.url}/x", tmp_path, filesize_limit=2).stat().st_size == 1024 * 1024 + 1


def test_check_31_downloads_reject_private_hosts_but_take_the_servers_own_files(site: Any, tmp_path: Path) -> None:
    place = site.store.place(FileDescription(name="a.txt"))
    store_file(site.store, place, [b"mine"])

    assert downloads.download_file(f"http://127.0.0.1:1{place.url}", tmp_path).read_bytes() == b"mine"
    for url in ("http://127.0.0.1:1/x", "http://169.254.169.254/", "http://[::1]/", "file:///etc/passwd", "nonsense"):
        with pytest.raises(DownloadError):
            downloads.download_file(url, tmp_path)


def test_weights_are_fetched_once(site: Any) -> None:
    first = downloads.download_model_weights(f"{site.url}/w.bin")
    second = downloads.download_model_weights(f"{site.url}/w.bin")
    forced = downloads.download_model_weights(f"{site.url}/w.bin", force=True)

    assert first == second == forced
    assert first.read_bytes() == b"weights"
    assert len(site.asked) == 2


def test_without_a_running_service_a_download_says_so(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no runner runs here"):
        downloads.download_file("https://example.com/x", tmp_path)


@pytest.fixture
def fal() -> ModuleType:
    return provide_modules({name: getattr(runner, name) for name in runner.__all__})["fal"]


def test_a_picture_is_read_from_a_url(fal: ModuleType) -> None:
    uri = runner.Image.from_pil(__import__("PIL.Image").Image.new("RGBA", (3, 2)), repository="in_memory").url

    assert fal.toolkit.read_image_from_url(uri).size == (3, 2)
    assert fal.toolkit.read_image_from_url(uri, convert_to_rgb=False).mode == "RGBA"
    with pytest.raises(InvalidInput):
        fal.toolkit.read_image_from_url("data:,x")


@pytest.mark.parametrize(
    ("url", "good"),
    [(" https://example.com/a.png ", True), ("data:image/png;base64,AA==", True), ("http://example.com/a.png", False),
     ("https://localhost/a", False), ("https://127.0.0.1/a", False), ("https://example.com/" + "a" * 2048, False),
     ("data:," + "a" * (10 * 1024 * 1024), False), ("https://[::1", False), ("", False)],
)  # fmt: skip
def test_input_types_take_https_urls_of_named_hosts_and_short_data_uris(fal: ModuleType, url: str, good: bool) -> None:
    adapter: Any = pydantic.TypeAdapter(fal.toolkit.types.ImageInput)
    if good:
        assert adapter.validate_python(url) == url.strip()
    else:
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(url)
    assert adapter.json_schema()["ui"] == {"field": "image"}
