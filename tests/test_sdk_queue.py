"""The stock fal clients against a runner with a key: Python by both ways, JavaScript through the proxy.

Checks 44, 45 and 63 to 66. Python finds the runner by its environment (way A), or by the gateway
that stands in for fal's hosts (way B); JavaScript calls `/api/fal/proxy`. All of it over TLS. What is not here
cannot be: by its environment alone Python does not find uploads and tokens, which go to hosts without a
variable, and JavaScript has no realtime without a token (contract 7.10).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving import HOUSE, Runner, serving, written
from test_sdk_streams import APPS, certificate, node, packages

__all__ = ["certificate", "packages"]  # fixtures

KEY = "secret:key"
SCRIPT = """
import asyncio, json, os, sys
import fal_client
from fal_client.client import FalClientHTTPError
found, gate = {}, sys.argv[1]

def failed(call):
    try:
        return call()
    except FalClientHTTPError as error:
        return [error.status_code, error.error_type, str(error)]

found["run"] = fal_client.run("local/sdk", arguments={"prompt": "a"})
found["no path"] = failed(lambda: fal_client.run("local/sdk/nowhere", arguments={}))
updates = []
found["subscribe"] = fal_client.subscribe("local/sdk", {"prompt": "b"}, with_logs=True, on_queue_update=updates.append)
found["logs"] = [line["message"] for line in updates[-1].logs]

handle = fal_client.submit("local/sdk/gate", {"path": gate}, priority="low", hint="one")
found["early"] = type(fal_client.status("local/sdk", handle.request_id)).__name__
events = handle.iter_events(with_logs=True, interval=0.02)
for event in events:
    if type(event).__name__ == "InProgress" and event.logs: break
open(gate, "w").close()
found["seen"] = type(list(events)[-1]).__name__
found["result"] = handle.get()
found["again"] = fal_client.result("local/sdk", handle.request_id)

def running(path):
    handle = fal_client.submit("local/sdk/gate", {"path": path})
    for event in handle.iter_events(with_logs=True, interval=0.02):
        if type(event).__name__ == "InProgress" and event.logs: return handle

stopped = running(gate + "-never")
stopped.cancel()
found["cancelled"] = failed(stopped.get)
found["cancelled twice"] = failed(lambda: stopped.cancel())[0]
found["invalid"] = failed(lambda: fal_client.subscribe("local/sdk", {"promt": "x"}))[0]

blockers = [running(gate + "-never") for _ in range(4)]
found["late"] = failed(lambda: fal_client.subscribe("local/sdk", {"prompt": "x"}, start_timeout=1.1))
for blocker in blockers: blocker.cancel()

found["stream"] = [event["i"] for event in fal_client.stream("local/sdk", {"n": 3})]
found["realtime"] = []
for jwt in ways:
    with fal_client.realtime("local/sdk", use_jwt=jwt) as connection:
        connection.send({"n": 21})
        found["realtime"].append(connection.recv())

def uploads(upload):
    urls = [upload(b"x" * size, "text/plain", file_name="x.txt") for size in (5, 12 * 1024 * 1024)]
    return [fal_client.subscribe("local/sdk/size", {"url": url}) for url in urls]

if True in ways:  # what goes to hosts that only the gateway stands in for
    fal_client.client.MULTIPART_THRESHOLD = 10 * 1024 * 1024  # two parts will do
    found["uploads"] = uploads(fal_client.upload)
    found["async uploads"] = uploads(lambda *a, **k: asyncio.run(fal_client.upload_async(*a, **k)))
found["picture"] = fal_client.subscribe("local/sdk/picture", {})["url"]

async def asynchronous():
    found["async run"] = await fal_client.run_async("local/sdk", arguments={"prompt": "a"})
    updates = []
    found["async subscribe"] = await fal_client.subscribe_async("local/sdk", {"prompt": "b"}, with_logs=True, on_queue_update=updates.append)
    found["async logs"] = [line["message"] for line in updates[-1].logs]
    handle = await fal_client.submit_async("local/sdk", arguments={"prompt": "c"})
    found["async events"] = [type(event).__name__ async for event in handle.iter_events(with_logs=True, interval=0.02)][-1]
    found["async result"] = await handle.get()
    found["async status"] = type(await fal_client.status_async("local/sdk", handle.request_id)).__name__
    found["async again"] = await fal_client.result_async("local/sdk", handle.request_id)
    found["async cancel"] = None
    stopping = await fal_client.submit_async("local/sdk/gate", arguments={"path": gate + "-never"})
    await stopping.cancel()
    try: await stopping.get()
    except FalClientHTTPError as error: found["async cancel"] = error.status_code
    found["async stream"] = [event["i"] async for event in fal_client.stream_async("local/sdk", {"n": 3})]
    found["async realtime"] = []
    for jwt in ways:
        async with fal_client.realtime_async("local/sdk", use_jwt=jwt) as connection:
            await connection.send({"n": 21})
            found["async realtime"].append(await connection.recv())

