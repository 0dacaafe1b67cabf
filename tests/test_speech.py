"""The speech example hears what is in a recording, however the recording arrives."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from runner.plugins.registry import load_file
from serving import HOUSE, Runner, serving
from websockets.sync.client import connect

import runner

DATA = HOUSE / "examples" / "data"
WAV = (DATA / "speech.wav").read_bytes()
TRUTH = json.loads((DATA / "speech.json").read_text())
TOLERANCE = 0.15  # seconds

example: Any = load_file(HOUSE / "examples" / "speech.py")


@pytest.fixture(scope="module")
def speech() -> Any:
    app = example.Speech()
    app.setup()
    return app


def heard(answer: Any) -> None:
    """`answer` tells the truth about speech.wav."""
    told = answer if isinstance(answer, dict) else msgspec.to_builtins(answer)
    assert told["duration"] == pytest.approx(TRUTH["duration"], abs=0.001)
    assert len(told["segments"]) == len(TRUTH["segments"])
    for found, true in zip(told["segments"], TRUTH["segments"], strict=True):
        assert found == pytest.approx(true, abs=TOLERANCE)


def written(rate: int = 16_000, channels: int = 1, format: str = "WAV", subtype: str | None = None) -> bytes:
    """The recording in another dress."""
    samples, _ = soundfile.read(io.BytesIO(WAV), dtype="float32")
    if rate != 16_000:  # by the straightest way there is, so as not to test the example with itself
        times = np.arange(int(len(samples) * rate / 16_000)) / rate
        samples = np.interp(times, np.arange(len(samples)) / 16_000, samples)
    if channels > 1:
        samples = np.stack([samples] + [np.zeros_like(samples)] * (channels - 1), axis=1) * channels
    held = io.BytesIO()
    soundfile.write(held, samples * (0.5 if channels > 1 else 1), rate, format=format, subtype=subtype)
    return held.getvalue()


def detected(app: Any, sound: bytes, **options: Any) -> Any:
    return app.detect(example.Input(runner.Audio.from_bytes(sound), **options))


def test_the_speech_in_the_recording_is_found_where_it_is(speech: Any) -> None:
    heard(detected(speech, WAV))


def test_the_same_recording_sounds_the_same_after_another(speech: Any) -> None:
    first = detected(speech, WAV)
    detected(speech, WAV[: len(WAV) // 3])

    assert detected(speech, WAV) == first


@pytest.mark.parametrize(
    "options",
    [
        {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}, {"subtype": "FLOAT"}, {"subtype": "PCM_24"}, {"format": "AIFF"},
        {"channels": 2}, {"rate": 8_000}, {"rate": 44_100, "channels": 2}, {"rate": 48_000, "format": "OGG"}, {"rate": 22_050, "format": "FLAC"},
        {"rate": 96_000},
    ],
    ids=str,
)  # fmt: skip
def test_every_format_rate_and_number_of_channels_is_heard(speech: Any, options: dict[str, Any]) -> None:
    heard(detected(speech, written(**options)))


def test_silence_and_nothing_have_no_speech(speech: Any) -> None:
    for samples in (np.zeros(32_000), np.zeros(0)):
        held = io.BytesIO()
        soundfile.write(held, samples, 16_000, format="WAV")

        assert detected(speech, held.getvalue()) == example.Output([], len(samples) / 16_000)


def sound_of(samples: Any, rate: int, format: str, subtype: str | None = None) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format=format, subtype=subtype)
    return held.getvalue()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: b"", "unsupported_audio_format", "could not be read"),
        (lambda: b"no sound at all", "unsupported_audio_format", "could not be read"),
        (lambda: WAV[:20], "unsupported_audio_format", "could not be read"),
        (lambda: sound_of(np.zeros(10), 1_000, "WAV"), "file_load_error", "not 1000"),
        (lambda: sound_of(np.full(10, np.nan), 16_000, "WAV", "FLOAT"), "file_load_error", "no numbers"),
        (lambda: sound_of(np.zeros(4_000 * 1_801, np.int16), 4_000, "FLAC"), "audio_duration_too_long", "longer than 1800 seconds"),
    ],
    ids=["empty", "text", "cut", "slow", "nan", "long"],
)
def test_what_cannot_be_heard_is_the_callers_error(speech: Any, make: Callable[[], bytes], kind: str, words: str) -> None:
    with pytest.raises(runner.InvalidInput) as caught:
        detected(speech, make())

    (fault,) = caught.value.faults
    assert fault.type == kind
    assert words in fault.msg


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 192_000])
def test_resampling_keeps_a_tone_and_drops_what_16_khz_cannot_hold(rate: int) -> None:
    def tone(hertz: float, rate: int, seconds: float = 1.0) -> torch.Tensor:
        return torch.sin(2 * torch.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate).float()

    kept = example.resampled(tone(1_000, rate), rate)
    assert len(kept) == 16_000
    assert torch.allclose(kept[500:-500], tone(1_000, 16_000)[500:-500], atol=0.01)
    if rate > 20_000:
        assert example.resampled(tone(9_500, rate), rate)[500:-500].abs().max() < 0.01


# --- Through a real runner


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the recording, and `/stall`, which never comes to its end."""

    stalled, left = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        if self.path != "/stall":
            return super().do_GET()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        self.stalled.set()
        with suppress(ConnectionError):
            self.rfile.read(1)  # until the other end is closed
        self.left.set()

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web server with the recording, on an address that is private."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(DATA))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)


