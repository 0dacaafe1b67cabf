"""Whatever kind of type an author picks, a caller reads the same faults and the same schema."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pydantic
import pytest
import torch
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta
from runner.plugins.types import Header, bind, describe, text, type_codec
from runner.schemas.endpoint import Mark
from runner.schemas.problems import ConfigError, InvalidInput, InvalidOutput
from runner.schemas.request import Request
from runner.schemas.response import Response

JSON = [(b"content-type", b"application/json")]


def bounded(examples: int) -> Any:
    """The same examples each time, so that a failure is one for everybody."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct):
    x: int


class Picture(msgspec.Struct):
    url: str
    n: int = 0


class Struct(msgspec.Struct):
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]
    max_tokens: Annotated[int, Meta(ge=1, le=4)] = 2
    scale: Annotated[float, Meta(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], Meta(max_length=2)] = []
    table: dict[str, int] = {}
    seed: int | None = None
    inner: Inner | None = None
    either: int | str = 0


class ModelInner(pydantic.BaseModel):
    x: int


ModelInner.__name__ = ModelInner.__qualname__ = "Inner"


class Model(pydantic.BaseModel):
    prompt: Annotated[str, pydantic.Field(min_length=1, max_length=5, pattern="^[a-z]*$")]
    max_tokens: Annotated[int, pydantic.Field(ge=1, le=4)] = 2
    scale: Annotated[float, pydantic.Field(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], pydantic.Field(max_length=2)] = []
    table: dict[str, int] = {}
    seed: int | None = None
    inner: ModelInner | None = None
    either: int | str = 0


@dataclasses.dataclass
class Data:
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]
    max_tokens: Annotated[int, Meta(ge=1, le=4)] = 2
    scale: Annotated[float, Meta(gt=0, lt=2)] = 1.0
    flag: bool = False
    kind: Literal["b", "a"] = "a"
    color: Color = Color.RED
    tags: Annotated[list[int], Meta(max_length=2)] = dataclasses.field(default_factory=list)
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    inner: Inner | None = None
    either: int | str = 0


class Prompt(typing_extensions.TypedDict):
    prompt: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]*$")]


class Dict(Prompt, total=False):
    max_tokens: Annotated[int, Meta(ge=1, le=4)]
    scale: Annotated[float, Meta(gt=0, lt=2)]
    flag: bool
    kind: Literal["b", "a"]
    color: Color
    tags: Annotated[list[int], Meta(max_length=2)]
    table: dict[str, int]
    seed: int | None
    inner: Inner | None
    either: int | str


BAD: list[Any] = [
    [], "text", 3, {}, {"max_tokens": 9}, {"prompt": None}, {"prompt": 5}, {"prompt": ""},
    *({"prompt": "a", **wrong} for wrong in (
        {"prompt": "abcdef"}, {"prompt": "A"}, {"max_tokens": 0}, {"max_tokens": 9},
        {"max_tokens": "x"}, {"max_tokens": 1.5}, {"max_tokens": None}, {"max_tokens": []},
        {"scale": 0}, {"scale": 2}, {"scale": "x"}, {"scale": {}}, {"flag": "maybe"}, {"flag": 7},
        {"flag": None}, {"kind": "z"}, {"kind": 1}, {"color": "green"}, {"tags": 1}, {"tags": ["x", 1]},
        {"tags": [1, 2, 3]}, {"table": []}, {"table": {"k": "v"}}, {"seed": "x"}, {"seed": 1.5},
        {"inner": 3}, {"inner": {}}, {"inner": {"x": "q"}}, {"either": None}, {"either": []},
        {"prompt": 1, "max_tokens": 9, "kind": "z", "inner": {}},
    )),
]  # fmt: skip


def codec(type_: Any) -> Any:
    made = type_codec(type_)
    assert made is not None
    return made


def faults(call: Any, *arguments: Any) -> list[Any]:
    with pytest.raises(InvalidInput) as caught:
        call(*arguments)
    detail = json.loads(caught.value.response().body)["detail"]
    assert isinstance(detail, list)
    return detail


def binder(method: Any, path: str = "/") -> Any:
    return bind(describe(method, Mark(path=path), owner="App"), codec)


def request(body: bytes = b"", query: bytes = b"", headers: Any = JSON) -> Request:
    return Request("id", scope={"headers": headers, "query_string": query}, body=body)