asyncio.run(asynchronous())
found["wrong key"] = failed(lambda: fal_client.SyncClient(key="wrong:key").run("local/sdk", arguments={"prompt": "a"}))[0]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(certificate: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    arguments = ["--tls-cert", certificate["cert"], "--tls-key", certificate["key"]]
    folder = tmp_path_factory.mktemp("data")
    with serving(f"{APPS / 'sdk.py'}:Sdk", *map(str, arguments), "--data-dir", str(folder), env={"RUNNER_AUTH_KEY": KEY}) as runner:
        yield runner


def python(use_jwt: tuple[bool, ...], env: Mapping[str, str], gate: Path) -> dict[str, Any]:
    """What the stock client finds, as the environment tells it where; sockets with a token, without, or both."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", f"ways = {use_jwt}\n{SCRIPT}", str(gate)],
        env={**inherited, "FAL_KEY": KEY, **env}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(msgspec.json.decode(done.stdout.splitlines()[-1]))


def assert_all_works(found: dict[str, Any], sockets: int) -> None:
    assert found["run"] == found["async run"] == {"text": "A"}
    assert found["subscribe"] == found["async subscribe"] == {"text": "B"}
    assert found["no path"][::2] == [404, "Path /nowhere not found"]
    assert found["logs"] == found["async logs"] == ["prompt is b"]
    assert found["early"] in ("Queued", "InProgress")
    assert found["seen"] == found["async status"] == found["async events"] == "Completed"
    assert found["result"] == found["again"] == "through"
    assert found["async result"] == found["async again"] == {"text": "C"}
    assert found["cancelled"] == [499, "client_cancelled", "Request cancelled by the client."]
    assert (found["cancelled twice"], found["async cancel"], found["invalid"], found["wrong key"]) == (400, 499, 422, 401)
    assert found["late"][:2] == [504, "request_timeout"]
    assert found["stream"] == found["async stream"] == [0, 1, 2]
    assert found["realtime"] == found["async realtime"] == [{"n": 42}] * sockets


def test_check_63_by_its_environment_the_python_client_finds_all(served: Runner, certificate: dict[str, Path], tmp_path: Path) -> None:
    hosts = {"FAL_RUN_HOST": f"localhost:{served.port}/run", "FAL_QUEUE_RUN_HOST": f"localhost:{served.port}/queue"}

    found = python((False,), {**hosts, "SSL_CERT_FILE": str(certificate["authority"])}, tmp_path / "gate")
    assert_all_works(found, sockets=1)
    assert found["picture"].startswith(f"https://localhost:{served.port}/files/")


def test_check_64_through_the_gateway_the_python_client_finds_all(tmp_path: Path) -> None:
    arguments = ("--fal-gateway", "0", "--data-dir", str(tmp_path / "data"))
    with serving(f"{APPS / 'sdk.py'}:Sdk", *arguments, env={"RUNNER_AUTH_KEY": KEY}) as runner:
        printed = dict(runner.wait_for_printed(r"export (\w+)=(.+)", times=3))
        found = python((True, False), {**printed, "FAL_KEY": KEY}, tmp_path / "gate")
        assert runner.stop() == 0

    assert list(printed) == ["HTTPS_PROXY", "SSL_CERT_FILE", "FAL_KEY"]
    assert_all_works(found, sockets=2)
    assert found["uploads"] == found["async uploads"] == [{"size": 5}, {"size": 12 * 1024 * 1024}]


def test_check_65_through_the_proxy_the_javascript_client_finds_all(
    served: Runner, certificate: dict[str, Path], packages: Path, tmp_path: Path
) -> None:
    url = f"https://localhost:{served.port}"
    found = node("queue.cjs", packages, url, KEY, str(tmp_path / "gate"), authority=certificate["authority"])

    assert found["run"] == {"data": {"text": "NÉ"}, "hasId": True}
    assert found["subscribe"] == {"data": {"text": "B"}, "id": True}
    assert found["logs"] == ["prompt is b"]
    assert found["streaming"] == {"data": {"text": "C"}, "last": "COMPLETED"}
    assert found["early"] in ("IN_QUEUE", "IN_PROGRESS")
    assert (found["done"], found["result"]) == ("COMPLETED", "through")
    assert found["cancelled"]["status"] == 499
    assert (found["invalid"]["name"], found["invalid"]["status"]) == ("ValidationError", 422)
    assert (found["bad"]["status"], found["bad"]["body"]) == (404, {"detail": "no such voice"})
    assert found["wrongKey"]["status"] == 401
    assert found["stream"] == {"events": [0, 1, 2], "done": 2}
    assert found["realtime"] == {"n": 42}
    assert found["uploads"] == [{"size": 5}, {"size": 91 * 1024 * 1024}]


def test_the_lines_of_the_readme_for_the_stock_clients_run_as_they_stand(packages: Path, tmp_path: Path) -> None:
    """Its app, its one line of Python with what the gateway prints, its line of JavaScript; only ports are chosen here."""
    readme = (HOUSE / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (line,) = re.findall(r"^    (python -c .+)$", readme, re.MULTILINE)
    (config,) = re.findall(r"`(fal\.config\(.+\))`", readme)
    app, script = written(tmp_path, block + "\ndef load_model(): return str.upper\n"), tmp_path / "readme.cjs"
    with serving(f"{app}:MyApp", "--fal-gateway", "0", "--data-dir", str(tmp_path / "data")) as runner:
        printed = dict(runner.wait_for_printed(r"export (\w+)=(.+)", times=3))
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(line, shell=True, env={**inherited, **printed, "PATH": path}, capture_output=True, text=True, timeout=60)
        call = 'fal.subscribe("local/my-app", {input: {prompt: "hello"}}).then((found) => console.log(JSON.stringify(found.data)));'
        script.write_text(f'const {{ fal }} = require("@fal-ai/client");\n{config.replace(":8000", f":{runner.port}")};\n{call}\n')
        found = node(str(script), packages)

    assert (done.stdout, done.stderr) == ("{'text': 'HELLO'}\n", "")
    assert found == {"text": "HELLO"}


def test_check_66_the_proxy_refuses_what_is_not_fals(tmp_path: Path) -> None:
    with serving(f"{APPS / 'sdk.py'}:Sdk", "--data-dir", str(tmp_path)) as runner:
        for target in (None, "", "https://example.com/local/sdk", "http://fal.run/local/sdk", "https://fal.run:8443/x", "https://[/"):
            headers = {"x-fal-target-url": target} if target is not None else {}
            refused = runner.post("/api/fal/proxy", {"prompt": "x"}, headers=headers)
            assert (refused.status_code, refused.json()) == (400, "Invalid request")

        headers = {"x-fal-target-url": "https://queue.fal.run/local/sdk?fal_max_queue_length=9"}
        told = runner.post("/api/fal/proxy?mine=1", {"prompt": "x"}, headers=headers).json()
        assert told["status_url"] == f"{runner.url}/queue/local/sdk/requests/{told['request_id']}/status"

        with runner.client() as client:
            asked = {"origin": "https://page.example", "access-control-request-method": "PUT"}
            assert client.options("/api/fal/proxy", headers=asked).status_code == 204


# --- keys and tokens


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("data")
    with serving(f"{APPS / 'sdk.py'}:Sdk", "--data-dir", str(folder), "--auth-key", KEY, "--auth-key", "other") as runner:
        yield runner


@pytest.mark.parametrize("path", ["/", "/run/local/sdk", "/queue/local/sdk", "/api/fal/proxy", "/tokens/", "/files", "/nowhere"])
def test_without_a_key_nothing_is_served(locked: Runner, path: str) -> None:
    for headers in ({}, {"authorization": "Key wrong"}, {"authorization": "Bearer a.b.c"}, {"authorization": KEY}, {"authorization": "Key"}):
        refused = locked.post(path, {"prompt": "x"}, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["detail"]
        assert "x-fal-request-id" in refused.headers


@pytest.mark.parametrize("shown", [f"Key {KEY}", "key other", f"Bearer {KEY}"])
def test_with_a_key_all_is_served(locked: Runner, shown: str) -> None:
    assert locked.post("/", {"prompt": "x"}, headers={"authorization": shown}).json() == {"text": "X"}


def test_probes_and_the_public_key_are_for_everybody(locked: Runner) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/.well-known/jwks.json"):
        assert locked.get(path).status_code == 200


def test_check_45_a_token_is_a_bare_string_and_serves_its_app_for_a_while(locked: Runner) -> None:
    def token(**wanted: Any) -> Any:
        return locked.post("/tokens/", wanted, headers={"authorization": f"Key {KEY}"}).json()

    mine, elsewhere = token(allowed_apps=["sdk"], token_expiration=120), token(allowed_apps=["other"], token_expiration=120)

    assert isinstance(mine, str)
    assert locked.post("/", {"prompt": "x"}, headers={"authorization": f"Bearer {mine}"}).status_code == 200
    assert locked.post(f"/?fal_jwt_token={mine}", {"prompt": "x"}).status_code == 200
    assert locked.post(f"/?fal_jwt_token={elsewhere}", {"prompt": "x"}).status_code == 401
    assert locked.post(f"/?fal_jwt_token={mine[:-2]}", {"prompt": "x"}).status_code == 401
    assert locked.post("/tokens/", {}, headers={"authorization": f"Bearer {mine}"}).status_code == 401


def test_a_wish_for_a_token_that_cannot_be_read_is_422(locked: Runner) -> None:
    refused = locked.post("/tokens/", {"token_expiration": "long"}, headers={"authorization": f"Key {KEY}"})

    assert refused.status_code == 422


def test_a_server_that_others_reach_warns_when_it_has_no_keys(tmp_path: Path) -> None:
    with serving(f"{APPS / 'sdk.py'}:Sdk", "--host", "0.0.0.0", "--data-dir", str(tmp_path)) as runner:
        assert runner.events("keys.none", level="warning", host="0.0.0.0")
    with serving(f"{APPS / 'sdk.py'}:Sdk", "--data-dir", str(tmp_path)) as runner:
        assert not runner.events("keys.none")