@pytest.fixture(scope="module")
def served(site: str) -> Iterator[Runner]:
    with serving(HOUSE / "examples" / "speech.py", "--allow-private-hosts", site.removeprefix("http://")) as running:
        yield running


DATA_URI = "data:audio/wav;base64," + base64.b64encode(WAV).decode()


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"audio": "SITE/speech.wav"}},
        {"json": {"audio": {"url": "SITE/speech.wav"}, "threshold": 0.4}},
        {"json": {"audio": DATA_URI}},
        {"files": {"audio": ("speech.wav", WAV, "audio/wav")}},
        {"files": {"audio": ("speech.wav", WAV)}, "data": {"threshold": "0.4"}},
        {"data": {"audio": "SITE/speech.wav"}},
        {"content": WAV, "headers": {"content-type": "audio/wav"}},
        {"content": WAV, "params": {"threshold": "0.4"}},
    ],
    ids=["url", "object", "data uri", "form", "form with text", "urlencoded", "raw", "raw with query"],
)
def test_a_recording_is_heard_however_it_is_sent(served: Runner, site: str, sent: dict[str, Any]) -> None:
    sent = json_with_site(sent, site)

    answer = served.post("/", **sent)
    assert answer.status_code == 200, answer.text
    heard(answer.json())


def json_with_site(value: Any, site: str) -> Any:
    if isinstance(value, dict):
        return {name: json_with_site(item, site) for name, item in value.items()}
    return value.replace("SITE", site) if isinstance(value, str) else value


@pytest.mark.parametrize(
    "arguments",
    [
        ["-F", "audio=@speech.wav"],
        ["-F", "audio=@speech.wav;type=audio/wav", "-F", "threshold=0.4"],
        ["--data-binary", "@speech.wav", "-H", "Content-Type: audio/wav"],
        ["--data-binary", "@speech.wav"],
        ["-F", "audio=SITE/speech.wav"],
    ],
    ids=["form", "typed form", "raw", "raw without type", "form with url"],
)
def test_curl_needs_nothing_but_the_file(served: Runner, site: str, arguments: list[str]) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")

    sent = [argument.replace("SITE", site) for argument in arguments]
    done = subprocess.run([curl, "-sS", "--noproxy", "*", *sent, served.url], cwd=DATA, capture_output=True, check=True, timeout=30)
    heard(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("sent", "status", "kind", "loc"),
    [
        ({"json": {"audio": "http://127.0.0.1:1/x.wav"}}, 422, "file_download_error", ["body", "audio"]),
        ({"json": {"audio": "http://169.254.169.254/latest/meta-data/"}}, 422, "file_download_error", ["body", "audio"]),
        ({"json": {"audio": "SITE/nothing.wav"}}, 422, "file_download_error", ["body", "audio"]),
        ({"json": {"audio": "SITE/speech.json"}}, 422, "unsupported_audio_format", ["body", "audio"]),
        ({"json": {"audio": "data:audio/wav;base64,?"}}, 422, "file_download_error", ["body", "audio"]),
        ({"json": {"audio": "file:///etc/passwd"}}, 422, "value_error", ["body", "audio"]),
        ({"files": {"audio": ("x.wav", b"nothing")}}, 422, "unsupported_audio_format", ["body", "audio"]),
        ({"files": {"sound": ("x.wav", WAV)}}, 422, "missing", ["body", "audio"]),
        ({"files": {"audio": ("x.wav", WAV)}, "data": {"threshold": "2"}}, 422, "less_than", ["body", "threshold"]),
        ({"content": b"nothing", "headers": {"content-type": "audio/wav"}}, 422, "unsupported_audio_format", ["body", "audio"]),
    ],
    ids=["loopback", "metadata", "404", "no sound", "base64", "file", "bad upload", "other name", "threshold", "bad raw"],
)
def test_what_cannot_be_heard_is_422_at_its_field(
    served: Runner, site: str, sent: dict[str, Any], status: int, kind: str, loc: list[str]
) -> None:
    answer = served.post("/", **json_with_site(sent, site))

    assert answer.status_code == status, answer.text
    (fault,) = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == (kind, loc)


