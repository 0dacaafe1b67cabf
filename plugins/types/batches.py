"""Batched methods take and give lists. What their callers send and get is one element, read here."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union

from ...schemas.batch import Batch
from ...schemas.endpoint import Mark
from ...schemas.problems import ConfigError

STREAMS = {
    collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable,
    collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable,
}  # fmt: skip
LISTS = (list, collections.abc.Sequence)
NO_LIST: Any = object()


def hints_of_one(function: Callable[..., Any], hints: dict[str, Any], mark: Mark, where: str) -> dict[str, Any]:
    """The hints of a batched `function` as those of one caller: each list's element in its place.

    Of what it gives, exceptions are taken out: they answer a member in an item's place. So is the
    None of a stream, which is nothing for that member this time. Raises ConfigError, with the line to
    write, for what takes or gives no lists.
    """
    if not isinstance(mark.batch, Batch):
        raise ConfigError(f"{where}: batch is {mark.batch!r}; it is a runner.Batch, {Batch.example}")
    if mark.is_websocket or mark.health_check is not None:
        what = "a WebSocket" if mark.is_websocket else "the health check"
        raise ConfigError(f"{where}: {what} cannot be batched; leave batch= out")
    names = [p.name for p in _own_parameters(function) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{where}: batch= gives it many inputs at once, and {what}; write {_line(function, hints, names)}")

    if not names:
        raise wrong("it takes none")
    found = dict(hints)
    for name in names:
        found[name] = _element(hints.get(name, NO_LIST))
        if found[name] is NO_LIST:
            raise wrong(f"its parameter {name!r} is no list")
    if "return" in hints:
        given, streams = _item(hints["return"])
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        item = _element(given, also=(tuple,))
        if item is NO_LIST or (generates and not streams):
            raise wrong("what it yields is no list with an item for each" if streams or generates else "what it returns is no list with an item for each")
        one = _answer(item, streams)
        found["return"] = types.GenericAlias(collections.abc.Iterator, (one,)) if streams else one
    return found


def _own_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    return parameters if inspect.ismethod(function) else parameters[1:]


def _element(hint: Any, *, also: tuple[Any, ...] = ()) -> Any:
    """What a list of this annotation holds; NO_LIST when it is none."""
    if hint is Any:
        return Any
    if typing.get_origin(hint) is Annotated:
        inner, *others = typing.get_args(hint)
        element = _element(inner, also=also)
        return element if element is NO_LIST else Annotated[(element, *others)]
    if (typing.get_origin(hint) or hint) not in (*LISTS, *also):
        return NO_LIST
    arguments = typing.get_args(hint)
    if also and typing.get_origin(hint) is tuple:
        return arguments[0] if len(arguments) == 2 and arguments[1] is ... else NO_LIST
    return (*arguments, Any)[0]


def _item(hint: Any) -> tuple[Any, bool]:
    """What is given at a time, and whether as a stream."""
    if (typing.get_origin(hint) or hint) in STREAMS and hint not in LISTS:
        return (*typing.get_args(hint), Any)[0], True
    return hint, False


def _answer(item: Any, streams: bool) -> Any:
    """`item` without what is no answer: exceptions, and in a stream None."""
    if typing.get_origin(item) not in (Union, types.UnionType):
        return item
    kept = [kind for kind in typing.get_args(item) if not (_is_error(kind) or (streams and kind is types.NoneType))]
    return Union[tuple(kept)] if kept else Any  # noqa: UP007 # its members are only known here


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _line(function: Callable[..., Any], hints: dict[str, Any], names: list[str]) -> str:
    """How `function` would have to begin."""
    taken = ", ".join(f"{name}: {_listed(hints.get(name), 'Input')}" for name in names or ["inputs"])
    given, streams = _item(hints.get("return"))
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    answer = _listed(given, "Output")
    if streams or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        answer = f"{'AsyncIterator' if is_async else 'Iterator'}[{answer}]"
    return f"{'async ' if is_async else ''}def {function.__name__}(self, {taken}) -> {answer}"


def _listed(hint: Any, otherwise: str) -> str:
    if hint is None or hint is types.NoneType or hint is Any:
        return f"list[{otherwise}]"
    if (element := _element(hint, also=(tuple,))) is not NO_LIST:
        hint = element
    return f"list[{_name(hint)}]"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


__all__ = ["STREAMS", "hints_of_one"]
