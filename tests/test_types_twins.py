"""Callers cannot tell which kind of type an author chose: the same faults as the pydantic twin gives,
in the order that FastAPI gives them in.

Where they differ it is meant so:

| input | pydantic, FastAPI | msgspec types, plain parameters |
| --- | --- | --- |
| "5", true, 1.0 for an int; "5", true for a float; "yes", 1 for a bool; true for Literal[1] | taken | refused |
| a date, "12:00" or seconds since 1970 for a moment | taken | refused: RFC 3339 and ISO 8601 only |
| "nan" for a Decimal | refused | taken |
| "1" in a query for Literal[1] | refused | taken |
| bytes | their UTF-8 | base64 |
| a dict of too many keys | "not more" | "not 3" |
| a duration that is none | its parser's reason | an example of a good one |
| one key twice, NaN, 1e999 | taken, or a crash | `json_invalid` |
| bytes that are no UTF-8, too deep, too many digits | 400 | 422 `json_invalid` |
| JSON null as the whole body | `model_attributes_type` | `missing`, as fal says it (contract 2.4) |
| a body of another content type, echoed | its text | its length (contract 2.4) |
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import json
import random
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

import anyio
import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta
from pydantic import Field
from runner.plugins.cancellation import Token
from runner.plugins.types import bind, describe, type_codec
from runner.plugins.types.faults import FALSE, TRUE
from runner.plugins.types.moments import explain
from runner.schemas.endpoint import Mark
from runner.schemas.problems import ConfigError, InvalidInput
from runner.schemas.request import Request

fastapi = pytest.importorskip("fastapi")

Faults = list[tuple[str, tuple[str | int, ...]]]
JSON = (b"content-type", b"application/json")
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


# twins: the same fields as a Struct, a dataclass, a TypedDict and a pydantic model


class Point(msgspec.Struct):
    x: int
    y: float = 0.0


class PointModel(pydantic.BaseModel):
    x: int
    y: float = 0.0


PointModel.__name__ = "Point"


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog", forbid_unknown_fields=True):
    name: str


class CatModel(pydantic.BaseModel):
    type: Literal["cat"]
    lives: int


class DogModel(pydantic.BaseModel, extra="forbid"):
    type: Literal["dog"]
    name: str


class Struct(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]
    steps: Annotated[int, Meta(ge=1, le=4)] = 2
    scale: Annotated[float, Meta(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], Meta(max_length=2)] = []
    pair: tuple[int, str] = (1, "")
    unique: set[str] = set()
    table: dict[str, Point] = {}
    seed: int | None = None
    either: int | str = 0
    point: Point | None = None
    pet: Cat | Dog | None = None
    anything: Any = None


@dataclasses.dataclass
class Data:
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]
    steps: Annotated[int, Meta(ge=1, le=4)] = 2
    scale: Annotated[float, Meta(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], Meta(max_length=2)] = dataclasses.field(default_factory=list)
    pair: tuple[int, str] = (1, "")
    unique: set[str] = dataclasses.field(default_factory=set)
    table: dict[str, Point] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    either: int | str = 0
    point: Point | None = None
    pet: Cat | Dog | None = None
    anything: Any = None


class Prompt(typing_extensions.TypedDict):
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]


class Dict(Prompt, total=False):
    steps: Annotated[int, Meta(ge=1, le=4)]
    scale: Annotated[float, Meta(gt=0, lt=2)]
    flag: bool
    kind: Literal["b", "a"]
    color: Color
    tags: Annotated[list[int], Meta(max_length=2)]
    pair: tuple[int, str]
    unique: set[str]
    table: dict[str, Point]
    seed: int | None
    either: int | str
    point: Point | None
    pet: Cat | Dog | None
    anything: Any


class Model(pydantic.BaseModel):
    prompt: Annotated[str, Field(min_length=1, max_length=5, pattern="^[a-z]*$")]
    steps: Annotated[int, Field(ge=1, le=4)] = 2
    scale: Annotated[float, Field(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], Field(max_length=2)] = []
    pair: tuple[int, str] = (1, "")
    unique: set[str] = set()
    table: dict[str, PointModel] = {}
    seed: int | None = None
    either: int | str = 0
    point: PointModel | None = None
    pet: Annotated[CatModel | DogModel, Field(discriminator="type")] | None = None
    anything: Any = None


class ClosedModel(Model, extra="forbid"):
    pass


TWINS = [(Struct, ClosedModel), (Data, Model), (Dict, Model)]

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from([1.0, 0.5, -2.5, 1e30, "", "a", "red", "5", "x1", "true"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["x", "y", "type", "lives", "name", "0"]), inner, max_size=3),
    max_leaves=5,
)
POINTS = st.fixed_dictionaries({"x": st.integers() | JUNK}, optional={"y": st.floats(-1, 1) | JUNK, "z": JUNK})
PETS = st.fixed_dictionaries(
    {"type": st.sampled_from(["cat", "dog"]) | JUNK},
    optional={"lives": st.integers() | JUNK, "name": st.just("rex") | JUNK, "more": JUNK},
)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.sampled_from(["a", "ab", "ABC", "abcdef"]) | JUNK,
        "steps": st.integers(-1, 6) | JUNK,
        "scale": st.floats(-1, 3) | JUNK,
        "flag": st.booleans() | JUNK,
        "kind": st.sampled_from(["a", "b", "c"]) | JUNK,
        "color": st.sampled_from(["red", "green"]) | JUNK,
        "tags": st.lists(st.integers() | JUNK, max_size=3) | JUNK,
        "pair": st.lists(st.integers() | st.just("b") | JUNK, max_size=3) | JUNK,
        "unique": st.lists(st.just("a") | JUNK, max_size=3) | JUNK,
        "table": st.dictionaries(st.just("k"), POINTS | JUNK) | JUNK,
        "seed": JUNK,
        "either": JUNK,
        "point": POINTS | JUNK,
        "pet": PETS | JUNK,
        "anything": JUNK,
        "unknown": JUNK,
    },
)


@given(INPUTS | JUNK)
@settings(max_examples=400, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
@pytest.mark.parametrize(("ours", "theirs"), TWINS, ids=["Struct", "dataclass", "TypedDict"])
def test_twins_refuse_the_same_inputs_at_the_same_places(ours: Any, theirs: Any, value: Any) -> None:
    body = json.dumps(value).encode()
    found, expected = faults_of(ours, body), faults_of(theirs, body)

    strict = {fault.loc[:1] for fault in found if is_stricter(fault.type, fault.input)}
    assert locations(found, but=strict) == locations(expected, but=strict)


def is_stricter(type_: str, value: Any) -> bool:
    """Whether this fault is in the table above: pydantic would take `value` for what is wanted."""
    if type_ == "int_type":
        return isinstance(value, (bool, str, float))
    if type_ == "float_type":
        return isinstance(value, (bool, str))
    if type_ == "bool_type":
        return str(value).lower().removesuffix(".0") in TRUE | FALSE
    return False


def faults_of(type_: Any, body: bytes) -> list[Any]:
    try:
        codec_of(type_).decode(body)
    except InvalidInput as error:
        return error.faults
    return []


def locations(found: list[Any], *, but: set[Any]) -> Faults:
    return [(fault.type, fault.loc) for fault in found if fault.loc[:1] not in but or not fault.loc]


def codec_of(type_: Any) -> Any:
    return type_codec(type_)


# moments: the words of pydantic's own parser

MOMENTS: dict[str, tuple[Any, list[str]]] = {
    "datetime": (datetime.datetime, ["2020-01-31T10:20:30Z", "2020-12-01", "2019-02-29 10:00"]),
    "date": (datetime.date, ["2020-01-31", "2020-01-31T10:20:30.5+02:00"]),
    "time": (datetime.time, ["10:20:30.123Z", "23:59:59+02:00", "10:20"]),
    "uuid": (uuid.UUID, ["12345678-1234-5678-1234-567812345678"]),
    "decimal": (decimal.Decimal, ["1.5", "-3e7"]),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_a_text_that_is_no_moment_is_told_its_first_mistake_as_pydantic_tells_it(kind: str) -> None:
    type_, good = MOMENTS[kind]
    chance = random.Random(7)
    compared = 0
    for _ in range(3000):
        text = spoiled(chance.choice(good), chance)
        ours, theirs = faults_of(type_, json.dumps(text).encode()), pydantic_fault(type_, text)
        if not ours or theirs is None:
            continue  # one of the two takes it
        (fault,) = ours
        assert (fault.type, fault.msg, fault.ctx) == (theirs["type"], theirs["msg"], theirs.get("ctx")), text
        compared += 1

    assert compared > 1000


def spoiled(text: str, chance: random.Random) -> str:
    """`text` with one to three characters changed, added, cut off or left out."""
    for _ in range(chance.randint(1, 3)):
        at, what = chance.randrange(len(text) + 1), chance.choice("0123456789-:TZ+.,ab é")
        text = chance.choice([text[:at] + what + text[at:], text[:at] + what + text[at + 1 :], text[:at] or "1"])
    return text


def pydantic_fault(type_: Any, value: Any) -> Any:
    try:
        pydantic.TypeAdapter(type_).validate_python(value)
    except pydantic.ValidationError as error:
        return error.errors(include_url=False)[0]
    return None


@pytest.mark.parametrize("value", [True, None, [], {}])
@pytest.mark.parametrize("kind", ["datetime", "date", "time", "uuid", "decimal"])
def test_what_is_no_text_is_no_moment(kind: str, value: Any) -> None:
    theirs = pydantic_fault(MOMENTS[kind][0], value)

    assert explain(kind, value) == (theirs["type"], theirs["msg"], theirs.get("ctx"))


def test_a_duration_that_is_none_is_shown_a_good_one() -> None:
    (fault,) = faults_of(datetime.timedelta, b'"soon"')

    assert (fault.type, fault.msg) == (
        "time_delta_parsing",
        "Input should be a valid timedelta, expected ISO 8601, such as PT1H30M",
    )


# FastAPI itself, asked the same


class One(pydantic.BaseModel):
    x: int


class OneStruct(msgspec.Struct):
    x: int


def everything(
    self: Any,
    body: One,
    c: int = fastapi.Cookie(),
    h: int = fastapi.Header(),
    q: int = fastapi.Query(),
    part: int = fastapi.Path(),
) -> None: ...


def models(self: Any, a: One, b: One) -> None: ...
def embedded(self: Any, x: int = fastapi.Body(), y: str = fastapi.Body("d")) -> None: ...
def alone(self: Any, x: int = fastapi.Body(embed=True)) -> None: ...
def maybe(self: Any, a: One | None = None) -> None: ...
def table(self: Any, x: dict) -> None: ...  # type: ignore[type-arg]
def numbers(self: Any, x: list[int]) -> None: ...
def integer(self: Any, x: int = 3) -> None: ...
def number(self: Any, x: float) -> None: ...
def truth(self: Any, x: bool) -> None: ...
def text(self: Any, x: str) -> None: ...
def optional(self: Any, x: int | None = None) -> None: ...
def mixed(self: Any, x: int | str) -> None: ...
def color(self: Any, x: Color) -> None: ...
def choice(self: Any, x: Literal["a", "b"]) -> None: ...
def many(self: Any, x: Annotated[list[int], fastapi.Query()]) -> None: ...
def unique(self: Any, x: Annotated[set[int], fastapi.Query()]) -> None: ...
def some(self: Any, x: Annotated[list[str], fastapi.Query()] = []) -> None: ...  # noqa: B006
def bounded(self: Any, x: int = fastapi.Query(ge=3, le=5)) -> None: ...
def patterned(self: Any, x: str = fastapi.Query(min_length=2, max_length=3, pattern="^a")) -> None: ...
def renamed(self: Any, x: int = fastapi.Query(alias="y-y")) -> None: ...
def annotated(self: Any, x: Annotated[int, fastapi.Query(ge=3)] = 7) -> None: ...
def moment(self: Any, x: datetime.datetime) -> None: ...
def heads(self: Any, x: Annotated[list[int], fastapi.Header()]) -> None: ...
def head(self: Any, x_y: str = fastapi.Header()) -> None: ...
def underscored(self: Any, x_y: str = fastapi.Header(convert_underscores=False)) -> None: ...
def cookie(self: Any, a: int = fastapi.Cookie()) -> None: ...
def path_part(self: Any, x: float) -> None: ...


def headers(*pairs: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"headers": [JSON, *pairs]}


def bodies(*texts: bytes) -> list[dict[str, Any]]:
    return [{"body": text} for text in texts]


def queries(*texts: bytes) -> list[dict[str, Any]]:
    return [{"query": text} for text in texts]


WRONG = headers((b"h", b"z"), (b"cookie", b"c=z"))
ASKED: list[tuple[Callable[..., None], list[dict[str, Any]]]] = [
    (everything, [{}, {"query": b"q=z", "body": b'{"x":"z"}', **WRONG}, {"query": b"q=z", "body": b'{"x":1,}'}]),
    (models, bodies(b"", b"null", b"[]", b"3", b'{"a":1}', b'{"a":null,"b":{"x":"z"}}', b'{"a":{"x":1},"b":{"x":2}}')),
    (embedded, bodies(b"", b"{}", b"3", b"null", b'{"x":1}', b'{"x":1,"y":2}')),
    (alone, bodies(b"", b"{}", b"3", b"[1]", b'{"x":1}')),
    (maybe, bodies(b"", b"null", b"{}", b"[]", b'{"x":1}')),
    (table, bodies(b"", b"{}", b"3", b"[1]", b'{"x":1}')),
    (numbers, bodies(b"", b"{}", b"[1]", b'["a"]', b"3")),
    (integer, queries(b"", b"x=3", b"x=", b"x=3.0", b"x=3.5", b"x=+3", b"x=%203%20", b"x=1_000", b"x=1__0", b"x=_1", b"x=0x1")),
    (integer, queries(b"x=1e3", b"x=true", b"x=1&x=2", b"x=-0", b"x=3.", b"x=%D9%A3", b"x=99999999999999999999", b"x=" + b"9" * 5000)),
    (number, queries(b"", b"x=3", b"x=", b"x=1e3", b"x=inf", b"x=-Infinity", b"x=%203.5%20", b"x=1_0.5", b"x=.5", b"x=0x1p3")),
    (truth, queries(b"", b"x=1", b"x=TRUE", b"x=on", b"x=off", b"x=2", b"x=", b"x=%20true")),
    (text, queries(b"", b"x=", b"x=a%20b", b"x=a+b", b"x=%ff", b"x=http://a/b?c")),
    (optional, queries(b"", b"x=", b"x=null", b"x=3", b"x=a")),
    (mixed, queries(b"x=3", b"x=a", b"x=")),
    (color, queries(b"x=red", b"x=RED", b"x=", b"")),
    (choice, queries(b"x=a", b"x=c", b"")),
    (many, queries(b"", b"x=1", b"x=1&x=2", b"x=a&x=2", b"x=")),
    (unique, queries(b"", b"x=1&x=1")),
    (some, queries(b"", b"x=1")),
    (bounded, queries(b"x=1", b"x=9", b"x=4", b"x=a")),
    (patterned, queries(b"x=a", b"x=aaaa", b"x=bb", b"x=ab")),
    (renamed, queries(b"x=1", b"y-y=1", b"y-y=a")),
    (annotated, queries(b"", b"x=1")),
    (moment, queries(b"x=2020-01-01T00:00:00", b"x=z", b"x=2020-13-01T00:00:00Z", b"x=2020-01-01T00:00:00+02:00")),
    (heads, [headers((b"x", b"1"), (b"x", b"2")), headers((b"x", b"1")), headers((b"x", b"1, 2")), {}]),
    (head, [headers((b"x-y", b"1"), (b"X-Y", b"2")), {}, headers((b"x-y", b"caf\xe9")), headers((b"x_y", b"1"))]),
    (underscored, [headers((b"x_y", b"1")), headers((b"x-y", b"1"))]),
    (cookie, [headers((b"cookie", c)) for c in (b"a=1", b"a=z", b"b=1; a=2", b'a="1"', b"a=1;a=2", b"[]=3; a=1", b"a")]),
    (path_part, [{"part": "1"}, {"part": "a"}, {"part": "1e3"}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "asked"),
    [(method, asked) for method, all_asked in ASKED for asked in all_asked],
    ids=lambda value: value.__name__ if callable(value) else str(value)[:60],
)
def test_arguments_and_faults_are_those_of_fastapi(method: Any, asked: dict[str, Any]) -> None:
    """Contract 2.2 and 2.4: where each argument comes from; what is said, in which order, when it is wrong."""
    assert ours(method, **asked) == theirs(method, **asked)


def test_a_struct_has_the_place_of_the_pydantic_model_among_other_sources() -> None:
    def twin(self: Any, body: OneStruct, q: int = fastapi.Query(), h: int = fastapi.Header()) -> None: ...
    def original(self: Any, body: One, q: int = fastapi.Query(), h: int = fastapi.Header()) -> None: ...

    wrong: dict[str, Any] = {"body": b'{"x":"z"}', "query": b"q=z", **headers((b"h", b"z"))}
    assert ours(twin, **wrong) == ours(original, **wrong) == theirs(original, **wrong)


def path_of(method: Any) -> str:
    return {"everything": "/{part}", "path_part": "/{x}"}.get(method.__name__, "/")


def ours(method: Any, *, body: bytes = b"", query: bytes = b"", headers: Any = (JSON,), part: str = "z") -> Any:
    asked = Request("r", scope={"type": "http", "headers": headers, "query_string": query}, body=body)
    asked.path_parameters = {"part": part, "x": part} if "{" in path_of(method) else {}
    try:
        return bind(describe(method, Mark(path=path_of(method)), owner="App"), codec_of)(asked)
    except InvalidInput as error:
        return json.loads(error.response().body)["detail"]


def theirs(method: Any, *, body: bytes = b"", query: bytes = b"", headers: Any = (JSON,), part: str = "z") -> Any:
    """What FastAPI's own server makes of the same request: the arguments, or the list of faults."""
    reached: list[dict[str, Any]] = []

    def endpoint(**arguments: Any) -> None:
        reached.append(arguments)

    hints = get_type_hints(method, include_extras=True, localns={"One": One, "OneStruct": OneStruct})
    parameters = [
        p.replace(annotation=hints[name], kind=p.KEYWORD_ONLY)
        for name, p in inspect.signature(method).parameters.items()
        if name != "self"
    ]
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = fastapi.FastAPI()
    app.post(path_of(method))(endpoint)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path = path_of(method).format(part=part, x=part)
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "root_path": "", "scheme": "http", "query_string": query, "headers": [(n.lower(), v) for n, v in headers],
        "client": ("a", 1), "server": ("b", 2),
    }  # fmt: skip
    anyio.run(app, scope, receive, send)
    return reached[0] if reached else json.loads(b"".join(m.get("body", b"") for m in sent))["detail"]


