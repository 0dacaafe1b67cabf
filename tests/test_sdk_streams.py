"""The stock fal clients stream from a runner and talk to it, Python and JavaScript (checks 34, 35, 37, 44, 63).

Python is pointed here by its environment (contract 7.10, way A), JavaScript by its own middleware,
or by the one place where it opens a socket.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from serving import HOUSE, Runner, serving

APPS = Path(__file__).parent / "apps"
NODE_PACKAGES = ("@fal-ai/client@1.10.1", "ws@8.23.0")
BUG = {"detail": "Internal Server Error", "error_type": "runner_server_error"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate for localhost and the authority that a client must trust."""
    folder = tmp_path_factory.mktemp("tls")
    authority, files = trustme.CA(), {name: folder / f"{name}.pem" for name in ("authority", "cert", "key")}
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(files["authority"])
    issued.private_key_pem.write_to_path(files["key"])
    files["cert"].write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    return files


@pytest.fixture(scope="module")
def secure_streams(certificate: dict[str, Path]) -> Iterator[Runner]:
    with serving(f"{APPS / 'streams.py'}:Streams", "--tls-cert", str(certificate["cert"]), "--tls-key", str(certificate["key"])) as runner:
        yield runner


@pytest.fixture(scope="module")
def secure_talks(certificate: dict[str, Path]) -> Iterator[Runner]:
    with serving(f"{APPS / 'talks.py'}:Talks", "--tls-cert", str(certificate["cert"]), "--tls-key", str(certificate["key"])) as runner:
        yield runner


def python(script: str, runner: Runner, certificate: dict[str, Path]) -> Any:
    """What `script`, a caller with the stock client, leaves in `found`."""
    hosts = {"FAL_RUN_HOST": f"localhost:{runner.port}/run", "FAL_QUEUE_RUN_HOST": f"localhost:{runner.port}/queue"}
    env = {**os.environ, **hosts, "SSL_CERT_FILE": str(certificate["authority"]), "FAL_KEY": "any:thing", "NO_PROXY": "*"}
    head = "import asyncio, json\nimport fal_client\nfound = {}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script) + "\nprint(json.dumps(found))"],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


STREAM = """
def broken(path):
    got = []
    try:
        for event in fal_client.stream("local/streams", {}, path=path): got.append(event)
    except Exception as error: got.append(type(error).__name__)
    return got

async def broken_async(path):
    got = []
    try:
        async for event in fal_client.stream_async("local/streams", {}, path=path): got.append(event)
    except Exception as error: got.append(type(error).__name__)
    return got

async def all_async():
    found["async"] = [event async for event in fal_client.stream_async("local/streams", {}, path="/async")]
    found["gated_async"] = []
    async for event in fal_client.stream_async("local/streams", {}, path="/gated-async"):
        found["gated_async"].append(event["i"])
        if event["i"] == 0: await fal_client.run_async("local/streams/open", {})
    found["broken_async"] = await broken_async("/fails-async/stream")

found["sync"] = list(fal_client.stream("local/streams", {}))
found["plain"] = list(fal_client.stream("local/streams", {}, path="/plain"))
found["unary"] = list(fal_client.stream("local/streams", {}, path="/unary"))
found["own"] = list(fal_client.stream("local/streams", {}, path="/own"))
found["starlette"] = list(fal_client.stream("local/streams", {}, path="/starlette"))
found["gated"] = []
for event in fal_client.stream("local/streams", {}, path="/gated"):
    found["gated"].append(event["i"])
    if event["i"] == 0: fal_client.run("local/streams/open", {})
found["broken"] = broken("/fails/stream")
asyncio.run(all_async())
"""


def test_check_34_the_python_client_streams(secure_streams: Runner, certificate: dict[str, Path]) -> None:
    found = python(STREAM, secure_streams, certificate)

    three = [{"i": i, "text": "né 😀"} for i in range(3)]
    assert [found[kind] for kind in ("sync", "plain", "async", "own")] == [three] * 4
    assert found["unary"] == [{"i": 7, "text": "né 😀"}]
    assert found["starlette"] == [0, 1, 2]
    assert (found["gated"], found["gated_async"]) == ([0, 1], [0, 1])
    for kind in ("broken", "broken_async"):
        assert [event["i"] for event in found[kind][:3]] == [1, 2, 3]
        assert found[kind][3:] == [BUG, "RemoteProtocolError"]


def test_over_http_2_a_stream_that_fails_ends_with_its_error_and_does_not_hang(secure_streams: Runner, certificate: dict[str, Path]) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate["authority"]))
    with httpx.Client(http2=True, verify=trusted, timeout=30, trust_env=False) as client:
        answers = [client.post(f"https://localhost:{secure_streams.port}{path}") for path in ("/stream", "/fails/stream", "/fails-async/stream")]

    assert [answer.http_version for answer in answers] == ["HTTP/2"] * 3
    whole, *failed = [[json.loads(part[6:]) for part in answer.text.split("\n\n") if part] for answer in answers]
    assert len(whole) == 3
    assert [events[-1] for events in failed] == [BUG, BUG]


