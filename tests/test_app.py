"""The rules of an app's class (contract 1.1, 1.2; checks 4 and 5)."""

import pytest

import runner


@pytest.mark.parametrize(
    ("class_name", "alias"),
    [
        ("MyGoodApp", "my-good-app"),
        ("SDXLModel", "s-d-x-l-model"),
        ("GPT4App", "g-p-t-app"),
        ("myApp", "app"),
        ("gpt_4_turbo", "gpt-4-turbo"),
        ("app123", "app123"),
    ],
)
def test_check_4_an_app_is_called_after_its_class(class_name: str, alias: str) -> None:
    assert type(class_name, (runner.App,), {}).app_name == alias


def test_a_subclass_of_a_concrete_app_inherits_its_name() -> None:
    class Parent(runner.App, name="first"):
        pass

    class Child(Parent, name="second"):
        pass

    assert Child.app_name == "first"


def test_check_5_an_own_init_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ValueError, match=r"write setup\(self\) instead"):
        type("Wrong", (runner.App,), {"__init__": lambda self: None})


def test_check_5_two_marks_on_one_method_are_refused() -> None:
    with pytest.raises(ValueError, match="marked twice"):

        @runner.endpoint("/a")
        @runner.endpoint("/b")
        def generate() -> None: ...


def test_check_5_an_app_without_an_endpoint_is_refused() -> None:
    class Empty(runner.App):
        pass

    with pytest.raises(ValueError, match="Empty has no endpoint"):
        runner.describe_app(Empty)


def test_two_endpoints_on_one_path_are_both_named() -> None:
    class Twice(runner.App):
        @runner.endpoint("/")
        def first(self) -> None: ...

        @runner.endpoint("/")
        def second(self) -> None: ...

    with pytest.raises(runner.ConfigError, match=r"Twice\.first and \.second both answer '/'"):
        runner.describe_app(Twice)


def test_endpoints_are_sorted_by_path_and_options_read_from_class_keywords() -> None:
    class Served(runner.App, max_multiplexing=3, keep_alive=300):
        request_timeout = 60

        @runner.endpoint("/b", timeout=5)
        def second(self) -> None: ...

        @runner.endpoint("/a")
        def first(self) -> None: ...

    app = runner.describe_app(Served)

    assert [mark.path for mark in app.marks.values()] == ["/a", "/b"]
    assert (app.options.max_multiplexing, app.options.request_timeout) == (3, 60)


@pytest.mark.parametrize("wrong", [{"path": "generate"}, {"path": "/", "timeout": 0}, {"path": "/", "on_disconnect": "stop"}])
def test_a_wrong_mark_says_what_was_expected(wrong: dict[str, object]) -> None:
    with pytest.raises(runner.ConfigError, match=r"begins with|above 0|'cancel' or 'finish'"):
        runner.endpoint(**wrong)  # type: ignore[arg-type]


def test_a_wrong_option_is_named_with_a_valid_value() -> None:
    class Wrong(runner.App):
        max_multiplexing = "many"

        @runner.endpoint("/")
        def generate(self) -> None: ...

    with pytest.raises(runner.ConfigError, match=r"max_multiplexing.*for example"):
        runner.describe_app(Wrong)
