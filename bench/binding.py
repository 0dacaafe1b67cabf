"""What it costs to turn a request's body into an endpoint's arguments, duplicate keys refused.

Runs in this process, without HTTP: `bind` of one endpoint against a bare decoder of the same type,
on bodies of 60 bytes to 7 MiB. Shows p50 and p99 of runs of many calls, per call. Does not show
bad input, which is walked a second time, nor parameters that come from elsewhere than the body.

    python bench/binding.py
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)

import msgspec
import pydantic
from runner.plugins.types import bind, describe, type_codec
from runner.schemas.endpoint import Mark
from runner.schemas.request import Request

RUNS = 200
RUN_SECONDS = 0.002  # long beside the clock, short beside a time slice

Row = tuple[str, str, Any, bytes]


class Input(msgspec.Struct):
    prompt: str
    max_tokens: int = 5
    temperature: float = 1.0
    seed: int | None = None
    image_url: str = ""


class Model(pydantic.BaseModel):
    prompt: str
    max_tokens: int = 5
    temperature: float = 1.0
    seed: int | None = None
    image_url: str = ""


@dataclasses.dataclass
class Data:
    prompt: str
    max_tokens: int = 5
    temperature: float = 1.0
    seed: int | None = None
    image_url: str = ""


class Message(msgspec.Struct):
    role: str
    content: str


class Chat(msgspec.Struct):
    messages: list[Message]


SMALL = b'{"prompt":"hello there you","max_tokens":16,"temperature":0.5}'
ONE_KEY = b'{"prompt":"once upon a time there was a server of models"}'
PROMPT = json.dumps({"prompt": "It was noon: the sun shone. " * 70, "seed": 7}).encode()
MESSAGES = json.dumps(
    {"messages": [{"role": "user", "content": "It was noon: the sun shone. " * 2}] * 22}
).encode()
IMAGE = json.dumps(
    {"image_url": "data:image/png;base64," + "QUJD" * (7 * 2**20 // 4), "prompt": "a", "seed": 7}
).encode()

ROWS: list[Row] = [
    ("60 B, three keys", "Struct", Input, SMALL),
    ("60 B, three keys", "dataclass", Data, SMALL),
    ("60 B, three keys", "dict", dict, SMALL),
    ("60 B, three keys", "pydantic", Model, SMALL),
    ("60 B, one key", "Struct", Input, ONE_KEY),
    ("2 KiB, a long prompt", "Struct", Input, PROMPT),
    ("2 KiB, 22 messages", "Struct", Chat, MESSAGES),
    ("7 MiB, an image as data: URI", "Struct", Input, IMAGE),
    ("7 MiB, an image as data: URI", "pydantic", Model, IMAGE),
]


def bound_to(type_: Any) -> Callable[[Request], dict[str, Any]]:
    def generate(self: Any, input: Any) -> None: ...

    generate.__annotations__["input"] = type_
    codec = type_codec(type_)
    assert codec is not None
    made = codec
    return bind(describe(generate, Mark(path="/"), owner="App"), lambda _: made)


def measure(call: Callable[[], Any]) -> tuple[float, float]:
    """Nanoseconds per call: the median, and the 99th percentile, of RUNS runs."""
    calls = 1
    while (spent := _seconds(call, calls)) < RUN_SECONDS and calls < 1 << 20:
        calls = max(calls + 1, int(calls * RUN_SECONDS / max(spent, 1e-9)))
    runs = sorted(_seconds(call, calls) / calls * 1e9 for _ in range(RUNS if calls > 1 else RUNS // 4))
    return statistics.median(runs), runs[int(len(runs) * 0.99)]


def _seconds(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def main() -> None:
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, pydantic {pydantic.VERSION}")
    print(f"{'body':30} {'type':10} {'bare p50':>12} {'bind p50':>12} {'bind p99':>12}  ns per call")
    for body_name, type_name, type_, body in ROWS:
        decode = Model.model_validate_json if type_name == "pydantic" else msgspec.json.Decoder(type_).decode
        bare, _ = measure(partial(decode, body))
        scope = {"headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]}
        middle, late = measure(partial(bound_to(type_), Request("id", scope=scope, body=body)))
        print(f"{body_name:30} {type_name:10} {bare:12,.0f} {middle:12,.0f} {late:12,.0f}")


if __name__ == "__main__":
    main()
