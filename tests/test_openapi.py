"""The document that fal's clients, playgrounds and code generators read of an app."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
import pluggy
import pydantic
import pytest
from openapi_spec_validator import validate
from runner.plugins import hookspecs, openapi
from runner.plugins.fal import models, toolkit
from runner.plugins.types import Header, describe, type_codec
from runner.schemas.endpoint import Endpoint, Mark
from runner.schemas.request import Request
from runner.schemas.response import Response
from runner.schemas.service import ServiceView

import runner


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(msgspec.Struct):
    width: int = 512
    height: int = 512


class Input(msgspec.Struct):
    """What to paint."""

    prompt: str
    size: Size
    seed: int | None = None
    color: Color = Color.RED
    mode: Literal["fast", "fine"] = "fast"


class Output(msgspec.Struct):
    text: str
    sizes: list[Size] = []


def pydantic_twins() -> tuple[type, type]:
    """The same `Input` and `Output` as pydantic models."""

    class Size(pydantic.BaseModel):
        width: int = 512
        height: int = 512

    class Input(pydantic.BaseModel):
        """What to paint."""

        prompt: str
        size: Size
        seed: int | None = None
        color: Color = Color.RED
        mode: Literal["fast", "fine"] = "fast"

    class Output(pydantic.BaseModel):
        text: str
        sizes: list[Size] = []

    return Input, Output


class Painter:
    """Answers with what its `Input` and `Output` say; the paths are given by `MARKS`."""

    version = "1.2"

    def generate(self, input: Input) -> Output:
        """Paint.

        With oil.
        """
        raise NotImplementedError

    def mix(
        self,
        first: Input,
        second: Output,
        shade: int,
        request: Request,
        coats: int = 3,
        note: str | None = None,
        x_fal_tone: str = cast(str, Header("warm")),
    ) -> list[int]:
        raise NotImplementedError

    def repaint(self, input: Input | None = None) -> Any:
        raise NotImplementedError

    def clean(self) -> None:
        raise NotImplementedError

    def strokes(self, input: Input) -> Iterator[Output]:
        raise NotImplementedError

    def step(self, input: Input) -> Output:
        raise NotImplementedError

    async def talk(self, input: AsyncIterator[Input]) -> AsyncIterator[Output]:
        raise NotImplementedError
        yield

    def anything(self, input: Any) -> Any:
        raise NotImplementedError

    def raw(self) -> None:
        raise NotImplementedError


MARKS = {
    "strokes": Mark(path="/strokes"),
    "generate": Mark(path="/"),
    "mix": Mark(path="/mix/{shade}"),
    "repaint": Mark(path="/repaint"),
    "clean": Mark(path="/clean"),
    "step": Mark(path="/a/realtime", is_websocket=True, realtime_mode="unary", buffering=3),
    "talk": Mark(path="/a/talk", is_websocket=True, realtime_mode="bidi", session_timeout=9),
    "anything": Mark(path="/a/any", is_websocket=True, realtime_mode="unary"),
    "raw": Mark(path="/a/raw", is_websocket=True),
}


def service_of(owner: type, marks: dict[str, Mark]) -> ServiceView:
    found = tuple(describe(getattr(owner, name), mark, owner=owner) for name, mark in marks.items())
    return service_with(*found, instance=owner())


def service_with(*endpoints: Endpoint, instance: Any = None) -> ServiceView:
    view = SimpleNamespace(
        app=SimpleNamespace(name="Painter"), endpoints=endpoints, instance=instance, codec=type_codec
    )
    return cast(ServiceView, view)


def document_of(*methods: Any) -> dict[str, Any]:
    """The document of an app that has these functions at `/name`."""
    made = [describe(m, Mark(path=f"/{m.__name__}"), owner="App") for m in methods]
    return openapi.document(service_with(*made))


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def json_body(operation: dict[str, Any]) -> Any:
    return operation["requestBody"]["content"]["application/json"]["schema"]


def json_answer(operation: dict[str, Any]) -> Any:
    return operation["responses"]["200"]["content"]["application/json"]["schema"]


PAINTER = openapi.document(service_of(Painter, MARKS))


def test_the_document_is_valid_openapi() -> None:
    validate(PAINTER)

    assert PAINTER["openapi"] == "3.1.0"


def test_the_document_is_named_after_the_class_and_its_version() -> None:
    assert PAINTER["info"] == {"title": "Painter", "version": "1.2"}
    assert document_of()["info"]["version"] == "0.1.0"


def test_msgspec_and_pydantic_twins_have_one_document() -> None:
    its_input, its_output = pydantic_twins()
    twins: dict[Any, Any] = {Input: its_input, Output: its_output, Input | None: its_input | None}
    service = service_of(Painter, MARKS)
    endpoints = [
        msgspec.structs.replace(
            e,
            parameters=tuple(msgspec.structs.replace(p, type=twins.get(p.type, p.type)) for p in e.parameters),
            output=twins.get(e.output, e.output),
        )
        for e in service.endpoints
    ]

    assert openapi.document(service_with(*endpoints, instance=Painter())) == PAINTER


def test_making_the_document_twice_gives_the_same() -> None:
    """Contract 3.1, checklist 24: no path and no property is listed twice."""
    assert openapi.document(service_of(Painter, MARKS)) == PAINTER
    assert len(set(PAINTER["x-fal-order-paths"])) == len(PAINTER["x-fal-order-paths"])


def test_a_file_is_a_component_with_its_widget_in_both_kinds_of_model() -> None:
    """Contract 3.2, checklist 26: Image, Video and Audio name theirs, a plain File none."""

    class Study(pydantic.BaseModel):
        picture: runner.Image
        sketches: list[runner.Image] = []
        sound: runner.Audio | None = None
        rest: runner.File | None = None

    def paint(self: Any, study: Study) -> runner.Image:
        raise NotImplementedError

    def twin(self: Any, study: StudyStruct) -> runner.Image:
        raise NotImplementedError

    twin.__name__ = "paint"
    Study.model_rebuild(_types_namespace={"runner": runner})
    found = document_of(paint)

    assert document_of(twin) == found
    schemas = found["components"]["schemas"]
    assert schemas["Image"]["ui"] == {"field": "image"}
    assert schemas["Audio"]["ui"] == {"field": "audio"}
    assert "ui" not in schemas["File"]
    assert schemas["Image"]["x-fal-order-properties"][:2] == ["url", "content_type"]
    assert schemas["Study"]["properties"]["picture"] == reference("Image")
    assert json_answer(found["paths"]["/paint"]["post"]) == reference("Image")
    validate(found)


def test_hidden_and_media_fields_reach_the_document() -> None:
    """Contract 3.2, checklist 26."""

    class Options(models.FalBaseModel):
        FIELD_ORDERS: ClassVar = ["image_url"]
        debug: bool = models.Hidden(models.Field(default=False))
        image_url: str = models.ImageField()
        size: models.ImageSizeInput | None = models.ImageSizeField(
            default=None, constraints=toolkit.ImageSizeConstraints(max_width=2048), ui={"important": True}
        )

    def paint(self: Any, options: Options) -> None:
        raise NotImplementedError

    shown = document_of(paint)["components"]["schemas"]["Options"]

    assert shown["x-fal-order-properties"] == ["image_url", "debug", "size"]
    assert shown["properties"]["debug"]["ui"] == {"hidden": True}
    assert shown["properties"]["image_url"]["ui"] == {"field": "image"}
    assert shown["properties"]["size"]["x-fal"] == {"max_width": 2048}
    assert shown["properties"]["size"]["ui"] == {"important": True}


def test_what_an_author_adds_to_a_struct_field_stands_in_its_schema() -> None:
    """Contract 3.2: `ui` and examples, copied as they are."""

    def write(self: Any, input: Noted) -> None:
        raise NotImplementedError

    shown = document_of(write)["components"]["schemas"]["Noted"]["properties"]["model_name"]

    assert shown["ui"] == {"field": "presets", "important": True}
    assert (shown["examples"], shown["description"]) == (["small"], "Which one.")


def test_an_operation_is_called_as_fastapi_calls_it() -> None:
    """Contract 3.1."""
    operation = PAINTER["paths"]["/mix/{shade}"]["post"]

    assert operation["operationId"] == "mix_mix__shade__post"
    assert PAINTER["paths"]["/"]["post"]["operationId"] == "generate__post"
    assert operation["summary"] == "Mix"


def test_a_docstring_becomes_the_description() -> None:
    assert PAINTER["paths"]["/"]["post"]["description"] == "Paint.\n\nWith oil."
    assert "description" not in PAINTER["paths"]["/clean"]["post"]


def test_a_model_is_a_required_body_by_reference() -> None:
    operation = PAINTER["paths"]["/"]["post"]

    assert operation["requestBody"]["required"] is True
    assert json_body(operation) == reference("Input")
    assert json_answer(operation) == reference("Output")


def test_an_optional_model_is_no_required_body() -> None:
    operation = PAINTER["paths"]["/repaint"]["post"]

    assert "required" not in operation["requestBody"]
    assert json_body(operation)["anyOf"] == [reference("Input"), {"type": "null"}]


def test_two_models_are_keys_of_one_body() -> None:
    assert json_body(PAINTER["paths"]["/mix/{shade}"]["post"]) == reference("Body_mix_mix__shade__post")

    body = PAINTER["components"]["schemas"]["Body_mix_mix__shade__post"]
    assert body["properties"] == {"first": reference("Input"), "second": reference("Output")}
    assert body["required"] == ["first", "second"]


def test_plain_arguments_are_parameters_of_path_query_and_header() -> None:
    shade, coats, note, tone = PAINTER["paths"]["/mix/{shade}"]["post"]["parameters"]

    assert shade == {
        "name": "shade", "in": "path", "required": True, "schema": {"type": "integer", "title": "Shade"},
    }  # fmt: skip
    assert coats == {
        "name": "coats", "in": "query", "required": False,
        "schema": {"type": "integer", "title": "Coats", "default": 3},
    }  # fmt: skip
    assert (note["name"], note["in"], "default" in note["schema"]) == ("note", "query", False)
    assert tone == {
        "name": "x-fal-tone", "in": "header", "required": False,
        "schema": {"type": "string", "title": "X-Fal-Tone", "default": "warm"},
    }  # fmt: skip


def test_bad_input_is_described_where_there_is_input() -> None:
    """Contract 3.1."""
    schema = PAINTER["paths"]["/"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]

    assert schema == reference("HTTPValidationError")
    assert "422" not in PAINTER["paths"]["/clean"]["post"]["responses"]
    assert PAINTER["components"]["schemas"]["ValidationError"]["required"] == ["loc", "msg", "type"]


def test_a_stream_answers_with_events_of_its_item() -> None:
    content = PAINTER["paths"]["/strokes"]["post"]["responses"]["200"]["content"]

    event = content["text/event-stream"]["schema"]["properties"]["data"]
    assert event == {"type": "string", "contentMediaType": "application/json", "contentSchema": reference("Output")}
    assert content["application/json"] == {"schema": {"type": "array", "items": reference("Output")}}


def test_paths_are_ordered_http_then_health_then_websockets() -> None:
    """Contract 3.1, checklist 24."""
    expected = [
        "/", "/clean", "/mix/{shade}", "/repaint", "/strokes", "/health",
        "/a/realtime", "/a/talk", "/a/any", "/a/raw",
    ]  # fmt: skip

    assert PAINTER["x-fal-order-paths"] == expected
    assert list(PAINTER["paths"]) == expected


def test_an_apps_own_post_health_stands_beside_the_built_in_one() -> None:
    def health(self: Any) -> dict[str, str]:
        raise NotImplementedError

    def zoom(self: Any) -> None:
        raise NotImplementedError

    found = document_of(health, zoom)

    assert set(found["paths"]["/health"]) == {"get", "post"}
    assert found["x-fal-order-paths"] == ["/zoom", "/health"]
    validate(found)


def test_properties_keep_their_order_in_a_list_of_their_own() -> None:
    """Contract 3.1, checklist 24."""
    schemas = PAINTER["components"]["schemas"]

    assert schemas["Input"]["x-fal-order-properties"] == ["prompt", "size", "seed", "color", "mode"]
    assert schemas["Size"]["x-fal-order-properties"] == ["width", "height"]
    assert "x-fal-order-properties" not in schemas["Color"]


def test_properties_within_all_of_are_ordered_too() -> None:
    """Contract 3.1, checklist 24."""
    components = openapi.Components()
    part: dict[str, Any] = {"properties": {"b": {}, "a": {}}}

    components.add(reference("Joined"), {"Joined": {"allOf": [{"allOf": [part]}, reference("Other")]}})

    joined = components.finished()["Joined"]
    assert joined["allOf"][0]["allOf"][0]["x-fal-order-properties"] == ["b", "a"]
    assert "x-fal-order-properties" not in part  # the codec's own schema is left alone


def test_a_realtime_path_says_what_it_speaks() -> None:
    """Contract 3.1, checklist 25."""
    assert PAINTER["paths"]["/a/realtime"]["x-fal-protocol"] == {
        "type": "realtime",
        "operationId": "step",
        "config": {"buffering": 3, "sessionTimeout": None, "maxBatchSize": 1},
        "contentType": "application/msgpack",
        "realtimeMode": "unary",
    }
    assert PAINTER["paths"]["/a/talk"]["x-fal-protocol"]["realtimeMode"] == "bidi"
    assert PAINTER["paths"]["/a/talk"]["x-fal-protocol"]["config"]["sessionTimeout"] == 9


def test_a_typed_realtime_path_is_mirrored_as_a_post() -> None:
    """Contract 3.1, checklist 25."""
    for path in ("/a/realtime", "/a/talk"):
        mirror = PAINTER["paths"][path]["post"]

        assert json_body(mirror) == reference("Input")
        assert json_answer(mirror) == reference("Output")
    assert PAINTER["paths"]["/a/realtime"]["post"]["operationId"] == "step_post"


def test_a_realtime_path_without_output_type_mirrors_an_empty_answer() -> None:
    def step(self: Any, input: Input) -> None:
        raise NotImplementedError

    mark = Mark(path="/step", is_websocket=True, realtime_mode="unary")
    found = openapi.document(service_with(describe(step, mark, owner="App")))

    assert list(found["paths"]["/step"]["post"]["responses"]) == ["204"]
    validate(found)


def test_an_untyped_or_raw_websocket_has_no_mirror() -> None:
    """Contract 3.1, checklist 25."""
    assert list(PAINTER["paths"]["/a/any"]) == ["x-fal-protocol"]
    assert PAINTER["paths"]["/a/raw"] == {
        "x-fal-protocol": {
            "type": "websocket",
            "operationId": "raw",
            "config": {"buffering": None, "sessionTimeout": None, "maxBatchSize": 1},
        }
    }


def test_two_types_of_one_name_are_two_components() -> None:
    def paint(self: Any, input: Input) -> None:
        raise NotImplementedError

    def write(self: Any, input: Note) -> None:
        raise NotImplementedError

    found = document_of(paint, write)

    assert json_body(found["paths"]["/paint"]["post"]) == reference("Input")
    assert json_body(found["paths"]["/write"]["post"]) == reference("Input-2")
    assert list(found["components"]["schemas"]["Input-2"]["properties"]) == ["text"]
    validate(found)


def test_equal_schemas_around_different_inner_types_stay_apart() -> None:
    components = openapi.Components()
    outer = {"properties": {"inner": reference("Inner")}}

    components.add(reference("Outer"), {"Outer": outer, "Inner": {"type": "string"}})
    other = components.add(reference("Outer"), {"Outer": outer, "Inner": {"type": "integer"}})
    again = components.add(reference("Outer"), {"Outer": outer, "Inner": {"type": "string"}})

    schemas = components.finished()
    assert (other, again) == (reference("Outer-2"), reference("Outer"))
    assert schemas["Outer-2"]["properties"] == {"inner": reference("Inner-2")}
    assert len(schemas) == 4


def test_a_model_that_answers_differently_than_it_is_asked_has_two_components() -> None:
    class Area(pydantic.BaseModel):
        width: int

        @pydantic.computed_field  # type: ignore[prop-decorator]
        @property
        def square(self) -> int:
            return self.width**2

    def measure(self: Any, area: Area) -> Area:
        raise NotImplementedError

    operation = document_of(measure)["paths"]["/measure"]["post"]

    assert json_body(operation) == reference("Area")
    assert json_answer(operation) == reference("Area-Output")


def test_a_type_named_like_a_fault_leaves_the_fault_as_it_is() -> None:
    def report(self: Any, fault: Report) -> None:
        raise NotImplementedError

    found = document_of(report)

    faults = found["paths"]["/report"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
    named = found["components"]["schemas"][faults["$ref"].rpartition("/")[2]]
    item = named["properties"]["detail"]["items"]["$ref"].rpartition("/")[2]
    assert "loc" in found["components"]["schemas"][item]["properties"]
    assert json_body(found["paths"]["/report"]["post"]) != named["properties"]["detail"]["items"]
    validate(found)


def test_a_name_that_openapi_cannot_hold_is_made_plain() -> None:
    def measure(self: Any, length: Größe, weight: Größe) -> None:
        raise NotImplementedError

    mark = Mark(path="/maß")
    found = openapi.document(service_with(describe(measure, mark, owner="App")))

    assert "Gr__e" in found["components"]["schemas"]
    validate(found)


def test_a_recursive_type_is_described_once() -> None:
    def grow(self: Any, tree: Tree) -> Tree:
        raise NotImplementedError

    found = document_of(grow)

    assert [n for n in found["components"]["schemas"] if n.startswith("Tree")] == ["Tree"]
    validate(found)


def test_path_converters_are_left_out_of_the_document() -> None:
    def fetch(self: Any, name: str) -> str:
        raise NotImplementedError

    mark = Mark(path="/files/{name:path}")
    found = openapi.document(service_with(describe(fetch, mark, owner="App")))

    assert "/files/{name}" in found["paths"]
    assert found["paths"]["/files/{name}"]["post"]["operationId"] == "fetch_files__name__post"
    validate(found)


def test_the_plugin_answers_a_known_hook() -> None:
    plugins = pluggy.PluginManager("runner")
    plugins.add_hookspecs(hookspecs)
    plugins.register(openapi)

    plugins.check_pending()
    (routes,) = plugins.hook.register_routes(service=service_with())

    assert [route.path for route in routes] == ["/openapi.json"]


def test_the_document_is_made_once_and_asked_for_by_its_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checklist 24: a second fetch is the first one again."""
    made = iter([{"openapi": "3.1.0"}])
    monkeypatch.setattr(openapi, "document", lambda service: next(made))  # a second call would raise
    (route,) = openapi.register_routes(service_with())

    first, second = answered(route.answer(Request())), answered(route.answer(Request()))
    tag = first.headers["etag"]
    known = Request(scope={"headers": [(b"if-none-match", f'"other", W/{tag}'.encode())]})
    third = answered(route.answer(known))

    assert (route.method, route.path) == ("GET", "/openapi.json")
    assert first.body == second.body == b'{"openapi":"3.1.0"}'
    assert first.media_type == "application/json"
    assert (third.status, third.body, third.headers["etag"]) == (304, b"", tag)


def answered(answer: Any) -> Response:
    assert isinstance(answer, Response)
    return answer


class StudyStruct(msgspec.Struct):
    picture: runner.Image
    sketches: list[runner.Image] = []
    sound: runner.Audio | None = None
    rest: runner.File | None = None


StudyStruct.__name__ = "Study"


class Noted(msgspec.Struct):
    model_name: Annotated[
        str,
        msgspec.Meta(
            description="Which one.",
            examples=["small"],
            extra_json_schema={"ui": {"field": "presets", "important": True}},
        ),
    ]


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Größe(msgspec.Struct):
    value: float


class Note(msgspec.Struct):
    text: str


Note.__name__ = "Input"


class Report(msgspec.Struct):
    text: str


Report.__name__ = "ValidationError"