TALK = """
def talk(path, messages, answers):
    got = []
    with fal_client.realtime("local/talks", use_jwt=False, path=path) as connection:
        for message in messages: connection.send(message)
        try:
            for _ in range(answers):
                answer = connection.recv()
                got.append({**answer, "data": list(answer["data"])} if answer and "data" in answer else answer)
        except fal_client.RealtimeError if hasattr(fal_client, "RealtimeError") else Exception as error:
            got.append(str(error))
            got.append(connection.recv())
    return got

async def talk_async(path, messages, answers):
    got = []
    async with fal_client.realtime_async("local/talks", use_jwt=False, path=path) as connection:
        for message in messages: await connection.send(message)
        for _ in range(answers):
            answer = await connection.recv()
            got.append({**answer, "data": list(answer["data"])})
    return got

async def all_async():
    found["async"] = await talk_async("/async", [{"n": n, "text": "né 😀"} for n in (1, 2, 3)], 3)
    async with fal_client.ws_connect_async("local/talks", use_jwt=False, path="/ws") as socket:
        await socket.recv()
        await socket.send("a")
        found["raw_async"] = (await socket.recv()).decode()

found["unary"] = talk("/realtime", [{"n": n, "data": b"\\0\\xff", "text": "né 😀"} for n in (1, 2, 3)], 3)
found["server"] = talk("/server", [{"n": 2}], 3)
found["bidi"] = talk("/bidi", [{"n": 2}], 3)
found["invalid"] = talk("/realtime", [{"m": 2}], 1)
with fal_client.ws_connect("local/talks", use_jwt=False, path="/ws") as socket:
    socket.recv()
    socket.send("a")
    found["raw"] = socket.recv().decode()
asyncio.run(all_async())
"""


def test_check_37_the_python_client_talks(secure_talks: Runner, certificate: dict[str, Path]) -> None:
    found = python(TALK, secure_talks, certificate)

    assert found["unary"] == [{"n": 2 * n, "data": [0, 255, 33], "text": "né 😀"} for n in (1, 2, 3)]
    assert found["async"] == [{"n": 2 * n, "data": [33], "text": "né 😀"} for n in (1, 2, 3)]
    idle = "TIMEOUT: no inputs, reconnect when needed!"
    assert [each if isinstance(each, str) or each is None else each["n"] for each in found["server"]] == [0, 1, idle, None]
    assert [each if isinstance(each, str) or each is None else each["n"] for each in found["bidi"]] == [3, 4, idle, None]
    assert found["invalid"] == ["INTERNAL_ERROR: n: Field required", None]
    assert (found["raw"], found["raw_async"]) == ("A", "A")


# --- JavaScript


@pytest.fixture(scope="module")
def packages() -> Path:
    """The packages from npm, installed once in a folder of the checkout."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node is not installed")
    folder = HOUSE / ".node"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may run tests of this checkout too
        if not all((folder / "node_modules" / name.rpartition("@")[0]).is_dir() for name in NODE_PACKAGES):
            command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--no-package-lock", *NODE_PACKAGES]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "node_modules"


def node(script: str, packages: Path, *arguments: str) -> Any:
    command = ["node", str(Path(__file__).parent / "js" / script), *arguments]
    done = subprocess.run(command, env={**os.environ, "NODE_PATH": str(packages)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["middleware", "proxy"])
def test_check_35_the_javascript_client_streams(packages: Path, way: str) -> None:
    """Check 66: through the proxy too, and not kept back there."""
    with serving(f"{APPS / 'streams.py'}:Streams") as runner:
        found = node("streams.cjs", packages, runner.url, *([f"{runner.url}/api/fal/proxy"] if way == "proxy" else []))

    three = [{"i": i, "text": "né 😀"} for i in range(3)]
    assert found["sync"] == {"got": three, "done": three[-1]}
    told = {"detail": "busy elsewhere", "error_type": "runner_server_error"}
    assert (found["named"]["got"][1:], found["named"]["error"]) == ([told], "terminated")
    for kind in ("failing", "failing_async"):
        assert [event["i"] for event in found[kind]["got"][:3]] == [1, 2, 3]
        assert (found[kind]["got"][3:], found[kind]["error"]) == ([BUG], "terminated")
    assert found["list"] == three[:2]


def test_the_javascript_client_talks(packages: Path) -> None:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner:
        found = node("realtime.cjs", packages, runner.url.replace("http", "ws"))

    assert found["unary"]["got"] == [{"n": 2 * n, "data": [0, 255, 33], "text": "né 😀"} for n in (1, 2, 3)]
    assert found["async"]["got"] == [{"n": 8, "data": [33], "text": ""}]
    assert [answer["n"] for answer in found["server"]["got"]] == [0, 1, 2]
    assert [answer["n"] for answer in found["bidi"]["got"]] == [2, 3]
    assert (found["failing"]["error"], found["failing"]["status"]) == ("INTERNAL_ERROR: no 1", 400)
    assert (found["invalid"]["error"], found["invalid"]["status"]) == ("INTERNAL_ERROR: n: Field required", 400)