@pytest.mark.parametrize("kind", [Struct, Data, Dict])
@pytest.mark.parametrize("value", BAD, ids=str)
def test_every_kind_of_type_gives_the_faults_of_the_pydantic_twin(kind: Any, value: Any) -> None:
    """Behaviour 9: missing, out of range, wrong type, length, pattern, enum, null, each at its path."""
    body = json.dumps(value).encode()

    assert faults(codec(kind).decode, body) == faults(codec(Model).decode, body)


@pytest.mark.parametrize("value", ["true", '"1"', "1.0"])
def test_msgspec_types_are_strict_about_integers(value: str) -> None:
    """Behaviour 11."""
    found = faults(codec(Struct).decode, b'{"prompt":"a","max_tokens":%s}' % value.encode())

    assert found[0]["type"] == "int_type"


def test_an_unknown_field_is_refused_where_the_type_is_closed_and_ignored_elsewhere() -> None:
    """Behaviour 9."""

    class Closed(msgspec.Struct, forbid_unknown_fields=True):
        inner: Inner
        more: list[Inner] = []

    assert codec(Inner).decode(b'{"x":1,"y":2}') == Inner(1)
    assert [(f["type"], f["loc"]) for f in faults(codec(Closed).decode, b'{"inner":{"x":"z","y":1},"":0}')] == [
        ("int_parsing", ["inner", "x"]),
        ("extra_forbidden", [""]),
    ]


def test_a_text_that_holds_a_url_arrives_as_it_is() -> None:
    """Behaviour 10: only File types are fetched."""

    def method(self: Any, link: str) -> None: ...
    def model(self: Any, input: Picture) -> None: ...

    url = "http://127.0.0.1:1/never-asked?a=b#c"
    assert binder(method)(request(json.dumps({"link": url}).encode())) == {"link": url}
    assert binder(model)(request(json.dumps({"url": url}).encode())) == {"input": Picture(url)}


@pytest.mark.parametrize("type_", [Picture, ModelInner, list[Inner], dict], ids=str)
def test_a_broken_body_is_refused_with_a_reason_whatever_is_expected(type_: Any) -> None:
    """Behaviour 12."""

    def whole(self: Any, input: Any) -> None: ...
    def two(self: Any, input: Any, other: Picture) -> None: ...
    def scalar(self: Any, prompt: str) -> None: ...

    whole.__annotations__["input"] = two.__annotations__["input"] = Annotated[type_, Meta(description="")]
    deep = b"[" * 10_000 + b"]" * 10_000
    broken = [
        b"{", b'{"url":}', b"\xff\xfe", b'{"url":"\xff"}', b"\x00", b'{"n":NaN}', b'{"n":-Infinity}', b'{"n":1e999}',
        b'{"n":1,"n":2}', deep, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"x":1,"y":%s}' % deep, b"9" * 5000,
        b'{"n":01}', b"{'n':1}", b"tru", b'"\n"',
    ]  # fmt: skip
    for method in (whole, two, scalar):
        for body in broken:
            (fault,) = faults(binder(method), request(body))
            assert (fault["type"], fault["loc"][0], fault["msg"]) == ("json_invalid", "body", "JSON decode error")
            assert fault["ctx"]["error"]


@pytest.mark.parametrize("content_type", [b"text/plain", b"multipart/form-data; boundary=x", b"", b"nonsense", None])
def test_a_body_of_a_wrong_content_type_is_refused_at_the_body(content_type: bytes | None) -> None:
    """Behaviour 12."""

    def whole(self: Any, input: Picture) -> None: ...
    def two(self: Any, a: Picture, b: Picture) -> None: ...

    headers = [(b"content-type", content_type)] if content_type is not None else []
    asked = request(b'{"url":"x","a":{"url":"x"},"b":{"url":"x"}}', headers=headers)
    assert [f["loc"] for f in faults(binder(whole), asked)] == [["body"]]
    assert [f["loc"] for f in faults(binder(two), asked)] == [["body", "a"], ["body", "b"]]


def test_a_huge_number_is_an_integer_where_it_may_be_one_and_echoed_where_not() -> None:
    """Behaviour 12."""
    huge = 10**30

    assert codec(Inner).decode(b'{"x":%d}' % huge).x == huge
    assert faults(codec(Picture).decode, b'{"url":%d}' % huge)[0]["input"] == huge


def test_an_int_is_a_good_float() -> None:
    """Behaviour 11."""
    assert codec(Struct).decode(b'{"prompt":"a","scale":1}').scale == 1.0


