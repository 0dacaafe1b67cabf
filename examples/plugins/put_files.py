"""An upload target: the files that the app makes, and those that callers upload, are PUT to a web server.

PUT_URL says where, for example https://files.example.com/outputs/: any server that takes PUT and answers GET at the
same URL, such as nginx with `dav_methods PUT`. PUT_TOKEN, if it has one, goes along as `Authorization: Bearer`. When the
server does not take a file, the request that made it fails with 507, and nobody is given a URL that does not work.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from urllib.parse import quote

import httpcore

import runner

MEMORY_BYTES = 1024**2  # what is larger waits on the disk until it is whole


class Target:
    def __init__(self, url, token):
        self.url, self.token = url.rstrip("/"), token
        self.pool = httpcore.ConnectionPool(retries=2)

    def place(self, file):
        key = secrets.token_urlsafe(16)
        return runner.FilePlace(key=key, url=f"{self.url}/{key}/{quote(file.name, safe='')}", file=file)

    def write(self, place):
        return Sink(self, place)

    def read(self, url):
        return None  # public: fetched like any other URL when it comes back as an input


class Sink:
    def __init__(self, target, place):
        self.target, self.place = target, place
        self.held = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 # commit and abort close it

    def write(self, chunk):
        self.held.write(chunk)

    def commit(self):
        size = self.held.tell()
        self.held.seek(0)
        headers = {"Content-Type": self.place.file.content_type, "Content-Length": str(size)}
        if self.target.token:
            headers["Authorization"] = f"Bearer {self.target.token}"
        try:
            chunks = iter(lambda: self.held.read(64 * 1024), b"")
            status = self.target.pool.request("PUT", self.place.url, headers=headers, content=chunks).status
            problem = "" if status in (200, 201, 204) else f"it answered {status}"
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            problem = f"{type(error).__name__} {error}"
        self.abort()
        if problem:
            raise runner.HTTPError(507, f"{self.place.file.name} could not be put to {self.target.url}: {problem}")

    def abort(self):
        with suppress(OSError):
            self.held.close()


@runner.hookimpl
def file_store(settings):
    url = os.environ.get("PUT_URL", "")
    if not url.startswith(("http://", "https://")):
        raise runner.ConfigError(f"PUT_URL is {url!r}; it is where files go, for example https://files.example.com/outputs/")
    return Target(url, os.environ.get("PUT_TOKEN", ""))