# what FastAPI injects


async def test_an_injected_request_has_the_body_and_all_that_was_asked() -> None:
    def method(self: Any, body: One, http: fastapi.Request, x: int = 0) -> None: ...

    arguments = ours(method, body=b'{"x":1}', query=b"x=5", **headers((b"x-mine", b"yes")))
    http = arguments["http"]

    assert (arguments["body"].x, arguments["x"]) == (1, 5)
    assert (http.headers["x-mine"], http.query_params["x"]) == ("yes", "5")
    assert (await http.json(), await http.body()) == ({"x": 1}, b'{"x":1}')
    assert b"".join([part async for part in http.stream()]) == b'{"x":1}'


async def test_an_injected_request_tells_when_it_is_over_and_not_before() -> None:
    token = Token()

    def method(self: Any, http: fastapi.Request) -> None: ...

    asked = Request("r", scope={"type": "http", "headers": [JSON]}, body=b"{}", token=token)
    http = bind(describe(method, Mark(path="/"), owner="App"), codec_of)(asked)["http"]
    assert not await http.is_disconnected()
    with anyio.fail_after(1):
        async with anyio.create_task_group() as group:
            group.start_soon(http.receive)
            await anyio.wait_all_tasks_blocked()
            token.cancel("client_disconnected")

    assert await http.is_disconnected()
    assert await http.receive() == {"type": "http.disconnect"}
    assert await http.body() == b"{}"


def test_an_injected_response_and_background_tasks_are_empty_and_new_each_time() -> None:
    def method(self: Any, reply: fastapi.Response, tasks: fastapi.BackgroundTasks) -> None: ...

    first, second = ours(method), ours(method)
    first["reply"].headers["x-mine"] = "1"
    first["tasks"].add_task(print)

    assert "x-mine" not in second["reply"].headers
    assert "content-length" not in first["reply"].headers
    assert first["reply"].status_code is None
    assert (len(first["tasks"].tasks), second["tasks"].tasks) == (1, [])


def test_a_class_made_from_starlettes_request_is_injected_too() -> None:
    class Signed(fastapi.Request):
        pass

    def method(self: Any, http: Signed) -> None: ...

    assert type(ours(method)["http"]) is Signed


def test_a_dependency_is_refused_with_a_way_out() -> None:
    def method(self: Any, user: Annotated[str, fastapi.Depends(str)]) -> None: ...

    with pytest.raises(ConfigError, match=r"App\.method: user uses Depends, .* compute it in the method"):
        describe(method, Mark(path="/"), owner="App")