def test_twins_have_the_same_schema() -> None:
    _, ours = codec(Struct).schema(output=False)
    _, theirs = codec(Model).schema(output=False)

    assert json.dumps(ours["Struct"] | {"title": "Model"}, sort_keys=True) == json.dumps(
        theirs["Model"], sort_keys=True
    ).replace("ModelInner", "Inner")
    assert ours["Color"] == theirs["Color"]


@pytest.mark.parametrize(
    ("body", "position", "reason"),
    [
        (b'{"a":1,}', 7, "Expecting property name enclosed in double quotes"),
        (b'{"prompt":"a","prompt":"b"}', 14, "Duplicate key 'prompt'"),
        (b'{"prompt":"a","p\\u0072ompt":"b"}', 1, "Duplicate key 'prompt'"),
        (b"[" * 10_000, 0, "Nested too deeply"),
        (b'{"prompt":NaN}', 0, "NaN is not a JSON number"),
        (b'{"prompt":1e999}', 0, "Number out of range: 1e999"),
    ],
    ids=["comma", "double", "escaped double", "deep", "nan", "huge"],
)
@pytest.mark.parametrize("kind", [Struct, Model, Dict, dict])
def test_a_broken_text_is_json_invalid_with_a_reason(
    kind: Any, body: bytes, position: int, reason: str
) -> None:
    (fault,) = faults(codec(kind).decode, body)

    assert (fault["type"], fault["msg"]) == ("json_invalid", "JSON decode error")
    assert fault["ctx"] == {"error": reason}
    assert fault["loc"] == [position]


def test_a_binary_body_is_counted_and_not_echoed() -> None:
    (fault,) = faults(codec(Struct).decode, b"\x89PNG")

    assert fault["input"] == "<binary 4 bytes>"


NAMES = st.sampled_from(["a", "~a", "b", ":", "~:", 'a"', "a:", "\u00e9", "", "\\", '":'])  # ~: by its escapes
TEXTS = st.recursive(  # objects as tuples of pairs, so that keys may repeat
    NAMES | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=4).map(tuple),
    max_leaves=8,
)


@given(TEXTS, st.sampled_from(["", " ", "\n"]), st.sampled_from([0, 1 << 16]))
@bounded(600)
def test_a_repeated_key_is_found_wherever_it_stands_and_however_it_is_written(
    value: Any, space: str, large: int
) -> None:
    body = written(value, space).encode()
    try:
        exact: Any = text.parse(body)
    except InvalidInput as error:
        exact = error.faults

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "LARGE", large)
        for read in (text.parse_fast, codec(Any).decode):
            try:
                found = read(body)
            except InvalidInput as error:
                found = error.faults
            assert found == exact


def written(value: Any, space: str) -> str:
    """`value` as JSON: tuples of pairs as objects, a text after `~` in escapes."""
    if isinstance(value, str):
        escaped, plain = value.startswith("~"), value.removeprefix("~")
        return '"' + "".join(f"\\u{ord(c):04x}" if escaped or c in '"\\' else c for c in plain) + '"'
    if isinstance(value, list):
        return f"[{space}{f'{space},'.join(written(v, space) for v in value)}]"
    if isinstance(value, tuple):
        pairs = (f"{written(k, space)}{space}:{space}{written(v, space)}" for k, v in value)
        return f"{{{','.join(pairs)}{space}}}"
    return json.dumps(value)


def test_a_part_that_the_type_does_not_read_is_checked_too() -> None:
    assert codec(Inner).decode(b'{"x":1,"url":"http://a:80"}') == Inner(1)
    assert codec(Inner).decode(b'{"x":1,"note":{"b":1},"b":2}') == Inner(1)
    for wrong in (b'"y":1,"y":2', b'"y":{"z":1,"z":2}', b'"y":1e999,"z":0', b'"y":"\\u003a","y":""'):
        (fault,) = faults(codec(Inner).decode, b'{"x":1,%s}' % wrong)
        assert fault["type"] == "json_invalid"