def test_a_broken_form_is_400(served: Runner) -> None:
    answer = served.post("/", content=b"hello", headers={"content-type": "multipart/form-data; boundary=x"})

    assert answer.status_code == 400
    assert "form cannot be read" in answer.json()["detail"]


def test_a_caller_who_leaves_during_a_download_ends_it(served: Runner, site: str) -> None:
    body = json.dumps({"audio": f"{site}/stall"}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as caller:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        caller.sendall(head.encode() + body)
        assert Quiet.stalled.wait(10)

    assert Quiet.left.wait(10)
    heard(served.post("/", {"audio": DATA_URI}).json())


# --- as it is spoken


def spoken(answers: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """When somebody spoke, by the answers to pieces of sound; pauses of less than 0.1 s left out."""
    found: list[list[float]] = []
    for answer in answers:
        if answer["speech"] and found and answer["at"] - found[-1][1] < 0.15:
            found[-1][1] = answer["at"]
        elif answer["speech"]:
            found.append([answer["at"], answer["at"]])
    return [(start, end) for start, end in found]


@pytest.mark.parametrize("piece", [512, 800, 333])
def test_a_socket_hears_the_recording_as_it_is_spoken(served: Runner, piece: int) -> None:
    samples, _ = soundfile.read(io.BytesIO(WAV), dtype="int16")
    answers = []
    with connect(served.url.replace("http", "ws") + "/listen", proxy=None) as client:
        for at in range(0, len(samples), piece):
            client.send(msgspec.msgpack.encode({"samples": samples[at : at + piece].tobytes()}))
            answers.append(msgspec.msgpack.decode(client.recv()))

    found = spoken(answers)
    assert len(found) == len(TRUTH["segments"])
    for (start, end), true in zip(found, TRUTH["segments"], strict=True):
        assert start == pytest.approx(true["start"], abs=TOLERANCE)
        assert end == pytest.approx(true["end"], abs=2 * TOLERANCE)  # speech that has begun ends late


def test_two_who_listen_at_once_do_not_hear_each_other(served: Runner) -> None:
    samples, _ = soundfile.read(io.BytesIO(WAV), dtype="int16")
    url = served.url.replace("http", "ws") + "/listen"
    alone, beside = [], []
    with connect(url, proxy=None) as client:
        for at in range(0, 16_000 * 3, 1600):
            client.send(msgspec.msgpack.encode({"samples": samples[at : at + 1600].tobytes()}))
            alone.append(msgspec.msgpack.decode(client.recv()))
    with connect(url, proxy=None) as client, connect(url, proxy=None) as other:
        for at in range(0, 16_000 * 3, 1600):
            other.send(msgspec.msgpack.encode({"samples": b"\0" * 3200}))
            client.send(msgspec.msgpack.encode({"samples": samples[at : at + 1600].tobytes()}))
            assert not msgspec.msgpack.decode(other.recv())["speech"]
            beside.append(msgspec.msgpack.decode(client.recv()))

    assert beside == alone
    assert served.post("/", files={"audio": ("speech.wav", WAV)}).status_code == 200


def test_the_page_sends_what_the_endpoint_takes(served: Runner) -> None:
    """The page's own functions, in Node: a browser's microphone has any rate, the model one."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    page = (HOUSE / "examples" / "microphone.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    check = """
    const resample = resampler(48000, 16000), out = [];
    for (let at = 0; at < 48000; at += 128) out.push(...resample(Float32Array.from({ length: 128 }, (_, i) => Math.sin((at + i) / 48000 * 2 * Math.PI * 200))));
    console.log(JSON.stringify({ samples: packed(out) }));
    """
    done = subprocess.run(["node", "-e", script + check], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr

    sent = np.frombuffer(base64.b64decode(json.loads(done.stdout)["samples"]), "<i2")
    assert len(sent) == 16_000
    expected = np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 200) * 32767
    assert np.abs(sent - expected).max() < 1000
    with connect(served.url.replace("http", "ws") + "/listen", proxy=None) as client:
        client.send(done.stdout)
        assert json.loads(client.recv())["at"] == pytest.approx(1.0, abs=0.032)
