"""The stock fal clients bring files to a runner with a key: Python through the gateway, JavaScript through the proxy (contract 4.4)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import serving
from test_sdk_streams import APPS, certificate, node, packages

__all__ = ["certificate", "packages"]  # fixtures

KEY = "secret:key"
SCRIPT = """
import asyncio, io, json, os
import fal_client, httpx
from fal_client import client as module
import PIL.Image

module.MULTIPART_THRESHOLD, module.MULTIPART_CHUNK_SIZE = 3 << 20, 1 << 20
big = b"0123456789abcdef" * 300_001
open("big.txt", "wb").write(big)
urls = {
    "bytes": fal_client.upload(b"small", "text/plain", file_name="a.txt"),
    "stored": fal_client.upload(b"small", "text/plain", repository="fal"),
    "parts": fal_client.upload(big, "text/plain"),
    "file": fal_client.upload_file("big.txt"),
    "image": fal_client.upload_image(PIL.Image.new("RGB", (3, 2))),
    "async": asyncio.run(fal_client.upload_async(b"small", "text/plain")),
    "async parts": asyncio.run(fal_client.upload_async(big, "text/plain")),
}
lengths = {name: fal_client.run("local/files/length", arguments={"url": url}) for name, url in urls.items()}
size = fal_client.run("local/files/mode", arguments={"url": urls["image"]})
made = fal_client.subscribe("local/files", {})["image"]
print(json.dumps({"urls": urls, "lengths": lengths, "size": size, "made": made}))
"""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_through_the_gateway_the_python_client_uploads_and_the_app_reads(certificate: dict[str, Path], tmp_path: Path, tls: bool) -> None:
    secured = ("--tls-cert", str(certificate["cert"]), "--tls-key", str(certificate["key"])) if tls else ()
    arguments = (*secured, "--fal-gateway", "0", "--data-dir", str(tmp_path / "data"))
    with serving(APPS / "files.py", *arguments, cwd=tmp_path, env={"RUNNER_AUTH_KEY": KEY}) as runner:
        printed = dict(runner.wait_for_printed(r"export (\w+)=(.+)", times=3))
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**inherited, **printed, "FAL_KEY": KEY},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        image = runner.get(found["made"]["url"]) if not tls else None

    big = 16 * 300_001
    del found["lengths"]["image"]
    assert found["lengths"] == {"bytes": 5, "stored": 5, "parts": big, "file": big, "async": 5, "async parts": big}
    assert found["size"] == [3, 2]
    assert found["made"]["url"].startswith(runner.url)
    assert image is None or image.content[:4] == b"\x89PNG"


def test_through_the_proxy_the_javascript_client_uploads_what_stands_in_an_input(packages: Path, tmp_path: Path) -> None:
    with serving(APPS / "files.py", "--data-dir", str(tmp_path), cwd=tmp_path, env={"RUNNER_AUTH_KEY": KEY}) as runner:
        found: Any = node("files.cjs", packages, runner.url, KEY)

    assert found["read"] == "small"
    assert found["length"] == 91 * 1024 * 1024
    assert found["url"].startswith(f"{runner.url}/files/")