def test_seven_mebibytes_of_json_arrive_whole() -> None:
    """Behaviour 14."""
    url = "data:image/png;base64," + "QUJD" * (7 * 2**20 // 4)

    def paint(self: Any, input: Picture) -> None: ...

    body = json.dumps({"url": url, "n": 3})
    assert binder(paint)(request(body.encode()))["input"] == Picture(url, 3)
    (fault,) = faults(binder(paint), request(body.replace("}", ',"n":4}').encode()))
    assert fault["ctx"] == {"error": "Duplicate key 'n'"}


def test_one_model_is_the_whole_body_and_two_are_keyed_by_name() -> None:
    def one(self: Any, input: Inner) -> None: ...
    def two(self: Any, a: Inner, b: Inner) -> None: ...

    assert binder(one)(request(b'{"x":1}')) == {"input": Inner(1)}
    assert binder(two)(request(b'{"a":{"x":1},"b":{"x":2}}')) == {"a": Inner(1), "b": Inner(2)}
    assert [f["loc"] for f in faults(binder(two), request(b'{"a":{}}'))] == [["body", "a", "x"], ["body", "b"]]


@pytest.mark.parametrize("body", [b"", b"null"])
def test_an_absent_body_is_missing_or_the_default(body: bytes) -> None:
    def required(self: Any, input: Inner) -> None: ...
    def optional(self: Any, input: Inner | None = None) -> None: ...

    assert faults(binder(required), request(body)) == [
        {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
    ]
    assert binder(optional)(request(body)) == {"input": None}


def test_a_body_that_is_not_json_by_its_type_is_not_parsed() -> None:
    def one(self: Any, input: Inner) -> None: ...

    (fault,) = faults(binder(one), request(b'{"x":1}', headers=[(b"content-type", b"text/plain")]))

    assert (fault["type"], fault["loc"]) == ("model_attributes_type", ["body"])
    assert fault["input"] == "<binary 7 bytes>"


def test_scalars_come_from_the_query_or_a_json_object() -> None:
    def method(self: Any, prompt: str, n: int = 3) -> None: ...

    assert binder(method)(request(query=b"prompt=x&n=4")) == {"prompt": "x", "n": 4}
    assert binder(method)(request(b'{"prompt":"y"}')) == {"prompt": "y", "n": 3}
    assert faults(binder(method), request(query=b"n=z")) == [
        {"type": "missing", "loc": ["query", "prompt"], "msg": "Field required", "input": None},
        {
            "type": "int_parsing",
            "loc": ["query", "n"],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "input": "z",
        },
    ]


def test_headers_path_parts_and_injected_objects_reach_the_method() -> None:
    def method(
        self: Any, name: int, x_fal_request_id: str = Header(None), request: Request = None, reply: Response = None
    ) -> None: ...

    bound = binder(method, "/items/{name}")
    asked = request(headers=[(b"x-fal-request-id", b"r1")])
    asked.path_parameters = {"name": "7"}
    arguments = bound(asked)

    assert arguments["name"] == 7
    assert arguments["x_fal_request_id"] == "r1"
    assert arguments["request"] is asked
    assert isinstance(arguments["reply"], Response)


def test_a_method_without_parameters_ignores_the_body() -> None:
    def method(self: Any) -> None: ...

    assert binder(method)(request(b"{not json")) == {}


def test_iterators_and_generators_stream_their_items() -> None:
    def annotated(self: Any) -> Iterator[Inner]: ...
    async def generator(self: Any) -> AsyncIterator[Inner]:
        yield Inner(1)

    for method, is_async in ((annotated, False), (generator, True)):
        endpoint = describe(method, Mark(path="/"), owner="App")
        assert (endpoint.streams, endpoint.output, endpoint.is_async) == (True, Inner, is_async)


def test_annotations_that_name_a_local_class_are_understood() -> None:
    class Local(msgspec.Struct):
        x: int

    def method(self: Any, input: Local) -> None: ...

    assert binder(method)(request(b'{"x":1}')) == {"input": Local(1)}


def test_a_wrong_declaration_names_the_method_and_shows_a_right_one() -> None:
    def method(self: Any, *args: int) -> None: ...

    with pytest.raises(ConfigError, match=r"App\.method: \*args .* def method\(self, prompt: str\)"):
        describe(method, Mark(path="/"), owner="App")


@pytest.mark.parametrize("kind", [Inner, ModelInner])
def test_an_output_is_validated_and_its_wrong_field_is_named(kind: Any) -> None:
    assert codec(kind).encode({"x": 3}) == b'{"x":3}'
    with pytest.raises(InvalidOutput, match=r"response\.x: Input should be a valid integer"):
        codec(kind).encode({"x": "no"})


def test_numbers_of_numpy_and_torch_keep_their_shape() -> None:
    """Behaviour 16."""
    value = {
        "scalar": np.float32(1.5), "array": np.ones((1, 2)), "one": torch.tensor(2), "many": torch.tensor([[1, 2]]),
        "nan": float("nan"), "none": None, "raw": b"ab", "set": {1}, "model": ModelInner(x=1), "color": Color.RED,
    }  # fmt: skip

    assert json.loads(codec(Any).encode(value)) == {
        "scalar": 1.5, "array": [[1.0, 1.0]], "one": 2, "many": [[1, 2]],
        "nan": None, "none": None, "raw": "YWI=", "set": [1], "model": {"x": 1}, "color": "red",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (float, np.float32(1.5), "1.5"),
        (float, torch.tensor(1.5), "1.5"),
        (int, torch.tensor(3), "3"),
        (bool, np.bool_(True), "true"),
        (str, np.str_("a"), '"a"'),
        (list[float], np.ones(2), "[1.0,1.0]"),
        (list[list[int]], torch.ones(1, 2, dtype=torch.int), "[[1,1]]"),
        (dict[str, float | None], {"a": np.float32("nan"), "b": None}, '{"a":null,"b":null}'),
        (Color, Color.RED, '"red"'),
        (Inner | None, None, "null"),
        (datetime.datetime, datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC), '"2024-01-31T12:00:00Z"'),
        (Any, {"a": [{"b": (None, {1: {2}})}]}, '{"a":[{"b":[null,{"1":[2]}]}]}'),
        (Any, [datetime.date(2024, 1, 31), datetime.timedelta(hours=1)], '["2024-01-31","PT3600S"]'),
        (Any, np.datetime64("2024-01-31T12:00:00.123456789"), '"2024-01-31T12:00:00.123456"'),
        (Any, np.array(["2024-01-31", "NaT"], dtype="M8[ns]"), '["2024-01-31T00:00:00",null]'),
        (Any, np.longdouble(1.5), "1.5"),
        (Any, torch.tensor([[1.5]], dtype=torch.bfloat16), "[[1.5]]"),
        (Any, 2**70, str(2**70)),
    ],
    ids=str,
)
def test_an_output_keeps_its_shape_and_type(type_: Any, value: Any, text: str) -> None:
    """Behaviour 16."""
    assert codec(type_).encode(value).decode() == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, object()]}, r"response\.a\.1: object has no form in JSON"),
        ({"a": {(1, 2): 3}}, r"response\.a\.\(1, 2\): tuple cannot be a key in JSON"),
        ({"a": np.array([1j])}, r"response\.a: complex has no form in JSON"),
        ({"a": "\ud800"}, r"response\.a: .*surrogates"),
        ({"a": (i for i in [1])}, r"response\.a: generator has no form in JSON"),
        ({"a": np.zeros(2_000_000)}, r"response\.a: an array of shape \(2000000,\) is too large for JSON; return a File"),
        (Inner(object()), r"response\.x: object has no form in JSON"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # the same in every run
)
def test_what_has_no_form_in_json_is_named_by_its_path(value: Any, said: str) -> None:
    """Behaviour 16."""
    with pytest.raises(InvalidOutput, match=said):
        codec(Any).encode(value)


def test_an_output_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(InvalidOutput, match="nested too deeply, or holds itself"):
        codec(Any).encode(value)


def test_a_tensor_of_one_element_in_a_list_is_no_plain_number() -> None:
    """Behaviour 16: the shape is kept, so a declared float is not met."""
    with pytest.raises(InvalidOutput, match="response: Input should be a valid number"):
        codec(float).encode(torch.tensor([1.5]))


def test_a_type_that_nobody_knows_has_no_codec() -> None:
    assert type_codec(Exception) is None


def test_lists_of_either_number_check_their_elements() -> None:
    either = codec(list[int] | list[float])

    assert either.decode(b"[]") == []
    assert either.decode(b"[1.5]") == [1.5]
    assert [f["loc"] for f in faults(either.decode, b'["x"]')] == [["list[int]", 0], ["list[float]", 0]]
    assert faults(either.decode, b"1")[0]["type"] == "list_type"


def test_a_struct_with_a_union_msgspec_cannot_tell_apart_is_refused_at_assembly() -> None:
    class Unclear(msgspec.Struct):
        x: list[int] | list[float]

    with pytest.raises(ConfigError, match="more than one array-like"):
        type_codec(Unclear)
